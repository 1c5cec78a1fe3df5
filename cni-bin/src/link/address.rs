//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{RouteAttribute, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{family, push_route, route_message};
use crate::netlink::Batch;

/// Seconds after which the kernel has its own route to an address, however busy it is.
const SOON: u32 = 10;
/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u8 = 255;

/// Adds an address that is usable at once, without duplicate detection.
pub fn push_address(batch: &mut Batch, name: &str, index: u32, net: IpNet) {
    let action = format!("add address {net} to {name}");
    let message = RouteNetlinkMessage::NewAddress(address_message(index, net));
    batch.push(action, NLM_F_CREATE | NLM_F_EXCL, &message);
}

/// Removes an address.
pub fn push_address_removal(batch: &mut Batch, name: &str, index: u32, net: IpNet) {
    let action = format!("remove address {net} from {name}");
    let message = RouteNetlinkMessage::DelAddress(address_message(index, net));
    batch.push(action, 0, &message);
}

/// Has what is sent to an address taken in at once: to be added when the link is up.
///
/// The kernel's own route to an IPv6 address comes by a work of its own, also where there is
/// no duplicate detection to wait for, and until then it takes packets to that address for
/// those of others. This one leads there meanwhile, and expires.
pub fn push_route_to_address(batch: &mut Batch, index: u32, ip: IpAddr) {
    if ip.is_ipv4() {
        return;
    }
    let mut route = route_message(IpNet::from(ip), index);
    route.header.kind = RouteType::Local;
    route.header.table = TABLE_LOCAL;
    route.attributes.push(RouteAttribute::Expires(SOON));
    push_route(batch, format!("route {ip} to itself"), route);
}

/// Asks for the addresses of one link, of both families.
pub fn push_address_query(batch: &mut Batch, name: &str, index: u32) {
    let mut address = AddressMessage::default();
    address.header.index = index;
    let action = format!("list addresses of {name}");
    batch.push_dump(action, &RouteNetlinkMessage::GetAddress(address));
}

/// Asks for the IPv4 addresses of one link.
pub fn push_ipv4_query(batch: &mut Batch, name: &str, index: u32) {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.index = index;
    let action = format!("list IPv4 addresses of {name}");
    batch.push_dump(action, &RouteNetlinkMessage::GetAddress(address));
}

/// Asks for an IPv6 address of a link, which is an error where the link does not have it.
pub fn push_ipv6_query(batch: &mut Batch, name: &str, index: u32, ip: IpAddr) {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet6;
    address.header.index = index;
    address.attributes.push(AddressAttribute::Address(ip));
    let action = format!("look for {ip} on {name}");
    batch.push(action, 0, &RouteNetlinkMessage::GetAddress(address));
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes = match net {
        IpNet::V4(v4) => vec![
            AddressAttribute::Local(net.addr()),
            AddressAttribute::Address(net.addr()),
        ]
        .into_iter()
        .chain((net.prefix_len() < 31).then(|| AddressAttribute::Broadcast(v4.broadcast())))
        .collect(),
        IpNet::V6(v6) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            if v6.addr().is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
            vec![
                AddressAttribute::Local(net.addr()),
                AddressAttribute::Flags(AddressFlags::Nodad),
            ]
        }
    };
    message
}
