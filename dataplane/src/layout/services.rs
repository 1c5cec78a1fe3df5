//! Services: frontends and endpoints.
//!
//! `frontends` maps `address . protocol . port` to `goto random-K`, one chain for each
//! number of endpoints K that occurs. Its rule translates to what `endpoints` has for
//! `address . protocol . port . numgen random mod K`: the slots of a frontend are
//! numbered 0 to K-1, and a change of one endpoint is a change of one element.
//!
//! A packet that reads `goto random-3` just before a commit takes slot 2 away finds no
//! endpoint; a second rule then takes slot 0 (`mod 1`), which exists as long as the
//! frontend does.
//!
//! The chains are kept once made: kernels before 6.2 cannot delete a chain in the batch
//! that removes the last element leading to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::datatype::{Bytes, DataType, Type};
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::ports;
use crate::layout::{
    INET, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT, PerFamily, base_chain, per_family,
    regular_chain,
};
use crate::object::{Chain, ChainType, Element, Hook, IpFamily, Key, Name, SetSpec, Value};
use crate::rule::{Reject, Rule, Statement, Verdict};

/// `address . protocol . port` of a Service with endpoints to its balancing chain.
pub static FRONTENDS: PerFamily = per_family!("frontends");
/// `address . protocol . port . slot` to the endpoint's `address . port`.
pub static ENDPOINTS: PerFamily = per_family!("endpoints");
/// `address . protocol . port` of a Service without usable endpoints to what is done
/// about it: [`refused`] or drop.
pub static UNSERVED: PerFamily = per_family!("unserved");
/// `address . address` of this node's pods, each with itself: a pod that reaches itself
/// through a Service must see another source address.
pub static HAIRPIN: PerFamily = per_family!("hairpin");

/// The node's addresses on which node ports are served.
pub static NODE_ADDRESSES: PerFamily = per_family!("node-addresses");
/// Ranges of cluster IPs.
pub static SERVICE_CIDRS: PerFamily = per_family!("service-cidrs");
/// Ranges of the addresses of pods, of all nodes.
pub static CLUSTER_CIDRS: PerFamily = per_family!("cluster-cidrs");

/// Chain that decides for frontends without endpoints; jumped to by the filter hooks.
pub(super) const UNSERVED_CHAIN: &str = "unserved";
const SERVICES_CHAIN: &str = "services";
const REFUSE_CHAIN: &str = "refuse";

/// `address . protocol . port`.
pub fn frontend_type(family: IpFamily) -> Type {
    use DataType::{InetProto, InetService};
    Type::of(&[family.addr_type(), InetProto, InetService])
}

/// `address . protocol . port . slot`.
pub fn slot_type(family: IpFamily) -> Type {
    use DataType::{InetProto, InetService, Mark};
    Type::of(&[family.addr_type(), InetProto, InetService, Mark])
}

/// `address . port`.
pub fn endpoint_type(family: IpFamily) -> Type {
    Type::of(&[family.addr_type(), DataType::InetService])
}

/// Key of a frontend.
pub fn frontend_key(address: IpAddr, protocol: u8, port: u16) -> Key {
    Bytes::new()
        .addr(address)
        .proto(protocol)
        .port(port)
        .build()
}

/// Key of a frontend's slot.
pub fn slot_key(address: IpAddr, protocol: u8, port: u16, slot: u32) -> Key {
    let frontend = Bytes::new().addr(address).proto(protocol).port(port);
    frontend.word(slot).build()
}

/// Data of a slot.
pub fn endpoint_data(address: IpAddr, port: u16) -> Arc<[u8]> {
    Bytes::new().addr(address).port(port).build()
}

/// A slot of a frontend, as [`slot_key`] writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Address and port of the frontend.
    pub frontend: SocketAddr,
    /// Its IP protocol.
    pub protocol: u8,
    /// Number of the slot.
    pub number: u32,
}

impl Slot {
    /// The slot of a key in [`ENDPOINTS`]; `None` for bytes that are none.
    pub fn parse(family: IpFamily, key: &[u8]) -> Option<Self> {
        let (address, rest) = split_address(family, key)?;
        let [protocol, _, _, _, high, low, _, _, number @ ..] = rest else {
            return None;
        };
        Some(Self {
            frontend: SocketAddr::new(address, u16::from_be_bytes([*high, *low])),
            protocol: *protocol,
            number: u32::from_ne_bytes(number.try_into().ok()?),
        })
    }
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

/// Verdict for a frontend that is refused: the client learns it at once.
pub fn refused() -> Verdict {
    Verdict::Goto(REFUSE_CHAIN.into())
}

/// Name of the chain that chooses among `slots` endpoints at random.
pub fn random_chain(slots: u32) -> Name {
    format!("random-{slots}").into()
}

/// The number of endpoints that the chain chooses among, if it is one of
/// [`random_chain`].
pub fn slots_of_chain(name: &Name) -> Option<u32> {
    name.as_str().strip_prefix("random-")?.parse().ok()
}

/// Wants the chain of [`random_chain`].
pub fn want_random_chain(desired: &mut Desired, slots: u32) {
    let name = random_chain(slots);
    if desired.has_chain(&INET, &name) {
        return;
    }
    let mut rules = Vec::new();
    for family in IpFamily::BOTH {
        rules.push(translate(family, Field::Random(slots)));
        if slots > 1 {
            rules.push(translate(family, Field::Random(1)));
        }
    }
    desired.chain(&INET, &name, Chain::regular("", rules));
}

fn translate(family: IpFamily, slot: Field) -> Rule {
    let [address, protocol, port] = frontend_fields(family);
    Rule::new().family(family).with(Statement::Dnat {
        family,
        key: vec![address, protocol, port, slot],
        map: ENDPOINTS.of(family).clone(),
    })
}

const fn frontend_fields(family: IpFamily) -> [Field; 3] {
    [family.daddr(), Field::L4Proto, Field::Dport]
}

pub(super) fn install(desired: &mut Desired) {
    for family in IpFamily::BOTH {
        let frontend = frontend_type(family);
        let address = Type::of(&[family.addr_type()]);
        let pair = Type::of(&[family.addr_type(), family.addr_type()]);
        let specs = [
            (
                &FRONTENDS,
                SetSpec::verdict_map(
                    frontend,
                    "Service address . protocol . port to its balancer",
                ),
            ),
            (
                &ENDPOINTS,
                SetSpec::map(
                    slot_type(family),
                    endpoint_type(family),
                    "Service address . protocol . port . slot to the endpoint",
                ),
            ),
            (
                &UNSERVED,
                SetSpec::verdict_map(frontend, "Services without endpoints"),
            ),
            (
                &HAIRPIN,
                SetSpec::set(pair, "this node's pods, each with itself"),
            ),
            (
                &NODE_ADDRESSES,
                SetSpec::set(address, "this node's addresses with node ports"),
            ),
            (
                &SERVICE_CIDRS,
                SetSpec::intervals(address, "ranges of cluster IPs"),
            ),
            (
                &CLUSTER_CIDRS,
                SetSpec::intervals(address, "ranges of pods' addresses"),
            ),
        ];
        for (name, spec) in specs {
            desired.set(&INET, name.of(family), spec);
        }
    }

    let per_family = |map: &PerFamily| -> Vec<Rule> {
        let rule = |family| {
            Rule::new()
                .family(family)
                .vmap(&frontend_fields(family), map.of(family).clone())
        };
        IpFamily::BOTH.map(rule).into()
    };
    regular_chain(
        desired,
        SERVICES_CHAIN,
        "Services: to the balancer of the frontend",
        per_family(&FRONTENDS),
    );
    regular_chain(
        desired,
        UNSERVED_CHAIN,
        "Services without endpoints",
        per_family(&UNSERVED),
    );
    regular_chain(
        desired,
        REFUSE_CHAIN,
        "tells the client at once",
        vec![
            // A client believes an ICMPv6 error about its first SYN only when it has sent
            // that again, a second later; it believes a reset at once.
            Rule::new()
                .l4proto(6)
                .counter()
                .with(Statement::Reject(Reject::TcpReset)),
            Rule::new()
                .counter()
                .with(Statement::Reject(Reject::PortUnreachable)),
        ],
    );
    install_base_chains(desired);
}

fn install_base_chains(desired: &mut Desired) {
    let to_services = || vec![Rule::new().jump(SERVICES_CHAIN)];
    base_chain(
        desired,
        &INET,
        "nat-prerouting",
        (ChainType::Nat, Hook::Prerouting, PRIORITY_DSTNAT),
        "Services for what comes in",
        to_services(),
    );
    base_chain(
        desired,
        &INET,
        "nat-output",
        (ChainType::Nat, Hook::Output, PRIORITY_DSTNAT),
        "Services for this node's own traffic",
        to_services(),
    );
    base_chain(
        desired,
        &INET,
        "output",
        (ChainType::Filter, Hook::Output, PRIORITY_FILTER),
        "this node's own traffic: no policy",
        vec![
            Rule::new().ct_new().jump(UNSERVED_CHAIN),
            ports::no_redirects(),
        ],
    );
    let hairpin = |family: IpFamily| {
        Rule::new()
            .family(family)
            .in_set(
                &[family.saddr(), family.daddr()],
                HAIRPIN.of(family).clone(),
            )
            .with(Statement::Masquerade)
            .comment("a pod reaches itself through a Service")
    };
    base_chain(
        desired,
        &INET,
        "masquerade",
        (ChainType::Nat, Hook::Postrouting, PRIORITY_SRCNAT),
        "what must come back through this node",
        IpFamily::BOTH.map(hairpin).into(),
    );
}
