//! Random ClusterNetworkPolicies and nodes.

use proptest::prelude::*;

use super::address;
use super::random::{labels, peer, port_match, selector};
use crate::model::cluster_policy::{Action, ClusterNetworkPolicy, ClusterRule, PodSelection, Tier};
use crate::model::policy::{Peer, Peers, Ports, Rule};
use crate::model::{LabelSelector, Node};

/// Two nodes; they may share an address.
pub(super) fn node() -> impl Strategy<Value = Node> {
    let addresses = vec!["192.0.2.7", "192.0.2.8", "2001:db8::7", "10.99.0.6"];
    let addresses = prop::sample::subsequence(addresses, 0..=3);
    (1u8..3, labels(), addresses).prop_map(|(number, labels, addresses)| Node {
        name: format!("n{number}"),
        labels,
        addresses: addresses.into_iter().map(address).collect(),
        internal_addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        taints: Vec::new(),
        terminating: false,
        created: 0,
    })
}

fn selection() -> impl Strategy<Value = PodSelection> {
    let everything = Just(LabelSelector::everything());
    let namespaces = prop_oneof![1 => everything, 1 => selector()];
    (namespaces, selector()).prop_map(|(namespaces, pods)| PodSelection { namespaces, pods })
}

fn cluster_peer(with_nodes: bool) -> BoxedStrategy<Peer> {
    // A peer of the NetworkPolicy API says more: its own namespace, excepts.
    let peer = peer().prop_map(|peer| match peer {
        Peer::Pods { namespaces, pods } => Peer::Pods {
            namespaces: Some(namespaces.unwrap_or_default()),
            pods,
        },
        Peer::IpBlock { cidr, .. } => Peer::IpBlock {
            cidr,
            except: Vec::new(),
        },
        Peer::Nodes(_) => unreachable!("the strategy makes none"),
    });
    if with_nodes {
        prop_oneof![3 => peer, 1 => selector().prop_map(Peer::Nodes)].boxed()
    } else {
        peer.boxed()
    }
}

fn cluster_rules(with_nodes: bool) -> impl Strategy<Value = Vec<ClusterRule>> {
    let action = prop::sample::select(vec![Action::Accept, Action::Deny, Action::Pass]);
    let ports = prop_oneof![
        1 => Just(Ports::Any),
        2 => prop::collection::vec(port_match(), 1..3).prop_map(Ports::Of),
    ];
    let peers = prop::collection::vec(cluster_peer(with_nodes), 1..3);
    let rule = (action, peers, ports).prop_map(|(action, peers, ports)| {
        let peers = Peers::Of(peers);
        ClusterRule {
            name: String::new(),
            action,
            matches: Rule { peers, ports },
        }
    });
    let rule = prop_oneof![9 => rule, 1 => Just(ClusterRule::deny_all(String::new()))];
    prop::collection::vec(rule, 0..3)
}

pub(super) fn cluster_policy() -> impl Strategy<Value = ClusterNetworkPolicy> {
    (
        0usize..4,
        prop::sample::select(vec![Tier::Admin, Tier::Baseline]),
        0u16..3,
        selection(),
        cluster_rules(false),
        cluster_rules(true),
        prop::bool::weighted(0.25),
    )
        .prop_map(
            |(number, tier, priority, subject, ingress, egress, audit)| {
                let name = format!("cnp{number}");
                ClusterNetworkPolicy {
                    name,
                    uid: String::new(),
                    tier,
                    priority,
                    subject,
                    ingress,
                    egress,
                    audit,
                    problems: Vec::new(),
                }
            },
        )
}
