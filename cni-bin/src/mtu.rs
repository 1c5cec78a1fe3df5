//! The MTU of the way out of the node.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::socket::{getsockopt, sockopt};

/// What a veth has if nothing else is known.
const ETHERNET: u32 = 1500;
/// The largest MTU of a veth.
const LARGEST: u32 = 65535;
/// Somewhere outside: TEST-NET-2 (RFC 5737), to which there is no route but the
/// default one. Nothing is sent there.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

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
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((OUTSIDE, 9)).ok()?;
    let mtu = getsockopt(&socket, sockopt::IpMtu).ok()?;
    u32::try_from(mtu).ok().filter(|mtu| *mtu > 0)
}

/// A node without IPv4. The kernel shows routes and MTUs of IPv6 as text.
fn ipv6() -> Option<u32> {
    let routes = fs::read_to_string("/proc/net/ipv6_route").ok()?;
    let device = default_device(&routes)?;
    let mtu = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/mtu")).ok()?;
    mtu.trim().parse().ok()
}

/// The device of the best default route. Fields: destination, its prefix length,
/// source, its prefix length, next hop, metric, two counters, flags, device; all
/// but the last in hexadecimal.
fn default_device(routes: &str) -> Option<&str> {
    let routes = routes.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[dst, length, _, _, _, metric, _, _, _, device] = fields.as_slice() else {
            return None;
        };
        let default = length == "00" && dst.bytes().all(|digit| digit == b'0') && device != "lo";
        default.then_some((metric, device))
    });
    routes.min().map(|(_, device)| device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_ipv6_default_route_counts_and_the_rejecting_one_on_lo_does_not() {
        let zero = "0".repeat(32);
        let line = |dst: &str, length: &str, metric: &str, device: &str| {
            format!(
                "{dst} {length} {zero} 00 {zero} {metric} 00000001 00000000 00000003 {device:>8}\n"
            )
        };
        let routes = [
            line(&zero, "00", "ffffffff", "lo"),
            line(&zero, "00", "00000400", "eth1"),
            line(&zero, "00", "00000064", "eth0"),
            line(&zero, "40", "00000001", "eth2"),
        ];
        assert_eq!(default_device(&routes.concat()), Some("eth0"));
        assert_eq!(default_device(&routes[0]), None);
        assert_eq!(default_device("nonsense\n"), None);
    }
}
