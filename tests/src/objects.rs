//! Kubernetes objects, as short as the suites need them.

use serde_json::{Value, json};

use crate::node::NODE_NAME;
use crate::pod::uid;

/// A namespace with labels.
pub fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A ready pod of the node, `key` being `namespace/name`, that serves `ports` over
/// TCP and UDP. Each has a name: `tcp-80`, `udp-80`. Its addresses are those of
/// its attachment.
pub fn pod(key: &str, labels: &Value, ports: &[u16]) -> Value {
    let (namespace, name) = key.split_once('/').expect("a key is namespace/name");
    let ports: Vec<_> = ports
        .iter()
        .flat_map(|port| {
            ["TCP", "UDP"].map(|protocol| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({"name": name, "containerPort": port, "protocol": protocol})
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": uid(key), "labels": labels},
        "spec": {
            "nodeName": NODE_NAME,
            "containers": [{"name": "main", "image": "none", "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A dual-stack ClusterIP Service; `ports` are pairs of port and target port, each
/// over TCP and UDP.
pub fn service(key: &str, ips: [&str; 2], selector: &Value, ports: &[(u16, u16)]) -> Value {
    let (namespace, name) = key.split_once('/').expect("a key is namespace/name");
    let ports: Vec<_> = ports
        .iter()
        .flat_map(|(port, target)| {
            ["TCP", "UDP"].map(|protocol| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({"name": name, "port": port, "targetPort": target, "protocol": protocol})
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "uid": uid(key)},
        "spec": {
            "type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "selector": selector, "ports": ports,
        },
    })
}

/// The EndpointSlices of both families of a Service of [`service`], with one ready endpoint each
/// on that node.
pub fn slices(key: &str, ips: [&str; 2], node: &str, ports: &[(u16, u16)]) -> [Value; 2] {
    let (namespace, name) = key.split_once('/').expect("a key is namespace/name");
    let ports = ports.iter().flat_map(|(port, target)| {
        ["TCP", "UDP"].map(|protocol| {
            let name = format!("{}-{port}", protocol.to_lowercase());
            json!({"name": name, "port": target, "protocol": protocol})
        })
    });
    let ports: Vec<_> = ports.collect();
    [("IPv4", ips[0]), ("IPv6", ips[1])].map(|(family, ip)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": namespace,
                "name": format!("{name}-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{
                "addresses": [ip], "nodeName": node, "conditions": {"ready": true},
            }],
            "ports": ports,
        })
    })
}

/// A NetworkPolicy with this `spec`.
pub fn policy(key: &str, spec: &Value) -> Value {
    let (namespace, name) = key.split_once('/').expect("a key is namespace/name");
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name, "uid": uid(key)},
        "spec": spec,
    })
}

/// A ClusterNetworkPolicy with this `spec`.
pub fn cluster_policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// A policy that isolates every pod of a namespace in both directions.
pub fn deny_all(namespace: &str) -> Value {
    policy(
        &format!("{namespace}/deny-all"),
        &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    )
}
