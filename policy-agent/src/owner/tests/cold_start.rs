//! A first sync that is too large for one commit.

use dataplane::layout::INET;
use dataplane::transaction::Transaction;

use super::harness::{Failure, Node, World, assert_sound};
use super::objects::{deny, pod, service, slice};

const SERVICES: usize = 8_000;

/// 8,000 Services with 2 or 3 endpoints each: 28,000 elements.
fn large() -> World {
    let mut world = World::default();
    for number in 0..SERVICES {
        let [high, low] = u16::try_from(number).expect("a small number").to_be_bytes();
        let name = format!("s{number}");
        let endpoints: Vec<_> = (0..2 + number % 2)
            .map(|i| format!("10.{}.{high}.{low}", 100 + i))
            .collect();
        let endpoints: Vec<_> = endpoints.iter().map(|text| &**text).collect();
        world.put(service(
            &format!("x/{name}"),
            &format!("10.96.{high}.{low}"),
            "web",
        ));
        world.put(slice(&format!("x/{name}-1"), &name, &endpoints));
    }
    world.put(pod("x/web", "10.88.0.2", "web"));
    world.put(deny("x/deny", "web"));
    world
}

#[test]
fn no_commit_is_large_and_each_leaves_sound_rules() {
    let mut node = Node::new();
    node.kernel().keeps_states = true;
    node.list(&large());
    node.settle();
    let sizes: Vec<_> = node
        .kernel()
        .commits
        .iter()
        .map(Transaction::element_operations)
        .collect();
    assert!(
        sizes.len() > 1 && sizes.iter().all(|size| *size <= 15_000),
        "{sizes:?}"
    );
    for state in &node.kernel().states {
        assert_sound(state);
        let sets = &state.tables[&*INET].sets;
        assert!(
            sets.contains_key("frontends4"),
            "the first commit brings the layout"
        );
    }
    assert_eq!(node.served("10.96.0.1", 80).len(), 3);
    assert!(
        !node.owner.check().expect("it can be asked"),
        "all of them are its own"
    );
    let summary = node.owner.summary();
    assert!(
        summary.last_sync_operations >= 28_000,
        "{}",
        summary.last_sync_operations
    );

    // The next process finds it as it is.
    let before = node.ruleset();
    node.restart();
    node.list(&large());
    node.settle();
    assert_eq!(node.kernel().commits.len(), 0);
    assert_eq!(node.ruleset(), before);
}

#[test]
fn an_error_between_two_commits_is_made_good() {
    for failure in [Failure::Before, Failure::After] {
        let mut node = Node::new();
        node.list(&large());
        node.kernel().failures = [None, Some(failure)].into();
        assert!(node.owner.sync().is_err());
        assert_sound(&node.ruleset());
        node.settle();
        assert_eq!(node.served("10.96.0.1", 80).len(), 3);
        assert!(node.owner.verify().expect("it can be asked").is_empty());
        assert_eq!(node.problems(), Vec::<String>::new());
    }
}

#[test]
fn a_large_change_leaves_sound_rules_at_every_commit() {
    let mut node = Node::new();
    node.list(&large());
    node.settle();
    node.kernel().keeps_states = true;
    let mut world = large();
    for number in 0..SERVICES {
        let [high, low] = u16::try_from(number).expect("a small number").to_be_bytes();
        let name = format!("s{number}");
        let endpoints = [
            format!("10.200.{high}.{low}"),
            format!("10.201.{high}.{low}"),
        ];
        let endpoints: Vec<_> = endpoints.iter().map(|text| &**text).collect();
        world.put(slice(&format!("x/{name}-1"), &name, &endpoints));
    }
    node.list(&world);
    node.settle();
    for state in &node.kernel().states {
        assert_sound(state);
        assert_eq!(
            state.tables[&*INET].sets["frontends4"].elements.len(),
            SERVICES
        );
    }
}
