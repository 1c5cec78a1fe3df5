//! A small cluster whose flows are judged by the oracle and by the compiled rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane::desired::Desired;
use dataplane::layout::{self, INET, ports};
use dataplane::object::{Element, Family, Hook};
use dataplane::trace::{Fate, Packet, Tracer};
use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use policy_agent::compile::PolicyCompiler;
use policy_agent::event::Object;
use policy_agent::index::Index;
use policy_agent::source::convert::{ClusterNetworkPolicy, Convert};
use policy_agent::verdict::{Cluster, Flow, Transport};
use proxy::model::{ObjectKey, Protocol};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// An address that is nobody's.
pub(crate) const OUTSIDE: &str = "198.51.100.7";
/// Where a second node is.
pub(crate) const NODE_2: &str = "192.0.2.9";
const NODE: &str = "n1";
const ICMP: [u8; 2] = [1, 58];

pub(crate) struct World {
    index: Index,
    compiler: PolicyCompiler,
    desired: Desired,
    addresses: BTreeMap<String, [IpAddr; 2]>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut desired = Desired::new();
        layout::install(&mut desired, 1);
        let bridge = ports::interface_key("cbr0");
        desired.insert(&INET, &ports::PORTS_OF_POD, bridge, Element::member());
        let mut world = Self {
            index: Index::new(),
            compiler: PolicyCompiler::new(NODE),
            desired,
            addresses: BTreeMap::new(),
        };
        for (i, namespace) in ["red", "blue", "green", "gold"].into_iter().enumerate() {
            world.namespace(namespace);
            for pod in 0..2 {
                world.pod(namespace, pod, 10 * (i + 1) + pod);
            }
        }
        world
    }

    pub(crate) fn namespace(&mut self, name: &str) {
        self.apply::<core::Namespace>(json!({"metadata": {"name": name}}));
    }

    pub(crate) fn no_namespace(&mut self, name: &str) {
        self.index.namespaces.remove(name);
        self.namespace_changed(name);
    }

    /// Its port `web` is 80, but 8080 for `blue/1`.
    fn pod(&mut self, namespace: &str, name: usize, host: usize) {
        let ips = [format!("10.88.0.{host}"), format!("fd88::{host}")];
        let web = if (namespace, name) == ("blue", 1) {
            8080
        } else {
            80
        };
        self.apply::<core::Pod>(json!({
            "metadata": {"namespace": namespace, "name": name.to_string()},
            "spec": {"nodeName": NODE, "containers": [{"name": "main", "ports": [
                {"name": "web", "containerPort": web},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]}]},
            "status": {"podIPs": ips.each_ref().map(|ip| json!({"ip": ip}))},
        }));
        let ips = ips.map(|ip| ip.parse().expect("an address"));
        self.addresses.insert(format!("{namespace}/{name}"), ips);
    }

    pub(crate) fn addresses(&self, pod: &str) -> [IpAddr; 2] {
        self.addresses[pod]
    }

    /// Returns what of it is not understood.
    pub(crate) fn cluster_policy(&mut self, manifest: Value) -> Vec<String> {
        let name = manifest["metadata"]["name"].as_str().expect("a name");
        let name = name.to_owned();
        self.apply::<ClusterNetworkPolicy>(manifest);
        self.index.cluster_policies[&name].problems.clone()
    }

    pub(crate) fn no_cluster_policy(&mut self, name: &str) {
        self.index.cluster_policies.remove(name);
        self.compiler.cluster_policy_changed(name.to_owned());
        self.sync();
    }

    pub(crate) fn policy(&mut self, namespace: &str, name: &str, spec: Value) {
        self.apply::<networking::NetworkPolicy>(
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}),
        );
    }

    pub(crate) fn no_policy(&mut self, namespace: &str, name: &str) {
        let key = ObjectKey::new(namespace, name);
        self.index.policies.remove(&key);
        self.compiler.policy_changed(key);
        self.sync();
    }

    pub(crate) fn node(&mut self, name: &str, labels: Value, address: &str) {
        self.apply::<core::Node>(json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }));
    }

    pub(crate) fn no_node(&mut self, name: &str) {
        self.index.nodes.remove(name);
        self.compiler.nodes_changed();
        self.sync();
    }

    fn apply<K: Convert + DeserializeOwned>(&mut self, manifest: Value) {
        let object: K = serde_json::from_value(manifest).expect("of that kind");
        match object.convert().expect("usable") {
            Some(Object::Namespace(namespace)) => {
                let name = namespace.name.clone();
                self.index.namespaces.insert(name.clone(), namespace);
                self.namespace_changed(&name);
            }
            Some(Object::Pod(pod)) => {
                let affected = self.index.set_pod(&pod.key.clone(), Some(pod));
                self.compiler.pods_changed(affected);
            }
            Some(Object::NetworkPolicy(policy)) => {
                self.compiler.policy_changed(policy.key.clone());
                self.index.policies.insert(policy.key.clone(), policy);
            }
            Some(Object::ClusterNetworkPolicy(policy)) => {
                self.compiler.cluster_policy_changed(policy.name.clone());
                let policies = &mut self.index.cluster_policies;
                policies.insert(policy.name.clone(), policy);
            }
            Some(Object::Node(node)) => {
                self.index.nodes.insert(node.name.clone(), node);
                self.compiler.nodes_changed();
            }
            other => panic!("{other:?}"),
        }
        self.sync();
    }

    fn namespace_changed(&mut self, name: &str) {
        let pods: Vec<_> = self.index.pods_in(name).map(|p| p.key.clone()).collect();
        self.compiler.pods_changed(pods);
        self.sync();
    }

    fn sync(&mut self) {
        self.compiler.sync(&self.index, &mut self.desired);
    }

    /// Whether the first packet passes from a pod or address to another, in every family
    /// that both have.
    pub(crate) fn expect(&self, from: &str, to: &str, protocol: Protocol, port: u16, passes: bool) {
        self.expect_flow(from, to, |_| Transport::Port(protocol, port), passes);
    }

    pub(crate) fn expect_icmp(&self, from: &str, to: &str, passes: bool) {
        let number = |ip: IpAddr| Transport::Other(ICMP[usize::from(ip.is_ipv6())]);
        self.expect_flow(from, to, number, passes);
    }

    fn expect_flow(
        &self,
        from: &str,
        to: &str,
        transport: impl Fn(IpAddr) -> Transport,
        passes: bool,
    ) {
        let ends = |name: &str| match self.addresses.get(name) {
            Some(ips) => ips.to_vec(),
            None => vec![name.parse().expect("an address")],
        };
        for (source, destination) in ends(from).into_iter().zip(ends(to)) {
            let flow = Flow {
                source,
                destination,
                transport: transport(source),
            };
            let cluster = self.cluster();
            let verdict = cluster.judge(&flow);
            assert_eq!(verdict.is_allowed(), passes, "{from} to {to}: {verdict}");
            assert_eq!(
                self.passes(&flow),
                passes,
                "the rules, {from} to {to}: {verdict}"
            );
        }
    }

    fn cluster(&self) -> Cluster<'_> {
        let pods = self.index.pods.values();
        Cluster::new(
            self.index.namespaces.values(),
            pods.map(|pod| (pod, pod.ips.clone())),
            self.index.policies.values(),
            [],
        )
        .with_cluster_policies(
            self.index.cluster_policies.values(),
            self.index.nodes.values(),
        )
    }

    fn passes(&self, flow: &Flow) -> bool {
        let (protocol, port) = match flow.transport {
            Transport::Port(protocol, port) => (protocol.number(), port),
            Transport::Other(number) => (number, 0),
        };
        let mut packet = Packet::first(flow.source, flow.destination, protocol, port);
        let is_pod = |ip: IpAddr| self.addresses.values().any(|ips| ips.contains(&ip));
        let link = |ip| if is_pod(ip) { "cbr0" } else { "uplink" }.to_owned();
        packet.iifname = link(flow.source);
        packet.oifname = Some(link(flow.destination));
        let tracer = Tracer::new(self.desired.ruleset(), &|_| 0);
        tracer.hook(Family::Inet, Hook::Forward, &mut packet).fate == Fate::Accepted
    }
}
