//! Session affinity: a client of a service port goes where it went last, by whichever of its
//! addresses.
//!
//! One map for all Services and timeouts, which the rules write: after the translation, the
//! first packet of each flow leaves there `client . group` and its endpoint, for the
//! timeout of the Service. The next flow of the client finds it before a slot is chosen.
//! An endpoint that goes takes its entries with it, by a sweep after the commit
//! ([`crate::kernel::Kernel::learnt`]).
//!
//! **Groups.** The frontends that share what is learnt have the same *group*, a number in the
//! form of an address, by a map of their own. A rule that looked up the group and, with it,
//! the endpoint would be one that `nft` 1.0.6 cannot list, and registers do not last from
//! one rule to the next. So the packet itself carries the group for two rules, in place of an
//! address that conntrack knows as well:
//!
//! ```text
//! to find    ip daddr set ip daddr . proto . dport map @affinity-groups4
//!            dnat to ip saddr . ip daddr map @affinity4
//!            ip daddr set ct original ip daddr                  where nothing was learnt
//! to learn   ip saddr set ct original ip daddr . … map @affinity-groups4
//!            update @affinity4 { ct original ip saddr . ip saddr : ip daddr . dport }
//!            ip saddr set ct original ip saddr
//! ```
//!
//! No mark is needed for it, whose bits others use, and a packet leaves neither chain with
//! a group for an address.
//!
//! The learning chain is of type nat, which only the first packet of a flow meets: a client
//! that repeats its first packet to an endpoint that has just gone does not learn it again.
//!
//! When the map is full nothing more is learnt, and new clients are balanced anew each
//! time; a counter in the chain tells.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    AFFINITY, DataType, Entry, NODE_ADDRESSES, original_daddr, parse_endpoint, split_address,
};
use crate::datatype::{Bytes, Type};
use crate::desired::Desired;
use crate::field::{Field, ct_status};
use crate::layout::{INET, PRIORITY_LEARN, base_chain, regular_chain};
use crate::object::{
    Chain, ChainType, Dynamic, Element, Hook, IpFamily, Key, Name, SetSpec, Value,
};
use crate::rule::{NewAddress, Rule, Statement};

/// At most so many pairs of client and group are remembered, in 40 MB of the kernel.
const SIZE: u32 = 1 << 18;

const STICKY_CHAIN: &str = "sticky";

/// Frontends that share what is learnt of their clients: 28 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityGroup(u32);

impl AffinityGroup {
    const MASK: u32 = (1 << 28) - 1;

    /// The group of the number's lower 28 bits.
    pub const fn new(number: u32) -> Self {
        Self(number & Self::MASK)
    }

    /// The address that stands for it: one that no host has, of 240.0.0.0/4 (RFC 1112) or
    /// of 100::/64 (RFC 6666).
    pub fn address(self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => Ipv4Addr::from(!Self::MASK | self.0).into(),
            IpFamily::V6 => Ipv6Addr::from((0x0100 << 112) | u128::from(self.0)).into(),
        }
    }

    fn of_address(address: IpAddr) -> Option<Self> {
        let group = match address {
            IpAddr::V4(v4) => Self::new(u32::from(v4)),
            IpAddr::V6(v6) => Self::new(u32::from_be_bytes(*v6.octets().last_chunk()?)),
        };
        (group.address(IpFamily::of(address)) == address).then_some(group)
    }

    /// What [`AFFINITY_GROUPS`](super::AFFINITY_GROUPS) has for its frontends.
    pub fn element(self, family: IpFamily) -> Element {
        Element::data(Bytes::new().addr(self.address(family)).build())
    }

    /// The group of an element of [`AFFINITY_GROUPS`](super::AFFINITY_GROUPS).
    pub fn of_element(family: IpFamily, element: &Element) -> Option<Self> {
        let Value::Data(data) = &element.value else {
            return None;
        };
        Self::of_address(split_address(family, data)?.0)
    }
}

/// A key of [`AFFINITY`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    /// Address of the client.
    pub client: IpAddr,
    /// Where it sends to.
    pub group: AffinityGroup,
}

impl AffinityKey {
    /// The key of those bytes; `None` for bytes that are none.
    pub fn parse(family: IpFamily, key: &[u8]) -> Option<Self> {
        let (client, rest) = split_address(family, key)?;
        let (group, _) = split_address(family, rest)?;
        let group = AffinityGroup::of_address(group)?;
        Some(Self { client, group })
    }

    /// As [`AFFINITY`] has it.
    pub fn build(self) -> Key {
        let group = self.group.address(IpFamily::of(self.client));
        Bytes::new().addr(self.client).addr(group).build()
    }

    /// The key and the endpoint of an entry of [`AFFINITY`].
    pub fn parse_entry(
        family: IpFamily,
        (key, element): (&[u8], &Element),
    ) -> Option<(Self, SocketAddr)> {
        Some((Self::parse(family, key)?, parse_endpoint(family, element)?))
    }
}

/// Name of the chain that learns for so many seconds, of frontends that are found so.
pub fn learn_chain(entry: Entry, seconds: u32) -> Name {
    format!("{}{seconds}", prefix(entry)).into()
}

const fn prefix(entry: Entry) -> &'static str {
    match entry {
        Entry::Address => "learn-",
        Entry::NodePort => "node-learn-",
    }
}

/// Entry and seconds of a chain of [`learn_chain`].
pub(super) fn parse_learn_chain(name: &Name) -> Option<(Entry, u32)> {
    let of = |entry| {
        Some((
            entry,
            name.as_str().strip_prefix(prefix(entry))?.parse().ok()?,
        ))
    };
    Entry::BOTH.into_iter().find_map(of)
}

/// Whether it is a chain of [`learn_chain`]. Its last rule counts what it cannot learn.
pub fn is_learn_chain(name: &Name) -> bool {
    parse_learn_chain(name).is_some()
}

/// Wants the chain of [`learn_chain`]. Like balancers they are kept.
pub fn want_learn_chain(desired: &mut Desired, entry: Entry, seconds: u32) {
    let name = learn_chain(entry, seconds);
    if desired.has_chain(&INET, &name) {
        return;
    }
    let mut rules = Vec::new();
    for family in IpFamily::BOTH {
        let restore = |rule: Rule| rule.with(copy(family.saddr(), original_saddr(family)));
        let update = Statement::Update {
            map: AFFINITY.of(family).clone(),
            key: vec![original_saddr(family), family.saddr()],
            data: vec![family.daddr(), Field::Dport],
            timeout_ms: u64::from(seconds) * 1000,
        };
        rules.push(group_into(
            family.saddr(),
            entry.original_destination(family),
            (entry, family),
        ));
        rules.push(restore(Rule::new().family(family).with(update)).accept());
        rules.push(restore(Rule::new().family(family)));
    }
    rules.push(Rule::new().counter().comment("not learnt: the map is full"));
    desired.chain(&INET, &name, Chain::regular("", rules));
}

/// Translates to where the client went last; goes on with the packet as it was where the
/// client is new.
pub(super) fn find(entry: Entry, family: IpFamily) -> [Rule; 3] {
    let (saddr, daddr) = (family.saddr(), family.daddr());
    [
        group_into(daddr, entry.destination(family), (entry, family)),
        Rule::new().family(family).with(Statement::Dnat {
            family,
            key: vec![saddr, daddr],
            map: AFFINITY.of(family).clone(),
        }),
        Rule::new()
            .family(family)
            .with(copy(daddr, original_daddr(family))),
    ]
}

/// Puts the group of the frontend into the field.
fn group_into(field: Field, frontend: Vec<Field>, (entry, family): (Entry, IpFamily)) -> Rule {
    Rule::new().family(family).with(Statement::SetAddress {
        field,
        to: NewAddress::Mapped {
            key: frontend,
            map: entry.affinity_groups().of(family).clone(),
        },
    })
}

const fn copy(field: Field, from: Field) -> Statement {
    Statement::SetAddress {
        field,
        to: NewAddress::Of(from),
    }
}

const fn original_saddr(family: IpFamily) -> Field {
    match family {
        IpFamily::V4 => Field::CtOrigIpSaddr,
        IpFamily::V6 => Field::CtOrigIp6Saddr,
    }
}

pub(super) fn install(desired: &mut Desired) {
    for family in IpFamily::BOTH {
        let address = family.addr_type();
        let key = Type::of(&[address, address]);
        let endpoint = Type::of(&[address, DataType::InetService]);
        let dynamic = Dynamic {
            timeout_ms: 0,
            size: SIZE,
        };
        let comment = "client . affinity group to where it went last";
        let spec = SetSpec::learnt(key, endpoint, dynamic, comment);
        desired.set(&INET, AFFINITY.of(family), spec);
        for entry in Entry::BOTH {
            let (frontend, group) = (entry.frontend_type(family), Type::of(&[address]));
            let spec = SetSpec::map(frontend, group, "frontends to affinity groups");
            desired.set(&INET, entry.affinity_groups().of(family), spec);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_an_address_that_no_host_has() {
        for number in [0, 1, 0x0abc_def1, AffinityGroup::MASK] {
            let group = AffinityGroup::new(number);
            for family in IpFamily::BOTH {
                let element = group.element(family);
                assert_eq!(AffinityGroup::of_element(family, &element), Some(group));
            }
        }
        let group = AffinityGroup::new(0xf000_0102);
        let text = IpFamily::BOTH.map(|family| group.address(family).to_string());
        assert_eq!(text, ["240.0.1.2", "100::102"]);
        for other in ["10.96.0.1", "fd96::1", "100::1:0:0:1", "100::f000:1"] {
            let other = other.parse().expect("an address");
            assert_eq!(AffinityGroup::of_address(other), None, "{other}");
        }
    }

    #[test]
    fn a_chain_says_for_how_long_it_learns() {
        for entry in Entry::BOTH {
            let name = learn_chain(entry, 10_800);
            assert_eq!(parse_learn_chain(&name), Some((entry, 10_800)));
        }
        for other in ["learn", "learn-", "learn-x", "node-random-3"] {
            assert_eq!(parse_learn_chain(&other.into()), None, "{other}");
        }
    }
}
