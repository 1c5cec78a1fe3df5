//! Packets whose sender is not who it says: by which port they came, and what about them was
//! forged.

use std::fmt;
use std::net::IpAddr;

use dataplane::attachment::{Attachment, MacAddr};
use dataplane::netlink::LoggedPacket;
use nix::net::if_::if_indextoname;
use serde::{Deserialize, Serialize};

use crate::index::pod_key;
use crate::verdict_log::directory::Directory;
use crate::verdict_log::packet::Headers;

/// `ETH_P_IP`, `ETH_P_ARP`, `ETH_P_IPV6`.
const IP: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;

/// ICMPv6 types.
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

/// Who forged what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Forgery {
    what: What,
    /// The address that the packet says is its sender's.
    claimed: IpAddr,
    /// The pod that sent it, `namespace/name`. The address may be another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// The pod's port on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    /// The hardware address that it says is its sender's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<MacAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum What {
    /// The address is not the pod's.
    Address,
    /// The address is, the hardware address is not.
    HardwareAddress,
    /// Pods are no routers.
    RouterAdvertisement,
    /// Pods are no routers.
    Redirect,
    /// No attachment is known that the port is of.
    UnknownPort,
}

/// The headers of such a packet; `None` where it is neither IP nor ARP.
pub(super) fn headers(packet: &LoggedPacket) -> Option<Headers> {
    match packet.ether_type {
        ARP => Headers::parse_arp(&packet.payload),
        IP | IP6 => Headers::parse(&packet.payload),
        _ => None,
    }
}

impl Forgery {
    pub(super) fn new(packet: &LoggedPacket, headers: &Headers, directory: &Directory) -> Self {
        // A port that is gone since has no name any more.
        let index = packet.port.or(packet.indev);
        let port = index.and_then(|index| if_indextoname(index).ok());
        let port = port.and_then(|name| name.into_string().ok());
        let attachment = port.as_deref().and_then(|port| directory.attachment(port));
        Self {
            what: what(headers, attachment),
            claimed: claimed(headers),
            pod: attachment.and_then(pod_key).map(|pod| pod.to_string()),
            port,
            mac: headers.arp_mac.or(packet.mac),
        }
    }

    pub(super) fn pod(&self) -> Option<&str> {
        self.pod.as_deref()
    }
}

/// An advertisement speaks for its target, a question whether an address is taken does, too.
fn claimed(headers: &Headers) -> IpAddr {
    let speaks_for_target = headers
        .icmp
        .is_some_and(|(kind, _)| kind == NEIGHBOUR_ADVERT)
        || headers.source.is_unspecified();
    let target = headers.nd_target.filter(|_| speaks_for_target);
    target.map_or(headers.source, IpAddr::from)
}

fn what(headers: &Headers, attachment: Option<&Attachment>) -> What {
    match headers.icmp {
        Some((ROUTER_ADVERT, _)) if headers.source.is_ipv6() => return What::RouterAdvertisement,
        Some((REDIRECT, _)) if headers.source.is_ipv6() => return What::Redirect,
        _ => {}
    }
    let Some(attachment) = attachment else {
        return What::UnknownPort;
    };
    let address = claimed(headers);
    let is_own = attachment.ips.contains(&address)
        || address == IpAddr::from(attachment.mac.link_local())
            && attachment.ips.iter().any(IpAddr::is_ipv6);
    match is_own {
        true => What::HardwareAddress,
        false => What::Address,
    }
}

/// `forged by lab/probe at trm0123456789ab: 10.88.0.3 is not its address`
impl fmt::Display for Forgery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("forged")?;
        if let Some(pod) = &self.pod {
            write!(f, " by {pod}")?;
        }
        if let Some(port) = &self.port {
            write!(f, " at {port}")?;
        }
        match (self.what, self.mac) {
            (What::Address, _) => write!(f, ": {} is not its address", self.claimed),
            (What::HardwareAddress, Some(mac)) => write!(f, ": {mac} is not its hardware address"),
            (What::HardwareAddress, None) => f.write_str(": not its hardware address"),
            (What::RouterAdvertisement, _) => f.write_str(": a pod is no router"),
            (What::Redirect, _) => f.write_str(": a pod redirects nobody"),
            (What::UnknownPort, _) => f.write_str(": nothing is known of the port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn attachment(ips: &[&str]) -> Attachment {
        let ips: Vec<IpAddr> = ips
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect();
        fixture::attachment("lab", "probe", &ips)
    }

    /// An ICMPv6 message about a target, or none.
    fn message(source: &str, kind: u8, target: &str) -> Headers {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
        for address in [source, "ff02::1"] {
            let address: std::net::Ipv6Addr = address.parse().expect("an address");
            bytes.extend(address.octets());
        }
        bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        let target: std::net::Ipv6Addr = target.parse().expect("an address");
        bytes.extend(target.octets());
        Headers::parse(&bytes).expect("a packet")
    }

    #[test]
    fn what_was_forged_is_told_by_the_message_and_the_port() {
        let both = attachment(&["10.88.0.2", "fd88::2"]);
        let link_local = both.mac.link_local().to_string();
        for (source, kind, target, expected, claims) in [
            ("fd88::9", 128, "::", What::Address, "fd88::9"),
            ("fd88::2", 128, "::", What::HardwareAddress, "fd88::2"),
            (&link_local, 133, "::", What::HardwareAddress, &link_local),
            (&link_local, 136, "fd88::9", What::Address, "fd88::9"),
            ("::", 135, "fd88::9", What::Address, "fd88::9"),
            ("fd88::9", 135, "fd88::1", What::Address, "fd88::9"),
            ("fd88::2", 134, "::", What::RouterAdvertisement, "fd88::2"),
            ("fd88::2", 137, "::", What::Redirect, "fd88::2"),
        ] {
            let headers = message(source, kind, target);
            assert_eq!(what(&headers, Some(&both)), expected, "{source} {kind}");
            assert_eq!(claimed(&headers).to_string(), claims, "{source} {kind}");
        }
        let ping = message("fd88::2", 128, "::");
        assert_eq!(what(&ping, None), What::UnknownPort);
        // Without IPv6 there is no link-local address either.
        let v4_only = attachment(&["10.88.0.2"]);
        let solicits = message(&v4_only.mac.link_local().to_string(), 135, "fd88::1");
        assert_eq!(what(&solicits, Some(&v4_only)), What::Address);
    }
}
