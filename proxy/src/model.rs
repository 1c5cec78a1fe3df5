//! Services and endpoints as the proxy needs them: parsed, validated, free of
//! Kubernetes types.
//!
//! Field semantics are those of the `v1` Service and `discovery.k8s.io/v1`
//! EndpointSlice APIs after API-server defaulting; where a field is stored in a
//! narrower form its documentation says so.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A namespace and a name. Cheap to clone: an object is known by its key in many places.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Namespace; empty for cluster-scoped objects.
    #[serde(with = "shared_text")]
    pub namespace: Arc<str>,
    /// Name.
    #[serde(with = "shared_text")]
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Shared text as a string.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        text: &Arc<str>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Into::into)
    }
}

/// Transport protocols that a Service or a policy can name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// `spec.type`, without ExternalName: such a Service is none to the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reachable on its cluster IPs.
    #[default]
    ClusterIp,
    /// Reachable on a port of every node as well.
    NodePort,
    /// Reachable on load balancer addresses as well.
    LoadBalancer,
}

/// `externalTrafficPolicy`, `internalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// By which clients an endpoint is to be preferred: `trafficDistribution` (KEP-2433, KEP-3015).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TrafficDistribution {
    /// Absent: by nobody.
    #[default]
    None,
    /// `PreferSameZone`, and its older name `PreferClose`: by those in its zone.
    SameZone,
    /// `PreferSameNode`: by those on its node, then by those in its zone.
    SameNode,
    /// A value that is not known: by nobody. It is a wish, and no reason not to serve.
    Unknown,
}

impl TrafficDistribution {
    /// Whether it is absent.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// Where a Service port sends: `targetPort`. Used only where endpoints are
/// computed from the selector; EndpointSlices carry the number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TargetPort {
    /// The same number on every pod.
    Number(u16),
    /// The container port of that name, per pod.
    Name(String),
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; empty where the only port has none.
    pub name: String,
    /// Protocol, TCP by default.
    pub protocol: Protocol,
    /// Port on the Service's addresses.
    pub port: u16,
    /// Port on the node's addresses.
    pub node_port: Option<u16>,
    /// Port on the endpoint.
    pub target_port: TargetPort,
}

/// A `v1` Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID, the second criterion for the owner of a contested address; empty
    /// in manifests that have none.
    pub uid: String,
    /// `creationTimestamp` in seconds since the epoch, the first criterion for the
    /// owner of a contested address; 0 where there is none.
    pub created: i64,
    /// Type.
    pub kind: ServiceType,
    /// `clusterIPs`, at most one per family; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP or none.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`, verbatim.
    pub source_ranges: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty: endpoints are managed by somebody else.
    pub selector: BTreeMap<String, String>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `trafficDistribution`. Used only where endpoints are computed from the selector;
    /// EndpointSlices carry hints.
    #[serde(default, skip_serializing_if = "TrafficDistribution::is_none")]
    pub traffic_distribution: TrafficDistribution,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// Annotations, for algorithms by annotation.
    pub annotations: BTreeMap<String, String>,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// `addresses[0]`: the others are undefined by the API.
    pub address: IpAddr,
    /// `conditions.ready`, absent means true.
    pub ready: bool,
    /// `conditions.serving`, absent means the value of `ready`.
    pub serving: bool,
    /// `conditions.terminating`, absent means false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<String>,
    /// `zone`.
    pub zone: Option<String>,
    /// `hints.forZones[].name`.
    pub hint_zones: Vec<String>,
    /// `hints.forNodes[].name`.
    pub hint_nodes: Vec<String>,
    /// `targetRef.name` where that is a Pod: one of the slice's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// One entry of an EndpointSlice's `ports`; entries without a number are left out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlicePort {
    /// Name, equal to the Service port's.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: u16,
}

/// A `discovery.k8s.io/v1` EndpointSlice of address type IPv4 or IPv6.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: ObjectKey,
    /// Name of the Service, from the label `kubernetes.io/service-name`.
    pub service: String,
    /// Ports that every endpoint of the slice has.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, in milliseconds since
    /// the epoch: when the pod or the Service changed that the slice was written for.
    #[serde(default)]
    pub triggered: Option<i64>,
    /// Annotation [`weights::ANNOTATION`](crate::weights::ANNOTATION), verbatim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
}
