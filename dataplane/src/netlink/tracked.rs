//! The flows that conntrack knows.

use std::net::{IpAddr, SocketAddr};

use crate::kernel::KernelError;
use crate::netlink::attr::{Attr, Attrs};
use crate::netlink::socket::Nftables;
use crate::object::IpFamily;

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x0101;
/// `enum ctattr_type`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
/// `enum ctattr_tuple`.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// `enum ctattr_ip`: source and destination, of IPv4 and IPv6.
const IP_SRC: [u16; 2] = [1, 3];
const IP_DST: [u16; 2] = [2, 4];
/// `enum ctattr_l4proto`.
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

/// A flow, as its first packet began it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrackedFlow {
    /// IP protocol.
    pub protocol: u8,
    /// Who began it; port 0 for a protocol without ports.
    pub source: SocketAddr,
    /// What was addressed.
    pub frontend: SocketAddr,
    /// Where it goes, after translation.
    pub destination: SocketAddr,
}

impl Nftables {
    /// The flows of the network namespace, both families. A table that changes meanwhile
    /// may show one twice or not at all.
    ///
    /// # Errors
    /// Where the kernel cannot be asked, or has no conntrack.
    pub fn tracked_flows(&mut self) -> Result<Vec<TrackedFlow>, KernelError> {
        let mut flows = Vec::new();
        for family in IpFamily::BOTH {
            let mut each = |entry: Attrs<'_>| flows.extend(flow(entry, family));
            self.dump_once(GET, family.nfproto(), &[], &mut each)?;
        }
        Ok(flows)
    }
}

fn flow(entry: Attrs<'_>, family: IpFamily) -> Option<TrackedFlow> {
    let original = entry.get(TUPLE_ORIG)?.nested();
    let reply = entry.get(TUPLE_REPLY)?.nested();
    Some(TrackedFlow {
        protocol: original.get(TUPLE_PROTO)?.nested().get(PROTO_NUM)?.u8()?,
        source: side(original, family, IP_SRC, PROTO_SRC_PORT)?,
        frontend: side(original, family, IP_DST, PROTO_DST_PORT)?,
        destination: side(reply, family, IP_SRC, PROTO_SRC_PORT)?,
    })
}

fn side(tuple: Attrs<'_>, family: IpFamily, ip: [u16; 2], port: u16) -> Option<SocketAddr> {
    let addresses = tuple.get(TUPLE_IP)?.nested();
    let address = match family {
        IpFamily::V4 => IpAddr::from(<[u8; 4]>::try_from(addresses.get(ip[0])?.payload).ok()?),
        IpFamily::V6 => IpAddr::from(<[u8; 16]>::try_from(addresses.get(ip[1])?.payload).ok()?),
    };
    let port = tuple.get(TUPLE_PROTO)?.nested().get(port);
    Some(SocketAddr::new(
        address,
        port.and_then(Attr::u16).unwrap_or(0),
    ))
}
