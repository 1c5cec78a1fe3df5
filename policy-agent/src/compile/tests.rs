//! The compiler against the oracle: what the tracer says of the compiled rules is what the
//! API says, however the state was reached.

mod blocks;
mod cluster;
mod random;

use std::net::IpAddr;

use dataplane::desired::Desired;
use dataplane::layout::denials::{self, Denials, Origin};
use dataplane::layout::{self, policy};
use dataplane::object::{Family, Hook};
use dataplane::trace::{Fate, Packet, Trace, Tracer};
use ipnet::IpNet;
use proptest::prelude::*;
use proxy::model::{ObjectKey, Protocol};

use self::random::change;
use super::PolicyCompiler;
use crate::index::Index;
use crate::model::cluster_policy::Tier;
use crate::model::{
    self, ClusterNetworkPolicy, LabelSelector, Labels, Namespace, NetworkPolicy, Pod, PodPhase,
};
use crate::verdict::{self, Cluster, Flow, Judgement, Transport};

const NODE: &str = "n1";
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PORTS: [u16; 4] = [79, 80, 81, 443];
const OUTSIDE: [&str; 2] = ["192.0.2.7", "2001:db8::7"];

/// One change of the cluster.
#[derive(Clone, Debug)]
enum Change {
    Namespace(Namespace),
    NoNamespace(String),
    Pod(Box<Pod>),
    NoPod(ObjectKey),
    Policy(Box<NetworkPolicy>),
    NoPolicy(ObjectKey),
    Node(model::Node),
    NoNode(String),
    ClusterPolicy(Box<ClusterNetworkPolicy>),
    NoClusterPolicy(String),
}

/// What the owner does, without Services and a kernel.
struct Node {
    index: Index,
    compiler: PolicyCompiler,
    desired: Desired,
}

impl Node {
    fn new() -> Self {
        let mut desired = Desired::new();
        layout::install(&mut desired, 1);
        let bridge = layout::ports::interface_key("cbr0");
        let member = dataplane::object::Element::member();
        desired.insert(&layout::INET, &layout::ports::PORTS_OF_POD, bridge, member);
        let denials = Denials {
            log: true,
            reject: false,
        };
        denials::set(&mut desired, denials);
        let mut compiler = PolicyCompiler::new(NODE);
        compiler.set_denials(denials);
        Self {
            index: Index::new(),
            compiler,
            desired,
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Namespace(namespace) => {
                let name = namespace.name.clone();
                self.index.namespaces.insert(name.clone(), namespace);
                self.namespace_changed(&name);
            }
            Change::NoNamespace(name) => {
                self.index.namespaces.remove(&name);
                self.namespace_changed(&name);
            }
            Change::Pod(pod) => {
                let affected = self.index.set_pod(&pod.key.clone(), Some(*pod));
                self.compiler.pods_changed(affected);
            }
            Change::NoPod(key) => {
                let affected = self.index.set_pod(&key, None);
                self.compiler.pods_changed(affected);
            }
            Change::Policy(policy) => {
                self.compiler.policy_changed(policy.key.clone());
                self.index.policies.insert(policy.key.clone(), *policy);
            }
            Change::NoPolicy(key) => {
                self.index.policies.remove(&key);
                self.compiler.policy_changed(key);
            }
            Change::Node(node) => {
                self.index.nodes.insert(node.name.clone(), node);
                self.compiler.nodes_changed();
            }
            Change::NoNode(name) => {
                self.index.nodes.remove(&name);
                self.compiler.nodes_changed();
            }
            Change::ClusterPolicy(policy) => {
                self.compiler.cluster_policy_changed(policy.name.clone());
                self.index
                    .cluster_policies
                    .insert(policy.name.clone(), *policy);
            }
            Change::NoClusterPolicy(name) => {
                self.index.cluster_policies.remove(&name);
                self.compiler.cluster_policy_changed(name);
            }
        }
    }

    fn namespace_changed(&mut self, name: &str) {
        let pods: Vec<_> = self
            .index
            .pods_in(name)
            .map(|pod| pod.key.clone())
            .collect();
        self.compiler.pods_changed(pods);
    }

    fn sync(&mut self) -> bool {
        self.compiler.sync(&self.index, &mut self.desired)
    }

    fn passes(&self, flow: &Flow) -> bool {
        self.forward(flow).fate == Fate::Accepted
    }

    /// What the forward hook does with the first packet of the flow.
    fn forward(&self, flow: &Flow) -> Trace {
        let (protocol, port) = match flow.transport {
            Transport::Port(protocol, port) => (protocol.number(), port),
            Transport::Other(number) => (number, 0),
        };
        let mut packet = Packet::first(flow.source, flow.destination, protocol, port);
        let interface = |ip: IpAddr| if self.is_pod_link(ip) { "cbr0" } else { "eth0" }.to_owned();
        packet.iifname = interface(flow.source);
        packet.oifname = Some(interface(flow.destination));
        let tracer = Tracer::new(self.desired.ruleset(), &|_| 0);
        tracer.hook(Family::Inet, Hook::Forward, &mut packet)
    }

    /// Addresses of this node's pods are behind the bridge: 10.88.0.0/24, fd88::/64.
    fn is_pod_link(&self, ip: IpAddr) -> bool {
        ["10.88.0.0/24", "fd88::/64"]
            .iter()
            .any(|net| net.parse::<IpNet>().expect("a prefix").contains(&ip))
    }

    fn cluster(&self) -> Cluster<'_> {
        self.cluster_with(self.index.policies.values())
    }

    fn cluster_with<'a>(
        &'a self,
        policies: impl IntoIterator<Item = &'a NetworkPolicy>,
    ) -> Cluster<'a> {
        Cluster::new(
            self.index.namespaces.values(),
            self.index.pods.values().map(|pod| (pod, pod.ips.clone())),
            policies,
            [],
        )
        .with_cluster_policies(
            self.index.cluster_policies.values(),
            self.index.nodes.values(),
        )
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Pods 0 to 3 are here, 4 and 5 on another node.
fn is_here(number: usize) -> bool {
    number < 4
}

fn pod_ips(number: usize) -> Vec<IpAddr> {
    let (v4, v6) = if is_here(number) {
        ("10.88.0", "fd88::")
    } else {
        ("10.99.0", "fd99::")
    };
    let host = 2 + number;
    vec![
        address(&format!("{v4}.{host}")),
        address(&format!("{v6}{host}")),
    ]
}

fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for (family, outside) in OUTSIDE.into_iter().enumerate() {
        let mut addresses: Vec<_> = (0..6).map(|number| pod_ips(number)[family]).collect();
        addresses.push(address(outside));
        for source in &addresses {
            for destination in &addresses {
                let transports = PORTS
                    .iter()
                    .flat_map(|port| {
                        [Protocol::Tcp, Protocol::Udp].map(|p| Transport::Port(p, *port))
                    })
                    .chain([Transport::Port(Protocol::Sctp, 80), Transport::Other(1)]);
                flows.extend(transports.map(|transport| Flow {
                    source: *source,
                    destination: *destination,
                    transport,
                }));
            }
        }
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_mean_what_the_api_says(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..12), 1..6),
    ) {
        let mut node = Node::new();
        for batch in &batches {
            for change in batch {
                node.change(change.clone());
            }
            node.sync();
        }
        let cluster = node.cluster();
        for flow in flows() {
            let local = |ip: IpAddr| node.is_pod_link(ip);
            if !local(flow.source) && !local(flow.destination) {
                continue;
            }
            let verdict = cluster.judge(&flow);
            // Each node judges its own pods; an address of its range that nobody owns is
            // closed.
            let known = |ip: IpAddr| !local(ip) || cluster.owner(ip).is_some();
            let egress = !local(flow.source) || verdict.egress.is_allowed();
            let ingress = !local(flow.destination) || verdict.ingress.is_allowed();
            let wanted = known(flow.source) && known(flow.destination) && egress && ingress;
            prop_assert_eq!(node.passes(&flow), wanted, "{:?}: {:?}", flow, verdict);
        }

        // The way there does not matter: a fresh compile gives the same rules.
        let mut fresh = Node::new();
        for batch in batches {
            for change in batch {
                fresh.change(change);
            }
        }
        fresh.sync();
        prop_assert_eq!(fresh.desired.ruleset(), node.desired.ruleset());
    }

    /// netpol.md 91, 92: what is denied is logged by the chain that denies it, and what an
    /// audited policy would deny by its audit chain, and nothing else is.
    #[test]
    fn denials_and_what_audit_would_deny_are_logged(
        changes in prop::collection::vec(change(), 1..40),
    ) {
        let mut node = Node::new();
        changes.into_iter().for_each(|change| node.change(change));
        node.sync();
        let cluster = node.cluster();
        let all_enforced: Vec<_> = node.index.policies.values().cloned().map(|mut policy| {
            policy.audit = false;
            policy
        }).collect();
        let audited = node.cluster_with(&all_enforced);
        for flow in flows() {
            let local = |ip: IpAddr| node.is_pod_link(ip);
            let (now, then) = (cluster.judge(&flow), audited.judge(&flow));
            let sides = [
                (policy::Direction::Egress, flow.source, &now.egress, &then.egress),
                (policy::Direction::Ingress, flow.destination, &now.ingress, &then.ingress),
            ];
            let mut wanted = Vec::new();
            for (direction, ip, now, then) in sides {
                if !local(ip) {
                    continue;
                }
                let is_known = cluster.owner(ip).is_some()
                    && !matches!(now, Judgement::Unknown { .. });
                let side = match direction {
                    policy::Direction::Egress => verdict::Direction::Egress,
                    policy::Direction::Ingress => verdict::Direction::Ingress,
                };
                let refusing = cluster.would_refuse(side, &flow);
                let of_tier = |tier| {
                    let by = refusing.iter().filter(move |by| by.policy.tier == tier);
                    by.map(move |by| (direction, true, Some(format!("{tier} {}", by.policy.name))))
                };
                wanted.extend(of_tier(Tier::Admin));
                let is_denied = |side: &Judgement<'_>| matches!(side, Judgement::Denied { .. });
                // The Baseline tier comes after the audit, and may deny.
                if is_known && is_denied(then) && !is_denied(now) {
                    wanted.push((direction, true, Some("NetworkPolicies".to_owned())));
                }
                wanted.extend(of_tier(Tier::Baseline));
                if !is_known || !now.is_allowed() {
                    wanted.push((direction, is_known, None));
                    break;
                }
            }
            let groups = node.compiler.groups();
            let logged: Vec<_> = node.forward(&flow).logged.iter().map(|prefix| {
                let policies = groups.get(&**prefix).map(|group| group.policies.join(","));
                match Origin::parse(prefix).expect("a prefix of ours") {
                    Origin::Closed(direction) => (direction, false, None),
                    Origin::Group(direction, _) | Origin::Tier(direction, _) => {
                        assert!(policies.is_some_and(|policies| !policies.is_empty()), "{prefix}");
                        (direction, true, None)
                    }
                    Origin::Audit(direction, _) if prefix.starts_with("audit-tier-") => {
                        (direction, true, policies)
                    }
                    Origin::Audit(direction, _) => {
                        (direction, true, Some("NetworkPolicies".to_owned()))
                    }
                    Origin::Forged => panic!("forwarded already"),
                }
            }).collect();
            prop_assert_eq!(logged, wanted, "{:?}: {:?}, audited {:?}", flow, now, then);
        }
    }

    #[test]
    fn what_can_narrow_is_said(
        before in prop::collection::vec(change(), 1..20),
        after in prop::collection::vec(change(), 1..4),
    ) {
        let mut node = Node::new();
        before.into_iter().for_each(|change| node.change(change));
        node.sync();
        let allowed: Vec<_> = flows().into_iter().filter(|flow| node.passes(flow)).collect();
        after.into_iter().for_each(|change| node.change(change));
        let narrowed = node.sync();
        let cut = allowed.iter().find(|flow| !node.passes(flow));
        prop_assert!(narrowed || cut.is_none(), "not said to be narrower, but cut {:?}", cut);
    }
}

#[test]
fn pods_of_one_selection_share_a_group() {
    let mut node = Node::new();
    for number in 0..4 {
        let pod = Pod {
            key: ObjectKey::new("x", format!("p{number}")),
            uid: String::new(),
            labels: Labels::from([("app".into(), "a".into())]),
            node: Some(NODE.into()),
            host_network: false,
            ips: pod_ips(number),
            ports: Vec::new(),
            phase: PodPhase::Live,
            ready: true,
            terminating: false,
            created: 0,
            weight: None,
        };
        node.change(Change::Pod(Box::new(pod)));
    }
    node.change(Change::Policy(Box::new(NetworkPolicy {
        key: ObjectKey::new("x", "deny"),
        uid: String::new(),
        pod_selector: LabelSelector::everything(),
        ingress: Some(Vec::new()),
        egress: None,
        audit: false,
        problems: Vec::new(),
        notes: Vec::new(),
    })));
    node.sync();
    let summary = node.compiler.summary();
    assert_eq!(
        (summary.bound_addresses, summary.groups, summary.sets),
        (8, 1, 0)
    );
}
