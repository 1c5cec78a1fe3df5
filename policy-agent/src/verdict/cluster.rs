//! The borrowed view of the model that flows are judged against.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::matching::{Remote, rule_matches};
use super::{Direction, Flow, Judgement, Path, RuleRef, Verdict};
use crate::model::cluster_policy::Tier;
use crate::model::policy::Rule;
use crate::model::{ClusterNetworkPolicy, Namespace, NetworkPolicy, Node, Pod};

/// Everything a verdict depends on, borrowed from wherever the objects live.
#[derive(Debug, Default)]
pub struct Cluster<'a> {
    namespaces: BTreeMap<&'a str, &'a Namespace>,
    policies: BTreeMap<&'a str, Vec<&'a NetworkPolicy>>,
    /// In order of precedence.
    pub(super) cluster_policies: Vec<&'a ClusterNetworkPolicy>,
    /// Which nodes have the address.
    nodes: BTreeMap<IpAddr, Vec<&'a Node>>,
    owners: BTreeMap<IpAddr, &'a Pod>,
    node_addresses: BTreeSet<IpAddr>,
}

impl<'a> Cluster<'a> {
    /// The view of these objects. `pods` pairs every pod with the addresses that it
    /// claims; `node_addresses` are those of the node that judges.
    pub fn new<A>(
        namespaces: impl IntoIterator<Item = &'a Namespace>,
        pods: impl IntoIterator<Item = (&'a Pod, A)>,
        policies: impl IntoIterator<Item = &'a NetworkPolicy>,
        node_addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self
    where
        A: IntoIterator<Item = IpAddr>,
    {
        let mut view = Self {
            namespaces: namespaces
                .into_iter()
                .map(|n| (n.name.as_str(), n))
                .collect(),
            node_addresses: node_addresses
                .into_iter()
                .map(|ip| ip.to_canonical())
                .collect(),
            ..Self::default()
        };
        for policy in policies {
            view.policies
                .entry(&policy.key.namespace)
                .or_default()
                .push(policy);
        }
        for of_namespace in view.policies.values_mut() {
            of_namespace.sort_by(|a, b| a.key.cmp(&b.key));
        }
        for (pod, addresses) in pods {
            if pod.owns_addresses() {
                view.claim(pod, addresses);
            }
        }
        view
    }

    /// With these ClusterNetworkPolicies, and the nodes that their rules may name.
    pub fn with_cluster_policies(
        mut self,
        policies: impl IntoIterator<Item = &'a ClusterNetworkPolicy>,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) -> Self {
        self.cluster_policies = policies.into_iter().collect();
        self.cluster_policies.sort_by(|a, b| a.precedence(b));
        for node in nodes {
            for address in &node.addresses {
                let of_address = self.nodes.entry(address.to_canonical()).or_default();
                of_address.push(node);
            }
        }
        self
    }

    /// The pod that owns `address`.
    pub fn owner(&self, address: IpAddr) -> Option<&'a Pod> {
        self.owners.get(&address.to_canonical()).copied()
    }

    /// Judges a flow.
    pub fn judge(&self, flow: &Flow) -> Verdict<'a> {
        let flow = Flow {
            source: flow.source.to_canonical(),
            destination: flow.destination.to_canonical(),
            ..*flow
        };
        let (source, destination) = (self.owner(flow.source), self.owner(flow.destination));
        let path = self.path(&flow);
        let egress = source.filter(|_| path.judges_egress());
        let ingress = destination.filter(|_| path.judges_ingress());
        Verdict {
            path,
            egress: egress.map_or(Judgement::Exempt, |pod| {
                self.judge_side(Direction::Egress, pod, destination, &flow)
            }),
            ingress: ingress.map_or(Judgement::Exempt, |pod| {
                self.judge_side(Direction::Ingress, pod, source, &flow)
            }),
        }
    }

    /// The policies that isolate `pod` in that direction, by name, each with its rules.
    /// Those that are audited only isolate nobody.
    pub fn isolating(
        &self,
        pod: &Pod,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a NetworkPolicy, &'a [Rule])> {
        let of_namespace = self.policies.get(&*pod.key.namespace);
        of_namespace
            .into_iter()
            .flatten()
            .filter(|policy| !policy.audit && policy.pod_selector.matches(&pod.labels))
            .filter_map(move |policy| Some((*policy, rules(policy, direction)?)))
    }

    /// The Namespace of the pod, where it is known.
    pub(super) fn namespace(&self, pod: &Pod) -> Option<&'a Namespace> {
        self.namespaces.get(&*pod.key.namespace).copied()
    }

    fn claim(&mut self, pod: &'a Pod, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            let owner = self.owners.entry(address.to_canonical()).or_insert(pod);
            if owner.claim() < pod.claim() {
                *owner = pod;
            }
        }
    }

    /// A pod's own address wins over the node's: a pod address on the node itself
    /// would be a mistake, and the pod's policies hold then.
    fn path(&self, flow: &Flow) -> Path {
        let is_node = |address| self.node_addresses.contains(&address);
        match (self.owner(flow.source), self.owner(flow.destination)) {
            (Some(source), Some(destination)) if source.key == destination.key => Path::PodToItself,
            (Some(_), Some(_)) => Path::PodToPod,
            (Some(_), None) if is_node(flow.destination) => Path::PodToNode,
            (Some(_), None) => Path::PodToOutside,
            (None, Some(_)) if is_node(flow.source) => Path::NodeToPod,
            (None, Some(_)) => Path::OutsideToPod,
            (None, None) => Path::NoPod,
        }
    }

    /// Judges the side of `pod`; `peer` is the pod at the other end, if it is one.
    fn judge_side(
        &self,
        direction: Direction,
        pod: &'a Pod,
        peer: Option<&'a Pod>,
        flow: &Flow,
    ) -> Judgement<'a> {
        if !self.knows_tiers_of(pod) {
            return Judgement::Unknown { pod: &pod.key };
        }
        // Ports are the destination's: this pod's for ingress, the peer's for egress.
        let (address, ports_of) = match direction {
            Direction::Ingress => (flow.source, Some(pod)),
            Direction::Egress => (flow.destination, peer),
        };
        let remote = Remote {
            address,
            pod: peer,
            namespace: peer.and_then(|p| self.namespace(p)),
            nodes: self.nodes.get(&address).map_or(&[], Vec::as_slice),
        };
        let tier = |tier| {
            self.tier(tier, direction, pod, |rule| {
                rule_matches(rule, "", &remote, flow, ports_of)
            })
        };
        if let Some(decided) = tier(Tier::Admin) {
            return decided;
        }
        let isolating: Vec<_> = self.isolating(pod, direction).collect();
        if isolating.is_empty() {
            let decided = tier(Tier::Baseline);
            return decided.unwrap_or(Judgement::NotIsolated { pod: &pod.key });
        }
        if peer.is_some_and(|peer| peer.key == pod.key) {
            return Judgement::Exempt;
        }
        let by = isolating.iter().find_map(|(policy, rules)| {
            let allows = |rule| rule_matches(rule, &policy.key.namespace, &remote, flow, ports_of);
            rules.iter().position(allows).map(|rule| RuleRef {
                policy,
                direction,
                rule,
            })
        });
        let isolating = isolating.into_iter().map(|(policy, _)| policy).collect();
        match by {
            Some(by) => Judgement::Allowed {
                pod: &pod.key,
                isolating,
                by,
            },
            None => Judgement::Denied {
                pod: &pod.key,
                isolating,
            },
        }
    }
}

impl Path {
    fn judges_egress(self) -> bool {
        matches!(
            self,
            Self::PodToPod | Self::PodToNode | Self::PodToOutside | Self::PodToItself
        )
    }

    fn judges_ingress(self) -> bool {
        matches!(
            self,
            Self::PodToPod | Self::OutsideToPod | Self::PodToItself
        )
    }
}

fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}
