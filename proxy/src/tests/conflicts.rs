//! Two Services with one address and port.

use super::harness::*;
use crate::model::Service;

const CONTESTED: &str = "10.96.0.1:80";

/// A Service of that age, with an endpoint of its own.
fn claimant(node: &mut Node, name: &str, created: i64, uid: &str, endpoint: &str) {
    let service = Service {
        created,
        uid: uid.to_owned(),
        ..service(name, &["10.96.0.1"], HTTP)
    };
    node.proxy.apply_service(service);
    node.proxy
        .apply_slice(slice(name, name, HTTP, [ready(endpoint)]));
}

#[test]
fn the_oldest_owns_then_the_lower_uid_then_the_lower_key() {
    for (winner, loser) in [
        (("z", 1, "y"), ("a", 2, "x")),
        (("z", 1, "x"), ("a", 1, "y")),
        (("a", 1, "x"), ("z", 1, "x")),
    ] {
        for is_swapped in [false, true] {
            let mut node = Node::new();
            let mut add = |(name, created, uid), endpoint| {
                claimant(&mut node, name, created, uid, endpoint);
            };
            if is_swapped {
                add(loser, "10.1.0.2");
                add(winner, "10.1.0.1");
            } else {
                add(winner, "10.1.0.1");
                add(loser, "10.1.0.2");
            }
            node.settle();
            assert_eq!(node.reach(CONTESTED), set(&["10.1.0.1:80"]), "{winner:?}");
        }
    }
}

#[test]
fn the_next_in_age_takes_over_when_the_owner_goes() {
    let mut node = Node::new();
    claimant(&mut node, "third", 3, "", "10.1.0.3");
    claimant(&mut node, "first", 1, "", "10.1.0.1");
    claimant(&mut node, "second", 2, "", "10.1.0.2");
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.1:80"]));

    node.proxy.remove_service(&key("first"));
    // In one commit, and in place: the frontend has an endpoint all the time.
    let (_, transaction, again) = node.sync();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.2:80"]));
    assert_eq!((transaction.element_operations(), again), (4, false));

    node.proxy.remove_service(&key("second"));
    node.proxy.remove_service(&key("third"));
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["untouched"]));
    assert!(described(node.ruleset()).is_empty());
}

#[test]
fn an_older_one_takes_over_and_gives_back() {
    let mut node = Node::new();
    claimant(&mut node, "young", 2, "", "10.1.0.2");
    node.settle();
    claimant(&mut node, "old", 1, "", "10.1.0.1");
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.1:80"]));

    // The old one moves to another address.
    let moved = Service {
        created: 1,
        ..service("old", &["10.96.0.2"], HTTP)
    };
    node.proxy.apply_service(moved);
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.2:80"]));
    assert_eq!(node.reach("10.96.0.2:80"), set(&["10.1.0.1:80"]));
}

#[test]
fn a_service_made_anew_loses_its_age() {
    let mut node = Node::new();
    claimant(&mut node, "a", 1, "u1", "10.1.0.1");
    claimant(&mut node, "b", 2, "u2", "10.1.0.2");
    node.settle();
    claimant(&mut node, "a", 3, "u3", "10.1.0.1");
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.2:80"]));
}

#[test]
fn the_loser_keeps_everything_else() {
    use crate::model::Protocol::Tcp;
    let mut node = Node::new();
    claimant(&mut node, "old", 1, "", "10.1.0.1");
    let ports = [("http", Tcp, 80), ("admin", Tcp, 81)];
    let loser = Service {
        created: 2,
        ..service("young", &["10.96.0.1", "fd96::1"], &ports)
    };
    node.proxy.apply_service(loser);
    node.proxy.apply_slice(slice(
        "young-1",
        "young",
        &ports,
        [ready("10.1.0.2"), ready("fd10::2")],
    ));
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.1:80"]));
    assert_eq!(node.reach("10.96.0.1:81"), set(&["10.1.0.2:81"]));
    assert_eq!(node.reach("[fd96::1]:80"), set(&["[fd10::2]:80"]));

    let statuses: Vec<_> = node.proxy.services().collect();
    let problems: Vec<_> = statuses.iter().map(|s| s.problems.clone()).collect();
    assert_eq!(problems[0], [""; 0]);
    assert_eq!(
        problems[1],
        [
            "10.96.0.1:80/TCP is served for Service default/old, which has the better claim: \
             use another address or port"
        ]
    );
}

#[test]
fn a_loser_without_endpoints_does_not_refuse_for_the_owner() {
    let mut node = Node::new();
    claimant(&mut node, "old", 1, "", "10.1.0.1");
    node.proxy.apply_service(Service {
        created: 2,
        ..service("young", &["10.96.0.1"], HTTP)
    });
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.1:80"]));
    node.proxy.remove_service(&key("young"));
    assert_eq!(node.operations(), 0);
}

/// services.md 67.
#[test]
fn an_external_ip_takes_no_cluster_ip_away() {
    let mut node = Node::new();
    node.proxy.apply_service(Service {
        created: 1,
        external_ips: vec![address("10.96.0.1")],
        ..service("old", &["10.96.0.9"], HTTP)
    });
    node.proxy
        .apply_slice(slice("old-1", "old", HTTP, [ready("10.1.0.1")]));
    claimant(&mut node, "young", 2, "", "10.1.0.2");
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.2:80"]));
    node.proxy.remove_service(&key("young"));
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["10.1.0.1:80"]));
    // Where the ranges are known it does not wait for its turn.
    node.proxy
        .set_service_cidrs(["10.96.0.0/16".parse().expect("a network")]);
    node.settle();
    assert_eq!(node.reach(CONTESTED), set(&["dropped"]));
    let problems = node.proxy.services().next().expect("one").problems;
    assert!(
        problems[0].starts_with("externalIP 10.96.0.1 is not served: it is in the range"),
        "{problems:?}"
    );
}
