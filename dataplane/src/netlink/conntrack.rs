//! Conntrack entries of flows whose endpoint is gone.
//!
//! A UDP client that keeps its port keeps its flow: without a word to conntrack its
//! datagrams go to the removed endpoint for as long as it sends. SCTP sets up again over the
//! same ports. A TCP connection ends, though it may take a quarter of an hour.
//!
//! The kernel looks for the entries (`CTA_FILTER`, 5.8; older ones send all, and it is
//! filtered here): by frontend where there are few, and otherwise once for all of a
//! protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::kernel::{KernelError, StaleFlow};
use crate::netlink::attr::{Attr, Attrs, Writer};
use crate::netlink::socket::Nftables;
use crate::object::IpFamily;

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
pub(super) const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;

/// `enum ctattr_type`.
pub(super) const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
pub(super) const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `enum ctattr_filter`, and its flags for addresses, protocol and ports.
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
/// `enum ctattr_tuple`.
pub(super) const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// `enum ctattr_ip`: source and destination, of IPv4 and IPv6.
pub(super) const IP_SRC: [u16; 2] = [1, 3];
const IP_DST: [u16; 2] = [2, 4];
/// `enum ctattr_l4proto`.
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// Changes of one datagram.
pub(super) const AT_ONCE: usize = 64;
/// Up to so many frontends are looked for one by one.
const FEW: usize = 4;

/// The flows of one family and protocol, by frontend and endpoint.
type Wanted = BTreeSet<(SocketAddr, SocketAddr)>;

/// The two ends of a flow as its entry has them.
pub(super) struct Flow {
    /// Where it was sent.
    pub(super) frontend: SocketAddr,
    /// Who answers.
    pub(super) endpoint: SocketAddr,
}

/// Deletes the entries of these flows and returns how many there were.
pub(super) fn forget(kernel: &mut Nftables, stale: &[StaleFlow]) -> Result<usize, KernelError> {
    let mut groups: BTreeMap<(IpFamily, u8), Wanted> = BTreeMap::new();
    for flow in stale {
        let group = (IpFamily::of(flow.frontend.ip()), flow.protocol);
        let wanted = groups.entry(group).or_default();
        wanted.insert((flow.frontend, flow.endpoint));
    }
    let mut deleted = 0;
    for ((family, protocol), wanted) in groups {
        let frontends: BTreeSet<_> = wanted.iter().map(|(frontend, _)| *frontend).collect();
        let requests: Vec<_> = if frontends.len() <= FEW {
            let frontends = frontends.into_iter();
            frontends
                .map(|frontend| request(protocol, Some(frontend)))
                .collect()
        } else {
            vec![request(protocol, None)]
        };
        deleted += forget_found(kernel, (family, protocol), &requests, |flow| {
            wanted.contains(&(flow.frontend, flow.endpoint))
        })?;
    }
    Ok(deleted)
}

/// Deletes the entries of a protocol's flows that are stale and returns how many there were.
pub(super) fn forget_where(
    kernel: &mut Nftables,
    family: IpFamily,
    protocol: u8,
    is_stale: impl Fn(&Flow) -> bool,
) -> Result<usize, KernelError> {
    let requests = [request(protocol, None)];
    forget_found(kernel, (family, protocol), &requests, is_stale)
}

fn forget_found(
    kernel: &mut Nftables,
    group: (IpFamily, u8),
    requests: &[Vec<u8>],
    is_stale: impl Fn(&Flow) -> bool,
) -> Result<usize, KernelError> {
    let entries = find(kernel, group, requests, is_stale)?;
    for entries in entries.chunks(AT_ONCE) {
        kernel.carry_out(DELETE, group.0.nfproto(), entries)?;
    }
    Ok(entries.len())
}

/// What names each matching entry: its original tuple and its zone, where other programs have
/// made such; and its ID, so that no later flow with the same addresses is meant.
fn find(
    kernel: &mut Nftables,
    (family, protocol): (IpFamily, u8),
    requests: &[Vec<u8>],
    is_stale: impl Fn(&Flow) -> bool,
) -> Result<Vec<Vec<u8>>, KernelError> {
    let mut found = BTreeSet::new();
    let mut each = |entry: Attrs<'_>| {
        if flow(entry, family, protocol).is_some_and(|flow| is_stale(&flow)) {
            found.extend(identity(entry));
        }
    };
    for request in requests {
        // A table that changes meanwhile shows an entry twice or not at all; one that is
        // missed times out, as it would have without this.
        kernel.dump_once(GET, family.nfproto(), request, &mut each)?;
    }
    Ok(found.into_iter().collect())
}

fn flow(entry: Attrs<'_>, family: IpFamily, wanted: u8) -> Option<Flow> {
    let original = entry.get(TUPLE_ORIG)?.nested();
    let reply = entry.get(TUPLE_REPLY)?.nested();
    let protocol = original.get(TUPLE_PROTO)?.nested().get(PROTO_NUM)?.u8()?;
    let flow = Flow {
        frontend: side(original, family, IP_DST, PROTO_DST_PORT)?,
        endpoint: side(reply, family, IP_SRC, PROTO_SRC_PORT)?,
    };
    (protocol == wanted).then_some(flow)
}

/// Asks for the entries of the protocol, or of the frontend alone.
fn request(protocol: u8, frontend: Option<SocketAddr>) -> Vec<u8> {
    let mut request = Vec::new();
    let mut writer = Writer(&mut request);
    let mut flags = FILTER_PROTO_NUM;
    writer.nest(TUPLE_ORIG, |w| {
        if let Some(frontend) = frontend {
            flags |= FILTER_PROTO_DST_PORT;
            // By an IPv6 address the kernel, up to 6.18 at least, gives all entries but the
            // ones that are asked for (`ctnetlink_filter_match_tuple`).
            if let IpAddr::V4(v4) = frontend.ip() {
                flags |= FILTER_IP_DST;
                w.nest(TUPLE_IP, |w| w.bytes(IP_DST[0], &v4.octets()));
            }
        }
        w.nest(TUPLE_PROTO, |w| {
            w.u8(PROTO_NUM, protocol);
            if let Some(frontend) = frontend {
                w.u16(PROTO_DST_PORT, frontend.port());
            }
        });
    });
    writer.nest(FILTER, |w| {
        w.bytes(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    });
    request
}

fn side(tuple: Attrs<'_>, family: IpFamily, ip: [u16; 2], port: u16) -> Option<SocketAddr> {
    let addresses = tuple.get(TUPLE_IP)?.nested();
    let address = match family {
        IpFamily::V4 => IpAddr::from(<[u8; 4]>::try_from(addresses.get(ip[0])?.payload).ok()?),
        IpFamily::V6 => IpAddr::from(<[u8; 16]>::try_from(addresses.get(ip[1])?.payload).ok()?),
    };
    let port = tuple
        .get(TUPLE_PROTO)?
        .nested()
        .get(port)
        .and_then(Attr::u16)?;
    Some(SocketAddr::new(address, port))
}

fn identity(entry: Attrs<'_>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = Writer(&mut bytes);
    writer.nested_bytes(TUPLE_ORIG, entry.get(TUPLE_ORIG)?.payload);
    if let Some(zone) = entry.get(ZONE) {
        writer.bytes(ZONE, zone.payload);
    }
    writer.bytes(ID, entry.get(ID)?.payload);
    Some(bytes)
}
