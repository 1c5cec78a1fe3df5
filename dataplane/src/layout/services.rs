//! Services: frontends and endpoints.
//!
//! A *frontend* is `address . protocol . port`, or for a node port `protocol . port` on any
//! of the node's addresses. Maps lead from it to a balancer, and from its *slots* to
//! endpoints ([`balancer`]). What is the same on every node is in [`chains`]:
//!
//! ```text
//! prerouting, output -110  restricted    loadBalancerSourceRanges
//! prerouting, output -100  cluster-services   what only sources of the cluster reach
//!                          services      all others
//! forward, input, output 0 unserved      frontends without endpoints: refused or dropped
//! forward, output        0 cluster-ips   ports and addresses that no Service has
//! postrouting           90 learn         where a client of a Service with affinity went
//! postrouting          100 masquerade    what must come back through this node
//! ```

mod affinity;
mod balancer;
mod chains;
mod pod_sources;
mod source_ranges;

pub(super) use chains::{CLUSTER_IPS_CHAIN, UNSERVED_CHAIN, install};

pub use affinity::{AffinityGroup, AffinityKey, is_learn_chain, learn_chain, want_learn_chain};
pub use balancer::{Algorithm, Balancer, Lane, Sources};
pub use chains::{Masquerade, refused};
pub use pod_sources::{PodSources, set_pod_sources};
pub use source_ranges::{SourceRanges, is_source_ranges};

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::datatype::{Bytes, DataType, Type};
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::{INET, PerFamily, per_family};
use crate::object::{Element, IpFamily, Key, Ruleset, Value};

/// `address . protocol . port` of a Service with endpoints to its balancer.
pub static FRONTENDS: PerFamily = per_family!("frontends");
/// `protocol . port` of a node port to its balancer.
pub static NODE_FRONTENDS: PerFamily = per_family!("node-frontends");
/// Like [`FRONTENDS`], asked first for sources of the cluster.
pub static CLUSTER_FRONTENDS: PerFamily = per_family!("cluster-frontends");
/// Like [`NODE_FRONTENDS`], asked first for sources of the cluster.
pub static CLUSTER_NODE_FRONTENDS: PerFamily = per_family!("cluster-node-frontends");

/// `address . protocol . port . slot` to the endpoint's `address . port`.
pub static ENDPOINTS: PerFamily = per_family!("endpoints");
/// `protocol . port . slot` to the endpoint's `address . port`.
pub static NODE_ENDPOINTS: PerFamily = per_family!("node-endpoints");
/// The slots of [`CLUSTER_FRONTENDS`].
pub static CLUSTER_ENDPOINTS: PerFamily = per_family!("cluster-endpoints");
/// The slots of [`CLUSTER_NODE_FRONTENDS`].
pub static CLUSTER_NODE_ENDPOINTS: PerFamily = per_family!("cluster-node-endpoints");

/// `address . protocol . port` of a Service without usable endpoints to what is done
/// about it: [`refused`] or drop.
pub static UNSERVED: PerFamily = per_family!("unserved");
/// The same for `protocol . port` of a node port.
pub static NODE_UNSERVED: PerFamily = per_family!("node-unserved");

/// `address . protocol . port` from outside the cluster to what is done about the source:
/// [`Masquerade::verdict`].
pub static EXTERNAL: PerFamily = per_family!("external");
/// The same for `protocol . port` of a node port.
pub static NODE_EXTERNAL: PerFamily = per_family!("node-external");

/// `address . protocol . port` with session affinity to the chain that learns.
pub static STICKY: PerFamily = per_family!("sticky");
/// The same for `protocol . port` of a node port.
pub static NODE_STICKY: PerFamily = per_family!("node-sticky");
/// `address . protocol . port` with session affinity to its [`AffinityGroup`].
pub static AFFINITY_GROUPS: PerFamily = per_family!("affinity-groups");
/// The same for `protocol . port` of a node port.
pub static NODE_AFFINITY_GROUPS: PerFamily = per_family!("node-affinity-groups");
/// `client . group` to the endpoint where the client went. Written by the rules.
pub static AFFINITY: PerFamily = per_family!("affinity");

/// `address . protocol . port` with `loadBalancerSourceRanges` to their chain.
pub static RESTRICTED: PerFamily = per_family!("restricted");

/// The cluster IPs of all Services.
pub static CLUSTER_IPS: PerFamily = per_family!("cluster-ips");
/// Ranges of cluster IPs.
pub static SERVICE_CIDRS: PerFamily = per_family!("service-cidrs");
/// Ranges of the addresses of pods, of all nodes.
pub static CLUSTER_CIDRS: PerFamily = per_family!("cluster-cidrs");
/// The node's addresses on which node ports are served.
pub static NODE_ADDRESSES: PerFamily = per_family!("node-addresses");
/// `address . address` of this node's pods, each with itself: a pod that reaches itself
/// through a Service must see another source address.
pub static HAIRPIN: PerFamily = per_family!("hairpin");

/// Wants the chains of `observed` that are kept once they are made: packets and conntrack
/// need none of them, but to remove one costs older kernels a second batch.
pub fn keep_chains(desired: &mut Desired, observed: &Ruleset) {
    let table = observed.tables.get(&*INET).into_iter();
    for name in table.flat_map(|table| table.chains.keys()) {
        if let Some(balancer) = Balancer::of_chain(name) {
            balancer.want(desired);
        } else if let Some((entry, seconds)) = affinity::parse_learn_chain(name) {
            want_learn_chain(desired, entry, seconds);
        }
    }
}

/// How a frontend is found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entry {
    /// By `address . protocol . port`.
    Address,
    /// By `protocol . port` on the node's addresses.
    NodePort,
}

impl Entry {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Address, Self::NodePort];

    /// The entry of a frontend: the unspecified address stands for all of the node's.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_unspecified() {
            Self::NodePort
        } else {
            Self::Address
        }
    }

    /// One of two maps.
    fn pick(
        self,
        address: &'static PerFamily,
        node_port: &'static PerFamily,
    ) -> &'static PerFamily {
        match self {
            Self::Address => address,
            Self::NodePort => node_port,
        }
    }

    /// [`UNSERVED`] or its like.
    pub fn unserved(self) -> &'static PerFamily {
        self.pick(&UNSERVED, &NODE_UNSERVED)
    }

    /// [`EXTERNAL`] or its like.
    pub fn external(self) -> &'static PerFamily {
        self.pick(&EXTERNAL, &NODE_EXTERNAL)
    }

    /// [`STICKY`] or its like.
    pub fn sticky(self) -> &'static PerFamily {
        self.pick(&STICKY, &NODE_STICKY)
    }

    /// [`AFFINITY_GROUPS`] or its like.
    pub fn affinity_groups(self) -> &'static PerFamily {
        self.pick(&AFFINITY_GROUPS, &NODE_AFFINITY_GROUPS)
    }

    fn frontend_type(self, family: IpFamily) -> Type {
        use DataType::{InetProto, InetService};
        match self {
            Self::Address => Type::of(&[family.addr_type(), InetProto, InetService]),
            Self::NodePort => Type::of(&[InetProto, InetService]),
        }
    }

    fn slot_type(self, family: IpFamily) -> Type {
        use DataType::{InetProto, InetService, Mark};
        match self {
            Self::Address => Type::of(&[family.addr_type(), InetProto, InetService, Mark]),
            Self::NodePort => Type::of(&[InetProto, InetService, Mark]),
        }
    }

    /// The frontend that a packet is sent to.
    fn destination(self, family: IpFamily) -> Vec<Field> {
        match self {
            Self::Address => vec![family.daddr(), Field::L4Proto, Field::Dport],
            Self::NodePort => vec![Field::L4Proto, Field::Dport],
        }
    }

    /// The frontend that a flow's first packet was sent to.
    fn original_destination(self, family: IpFamily) -> Vec<Field> {
        let ports = [Field::L4Proto, Field::CtOrigProtoDst];
        match self {
            Self::Address => [original_daddr(family)].into_iter().chain(ports).collect(),
            Self::NodePort => ports.into(),
        }
    }
}

const fn original_daddr(family: IpFamily) -> Field {
    match family {
        IpFamily::V4 => Field::CtOrigIpDaddr,
        IpFamily::V6 => Field::CtOrigIp6Daddr,
    }
}

/// `address . protocol . port`.
pub fn frontend_type(family: IpFamily) -> Type {
    Entry::Address.frontend_type(family)
}

/// `address . port`.
pub fn endpoint_type(family: IpFamily) -> Type {
    Type::of(&[family.addr_type(), DataType::InetService])
}

fn frontend_bytes(address: IpAddr, protocol: u8, port: u16) -> Bytes {
    let bytes = match Entry::of(address) {
        Entry::Address => Bytes::new().addr(address),
        Entry::NodePort => Bytes::new(),
    };
    bytes.proto(protocol).port(port)
}

/// Key of a frontend; with the unspecified address, of a node port.
pub fn frontend_key(address: IpAddr, protocol: u8, port: u16) -> Key {
    frontend_bytes(address, protocol, port).build()
}

/// Key of a frontend's slot.
pub fn slot_key(address: IpAddr, protocol: u8, port: u16, slot: u32) -> Key {
    frontend_bytes(address, protocol, port).word(slot).build()
}

/// Data of a slot.
pub fn endpoint_data(address: IpAddr, port: u16) -> Arc<[u8]> {
    Bytes::new().addr(address).port(port).build()
}

/// A slot of a frontend, as [`slot_key`] writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Address and port of the frontend; for a node port, the unspecified address.
    pub frontend: SocketAddr,
    /// Its IP protocol.
    pub protocol: u8,
    /// Number of the slot.
    pub number: u32,
}

impl Slot {
    /// The slot of a key in [`ENDPOINTS`] or its like; `None` for bytes that are none.
    pub fn parse(entry: Entry, family: IpFamily, key: &[u8]) -> Option<Self> {
        let (protocol, frontend) = parse_frontend(entry, family, key)?;
        let number = key.last_chunk()?;
        Some(Self {
            frontend,
            protocol,
            number: u32::from_ne_bytes(*number),
        })
    }
}

/// Protocol, address and port of a key of [`frontend_key`]; `None` for bytes that are none.
pub fn parse_frontend(entry: Entry, family: IpFamily, key: &[u8]) -> Option<(u8, SocketAddr)> {
    let (address, rest) = match entry {
        Entry::Address => split_address(family, key)?,
        Entry::NodePort => (family.unspecified(), key),
    };
    let [protocol, _, _, _, high, low, ..] = rest else {
        return None;
    };
    let port = u16::from_be_bytes([*high, *low]);
    Some((*protocol, SocketAddr::new(address, port)))
}

/// The address of a key of one address; `None` for bytes that are none.
pub fn parse_address(family: IpFamily, key: &[u8]) -> Option<IpAddr> {
    Some(split_address(family, key)?.0)
}

/// The endpoint that a slot leads to, as [`endpoint_data`] writes it.
pub fn parse_endpoint(family: IpFamily, element: &Element) -> Option<SocketAddr> {
    let Value::Data(data) = &element.value else {
        return None;
    };
    let (address, rest) = split_address(family, data)?;
    let port = u16::from_be_bytes(*rest.first_chunk()?);
    Some(SocketAddr::new(address, port))
}

fn split_address(family: IpFamily, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        IpFamily::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::from(*address), rest))
        }
        IpFamily::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::from(*address), rest))
        }
    }
}
