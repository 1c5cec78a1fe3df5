//! Objects of an earlier run, before the sources have listed everything.

use std::time::SystemTime;

use super::harness::{Node, World};
use super::objects::{attachment, deny, pod};
use super::world;
use crate::event::{Event, Kind};
use crate::journal::Restored;
use crate::owner::Earlier;

fn of(world: &World) -> Earlier {
    let restored = Restored {
        events: Kind::ALL
            .map(|kind| Event::Reset(kind, world.all(kind)))
            .into(),
        as_of: SystemTime::UNIX_EPOCH,
    };
    Box::new(move || Some(restored))
}

fn attach(node: &mut Node) {
    for (name, address) in [
        ("web", "10.88.0.2"),
        ("client", "10.88.0.3"),
        ("new", "10.88.0.4"),
    ] {
        node.owner
            .attach(attachment(name, Some(&format!("x/{name}")), &[address]));
    }
}

/// netpol.md 64.
#[test]
fn an_earlier_state_is_enforced_and_what_it_does_not_know_is_closed() {
    let mut node = Node::new();
    node.owner.fall_back_on(of(&world()));
    assert!(!node.owner.knows_state());
    assert!(node.owner.restore().expect("asked"));
    attach(&mut node);
    node.settle();
    assert!(node.passes("10.88.0.2", "10.88.0.3", 80));
    assert!(
        !node.passes("10.88.0.3", "10.88.0.2", 80),
        "a policy denies"
    );
    assert!(
        !node.passes("10.88.0.4", "10.88.0.3", 80),
        "it is not known"
    );
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
    assert!(!node.owner.has_listed_all());
    let problems = node.problems().join("\n");
    assert!(
        problems.contains("1970-01-01") && problems.contains("first list of Namespace"),
        "{problems}"
    );
}

/// netpol.md 64. With yesterday's policies today's pods would be open for a moment.
#[test]
fn what_is_listed_is_taken_all_at_once() {
    for reaches_fallback in [false, true] {
        let mut node = Node::new();
        node.owner.fall_back_on(of(&world()));
        attach(&mut node);
        if reaches_fallback {
            assert!(node.owner.restore().expect("asked"));
            node.settle();
        }
        let mut now = world();
        now.put(pod("x/new", "10.88.0.4", "new"));
        now.put(deny("x/new", "new"));
        let commits = node.kernel().commits.len();
        for (listed, kind) in Kind::ALL.into_iter().enumerate() {
            if listed + 1 == Kind::ALL.len() {
                // What comes before the last list is not lost.
                node.owner.handle(Event::Apply(deny("x/client", "client")));
                now.put(deny("x/client", "client"));
            }
            assert!(
                !node.owner.is_dirty() || !reaches_fallback,
                "after {listed} lists"
            );
            node.owner.handle(Event::Reset(
                kind,
                match kind {
                    // It has come with the list already, as far as this kind is concerned.
                    Kind::NetworkPolicy => {
                        let mut policies = now.all(kind);
                        policies.retain(|policy| &*policy.key().name != "client");
                        policies
                    }
                    _ => now.all(kind),
                },
            ));
        }
        assert_eq!(node.kernel().commits.len(), commits);
        node.settle();
        assert!(node.owner.enforces_as_of().is_none());
        assert!(
            !node.owner.restore().expect("asked"),
            "there is no way back"
        );

        let mut fresh = Node::new();
        fresh.list(&now);
        attach(&mut fresh);
        fresh.settle();
        assert_eq!(node.canonical(), fresh.canonical());
        assert!(!node.passes("10.88.0.2", "10.88.0.3", 80));
        assert!(!node.passes("10.88.0.2", "10.88.0.4", 80));
        assert!(node.problems().is_empty(), "{:?}", node.problems());
    }
}

#[test]
fn policies_in_the_kernel_are_newer_than_those_of_the_disk() {
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    let before = node.ruleset();
    node.restart();
    let mut old = world();
    old.objects
        .retain(|(kind, _), _| *kind != Kind::NetworkPolicy);
    node.owner.fall_back_on(of(&old));
    assert!(!node.owner.restore().expect("asked"));
    assert!(node.owner.sync().is_err(), "nothing is listed");
    assert_eq!(node.ruleset(), before);
    node.list(&world());
    node.settle();
    assert_eq!(node.kernel().commits, []);
}
