//! What of the cluster and of the node the rules know, beside the Services: ranges and
//! addresses in sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::datatype::Bytes;
use dataplane::desired::Desired;
use dataplane::interval;
use dataplane::layout::services::{CLUSTER_CIDRS, NODE_ADDRESSES, SERVICE_CIDRS};
use dataplane::layout::{INET, PerFamily};
use dataplane::object::{Element, IpFamily, Key};
use ipnet::IpNet;

/// The sets' content, and whether it is written.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Addresses on which node ports are served.
    pub(crate) node_addresses: BTreeSet<IpAddr>,
    /// Ranges of cluster IPs.
    pub(crate) service_cidrs: Vec<IpNet>,
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) changed: bool,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            node_addresses: BTreeSet::new(),
            service_cidrs: Vec::new(),
            cluster_cidrs: Vec::new(),
            changed: true,
        }
    }
}

impl Surroundings {
    /// Wants the sets to hold what is known.
    pub(crate) fn write(&mut self, desired: &mut Desired) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        for family in IpFamily::BOTH {
            let addresses = self.node_addresses.iter();
            let of_family = addresses.filter(|address| IpFamily::of(**address) == family);
            let members = of_family.map(|address| {
                let key = Bytes::new().addr(*address).build();
                (key, Element::member())
            });
            replace(desired, &NODE_ADDRESSES, family, members.collect());
            for (set, ranges) in [
                (&SERVICE_CIDRS, &self.service_cidrs),
                (&CLUSTER_CIDRS, &self.cluster_cidrs),
            ] {
                let intervals = interval::networks(family, ranges.iter());
                let elements = interval::elements(family, &intervals);
                replace(desired, set, family, elements.into_iter().collect());
            }
        }
    }
}

/// Wants the set to hold just these elements.
fn replace(
    desired: &mut Desired,
    set: &PerFamily,
    family: IpFamily,
    wanted: BTreeMap<Key, Element>,
) {
    let set = set.of(family);
    let held = &desired.ruleset().tables[&*INET].sets[set].elements;
    let gone: Vec<_> = held
        .keys()
        .filter(|key| !wanted.contains_key(*key))
        .cloned()
        .collect();
    for key in gone {
        desired.remove(&INET, set, &key);
    }
    for (key, element) in wanted {
        desired.insert(&INET, set, key, element);
    }
}
