//! What the kernel says about links, routes and neighbours. Only the attributes that we ask
//! about are read: a full parser fails on those of newer kernels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_bin::netlink::{Answer, NetlinkError};
use dataplane::attachment::MacAddr;
use ipnet::IpNet;
use rtnetlink::packet_core::{NlaBuffer, NlasIterator};

/// `RTM_NEWLINK`, `RTM_NEWROUTE`, `RTM_NEWNEIGH`.
const NEW_LINK: u16 = 16;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const NUD_PERMANENT: u16 = 0x80;

/// `RTN_UNICAST`, `RTN_LOCAL`, `RTN_UNREACHABLE`.
pub(super) const UNICAST: u8 = 1;
pub(super) const LOCAL: u8 = 2;
pub(super) const UNREACHABLE: u8 = 7;

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
    bodies(answer, NEW_LINK).map(link).collect()
}

pub(super) fn routes(answer: &Answer) -> Result<Vec<Route>, NetlinkError> {
    let routes = bodies(answer, NEW_ROUTE).map(route);
    routes.filter_map(Result::transpose).collect()
}

/// Those that do not age.
pub(super) fn neighbours(answer: &Answer) -> Result<Vec<Neighbour>, NetlinkError> {
    let neighbours = bodies(answer, NEW_NEIGHBOUR).map(neighbour);
    neighbours.filter_map(Result::transpose).collect()
}

fn bodies(answer: &Answer, kind: u16) -> impl Iterator<Item = &[u8]> {
    let replies = answer.replies.iter();
    replies
        .filter(move |(k, _)| *k == kind)
        .map(|(_, body)| body.as_slice())
}

fn link(body: &[u8]) -> Result<Link, NetlinkError> {
    let mut link = Link {
        index: u32_at(body, 4)?,
        up: u32_at(body, 8)? & IFF_UP != 0,
        ..Link::default()
    };
    for attribute in attributes(body, 16)? {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            1 => link.mac = <[u8; 6]>::try_from(value).ok().map(MacAddr),
            3 => link.name = text(value),
            4 => link.mtu = u32_at(value, 0)?,
            18 => {
                for attribute in attributes(value, 0)? {
                    let attribute = attribute?;
                    match attribute.kind() {
                        1 => link.kind = text(attribute.value()),
                        // The kind comes first (rtnl_link_info_fill).
                        2 if link.kind == "vxlan" => link.vxlan = vxlan(attribute.value())?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

fn vxlan(info: &[u8]) -> Result<Vxlan, NetlinkError> {
    let mut vxlan = Vxlan::default();
    for attribute in attributes(info, 0)? {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            1 => vxlan.vni = u32_at(value, 0)?,
            4 | 17 => vxlan.local = ip(value),
            7 => vxlan.learning = value != [0],
            15 => {
                let bytes = value.first_chunk().ok_or(NetlinkError::Malformed)?;
                vxlan.port = u16::from_be_bytes(*bytes);
            }
            _ => {}
        }
    }
    Ok(vxlan)
}

fn route(body: &[u8]) -> Result<Option<Route>, NetlinkError> {
    let header: &[u8; 12] = body.first_chunk().ok_or(NetlinkError::Malformed)?;
    let unspecified = match header[0] {
        AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return Ok(None),
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
    for attribute in attributes(body, 12)? {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            1 => address = ip(value).ok_or(NetlinkError::Malformed)?,
            4 => route.link = Some(u32_at(value, 0)?),
            5 => route.gateway = ip(value),
            6 => route.metric = u32_at(value, 0)?,
            7 => route.source = ip(value),
            15 => route.table = u32_at(value, 0)?,
            // RTA_MULTIPATH, RTA_VIA, RTA_NH_ID
            9 | 18 | 30 => route.is_complex = true,
            _ => {}
        }
    }
    route.destination = IpNet::new(address, header[1]).map_err(|_| NetlinkError::Malformed)?;
    Ok(Some(route))
}

fn neighbour(body: &[u8]) -> Result<Option<Neighbour>, NetlinkError> {
    let header: &[u8; 12] = body.first_chunk().ok_or(NetlinkError::Malformed)?;
    let (mut address, mut mac) = (None, None);
    for attribute in attributes(body, 12)? {
        let attribute = attribute?;
        match attribute.kind() {
            1 => address = ip(attribute.value()),
            2 => mac = <[u8; 6]>::try_from(attribute.value()).ok().map(MacAddr),
            _ => {}
        }
    }
    let is_permanent = u16::from_ne_bytes([header[8], header[9]]) & NUD_PERMANENT != 0;
    let found = address.zip(mac).filter(|_| is_permanent);
    let link = u32_at(header, 4)?;
    Ok(found.map(|(address, mac)| Neighbour { link, address, mac }))
}

type Attributes<'a> = NlasIterator<&'a [u8]>;

/// The attributes behind a header of that length.
fn attributes(
    body: &[u8],
    header: usize,
) -> Result<impl Iterator<Item = Result<NlaBuffer<&[u8]>, NetlinkError>>, NetlinkError> {
    let rest = body.get(header..).ok_or(NetlinkError::Malformed)?;
    let all: Attributes<'_> = NlasIterator::new(rest);
    Ok(all.map(|attribute| attribute.map_err(|_| NetlinkError::Malformed)))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, NetlinkError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_ne_bytes(*word))
        .ok_or(NetlinkError::Malformed)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
