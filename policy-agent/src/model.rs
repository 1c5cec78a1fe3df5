//! Cluster objects as the index holds them: parsed once at the edge, no
//! Kubernetes types past the constructors.

pub mod cluster_policy;
pub mod policy;
pub mod selector;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy::model::{ObjectKey, Protocol};
use serde::{Deserialize, Serialize};

pub use cluster_policy::ClusterNetworkPolicy;
pub use policy::NetworkPolicy;
pub use selector::LabelSelector;

/// Label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A `v1` Namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels, `kubernetes.io/metadata.name` always among them.
    pub labels: Labels,
}

/// A `v1` Node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels; the zone is `topology.kubernetes.io/zone`.
    pub labels: Labels,
    /// `status.addresses` of the types InternalIP and ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// Those of the type InternalIP alone, in their order.
    pub internal_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<ipnet::IpNet>,
    /// Keys of `spec.taints`.
    pub taints: Vec<String>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `metadata.creationTimestamp` in seconds since the epoch, 0 where there is none: of
    /// two nodes with one PodCIDR the older has it.
    pub created: i64,
}

/// A `networking.k8s.io/v1` ServiceCIDR.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// Name.
    pub name: String,
    /// `spec.cidrs`: prefixes that cluster IPs are allocated from.
    pub ranges: Vec<ipnet::IpNet>,
}

/// A container port, for named ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `ports[].name`; unnamed ports are left out.
    pub name: String,
    /// `ports[].protocol`, TCP by default.
    pub protocol: Protocol,
    /// `ports[].containerPort`.
    pub port: u16,
}

/// How far a pod's life has come, as far as the data plane cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PodPhase {
    /// Pending, Running or Unknown: the pod owns its addresses.
    Live,
    /// `status.phase` Succeeded or Failed: the addresses may belong to another
    /// pod already (kubernetes#92697).
    Finished,
}

/// A `v1` Pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID; empty in manifests that have none.
    pub uid: String,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostNetwork`: such a pod is the node to policies and is never
    /// selected.
    pub host_network: bool,
    /// `status.podIPs`, or `status.podIP` alone; empty while unknown.
    pub ips: Vec<IpAddr>,
    /// Named ports of all containers and of native sidecars (init containers with
    /// `restartPolicy: Always`).
    pub ports: Vec<ContainerPort>,
    /// Phase.
    pub phase: PodPhase,
    /// Condition `Ready`; a manifest without conditions counts as ready.
    pub ready: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `metadata.creationTimestamp` in seconds since the epoch, 0 where there is none:
    /// the newer of two pods that claim an address owns it.
    pub created: i64,
    /// Annotation [`proxy::weights::ANNOTATION`], verbatim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
}

impl Node {
    /// The zone that the node is in.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE).map(String::as_str)
    }

    /// Whether load balancers may choose the node for new connections (KEP-3836).
    pub fn is_eligible(&self) -> bool {
        !self.terminating && self.taints.iter().all(|key| key != TO_BE_DELETED)
    }
}

impl Pod {
    /// Whether the pod can own addresses of the pod network at all: pods on the host
    /// network are the node, finished pods have given theirs back.
    pub fn owns_addresses(&self) -> bool {
        !self.host_network && self.phase == PodPhase::Live
    }

    /// Rank among the pods that claim one address: the greatest owns it. The newest
    /// pod first, then UID and key, so that every run decides alike.
    pub fn claim(&self) -> (i64, &str, &ObjectKey) {
        (self.created, &self.uid, &self.key)
    }
}
