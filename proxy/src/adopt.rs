//! The slots that the kernel's maps hold, read back.
//!
//! A restarted agent knows nothing of the order in which endpoints came and went. If it
//! numbered them anew it would rewrite much of what is right.

use std::collections::HashMap;
use std::net::IpAddr;

use dataplane::layout::INET;
use dataplane::layout::services::ENDPOINTS;
use dataplane::object::{IpFamily, Ruleset, Value};

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
            let Value::Data(data) = &element.value else {
                continue;
            };
            if let Some((id, slot)) = read_key(family, key)
                && let Some(target) = read_target(family, data)
            {
                found.entry(id).or_default().push((slot, target));
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

/// `address . protocol . port . slot`, each padded to four bytes
/// ([`dataplane::layout::services::slot_key`]).
fn read_key(family: IpFamily, key: &[u8]) -> Option<(FrontendId, u32)> {
    let (address, rest) = key.split_at_checked(family.addr_len())?;
    let [protocol, _, _, _, high, low, _, _, slot @ ..] = rest else {
        return None;
    };
    let id = FrontendId {
        address: read_address(address)?,
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| known.number() == *protocol)?,
        port: u16::from_be_bytes([*high, *low]),
    };
    Some((id, u32::from_ne_bytes(slot.try_into().ok()?)))
}

/// `address . port` ([`dataplane::layout::services::endpoint_data`]).
fn read_target(family: IpFamily, data: &[u8]) -> Option<Target> {
    let (address, rest) = data.split_at_checked(family.addr_len())?;
    let [high, low, ..] = rest else {
        return None;
    };
    Some(Target {
        address: read_address(address)?,
        port: u16::from_be_bytes([*high, *low]),
    })
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
