//! NetworkPolicy (`networking.k8s.io/v1`) with defaults applied and selectors
//! parsed.
//!
//! A policy that is wrong in part stays a policy: what cannot be understood
//! matches nothing and is listed in [`NetworkPolicy::problems`], so that its pods stay
//! isolated (deny when unknown).

use ipnet::IpNet;
use proxy::model::{ObjectKey, Protocol};
use serde::{Deserialize, Serialize};

use super::LabelSelector;

/// A NetworkPolicy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID; empty in manifests that have none.
    pub uid: String,
    /// `spec.podSelector`. Where it cannot be parsed: everything, so that no pod it
    /// may have meant stays open.
    pub pod_selector: LabelSelector,
    /// Rules of the ingress direction; `None` where `policyTypes` does not list it.
    pub ingress: Option<Vec<Rule>>,
    /// Rules of the egress direction; `None` where `policyTypes` does not list it.
    pub egress: Option<Vec<Rule>>,
    /// Annotation [`AUDIT`]: what the policy would deny is told and not denied, and
    /// what it allows is not allowed by it. To other policies it is as if it were not there.
    pub audit: bool,
    /// What of it could not be understood: field, value, what to do.
    pub problems: Vec<String>,
    /// What was understood and is hardly meant so: prefixes with host bits.
    pub notes: Vec<String>,
}

/// Annotation of a policy that is to be tried out: `"true"` or `"false"`.
pub const AUDIT: &str = "trammel.io/audit";

/// One entry of `spec.ingress` or `spec.egress`: any of the peers on any of the ports.
/// A rule of a ClusterNetworkPolicy matches by the same parts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// `from` or `to` of a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Peers {
    /// Absent or empty: everybody.
    Any,
    /// One of these; peers that cannot be parsed are left out, so an empty list
    /// matches nobody.
    Of(Vec<Peer>),
}

/// One entry of `from` or `to`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Peer {
    /// Pods: `podSelector` and `namespaceSelector`.
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// Absent in the API means every pod, hence the empty selector.
        pods: LabelSelector,
    },
    /// `ipBlock`. The prefixes are canonical (host bits zero).
    IpBlock {
        /// `cidr`.
        cidr: IpNet,
        /// `except`, inside `cidr`; entries of the other family or outside are left out. A
        /// peer with an entry that cannot be parsed is left out as a whole.
        except: Vec<IpNet>,
    },
    /// The addresses of nodes with these labels (ClusterNetworkPolicy `nodes`, egress).
    Nodes(LabelSelector),
}

/// `ports` of a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ports {
    /// Absent or empty: every port of every protocol, and protocols without ports.
    Any,
    /// One of these; an empty list matches nothing.
    Of(Vec<PortMatch>),
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum PortMatch {
    /// Every port of the protocol.
    All(Protocol),
    /// `port` to `endPort`, inclusive; both equal where there is no `endPort`.
    Range(Protocol, u16, u16),
    /// A port name, resolved on the destination pod, by name and protocol.
    Named(Protocol, String),
}

impl NetworkPolicy {
    /// What stands for a policy that cannot be read at all and was never read before:
    /// every pod of its namespace is isolated in both directions, and nothing is
    /// allowed. The API has no way to say which pods it meant.
    pub fn unreadable(key: ObjectKey, reason: String) -> Self {
        Self {
            key,
            uid: String::new(),
            pod_selector: LabelSelector::everything(),
            ingress: Some(Vec::new()),
            egress: Some(Vec::new()),
            audit: false,
            problems: vec![reason],
            notes: Vec::new(),
        }
    }
}
