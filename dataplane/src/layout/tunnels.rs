//! Tunnels between nodes. VXLAN knows no authentication (RFC 7348 section 7): who could send
//! to the port of a node could send as any pod, past all policies. So that port is for nodes.
//!
//! There is none of this on nodes without tunnels. It is about what comes in to this node,
//! and about what passes it on the way to another: there a pod could have the address of its
//! node by masquerading.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::datatype::{Bytes, Type};
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::{INET, PRIORITY_FILTER, PerFamily, base_chain, per_family};
use crate::object::{ChainType, Element, Hook, IpFamily, Key, SetSpec};
use crate::rule::{Rule, Statement};

/// Addresses of all nodes.
pub static TUNNEL_ENDS: PerFamily = per_family!("tunnel-ends");

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// Wants tunnels with that port to be between these addresses alone.
pub fn want(desired: &mut Desired, port: u16, ends: &BTreeSet<IpAddr>) {
    for family in IpFamily::BOTH {
        let set = TUNNEL_ENDS.of(family);
        let address = Type::of(&[family.addr_type()]);
        desired.set(&INET, set, SetSpec::set(address, "addresses of nodes"));
        let of_family = ends.iter().filter(|end| IpFamily::of(**end) == family);
        let wanted: BTreeSet<Key> = of_family
            .map(|end| Bytes::new().addr(*end).build())
            .collect();
        let table = desired.ruleset().tables.get(&*INET);
        let held = table.and_then(|table| table.sets.get(set));
        let held = held.map(|set| set.elements.keys().cloned().collect());
        let held: BTreeSet<Key> = held.unwrap_or_default();
        for gone in held.difference(&wanted) {
            desired.remove(&INET, set, gone);
        }
        for new in wanted.difference(&held) {
            desired.insert(&INET, set, new.clone(), Element::member());
        }
    }
    let to_tunnel = |family: IpFamily| {
        let rule = Rule::new().family(family).l4proto(UDP);
        rule.eq(Field::Dport, &port.to_be_bytes())
    };
    let from_stranger = |rule: Rule, family: IpFamily| {
        let rule = rule.with(Statement::InSet {
            key: vec![family.saddr()],
            set: TUNNEL_ENDS.of(family).clone(),
            negate: true,
        });
        rule.counter().drop().comment("no node")
    };
    let input = IpFamily::BOTH.map(|family| from_stranger(to_tunnel(family), family));
    let forward = IpFamily::BOTH.map(|family| {
        let to_node = to_tunnel(family).in_set(&[family.daddr()], TUNNEL_ENDS.of(family).clone());
        from_stranger(to_node, family)
    });
    for (name, hook, comment, rules) in [
        (
            "tunnels-input",
            Hook::Input,
            "tunnels to this node are from nodes",
            input,
        ),
        (
            "tunnels-forward",
            Hook::Forward,
            "tunnels to other nodes are not from here",
            forward,
        ),
    ] {
        let base = (ChainType::Filter, hook, PRIORITY_FILTER);
        base_chain(desired, &INET, name, base, comment, rules.into());
    }
}
