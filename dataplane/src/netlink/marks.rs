//! Marks of conntrack entries.

use crate::kernel::KernelError;
use crate::netlink::attr::{Attr, Attrs, Writer};
use crate::netlink::conntrack::{AT_ONCE, GET, IP_SRC, TUPLE_IP, TUPLE_ORIG, ZONE};
use crate::netlink::socket::Nftables;
use crate::object::IpFamily;

/// `NFNL_SUBSYS_CTNETLINK << 8` with `IPCTNL_MSG_CT_NEW`, which also changes what there is.
const CHANGE: u16 = 0x0100;

/// The same with `IPCTNL_MSG_CT_GET_STATS`, and the number of entries in the answer.
const GET_STATS: u16 = 0x0105;
const GLOBAL_ENTRIES: u16 = 1;

/// `enum ctattr_type`.
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;

/// `AF_UNSPEC`: entries of every family.
const ANY_FAMILY: u8 = 0;
/// Dumps until one has nothing more to change.
const ROUNDS: usize = 16;

/// Clears the bits of `mask` in marks where they are neither 0 nor `spared`, and returns in how
/// many.
///
/// A dump of a table that changes may miss an entry, so it is repeated until it is
/// consistent and finds nothing: whoever asks relies on there being none left.
pub(super) fn clear(kernel: &mut Nftables, mask: u32, spared: u32) -> Result<usize, KernelError> {
    // The hash table is that of all network namespaces: to walk it takes some 10 ms, also
    // where this one has no entry.
    if kernel.number(GET_STATS, GLOBAL_ENTRIES)? == Some(0) {
        return Ok(0);
    }
    let mut changed = 0;
    for _ in 0..ROUNDS {
        let mut found = Vec::new();
        let mut each = |entry: Attrs<'_>| {
            let bits = entry.get(MARK).and_then(be32).unwrap_or(0) & mask;
            if bits != 0 && bits != spared {
                found.extend(cleared(entry, mask));
            }
        };
        let is_whole = kernel.dump_once(GET, ANY_FAMILY, &[], &mut each)?;
        if is_whole && found.is_empty() {
            return Ok(changed);
        }
        changed += found.len();
        for family in IpFamily::BOTH {
            let of_family = found.extract_if(.., |(of, _)| *of == family);
            let messages: Vec<_> = of_family.map(|(_, message)| message).collect();
            for messages in messages.chunks(AT_ONCE) {
                kernel.carry_out(CHANGE, family.nfproto(), messages)?;
            }
        }
    }
    Err(KernelError::Protocol(
        "a conntrack table that changes too fast to be read",
    ))
}

/// The message that clears the bits in the entry's mark, and its family.
fn cleared(entry: Attrs<'_>, mask: u32) -> Option<(IpFamily, Vec<u8>)> {
    let original = entry.get(TUPLE_ORIG)?;
    let addresses = original.nested().get(TUPLE_IP)?.nested();
    let family = match addresses.get(IP_SRC[0]) {
        Some(_) => IpFamily::V4,
        None => IpFamily::V6,
    };
    let mut bytes = Vec::new();
    let mut writer = Writer(&mut bytes);
    writer.nested_bytes(TUPLE_ORIG, original.payload);
    if let Some(zone) = entry.get(ZONE) {
        writer.bytes(ZONE, zone.payload);
    }
    writer.bytes(MARK, &0u32.to_be_bytes());
    writer.bytes(MARK_MASK, &mask.to_be_bytes());
    Some((family, bytes))
}

fn be32(attr: Attr<'_>) -> Option<u32> {
    Some(u32::from_be_bytes(attr.payload.try_into().ok()?))
}
