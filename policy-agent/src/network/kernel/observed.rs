//! What the kernel says about links, routes and neighbours: of the attributes of an answer
//! those that the agent asks about.

use std::net::IpAddr;

use cni_bin::netlink::read::{attributes, ip, mac, text, u32_at, unspecified};
use cni_bin::netlink::{Answer, NetlinkError};
use dataplane::attachment::MacAddr;
use ipnet::IpNet;
use nix::libc::{self, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE};

pub(super) use libc::{RTN_LOCAL, RTN_UNICAST, RTN_UNREACHABLE};

/// Settings of a VXLAN device (`linux/if_link.h`).
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

/// Of a route (`linux/rtnetlink.h`): a next hop of the other family, a next hop object.
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

/// A link (`struct ifinfomsg`, `IFLA_*`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) mac: Option<MacAddr>,
    /// Driver.
    pub(super) kind: String,
    pub(super) vxlan: Vxlan,
}

/// `IFLA_INFO_DATA` of a VXLAN device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Vxlan {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) local: Option<IpAddr>,
    pub(super) learning: bool,
}

/// A route (`struct rtmsg`, `RTA_*`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    pub(super) destination: IpNet,
    pub(super) table: u32,
    pub(super) protocol: u8,
    /// `RTN_*`.
    pub(super) kind: u8,
    pub(super) metric: u32,
    pub(super) gateway: Option<IpAddr>,
    pub(super) link: Option<u32>,
    pub(super) source: Option<IpAddr>,
    /// More than one next hop, or one of the other family.
    pub(super) is_complex: bool,
}

/// A neighbour or forwarding entry (`struct ndmsg`, `NDA_*`) that somebody has made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Neighbour {
    pub(super) link: u32,
    pub(super) address: IpAddr,
    pub(super) mac: MacAddr,
}

pub(super) fn links(answer: &Answer) -> Result<Vec<Link>, NetlinkError> {
    answer.bodies(RTM_NEWLINK).map(link).collect()
}

pub(super) fn routes(answer: &Answer) -> Result<Vec<Route>, NetlinkError> {
    let routes = answer.bodies(RTM_NEWROUTE).map(route);
    routes.filter_map(Result::transpose).collect()
}

/// Those that do not age.
pub(super) fn neighbours(answer: &Answer) -> Result<Vec<Neighbour>, NetlinkError> {
    let neighbours = answer.bodies(RTM_NEWNEIGH).map(neighbour);
    neighbours.filter_map(Result::transpose).collect()
}

/// Lengths of `struct ifinfomsg`, `struct rtmsg` and `struct ndmsg`.
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;

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
            libc::IFLA_LINKINFO => link_info(value, &mut link)?,
            _ => {}
        }
    }
    Ok(link)
}

/// The driver, and of a VXLAN device its settings.
fn link_info(info: &[u8], link: &mut Link) -> Result<(), NetlinkError> {
    for attribute in attributes(info, 0)? {
        let attribute = attribute?;
        match attribute.kind() {
            libc::IFLA_INFO_KIND => link.kind = text(attribute.value()),
            // The kind comes first (rtnl_link_info_fill).
            libc::IFLA_INFO_DATA if link.kind == "vxlan" => link.vxlan = vxlan(attribute.value())?,
            _ => {}
        }
    }
    Ok(())
}

fn vxlan(data: &[u8]) -> Result<Vxlan, NetlinkError> {
    let mut vxlan = Vxlan::default();
    for attribute in attributes(data, 0)? {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_VXLAN_ID => vxlan.vni = u32_at(value, 0)?,
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = ip(value),
            IFLA_VXLAN_LEARNING => vxlan.learning = value != [0],
            IFLA_VXLAN_PORT => {
                let bytes = value.first_chunk().ok_or(NetlinkError::Malformed)?;
                vxlan.port = u16::from_be_bytes(*bytes);
            }
            _ => {}
        }
    }
    Ok(vxlan)
}

fn route(body: &[u8]) -> Result<Option<Route>, NetlinkError> {
    let header: &[u8; ROUTE_HEADER] = body.first_chunk().ok_or(NetlinkError::Malformed)?;
    let Some(unspecified) = unspecified(header[0]) else {
        return Ok(None);
    };
    let mut address = unspecified;
    let mut route = Route {
        destination: IpNet::from(unspecified),
        table: header[4].into(),
        protocol: header[5],
        kind: header[7],
        metric: 0,
        gateway: None,
        link: None,
        source: None,
        is_complex: false,
    };
    for attribute in attributes(body, ROUTE_HEADER)? {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            libc::RTA_DST => address = ip(value).ok_or(NetlinkError::Malformed)?,
            libc::RTA_OIF => route.link = Some(u32_at(value, 0)?),
            libc::RTA_GATEWAY => route.gateway = ip(value),
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            libc::RTA_PREFSRC => route.source = ip(value),
            libc::RTA_TABLE => route.table = u32_at(value, 0)?,
            libc::RTA_MULTIPATH | RTA_VIA | RTA_NH_ID => route.is_complex = true,
            _ => {}
        }
    }
    route.destination = IpNet::new(address, header[1]).map_err(|_| NetlinkError::Malformed)?;
    Ok(Some(route))
}

fn neighbour(body: &[u8]) -> Result<Option<Neighbour>, NetlinkError> {
    let header: &[u8; NEIGHBOUR_HEADER] = body.first_chunk().ok_or(NetlinkError::Malformed)?;
    let (mut address, mut hardware) = (None, None);
    for attribute in attributes(body, NEIGHBOUR_HEADER)? {
        let attribute = attribute?;
        match attribute.kind() {
            libc::NDA_DST => address = ip(attribute.value()),
            libc::NDA_LLADDR => hardware = mac(attribute.value()),
            _ => {}
        }
    }
    let is_permanent = u16::from_ne_bytes([header[8], header[9]]) & libc::NUD_PERMANENT != 0;
    let found = address.zip(hardware).filter(|_| is_permanent);
    let link = u32_at(header, 4)?;
    Ok(found.map(|(address, mac)| Neighbour { link, address, mac }))
}
