//! The frontends of a Service: by which addresses and ports it is reached.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use dataplane::object::IpFamily;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::ProxyConfig;
use crate::model::{ObjectKey, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};

/// `address . protocol . port`; with the unspecified address, the port of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FrontendId {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl FrontendId {
    /// The frontend of an IP protocol; `None` for one that no Service can have.
    pub(crate) fn of(protocol: u8, at: SocketAddr) -> Option<Self> {
        let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        Some(Self {
            address: at.ip(),
            protocol: known.into_iter().find(|known| known.number() == protocol)?,
            port: at.port(),
        })
    }

    /// Family of the address.
    pub const fn family(&self) -> IpFamily {
        IpFamily::of(self.address)
    }
}

impl fmt::Display for FrontendId {
    /// `10.96.0.1:80/TCP`, `[fd96::1]:80/TCP`, `0.0.0.0:30080/TCP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = SocketAddr::new(self.address, self.port);
        write!(f, "{socket}/{}", self.protocol)
    }
}

/// By which of a Service's addresses a frontend is reached.
///
/// In the order in which Services contend for a frontend: cluster IPs are allocated, load
/// balancer addresses are assigned by a controller, and external IPs anybody can claim who
/// may write a Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum FrontendKind {
    /// One of `clusterIPs`.
    ClusterIp,
    /// An address of `status.loadBalancer.ingress`.
    LoadBalancer,
    /// One of `externalIPs`.
    ExternalIp,
    /// `nodePort` on the node's addresses: the address is the unspecified one.
    NodePort,
}

impl FrontendKind {
    /// Whether it is for clients outside the cluster.
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }

    /// The field of the Service that names the address.
    pub(crate) const fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "clusterIP",
            Self::LoadBalancer => "load balancer address",
            Self::ExternalIp => "externalIP",
            Self::NodePort => "nodePort",
        }
    }
}

/// A frontend of a Service, with what is to be behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frontend {
    /// Key in the maps.
    pub(crate) id: FrontendId,
    /// Index into the Service's ports.
    pub(crate) port: usize,
    /// Way.
    pub(crate) kind: FrontendKind,
    /// Which endpoints, for sources outside the cluster.
    pub(crate) policy: TrafficPolicy,
}

impl Frontend {
    /// Frontends of one group have the same candidates for endpoints.
    fn group(&self) -> (usize, IpFamily) {
        (self.port, self.id.family())
    }

    /// Whether sources of the cluster reach other endpoints than those outside:
    /// `externalTrafficPolicy: Local` keeps the source address of what comes from outside,
    /// and must not keep the cluster from its own Services.
    pub(crate) fn has_short_cut(&self) -> bool {
        self.kind.is_external() && self.policy == TrafficPolicy::Local
    }
}

/// The frontends of a Service, and what of it makes none.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    /// Each key once, in the order of the Service's ports and families.
    pub(crate) frontends: Vec<Frontend>,
    /// Keys that occur again.
    pub(crate) repeated: Vec<FrontendId>,
    /// Addresses that are not served.
    pub(crate) refused: Vec<Refused>,
}

/// An address that is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) address: IpAddr,
    pub(crate) kind: FrontendKind,
    pub(crate) why: Why,
}

/// Why an address is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// No Service can have it.
    Impossible,
    /// The Service has no cluster IP of its family, hence no endpoints of it.
    OtherFamily,
    /// The settings do not allow it.
    NotAllowed,
    /// It is for cluster IPs, which are allocated.
    ServiceRange,
}

impl Plan {
    /// The frontends by port and family.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[Frontend]> {
        self.frontends.chunk_by(|a, b| a.group() == b.group())
    }
}

/// Which addresses may be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission<'a> {
    pub(crate) config: &'a ProxyConfig,
    /// Ranges of cluster IPs.
    pub(crate) service_cidrs: &'a [IpNet],
}

impl Admission<'_> {
    fn check(self, address: IpAddr, kind: FrontendKind, families: &[IpFamily]) -> Result<(), Why> {
        let allowed = match kind {
            FrontendKind::LoadBalancer => &self.config.load_balancer_ip_ranges,
            FrontendKind::ExternalIp => &self.config.external_ip_ranges,
            FrontendKind::ClusterIp | FrontendKind::NodePort => &None,
        };
        let is_in = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
        if !is_possible(address) {
            Err(Why::Impossible)
        } else if !families.contains(&IpFamily::of(address)) {
            Err(Why::OtherFamily)
        } else if allowed.as_deref().is_some_and(|ranges| !is_in(ranges)) {
            Err(Why::NotAllowed)
        } else if kind == FrontendKind::ExternalIp && is_in(self.service_cidrs) {
            Err(Why::ServiceRange)
        } else {
            Ok(())
        }
    }
}

/// The frontends that the Service is to have.
pub(crate) fn plan(service: &Service, admission: Admission<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut families: Vec<IpFamily> = Vec::new();
    for address in &service.cluster_ips {
        let family = IpFamily::of(*address);
        if !families.contains(&family) {
            families.push(family);
        }
    }
    // A load balancer address comes before an equal external IP: it has source ranges.
    let given = [
        (FrontendKind::ClusterIp, &service.cluster_ips),
        (FrontendKind::LoadBalancer, &service.load_balancer_ips),
        (FrontendKind::ExternalIp, &service.external_ips),
    ];
    let mut addresses = Vec::new();
    for (kind, address) in given
        .into_iter()
        .flat_map(|(kind, ips)| ips.iter().map(move |ip| (kind, *ip)))
    {
        match admission.check(address, kind, &families) {
            Ok(()) => addresses.push((kind, address)),
            Err(why) => plan.refused.push(Refused { address, kind, why }),
        }
    }
    let mut seen = BTreeMap::new();
    for (index, port) in service.ports.iter().enumerate() {
        for family in &families {
            let of_family = addresses
                .iter()
                .filter(|(_, ip)| IpFamily::of(*ip) == *family);
            let by_address = of_family.map(|(kind, ip)| (*kind, *ip, port.port));
            let node_port = port
                .node_port
                .filter(|_| service.kind != ServiceType::ClusterIp);
            let by_node =
                node_port.map(|number| (FrontendKind::NodePort, family.unspecified(), number));
            for (kind, address, number) in by_address.chain(by_node) {
                let id = FrontendId {
                    address,
                    protocol: port.protocol,
                    port: number,
                };
                match seen.insert(id, index) {
                    None => {}
                    // The same address in two fields.
                    Some(other) if other == index => continue,
                    Some(_) => {
                        plan.repeated.push(id);
                        continue;
                    }
                }
                plan.frontends.push(Frontend {
                    id,
                    port: index,
                    kind,
                    policy: if kind.is_external() {
                        service.external_policy
                    } else {
                        service.internal_policy
                    },
                });
            }
        }
    }
    plan
}

/// What `nft list` shows beside a frontend: the *service port name*,
/// `namespace/name:port` or `namespace/name` where the port has no name.
pub(crate) fn comment(key: &ObjectKey, port: &ServicePort) -> String {
    if port.name.is_empty() {
        key.to_string()
    } else {
        format!("{key}:{}", port.name)
    }
}

/// Whether packets can be sent to the address through this node. The API server
/// refuses the others; manifests come without one.
fn is_possible(address: IpAddr) -> bool {
    let is_mapped = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !(is_mapped || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// Whether an endpoint can have the address: of those that a frontend can have, the
/// ones that mean the same on every node (`ValidateEndpointIP` of the API server).
pub(crate) fn is_possible_endpoint(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_possible(address) && !is_link_local
}
