//! What the kernel says about links, addresses and routes: of the attributes of an answer
//! those that the plugin asks about.

use std::net::IpAddr;

use dataplane::attachment::MacAddr;
use ipnet::IpNet;
use nix::libc::{self, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE};

use super::read::{attributes, ip, mac, text, u32_at, unspecified};
use super::{Answer, NetlinkError};

/// `IF_OPER_UP` (`linux/if.h`), one byte in `IFLA_OPERSTATE`.
const IF_OPER_UP: u8 = libc::IF_OPER_UP as u8;

/// Settings of a link by protocol (`linux/if_link.h`), in attributes named after the families.
const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;

/// Settings of a bridge (`linux/if_link.h`).
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;

/// VLANs of a port (`linux/if_bridge.h`).
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;

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
    /// Whether IPv4 packets that come in by it are forwarded; `None`: it has no IPv4.
    pub forwards_ipv4: Option<bool>,
    /// As for IPv4.
    pub forwards_ipv6: Option<bool>,
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
        self.bodies(RTM_NEWLINK).map(link).collect()
    }

    /// The addresses among the replies.
    pub fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let addresses = self.bodies(RTM_NEWADDR).map(address);
        addresses.filter_map(Result::transpose).collect()
    }

    /// The unicast routes among the replies, of all tables.
    pub fn routes(&self) -> Result<Vec<ObservedRoute>, NetlinkError> {
        let routes = self.bodies(RTM_NEWROUTE).map(route);
        routes.filter_map(Result::transpose).collect()
    }

    /// The VLANs of the port with that index, from replies to
    /// [`push_vlan_query`](crate::link::vlan::push_vlan_query).
    pub fn vlans(&self, port: u32) -> Result<Vec<PortVlan>, NetlinkError> {
        let mut vlans = Vec::new();
        for body in self.bodies(RTM_NEWLINK) {
            if u32_at(body, 4)? != port {
                continue;
            }
            for attribute in attributes(body, LINK_HEADER)? {
                let attribute = attribute?;
                if attribute.kind() == libc::IFLA_AF_SPEC {
                    vlans.extend(port_vlans(attribute.value())?);
                }
            }
        }
        Ok(vlans)
    }
}

/// Lengths of `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

fn link(body: &[u8]) -> Result<Link, NetlinkError> {
    let mut link = Link {
        index: u32_at(body, 4)?,
        up: u32_at(body, 8)? & libc::IFF_UP as u32 != 0,
        ..Link::default()
    };
    for attribute in attributes(body, LINK_HEADER)? {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_ADDRESS => link.mac = mac(value),
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_MASTER => link.master = Some(u32_at(value, 0)?),
            libc::IFLA_OPERSTATE => link.operational = value == [IF_OPER_UP],
            libc::IFLA_LINKINFO => link_info(value, &mut link)?,
            libc::IFLA_AF_SPEC => protocols(value, &mut link)?,
            libc::IFLA_IFALIAS => link.alias = Some(text(value)).filter(|alias| !alias.is_empty()),
            _ => {}
        }
    }
    Ok(link)
}

/// Of the settings that each protocol has for the link (`IFLA_INET_CONF`, `IFLA_INET6_CONF`)
/// the first one, `forwarding`.
fn protocols(spec: &[u8], link: &mut Link) -> Result<(), NetlinkError> {
    for protocol in attributes(spec, 0)? {
        let protocol = protocol?;
        let (settings, forwards) = match protocol.kind() {
            AF_INET => (IFLA_INET_CONF, &mut link.forwards_ipv4),
            AF_INET6 => (IFLA_INET6_CONF, &mut link.forwards_ipv6),
            _ => continue,
        };
        for attribute in attributes(protocol.value(), 0)? {
            let attribute = attribute?;
            if attribute.kind() == settings {
                *forwards = Some(u32_at(attribute.value(), 0)? != 0);
            }
        }
    }
    Ok(())
}

/// The driver, and of a bridge its settings.
fn link_info(info: &[u8], link: &mut Link) -> Result<(), NetlinkError> {
    for attribute in attributes(info, 0)? {
        let attribute = attribute?;
        match attribute.kind() {
            libc::IFLA_INFO_KIND => link.kind = Some(text(attribute.value())),
            // The kind comes first (rtnl_link_info_fill).
            libc::IFLA_INFO_DATA if link.kind.as_deref() == Some("bridge") => {
                bridge_settings(attribute.value(), link)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn bridge_settings(data: &[u8], link: &mut Link) -> Result<(), NetlinkError> {
    let mut calls = 0;
    for setting in attributes(data, 0)? {
        let setting = setting?;
        let is_on = setting.value() == [1];
        match setting.kind() {
            IFLA_BR_VLAN_FILTERING => link.filters_vlans = is_on,
            IFLA_BR_NF_CALL_IPTABLES | IFLA_BR_NF_CALL_IP6TABLES => calls += u8::from(is_on),
            _ => {}
        }
    }
    link.calls_netfilter = calls == 2;
    Ok(())
}

/// The VLANs in `IFLA_AF_SPEC`. Equal neighbours come as two, the first and the last of
/// their range.
fn port_vlans(spec: &[u8]) -> Result<Vec<PortVlan>, NetlinkError> {
    let mut vlans = Vec::new();
    let mut begin = None;
    for attribute in attributes(spec, 0)? {
        let attribute = attribute?;
        if attribute.kind() != IFLA_BRIDGE_VLAN_INFO {
            continue;
        }
        let word = u32_at(attribute.value(), 0)?.to_ne_bytes();
        let flags = u16::from_ne_bytes([word[0], word[1]]);
        let vlan = u16::from_ne_bytes([word[2], word[3]]);
        let is_native = flags & BRIDGE_VLAN_INFO_PVID != 0;
        if flags & BRIDGE_VLAN_INFO_RANGE_BEGIN != 0 {
            begin = Some(vlan);
            continue;
        }
        let begin = begin
            .take()
            .filter(|_| flags & BRIDGE_VLAN_INFO_RANGE_END != 0);
        let range = begin.unwrap_or(vlan)..=vlan;
        vlans.extend(range.map(|vlan| PortVlan { vlan, is_native }));
    }
    Ok(vlans)
}

fn address(body: &[u8]) -> Result<Option<Address>, NetlinkError> {
    let (mut address, mut local) = (None, None);
    for attribute in attributes(body, ADDRESS_HEADER)? {
        let attribute = attribute?;
        match attribute.kind() {
            libc::IFA_ADDRESS => address = ip(attribute.value()),
            // The interface's own on a point-to-point link, where the address is the peer's.
            libc::IFA_LOCAL => local = ip(attribute.value()),
            _ => {}
        }
    }
    let prefix = body[1];
    let Some(net) = local.or(address).and_then(|ip| IpNet::new(ip, prefix).ok()) else {
        return Ok(None);
    };
    Ok(Some(Address {
        index: u32_at(body, 4)?,
        net,
    }))
}

fn route(body: &[u8]) -> Result<Option<ObservedRoute>, NetlinkError> {
    let header: &[u8; ROUTE_HEADER] = body.first_chunk().ok_or(NetlinkError::Malformed)?;
    let (prefix, kind) = (header[1], header[7]);
    let Some(unspecified) = unspecified(header[0]).filter(|_| kind == libc::RTN_UNICAST) else {
        return Ok(None);
    };
    let mut dst = Some(unspecified);
    let (mut gateway, mut oif) = (None, None);
    for attribute in attributes(body, ROUTE_HEADER)? {
        let attribute = attribute?;
        match attribute.kind() {
            libc::RTA_DST => dst = ip(attribute.value()),
            libc::RTA_OIF => oif = Some(u32_at(attribute.value(), 0)?),
            libc::RTA_GATEWAY => gateway = ip(attribute.value()),
            _ => {}
        }
    }
    let dst = dst.and_then(|ip| IpNet::new(ip, prefix).ok());
    Ok(dst.map(|dst| ObservedRoute { dst, gateway, oif }))
}
