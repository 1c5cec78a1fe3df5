//! What becomes of packets that policy denies: counted, told to whoever listens, and
//! dropped.
//!
//! ```text
//! egress-<group>  : no rule matches -> log "egress-<group>" -> denied-egress : drop
//! from-pod        : unknown source  -> log "egress"         -> closed-egress : drop
//! ports, links    : not its address -> log "forged"         -> drop
//! ```
//!
//! The *prefix* of a log message is the name of the chain that denied, so that a listener
//! knows the policies, see [`Origin`]. Each group has a rate limit of its own: a pod that
//! floods does not silence the others.
//!
//! A denied packet of a Service is seen after translation. What its sender addressed is
//! kept for some seconds in [`ORIGINS`], by its source: the conntrack entry of a packet
//! that is dropped is never in conntrack's table, and few kernels hand it over with the
//! message.
//!
//! What is rejected instead of dropped is so where a policy has denied it. A TCP reset goes
//! to who has addressed the pod itself. To who has addressed a Service it must come from
//! there, and with `bridge-nf-call-iptables` the kernel sends resets past translation: those
//! get ICMP, as everything but TCP does, which is translated back with the packet that it
//! quotes.

use std::net::{IpAddr, SocketAddr};

use crate::datatype::{Bytes, DataType, Type};
use crate::desired::Desired;
use crate::field::{Field, ct_status};
use crate::layout::forged::{self, FORGED};
use crate::layout::policy::{Direction, direction_of_tier, is_group};
use crate::layout::services::endpoint_type;
use crate::layout::{INET, PerFamily, per_family, regular_chain};
use crate::object::{Chain, Dynamic, Family, IpFamily, Key, Name, SetSpec, TableId};
use crate::rule::{Reject, Rule, Statement};
use crate::transaction::{Operation, Transaction};

/// NFLOG group of the messages ("tr"). Others may listen to groups of their own.
pub const LOG_GROUP: u16 = 0x7472;

/// Messages a second of one group, after a burst.
const RATE: u64 = 10;
const BURST: u32 = 50;
/// The headers: IPv6 with some extension headers, and ports.
const SNAPLEN: u32 = 128;
/// A message is read long before that.
const REMEMBERED: Dynamic = Dynamic {
    timeout_ms: 10_000,
    size: 16_384,
};
/// Begins the name of a chain that only logs.
const AUDIT: &str = "audit-";
/// Ends the name of the chain that denies for a tier.
const DENIED: &str = "-denied";
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// `source . protocol . source port` of denied packets of Services to what their sender
/// addressed: `address . port`.
pub static ORIGINS: PerFamily = per_family!("origins");

/// How a node denies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Denials {
    /// Tell [`LOG_GROUP`].
    pub log: bool,
    /// Answer what a policy denies, with a TCP reset or with ICMP "administratively
    /// prohibited". Unknown addresses and forged senders get silence all the same.
    pub reject: bool,
}

/// Who denies what a chain counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Denier {
    /// Policies.
    Policy(Direction),
    /// The pod's address is bound to nothing.
    Closed(Direction),
    /// The sender is not who it says.
    Forged,
}

/// Which chain a log message is of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// No rule of the policy group with this chain allows the packet: it is denied.
    Group(Direction, Name),
    /// A rule of the tier with this chain denies the packet.
    Tier(Direction, Name),
    /// No rule of the audited policies with this chain allows the packet, or a rule of the
    /// audited tier policy with this chain denies it. It goes on.
    Audit(Direction, Name),
    /// The pod's address is bound to nothing: it is denied.
    Closed(Direction),
    /// The port's sender is not who it says: it is denied.
    Forged,
}

impl Origin {
    /// The origin that a prefix stands for; `None` for a prefix of others.
    pub fn parse(prefix: &str) -> Option<Self> {
        if prefix == FORGED {
            return Some(Self::Forged);
        }
        let name = prefix.strip_prefix(AUDIT).unwrap_or(prefix);
        let is_audit = name.len() < prefix.len();
        if let Some(direction) = direction_of_tier(name) {
            return Some(match is_audit {
                true => Self::Audit(direction, prefix.into()),
                false => Self::Tier(direction, prefix.into()),
            });
        }
        let (direction, rest) = Direction::BOTH
            .into_iter()
            .find_map(|direction| Some((direction, name.strip_prefix(direction.name())?)))?;
        match rest.strip_prefix('-') {
            None if rest.is_empty() && !is_audit => Some(Self::Closed(direction)),
            Some(hash) if !hash.is_empty() && is_audit => {
                Some(Self::Audit(direction, prefix.into()))
            }
            Some(hash) if !hash.is_empty() => Some(Self::Group(direction, prefix.into())),
            _ => None,
        }
    }

    /// The direction that it judges.
    pub const fn direction(&self) -> Direction {
        match self {
            Self::Group(direction, _)
            | Self::Tier(direction, _)
            | Self::Audit(direction, _)
            | Self::Closed(direction) => *direction,
            Self::Forged => Direction::Egress,
        }
    }
}

/// Name of the chain that judges in place of a group's or a tier's, and decides nothing.
pub fn audit_chain(chain: &Name) -> Name {
    format!("{AUDIT}{chain}").into()
}

/// Whether the chain is one of [`audit_chain`], or what its rules lead to.
pub(super) fn is_audit(chain: &Name) -> bool {
    chain.as_str().starts_with(AUDIT)
}

/// The name of the group's chain, if the chain is one of [`audit_chain`].
pub(super) fn group_of_audit(chain: &Name) -> Option<&str> {
    chain.as_str().strip_prefix(AUDIT)
}

/// The end of a chain that denies what its rules have not allowed, and the whole of one that
/// denies for a tier; `chain` is whose denial it is.
pub fn deny(direction: Direction, chain: &Name, denials: Denials) -> Vec<Rule> {
    let mut rules = logs(chain.as_str(), denials);
    let denied = Rule::new().counter().goto(denied_chain(direction));
    rules.push(denied);
    rules
}

/// The end of an audit chain: tells what its rules have not allowed.
pub fn report(chain: &Name, denials: Denials) -> Vec<Rule> {
    let mut rules = logs(chain.as_str(), denials);
    rules.push(Rule::new().counter().comment("would be denied"));
    rules
}

/// Name of the chain that the Deny rules of a tier's chain lead to: its rules are
/// [`deny`].
pub fn tier_denial_chain(tier: &Name) -> Name {
    format!("{tier}{DENIED}").into()
}

fn logs(prefix: &str, denials: Denials) -> Vec<Rule> {
    let rule = Rule::new()
        .with(Statement::Limit {
            rate: RATE,
            burst: BURST,
        })
        .with(log(prefix));
    denials.log.then_some(rule).into_iter().collect()
}

/// Hands the packet over, under that prefix.
pub(super) fn log(prefix: &str) -> Statement {
    Statement::Log {
        group: LOG_GROUP,
        prefix: prefix.into(),
        snaplen: SNAPLEN,
    }
}

/// Where a policy's denial ends.
pub(super) fn denied_chain(direction: Direction) -> Name {
    format!("denied-{}", direction.name()).into()
}

/// Where a packet of an unknown address ends.
pub(super) fn closed_chain(direction: Direction) -> Name {
    format!("closed-{}", direction.name()).into()
}

/// Whose denials the counters of a chain's rules count; `None` where they count none.
pub fn counts_denials(chain: &Name) -> Option<Denier> {
    if chain.as_str() == FORGED {
        return Some(Denier::Forged);
    }
    Direction::BOTH.into_iter().find_map(|direction| {
        if *chain == closed_chain(direction) {
            return Some(Denier::Closed(direction));
        }
        let is_of = chain.as_str().starts_with(direction.name());
        let of_tier = chain.as_str().ends_with(DENIED)
            && direction_of_tier(chain.as_str()) == Some(direction);
        ((is_of && is_group(chain)) || of_tier).then_some(Denier::Policy(direction))
    })
}

/// Wants packets to be denied like that. The groups' own chains end with [`deny`].
pub fn set(desired: &mut Desired, denials: Denials) {
    forged::set(desired, denials);
    for family in IpFamily::BOTH {
        if !denials.log {
            desired.remove_set(&INET, ORIGINS.of(family));
            continue;
        }
        let source = Type::of(&[
            family.addr_type(),
            DataType::InetProto,
            DataType::InetService,
        ]);
        let comment = "what denied packets of Services were sent to";
        let spec = SetSpec {
            dynamic: Some(REMEMBERED),
            ..SetSpec::map(source, endpoint_type(family), comment)
        };
        desired.set(&INET, ORIGINS.of(family), spec);
    }
    for direction in Direction::BOTH {
        let (denied, closed) = (denied_chain(direction), closed_chain(direction));
        regular_chain(
            desired,
            denied.as_str(),
            "no policy allows it",
            ends(denials),
        );
        let mut rules = logs(direction.name(), denials);
        rules.push(Rule::new().counter().drop());
        let comment = match direction {
            Direction::Egress => "the source is unknown",
            Direction::Ingress => "the destination is unknown",
        };
        regular_chain(desired, closed.as_str(), comment, rules);
    }
}

fn ends(denials: Denials) -> Vec<Rule> {
    let mut rules = Vec::new();
    if denials.log {
        rules.extend(IpFamily::BOTH.map(remember));
    }
    if denials.reject {
        rules.extend(refusals());
    } else {
        rules.push(Rule::new().drop());
    }
    rules
}

fn refusals() -> [Rule; 3] {
    let prohibited = Statement::Reject(Reject::AdminProhibited);
    let translated = Rule::new().with(Statement::AnyBit {
        field: Field::CtStatus,
        bits: ct_status::DNAT,
    });
    let of_service = translated.with(prohibited.clone());
    [
        of_service.comment("to who has addressed a Service"),
        Rule::new()
            .l4proto(TCP)
            .with(Statement::Reject(Reject::TcpReset)),
        Rule::new().with(prohibited),
    ]
}

fn remember(family: IpFamily) -> Rule {
    let original = match family {
        IpFamily::V4 => Field::CtOrigIpDaddr,
        IpFamily::V6 => Field::CtOrigIp6Daddr,
    };
    Rule::new()
        .family(family)
        .with(Statement::AnyBit {
            field: Field::CtStatus,
            bits: ct_status::DNAT,
        })
        .with(Statement::Update {
            map: ORIGINS.of(family).clone(),
            key: vec![family.saddr(), Field::L4Proto, Field::Sport],
            data: vec![original, Field::CtOrigProtoDst],
            timeout_ms: 0,
        })
}

/// Has no effect, and is refused by a kernel that cannot limit or log: to be tried before
/// [`Denials::log`] is set, because the whole layout would be refused with it.
pub fn probe() -> Transaction {
    let logging = Denials {
        log: true,
        reject: false,
    };
    let mut desired = Desired::new();
    let tables = [Family::Inet, Family::Bridge].map(|family| TableId::new(family, "trammel-probe"));
    for table in &tables {
        desired.table(table);
        forged::set_in(&mut desired, table, logging);
    }
    let rules = logs("probe", logging);
    desired.chain(&tables[0], &"probe".into(), Chain::regular("", rules));
    let mut transaction = desired.transaction();
    let removals = tables.map(|table| Operation::DeleteTable { table });
    transaction.operations.extend(removals);
    transaction
}

/// Key of a packet in [`ORIGINS`].
pub fn origin_key(source: IpAddr, protocol: u8, source_port: u16) -> Key {
    Bytes::new()
        .addr(source)
        .proto(protocol)
        .port(source_port)
        .build()
}

/// What [`ORIGINS`] has for a packet.
pub fn parse_origin(family: IpFamily, data: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = data.split_at_checked(family.addr_len())?;
    let address = match family {
        IpFamily::V4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        IpFamily::V6 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(SocketAddr::new(
        address,
        u16::from_be_bytes(*rest.first_chunk()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_says_which_chain_it_is_of() {
        for direction in Direction::BOTH {
            let group = direction.group_chain("0123");
            let audit = audit_chain(&group);
            let tier = direction.tier_chain("admin", "0123");
            let audited = audit_chain(&tier);
            let cases = [
                (audited.as_str(), Origin::Audit(direction, audited.clone())),
                (tier.as_str(), Origin::Tier(direction, tier.clone())),
                (group.as_str(), Origin::Group(direction, group.clone())),
                (audit.as_str(), Origin::Audit(direction, audit.clone())),
                (direction.name(), Origin::Closed(direction)),
            ];
            for (prefix, origin) in cases {
                assert_eq!(Origin::parse(prefix), Some(origin.clone()), "{prefix}");
                assert_eq!(origin.direction(), direction);
            }
        }
        for prefix in [
            "tier-",
            "tier-admin-egress",
            "",
            "audit-",
            "audit-egress",
            "egress-",
            "egressx",
            "forged-",
            "drop: ",
        ] {
            assert_eq!(Origin::parse(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn only_the_ends_of_denials_count() {
        let chain = |name: &str| Name::from(name);
        assert_eq!(
            counts_denials(&chain("egress-0123")),
            Some(Denier::Policy(Direction::Egress))
        );
        let tier = Direction::Ingress.tier_chain("admin", "0123");
        assert_eq!(counts_denials(&tier), None);
        assert_eq!(
            counts_denials(&tier_denial_chain(&tier)),
            Some(Denier::Policy(Direction::Ingress))
        );
        assert_eq!(
            counts_denials(&chain("closed-ingress")),
            Some(Denier::Closed(Direction::Ingress))
        );
        assert_eq!(counts_denials(&chain("forged")), Some(Denier::Forged));
        for name in [
            "audit-tier-admin-egress-0123-denied",
            "audit-egress-0123",
            "egress-allowed",
            "denied-egress",
            "judged",
        ] {
            assert_eq!(counts_denials(&chain(name)), None, "{name}");
        }
    }
}
