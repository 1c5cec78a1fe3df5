//! The owner on a kernel in memory: what it writes, and what it does when the kernel or
//! others do not do as it wants.

mod adoption;
mod closed;
mod cold_start;
mod detect_local;
mod drift;
mod endpoints;
mod flows;
mod generation;
mod gone;
mod harness;
mod nat;
mod objects;
mod ports;
mod random;
mod refusals;
mod refused_slots;
mod restore;

use crate::event::{Event, Kind};
use harness::{Node, World};
use objects::{deny, pod, service, slice};

/// Something of every kind.
fn world() -> World {
    World::of([
        objects::namespace("x"),
        objects::node("n1", Some("a")),
        pod("x/web", "10.88.0.2", "web"),
        pod("x/client", "10.88.0.3", "client"),
        service("x/web", "10.96.0.10", "web"),
        slice("x/web-1", "web", &["10.88.0.2", "10.99.0.2", "10.99.0.3"]),
        deny("x/deny", "web"),
    ])
}

#[test]
fn nothing_is_written_before_every_kind_is_listed() {
    let world = world();
    let mut node = Node::new();
    for (listed, kind) in Kind::ALL.into_iter().enumerate() {
        let error = node.owner.sync().expect_err("not listed yet").to_string();
        let missing = Kind::ALL[listed..].iter().map(ToString::to_string);
        let missing: Vec<_> = missing.collect();
        assert!(
            error.ends_with(&format!("list of {}", missing.join(", "))),
            "{error}"
        );
        assert!(node.ruleset().tables.is_empty());
        node.owner.handle(Event::Reset(kind, world.all(kind)));
    }
    node.settle();
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
    assert!(!node.passes("10.88.0.3", "10.88.0.2", 80));
    assert!(node.owner.is_synced());
}

#[test]
fn single_changes_do_not_stand_for_a_list() {
    let mut node = Node::new();
    for object in world().objects.into_values() {
        node.owner.handle(Event::Apply(object));
    }
    assert!(node.owner.sync().is_err());
    assert!(node.ruleset().tables.is_empty());
}

#[test]
fn the_same_objects_give_the_same_rules_in_any_order() {
    let world = world();
    let mut ahead = Node::new();
    ahead.list(&world);
    ahead.settle();
    let mut back = Node::new();
    back.list(&World::default());
    for object in world.objects.values().rev() {
        back.owner.handle(Event::Apply(object.clone()));
        back.settle();
    }
    assert_eq!(ahead.canonical(), back.canonical());
}

#[test]
fn a_sync_without_a_change_commits_nothing() {
    let world = world();
    let mut node = Node::new();
    node.list(&world);
    node.settle();
    node.kernel().commits.clear();
    node.list(&world);
    node.settle();
    assert_eq!(node.kernel().commits, []);
}

#[test]
fn a_relist_takes_away_what_it_lacks() {
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    node.list(&World::default());
    node.settle();
    let mut empty = Node::new();
    empty.list(&World::default());
    empty.settle();
    assert_eq!(node.canonical(), empty.canonical());
}

#[test]
fn an_object_that_cannot_be_used_is_named_until_it_can_or_is_gone() {
    let mut node = Node::new();
    node.list(&world());
    let web = service("x/web", "10.96.0.10", "web");
    let invalid = || Event::Invalid {
        kind: Kind::Service,
        key: web.key(),
        reason: "spec.clusterIP: no address".into(),
    };
    for repair in [
        Event::Apply(web.clone()),
        Event::Delete(Kind::Service, web.key()),
        Event::Reset(Kind::Service, Vec::new()),
    ] {
        node.owner.handle(invalid());
        node.settle();
        let status = node.owner.status();
        assert_eq!(status.summary.unusable, 1);
        assert_eq!(status.problems[0].object, "Service x/web");
        node.owner.handle(repair);
        node.settle();
        assert_eq!(node.owner.status().problems, []);
    }
}
