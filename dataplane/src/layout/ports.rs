//! The pods' ports: which interfaces lead to pods, and what may come in by each.
//!
//! On a bridge a pod's frames are seen with their port in the bridge family only; in
//! the inet family their interface is the bridge. So the guard is a bridge table: what a
//! port with our prefix sends must have the MAC and the source address of the
//! attachment behind it. A port that no attachment vouches for sends nothing.
//!
//! A *routed* veth is no port, and in the inet family it is the interface itself: its guard
//! is a chain of that table. Nobody else is on its link, so the address is all there is to
//! compare.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use crate::attachment::{Attachment, PORT_PREFIX};
use crate::datatype::{Bytes, DataType, Type};
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::forged::FORGED;
use crate::layout::{BRIDGE, INET, PRIORITY_PORTS, PerFamily, base_chain, per_family};
use crate::object::{ChainType, Hook, IpFamily, Key, Name, SetSpec, TableId};
use crate::rule::Rule;

/// Names of the interfaces behind which pods are: bridges.
pub static PORTS_OF_POD: LazyLock<Name> = LazyLock::new(|| "pod-interfaces".into());
/// `port . MAC . address` that may send.
pub static SENDERS: PerFamily = per_family!("senders");
/// `interface . address` that may send by a routed veth.
pub static LINK_SENDERS: PerFamily = per_family!("link-senders");

/// `ETH_P_IP`, `ETH_P_ARP`, `ETH_P_IPV6`.
const IP: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IP6: [u8; 2] = [0x86, 0xdd];

/// Multicast listeners (RFC 2710, RFC 3810) and router solicitation.
const LINK_CHATTER: [u8; 5] = [130, 131, 132, 143, 133];
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

fn sender_type(family: IpFamily) -> Type {
    Type::of(&[DataType::Ifname, DataType::EtherAddr, family.addr_type()])
}

/// Key of an interface in [`PORTS_OF_POD`].
pub fn interface_key(name: &str) -> Key {
    Bytes::new().ifname(name).build()
}

/// An element that lets an interface send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sender {
    /// The table of [`set`](Self::set).
    pub table: &'static TableId,
    /// [`SENDERS`] or [`LINK_SENDERS`] of the address's family.
    pub set: &'static Name,
    /// The element's key.
    pub key: Key,
}

/// The elements that an attachment vouches for: its addresses, and its link-local address
/// where it has IPv6.
pub fn senders(attachment: &Attachment) -> Vec<Sender> {
    let has_v6 = attachment.ips.iter().any(IpAddr::is_ipv6);
    let link_local = has_v6.then(|| IpAddr::from(attachment.mac.link_local()));
    let addresses = attachment.ips.iter().copied().chain(link_local);
    addresses
        .map(|address| {
            let family = IpFamily::of(address);
            let interface = Bytes::new().ifname(&attachment.host_ifname);
            match attachment.bridge {
                Some(_) => Sender {
                    table: &BRIDGE,
                    set: SENDERS.of(family),
                    key: interface.mac(attachment.mac).addr(address).build(),
                },
                None => Sender {
                    table: &INET,
                    set: LINK_SENDERS.of(family),
                    key: interface.addr(address).build(),
                },
            }
        })
        .collect()
}

/// Whether the elements of the set let interfaces send.
pub fn admits(set: &Name) -> bool {
    let sets = [&SENDERS, &LINK_SENDERS];
    sets.iter().any(|of| of.0.contains(set))
}

/// For the output hook: pods on one bridge are neighbours to the kernel, and it would tell
/// them to reach each other directly, past the policies. For IPv4 a setting of the bridge
/// prevents that; IPv6 has none.
pub(super) fn no_redirects() -> Rule {
    Rule::new()
        .family(IpFamily::V6)
        .in_set(&[Field::Oifname], PORTS_OF_POD.clone())
        .l4proto(58)
        .eq(Field::Icmpv6Type, &[REDIRECT])
        .drop()
        .comment("neighbours are reached through this node")
}

/// For the forward hook: pods of a bridge whose frames it hands to the packet filter (mode
/// `l2`) find each other's addresses past the policies, which know no multicast. A hop
/// limit of 255 (RFC 4861 section 7.1) proves that the packet was bridged: routing it takes
/// one off before this hook.
pub(super) fn neighbour_discovery() -> [Rule; 2] {
    [NEIGHBOUR_SOLICIT, NEIGHBOUR_ADVERT].map(|kind| {
        Rule::new()
            .family(IpFamily::V6)
            .l4proto(58)
            .eq(Field::Icmpv6Type, &[kind])
            .eq(Field::Ip6HopLimit, &[255])
            .in_set(&[Field::Iifname], PORTS_OF_POD.clone())
            .in_set(&[Field::Oifname], PORTS_OF_POD.clone())
            .accept()
            .comment("pods of one link look for each other")
    })
}

pub(super) fn install(desired: &mut Desired) {
    desired.set(
        &INET,
        &PORTS_OF_POD,
        SetSpec::set(Type::of(&[DataType::Ifname]), "bridges with pods"),
    );
    for family in IpFamily::BOTH {
        desired.set(
            &BRIDGE,
            SENDERS.of(family),
            SetSpec::set(
                sender_type(family),
                "port . MAC . address of this node's pods",
            ),
        );
    }
    for family in IpFamily::BOTH {
        let ty = Type::of(&[DataType::Ifname, family.addr_type()]);
        desired.set(
            &INET,
            LINK_SENDERS.of(family),
            SetSpec::set(
                ty,
                "interface . address of this node's pods without a bridge",
            ),
        );
    }
    base_chain(
        desired,
        &INET,
        "links",
        (ChainType::Filter, Hook::Prerouting, PRIORITY_PORTS),
        "a pod's own link sends from its own addresses only",
        link_guard(),
    );
    base_chain(
        desired,
        &BRIDGE,
        "ports",
        (ChainType::Filter, Hook::Prerouting, PRIORITY_PORTS),
        "a pod's port sends from its own addresses only",
        guard(),
    );
}

fn link_guard() -> Vec<Rule> {
    let icmpv6 = |kind: u8| {
        let rule = Rule::new().family(IpFamily::V6).l4proto(58);
        rule.eq(Field::Icmpv6Type, &[kind])
    };
    let known = |family: IpFamily| {
        let fields = [Field::Iifname, family.saddr()];
        let senders = LINK_SENDERS.of(family).clone();
        Rule::new().family(family).in_set(&fields, senders).accept()
    };
    let mut rules = vec![
        Rule::new()
            .ne(Field::Iifname, PORT_PREFIX.as_bytes())
            .accept()
            .comment("links of others"),
        icmpv6(ROUTER_ADVERT).goto(FORGED),
        icmpv6(REDIRECT).goto(FORGED),
        known(IpFamily::V4),
        known(IpFamily::V6),
    ];
    rules.extend(quiet(|family| Rule::new().family(family)));
    rules.push(Rule::new().goto(FORGED).comment("unknown sender"));
    rules
}

fn guard() -> Vec<Rule> {
    let known = |ethertype: [u8; 2], family: IpFamily, address: Field| {
        Rule::new()
            .eq(Field::EtherType, &ethertype)
            .in_set(
                &[Field::Iifname, Field::EtherSaddr, address],
                SENDERS.of(family).clone(),
            )
            .accept()
    };
    let icmpv6 = |kind: u8| {
        Rule::new()
            .eq(Field::EtherType, &IP6)
            .l4proto(58)
            .eq(Field::Icmpv6Type, &[kind])
    };
    let mut rules = vec![
        Rule::new()
            .ne(Field::Iifname, PORT_PREFIX.as_bytes())
            .accept()
            .comment("ports of others"),
        known(IP, IpFamily::V4, Field::IpSaddr),
        Rule::new()
            .eq(Field::EtherType, &ARP)
            .in_set(
                &[Field::Iifname, Field::ArpSaddrEther, Field::ArpSaddrIp],
                SENDERS.of(IpFamily::V4).clone(),
            )
            .accept(),
        icmpv6(ROUTER_ADVERT).goto(FORGED),
        icmpv6(REDIRECT).goto(FORGED),
        icmpv6(NEIGHBOUR_ADVERT)
            .with(crate::rule::Statement::InSet {
                key: vec![Field::Iifname, Field::EtherSaddr, Field::NdTarget],
                set: SENDERS.of(IpFamily::V6).clone(),
                negate: true,
            })
            .goto(FORGED)
            .comment("advertises an address that is not its own"),
        known(IP6, IpFamily::V6, Field::Ip6Saddr),
        icmpv6(NEIGHBOUR_SOLICIT)
            .eq(Field::Ip6Saddr, &Ipv6Addr::UNSPECIFIED.octets())
            .in_set(
                &[Field::Iifname, Field::EtherSaddr, Field::NdTarget],
                SENDERS.of(IpFamily::V6).clone(),
            )
            .accept()
            .comment("is my own address taken?"),
    ];
    rules.extend(quiet(|family| {
        Rule::new().eq(
            Field::EtherType,
            match family {
                IpFamily::V4 => &IP,
                IpFamily::V6 => &IP6,
            },
        )
    }));
    let no_address = Ipv4Addr::UNSPECIFIED.octets();
    let probe = Rule::new().eq(Field::EtherType, &ARP);
    rules.push(
        probe
            .eq(Field::ArpSaddrIp, &no_address)
            .drop()
            .comment("asks whether an address is taken"),
    );
    rules.push(Rule::new().goto(FORGED).comment("unknown sender"));
    rules
}

/// What a link says of itself when it comes up, before it has an address: it claims none, and
/// nobody need be told.
fn quiet(of: impl Fn(IpFamily) -> Rule) -> Vec<Rule> {
    let on_link = |kind: u8| {
        let rule = of(IpFamily::V6).l4proto(58).eq(Field::Icmpv6Type, &[kind]);
        rule.drop().comment("without an address")
    };
    let mut rules: Vec<_> = LINK_CHATTER.into_iter().map(on_link).collect();
    let no_address = Ipv4Addr::UNSPECIFIED.octets();
    let dhcp = of(IpFamily::V4).eq(Field::IpSaddr, &no_address);
    rules.push(dhcp.drop().comment("without an address"));
    rules
}
