//! Changes by others, and a kernel that cannot be reached.

use dataplane::layout::services::ENDPOINTS;
use dataplane::layout::{BRIDGE, INET, policy};
use dataplane::object::{IpFamily, Ruleset};

use super::harness::{Failure, Node, World};
use super::objects::{allow, pod, slice};
use super::world;
use crate::event::Event;

fn settled() -> (Node, World) {
    let world = world();
    let mut node = Node::new();
    node.list(&world);
    node.settle();
    (node, world)
}

#[test]
fn own_commits_are_never_taken_for_those_of_others() {
    let (mut node, _) = settled();
    for round in 2..20 {
        let address = format!("10.88.0.{round}");
        node.owner
            .handle(Event::Apply(pod("x/late", &address, "late")));
        node.owner
            .handle(Event::Apply(slice("x/web-1", "web", &[&address])));
        node.settle();
        assert!(!node.owner.check().expect("it can be asked"));
    }
    assert_eq!(node.owner.summary().repairs, 0);
}

#[test]
fn what_others_change_is_repaired_and_live_flows_judged_again() {
    type Damage = fn(&mut Ruleset);
    let damages: [Damage; 5] = [
        |ruleset| ruleset.tables.clear(),
        |ruleset| drop(ruleset.tables.remove(&*BRIDGE)),
        |ruleset| {
            let sets = &mut ruleset.tables.get_mut(&*INET).expect("ours").sets;
            sets.get_mut(ENDPOINTS.of(IpFamily::V4))
                .expect("ours")
                .elements
                .clear();
        },
        |ruleset| {
            let chains = &mut ruleset.tables.get_mut(&*INET).expect("ours").chains;
            chains.get_mut("forward").expect("ours").rules.clear();
        },
        |ruleset| {
            let sets = &mut ruleset.tables.get_mut(&*INET).expect("ours").sets;
            let ingress = &mut sets
                .get_mut(policy::INGRESS.of(IpFamily::V4))
                .expect("ours")
                .elements;
            for element in ingress.values_mut() {
                element.value =
                    dataplane::object::Value::Verdict(policy::Direction::Ingress.allowed());
            }
        },
    ];
    let (mut node, _) = settled();
    let whole = node.canonical();
    for (i, damage) in damages.into_iter().enumerate() {
        let generation = node.owner.summary().policy_generation;
        node.kernel().fake.tamper(damage);
        assert!(
            node.owner.check().expect("it can be repaired"),
            "damage {i}"
        );
        assert_eq!(node.canonical(), whole, "damage {i}");
        assert_eq!(node.generation(), generation + 1);
        assert!(
            !node.owner.check().expect("it can be asked"),
            "once is enough"
        );
    }
    assert_eq!(node.owner.summary().repairs, 5);
}

#[test]
fn changes_of_other_tables_are_not_ours() {
    let (mut node, _) = settled();
    let before = node.ruleset();
    node.kernel().fake.tamper(|_| {});
    assert!(!node.owner.check().expect("it can be asked"));
    assert_eq!(node.ruleset(), before);
    assert_eq!(node.owner.summary().repairs, 0);
}

/// Regression: nothing was wanted, so nothing was tried again.
#[test]
fn a_repair_that_fails_is_tried_again() {
    let (mut node, _) = settled();
    let whole = node.canonical();
    node.kernel().fake.tamper(|ruleset| ruleset.tables.clear());
    node.kernel().failures.push_back(Some(Failure::Before));
    assert!(node.owner.check().is_err());
    assert!(node.owner.is_dirty() && !node.owner.is_synced());
    node.settle();
    assert_eq!(node.canonical(), whole);
}

/// Regression: the look counted although it had seen nothing.
#[test]
fn a_look_that_fails_does_not_hide_the_change() {
    let (mut node, _) = settled();
    let whole = node.canonical();
    node.kernel().fake.tamper(|ruleset| ruleset.tables.clear());
    node.kernel().fails_dump = true;
    assert!(node.owner.check().is_err());
    assert!(node.owner.check().expect("it can be repaired"));
    assert_eq!(node.canonical(), whole);
}

#[test]
fn an_error_is_followed_by_a_look_and_nothing_is_lost() {
    for failure in [Failure::Before, Failure::After] {
        let (mut node, mut world) = settled();
        node.kernel().failures.push_back(Some(failure));
        world.put(slice("x/web-1", "web", &["10.99.0.7"]));
        world.put(pod("x/late", "10.88.0.4", "web"));
        node.list(&world);
        assert!(node.owner.sync().is_err());
        let summary = node.owner.summary();
        assert_eq!((summary.failures, summary.synced), (1, false));
        assert!(summary.error.is_some_and(|error| error.contains("netlink")));
        assert!(node.owner.is_dirty());
        node.settle();
        assert_eq!(node.served("10.96.0.10", 80), ["10.99.0.7 . 8080"]);
        assert!(!node.passes("10.88.0.3", "10.88.0.4", 80));
        assert!(node.owner.verify().expect("it can be asked").is_empty());
        assert!(!node.owner.check().expect("it can be asked"), "{failure:?}");
        assert_eq!(node.owner.summary().error, None);
    }
}

/// Regression: a deletion that was done already was taken for one that the kernel refuses,
/// and its element was desired again.
#[test]
fn a_lost_answer_and_a_failed_look_do_not_bring_back_what_is_gone() {
    let (mut node, mut world) = settled();
    world.put(allow("x/deny", "web", "client"));
    node.list(&world);
    node.settle();
    assert!(node.passes("10.88.0.3", "10.88.0.2", 80));
    let client = pod("x/client", "10.88.0.3", "client");
    node.owner
        .handle(Event::Delete(client.kind(), client.key()));
    node.kernel().failures.push_back(Some(Failure::After));
    node.kernel().fails_dump = true;
    assert!(node.owner.sync().is_err());
    node.settle();
    assert_eq!(node.problems(), Vec::<String>::new());
    assert!(node.owner.verify().expect("it can be asked").is_empty());
    // Its successor at that address is no client.
    node.apply(pod("x/other", "10.88.0.3", "other"));
    assert!(!node.passes("10.88.0.3", "10.88.0.2", 80));
}

/// Regression: the same, where somebody else has deleted it.
#[test]
fn a_change_by_others_just_before_a_commit_does_not_bring_back_what_is_gone() {
    let (mut node, mut world) = settled();
    world.put(allow("x/deny", "web", "client"));
    node.list(&world);
    node.settle();
    node.kernel().fake.tamper(|ruleset| ruleset.tables.clear());
    node.delete(&pod("x/client", "10.88.0.3", "client"));
    node.apply(pod("x/other", "10.88.0.3", "other"));
    assert!(!node.passes("10.88.0.3", "10.88.0.2", 80));
    assert_eq!(node.problems(), Vec::<String>::new());
    assert!(node.owner.verify().expect("it can be asked").is_empty());
}
