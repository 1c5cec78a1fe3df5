//! Session affinity: a client of a frontend goes where it went last.
//!
//! One map for all Services and timeouts, which the rules write: after the translation, the
//! first packet of each flow leaves there `client . frontend` and its endpoint, for the
//! timeout of the Service. The next flow of the client finds it before a slot is chosen.
//! An endpoint that goes takes its entries with it, by a sweep after the commit
//! ([`crate::kernel::Kernel::learnt`]).
//!
//! The learning chain is of type nat, which only the first packet of a flow meets: a client
//! that repeats its first packet to an endpoint that has just gone does not learn it again.
//!
//! The key has the frontend that the client has used: by another address of the same
//! Service it is another client. One for all of a Service would need a chain for each.
//!
//! When the map is full nothing more is learnt, and new clients are balanced anew each
//! time; a counter in the chain tells.

use std::net::{IpAddr, SocketAddr};

use super::{
    AFFINITY, DataType, Entry, NODE_ADDRESSES, original_daddr, parse_endpoint, split_address,
};
use crate::datatype::Type;
use crate::desired::Desired;
use crate::field::{Field, ct_status};
use crate::layout::{INET, PRIORITY_LEARN, base_chain, regular_chain};
use crate::object::{Chain, ChainType, Dynamic, Element, Hook, IpFamily, Name, SetSpec};
use crate::rule::{Rule, Statement};

/// At most so many pairs of client and frontend are remembered, in 40 MB of the kernel.
const SIZE: u32 = 1 << 18;

const STICKY_CHAIN: &str = "sticky";

/// A key of [`AFFINITY`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    /// Address of the client.
    pub client: IpAddr,
    /// Where it sends to: for a node port, one of the node's addresses.
    pub frontend: SocketAddr,
    /// IP protocol.
    pub protocol: u8,
}

impl AffinityKey {
    /// The key of those bytes; `None` for bytes that are none.
    pub fn parse(family: IpFamily, key: &[u8]) -> Option<Self> {
        let (client, rest) = split_address(family, key)?;
        let (address, rest) = split_address(family, rest)?;
        let [protocol, _, _, _, high, low, ..] = rest else {
            return None;
        };
        Some(Self {
            client,
            frontend: SocketAddr::new(address, u16::from_be_bytes([*high, *low])),
            protocol: *protocol,
        })
    }

    /// The key and the endpoint of an entry of [`AFFINITY`].
    pub fn parse_entry(
        family: IpFamily,
        (key, element): (&[u8], &Element),
    ) -> Option<(Self, SocketAddr)> {
        Some((Self::parse(family, key)?, parse_endpoint(family, element)?))
    }
}

/// Name of the chain that learns for so many seconds.
pub fn learn_chain(seconds: u32) -> Name {
    format!("learn-{seconds}").into()
}

/// The seconds of a chain of [`learn_chain`].
pub(super) fn seconds_of_chain(name: &Name) -> Option<u32> {
    name.as_str().strip_prefix("learn-")?.parse().ok()
}

/// Wants the chain of [`learn_chain`]. Like balancers they are kept.
pub fn want_learn_chain(desired: &mut Desired, seconds: u32) {
    let name = learn_chain(seconds);
    if desired.has_chain(&INET, &name) {
        return;
    }
    let learn = |family: IpFamily| {
        Rule::new()
            .family(family)
            .with(Statement::Update {
                map: AFFINITY.of(family).clone(),
                key: vec![
                    family.saddr(),
                    original_daddr(family),
                    Field::L4Proto,
                    Field::CtOrigProtoDst,
                ],
                data: vec![family.daddr(), Field::Dport],
                timeout_ms: u64::from(seconds) * 1000,
            })
            .accept()
    };
    let mut rules: Vec<_> = IpFamily::BOTH.map(learn).into();
    rules.push(Rule::new().counter().comment("not learnt: the map is full"));
    desired.chain(&INET, &name, Chain::regular("", rules));
}

/// Translates to where the client went last; goes on where it is new.
pub(super) fn find(family: IpFamily) -> Rule {
    Rule::new().family(family).with(Statement::Dnat {
        family,
        key: vec![family.saddr(), family.daddr(), Field::L4Proto, Field::Dport],
        map: AFFINITY.of(family).clone(),
    })
}

pub(super) fn install(desired: &mut Desired) {
    for family in IpFamily::BOTH {
        use DataType::{InetProto, InetService};
        let address = family.addr_type();
        let key = Type::of(&[address, address, InetProto, InetService]);
        let endpoint = Type::of(&[address, InetService]);
        let comment = "client . Service address . protocol . port to where it went last";
        let spec = SetSpec::learnt(
            key,
            endpoint,
            Dynamic {
                timeout_ms: 0,
                size: SIZE,
            },
            comment,
        );
        desired.set(&INET, AFFINITY.of(family), spec);
    }
    let mut sticky = Vec::new();
    for entry in Entry::BOTH {
        sticky.extend(IpFamily::BOTH.map(|family| {
            let map = entry.sticky().of(family).clone();
            let rule = match entry {
                Entry::Address => Rule::new().family(family),
                Entry::NodePort => Rule::new()
                    .family(family)
                    .in_set(&[original_daddr(family)], NODE_ADDRESSES.of(family).clone()),
            };
            rule.vmap(&entry.original_destination(family), map)
        }));
    }
    regular_chain(
        desired,
        STICKY_CHAIN,
        "Services with session affinity",
        sticky,
    );
    base_chain(
        desired,
        &INET,
        "learn",
        (ChainType::Nat, Hook::Postrouting, PRIORITY_LEARN),
        "where clients go",
        vec![
            Rule::new()
                .with(Statement::AnyBit {
                    field: Field::CtStatus,
                    bits: ct_status::DNAT,
                })
                .jump(STICKY_CHAIN),
        ],
    );
}
