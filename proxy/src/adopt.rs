//! The slots that the kernel's maps hold, read back.
//!
//! A restarted agent knows nothing of the order in which endpoints came and went. If it
//! numbered them anew it would rewrite much of what is right.

use dataplane::layout::INET;
use dataplane::layout::services::{Lane, Slot, parse_endpoint};
use dataplane::object::{IpFamily, Ruleset};

use crate::frontend::FrontendId;
use crate::hash::HashMap;
use crate::maps::TableId;
use crate::slots::Target;

/// The endpoints of each frontend in the order of their slots. Elements that no proxy of
/// ours writes are passed over.
pub(crate) fn slots(observed: &Ruleset) -> HashMap<TableId, Vec<Target>> {
    let mut found: HashMap<TableId, Vec<(u32, Target)>> = HashMap::default();
    let Some(table) = observed.tables.get(&*INET) else {
        return HashMap::default();
    };
    let maps = Lane::ALL.into_iter();
    for (lane, family) in maps.flat_map(|lane| IpFamily::BOTH.map(|family| (lane, family))) {
        let elements = table.sets.get(lane.endpoints().of(family));
        for (key, element) in elements.into_iter().flat_map(|set| &set.elements) {
            if let Some(slot) = Slot::parse(lane.entry, family, key)
                && let Some(id) = FrontendId::of(slot.protocol, slot.frontend)
                && let Some(endpoint) = parse_endpoint(family, element)
            {
                let target = Target {
                    address: endpoint.ip(),
                    port: endpoint.port(),
                };
                let slots = found.entry((id, lane.sources)).or_default();
                slots.push((slot.number, target));
            }
        }
    }
    // Slots are in the key's order of bytes, which is not that of numbers. They have no
    // gaps unless somebody else has made one; what follows it is then written anew.
    let in_order = |mut slots: Vec<(u32, Target)>| {
        slots.sort_unstable();
        slots.into_iter().map(|(_, target)| target).collect()
    };
    found
        .into_iter()
        .map(|(at, slots)| (at, in_order(slots)))
        .collect()
}
