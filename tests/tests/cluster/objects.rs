//! Kubernetes objects as the API server takes them, as short as the scenarios need them.

use serde_json::{Value, json};

/// An image with `netexec`, which answers over HTTP who it is.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.59";

/// The port of every server.
pub(crate) const PORT: u16 = 8080;

/// How long a server goes on after SIGTERM: longer than the news that it ends may take.
const DELAY: u32 = 15;

/// A pod with that server. With a node it goes there and nowhere else.
fn pod_spec(node: Option<&str>) -> Value {
    let port = format!("--http-port={PORT}");
    let delay = format!("--delay-shutdown={DELAY}");
    let mut spec = json!({
        "terminationGracePeriodSeconds": 2 * DELAY,
        // Its token would have to be fetched anew, without an API server in vain.
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "main",
            "image": IMAGE,
            "args": ["netexec", port, delay],
            "ports": [{"name": "http", "containerPort": PORT}],
            "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
        }],
    });
    if let Some(node) = node {
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        // Nobody waits for a single pod to end.
        spec["terminationGracePeriodSeconds"] = json!(0);
    }
    spec
}

/// A pod `app: NAME` on a node.
pub(crate) fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": pod_spec(Some(node)),
    })
}

/// A Deployment `app: NAME` that spreads over the nodes, one pod more while it rolls.
pub(crate) fn deployment(name: &str, replicas: u32) -> Value {
    let labels = json!({"app": name});
    let mut spec = pod_spec(None);
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels},
    }]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    })
}

/// A dual-stack Service of the pods `app: NAME`, with a node port.
pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}],
        },
    })
}

/// Nobody may reach the pods of a namespace.
pub(crate) fn deny_all() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "deny-all"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

/// Peers may reach the pods `app: NAME` on their port, which is given by its name.
pub(crate) fn allow(name: &str, peers: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("allow-{name}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": name}},
            "ingress": [{"from": peers, "ports": [{"port": "http"}]}],
        },
    })
}

/// A peer: the pods `app: NAME` of the policy's namespace.
pub(crate) fn from_app(name: &str) -> Value {
    json!([{"podSelector": {"matchLabels": {"app": name}}}])
}
