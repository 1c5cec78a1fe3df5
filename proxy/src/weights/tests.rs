use proptest::prelude::*;

use super::*;

#[test]
fn weights_are_divided_by_what_they_have_in_common() {
    for (weights, expected) in [
        (&[][..], &[][..]),
        (&[1, 1, 1], &[1, 1, 1]),
        (&[100, 100], &[1, 1]),
        (&[10, 5, 0], &[2, 1, 0]),
        (&[0, 0], &[0, 0]),
        (&[0, 65_535], &[0, 1]),
        (&[7, 3], &[7, 3]),
        (&[999, 1], &[999, 1]),
    ] {
        assert_eq!(slots(weights), (expected.to_vec(), None), "{weights:?}");
    }
}

#[test]
fn shares_that_do_not_fit_are_rounded_and_nobody_is_left_out() {
    for (weights, expected, sum) in [
        (&[1000, 1][..], &[999, 1][..], 1_001),
        (&[65_535, 65_534], &[500, 500], 131_069),
        (&[65_535, 1, 0, 1], &[998, 1, 0, 1], 65_537),
        (&[3000, 2000, 1], &[599, 400, 1], 5_001),
    ] {
        assert_eq!(
            slots(weights),
            (expected.to_vec(), Some(sum)),
            "{weights:?}"
        );
    }
}

#[test]
fn more_endpoints_than_slots_have_one_each() {
    let mut weights = vec![1; 1_500];
    assert_eq!(slots(&weights), (vec![1; 1_500], None));
    weights[7] = 2;
    assert_eq!(slots(&weights), (vec![1; 1_500], Some(1_501)));
}

#[test]
fn a_weight_is_a_number_of_16_bits() {
    for (text, expected) in [
        ("0", Some(0)),
        (" 65535\n", Some(65_535)),
        ("65536", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("heavy", None),
    ] {
        assert_eq!(parse(text), expected, "{text:?}");
    }
}

proptest! {
    /// By arithmetic of fractions, which the code has none of.
    #[test]
    fn slots_are_shares(weights in proptest::collection::vec(
        prop_oneof![Just(0u32), 1u32..5, 1u32..=65_535], 1..40)
    ) {
        let (slots, too_large) = slots(&weights);
        let total: usize = slots.iter().sum();
        prop_assert!(total <= MAX_SLOTS);
        for (weight, slots) in weights.iter().zip(&slots) {
            prop_assert_eq!(*weight == 0, *slots == 0);
        }
        for (a, b) in weights.iter().zip(&slots) {
            for (c, d) in weights.iter().zip(&slots) {
                // Who weighs more has not less.
                prop_assert!(a < c || b >= d || too_large.is_some() && d - b <= 1);
                let (left, right) = (u64::from(*a) * *d as u64, u64::from(*c) * *b as u64);
                prop_assert!(too_large.is_some() || left == right, "{a} {b} {c} {d}");
            }
        }
        if let Some(sum) = too_large {
            prop_assert_eq!(total, MAX_SLOTS);
            prop_assert!(sum > MAX_SLOTS as u64);
            // Nobody has a slot more than its share, but for those whose share is less than one.
            let all: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (weight, slots) in weights.iter().zip(&slots).filter(|(_, slots)| **slots > 1) {
                let share = u64::from(*weight) * MAX_SLOTS as u64;
                prop_assert!((*slots as u64 - 1) * all <= share, "{weight} {slots}");
            }
        }
    }
}
