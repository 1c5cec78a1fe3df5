//! Random namespaces, pods and NetworkPolicies, few enough to meet.

use ipnet::IpNet;
use proptest::prelude::*;
use proxy::model::{ObjectKey, Protocol};

use super::{Change, NAMESPACES, NODE, PORTS, cluster, is_here, pod_ips};
use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};
use crate::model::selector::Requirement;
use crate::model::{ContainerPort, LabelSelector, Labels, Namespace, NetworkPolicy, Pod, PodPhase};

pub(super) fn labels() -> impl Strategy<Value = Labels> {
    let value = prop::option::of(prop::sample::select(vec!["a", "b", ""]));
    (value.clone(), value).prop_map(|(app, tier)| {
        let pairs = [("app", app), ("tier", tier)].into_iter();
        pairs
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect()
    })
}

pub(super) fn selector() -> impl Strategy<Value = LabelSelector> {
    let requirement = (
        prop::sample::select(vec!["app", "tier"]),
        prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
        prop::sample::subsequence(vec!["a", "b", ""], 1..=2),
    )
        .prop_map(|(key, operator, values)| {
            let values = if operator.ends_with("In") {
                values
            } else {
                Vec::new()
            };
            Requirement::parse(key, operator, values).expect("a valid requirement")
        });
    prop::collection::vec(requirement, 0..3).prop_map(LabelSelector::new)
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (prop::sample::select(NAMESPACES.to_vec()), labels()).prop_map(|(name, labels)| Namespace {
        name: name.into(),
        labels,
    })
}

fn pod() -> impl Strategy<Value = Pod> {
    let port = (
        prop::sample::select(vec!["web", "dns"]),
        prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]),
        prop::sample::select(PORTS.to_vec()),
    )
        .prop_map(|(name, protocol, port)| ContainerPort {
            name: name.into(),
            protocol,
            port,
        });
    (
        0usize..6,
        prop::sample::select(NAMESPACES.to_vec()),
        labels(),
        prop::collection::vec(port, 0..3),
        prop::bool::weighted(0.1),
        // Which numbered address it claims: mostly its own, sometimes another's.
        prop::option::weighted(0.15, 0usize..6),
        0i64..3,
    )
        .prop_map(
            |(number, namespace, labels, ports, finished, other, created)| Pod {
                key: ObjectKey::new(namespace, format!("p{number}")),
                uid: format!("{namespace}-{number}"),
                labels,
                node: Some(
                    if is_here(other.unwrap_or(number)) {
                        NODE
                    } else {
                        "n2"
                    }
                    .into(),
                ),
                host_network: false,
                ips: pod_ips(other.unwrap_or(number)),
                ports,
                phase: if finished {
                    PodPhase::Finished
                } else {
                    PodPhase::Live
                },
                ready: true,
                terminating: false,
                created,
                weight: None,
            },
        )
}

pub(super) fn peer() -> impl Strategy<Value = Peer> {
    let pods = (prop::option::of(selector()), selector())
        .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    let nets = vec![
        "0.0.0.0/0",
        "10.88.0.0/24",
        "10.88.0.0/30",
        "10.88.0.4/31",
        "10.0.0.0/8",
        "192.0.2.0/24",
        "::/0",
        "fd88::/64",
        "fd88::4/127",
        "2001:db8::/32",
    ];
    let net = prop::sample::select(nets).prop_map(|net| net.parse::<IpNet>().expect("a prefix"));
    let block = (net.clone(), prop::collection::vec(net, 0..3)).prop_map(|(cidr, except)| {
        let except = except
            .into_iter()
            .filter(|net| cidr.contains(net) && *net != cidr);
        Peer::IpBlock {
            cidr,
            except: except.collect(),
        }
    });
    prop_oneof![2 => pods, 1 => block]
}

pub(super) fn port_match() -> impl Strategy<Value = PortMatch> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    prop_oneof![
        protocol.clone().prop_map(PortMatch::All),
        (
            protocol.clone(),
            prop::sample::select(PORTS.to_vec()),
            0u16..3
        )
            .prop_map(|(protocol, port, more)| PortMatch::Range(
                protocol,
                port,
                port + more
            )),
        (protocol, prop::sample::select(vec!["web", "dns"]))
            .prop_map(|(protocol, name)| PortMatch::Named(protocol, name.into())),
    ]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        3 => prop::collection::vec(peer(), 0..3).prop_map(Peers::Of),
    ];
    let ports = prop_oneof![
        1 => Just(Ports::Any),
        2 => prop::collection::vec(port_match(), 0..3).prop_map(Ports::Of),
    ];
    let rule = (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports });
    prop::option::weighted(0.8, prop::collection::vec(rule, 0..3))
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    (
        prop::sample::select(NAMESPACES.to_vec()),
        0usize..3,
        selector(),
        rules(),
        rules(),
        prop::bool::weighted(0.3),
    )
        .prop_map(
            |(namespace, number, pod_selector, ingress, egress, audit)| NetworkPolicy {
                key: ObjectKey::new(namespace, format!("np{number}")),
                uid: String::new(),
                pod_selector,
                ingress,
                egress,
                audit,
                problems: Vec::new(),
                notes: Vec::new(),
            },
        )
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let namespace_name = prop::sample::select(NAMESPACES.to_vec());
    prop_oneof![
        3 => namespace().prop_map(Change::Namespace),
        1 => namespace_name.clone().prop_map(|name| Change::NoNamespace(name.into())),
        8 => pod().prop_map(|pod| Change::Pod(Box::new(pod))),
        2 => pod().prop_map(|pod| Change::NoPod(pod.key)),
        5 => policy().prop_map(|policy| Change::Policy(Box::new(policy))),
        1 => policy().prop_map(|policy| Change::NoPolicy(policy.key)),
        1 => cluster::node().prop_map(Change::Node),
        1 => cluster::node().prop_map(|node| Change::NoNode(node.name)),
        4 => cluster::cluster_policy().prop_map(|policy| Change::ClusterPolicy(Box::new(policy))),
        1 => cluster::cluster_policy().prop_map(|policy| Change::NoClusterPolicy(policy.name)),
    ]
}
