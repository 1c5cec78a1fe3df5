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
    /// Addresses of pods on which nothing is enforced.
    unguarded: BTreeSet<IpAddr>,
}

/// One side of a flow.
pub(super) struct Side<'a, 'c> {
    direction: Direction,
    pub(super) pod: &'a Pod,
    remote: Remote<'c>,
    /// Addresses canonical.
    flow: Flow,
    /// The destination, where it is a pod.
    ports_of: Option<&'a Pod>,
}

impl Side<'_, '_> {
    /// Whether a rule of a policy in `namespace` matches.
    pub(super) fn matches(&self, rule: &Rule, namespace: &str) -> bool {
        rule_matches(rule, namespace, &self.remote, &self.flow, self.ports_of)
    }
}

fn canonical(flow: &Flow) -> Flow {
    Flow {
        source: flow.source.to_canonical(),
        destination: flow.destination.to_canonical(),
        ..*flow
    }
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

    /// With pods at these addresses that no policy is enforced on, as they are reached past
    /// this node's rules. To others they are what they are.
    pub fn without_policies_for(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses = addresses.into_iter().map(|ip| ip.to_canonical());
        self.unguarded.extend(addresses);
        self
    }

    /// The pod that owns `address`.
    pub fn owner(&self, address: IpAddr) -> Option<&'a Pod> {
        self.owners.get(&address.to_canonical()).copied()
    }

    /// Judges a flow.
    pub fn judge(&self, flow: &Flow) -> Verdict<'a> {
        let judge = |direction| {
            let side = self.side(direction, flow);
            side.map_or(Judgement::Exempt, |side| self.judge_side(&side))
        };
        Verdict {
            path: self.path(&canonical(flow)),
            egress: judge(Direction::Egress),
            ingress: judge(Direction::Ingress),
        }
    }

    /// The pod that is judged in that direction with what it is judged by; `None` where
    /// there is none.
    pub(super) fn side(&self, direction: Direction, flow: &Flow) -> Option<Side<'a, '_>> {
        let flow = canonical(flow);
        let path = self.path(&flow);
        let (source, destination) = (self.owner(flow.source), self.owner(flow.destination));
        // Ports are the destination's: this pod's for ingress, the peer's for egress.
        let (is_judged, pod, peer, [own, address]) = match direction {
            Direction::Egress => (
                path.judges_egress(),
                source,
                destination,
                [flow.source, flow.destination],
            ),
            Direction::Ingress => (
                path.judges_ingress(),
                destination,
                source,
                [flow.destination, flow.source],
            ),
        };
        let is_judged = is_judged && !self.unguarded.contains(&own);
        Some(Side {
            direction,
            pod: pod.filter(|_| is_judged)?,
            remote: Remote {
                address,
                pod: peer,
                namespace: peer.and_then(|peer| self.namespace(peer)),
                nodes: self.nodes.get(&address).map_or(&[], Vec::as_slice),
            },
            flow,
            ports_of: destination,
        })
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

    fn judge_side(&self, side: &Side<'a, '_>) -> Judgement<'a> {
        let (direction, pod) = (side.direction, side.pod);
        if !self.knows_tiers_of(pod) {
            return Judgement::Unknown { pod: &pod.key };
        }
        let tier = |tier| self.tier(tier, direction, pod, |rule| side.matches(rule, ""));
        if let Some(decided) = tier(Tier::Admin) {
            return decided;
        }
        let isolating: Vec<_> = self.isolating(pod, direction).collect();
        if isolating.is_empty() {
            let decided = tier(Tier::Baseline);
            return decided.unwrap_or(Judgement::NotIsolated { pod: &pod.key });
        }
        if side.remote.pod.is_some_and(|peer| peer.key == pod.key) {
            return Judgement::Exempt;
        }
        let by = isolating.iter().find_map(|(policy, rules)| {
            let allows = |rule| side.matches(rule, &policy.key.namespace);
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
