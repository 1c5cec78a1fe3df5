//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`): the tiers above and below
//! NetworkPolicy.
//!
//! A rule that cannot be understood fails closed, as the API wants it
//! (ClusterNetworkPolicyEgressPeer): Accept matches nothing, Deny and Pass deny
//! everything. The rule keeps its place, so that numbers of rules stay those of the
//! object.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::policy::{Peers, Ports, Rule};
use super::{LabelSelector, Namespace, Pod};

/// A ClusterNetworkPolicy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterNetworkPolicy {
    /// Name; the object is in no namespace.
    pub name: String,
    /// UID; empty in manifests that have none.
    pub uid: String,
    /// `spec.tier`.
    pub tier: Tier,
    /// `spec.priority`, 0 to 1000: the lowest is asked first.
    pub priority: u16,
    /// `spec.subject`.
    pub subject: PodSelection,
    /// `spec.ingress` in order; without rules the policy says nothing of ingress.
    pub ingress: Vec<ClusterRule>,
    /// `spec.egress` in order.
    pub egress: Vec<ClusterRule>,
    /// Annotation [`AUDIT`](super::policy::AUDIT): its rules decide nothing, and what they
    /// would deny is told.
    pub audit: bool,
    /// What of it could not be understood: field, value, what to do.
    pub problems: Vec<String>,
}

/// Before or after the NetworkPolicies, in the order in which they are asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Tier {
    /// Before them: what it accepts or denies is final.
    Admin,
    /// After them, for pods that no NetworkPolicy isolates in the direction.
    Baseline,
}

/// Pods by the labels of their namespace and their own. Pods on the host network are
/// never among them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PodSelection {
    /// `namespaceSelector`, or `namespaces` alone.
    pub namespaces: LabelSelector,
    /// `podSelector`; everything for `namespaces` alone.
    pub pods: LabelSelector,
}

/// One entry of `spec.ingress` or `spec.egress`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterRule {
    /// `name`, for people; may be empty.
    pub name: String,
    /// What becomes of what it matches.
    pub action: Action,
    /// Which flows it matches: any of the peers on any of the ports.
    pub matches: Rule,
}

/// `action` of a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Action {
    /// Allowed in this direction, whatever comes after.
    Accept,
    /// Denied.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

impl ClusterNetworkPolicy {
    /// What stands for a policy that cannot be read at all and was never read before: all
    /// pods are denied everything, as it is not known whom and what it meant to deny.
    pub fn unreadable(name: &str, reason: String) -> Self {
        let deny_all = vec![ClusterRule::deny_all(String::new())];
        Self {
            name: name.to_owned(),
            uid: String::new(),
            tier: Tier::Admin,
            priority: 0,
            subject: PodSelection::everything(),
            ingress: deny_all.clone(),
            egress: deny_all,
            audit: false,
            problems: vec![reason],
        }
    }

    /// The order in which policies are asked: by tier and priority. The API leaves the
    /// order of equals open; here it is that of their names, on every node alike.
    pub fn precedence(&self, other: &Self) -> Ordering {
        let key = |policy: &Self| (policy.tier, policy.priority);
        key(self)
            .cmp(&key(other))
            .then_with(|| self.name.cmp(&other.name))
    }
}

impl PodSelection {
    /// Every pod of a known namespace.
    pub fn everything() -> Self {
        Self {
            namespaces: LabelSelector::everything(),
            pods: LabelSelector::everything(),
        }
    }

    /// Whether the pod is selected; `None` where that hangs on its Namespace object, which is
    /// not known.
    pub fn contains(&self, pod: &Pod, namespace: Option<&Namespace>) -> Option<bool> {
        if !self.pods.matches(&pod.labels) {
            return Some(false);
        }
        match namespace {
            Some(namespace) => Some(self.namespaces.matches(&namespace.labels)),
            None => self.namespaces.is_everything().then_some(true),
        }
    }
}

impl ClusterRule {
    /// What stands for a Deny or Pass rule that cannot be understood.
    pub fn deny_all(name: String) -> Self {
        Self {
            name,
            action: Action::Deny,
            matches: Rule {
                peers: Peers::Any,
                ports: Ports::Any,
            },
        }
    }

    /// What stands for an Accept rule that cannot be understood.
    pub fn accept_nothing(name: String) -> Self {
        Self {
            name,
            action: Action::Accept,
            matches: Rule {
                peers: Peers::Of(Vec::new()),
                ports: Ports::Of(Vec::new()),
            },
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        })
    }
}
