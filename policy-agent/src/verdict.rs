//! Whether policies allow a flow, and why: the reference that the compiled
//! ruleset is checked against.
//!
//! Written straight from the API's definition of isolation (`networking/v1` types.go,
//! NetworkPolicySpec) and sharing nothing with the compiler. A pod is isolated in a
//! direction if some policy of its namespace selects it and lists the direction; then
//! only what a rule of such a policy allows may pass. A connection needs the source's
//! egress and the destination's ingress. There is no order and no deny rule.
//!
//! What the API leaves open is decided here as in the kernel's rules:
//! - Policy sees the destination after DNAT and the source before masquerade.
//! - The node this runs on may always reach its pods (kubelet probes). A pod's way to
//!   the node is judged by the pod's egress rules.
//! - Pods on the host network are the node: selectors never match them, ipBlocks do.
//! - A pod always reaches itself past NetworkPolicies. What it sends to its own address never
//!   leaves it; what comes back by a Service is subject to ClusterNetworkPolicies.
//! - Protocols without ports, ICMP among them, are allowed by rules without ports only.
//!   (ICMP errors that belong to an allowed flow are conntrack's business, not a flow.)
//! - Finished pods own no address; of several live pods that claim an address the newest
//!   owns it.
//! - A pod whose Namespace object is unknown matches no namespaceSelector, and is closed
//!   where the subject of a ClusterNetworkPolicy hangs on it.
//!
//! ClusterNetworkPolicies (`policy.networking.k8s.io/v1alpha2`) are asked first (tier Admin)
//! and last (tier Baseline), rule by rule in the order of precedence; the first rule that
//! matches decides, for its side alone. NetworkPolicies are final for a pod that they
//! isolate, in that direction: a pod that is only isolated against egress is still subject to
//! the Baseline tier's ingress rules.

mod cluster;
mod explain;
mod matching;
mod tiers;

use std::fmt;
use std::net::IpAddr;

use proxy::model::{ObjectKey, Protocol};

use crate::model::cluster_policy::ClusterRule;
use crate::model::{ClusterNetworkPolicy, NetworkPolicy};

pub use cluster::Cluster;

/// What a packet carries above IP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// TCP, UDP or SCTP to that destination port.
    Port(Protocol, u16),
    /// Any other IP protocol, by number; ports in rules never match it.
    Other(u8),
}

/// The first packet of a connection, as policy sees it: after DNAT, before masquerade.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol and destination port.
    pub transport: Transport,
}

/// Between whom a flow runs. "Outside" is every address that is neither this node's nor
/// a pod's, other nodes among them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Path {
    /// Between two pods: egress and ingress are judged.
    PodToPod,
    /// From a pod to this node: egress is judged.
    PodToNode,
    /// From a pod to the outside: egress is judged.
    PodToOutside,
    /// From this node to a pod: exempt.
    NodeToPod,
    /// From the outside to a pod: ingress is judged.
    OutsideToPod,
    /// From a pod to itself: judged by ClusterNetworkPolicies alone.
    PodToItself,
    /// No pod takes part: not a matter of NetworkPolicy.
    NoPod,
}

/// A direction of policy, seen from the pod that is isolated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// What reaches the pod.
    Ingress,
    /// What the pod sends.
    Egress,
}

/// The answer for a flow.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict<'a> {
    /// Between whom the flow runs.
    pub path: Path,
    /// The source's side.
    pub egress: Judgement<'a>,
    /// The destination's side.
    pub ingress: Judgement<'a>,
}

/// The answer for one side of a flow.
#[derive(Clone, PartialEq, Debug)]
pub enum Judgement<'a> {
    /// This side has no pod that is subject to policy on this path.
    Exempt,
    /// No policy isolates the pod in this direction, and no tier decides.
    NotIsolated {
        /// The pod.
        pod: &'a ObjectKey,
    },
    /// The pod is isolated, and a rule allows the flow.
    Allowed {
        /// The pod.
        pod: &'a ObjectKey,
        /// Every policy that isolates it in this direction, by name.
        isolating: Vec<&'a NetworkPolicy>,
        /// The first rule that allows the flow, in the order of `isolating`.
        by: RuleRef<'a>,
    },
    /// The pod is isolated, and no rule allows the flow.
    Denied {
        /// The pod.
        pod: &'a ObjectKey,
        /// Every policy that isolates it in this direction, by name.
        isolating: Vec<&'a NetworkPolicy>,
    },
    /// A rule of the Admin or Baseline tier accepts the flow.
    Accepted {
        /// The pod.
        pod: &'a ObjectKey,
        /// The rule.
        by: ClusterRuleRef<'a>,
    },
    /// A rule of the Admin or Baseline tier denies the flow.
    Refused {
        /// The pod.
        pod: &'a ObjectKey,
        /// The rule.
        by: ClusterRuleRef<'a>,
    },
    /// Which ClusterNetworkPolicies select the pod hangs on its Namespace object, which is
    /// not known: denied.
    Unknown {
        /// The pod.
        pod: &'a ObjectKey,
    },
}

/// A rule of a policy, by position in the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RuleRef<'a> {
    /// The policy.
    pub policy: &'a NetworkPolicy,
    /// Which list of rules.
    pub direction: Direction,
    /// Index in `spec.ingress` or `spec.egress`.
    pub rule: usize,
}

/// A rule of a ClusterNetworkPolicy, by position in the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterRuleRef<'a> {
    /// The policy.
    pub policy: &'a ClusterNetworkPolicy,
    /// Which list of rules.
    pub direction: Direction,
    /// Index in `spec.ingress` or `spec.egress`.
    pub index: usize,
    /// The rule there.
    pub rule: &'a ClusterRule,
}

impl Verdict<'_> {
    /// Whether the flow may pass.
    pub fn is_allowed(&self) -> bool {
        self.egress.is_allowed() && self.ingress.is_allowed()
    }
}

impl Judgement<'_> {
    /// Whether this side lets the flow pass.
    pub fn is_allowed(&self) -> bool {
        match self {
            Self::Exempt
            | Self::NotIsolated { .. }
            | Self::Allowed { .. }
            | Self::Accepted { .. } => true,
            Self::Denied { .. } | Self::Refused { .. } | Self::Unknown { .. } => false,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

#[cfg(test)]
mod tests;
