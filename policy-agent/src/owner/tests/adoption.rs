//! The first sync of a process on tables that an earlier one has left.

use dataplane::layout::services::FRONTENDS;
use dataplane::layout::{INET, policy};
use dataplane::object::IpFamily;
use proptest::prelude::*;

use super::harness::{Node, World};
use super::objects::{attachment, deny, namespace, pod, service, slice};
use super::world;
use crate::event::{Event, Object};

fn running() -> (Node, World) {
    let mut world = world();
    for (name, address) in [("web", "10.88.0.2"), ("client", "10.88.0.3")] {
        let attachment = attachment(name, Some(&format!("x/{name}")), &[address]);
        world.attachments.insert(attachment.key.clone(), attachment);
    }
    let mut node = Node::new();
    node.list(&world);
    node.settle();
    (node, world)
}

#[test]
fn a_restart_changes_nothing() {
    let (mut node, world) = running();
    let before = node.ruleset();
    node.restart();
    node.list(&world);
    node.settle();
    assert_eq!(node.kernel().commits, []);
    assert_eq!(node.ruleset(), before);
    assert!(node.owner.is_synced());
    let attachment = world.attachments.keys().next().expect("one");
    assert!(node.owner.is_programmed(attachment));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The slots are those of a history that the next process has not seen.
    #[test]
    fn a_restart_keeps_every_slot_in_whatever_order_objects_come(
        histories in prop::collection::vec(
            prop::sample::subsequence((2u8..12).collect::<Vec<_>>(), 0..8).prop_shuffle(), 1..5),
        seed in any::<u64>(),
    ) {
        let mut node = Node::new();
        node.list(&World::of([namespace("x"), service("x/web", "10.96.0.10", "web")]));
        let mut world = World::of([service("x/web", "10.96.0.10", "web"), namespace("x")]);
        for hosts in &histories {
            let addresses: Vec<_> = hosts.iter().map(|host| format!("10.99.0.{host}")).collect();
            // In two slices, which may come in either order.
            for (name, half) in [("x/a", 0), ("x/b", 1)] {
                let part: Vec<_> = addresses.iter().skip(half).step_by(2).map(|a| &**a).collect();
                let slice = slice(name, "web", &part);
                world.put(slice.clone());
                node.owner.handle(Event::Apply(slice));
            }
            node.settle();
        }
        let before = node.ruleset();
        node.restart();
        let mut objects: Vec<Object> = world.objects.values().cloned().collect();
        for i in (1..objects.len()).rev() {
            objects.swap(i, (seed >> i) as usize % (i + 1));
        }
        objects.into_iter().for_each(|object| node.owner.handle(Event::Apply(object)));
        node.list(&world);
        node.settle();
        prop_assert_eq!(&node.kernel().commits, &Vec::new());
        prop_assert_eq!(node.ruleset(), before);
    }
}

#[test]
fn orphans_of_a_crash_are_taken_away() {
    let mut node = Node::new();
    let mut world = world();
    node.list(&world);
    node.settle();
    let one = slice("x/web-1", "web", &["10.99.0.3"]);
    node.owner.handle(Event::Apply(one.clone()));
    node.owner.sync().expect("the first of two commits");
    assert!(node.owner.is_dirty(), "slots are left over");
    world.put(one);

    node.restart();
    node.list(&world);
    node.settle();
    assert_eq!(node.served("10.96.0.10", 80), ["10.99.0.3 . 8080"]);
    let endpoints = dataplane::layout::services::ENDPOINTS.of(IpFamily::V4);
    let left = node.ruleset().tables[&*INET].sets[endpoints].elements.len();
    assert_eq!(left, 1);
}

#[test]
fn tables_that_differ_are_repaired_and_live_flows_judged_again() {
    let (mut node, mut world) = running();
    let generation = node.generation();
    node.restart();
    // Somebody has opened a pod while no agent was looking, and a Service is gone.
    node.kernel().fake.tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&*INET).expect("ours");
        table
            .sets
            .get_mut(FRONTENDS.of(IpFamily::V4))
            .expect("ours")
            .elements
            .clear();
        table.chains.retain(|name, _| !policy::is_group(name));
    });
    world.put(pod("x/late", "10.88.0.4", "late"));
    node.list(&world);
    node.settle();
    assert_eq!(node.generation(), generation + 1);
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
    assert!(!node.passes("10.88.0.3", "10.88.0.2", 80));
    assert!(node.owner.verify().expect("it can be asked").is_empty());
}

#[test]
fn a_policy_that_came_while_the_agent_was_away_holds_for_live_flows() {
    let (mut node, mut world) = running();
    let generation = node.generation();
    node.restart();
    world.put(deny("x/more", "client"));
    node.list(&world);
    node.settle();
    assert_eq!(node.generation(), generation + 1);
    assert!(!node.passes("10.88.0.2", "10.88.0.3", 80));
}

#[test]
fn tables_of_others_are_left_alone() {
    let (mut node, world) = running();
    let other = dataplane::object::TableId::new(dataplane::object::Family::Inet, "kube-proxy");
    node.kernel().fake.tamper(|ruleset| {
        ruleset
            .tables
            .insert(other.clone(), dataplane::object::Table::default());
    });
    node.restart();
    node.list(&world);
    node.settle();
    assert!(!node.owner.check().expect("it can be asked"));
    assert!(node.ruleset().tables.contains_key(&other));
}

#[test]
fn tables_that_cannot_be_read_are_not_written() {
    let (mut node, world) = running();
    let before = node.ruleset();
    node.restart();
    node.list(&world);
    node.kernel().fails_dump = true;
    assert!(node.owner.sync().is_err());
    assert_eq!(node.ruleset(), before);
    assert!(node.owner.is_dirty(), "it is tried again");
    node.settle();
    assert_eq!(node.ruleset(), before);
}
