//! Who is sent where he was sent last.

use std::collections::BTreeMap;

use dataplane::layout::services::Entry;
use dataplane::object::{IpFamily, Value};

use super::harness::*;
use crate::model::{EndpointSlice, Protocol, Service, ServiceType, TrafficPolicy};

const WAYS: [[&str; 4]; 2] = [
    [
        "10.96.0.1:80",
        "192.0.2.2:30080",
        "203.0.113.1:80",
        "203.0.113.9:80",
    ],
    [
        "[fd96::1]:80",
        "[2001:db8::2]:30080",
        "[2001:db8:9::1]:80",
        "[2001:db8:9::9]:80",
    ],
];

/// A Service with every kind of frontend in both families.
fn sticky() -> Service {
    let mut service = Service {
        kind: ServiceType::LoadBalancer,
        external_ips: ["203.0.113.9", "2001:db8:9::9"].map(address).into(),
        load_balancer_ips: ["203.0.113.1", "2001:db8:9::1"].map(address).into(),
        affinity_seconds: Some(10_800),
        ..service("web", &["10.96.0.1", "fd96::1"], HTTP)
    };
    service.ports[0].node_port = Some(30_080);
    service
}

/// Three endpoints of each family, the first on this node.
fn endpoints() -> EndpointSlice {
    let endpoints = [
        here(ready("10.1.0.1")),
        ready("10.1.0.2"),
        ready("10.1.0.3"),
        here(ready("fd10::1")),
        ready("fd10::2"),
        ready("fd10::3"),
    ];
    slice("web-1", "web", HTTP, endpoints)
}

/// The group of each frontend, as nft prints both.
fn groups(node: &Node) -> BTreeMap<String, String> {
    let mut groups = BTreeMap::new();
    for (entry, family) in Entry::BOTH
        .into_iter()
        .flat_map(|entry| IpFamily::BOTH.map(|family| (entry, family)))
    {
        let map = entry.affinity_groups().of(family);
        let ty = key_type(node.ruleset(), map);
        for (key, element) in elements(node.ruleset(), map) {
            let Value::Data(data) = &element.value else {
                panic!("no data");
            };
            let group = dataplane::datatype::Type::of(&[family.addr_type()]).print(data);
            groups.insert(format!("{family:?} {}", ty.print(key)), group);
        }
    }
    groups
}

/// services.md 35.
#[test]
fn a_client_comes_to_the_same_endpoint_by_every_way() {
    for from in From::ALL {
        for ways in WAYS {
            for (first, choice) in ways.into_iter().zip([0, 1, 2, 1]) {
                let mut node = Node::with([sticky()], [endpoints()]);
                let endpoint = node.visit(from, first, choice);
                for way in ways {
                    for choice in 0..3 {
                        let again = node.visit(from, way, choice);
                        assert_eq!(again, endpoint, "{from:?} {first}, then {way}");
                    }
                }
            }
        }
    }
}

/// services.md 22, 25: what was learnt by a way to all endpoints does not count where only
/// this node's may be used.
#[test]
fn affinity_leads_nobody_past_a_traffic_policy() {
    let local = Service {
        external_policy: TrafficPolicy::Local,
        ..sticky()
    };
    for [cluster_ip, external @ ..] in WAYS {
        let mut node = Node::with([local.clone()], [endpoints()]);
        let elsewhere = node.visit(From::Outside, cluster_ip, 1);
        assert!(
            ["10.1.0.2:80", "[fd10::2]:80"].contains(&&*elsewhere),
            "{elsewhere}"
        );
        for way in external {
            for choice in 0..3 {
                let here = node.visit(From::Outside, way, choice);
                assert!(
                    ["10.1.0.1:80", "[fd10::1]:80"].contains(&&*here),
                    "{way}: {here}"
                );
            }
        }
        assert_eq!(node.visit(From::Outside, cluster_ip, 0), elsewhere);
        // Pods reach all endpoints, and keep theirs, by all ways from outside.
        let [first, others @ ..] = external;
        let endpoint = node.visit(From::Pod, first, 2);
        for way in others {
            assert_eq!(node.visit(From::Pod, way, 0), endpoint);
        }
    }
}

#[test]
fn service_ports_and_services_are_told_apart() {
    let two_ports = [("http", Protocol::Tcp, 80), ("https", Protocol::Tcp, 443)];
    let mut service = Service {
        ports: service("web", &[], &two_ports).ports,
        ..sticky()
    };
    service.ports[0].node_port = Some(30_080);
    service.ports[1].node_port = Some(30_443);
    let other = Service {
        key: key("other"),
        cluster_ips: vec![address("10.96.0.2")],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: self::service("other", &[], HTTP).ports,
        ..sticky()
    };
    let slices = || {
        let of = |name: &str, ports: &[Port<'_>]| EndpointSlice {
            key: key(name),
            service: name.into(),
            ..slice(name, name, ports, [ready("10.1.0.1"), ready("fd10::1")])
        };
        [of("web", &two_ports), of("other", HTTP)]
    };
    let node = Node::with([service.clone(), other.clone()], slices());
    let by_frontend = groups(&node);
    // In both families a cluster IP, two others and the node port, of two ports.
    assert_eq!(by_frontend.len(), 2 * 4 * 2 + 1, "{by_frontend:#?}");
    let mut members: BTreeMap<_, usize> = BTreeMap::new();
    for group in by_frontend.values() {
        *members.entry(group).or_default() += 1;
    }
    let mut sizes: Vec<_> = members.into_values().collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 4, 4, 4, 4]);
    // What was learnt before a restart, or by another order of events, still counts.
    let again = Node::with([other, service], slices());
    assert_eq!(groups(&again), by_frontend);
}

/// services.md 37, 65.
#[test]
fn a_group_goes_with_the_affinity_and_follows_the_owner() {
    let mut node = Node::with([sticky()], [endpoints()]);
    let before = groups(&node);
    let older = Service {
        key: key("a"),
        created: -1,
        cluster_ips: vec![address("10.96.0.2")],
        load_balancer_ips: Vec::new(),
        external_ips: vec![address("203.0.113.9")],
        ports: service("a", &[], HTTP).ports,
        ..sticky()
    };
    let contested = "V4 203.0.113.9 . tcp . 80";
    node.proxy.apply_service(older.clone());
    let of_older = slice("a-1", "a", HTTP, [ready("10.1.0.9")]);
    node.proxy.apply_slice(of_older);
    node.settle();
    assert_eq!(
        groups(&node)[contested],
        groups(&node)["V4 10.96.0.2 . tcp . 80"]
    );
    assert_eq!(
        node.visit(From::Outside, "203.0.113.9:80", 0),
        "10.1.0.9:80"
    );
    node.proxy.remove_service(&older.key);
    node.settle();
    assert_eq!(groups(&node), before);
    node.proxy.apply_service(Service {
        affinity_seconds: None,
        ..sticky()
    });
    node.settle();
    assert_eq!(groups(&node), BTreeMap::new());
}
