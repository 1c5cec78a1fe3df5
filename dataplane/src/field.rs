//! What a rule can load: fields of the packet, of its conntrack entry, and values
//! that the kernel makes up.

use crate::datatype::{DataType, Type};
use crate::object::IpFamily;

/// A value that an expression loads into registers.
///
/// The `Debug` form is for tests; [`Field::name`] gives `nft` syntax.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Field {
    /// `meta nfproto`, 1 byte: 2 for IPv4, 10 for IPv6.
    NfProto,
    /// `meta protocol`, 2 bytes, network order: the EtherType.
    EtherType,
    /// `meta l4proto`, 1 byte.
    L4Proto,
    /// `iif`, host order: the index of the interface that the packet came in by; 0 without.
    Iif,
    /// `iifname`; a shorter comparison value matches a prefix.
    Iifname,
    /// `oifname`; no match where there is no output interface yet.
    Oifname,
    /// `ether saddr`.
    EtherSaddr,
    /// `arp saddr ether`.
    ArpSaddrEther,
    /// `arp saddr ip`.
    ArpSaddrIp,
    /// `ip saddr`.
    IpSaddr,
    /// `ip daddr`.
    IpDaddr,
    /// `ip6 saddr`.
    Ip6Saddr,
    /// `ip6 daddr`.
    Ip6Daddr,
    /// `ip6 hoplimit`, 1 byte.
    Ip6HopLimit,
    /// `th sport`.
    Sport,
    /// `th dport`.
    Dport,
    /// `icmpv6 type`, 1 byte.
    Icmpv6Type,
    /// `@th,64,128`: the target of a neighbour solicitation or advertisement
    /// (RFC 4861 sections 4.3, 4.4).
    NdTarget,
    /// `ct state`, a bit mask in host order, see [`ct_state`].
    CtState,
    /// `ct direction`, 1 byte: 0 for the packets of who began the flow, 1 for replies.
    CtDirection,
    /// `ct status`, a bit mask in host order (`enum ip_conntrack_status`).
    CtStatus,
    /// `ct mark`.
    CtMark,
    /// `ct original ip saddr`: source before any translation.
    CtOrigIpSaddr,
    /// `ct original ip6 saddr`.
    CtOrigIp6Saddr,
    /// `ct original ip daddr`: destination before any translation.
    CtOrigIpDaddr,
    /// `ct original ip6 daddr`.
    CtOrigIp6Daddr,
    /// `ct original proto-dst`: destination port before any translation.
    CtOrigProtoDst,
    /// `fib saddr type`, host order: 2 for an address of this host.
    FibSaddrType,
    /// `fib daddr type`, host order: 2 for an address of this host.
    FibDaddrType,
    /// `numgen random mod N`: a slot.
    Random(u32),
    /// `numgen inc mod N`: a slot; the counter belongs to the rule.
    RoundRobin(u32),
    /// `jhash ip saddr mod N seed S`: a slot.
    SourceHash {
        /// Family of the source address that is hashed.
        family: IpFamily,
        /// Number of slots.
        modulus: u32,
        /// Seed; two nodes with the same seed choose alike.
        seed: u32,
    },
}

/// Bits of [`Field::CtState`] (`NF_CT_STATE_BIT`, `NF_CT_STATE_UNTRACKED_BIT`).
pub mod ct_state {
    /// No valid flow, for instance an answer that nobody asked for.
    pub const INVALID: u32 = 1;
    /// Belongs to a flow that has seen packets in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// An ICMP error about a flow, or a flow that a helper expects.
    pub const RELATED: u32 = 4;
    /// The first packet of a flow, or one before any reply.
    pub const NEW: u32 = 8;
}

impl Field {
    /// Length in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::NfProto
            | Self::L4Proto
            | Self::Ip6HopLimit
            | Self::Icmpv6Type
            | Self::CtDirection => 1,
            Self::EtherType | Self::Sport | Self::Dport | Self::CtOrigProtoDst => 2,
            Self::Iif
            | Self::ArpSaddrIp
            | Self::IpSaddr
            | Self::IpDaddr
            | Self::CtState
            | Self::CtMark
            | Self::CtStatus
            | Self::CtOrigIpSaddr
            | Self::CtOrigIpDaddr
            | Self::FibSaddrType
            | Self::FibDaddrType
            | Self::Random(_)
            | Self::RoundRobin(_)
            | Self::SourceHash { .. } => 4,
            Self::EtherSaddr | Self::ArpSaddrEther => 6,
            Self::Iifname
            | Self::Oifname
            | Self::Ip6Saddr
            | Self::Ip6Daddr
            | Self::NdTarget
            | Self::CtOrigIp6Saddr
            | Self::CtOrigIp6Daddr => 16,
        }
    }

    /// Name in `nft` syntax.
    pub fn name(self) -> String {
        let name = match self {
            Self::NfProto => "meta nfproto",
            Self::EtherType => "meta protocol",
            Self::L4Proto => "meta l4proto",
            Self::Iif => "iif",
            Self::Iifname => "iifname",
            Self::Oifname => "oifname",
            Self::EtherSaddr => "ether saddr",
            Self::ArpSaddrEther => "arp saddr ether",
            Self::ArpSaddrIp => "arp saddr ip",
            Self::IpSaddr => "ip saddr",
            Self::IpDaddr => "ip daddr",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
            Self::Ip6HopLimit => "ip6 hoplimit",
            Self::Sport => "th sport",
            Self::Dport => "th dport",
            Self::Icmpv6Type => "icmpv6 type",
            Self::NdTarget => "@th,64,128",
            Self::CtState => "ct state",
            Self::CtDirection => "ct direction",
            Self::CtMark => "ct mark",
            Self::CtStatus => "ct status",
            Self::CtOrigIpSaddr => "ct original ip saddr",
            Self::CtOrigIp6Saddr => "ct original ip6 saddr",
            Self::CtOrigIpDaddr => "ct original ip daddr",
            Self::CtOrigIp6Daddr => "ct original ip6 daddr",
            Self::CtOrigProtoDst => "ct original proto-dst",
            Self::FibSaddrType => "fib saddr type",
            Self::FibDaddrType => "fib daddr type",
            Self::Random(modulus) => return format!("numgen random mod {modulus}"),
            Self::RoundRobin(modulus) => return format!("numgen inc mod {modulus}"),
            Self::SourceHash {
                family,
                modulus,
                seed,
            } => {
                let source = family.saddr().name();
                return format!("jhash {source} mod {modulus} seed 0x{seed:x}");
            }
        };
        name.to_owned()
    }

    /// The data type whose syntax the field's values are printed in, where it is one
    /// of those that keys can have.
    pub const fn data_type(self) -> Option<DataType> {
        Some(match self {
            Self::L4Proto => DataType::InetProto,
            Self::Iifname | Self::Oifname => DataType::Ifname,
            Self::EtherSaddr | Self::ArpSaddrEther => DataType::EtherAddr,
            Self::ArpSaddrIp
            | Self::IpSaddr
            | Self::IpDaddr
            | Self::CtOrigIpSaddr
            | Self::CtOrigIpDaddr => DataType::Ipv4Addr,
            Self::Ip6Saddr
            | Self::Ip6Daddr
            | Self::NdTarget
            | Self::CtOrigIp6Saddr
            | Self::CtOrigIp6Daddr => DataType::Ipv6Addr,
            Self::Sport | Self::Dport | Self::CtOrigProtoDst => DataType::InetService,
            Self::CtMark | Self::Random(_) | Self::RoundRobin(_) | Self::SourceHash { .. } => {
                DataType::Mark
            }
            Self::NfProto
            | Self::EtherType
            | Self::Iif
            | Self::Ip6HopLimit
            | Self::Icmpv6Type
            | Self::CtState
            | Self::CtStatus
            | Self::CtDirection
            | Self::FibSaddrType
            | Self::FibDaddrType => return None,
        })
    }

    /// A value of the field in `nft` syntax.
    pub(crate) fn print_value(self, value: &[u8]) -> String {
        let number = || match *value {
            [byte] => u32::from(byte),
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
            _ => 0,
        };
        match self {
            Self::NfProto => match number() {
                2 => "ipv4".to_owned(),
                10 => "ipv6".to_owned(),
                other => other.to_string(),
            },
            Self::EtherType => match number() {
                0x0800 => "ip".to_owned(),
                0x0806 => "arp".to_owned(),
                0x86dd => "ip6".to_owned(),
                other => format!("0x{other:04x}"),
            },
            Self::Icmpv6Type => match number() {
                133 => "nd-router-solicit".to_owned(),
                134 => "nd-router-advert".to_owned(),
                135 => "nd-neighbor-solicit".to_owned(),
                136 => "nd-neighbor-advert".to_owned(),
                137 => "nd-redirect".to_owned(),
                143 => "mld2-listener-report".to_owned(),
                other => other.to_string(),
            },
            Self::Iif | Self::Ip6HopLimit => number().to_string(),
            Self::CtState => print_ct_state(number()),
            Self::CtStatus => print_ct_status(number()),
            Self::CtDirection => ["original", "reply"][usize::from(number() != 0)].to_owned(),
            Self::FibSaddrType | Self::FibDaddrType => match number() {
                2 => "local".to_owned(),
                other => other.to_string(),
            },
            Self::Iifname | Self::Oifname if value.len() < self.size() => {
                format!("\"{}*\"", String::from_utf8_lossy(value))
            }
            _ => match self.data_type() {
                Some(ty) => Type::of(&[ty]).print(value),
                None => String::new(),
            },
        }
    }
}

/// Bits of [`Field::CtStatus`].
pub mod ct_status {
    /// The source is translated.
    pub const SNAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DNAT: u32 = 1 << 5;
}

fn print_ct_state(bits: u32) -> String {
    print_bits(
        bits,
        &[
            (ct_state::INVALID, "invalid"),
            (ct_state::ESTABLISHED, "established"),
            (ct_state::RELATED, "related"),
            (ct_state::NEW, "new"),
        ],
    )
}

fn print_ct_status(bits: u32) -> String {
    print_bits(
        bits,
        &[(ct_status::SNAT, "snat"), (ct_status::DNAT, "dnat")],
    )
}

fn print_bits(bits: u32, names: &[(u32, &str)]) -> String {
    let set: Vec<_> = names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}
