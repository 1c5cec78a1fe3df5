//! Which endpoints connections reach.

use super::harness::*;
use crate::model::{Protocol, SliceEndpoint, TrafficPolicy};

const WEB: &str = "10.96.0.1:80";

fn web() -> crate::model::Service {
    service("web", &["10.96.0.1"], HTTP)
}

/// A node that serves `web` with these endpoints.
fn web_with(endpoints: Vec<SliceEndpoint>) -> Node {
    Node::with([web()], [slice("web-1", "web", HTTP, endpoints)])
}

#[test]
fn every_endpoint_is_reached_by_each_protocol_and_family() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let node = Node::with(
            [service(
                "web",
                &["10.96.0.1", "fd96::1"],
                &[("a", protocol, 53)],
            )],
            [
                slice(
                    "web-4",
                    "web",
                    &[("a", protocol, 5353)],
                    [ready("10.1.0.1"), ready("10.1.0.2"), ready("10.1.0.3")],
                ),
                slice(
                    "web-6",
                    "web",
                    &[("a", protocol, 5353)],
                    [ready("fd10::1"), ready("fd10::2")],
                ),
            ],
        );
        assert_eq!(
            node.reach_by("10.96.0.1:53", protocol),
            set(&["10.1.0.1:5353", "10.1.0.2:5353", "10.1.0.3:5353"])
        );
        assert_eq!(
            node.reach_by("[fd96::1]:53", protocol),
            set(&["[fd10::1]:5353", "[fd10::2]:5353"])
        );
        let other = if protocol == Protocol::Tcp {
            Protocol::Udp
        } else {
            Protocol::Tcp
        };
        assert_eq!(node.reach_by("10.96.0.1:53", other), set(&["refused"]));
    }
}

#[test]
fn a_service_of_one_family_leaves_the_other_alone() {
    let node = Node::with(
        [service("web", &["fd96::1"], HTTP)],
        [slice(
            "web-1",
            "web",
            HTTP,
            [ready("fd10::1"), ready("10.1.0.1")],
        )],
    );
    assert_eq!(node.reach("[fd96::1]:80"), set(&["[fd10::1]:80"]));
    assert_eq!(described(node.ruleset()).len(), 1);
}

#[test]
fn ports_are_matched_by_name_and_may_differ_per_slice() {
    use Protocol::{Tcp, Udp};
    let node = Node::with(
        [service(
            "web",
            &["10.96.0.1"],
            &[("http", Tcp, 80), ("dns", Udp, 53), ("dns-tcp", Tcp, 53)],
        )],
        [
            slice(
                "web-1",
                "web",
                &[
                    ("http", Tcp, 8080),
                    ("dns", Udp, 5300),
                    ("dns-tcp", Tcp, 5301),
                ],
                [ready("10.1.0.1")],
            ),
            slice("web-2", "web", &[("http", Tcp, 9090)], [ready("10.1.0.2")]),
            // Same name, another protocol: not the port of the Service.
            slice("web-3", "web", &[("http", Udp, 7070)], [ready("10.1.0.3")]),
        ],
    );
    assert_eq!(node.reach(WEB), set(&["10.1.0.1:8080", "10.1.0.2:9090"]));
    assert_eq!(node.reach_by("10.96.0.1:53", Udp), set(&["10.1.0.1:5300"]));
    assert_eq!(node.reach("10.96.0.1:53"), set(&["10.1.0.1:5301"]));
}

#[test]
fn slices_of_other_services_and_namespaces_do_not_count() {
    let mut foreign = slice("web-1", "web", HTTP, [ready("10.1.0.9")]);
    foreign.key.namespace = "other".into();
    let node = Node::with(
        [web()],
        [
            slice("web-1", "web", HTTP, [ready("10.1.0.1")]),
            slice("db-1", "db", HTTP, [ready("10.1.0.8")]),
            foreign,
        ],
    );
    assert_eq!(node.reach(WEB), set(&["10.1.0.1:80"]));
}

#[test]
fn without_endpoints_connections_are_refused() {
    let mut node = web_with(vec![]);
    assert_eq!(node.reach(WEB), set(&["refused"]));
    node.proxy
        .apply_slice(slice("web-1", "web", HTTP, [ready("10.1.0.1")]));
    node.settle();
    assert_eq!(node.reach(WEB), set(&["10.1.0.1:80"]));
    node.proxy.remove_slice(&key("web-1"));
    node.settle();
    assert_eq!(node.reach(WEB), set(&["refused"]));
}

#[test]
fn unready_endpoints_are_never_chosen_and_terminating_ones_only_at_last() {
    for (endpoints, expected) in [
        (
            vec![unready("10.1.0.1"), ready("10.1.0.2")],
            set(&["10.1.0.2:80"]),
        ),
        (vec![unready("10.1.0.1")], set(&["refused"])),
        (
            vec![terminating("10.1.0.1"), terminating("10.1.0.2")],
            set(&["10.1.0.1:80", "10.1.0.2:80"]),
        ),
        (
            vec![terminating("10.1.0.1"), ready("10.1.0.2")],
            set(&["10.1.0.2:80"]),
        ),
        // Published though not ready: the slice says ready.
        (
            vec![SliceEndpoint {
                serving: false,
                terminating: true,
                ..ready("10.1.0.1")
            }],
            set(&["10.1.0.1:80"]),
        ),
    ] {
        let node = web_with(endpoints.clone());
        assert_eq!(node.reach(WEB), expected, "{endpoints:?}");
    }
}

#[test]
fn internal_traffic_policy_local_stays_on_the_node() {
    for (endpoints, expected) in [
        (
            vec![here(ready("10.1.0.1")), ready("10.1.0.2")],
            "10.1.0.1:80",
        ),
        (
            vec![here(terminating("10.1.0.1")), ready("10.1.0.2")],
            "10.1.0.1:80",
        ),
        (
            vec![here(unready("10.1.0.1")), ready("10.1.0.2")],
            "dropped",
        ),
        (vec![ready("10.1.0.2")], "dropped"),
        (vec![here(unready("10.1.0.1"))], "refused"),
        (vec![], "refused"),
    ] {
        let mut local = web();
        local.internal_policy = TrafficPolicy::Local;
        let node = Node::with([local], [slice("web-1", "web", HTTP, endpoints.clone())]);
        assert_eq!(node.reach(WEB), set(&[expected]), "{endpoints:?}");
    }
}

#[test]
fn hints_follow_the_zone_of_the_node_when_it_is_learnt() {
    let in_zone = |ip: &str, zone: &str| SliceEndpoint {
        hint_zones: vec![zone.to_owned()],
        ..ready(ip)
    };
    let mut node = web_with(vec![in_zone("10.1.0.1", "a"), in_zone("10.1.0.2", "b")]);
    let all = set(&["10.1.0.1:80", "10.1.0.2:80"]);
    assert_eq!(node.reach(WEB), all);
    node.set_zone("b");
    node.settle();
    assert_eq!(node.reach(WEB), set(&["10.1.0.2:80"]));
    node.set_zone("c");
    node.settle();
    assert_eq!(node.reach(WEB), all);
}

#[test]
fn a_zone_that_is_learnt_concerns_services_with_hints_only() {
    let hinted = SliceEndpoint {
        hint_zones: vec!["a".to_owned()],
        ..ready("10.1.0.1")
    };
    let mut node = Node::with(
        [web(), service("db", &["10.96.0.2"], HTTP)],
        [
            slice("web-1", "web", HTTP, [hinted]),
            slice("db-1", "db", HTTP, [ready("10.1.0.2")]),
        ],
    );
    node.set_zone("a");
    let (report, ..) = node.sync();
    assert_eq!(report.services, 1);
    node.set_zone("a");
    assert_eq!(node.sync().0.services, 0);
}

#[test]
fn an_endpoint_in_two_slices_is_one() {
    let twice = || ready("10.1.0.1");
    let node = Node::with(
        [web()],
        [
            slice("web-1", "web", HTTP, [twice(), ready("10.1.0.2")]),
            slice("web-2", "web", HTTP, [twice()]),
        ],
    );
    assert_eq!(
        described(node.ruleset())["10.96.0.1 . tcp . 80"],
        ["10.1.0.1 . 80", "10.1.0.2 . 80"]
    );
}

#[test]
fn of_two_entries_the_local_and_then_the_more_usable_one_counts() {
    let mut local = web();
    local.internal_policy = TrafficPolicy::Local;
    for [first, second] in [
        [ready("10.1.0.1"), here(ready("10.1.0.1"))],
        [here(unready("10.1.0.1")), here(ready("10.1.0.1"))],
        [here(terminating("10.1.0.1")), here(unready("10.1.0.1"))],
    ] {
        for [a, b] in [[&first, &second], [&second, &first]] {
            let node = Node::with(
                [local.clone()],
                [
                    slice("web-1", "web", HTTP, [a.clone()]),
                    slice("web-2", "web", HTTP, [b.clone()]),
                ],
            );
            assert_eq!(node.reach(WEB), set(&["10.1.0.1:80"]), "{a:?} {b:?}");
        }
    }
}

#[test]
fn a_move_between_slices_changes_nothing() {
    let mut node = Node::with(
        [web()],
        [
            slice("web-1", "web", HTTP, many(1..=3)),
            slice("web-2", "web", HTTP, []),
        ],
    );
    // In both, then only in the other one.
    node.proxy
        .apply_slice(slice("web-2", "web", HTTP, many(3..=3)));
    assert_eq!(node.operations(), 0);
    node.proxy
        .apply_slice(slice("web-1", "web", HTTP, many(1..=2)));
    assert_eq!(node.operations(), 0);
}

#[test]
fn endpoints_may_be_anywhere_but_where_every_node_is_another() {
    let node = web_with(vec![
        ready("203.0.113.7"),
        ready("127.0.0.1"),
        ready("169.254.1.1"),
        ready("0.0.0.0"),
        ready("224.0.0.1"),
        ready("255.255.255.255"),
    ]);
    assert_eq!(node.reach(WEB), set(&["203.0.113.7:80"]));
}

#[test]
fn a_slice_port_zero_is_no_port() {
    let node = Node::with(
        [web()],
        [slice(
            "web-1",
            "web",
            &[("", Protocol::Tcp, 0)],
            [ready("10.1.0.1")],
        )],
    );
    assert_eq!(node.reach(WEB), set(&["refused"]));
}
