//! The MTU of the way out of the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// What a veth has if nothing else is known.
const ETHERNET: u32 = 1500;
/// The largest MTU of a veth.
const LARGEST: u32 = 65535;
/// Somewhere outside, to which there is no route but the default one: of TEST-NET-2
/// (RFC 5737) and of the IPv6 documentation prefix (RFC 3849). Nothing is sent there.
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The MTU of the default route, IPv4's before IPv6's; that of Ethernet where
/// there is none.
///
/// Asked of a socket, not by netlink: connecting a datagram socket looks the
/// route up and sends nothing, and three system calls replace two round trips.
pub fn of_default_route() -> u32 {
    let mtu = ipv4().or_else(ipv6).unwrap_or(ETHERNET);
    mtu.min(LARGEST)
}

fn ipv4() -> Option<u32> {
    let socket = connected(AddressFamily::INET, OUTSIDE_V4.into())?;
    sockopt::ip_mtu(socket).ok().filter(|mtu| *mtu > 0)
}

fn ipv6() -> Option<u32> {
    let socket = connected(AddressFamily::INET6, OUTSIDE_V6.into())?;
    sockopt::ipv6_mtu(socket).ok().filter(|mtu| *mtu > 0)
}

/// `None` where there is no route.
fn connected(family: AddressFamily, outside: IpAddr) -> Option<OwnedFd> {
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    // RFC 863: whoever listens throws it away.
    connect(&socket, &SocketAddr::new(outside, 9)).ok()?;
    Some(socket)
}
