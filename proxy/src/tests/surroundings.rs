//! What the proxy is told of the node and the cluster, and tells of the node's health.

use super::harness::*;
use crate::model::{Service, ServiceType, TrafficPolicy};

use dataplane::layout::PerFamily;
use dataplane::layout::services as layout_of;
use dataplane::object::IpFamily;

fn checked(name: &str) -> Service {
    Service {
        kind: ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32_000),
        ..service(name, &["10.96.0.1", "fd96::1"], HTTP)
    }
}

fn weights(node: &Node) -> Vec<(String, u16, usize)> {
    let checks = node.proxy.health_checks();
    checks
        .map(|check| (check.service.to_string(), check.port, check.local_endpoints))
        .collect()
}

/// services.md 23.
#[test]
fn a_health_check_counts_the_addresses_of_ready_endpoints_on_this_node() {
    let mut node = Node::with([checked("web")], []);
    assert_eq!(weights(&node), [("default/web".to_owned(), 32_000, 0)]);
    let endpoints = [
        here(ready("10.1.0.1")),
        here(ready("10.1.0.2")),
        here(terminating("10.1.0.3")),
        here(unready("10.1.0.4")),
        ready("10.1.0.5"),
    ];
    node.proxy
        .apply_slice(slice("web-1", "web", HTTP, endpoints.clone()));
    assert_eq!(weights(&node)[0].2, 2);
    // The same endpoints by another port are no further ones.
    let other = [("alt", crate::model::Protocol::Udp, 53)];
    node.proxy
        .apply_slice(slice("web-2", "web", &other, endpoints));
    assert_eq!(weights(&node)[0].2, 2);
    // Nor are those of the same pods by their other address.
    let v6 = [here(ready("fd00:1::1")), here(ready("fd00:1::2"))];
    node.proxy
        .apply_slice(slice("web-v6", "web", HTTP, v6.clone()));
    assert_eq!(weights(&node)[0].2, 2);
    for other in ["web-1", "web-2"] {
        node.proxy.remove_slice(&key(other));
    }
    assert_eq!(weights(&node)[0].2, 2);
}

#[test]
fn only_a_load_balancer_with_the_policy_local_has_a_health_check() {
    let cluster = Service {
        external_policy: TrafficPolicy::Cluster,
        ..checked("cluster")
    };
    let node_port = Service {
        kind: ServiceType::NodePort,
        ..checked("node-port")
    };
    let without = Service {
        health_check_node_port: None,
        ..checked("without")
    };
    assert_eq!(weights(&Node::with([cluster, node_port, without], [])), []);
}

#[test]
fn sets_hold_what_was_told_last() {
    let held = |node: &Node, set: &PerFamily, family: IpFamily| -> Vec<String> {
        let set = set.of(family);
        let ty = node.ruleset().tables[&*dataplane::layout::INET].sets[set]
            .spec
            .key;
        let elements = elements(node.ruleset(), set);
        elements.map(|(key, _)| ty.print(key)).collect()
    };
    let mut node = Node::new();
    let addresses = ["192.0.2.2", "127.0.0.1", "::1", "2001:db8::2"].map(address);
    node.proxy.set_node_addresses(addresses);
    let net = |text: &str| text.parse().expect("a prefix");
    node.proxy
        .set_service_cidrs([net("10.96.0.0/16"), net("10.97.0.0/16"), net("fd96::/112")]);
    node.proxy.set_cluster_cidrs(&[net("10.88.0.0/16")]);
    node.settle();
    let (v4, v6) = (IpFamily::V4, IpFamily::V6);
    assert_eq!(held(&node, &layout_of::NODE_ADDRESSES, v4), ["192.0.2.2"]);
    assert_eq!(held(&node, &layout_of::NODE_ADDRESSES, v6), ["2001:db8::2"]);
    let ranges = &layout_of::SERVICE_CIDRS;
    assert_eq!(held(&node, ranges, v4), ["10.96.0.0", "10.98.0.0"]);
    assert_eq!(held(&node, ranges, v6), ["fd96::", "fd96::1:0"]);
    let pods = &layout_of::CLUSTER_CIDRS;
    assert_eq!(held(&node, pods, v4), ["10.88.0.0", "10.89.0.0"]);

    node.proxy.set_node_addresses([address("192.0.2.3")]);
    node.proxy.set_service_cidrs([net("fd96::/112")]);
    node.settle();
    assert_eq!(held(&node, &layout_of::NODE_ADDRESSES, v4), ["192.0.2.3"]);
    assert!(held(&node, &layout_of::NODE_ADDRESSES, v6).is_empty());
    assert!(held(&node, ranges, v4).is_empty());
    assert_eq!(held(&node, ranges, v6).len(), 2);
}
