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

/// `IFLA_AF_SPEC`, and what of an attribute's type is not a flag.
const AF_SPEC: u16 = 26;
const KIND_MASK: u16 = 0x3fff;
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
    /// Of a bridge: whether it keeps VLANs apart.
    pub filters_vlans: bool,
}

/// A VLAN of a bridge port (`struct bridge_vlan_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortVlan {
    /// Its number.
    pub vlan: u16,
    /// Whether frames that come in without a tag are in it.
    pub is_native: bool,
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

    /// The VLANs of the port with that index, from replies to
    /// [`push_vlan_query`](crate::link::vlan::push_vlan_query).
    pub fn vlans(&self, port: u32) -> Result<Vec<PortVlan>, NetlinkError> {
        let mut vlans = Vec::new();
        for body in self.bodies(NEW_LINK) {
            let header = body.get(..16).ok_or(NetlinkError::Malformed)?;
            if u32_at(header, 4)? != port {
                continue;
            }
            for attribute in attributes(&body[16..]) {
                let attribute = attribute?;
                if attribute.kind() & KIND_MASK == AF_SPEC {
                    vlans.extend(port_vlans(attribute.value())?);
                }
            }
        }
        Ok(vlans)
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
                if link.kind.as_deref() == Some("bridge") {
                    bridge_settings(value, &mut link)?;
                }
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

/// `IFLA_BR_VLAN_FILTERING`, and `IFLA_BR_NF_CALL_IPTABLES` with its IPv6 twin, in
/// `IFLA_INFO_DATA`.
fn bridge_settings(info: &[u8], link: &mut Link) -> Result<(), NetlinkError> {
    let mut calls = 0;
    for attribute in attributes(info) {
        let attribute = attribute?;
        if attribute.kind() != 2 {
            continue;
        }
        for setting in attributes(attribute.value()) {
            let setting = setting?;
            let is_on = setting.value() == [1];
            match setting.kind() {
                7 => link.filters_vlans = is_on,
                36 | 37 => calls += u8::from(is_on),
                _ => {}
            }
        }
    }
    link.calls_netfilter = calls == 2;
    Ok(())
}

/// The `IFLA_BRIDGE_VLAN_INFO`s in `IFLA_AF_SPEC`. Equal neighbours come as two, the first
/// and the last of their range.
fn port_vlans(spec: &[u8]) -> Result<Vec<PortVlan>, NetlinkError> {
    const VLAN_INFO: u16 = 2;
    /// `BRIDGE_VLAN_INFO_PVID`, `BRIDGE_VLAN_INFO_RANGE_BEGIN`, `BRIDGE_VLAN_INFO_RANGE_END`.
    const NATIVE: u16 = 1 << 1;
    const BEGIN: u16 = 1 << 3;
    const END: u16 = 1 << 4;
    let mut vlans = Vec::new();
    let mut begin = None;
    for attribute in attributes(spec) {
        let attribute = attribute?;
        if attribute.kind() != VLAN_INFO {
            continue;
        }
        let word = u32_at(attribute.value(), 0)?.to_ne_bytes();
        let flags = u16::from_ne_bytes([word[0], word[1]]);
        let vlan = u16::from_ne_bytes([word[2], word[3]]);
        let is_native = flags & NATIVE != 0;
        if flags & BEGIN != 0 {
            begin = Some(vlan);
            continue;
        }
        let begin = begin.take().filter(|_| flags & END != 0);
        let range = begin.unwrap_or(vlan)..=vlan;
        vlans.extend(range.map(|vlan| PortVlan { vlan, is_native }));
    }
    Ok(vlans)
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
