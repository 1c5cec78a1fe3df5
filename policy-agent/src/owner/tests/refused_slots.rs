//! The kernel refuses an endpoint's slot or a frontend: the frontend does without it, and
//! without a gap.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use dataplane::layout::INET;
use dataplane::layout::services::{
    ENDPOINTS, FRONTENDS, UNSERVED, frontend_key, parse_endpoint, slot_key,
};
use dataplane::object::{Element, IpFamily};
use dataplane::rule::Verdict;
use dataplane::transaction::Operation;

use super::harness::{Node, assert_sound};
use super::objects::{ip, namespace, service, slice};
use super::world;
use crate::event::Event;

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

/// Refuses frontends of the Service that lead to this balancer, so many times.
fn refuse_balancer(node: &mut Node, balancer: &'static str, times: usize) {
    let left = Cell::new(times);
    let before = node.kernel().refuses.take();
    node.kernel().refuses = Some(Box::new(move |operation, key| {
        if before.as_ref().is_some_and(|before| before(operation, key)) {
            return true;
        }
        let Operation::AddElements { set, elements, .. } = operation else {
            return false;
        };
        let goto = Element::verdict(Verdict::Goto(balancer.into()));
        let is_meant = set == FRONTENDS.of(IpFamily::V4)
            && elements
                .iter()
                .any(|(of, element)| Some(of) == key && element.value == goto.value);
        let refuses = is_meant && left.get() > 0;
        left.set(left.get() - usize::from(refuses));
        refuses
    }));
}

/// Regression: it stayed with the old balancer, which led to the endpoint that was gone, and
/// then to none.
#[test]
fn a_frontend_that_cannot_follow_its_shrinking_endpoints_refuses_connections() {
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    refuse_balancer(&mut node, "random-2", usize::MAX);
    node.apply(slice("x/web-1", "web", &["10.88.0.2", "10.99.0.2"]));
    for _ in 0..2 {
        assert_eq!(node.served(WEB, 80), Vec::<String>::new());
        assert!(is_refused(&mut node));
        assert!(is_verified(&mut node));
        let problems = node.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("Service x/web: frontends4 "),
            "{problems:?}"
        );
        assert_eq!(node.owner.summary().unusable, 1);
        // Nor does it by the next sync, which tries it again.
        node.apply(namespace("unrelated"));
    }
    node.kernel().refuses = None;
    node.apply(namespace("another"));
    assert_eq!(
        endpoints(&mut node),
        ["10.88.0.2 . 8080", "10.99.0.2 . 8080"]
    );
    assert!(!is_refused(&mut node));
    assert_eq!(node.problems(), Vec::<String>::new());
    assert!(is_verified(&mut node));
}

#[test]
fn a_frontend_that_cannot_follow_its_growing_endpoints_keeps_the_old_ones() {
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    let before = node.served(WEB, 80);
    refuse_balancer(&mut node, "random-4", usize::MAX);
    node.apply(slice("x/web-2", "web", &["10.99.0.4"]));
    assert_eq!(node.served(WEB, 80), before);
    assert!(!is_refused(&mut node));
    assert!(is_verified(&mut node));
    // One of the old ones goes, and what comes in its place is among those that are reached.
    node.apply(slice("x/web-1", "web", &["10.88.0.2", "10.99.0.3"]));
    assert_eq!(
        endpoints(&mut node),
        ["10.88.0.2 . 8080", "10.99.0.3 . 8080", "10.99.0.4 . 8080"]
    );
    assert!(is_verified(&mut node));
    node.kernel().refuses = None;
    node.apply(slice("x/web-3", "web", &["10.99.0.5"]));
    assert_eq!(endpoints(&mut node).len(), 4);
}

/// Regression: the sync that removes the orphaned slots of another Service led to the slot that
/// was never written.
#[test]
fn a_frontend_and_its_endpoint_that_are_refused_together_leave_no_gap() {
    let mut node = Node::new();
    let mut world = world();
    world.put(service("x/other", "10.96.0.11", "other"));
    world.put(slice("x/other-1", "other", &["10.99.0.8", "10.99.0.9"]));
    node.list(&world);
    node.settle();
    let before = node.served(WEB, 80);
    refuse(&mut node, &["10.99.0.4"]);
    refuse_balancer(&mut node, "random-4", 1);
    node.owner
        .handle(Event::Apply(slice("x/other-1", "other", &["10.99.0.9"])));
    node.apply(slice("x/web-2", "web", &["10.99.0.4"]));
    assert_eq!(node.served(WEB, 80), before);
    endpoints(&mut node);
    assert!(is_verified(&mut node));
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(endpoints(&mut node).len(), 4);
    assert_eq!(node.problems(), Vec::<String>::new());
}

/// A node port has no cluster IP behind it that would refuse what no frontend leads on.
#[test]
fn a_frontend_that_the_kernel_never_takes_refuses_connections() {
    let mut node = Node::new();
    refuse_balancer(&mut node, "random-3", usize::MAX);
    node.list(&world());
    node.settle();
    assert!(is_refused(&mut node));
    assert!(is_verified(&mut node));
    node.apply(slice("x/web-1", "web", &[]));
    assert!(is_refused(&mut node), "now for want of endpoints");
    assert_eq!(node.problems(), Vec::<String>::new());
    assert!(is_verified(&mut node));
}
