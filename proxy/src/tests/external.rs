//! Node ports, external IPs, load balancer addresses: by whom what is reached.

use super::harness::*;
use crate::model::{Protocol, Service, ServiceType, TrafficPolicy};
use crate::{FrontendKind, FrontendState, ProxyConfig};

const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.2:30080";
const VIP: &str = "203.0.113.1:80";
const EXTERNAL: &str = "203.0.113.9:80";
const EXTERNAL_WAYS: [&str; 3] = [NODE_PORT, VIP, EXTERNAL];

/// A Service with every kind of frontend in both families.
fn everything(name: &str) -> Service {
    let mut service = Service {
        kind: ServiceType::LoadBalancer,
        external_ips: vec![address("203.0.113.9"), address("2001:db8:9::9")],
        load_balancer_ips: vec![address("203.0.113.1"), address("2001:db8:9::1")],
        ..service(name, &["10.96.0.1", "fd96::1"], HTTP)
    };
    service.ports[0].node_port = Some(30_080);
    service
}

fn local(name: &str) -> Service {
    Service {
        external_policy: TrafficPolicy::Local,
        ..everything(name)
    }
}

fn http(
    endpoints: impl IntoIterator<Item = crate::model::SliceEndpoint>,
) -> crate::model::EndpointSlice {
    slice("web-1", "web", HTTP, endpoints)
}

/// services.md 14, 18: all of them, from everywhere, with this node's address; cluster IPs
/// (5, 6) keep the addresses of pods.
#[test]
fn all_ways_lead_to_all_endpoints() {
    let endpoints = [ready("10.1.0.1"), here(ready("10.1.0.2")), ready("fd10::1")];
    let node = Node::with([everything("web")], [http(endpoints)]);
    for from in From::ALL {
        for way in EXTERNAL_WAYS {
            let expected = ["10.1.0.1:80 masqueraded", "10.1.0.2:80 masqueraded"];
            assert_eq!(node.walk(from, way), set(&expected), "{from:?} {way}");
        }
        for way in [
            "[2001:db8::2]:30080",
            "[2001:db8:9::1]:80",
            "[2001:db8:9::9]:80",
        ] {
            let expected = ["[fd10::1]:80 masqueraded"];
            assert_eq!(node.walk(from, way), set(&expected), "{from:?} {way}");
        }
        let expected = match from {
            From::Pod | From::OtherPod => ["10.1.0.1:80", "10.1.0.2:80"],
            From::Outside | From::Node => ["10.1.0.1:80 masqueraded", "10.1.0.2:80 masqueraded"],
        };
        assert_eq!(node.walk(from, CLUSTER_IP), set(&expected), "{from:?}");
    }
    assert_eq!(
        node.walk(From::Outside, "192.0.2.3:30080"),
        set(&["untouched"])
    );
    assert_eq!(
        node.walk(From::Outside, "192.0.2.2:80"),
        set(&["untouched"])
    );
    assert_eq!(
        node.walk(From::Outside, "203.0.113.1:30080"),
        set(&["untouched"])
    );
}

/// services.md 22.
#[test]
fn the_external_policy_local_keeps_sources_and_leaves_the_cluster_its_own_way() {
    let endpoints = [ready("10.1.0.1"), here(ready("10.1.0.2"))];
    let node = Node::with([local("web")], [http(endpoints)]);
    for way in EXTERNAL_WAYS {
        assert_eq!(
            node.walk(From::Outside, way),
            set(&["10.1.0.2:80"]),
            "{way}"
        );
        let all = set(&["10.1.0.1:80", "10.1.0.2:80"]);
        assert_eq!(node.walk(From::Pod, way), all, "{way}");
        assert_eq!(node.walk(From::OtherPod, way), all, "{way}");
        let own = set(&["10.1.0.1:80 masqueraded", "10.1.0.2:80 masqueraded"]);
        assert_eq!(node.walk(From::Node, way), own, "{way}");
    }
    // The internal policy is another.
    let all = set(&["10.1.0.1:80", "10.1.0.2:80"]);
    assert_eq!(node.walk(From::Pod, CLUSTER_IP), all);
}

/// services.md 22, 25, 29.
#[test]
fn without_a_local_endpoint_outsiders_are_dropped_and_the_cluster_is_served() {
    let mut node = Node::with([local("web")], [http([ready("10.1.0.1")])]);
    for way in EXTERNAL_WAYS {
        assert_eq!(node.walk(From::Outside, way), set(&["dropped"]), "{way}");
        assert_eq!(node.walk(From::Pod, way), set(&["10.1.0.1:80"]), "{way}");
        let own = set(&["10.1.0.1:80 masqueraded"]);
        assert_eq!(node.walk(From::Node, way), own, "{way}");
    }
    let status = node.proxy.services().next().expect("one");
    for frontend in &status.frontends {
        let is_external = frontend.kind != FrontendKind::ClusterIp;
        let is_served = matches!(frontend.from_cluster, Some(FrontendState::Served { .. }));
        let is_v4 = frontend.id.address.is_ipv4();
        assert_eq!(is_served, is_external && is_v4, "{frontend}");
    }
    node.proxy.apply_slice(http([]));
    node.settle();
    for from in From::ALL {
        for way in EXTERNAL_WAYS {
            assert_eq!(node.walk(from, way), set(&["refused"]), "{from:?} {way}");
        }
    }
}

/// services.md 28: each selection falls back on its own.
#[test]
fn terminating_endpoints_serve_where_none_is_ready() {
    let endpoints = [ready("10.1.0.1"), here(terminating("10.1.0.2"))];
    let node = Node::with([local("web")], [http(endpoints)]);
    assert_eq!(node.walk(From::Outside, VIP), set(&["10.1.0.2:80"]));
    assert_eq!(node.walk(From::Pod, VIP), set(&["10.1.0.1:80"]));
    let endpoints = [terminating("10.1.0.1"), here(terminating("10.1.0.2"))];
    let node = Node::with([local("web")], [http(endpoints)]);
    assert_eq!(node.walk(From::Outside, VIP), set(&["10.1.0.2:80"]));
    assert_eq!(
        node.walk(From::Pod, VIP),
        set(&["10.1.0.1:80", "10.1.0.2:80"])
    );
}

/// services.md 24.
#[test]
fn a_policy_that_changes_leaves_nothing_behind() {
    let endpoints = || [ready("10.1.0.1"), here(ready("10.1.0.2"))];
    let fresh = Node::with([everything("web")], [http(endpoints())]);
    let mut node = Node::with([everything("web")], [http(endpoints())]);
    for service in [local("web"), everything("web")] {
        node.proxy.apply_service(service);
        node.settle();
    }
    for from in From::ALL {
        for way in EXTERNAL_WAYS {
            assert_eq!(
                node.walk(from, way),
                fresh.walk(from, way),
                "{from:?} {way}"
            );
        }
    }
    assert_eq!(node.walk(From::Outside, VIP).len(), 2);
    let elements_of = |node: &Node| -> usize {
        let table = &node.ruleset().tables[&*dataplane::layout::INET];
        table.sets.values().map(|set| set.elements.len()).sum()
    };
    assert_eq!(elements_of(&node), elements_of(&fresh));
    node.proxy.remove_service(&key("web"));
    node.settle();
    assert_eq!(elements_of(&node), elements_of(&Node::with([], [])));
}

/// services.md 17.
#[test]
fn a_node_port_is_one_for_each_protocol() {
    let of = |name: &str, ip: &str, protocol: Protocol| {
        let mut service = Service {
            kind: ServiceType::NodePort,
            ..service(name, &[ip], &[("", protocol, 80)])
        };
        service.ports[0].node_port = Some(30_080);
        service
    };
    let node = Node::with(
        [
            of("a", "10.96.0.1", Protocol::Tcp),
            of("b", "10.96.0.2", Protocol::Udp),
        ],
        [
            slice("a-1", "a", &[("", Protocol::Tcp, 80)], [ready("10.1.0.1")]),
            slice("b-1", "b", &[("", Protocol::Udp, 80)], [ready("10.1.0.2")]),
        ],
    );
    assert_eq!(
        node.reach_by(NODE_PORT, Protocol::Tcp),
        set(&["10.1.0.1:80"])
    );
    assert_eq!(
        node.reach_by(NODE_PORT, Protocol::Udp),
        set(&["10.1.0.2:80"])
    );
    assert_eq!(
        node.reach_by(NODE_PORT, Protocol::Sctp),
        set(&["untouched"])
    );
}

/// services.md 15, 21.
#[test]
fn node_ports_follow_the_addresses_of_the_node() {
    let mut node = Node::with([everything("web")], [http([ready("10.1.0.1")])]);
    node.proxy.set_node_addresses([address("192.0.2.77")]);
    assert_eq!(node.operations(), 3, "two addresses go, one comes");
    assert_eq!(node.walk(From::Outside, NODE_PORT), set(&["untouched"]));
    let served = set(&["10.1.0.1:80 masqueraded"]);
    assert_eq!(node.walk(From::Outside, "192.0.2.77:30080"), served);

    let mut without = everything("web");
    without.ports[0].node_port = None;
    node.proxy.apply_service(without);
    node.settle();
    assert_eq!(
        node.walk(From::Outside, "192.0.2.77:30080"),
        set(&["untouched"])
    );
    assert_eq!(node.walk(From::Outside, VIP), served);
}

/// services.md 7.
#[test]
fn all_traffic_to_cluster_ips_is_masqueraded_on_demand() {
    let mut node = Node::with([local("web")], [http([here(ready("10.1.0.1"))])]);
    node.proxy.set_config(ProxyConfig {
        masquerade_all: true,
        ..ProxyConfig::default()
    });
    node.settle();
    for from in From::ALL {
        let masqueraded = set(&["10.1.0.1:80 masqueraded"]);
        assert_eq!(node.walk(from, CLUSTER_IP), masqueraded, "{from:?}");
    }
    assert_eq!(node.walk(From::Outside, VIP), set(&["10.1.0.1:80"]));
    node.proxy.set_config(ProxyConfig::default());
    node.settle();
    assert_eq!(
        node.walk(From::Pod, CLUSTER_IP),
        set(&["10.1.0.1:80"]),
        "it is one of this node"
    );
}

/// services.md 10, 66.
#[test]
fn only_what_a_service_has_is_captured() {
    let mut node = Node::with([everything("web")], [http([ready("10.1.0.1")])]);
    node.proxy.set_service_cidrs([network("10.96.0.0/16")]);
    node.settle();
    for from in From::ALL {
        assert_eq!(
            node.walk(from, "10.96.0.1:81"),
            set(&["refused"]),
            "{from:?}"
        );
        assert_eq!(
            node.walk(from, "10.96.0.2:80"),
            set(&["dropped"]),
            "{from:?}"
        );
        assert_eq!(
            node.walk(from, "10.97.0.2:80"),
            set(&["untouched"]),
            "{from:?}"
        );
        assert_eq!(
            node.walk(from, "203.0.113.1:81"),
            set(&["untouched"]),
            "{from:?}"
        );
    }
}

fn restricted(ranges: &[&str]) -> Service {
    Service {
        source_ranges: ranges.iter().map(ToString::to_string).collect(),
        ..everything("web")
    }
}

/// services.md 20.
#[test]
fn source_ranges_are_for_load_balancer_addresses_only() {
    let served = set(&["10.1.0.1:80 masqueraded"]);
    let dropped = set(&["dropped"]);
    // Which sources may, by range: outside is 198.51.100.7, the pods 10.88.0.9 and
    // 10.89.0.9, the node 192.0.2.2.
    for (ranges, may) in [
        (&[][..], &From::ALL[..]),
        (&["0.0.0.0/0"], &From::ALL),
        (&["10.0.0.0/8", " 0.0.0.0/0\t"], &From::ALL),
        (&["2001:db8::/32"], &From::ALL),
        (&[" 198.51.100.0/24 "], &[From::Outside]),
        (
            &["10.88.0.0/16", "198.51.100.7/32"],
            &[From::Outside, From::Pod],
        ),
        (&["192.0.2.0/24"], &[From::Node]),
        (&["198.51.100.9/24"], &[From::Outside]),
        (&["not a network"], &[]),
    ] {
        let node = Node::with([restricted(ranges)], [http([ready("10.1.0.1")])]);
        for from in From::ALL {
            let expected = if may.contains(&from) {
                &served
            } else {
                &dropped
            };
            assert_eq!(&node.walk(from, VIP), expected, "{ranges:?} {from:?}");
            assert_eq!(node.walk(from, NODE_PORT), served, "{ranges:?} {from:?}");
            assert_eq!(node.walk(from, EXTERNAL), served, "{ranges:?} {from:?}");
        }
    }
}

#[test]
fn source_ranges_are_those_of_the_family() {
    let endpoints = [ready("10.1.0.1"), ready("fd10::1")];
    let node = Node::with(
        [restricted(&["10.0.0.0/8", "2001:db8:7::/48"])],
        [http(endpoints)],
    );
    let v6 = "[2001:db8:9::1]:80";
    assert_eq!(
        node.walk(From::Outside, v6),
        set(&["[fd10::1]:80 masqueraded"])
    );
    assert_eq!(node.walk(From::Pod, v6), set(&["dropped"]));
    assert_eq!(node.walk(From::Outside, VIP), set(&["dropped"]));
    assert_eq!(node.walk(From::Pod, VIP), set(&["10.1.0.1:80 masqueraded"]));
}

/// A node in the ranges that has the address on an interface sends from it.
#[test]
fn a_node_in_the_ranges_may_reach_itself_by_the_address() {
    for (range, expected) in [
        ("192.0.2.0/24", "10.1.0.1:80 masqueraded"),
        ("198.51.100.0/24", "dropped"),
    ] {
        let node = Node::with([restricted(&[range])], [http([ready("10.1.0.1")])]);
        assert_eq!(
            node.walk_as(From::Node, "203.0.113.1", VIP),
            set(&[expected])
        );
    }
}

#[test]
fn equal_source_ranges_share_a_chain_which_goes_with_the_last() {
    let chains = |node: &Node| {
        let table = &node.ruleset().tables[&*dataplane::layout::INET];
        let chains = table.chains.keys();
        chains
            .filter(|name| name.as_str().starts_with("ranges-"))
            .count()
    };
    let mut node = Node::new();
    for number in 1..=5u8 {
        node.proxy.apply_service(Service {
            key: key(&format!("s{number}")),
            cluster_ips: vec![[10, 96, 0, number].into()],
            load_balancer_ips: vec![[203, 0, 113, number].into()],
            source_ranges: vec!["10.0.0.0/8".to_owned()],
            external_ips: Vec::new(),
            ports: service("x", &[], HTTP).ports,
            ..everything("x")
        });
    }
    node.settle();
    assert_eq!(chains(&node), 1);
    for number in 1..=5 {
        assert_eq!(chains(&node), 1);
        node.proxy.remove_service(&key(&format!("s{number}")));
        node.settle();
    }
    assert_eq!(chains(&node), 0);
}

/// DESIGN: at most five element operations for one endpoint, whatever the kind.
#[test]
fn one_endpoint_costs_at_most_five_operations_for_each_frontend() {
    for (service, frontends) in [(everything("web"), 4), (local("web"), 7)] {
        let sticky = Service {
            affinity_seconds: Some(60),
            ..service.clone()
        };
        for service in [service, sticky] {
            let here = |numbers: std::ops::Range<u16>| http(many(numbers).into_iter().map(here));
            let mut node = Node::with([service], [here(0..20)]);
            for numbers in [0..21, 1..21, 1..20, 0..19] {
                node.proxy.apply_slice(here(numbers.clone()));
                let operations = node.operations();
                assert!(operations <= 5 * frontends, "{operations} for {numbers:?}");
            }
        }
    }
}

/// DESIGN 4: rules, chains and sets are the same for one Service and for a thousand, of
/// whatever kind.
#[test]
fn rules_do_not_grow_with_services_of_any_kind() {
    let nth = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let mut service = Service {
            key: key(&format!("s{number}")),
            cluster_ips: vec![[10, 96, high, low].into()],
            load_balancer_ips: vec![[203, 0, high, low].into()],
            external_ips: vec![[198, 18, high, low].into()],
            source_ranges: vec!["10.0.0.0/8".to_owned()],
            affinity_seconds: Some(10_800),
            ..local("x")
        };
        service.ports[0].node_port = Some(20_000 + number);
        service
    };
    let sizes = [1u16, 1000].map(|count| {
        let mut node = Node::new();
        for number in 0..count {
            node.proxy.apply_service(nth(number));
            let name = format!("s{number}");
            let endpoints = many(number..number + 3).into_iter().map(here);
            node.proxy.apply_slice(slice(&name, &name, HTTP, endpoints));
        }
        node.settle();
        size_of_rules(node.ruleset())
    });
    assert_eq!(sizes[0], sizes[1]);
}
