use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn target(number: u16) -> Target {
    let [high, low] = number.to_be_bytes();
    Target {
        address: [10, 0, high, low].into(),
        port: 80,
    }
}

fn targets(numbers: impl IntoIterator<Item = u16>) -> Vec<Target> {
    let sorted: BTreeSet<_> = numbers.into_iter().collect();
    sorted.into_iter().map(target).collect()
}

/// A table that a commit has brought to these endpoints.
fn table(numbers: impl IntoIterator<Item = u16>) -> SlotTable {
    let mut table = SlotTable::default();
    table.update(&targets(numbers));
    table.committed();
    table
}

#[test]
fn new_endpoints_come_after_the_others() {
    let mut table = table([1, 2, 3]);
    assert_eq!(table.update(&targets([0, 1, 2, 3])), [3]);
    assert_eq!(table.targets()[3], target(0));
    assert!(table.is_settled());
}

#[test]
fn a_replaced_endpoint_leaves_its_slot_to_the_new_one() {
    let mut table = table([1, 2, 3]);
    assert_eq!(table.update(&targets([1, 3, 9])), [1]);
    assert_eq!(table.targets()[1], target(9));
    assert!(table.is_settled());
}

#[test]
fn the_last_endpoint_moves_into_the_gap() {
    let mut table = table([1, 2, 3, 4]);
    assert_eq!(table.update(&targets([1, 3, 4])), [1]);
    assert_eq!(table.targets(), [target(1), target(4), target(3)]);
    assert!(!table.is_settled());
}

#[test]
fn the_last_endpoint_goes_without_a_move() {
    let mut table = table([1, 2, 3]);
    assert!(table.update(&targets([1, 2])).is_empty());
}

#[test]
fn orphans_wait_for_the_commit() {
    let mut table = table([1, 2, 3]);
    table.update(&targets([1]));
    assert!(table.prune().is_empty(), "the kernel may still use slot 2");
    table.update(&[]);
    assert!(table.prune().is_empty());
    table.committed();
    assert_eq!(table.prune(), 0..3);
    assert!(table.is_settled());
}

#[test]
fn a_second_shrink_keeps_what_the_first_commit_leads_to() {
    let mut table = table([1, 2, 3]);
    table.update(&targets([1, 2]));
    table.committed();
    assert_eq!(table.prune(), 2..3);
    table.update(&targets([1]));
    assert!(table.prune().is_empty());
    table.committed();
    assert_eq!(table.prune(), 1..2);
}

#[test]
fn growth_takes_orphans_back() {
    let mut table = table([1, 2, 3]);
    table.update(&targets([1]));
    table.committed();
    assert_eq!(table.update(&targets([1, 8, 9])), [1, 2]);
    assert!(table.prune().is_empty());
    assert!(table.is_settled());
}

#[test]
fn duplicates_in_adopted_slots_do_not_stay() {
    let mut table = SlotTable::adopted(vec![target(1), target(1), target(2)]);
    assert_eq!(table.update(&targets([1, 2])), [1]);
    assert_eq!(table.targets(), [target(1), target(2)]);
}

proptest! {
    /// After any sequence: slots hold exactly what is wanted, only reported slots have
    /// changed, who stays below the end keeps its slot, and as few are written as can be.
    #[test]
    fn an_update_is_exact_and_minimal(
        steps in proptest::collection::vec(proptest::collection::btree_set(0u16..24, 0..20), 1..12)
    ) {
        let mut table = SlotTable::default();
        for wanted in steps {
            let wanted = targets(wanted);
            let before = table.targets().to_vec();
            let written: BTreeSet<_> = table.update(&wanted).into_iter().collect();
            let after = table.targets();

            let mut sorted = after.to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &wanted);
            for (slot, now) in (0u32..).zip(after) {
                let is_same = before.get(slot as usize) == Some(now);
                prop_assert_eq!(is_same, !written.contains(&slot));
            }
            let stays = |(slot, t): (usize, &Target)| slot < after.len() && wanted.contains(t);
            let kept = before.iter().enumerate().filter(|(slot, t)| stays((*slot, t))).count();
            prop_assert_eq!(written.len(), after.len() - kept);
        }
    }

    /// The same of endpoints that have several slots: as many stay as can.
    #[test]
    fn an_update_of_repeated_endpoints_is_exact_and_minimal(
        steps in proptest::collection::vec(proptest::collection::vec(0u16..6, 0..20), 1..12)
    ) {
        let mut table = SlotTable::default();
        for mut wanted in steps {
            wanted.sort_unstable();
            let wanted: Vec<_> = wanted.into_iter().map(target).collect();
            let before = table.targets().to_vec();
            let written = table.update(&wanted);
            let mut sorted = table.targets().to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &wanted);
            for (slot, now) in (0u32..).zip(table.targets()) {
                let is_same = before.get(slot as usize) == Some(now);
                prop_assert!(is_same || written.contains(&slot));
            }
            let below = &before[..before.len().min(wanted.len())];
            let count = |of: &[Target], target: &Target| of.iter().filter(|t| *t == target).count();
            let distinct: BTreeSet<_> = wanted.iter().collect();
            let kept: usize = distinct.into_iter()
                .map(|target| count(below, target).min(count(&wanted, target)))
                .sum();
            prop_assert_eq!(written.len(), wanted.len() - kept);
        }
    }

    /// Whatever is committed when, a slot that the kernel may ask for is in the map.
    #[test]
    fn a_slot_in_use_is_never_pruned(
        steps in proptest::collection::vec((0u32..12, any::<bool>()), 1..40)
    ) {
        let mut table = SlotTable::default();
        // What the kernel may have as K, and which slots are in the map.
        let mut in_kernel = 0;
        let mut in_map = BTreeSet::new();
        for (len, is_committed) in steps {
            for slot in table.prune() {
                prop_assert!(in_map.remove(&slot), "slot {} was not there", slot);
            }
            in_map.extend(table.update(&targets((0..len).map(|n| n as u16))));
            prop_assert!((0..in_kernel.max(len)).all(|slot| in_map.contains(&slot)));
            if is_committed {
                table.committed();
                in_kernel = len;
            } else {
                in_kernel = in_kernel.max(len);
            }
        }
        table.committed();
        for slot in table.prune() {
            in_map.remove(&slot);
        }
        prop_assert!(table.is_settled());
        prop_assert_eq!(in_map.len(), table.targets().len());
    }
}
