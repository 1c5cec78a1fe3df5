//! The corners of the API that the generated cases lack; `tests/netpol_cases.rs` has
//! the rest.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals read better without a borrow"
)]

use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::event::Object;
use crate::model::{Namespace, Pod};
use crate::source::convert::Convert;

mod corners;
mod fuzz;

const NODE: &str = "192.0.2.1";

/// Objects and the node's own addresses.
#[derive(Default)]
struct World {
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
}

impl World {
    /// Namespaces x and y (label team=x, team=y), each with pods a, b, c (label pod=a ...) at
    /// 10.0.<1 or 2>.<1..3> and fd00:0:0:<1 or 2>::<1..3>.
    fn new() -> Self {
        let mut world = Self::default();
        for (i, namespace) in ["x", "y"].into_iter().enumerate() {
            world.add::<core::Namespace>(
                json!({"metadata": {"name": namespace, "labels": {"team": namespace}}}),
            );
            for (k, name) in ["a", "b", "c"].into_iter().enumerate() {
                let (i, k) = (i + 1, k + 1);
                let ips = [format!("10.0.{i}.{k}"), format!("fd00:0:0:{i}::{k}")];
                world.pod(namespace, name, &[("pod", name)], &ips);
            }
        }
        world
    }

    fn add<K: Convert + DeserializeOwned>(&mut self, manifest: Value) {
        let object: K = serde_json::from_value(manifest).unwrap();
        match object.convert().unwrap().unwrap() {
            Object::Namespace(namespace) => self.namespaces.push(namespace),
            Object::Pod(pod) => self.pods.push(pod),
            Object::NetworkPolicy(policy) => self.policies.push(policy),
            other => panic!("{other:?}"),
        }
    }

    fn pod(&mut self, namespace: &str, name: &str, labels: &[(&str, &str)], ips: &[String]) {
        let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        self.add::<core::Pod>(json!({
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "status": {"podIPs": ips},
        }));
    }

    fn get(&mut self, namespace: &str, name: &str) -> &mut Pod {
        let is_it = |pod: &&mut Pod| *pod.key.namespace == *namespace && *pod.key.name == *name;
        self.pods.iter_mut().find(is_it).unwrap()
    }

    /// Adds a policy in namespace x.
    fn policy(&mut self, name: &str, spec: Value) -> &mut Self {
        self.policy_in("x", name, spec)
    }

    fn policy_in(&mut self, namespace: &str, name: &str, spec: Value) -> &mut Self {
        self.add::<networking::NetworkPolicy>(
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}),
        );
        self
    }

    fn cluster(&self) -> Cluster<'_> {
        let pods = self.pods.iter().map(|pod| (pod, pod.ips.iter().copied()));
        Cluster::new(
            &self.namespaces,
            pods,
            &self.policies,
            [NODE.parse().unwrap()],
        )
    }

    /// Whether TCP to that port passes.
    fn tcp(&self, source: &str, destination: &str, port: u16) -> bool {
        self.passes(source, destination, Transport::Port(Protocol::Tcp, port))
    }

    fn passes(&self, source: &str, destination: &str, transport: Transport) -> bool {
        let flow = flow(source, destination, transport);
        self.cluster().judge(&flow).is_allowed()
    }
}

fn flow(source: &str, destination: &str, transport: Transport) -> Flow {
    Flow {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        transport,
    }
}

const XA: &str = "10.0.1.1";
const XB: &str = "10.0.1.2";
const XC: &str = "10.0.1.3";
const YA: &str = "10.0.2.1";
const YB: &str = "10.0.2.2";
const OUTSIDE: &str = "198.51.100.7";

#[test]
fn without_policies_everything_passes() {
    let world = World::new();
    for (source, destination) in [
        (XA, YB),
        (XA, OUTSIDE),
        (OUTSIDE, XA),
        (NODE, XA),
        (XA, NODE),
    ] {
        assert!(world.tcp(source, destination, 80));
    }
}

#[test]
fn paths_follow_the_addresses() {
    let world = World::new();
    let cluster = world.cluster();
    let table = [
        (XA, YA, Path::PodToPod),
        (XA, XA, Path::PodToItself),
        (XA, NODE, Path::PodToNode),
        (XA, OUTSIDE, Path::PodToOutside),
        (NODE, XA, Path::NodeToPod),
        (OUTSIDE, XA, Path::OutsideToPod),
        (OUTSIDE, NODE, Path::NoPod),
        ("::ffff:10.0.1.1", YA, Path::PodToPod),
    ];
    for (source, destination, expected) in table {
        let flow = flow(source, destination, Transport::Port(Protocol::Tcp, 80));
        assert_eq!(
            cluster.judge(&flow).path,
            expected,
            "{source} {destination}"
        );
    }
}

#[test]
fn a_verdict_names_the_isolating_policies_and_the_deciding_rule() {
    let mut world = World::new();
    world
        .policy(
            "b-deny",
            json!({"podSelector": {"matchLabels": {"pod": "a"}}}),
        )
        .policy(
            "a-allow",
            json!({"podSelector": {}, "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"pod": "c"}}}]},
                {"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": 80}]},
            ]}),
        );
    let cluster = world.cluster();
    let tcp = |port| Transport::Port(Protocol::Tcp, port);

    let verdict = cluster.judge(&flow(XB, XA, tcp(80)));
    assert!(matches!(verdict.egress, Judgement::NotIsolated { pod } if &*pod.name == "b"));
    let Judgement::Allowed { pod, isolating, by } = &verdict.ingress else {
        panic!("{verdict:?}");
    };
    assert_eq!(&*pod.name, "a");
    let names: Vec<_> = isolating.iter().map(|p| &*p.key.name).collect();
    assert_eq!(names, ["a-allow", "b-deny"]);
    assert_eq!(
        (&*by.policy.key.name, by.direction, by.rule),
        ("a-allow", Direction::Ingress, 1)
    );
    assert_eq!(
        verdict.to_string(),
        "allowed (pod to pod); egress of x/b not isolated; \
         ingress of x/a allowed by x/a-allow spec.ingress[1]"
    );

    let verdict = cluster.judge(&flow(XB, XA, tcp(81)));
    assert!(!verdict.is_allowed());
    assert_eq!(
        verdict.to_string(),
        "denied (pod to pod); egress of x/b not isolated; \
         ingress of x/a denied: isolated by x/a-allow, x/b-deny, no rule matches"
    );
}
