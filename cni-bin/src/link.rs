//! The messages that make, look at and remove a pod's port.
//!
//! ```text
//!        host namespace        |      pod namespace
//!                              |
//!   cbr0 --- trm0123456789ab ==|== eth0  10.88.0.7/32, fd88::7/128
//!   10.88.0.1/24               |         default via 10.88.0.1, which is on link
//!   fd88::1/64                 |         default via fd88::1, which is on link
//! ```
//!
//! *Routed ports*: a pod has no neighbour but the gateway, so that all it sends
//! passes the host's IP stack, where policies and Services are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use dataplane::attachment::MacAddr;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;

use crate::netlink::Batch;
use crate::netns::Netns;
use crate::spec::result::Route;

/// The host's end of a port, and the pod's end up to the point where it exists.
pub struct HostEnd<'a> {
    /// Name on the host.
    pub name: &'a str,
    /// Index of the bridge.
    pub bridge: u32,
    /// Whether frames to other isolated ports are dropped.
    pub isolated: bool,
    /// The pod's namespace.
    pub netns: &'a Netns,
    /// Name in the pod.
    pub pod_name: &'a str,
    /// The pod's Ethernet address.
    pub pod_mac: MacAddr,
    /// MTU of both ends.
    pub mtu: u32,
    /// The pod's addresses.
    pub ips: &'a [IpAddr],
}

/// The pod's end, once it exists.
pub struct PodEnd<'a> {
    /// Index in the pod's namespace.
    pub index: u32,
    /// Name in the pod.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// The pod's addresses.
    pub ips: &'a [IpAddr],
    /// Gateways, each made reachable on the link.
    pub gateways: &'a BTreeSet<IpAddr>,
    /// Routes, all with a next hop.
    pub routes: &'a [Route],
}

/// Index of an interface in the namespace of this thread. By `ioctl`, which is
/// much cheaper than asking by netlink.
pub fn index(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// The Ethernet address of a host-side veth: from its name, so that it is known
/// beforehand, and set, so that neither kernel nor udev make up another.
pub fn host_mac(name: &str) -> MacAddr {
    let mut mac = [0x0e, 0, 0, 0, 0, 0];
    let digits = &name[name.len().saturating_sub(10)..];
    for (byte, at) in mac[1..].iter_mut().zip((0..digits.len()).step_by(2)) {
        let digits = digits.get(at..at + 2).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    MacAddr(mac)
}

impl HostEnd<'_> {
    /// Adds the messages that create the pair. The first creates it, down; the
    /// later ones find it by name.
    pub fn push_to(&self, batch: &mut Batch) {
        let name = self.name;
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod_name.to_owned()),
            LinkAttribute::Address(self.pod_mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(self.netns.file().as_raw_fd()),
        ];
        let mut veth = LinkMessage::default();
        veth.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(host_mac(name).0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Controller(self.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let action = format!("create {name} and {} in the pod", self.pod_name);
        let create = NLM_F_CREATE | NLM_F_EXCL;
        batch.push(action, create, &RouteNetlinkMessage::NewLink(veth));

        // The kernel ignores port settings in the message that creates the port.
        let mut port = named(name);
        port.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(true),
                InfoBridgePort::Isolated(self.isolated),
            ])),
        ]));
        // A port needs no address of its own, nor the multicast that comes with it.
        port.attributes.extend(no_automatic_ipv6(self.ips));
        let action = format!("set up bridge port {name}");
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(port));

        let mut up = named(name);
        set_up(&mut up);
        batch.push(
            format!("set {name} up"),
            0,
            &RouteNetlinkMessage::NewLink(up),
        );

        // What the host knows of the address's last holder must not send the new
        // one's first packets astray. Reachable, not permanent: it ages by itself.
        for &ip in self.ips {
            let neighbour = neighbour(self.bridge, ip, self.pod_mac);
            let action = format!("add neighbour {ip}");
            let replace = NLM_F_CREATE | NLM_F_REPLACE;
            batch.push(
                action,
                replace,
                &RouteNetlinkMessage::NewNeighbour(neighbour),
            );
        }
    }
}

impl PodEnd<'_> {
    /// Adds the messages that make the pod's end usable.
    pub fn push_to(&self, batch: &mut Batch) {
        let name = self.name;
        let mut lo = LinkMessage::default();
        lo.header.index = 1;
        set_up(&mut lo);
        batch.push("set lo up in the pod", 0, &RouteNetlinkMessage::NewLink(lo));

        if let Some(quiet) = no_automatic_ipv6(self.ips) {
            let mut link = LinkMessage::default();
            link.header.index = self.index;
            link.attributes.push(quiet);
            let action = format!("set the address mode of {name} in the pod");
            batch.push(action, 0, &RouteNetlinkMessage::NewLink(link));
            let net = IpNet::new(self.mac.link_local().into(), 64);
            let net = net.expect("64 is a prefix length of IPv6");
            push_address(batch, name, self.index, net);
        }
        for &ip in self.ips {
            push_address(batch, name, self.index, IpNet::from(ip));
        }

        let mut up = LinkMessage::default();
        up.header.index = self.index;
        set_up(&mut up);
        let action = format!("set {name} up in the pod");
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(up));

        for &gateway in self.gateways {
            let mut route = route_message(IpNet::from(gateway), self.index);
            if gateway.is_ipv4() {
                route.header.scope = RouteScope::Link;
            }
            push_route(batch, format!("route {gateway} on link in the pod"), route);
        }
        for route in self.routes {
            self.push_route(batch, route);
        }
    }

    fn push_route(&self, batch: &mut Batch, route: &Route) {
        let mut message = route_message(route.dst, self.index);
        let attributes = &mut message.attributes;
        if let Some(gw) = route.gw {
            attributes.push(RouteAttribute::Gateway(gw.into()));
            // With a /32 nothing else is on the link by itself.
            if !self.gateways.contains(&gw) {
                message.header.flags = RouteFlags::Onlink;
            }
        }
        attributes.extend(route.priority.map(RouteAttribute::Priority));
        let metrics: Vec<RouteMetric> = [
            route.mtu.map(RouteMetric::Mtu),
            route.advmss.map(RouteMetric::Advmss),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        if let Some(table) = route.table.filter(|table| *table != 0) {
            message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
            message.attributes.push(RouteAttribute::Table(table));
        }
        if let Some(scope) = route.scope.and_then(|scope| u8::try_from(scope).ok()) {
            message.header.scope = scope.into();
        }
        push_route(batch, format!("route {} in the pod", route.dst), message);
    }
}

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

/// Asks for one link.
pub fn push_link_query(batch: &mut Batch, name: &str, index: u32) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    batch.push(
        format!("look at {name}"),
        0,
        &RouteNetlinkMessage::GetLink(link),
    );
}

/// Asks for the addresses of one link, of both families.
pub fn push_address_query(batch: &mut Batch, name: &str, index: u32) {
    let mut address = AddressMessage::default();
    address.header.index = index;
    let action = format!("list addresses of {name}");
    batch.push_dump(action, &RouteNetlinkMessage::GetAddress(address));
}

/// Asks for all routes of both families.
pub fn route_query() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetRoute(RouteMessage::default())
}

/// Removes a link and its peer.
pub fn removal(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(named(name))
}

/// A link message that finds its link by name.
pub fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

/// Makes a link message set its link up.
pub fn set_up(link: &mut LinkMessage) {
    link.header.flags |= LinkFlags::Up;
    link.header.change_mask |= LinkFlags::Up;
}

/// Keeps the kernel from making up IPv6 addresses, which would stay tentative
/// for a second or two; ours come with NODAD. Only where there is IPv6: a kernel
/// without refuses the attribute.
pub fn no_automatic_ipv6<'a>(ips: impl IntoIterator<Item = &'a IpAddr>) -> Option<LinkAttribute> {
    let has_ipv6 = ips.into_iter().any(IpAddr::is_ipv6);
    has_ipv6.then(|| {
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])])
    })
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

fn route_message(dst: IpNet, oif: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst.addr());
    message.header.destination_prefix_length = dst.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if dst.prefix_len() > 0 {
        let dst = RouteAttribute::Destination(dst.addr().into());
        message.attributes.push(dst);
    }
    message.attributes.push(RouteAttribute::Oif(oif));
    message
}

/// Beside routes that the namespace has already: a second attachment leads to the same
/// gateway by another interface.
fn push_route(batch: &mut Batch, action: String, message: RouteMessage) {
    let message = RouteNetlinkMessage::NewRoute(message);
    batch.push(action, NLM_F_CREATE | NLM_F_APPEND, &message);
}

fn neighbour(bridge: u32, ip: IpAddr, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = bridge;
    message.header.state = NeighbourState::Reachable;
    message.attributes = vec![
        NeighbourAttribute::Destination(ip.into()),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use dataplane::attachment::AttachmentKey;

    use super::*;

    #[test]
    fn the_host_mac_is_the_name_in_other_words_and_that_of_one_local_interface() {
        assert_eq!(host_mac("trm0123456789ab").to_string(), "0e:23:45:67:89:ab");
        assert_eq!(host_mac("x").0, [0x0e, 0, 0, 0, 0, 0]);
        let key = AttachmentKey {
            network: "n".into(),
            container_id: "c".into(),
            ifname: "eth0".into(),
        };
        let mac = host_mac(&key.host_ifname());
        assert_eq!(mac.0[0] & 3, 2);
        assert_ne!(mac.0[1..], [0; 5]);
    }
}
