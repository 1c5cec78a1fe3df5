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
//! passes the host's IP stack, where policies and Services are. In mode *l2* the
//! addresses have their subnets' lengths and pods are neighbours.
//!
//! ```text
//!   trm0123456789ab ===|== eth0  10.88.0.7/32, fd88::7/128
//!   10.88.0.1/32       |         default via 10.88.0.1, whose Ethernet address it knows
//!   fd88::1/128        |         default via fd88::1, likewise
//! ```
//!
//! *Routed*: there is no bridge; every veth carries the gateways, as those of the
//! reference `ptp` plugin do.

mod address;
mod chosen;
pub mod vlan;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use dataplane::attachment::MacAddr;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;

use crate::netlink::{Batch, NetlinkError, is_found};
use crate::netns::Netns;
use crate::spec::Vlans;
use crate::spec::result::Route;

pub use address::{
    push_address, push_address_query, push_address_removal, push_ipv4_query, push_ipv6_query,
    push_route_to_address,
};
pub use chosen::chosen_index;

/// Queues of each end. By default the kernel makes as many as the machine can have processors
/// and turns all but one off again, which waits for every processor, twice per pair
/// (`veth_init_queues`), and leaves the memory of all of them allocated.
const QUEUES: u32 = 1;

/// What makes a link a port of a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BridgePort<'a> {
    /// Index of the bridge.
    pub bridge: u32,
    /// Index of the interface by which the node reaches the pod: the bridge, or the gateway
    /// of the pod's VLAN, which it need not have.
    pub gateway: Option<u32>,
    /// Whether frames may go back where they came from.
    pub hairpin: bool,
    /// Whether frames to other isolated ports are dropped.
    pub isolated: bool,
    /// Its VLANs; the port's index is a chosen one then.
    pub vlans: Option<&'a Vlans>,
}

/// The host's end of a pod's link, and the pod's end up to the point where it exists.
pub struct HostEnd<'a> {
    /// Name on the host.
    pub name: &'a str,
    /// Index on the host, where it is not the kernel's to choose: [`chosen_index`].
    pub index: Option<u32>,
    /// The bridge port that it is; `None` for a routed veth.
    pub port: Option<BridgePort<'a>>,
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

/// What the host's end of a routed veth has: what a bridge would have, for one pod.
pub struct RoutedEnd<'a> {
    /// Index on the host.
    pub index: u32,
    /// Name on the host.
    pub name: &'a str,
    /// The pod's Ethernet address.
    pub pod_mac: MacAddr,
    /// The pod's addresses.
    pub ips: &'a [IpAddr],
    /// The gateways, which every such veth carries.
    pub gateways: &'a BTreeSet<IpAddr>,
}

/// The pod's end, once it exists.
pub struct PodEnd<'a> {
    /// Index in the pod's namespace.
    pub index: u32,
    /// Name in the pod.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// The pod's addresses, with the lengths of the prefixes that are on the link.
    pub nets: &'a [IpNet],
    /// Gateways, each made reachable on the link.
    pub gateways: &'a BTreeSet<IpAddr>,
    /// Gateways with their Ethernet address, where that is not to be asked for, or not yet.
    pub neighbours: &'a [(IpAddr, MacAddr)],
    /// How long it holds.
    pub neighbour_state: NeighbourState,
    /// Routes.
    pub routes: &'a [Route],
    /// Whether the link is set up at all.
    pub up: bool,
}

/// Index of an interface in the namespace of this thread. By `ioctl`, which is
/// much cheaper than asking by netlink.
pub fn index(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// Whether the namespace of this thread has the interface: for those who undo or refuse
/// by the answer, to whom "nobody knows" is not "no".
pub fn exists(name: &str) -> Result<bool, NetlinkError> {
    is_found(if_nametoindex(name))
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

/// The Ethernet address of a pod that has no other: from the name of its veth on the
/// host, so that it is the same each time.
pub fn pod_mac(host_name: &str) -> MacAddr {
    let MacAddr([_, rest @ ..]) = host_mac(host_name);
    let [a, b, c, d, e] = rest;
    MacAddr([0x0a, a, b, c, d, e])
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
            LinkAttribute::NumTxQueues(QUEUES),
            LinkAttribute::NumRxQueues(QUEUES),
        ];
        let mut veth = LinkMessage::default();
        veth.header.index = self.index.unwrap_or_default();
        veth.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(host_mac(name).0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NumTxQueues(QUEUES),
            LinkAttribute::NumRxQueues(QUEUES),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let bridge = self.port.map(|port| LinkAttribute::Controller(port.bridge));
        veth.attributes.extend(bridge);
        let action = format!("create {name} and {} in the pod", self.pod_name);
        let create = NLM_F_CREATE | NLM_F_EXCL;
        batch.push(action, create, &RouteNetlinkMessage::NewLink(veth));

        // The kernel ignores port settings in the message that creates the port. With the one
        // that sets the link up they would cost more, as of changes of a link that is up all
        // the kernel's listeners are told.
        let mut settings = named(name);
        let port = self.port.map(|port| {
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::HairpinMode(port.hairpin),
                    InfoBridgePort::Isolated(port.isolated),
                ])),
            ])
        });
        settings.attributes.extend(port);
        // A port needs no address of its own, nor the multicast that comes with it.
        settings.attributes.extend(no_automatic_ipv6(self.ips));
        let action = format!("set the port settings of {name}");
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(settings));
        if let (Some(vlans), Some(index)) = (self.port.and_then(|port| port.vlans), self.index) {
            vlan::push_to(batch, name, index, vlans);
        }

        let mut up = named(name);
        set_up(&mut up);
        batch.push(
            format!("set {name} up"),
            0,
            &RouteNetlinkMessage::NewLink(up),
        );

        // What the host knows of the address's last holder must not send the new
        // one's first packets astray. Reachable, not permanent: it ages by itself.
        let gateway = self.port.and_then(|port| port.gateway);
        for (&ip, gateway) in self.ips.iter().zip(gateway.iter().cycle()) {
            push_neighbour(batch, *gateway, ip, self.pod_mac, NeighbourState::Reachable);
        }
    }
}

impl RoutedEnd<'_> {
    /// Adds the messages that lead to the pod.
    pub fn push_to(&self, batch: &mut Batch) {
        for &gateway in self.gateways {
            push_address(batch, self.name, self.index, IpNet::from(gateway));
            push_route_to_address(batch, self.index, gateway);
        }
        for &ip in self.ips {
            // There is nobody else on the link to ask, or to answer.
            push_neighbour(
                batch,
                self.index,
                ip,
                self.pod_mac,
                NeighbourState::Permanent,
            );
            let mut route = route_message(IpNet::from(ip), self.index);
            if ip.is_ipv4() {
                route.header.scope = RouteScope::Link;
            }
            let action = format!("route {ip} to {}: is it in use elsewhere?", self.name);
            let message = RouteNetlinkMessage::NewRoute(route);
            batch.push(action, NLM_F_CREATE | NLM_F_EXCL, &message);
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

        let ips: Vec<IpAddr> = self.nets.iter().map(IpNet::addr).collect();
        if let Some(quiet) = no_automatic_ipv6(&ips) {
            let mut link = LinkMessage::default();
            link.header.index = self.index;
            link.attributes.push(quiet);
            let action = format!("set the address mode of {name} in the pod");
            batch.push(action, 0, &RouteNetlinkMessage::NewLink(link));
            let net = IpNet::new(self.mac.link_local().into(), 64);
            let net = net.expect("64 is a prefix length of IPv6");
            push_address(batch, name, self.index, net);
        }
        for &net in self.nets {
            push_address(batch, name, self.index, net);
        }
        if !self.up {
            return;
        }
        let mut up = LinkMessage::default();
        up.header.index = self.index;
        set_up(&mut up);
        let action = format!("set {name} up in the pod");
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(up));
        for &ip in &ips {
            push_route_to_address(batch, self.index, ip);
        }

        for &(ip, mac) in self.neighbours {
            push_neighbour(batch, self.index, ip, mac, self.neighbour_state);
        }
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
            if !self.gateways.contains(&gw) && !self.nets.iter().any(|net| net.contains(&gw)) {
                message.header.flags = RouteFlags::Onlink;
            }
        } else if route.dst.addr().is_ipv4() {
            message.header.scope = RouteScope::Link;
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

/// Asks for one link.
pub fn push_link_query(batch: &mut Batch, name: &str, index: u32) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(without_counters());
    batch.push(
        format!("look at {name}"),
        0,
        &RouteNetlinkMessage::GetLink(link),
    );
}

/// Keeps the counters out of the answer to a link query, which the kernel adds up over all
/// processors.
pub fn without_counters() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
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

fn push_neighbour(batch: &mut Batch, index: u32, ip: IpAddr, mac: MacAddr, state: NeighbourState) {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(ip.into()),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    let message = RouteNetlinkMessage::NewNeighbour(message);
    batch.push(format!("add neighbour {ip}"), replace, &message);
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
