//! The frontends of a Service: by which addresses and ports it is reached.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use dataplane::object::IpFamily;
use serde::{Deserialize, Serialize};

use crate::model::{ObjectKey, Protocol, Service, ServicePort, TrafficPolicy};

/// `address . protocol . port`.
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
    /// Family of the address.
    pub const fn family(&self) -> IpFamily {
        IpFamily::of(self.address)
    }
}

impl fmt::Display for FrontendId {
    /// `10.96.0.1:80/TCP`, `[fd96::1]:80/TCP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = std::net::SocketAddr::new(self.address, self.port);
        write!(f, "{socket}/{}", self.protocol)
    }
}

/// By which of a Service's addresses a frontend is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum FrontendKind {
    /// One of `clusterIPs`.
    ClusterIp,
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
    /// Which endpoints.
    pub(crate) policy: TrafficPolicy,
}

impl Frontend {
    /// Frontends of one group have the same candidates for endpoints.
    fn group(&self) -> (usize, IpFamily) {
        (self.port, self.id.family())
    }
}

/// The frontends of a Service, and what of it makes none.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    /// Each key once, in the order of the Service's ports and addresses.
    pub(crate) frontends: Vec<Frontend>,
    /// Keys that occur again.
    pub(crate) repeated: Vec<FrontendId>,
    /// Addresses that no Service can have.
    pub(crate) impossible: Vec<IpAddr>,
}

impl Plan {
    /// The frontends by port and family.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[Frontend]> {
        self.frontends.chunk_by(|a, b| a.group() == b.group())
    }
}

/// The frontends that the Service is to have.
pub(crate) fn plan(service: &Service) -> Plan {
    let mut plan = Plan::default();
    let (possible, impossible): (Vec<_>, Vec<_>) = service
        .cluster_ips
        .iter()
        .copied()
        .partition(|address| is_possible(*address));
    plan.impossible = impossible;
    let mut seen = BTreeSet::new();
    for (index, port) in service.ports.iter().enumerate() {
        for address in &possible {
            let id = FrontendId {
                address: *address,
                protocol: port.protocol,
                port: port.port,
            };
            if !seen.insert(id) {
                plan.repeated.push(id);
                continue;
            }
            plan.frontends.push(Frontend {
                id,
                port: index,
                kind: FrontendKind::ClusterIp,
                policy: service.internal_policy,
            });
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
