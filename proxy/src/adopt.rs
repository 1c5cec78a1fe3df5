//! The slots that the kernel's maps hold, read back.
//!
//! A restarted agent knows nothing of the order in which endpoints came and went. If it
//! numbered them anew it would rewrite much of what is right.

use std::collections::HashMap;

use dataplane::layout::INET;
use dataplane::layout::services::{ENDPOINTS, Slot, parse_endpoint};
use dataplane::object::{IpFamily, Ruleset};

use crate::frontend::FrontendId;
use crate::model::Protocol;
use crate::slots::Target;

/// The endpoints of each frontend in the order of their slots. Elements that no proxy of
/// ours writes are passed over.
pub(crate) fn slots(observed: &Ruleset) -> HashMap<FrontendId, Vec<Target>> {
    let mut found: HashMap<FrontendId, Vec<(u32, Target)>> = HashMap::new();
    let Some(table) = observed.tables.get(&*INET) else {
        return HashMap::new();
    };
    for family in IpFamily::BOTH {
        let elements = table.sets.get(ENDPOINTS.of(family));
        for (key, element) in elements.into_iter().flat_map(|set| &set.elements) {
            if let Some(slot) = Slot::parse(family, key)
                && let Some(id) = frontend_of(slot)
                && let Some(endpoint) = parse_endpoint(family, element)
            {
                let target = Target {
                    address: endpoint.ip(),
                    port: endpoint.port(),
                };
                found.entry(id).or_default().push((slot.number, target));
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
        .map(|(id, slots)| (id, in_order(slots)))
        .collect()
}

fn frontend_of(slot: Slot) -> Option<FrontendId> {
    Some(FrontendId {
        address: slot.frontend.ip(),
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| known.number() == slot.protocol)?,
        port: slot.frontend.port(),
    })
}
