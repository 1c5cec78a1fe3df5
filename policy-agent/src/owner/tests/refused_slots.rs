//! The kernel refuses an endpoint's slot: its frontend does without it, and without a gap.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use dataplane::layout::INET;
use dataplane::layout::services::{ENDPOINTS, UNSERVED, frontend_key, parse_endpoint, slot_key};
use dataplane::object::IpFamily;
use dataplane::transaction::Operation;

use super::harness::{Node, assert_sound};
use super::objects::{ip, namespace, service, slice};
use super::world;

const WEB: &str = "10.96.0.10";

/// Refuses slots that lead to one of these endpoints.
fn refuse(node: &mut Node, endpoints: &[&str]) {
    let refused: BTreeSet<SocketAddr> = endpoints
        .iter()
        .map(|endpoint| SocketAddr::new(ip(endpoint), 8080))
        .collect();
    node.kernel().refuses = Some(Box::new(move |operation, key| {
        let Operation::AddElements { set, elements, .. } = operation else {
            return false;
        };
        set == ENDPOINTS.of(IpFamily::V4)
            && elements.iter().any(|(of, element)| {
                let endpoint = parse_endpoint(IpFamily::V4, element);
                Some(of) == key && endpoint.is_some_and(|endpoint| refused.contains(&endpoint))
            })
    }));
}

fn endpoints(node: &mut Node) -> Vec<String> {
    assert_sound(&node.ruleset());
    let mut served = node.served(WEB, 80);
    served.sort();
    served
}

fn is_refused(node: &mut Node) -> bool {
    let unserved = UNSERVED.of(IpFamily::V4);
    let ruleset = node.ruleset();
    let unserved = &ruleset.tables[&*INET].sets[unserved].elements;
    unserved.contains_key(&frontend_key(ip(WEB), 6, 80))
}

fn is_verified(node: &mut Node) -> bool {
    let drift = node.owner.verify().expect("it can be asked");
    drift.is_empty() && node.owner.is_synced()
}

/// Regression: there was no slot, and packets that chose it went to the endpoint of slot 0.
#[test]
fn a_refused_endpoint_leaves_no_gap() {
    for refused in ["10.88.0.2", "10.99.0.2", "10.99.0.3"] {
        let mut node = Node::new();
        refuse(&mut node, &[refused]);
        node.list(&world());
        node.settle();
        let served = endpoints(&mut node);
        assert_eq!(served.len(), 2, "{refused}: {served:?}");
        assert!(!served.contains(&format!("{refused} . 8080")), "{served:?}");
        let problems = node.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("Service x/web: endpoints4 "),
            "{problems:?}"
        );
        assert!(
            problems[0].contains(&format!("endpoint {refused}:8080")),
            "{problems:?}"
        );
        assert!(is_verified(&mut node));

        node.kernel().refuses = None;
        node.apply(namespace("unrelated"));
        assert_eq!(endpoints(&mut node).len(), 3);
        assert_eq!(node.problems(), Vec::<String>::new());
        assert!(is_verified(&mut node));
    }
}

#[test]
fn an_endpoint_that_comes_later_and_is_refused_leaves_the_others_as_they_were() {
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    let before = node.served(WEB, 80);
    refuse(&mut node, &["10.99.0.4"]);
    node.apply(slice("x/web-2", "web", &["10.99.0.4"]));
    assert_eq!(node.served(WEB, 80), before);
    // Every sync tries it again, and others go through meanwhile.
    node.apply(service("x/late", "10.96.0.12", "late"));
    node.apply(slice("x/late-1", "late", &["10.99.0.9"]));
    assert_eq!(node.served("10.96.0.12", 80), ["10.99.0.9 . 8080"]);
    assert_eq!(node.served(WEB, 80), before);
    assert_eq!(node.problems().len(), 1);
    node.apply(slice("x/web-2", "web", &[]));
    assert_eq!(node.problems(), Vec::<String>::new(), "it is gone");
    assert!(is_verified(&mut node));
}

#[test]
fn a_refused_replacement_takes_the_place_of_no_other_endpoint() {
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    refuse(&mut node, &["10.99.0.7"]);
    node.apply(slice(
        "x/web-1",
        "web",
        &["10.88.0.2", "10.99.0.7", "10.99.0.3"],
    ));
    assert_eq!(
        endpoints(&mut node),
        ["10.88.0.2 . 8080", "10.99.0.3 . 8080"]
    );
    node.settle();
    assert!(is_verified(&mut node));
}

#[test]
fn without_any_endpoint_that_the_kernel_takes_connections_are_refused() {
    let mut node = Node::new();
    refuse(&mut node, &["10.88.0.2", "10.99.0.2", "10.99.0.3"]);
    node.list(&world());
    node.settle();
    assert_eq!(endpoints(&mut node), Vec::<String>::new());
    assert!(is_refused(&mut node));
    assert_eq!(node.problems().len(), 3);
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(endpoints(&mut node).len(), 3);
    assert!(!is_refused(&mut node));
}

/// Not one endpoint after the other is tried there, which could be thousands.
#[test]
fn a_slot_that_is_refused_with_whatever_endpoint_closes_its_frontend_alone() {
    let mut node = Node::new();
    let slot = slot_key(ip(WEB), 6, 80, 0);
    node.kernel().refuses = Some(Box::new(move |operation, key| {
        matches!(operation, Operation::AddElements { set, .. }
            if set == ENDPOINTS.of(IpFamily::V4))
            && key == Some(&slot)
    }));
    let mut world = world();
    let many: Vec<_> = (1..=200).map(|host| format!("10.99.1.{host}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    world.put(slice("x/web-2", "web", &many));
    world.put(service("x/other", "10.96.0.11", "other"));
    world.put(slice("x/other-1", "other", &["10.99.0.9"]));
    node.list(&world);
    node.settle();
    assert!(is_refused(&mut node));
    assert_eq!(node.served("10.96.0.11", 80), ["10.99.0.9 . 8080"]);
    assert!(is_verified(&mut node));
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(endpoints(&mut node).len(), 203);
    assert!(is_verified(&mut node));
}
