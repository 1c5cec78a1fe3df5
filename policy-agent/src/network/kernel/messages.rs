//! The messages that ask for, make and remove what is ours.

use std::net::IpAddr;

use cni_bin::link::{named, no_automatic_ipv6, push_address, push_address_removal, set_up};
use cni_bin::netlink::Batch;
use dataplane::attachment::MacAddr;
use dataplane::object::IpFamily;
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::super::PROTOCOL;
use super::super::change::{Change, RouteKey, Step, Target};
use super::super::plan::Tunnel;

/// For what must not be there yet.
pub(super) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// Asks for the route to an address.
pub(super) fn lookup(address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetRoute(route_to(IpNet::from(address)))
}

/// Asks for the neighbours on a link.
pub(super) fn neighbours(link: u32) -> RouteNetlinkMessage {
    entries(AddressFamily::Unspec, link)
}

/// Asks for the forwarding entries of a tunnel.
pub(super) fn remotes(link: u32) -> RouteNetlinkMessage {
    entries(AddressFamily::Bridge, link)
}

fn entries(family: AddressFamily, link: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::IfIndex(link));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Creates a tunnel, which is down. It is bound to no link: which one its packets take is a
/// matter of the node's routes, and it outlives them all.
pub(super) fn tunnel(name: &str, tunnel: &Tunnel) -> RouteNetlinkMessage {
    let local = match tunnel.local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    };
    let mut link = named(name);
    link.attributes.extend([
        LinkAttribute::Address(tunnel.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(tunnel.vni),
                local,
                InfoVxlan::Port(tunnel.port),
                InfoVxlan::Learning(false),
            ])),
        ]),
    ]);
    RouteNetlinkMessage::NewLink(link)
}

/// Sets what can be changed of a tunnel, and sets it up. The kernel takes some of it only for
/// a link that exists.
pub(super) fn tunnel_settings(name: &str, tunnel: &Tunnel) -> RouteNetlinkMessage {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::Mtu(tunnel.mtu));
    // No link-local address: nobody there listens to what the kernel would do with it.
    link.attributes.extend(no_automatic_ipv6(&tunnel.addresses));
    set_up(&mut link);
    RouteNetlinkMessage::SetLink(link)
}

pub(super) fn push_change(batch: &mut Batch, change: &Change) {
    match *change {
        Change::Address(Step::Remove, link, ip) => {
            push_address_removal(batch, "the tunnel", link, IpNet::from(ip));
        }
        Change::Address(_, link, ip) => push_address(batch, "the tunnel", link, IpNet::from(ip)),
        Change::Neighbour(step, link, ip, mac) => {
            let family = match IpFamily::of(ip) {
                IpFamily::V4 => AddressFamily::Inet,
                IpFamily::V6 => AddressFamily::Inet6,
            };
            let flags = NeighbourFlags::empty();
            push_entry(batch, change, step, entry(family, link, ip, mac, flags));
        }
        Change::Remote(step, link, mac, ip) => {
            let flags = NeighbourFlags::Own;
            let entry = entry(AddressFamily::Bridge, link, ip, mac, flags);
            push_entry(batch, change, step, entry);
        }
        Change::Route(step, key, target) => push_route(batch, change, step, key, target),
    }
}

fn push_entry(batch: &mut Batch, change: &Change, step: Step, entry: NeighbourMessage) {
    let action = change.to_string();
    match step {
        Step::Remove => batch.push(action, 0, &RouteNetlinkMessage::DelNeighbour(entry)),
        Step::Add | Step::Replace => {
            batch.push(action, PUT, &RouteNetlinkMessage::NewNeighbour(entry));
        }
    }
}

fn entry(
    family: AddressFamily,
    link: u32,
    ip: IpAddr,
    mac: MacAddr,
    flags: NeighbourFlags,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = flags;
    let address = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

fn push_route(batch: &mut Batch, change: &Change, step: Step, key: RouteKey, target: Target) {
    let mut message = route_to(key.destination);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    // With a removal it is a condition: that of nobody else is removed.
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    if key.metric != 0 {
        let metric = RouteAttribute::Priority(key.metric);
        message.attributes.push(metric);
    }
    if step == Step::Remove {
        message.header.scope = RouteScope::NoWhere;
        let message = RouteNetlinkMessage::DelRoute(message);
        batch.push(change.to_string(), 0, &message);
        return;
    }
    match target {
        Target::Via {
            gateway,
            link,
            source,
        } => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = RouteScope::Universe;
            message.header.flags = RouteFlags::Onlink;
            message.attributes.extend([
                RouteAttribute::Gateway(gateway.into()),
                RouteAttribute::Oif(link),
            ]);
            let source = source.map(|source| RouteAttribute::PrefSource(source.into()));
            message.attributes.extend(source);
        }
        Target::Unreachable | Target::Other => message.header.kind = RouteType::Unreachable,
    }
    let flags = match step {
        Step::Replace => PUT,
        Step::Add | Step::Remove => CREATE,
    };
    let message = RouteNetlinkMessage::NewRoute(message);
    batch.push(change.to_string(), flags, &message);
}

fn route_to(destination: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = destination.prefix_len();
    let address = RouteAttribute::Destination(destination.addr().into());
    message.attributes.push(address);
    message
}
