//! What sources tell the agent's owner: changes of objects, in one vocabulary
//! for the Kubernetes API and for manifests.

use std::fmt;

use proxy::model::{EndpointSlice, ObjectKey, Service};
use serde::{Deserialize, Serialize};

use crate::model::{ClusterNetworkPolicy, Namespace, NetworkPolicy, Node, Pod, ServiceCidr};

/// The kinds of objects that a source feeds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// Every kind, in the order in which a source may deliver them.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::ServiceCidr,
    ];

    /// Those that only the Service proxy needs.
    pub const OF_SERVICES: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::ServiceCidr];

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(
            self,
            Self::Namespace | Self::Node | Self::ClusterNetworkPolicy | Self::ServiceCidr
        )
    }

    /// `apiVersion` of its objects.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy | Self::ServiceCidr => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        }
    }
}

/// An object of any kind, parsed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Object {
    /// A namespace with its labels.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Pod),
    /// A Service.
    Service(Service),
    /// A slice of endpoints.
    EndpointSlice(EndpointSlice),
    /// A policy.
    NetworkPolicy(NetworkPolicy),
    /// A policy of the cluster.
    ClusterNetworkPolicy(ClusterNetworkPolicy),
    /// Ranges of cluster IPs.
    ServiceCidr(ServiceCidr),
}

/// A change of the desired state.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The object is new or has changed.
    Apply(Object),
    /// The object is gone.
    Delete(Kind, ObjectKey),
    /// These are all objects of that kind: whatever else was known is gone. Sent
    /// after the first list, also when it is empty, and after every relist that
    /// contains no invalid object (one that does is told as single changes, because
    /// the last good state of the invalid object has to stay). The first
    /// transaction waits until every kind has had one.
    Reset(Kind, Vec<Object>),
    /// The object exists but cannot be used; `reason` names the field, the value
    /// and what to do. Whatever was known of it before stays.
    Invalid {
        /// Kind of the object.
        kind: Kind,
        /// Its key.
        key: ObjectKey,
        /// What is wrong with it.
        reason: String,
    },
}

impl Event {
    /// The kind that it is about.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Apply(object) => object.kind(),
            Self::Delete(kind, _) | Self::Reset(kind, _) | Self::Invalid { kind, .. } => *kind,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::ServiceCidr => "ServiceCIDR",
        })
    }
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// What stands for an object of the kind that cannot be read at all and was never read
    /// before: a policy denies whatever it may have meant to deny. `None` for kinds that
    /// are simply not there then.
    pub fn unreadable(kind: Kind, key: &ObjectKey, reason: &str) -> Option<Self> {
        let reason = reason.to_owned();
        match kind {
            Kind::NetworkPolicy => {
                let policy = NetworkPolicy::unreadable(key.clone(), reason);
                Some(Self::NetworkPolicy(policy))
            }
            Kind::ClusterNetworkPolicy => {
                let policy = ClusterNetworkPolicy::unreadable(&key.name, reason);
                Some(Self::ClusterNetworkPolicy(policy))
            }
            Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::ServiceCidr => None,
        }
    }

    /// Its key; the namespace is empty for kinds without one.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace(namespace) => ObjectKey::new("", &*namespace.name),
            Self::Node(node) => ObjectKey::new("", &*node.name),
            Self::Pod(pod) => pod.key.clone(),
            Self::Service(service) => service.key.clone(),
            Self::EndpointSlice(slice) => slice.key.clone(),
            Self::NetworkPolicy(policy) => policy.key.clone(),
            Self::ClusterNetworkPolicy(policy) => ObjectKey::new("", &*policy.name),
            Self::ServiceCidr(cidr) => ObjectKey::new("", &*cidr.name),
        }
    }
}
