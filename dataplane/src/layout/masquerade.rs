//! Masquerading of pods that ask for it (`ipMasq`): what they send to other networks gets the
//! address of the interface by which it leaves.
//!
//! Where a packet goes is looked at after Services and hostPorts have translated it. Not
//! masqueraded is what stays in the pod networks, the subnets that addresses of pods were
//! taken from, and multicast: as the reference plugin has it, but for all pod networks of the
//! node at once, so that pods of two networks see each other's addresses.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::attachment::Attachment;
use crate::datatype::{Bytes, Type};
use crate::desired::Desired;
use crate::interval;
use crate::layout::hostports::Placed;
use crate::layout::{INET, PRIORITY_SRCNAT, PerFamily, base_chain, per_family};
use crate::object::{ChainType, Element, Hook, IpFamily, Key, Ruleset, SetSpec};
use crate::rule::{Rule, Statement};

/// Addresses of the pods that are masqueraded.
pub static MASQUERADED: PerFamily = per_family!("masqueraded");
/// Destinations for which they are not.
pub static INSIDE: PerFamily = per_family!("inside");

/// RFC 5771, RFC 4291 section 2.7.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// The elements of one attachment in [`MASQUERADED`].
pub fn elements(attachment: &Attachment) -> Vec<Placed> {
    if attachment.masquerade_beyond.is_empty() {
        return Vec::new();
    }
    let comment = attachment.owner_name();
    let element = |ip| {
        let member = Element::member().with_comment(&comment);
        let set = MASQUERADED.of(IpFamily::of(ip));
        (set, Bytes::new().addr(ip).build(), member)
    };
    attachment.ips.iter().copied().map(element).collect()
}

/// The elements of [`INSIDE`], all of the family's: the pod networks and multicast.
pub fn inside(family: IpFamily, pod_networks: &BTreeSet<IpNet>) -> Vec<(Key, Element)> {
    let multicast = MULTICAST.map(|net| net.parse::<IpNet>().expect("the literals are prefixes"));
    let networks = pod_networks.iter().chain(&multicast);
    interval::elements(family, &interval::networks(family, networks))
}

/// The networks that [`INSIDE`] holds in a ruleset.
pub fn inside_of(ruleset: &Ruleset) -> BTreeSet<IpNet> {
    let sets = ruleset.tables.get(&*INET).map(|table| &table.sets);
    let networks = IpFamily::BOTH.into_iter().filter_map(|family| {
        let set = sets?.get(INSIDE.of(family))?;
        Some(interval::prefixes(family, &set.elements))
    });
    networks.flatten().collect()
}

pub(super) fn install(desired: &mut Desired) {
    for family in IpFamily::BOTH {
        let address = Type::of(&[family.addr_type()]);
        let masqueraded = SetSpec::set(address, "pods that are masqueraded");
        desired.set(&INET, MASQUERADED.of(family), masqueraded);
        let inside = SetSpec::intervals(address, "pod networks and multicast: not masqueraded");
        desired.set(&INET, INSIDE.of(family), inside);
    }
    want_inside(desired, &BTreeSet::new());
    let leaves = |family: IpFamily| {
        Rule::new()
            .family(family)
            .in_set(&[family.saddr()], MASQUERADED.of(family).clone())
            .with(Statement::InSet {
                key: vec![family.daddr()],
                set: INSIDE.of(family).clone(),
                negate: true,
            })
            .with(Statement::Masquerade)
    };
    base_chain(
        desired,
        &INET,
        "ip-masq",
        (ChainType::Nat, Hook::Postrouting, PRIORITY_SRCNAT + 1),
        "pods that leave the pod networks",
        IpFamily::BOTH.map(leaves).into(),
    );
}

/// Wants [`INSIDE`] to hold these pod networks and multicast.
pub fn want_inside(desired: &mut Desired, pod_networks: &BTreeSet<IpNet>) {
    for family in IpFamily::BOTH {
        let wanted = inside(family, pod_networks);
        let set = INSIDE.of(family);
        let table = desired.ruleset().tables.get(&*INET);
        let old = table.and_then(|table| table.sets.get(set));
        let old: Vec<Key> = old.map_or_else(Vec::new, |old| old.elements.keys().cloned().collect());
        for key in old {
            if !wanted.iter().any(|(wanted, _)| *wanted == key) {
                desired.remove(&INET, set, &key);
            }
        }
        for (key, element) in wanted {
            if desired.get(&INET, set, &key) != Some(&element) {
                desired.insert(&INET, set, key, element);
            }
        }
    }
}
