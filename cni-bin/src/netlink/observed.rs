//! What the kernel says about links, addresses and routes.
//!
//! Only the attributes that we ask about are read. A full parser must know every
//! attribute of every kernel, and has failed on new ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::attachment::MacAddr;
use ipnet::IpNet;
use netlink_packet_core::{NlaBuffer, NlasIterator};

use super::{Answer, NetlinkError};

/// `RTM_NEWLINK`, `RTM_NEWADDR`, `RTM_NEWROUTE`.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
/// `IF_OPER_UP`.
const OPER_UP: u8 = 6;

/// A link (`struct ifinfomsg`, `IFLA_*`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Whether it is up, by its administrator.
    pub up: bool,
    /// Whether it carries packets (RFC 2863, `operStatus`).
    pub operational: bool,
    /// Name.
    pub name: String,
    /// Ethernet address.
    pub mac: Option<MacAddr>,
    /// MTU.
    pub mtu: u32,
    /// Index of the bridge (or other master) that it is a port of.
    pub master: Option<u32>,
    /// Driver: `bridge`, `veth`.
    pub kind: Option<String>,
    /// `ip link set alias`.
    pub alias: Option<String>,
    /// Of a bridge: whether it hands frames of both families to the packet filter by a
    /// setting of its own.
    pub calls_netfilter: bool,
}

/// An address (`struct ifaddrmsg`, `IFA_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// Address and length of its prefix.
    pub net: IpNet,
}

/// A unicast route (`struct rtmsg`, `RTA_*`) with one next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObservedRoute {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; `None`: on link.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: Option<u32>,
}

impl Answer {
    /// The links among the replies.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.bodies(NEW_LINK).map(link).collect()
    }

    /// The addresses among the replies.
    pub fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let addresses = self.bodies(NEW_ADDRESS).map(address);
        addresses.filter_map(Result::transpose).collect()
    }

    /// The unicast routes among the replies, of all tables.
    pub fn routes(&self) -> Result<Vec<ObservedRoute>, NetlinkError> {
        let routes = self.bodies(NEW_ROUTE).map(route);
        routes.filter_map(Result::transpose).collect()
    }

    fn bodies(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        let replies = self.replies.iter();
        replies
            .filter(move |(k, _)| *k == kind)
            .map(|(_, body)| body.as_slice())
    }
}

fn link(body: &[u8]) -> Result<Link, NetlinkError> {
    let header = body.get(..16).ok_or(NetlinkError::Malformed)?;
    let mut link = Link {
        index: u32_at(header, 4)?,
        up: u32_at(header, 8)? & IFF_UP != 0,
        ..Link::default()
    };
    for attribute in attributes(&body[16..]) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            1 => link.mac = <[u8; 6]>::try_from(value).ok().map(MacAddr),
            3 => link.name = text(value),
            4 => link.mtu = u32_at(value, 0)?,
            10 => link.master = Some(u32_at(value, 0)?),
            16 => link.operational = value == [OPER_UP],
            18 => {
                link.kind = link_kind(value)?;
                link.calls_netfilter =
                    link.kind.as_deref() == Some("bridge") && calls_netfilter(value)?;
            }
            20 => link.alias = Some(text(value)).filter(|alias| !alias.is_empty()),
            _ => {}
        }
    }
    Ok(link)
}

/// `IFLA_INFO_KIND` in `IFLA_LINKINFO`.
fn link_kind(info: &[u8]) -> Result<Option<String>, NetlinkError> {
    for attribute in attributes(info) {
        let attribute = attribute?;
        if attribute.kind() == 1 {
            return Ok(Some(text(attribute.value())));
        }
    }
    Ok(None)
}

/// `IFLA_BR_NF_CALL_IPTABLES` and its IPv6 twin in `IFLA_INFO_DATA`.
fn calls_netfilter(info: &[u8]) -> Result<bool, NetlinkError> {
    let mut on = 0;
    for attribute in attributes(info) {
        let attribute = attribute?;
        if attribute.kind() != 2 {
            continue;
        }
        for setting in attributes(attribute.value()) {
            let setting = setting?;
            if matches!(setting.kind(), 36 | 37) && setting.value() == [1] {
                on += 1;
            }
        }
    }
    Ok(on == 2)
}

fn address(body: &[u8]) -> Result<Option<Address>, NetlinkError> {
    let header = body.get(..8).ok_or(NetlinkError::Malformed)?;
    let (family, prefix) = (header[0], header[1]);
    let (mut address, mut local) = (None, None);
    for attribute in attributes(&body[8..]) {
        let attribute = attribute?;
        match attribute.kind() {
            1 => address = ip(family, attribute.value()),
            // The interface's own on a point-to-point link, where 1 is the peer's.
            2 => local = ip(family, attribute.value()),
            _ => {}
        }
    }
    let Some(net) = local.or(address).and_then(|ip| IpNet::new(ip, prefix).ok()) else {
        return Ok(None);
    };
    Ok(Some(Address {
        index: u32_at(header, 4)?,
        net,
    }))
}

fn route(body: &[u8]) -> Result<Option<ObservedRoute>, NetlinkError> {
    let header = body.get(..12).ok_or(NetlinkError::Malformed)?;
    let (family, prefix, kind) = (header[0], header[1], header[7]);
    const RTN_UNICAST: u8 = 1;
    if kind != RTN_UNICAST {
        return Ok(None);
    }
    let mut dst = match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    };
    let (mut gateway, mut oif) = (None, None);
    for attribute in attributes(&body[12..]) {
        let attribute = attribute?;
        match attribute.kind() {
            1 => dst = ip(family, attribute.value()),
            4 => oif = Some(u32_at(attribute.value(), 0)?),
            5 => gateway = ip(family, attribute.value()),
            _ => {}
        }
    }
    let dst = dst.and_then(|ip| IpNet::new(ip, prefix).ok());
    Ok(dst.map(|dst| ObservedRoute { dst, gateway, oif }))
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<NlaBuffer<&[u8]>, NetlinkError>> {
    NlasIterator::new(bytes).map(|attribute| attribute.map_err(|_| NetlinkError::Malformed))
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        AF_INET6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, NetlinkError> {
    match bytes.get(at..at + 4) {
        Some(word) => Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])),
        None => Err(NetlinkError::Malformed),
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
