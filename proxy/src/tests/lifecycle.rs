//! What comes, goes and changes, and what that costs.

use dataplane::layout::services::FRONTENDS;
use dataplane::object::IpFamily;

use super::harness::*;
use crate::model::Protocol::{Tcp, Udp};
use crate::model::Service;

const WEB: &str = "10.96.0.1:80";

fn web_with(endpoints: std::ops::Range<u16>) -> Node {
    Node::with(
        [service("web", &["10.96.0.1"], HTTP)],
        [slice("web-1", "web", HTTP, many(endpoints))],
    )
}

fn set_endpoints(node: &mut Node, endpoints: impl IntoIterator<Item = u16>) {
    node.proxy
        .apply_slice(slice("web-1", "web", HTTP, many(endpoints)));
}

#[test]
fn one_changed_endpoint_is_at_most_five_element_operations() {
    for size in [2u16, 3, 10, 1000] {
        let mut node = web_with(0..size);
        let mut cost = |what: &str, endpoints: Vec<u16>, expected: usize| {
            set_endpoints(&mut node, endpoints);
            assert_eq!(node.operations(), expected, "{what} of {size}");
            described(node.ruleset());
        };
        // The new endpoint takes slot 0, and 0 comes back behind the others.
        cost("an address changes", (1..=size).collect(), 2);
        cost("one more", (0..=size).collect(), 3);
        cost("the one in the last slot goes", (1..=size).collect(), 3);
        cost("back", (0..=size).collect(), 3);
        cost("the one in slot 0 goes", (0..size).collect(), 5);
    }
}

#[test]
fn from_and_to_nothing() {
    let mut node = web_with(0..1);
    set_endpoints(&mut node, []);
    assert_eq!(node.operations(), 3);
    assert_eq!(node.reach(WEB), set(&["refused"]));
    set_endpoints(&mut node, [0]);
    assert_eq!(node.operations(), 3);
    assert_eq!(node.reach(WEB), set(&["10.1.0.0:80"]));
}

#[test]
fn a_thousand_endpoints_come_and_go_at_once() {
    let mut node = web_with(0..1000);
    for size in [0, 1000, 1, 500, 0] {
        set_endpoints(&mut node, 0..size);
        node.settle();
        let expected = usize::from(size.max(1));
        assert_eq!(
            described(node.ruleset())["10.96.0.1 . tcp . 80"].len(),
            expected
        );
    }
}

#[test]
fn orphaned_slots_go_with_the_next_commit() {
    let mut node = web_with(0..3);
    set_endpoints(&mut node, [0]);
    let (_, shrink, again) = node.sync();
    assert!(again);
    // The frontend's element, old and new.
    assert_eq!(shrink.element_operations(), 2);
    assert_eq!(node.reach(WEB), set(&["10.1.0.0:80"]));
    let (report, prune, again) = node.sync();
    assert!(!again);
    assert_eq!((report.slots_removed, prune.element_operations()), (2, 2));
    described(node.ruleset());
}

#[test]
fn a_commit_that_fails_takes_no_slot_from_under_the_kernel() {
    let mut node = web_with(0..3);
    set_endpoints(&mut node, [0]);
    // Compiled twice, committed at last.
    node.proxy.sync(&mut node.desired);
    let report = node.proxy.sync(&mut node.desired);
    assert_eq!(report.slots_removed, 0);
    assert_eq!(node.desired.transaction().element_operations(), 2);
    node.settle();
    assert_eq!(node.reach(WEB), set(&["10.1.0.0:80"]));
    described(node.ruleset());
}

#[test]
fn a_deleted_service_leaves_nothing() {
    let mut node = web_with(0..3);
    let empty = Node::new();
    node.proxy.remove_service(&key("web"));
    let (_, gone, again) = node.sync();
    assert!(again, "its slots go later");
    assert_eq!(gone.element_operations(), 2, "the frontend, the cluster IP");
    assert_eq!(node.reach(WEB), set(&["untouched"]));
    node.settle();
    let sets = |node: &Node| {
        node.ruleset().tables[&*dataplane::layout::INET]
            .sets
            .clone()
    };
    assert_eq!(sets(&node), sets(&empty));

    // Its slices have stayed: it comes back as it was.
    node.proxy
        .apply_service(service("web", &["10.96.0.1"], HTTP));
    node.settle();
    assert_eq!(node.reach(WEB).len(), 3);
}

#[test]
fn slices_may_come_before_the_service() {
    let mut node = Node::with([], [slice("web-1", "web", HTTP, many(0..2))]);
    assert!(described(node.ruleset()).is_empty());
    node.proxy
        .apply_service(service("web", &["10.96.0.1"], HTTP));
    node.settle();
    assert_eq!(node.reach(WEB).len(), 2);
}

#[test]
fn a_slice_may_pass_to_another_service() {
    let mut node = Node::with(
        [
            service("web", &["10.96.0.1"], HTTP),
            service("db", &["10.96.0.2"], HTTP),
        ],
        [slice("moving", "web", HTTP, many(1..2))],
    );
    node.proxy
        .apply_slice(slice("moving", "db", HTTP, many(1..2)));
    node.settle();
    assert_eq!(node.reach(WEB), set(&["refused"]));
    assert_eq!(node.reach("10.96.0.2:80"), set(&["10.1.0.1:80"]));
}

#[test]
fn ports_and_addresses_come_and_go() {
    let ports = [("http", Tcp, 80), ("dns", Udp, 53)];
    let mut node = Node::with(
        [service("web", &["10.96.0.1"], &ports)],
        [slice("web-1", "web", &ports, many(1..3))],
    );
    assert_eq!(node.reach_by("10.96.0.1:53", Udp).len(), 2);

    node.proxy
        .apply_service(service("web", &["10.96.0.1"], &ports[..1]));
    node.settle();
    assert_eq!(node.reach_by("10.96.0.1:53", Udp), set(&["refused"]));
    assert_eq!(node.reach(WEB).len(), 2);

    node.proxy
        .apply_service(service("web", &["10.96.0.2"], &ports));
    node.settle();
    assert_eq!(node.reach(WEB), set(&["untouched"]));
    assert_eq!(node.reach("10.96.0.2:80").len(), 2);
    assert_eq!(described(node.ruleset()).len(), 2);

    // Headless, or of a type without addresses.
    node.proxy.apply_service(service("web", &[], &ports));
    node.settle();
    assert!(described(node.ruleset()).is_empty());
}

#[test]
fn what_does_not_change_costs_nothing() {
    let mut node = web_with(0..3);
    node.proxy
        .apply_service(service("web", &["10.96.0.1"], HTTP));
    set_endpoints(&mut node, 0..3);
    let (report, transaction, again) = node.sync();
    assert_eq!(report, crate::SyncReport::default());
    assert!(transaction.is_empty() && !again);

    // Compiled, with the same outcome.
    node.proxy.apply_service(Service {
        publish_not_ready: true,
        ..service("web", &["10.96.0.1"], HTTP)
    });
    set_endpoints(&mut node, [2, 1, 0]);
    let (report, transaction, _) = node.sync();
    assert_eq!((report.services, report.frontends), (1, 0));
    assert!(transaction.is_empty());
}

#[test]
fn frontends_carry_the_service_port_name() {
    let ports = [("http", Tcp, 80)];
    let node = Node::with(
        [
            service("web", &["10.96.0.1"], &ports),
            service("db", &["10.96.0.2"], HTTP),
        ],
        [slice("web-1", "web", &ports, many(1..2))],
    );
    let comments = |map: &dataplane::layout::PerFamily| -> Vec<String> {
        let elements = elements(node.ruleset(), map.of(IpFamily::V4));
        elements
            .map(|(_, element)| element.comment.clone().expect("a comment").to_string())
            .collect()
    };
    assert_eq!(comments(&FRONTENDS), ["default/web:http"]);
    let unserved = &dataplane::layout::services::UNSERVED;
    assert_eq!(comments(unserved), ["default/db"]);
}

#[test]
fn impossible_addresses_and_repeated_ports_do_no_harm() {
    let bad = service(
        "bad",
        &[
            "127.0.0.1",
            "0.0.0.0",
            "::ffff:10.96.0.9",
            "10.96.0.1",
            "10.96.0.1",
        ],
        &[("a", Tcp, 80), ("b", Tcp, 80)],
    );
    let slices = [slice(
        "bad-1",
        "bad",
        &[("a", Tcp, 8080), ("b", Tcp, 9090)],
        many(1..2),
    )];
    let mut node = Node::with([bad], slices);
    assert_eq!(described(node.ruleset()).len(), 1);
    assert_eq!(node.reach(WEB), set(&["10.1.0.1:8080"]));
    node.proxy.remove_service(&key("bad"));
    node.settle();
    assert!(described(node.ruleset()).is_empty());
}
