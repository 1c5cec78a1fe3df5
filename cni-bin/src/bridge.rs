//! The bridge: made on demand, by whichever of many parallel ADDs comes first.
//!
//! Every step is idempotent, so nobody waits for anybody: who loses a race finds
//! its work done. The last step marks the bridge with an alias. A later ADD that
//! sees the mark and the addresses has nothing to do, and it looks in the same
//! send that creates its port.

mod query;
mod role;

use std::net::IpAddr;

use dataplane::attachment::MacAddr;
use dataplane::bridge_netfilter;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use crate::link;
use crate::netlink::observed::{Address, Link};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::sysctl::{self, SysctlError};

pub use role::{Role, gateway_port, is_ours};

use role::{described, port_name};

use crate::link::vlan::HAS_OPTION;

/// Why there is no usable bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Something else has the name.
    #[error("bridge: {name} exists and is {kind}, not a {wanted}: name another, or remove it")]
    OtherKind {
        /// The name.
        name: String,
        /// What it is.
        kind: String,
        /// What it is to be.
        wanted: &'static str,
    },
    /// It is the gateway of something else.
    #[error(
        "bridge: {name} has the address {found}, which conflicts with {wanted}: set \"forceAddress\": true to replace it"
    )]
    Conflict {
        /// The name.
        name: String,
        /// On the bridge.
        found: IpNet,
        /// The gateway of the pods.
        wanted: IpNet,
    },
    /// Its ports cannot be of both kinds: what hands frames to the packet filter for the
    /// one breaks the other.
    #[error(
        "bridge: {name} has the pods of {found}, and this is {wanted}: name another bridge, or remove this one when its last pod has gone"
    )]
    OtherRole {
        /// The name.
        name: String,
        /// That of its ports.
        found: &'static str,
        /// That of the port to be.
        wanted: &'static str,
    },
    /// The kernel has no br_netfilter.
    #[error(
        "mode: \"l2\" needs br_netfilter, or policies and Services would not see what pods of one bridge send each other: run modprobe br_netfilter, or use mode \"routed-ports\""
    )]
    NoBridgeNetfilter,
    /// It was there a moment ago.
    #[error("bridge: {name} has disappeared")]
    Gone {
        /// The name.
        name: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting could not be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// The bridge as configured, or an interface on it that has its gateways.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Name.
    pub name: &'a str,
    /// What it is for.
    pub role: Role<'a>,
    /// The gateways of all ranges, with the length of the subnets' prefixes: pods
    /// are reached by the routes that come with them.
    pub gateways: Vec<IpNet>,
    /// MTU, at creation only.
    pub mtu: u32,
    /// Replace conflicting addresses.
    pub force_address: bool,
}

/// What is missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// As it is, with the Ethernet address that it will have.
    pub link: Link,
    remove: Vec<IpNet>,
    add: Vec<IpNet>,
    up: bool,
    /// Settings.
    forward: bool,
    /// Settings, fixed Ethernet address and mark.
    adopt: bool,
}

impl<'a> Wanted<'a> {
    /// The bridge for pods with these gateways.
    pub fn new(
        name: &'a str,
        role: Role<'a>,
        mut gateways: Vec<IpNet>,
        mtu: u32,
        force_address: bool,
    ) -> Self {
        gateways.sort();
        gateways.dedup();
        Self {
            name,
            role,
            gateways,
            mtu,
            force_address,
        }
    }

    /// Its index; it is made and set up where it does not exist.
    pub fn ensure(&self, socket: &mut Socket) -> Result<u32, BridgeError> {
        if let Some(index) = socket.index(self.name) {
            return Ok(index);
        }
        self.create(socket)?;
        let index = socket.index(self.name).ok_or_else(|| self.gone())?;
        let mut batch = Batch::default();
        self.push_query(&mut batch, index);
        let answers = socket.run(batch)?;
        let plan = self.plan(socket, &answers)?;
        self.apply(socket, &plan)?;
        Ok(index)
    }

    /// As it is when nothing is missing any more.
    pub fn make_ready(&self, socket: &mut Socket) -> Result<Link, BridgeError> {
        let index = self.ensure(socket)?;
        let mut batch = Batch::default();
        self.push_query(&mut batch, index);
        let answers = socket.run(batch)?;
        let plan = self.plan(socket, &answers)?;
        self.apply(socket, &plan)?;
        Ok(plan.link)
    }

    fn compare(&self, link: Link, addresses: &[Address]) -> Result<Plan, BridgeError> {
        if link.kind.as_deref() != Some(self.role.kind()) {
            return Err(BridgeError::OtherKind {
                name: self.name.to_owned(),
                kind: link.kind.unwrap_or_else(|| "a device".to_owned()),
                wanted: self.role.kind(),
            });
        }
        let (mark, wanted) = self.role.mark();
        let other = link.alias.as_deref().filter(|found| *found != mark);
        if let Some(found) = other.and_then(described) {
            return Err(BridgeError::OtherRole {
                name: self.name.to_owned(),
                found,
                wanted,
            });
        }
        let lacks_setting = match self.role {
            Role::Switched => !link.calls_netfilter,
            Role::Vlans => !link.filters_vlans,
            Role::Routed | Role::Gateway { .. } => false,
        };
        let own = addresses
            .iter()
            .filter(|address| address.index == link.index);
        let own: Vec<IpNet> = own.map(|address| address.net).collect();
        let mut remove = Vec::new();
        for &found in own.iter().filter(|found| !self.gateways.contains(found)) {
            let conflict = self
                .gateways
                .iter()
                .find(|wanted| conflicts(found, **wanted));
            match conflict {
                Some(_) if self.force_address => remove.push(found),
                Some(&wanted) => {
                    return Err(BridgeError::Conflict {
                        name: self.name.to_owned(),
                        found,
                        wanted,
                    });
                }
                None => {}
            }
        }
        let missing = |wanted: &&IpNet| !own.contains(wanted);
        // A bridge that lost its last port has no address either.
        let mac = link
            .mac
            .filter(|mac| mac.0 != [0; 6])
            .or_else(|| self.derived_mac());
        let link = Link { mac, ..link };
        Ok(Plan {
            remove,
            add: self.gateways.iter().filter(missing).copied().collect(),
            up: !link.up,
            // Somebody has turned it off: other software that sets all sysctls anew.
            forward: self.has_ipv4() && link.forwards_ipv4 == Some(false)
                || self.has_ipv6() && link.forwards_ipv6 == Some(false),
            adopt: link.alias.as_deref() != Some(mark) || lacks_setting,
            link,
        })
    }

    /// Does what is missing.
    pub fn apply(&self, socket: &mut Socket, plan: &Plan) -> Result<(), BridgeError> {
        if plan.is_empty() {
            return Ok(());
        }
        let index = plan.link.index;
        if plan.adopt {
            match self.role {
                Role::Switched if !bridge_netfilter::is_available() => {
                    return Err(BridgeError::NoBridgeNetfilter);
                }
                Role::Vlans if !plan.link.filters_vlans => self.filter_vlans(socket, index)?,
                _ => {}
            }
        }
        if plan.adopt || plan.forward {
            self.settings()?;
        }
        self.remove_conflicts(socket, plan)?;
        let mut batch = Batch::default();
        if plan.adopt {
            self.push_port(&mut batch);
            let link = self.fixed(&plan.link);
            let action = format!("fix the address of {}", self.name);
            batch.push(action, 0, &RouteNetlinkMessage::NewLink(link));
        }
        // The one by which it asks for neighbours goes with the others when it is set down.
        let lacks_ipv6 = plan.adopt || plan.up || plan.add.iter().any(|net| net.addr().is_ipv6());
        let link_local = plan.link.mac.filter(|_| lacks_ipv6 && self.has_ipv6());
        let link_local = link_local.and_then(|mac| IpNet::new(mac.link_local().into(), 64).ok());
        for &net in plan.add.iter().chain(&link_local) {
            link::push_address(&mut batch, self.name, index, net);
        }
        let mut up = LinkMessage::default();
        up.header.index = index;
        link::set_up(&mut up);
        let action = format!("set {} up", self.name);
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(up));
        for net in &plan.add {
            link::push_route_to_address(&mut batch, index, net.addr());
        }
        for answer in socket.run(batch)?.iter() {
            // Another ADD was faster.
            answer.done_or(Errno::EEXIST)?;
        }
        if plan.adopt {
            self.mark(socket, index)?;
        }
        Ok(())
    }

    fn remove_conflicts(&self, socket: &mut Socket, plan: &Plan) -> Result<(), BridgeError> {
        if plan.remove.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for &net in &plan.remove {
            link::push_address_removal(&mut batch, self.name, plan.link.index, net);
        }
        for answer in socket.run(batch)?.iter() {
            // Another ADD was faster.
            answer.done_or(Errno::EADDRNOTAVAIL)?;
        }
        Ok(())
    }

    fn create(&self, socket: &mut Socket) -> Result<(), BridgeError> {
        let mut batch = Batch::default();
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let (action, link) = match self.role {
            Role::Routed | Role::Switched => {
                (format!("create bridge {}", self.name), self.new_bridge())
            }
            Role::Vlans => (
                format!("create bridge {} with VLANs {HAS_OPTION}", self.name),
                self.new_bridge(),
            ),
            Role::Gateway { bridge, .. } => {
                let action = format!("create {} and {}", self.name, port_name(self.name));
                (action, self.new_pair(bridge))
            }
        };
        batch.push(action, create, &RouteNetlinkMessage::NewLink(link));
        // Set, not inherited: a bridge follows its smallest port until someone says.
        let mut mtu = link::named(self.name);
        mtu.attributes.push(LinkAttribute::Mtu(self.mtu));
        let action = format!("set the MTU of {} to {}", self.name, self.mtu);
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(mtu));
        for answer in socket.run(batch)?.iter() {
            answer.done_or(Errno::EEXIST)?;
        }
        Ok(())
    }

    /// With the address of a gateway: a bridge without one of its own takes the lowest of its
    /// ports', another with every pod; its neighbours then wait for their caches.
    fn new_link(&self) -> LinkMessage {
        let mut link = link::named(self.name);
        let mac = self.derived_mac();
        link.attributes
            .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        link
    }

    fn new_bridge(&self) -> LinkMessage {
        let mut link = self.new_link();
        let info = match self.role {
            Role::Vlans => filtering_bridge(),
            _ => vec![LinkInfo::Kind(InfoKind::Bridge)],
        };
        link.attributes.push(LinkAttribute::LinkInfo(info));
        link
    }

    /// The port is what the message is about, as the kernel gives a master to it alone.
    fn new_pair(&self, bridge: u32) -> LinkMessage {
        let mut port = link::named(&port_name(self.name));
        port.attributes.extend([
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(self.new_link()))),
            ]),
        ]);
        port
    }

    /// Adds the messages that put a gateway's port into its VLAN and set it up. A gateway that
    /// the reference plugin has made has a port of another name, which is in it already.
    fn push_port(&self, batch: &mut Batch) {
        let Role::Gateway { vlans, .. } = self.role else {
            return;
        };
        let name = port_name(self.name);
        let Some(index) = link::index(&name) else {
            return;
        };
        link::vlan::push_to(batch, &name, index, vlans);
        let mut port = LinkMessage::default();
        port.header.index = index;
        link::set_up(&mut port);
        let action = format!("set {name} up");
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(port));
    }

    /// Its own Ethernet address, which setting it makes permanent, and no IPv6
    /// address that is not ours: until the kernel's own link-local one leaves
    /// duplicate detection, the bridge could not ask for its pods' addresses.
    fn fixed(&self, found: &Link) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = found.index;
        let mac = found.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec()));
        link.attributes.extend(mac);
        let ips: Vec<IpAddr> = self.gateways.iter().map(IpNet::addr).collect();
        link.attributes.extend(link::no_automatic_ipv6(&ips));
        if self.role == Role::Switched {
            // Of this bridge, not of all by sysctl: others may not want it, and somebody
            // may set that back.
            link.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::NfCallIpTables(true),
                    InfoBridge::NfCallIp6Tables(true),
                ])),
            ]));
        }
        link
    }

    /// Has the bridge keep VLANs apart: before anything else of it is changed, as there are
    /// kernels that cannot.
    fn filter_vlans(&self, socket: &mut Socket, index: u32) -> Result<(), BridgeError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes
            .push(LinkAttribute::LinkInfo(filtering_bridge()));
        let action = format!("keep VLANs apart on {} {HAS_OPTION}", self.name);
        let answers = socket.ask(action, &RouteNetlinkMessage::NewLink(link))?;
        Ok(answers.all_done()?)
    }

    fn settings(&self) -> Result<(), BridgeError> {
        let name = self.name;
        if self.has_ipv4() {
            sysctl::set("ipv4/ip_forward", "1")?;
            sysctl::set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
            // Pods must not be told of a shortcut to each other: it would pass by
            // the host's IP stack, or end at an isolated port. The kernel sends
            // redirects if either of the two is on.
            sysctl::set("ipv4/conf/all/send_redirects", "0")?;
            sysctl::set(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
        }
        if self.has_ipv6() {
            sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            sysctl::set("ipv6/conf/all/forwarding", "1")?;
            sysctl::set(&format!("ipv6/conf/{name}/forwarding"), "1")?;
        }
        // No pod is a router for its node.
        sysctl::set_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        Ok(())
    }

    fn mark(&self, socket: &mut Socket, index: u32) -> Result<(), BridgeError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes
            .push(LinkAttribute::IfAlias(self.role.mark().0.to_owned()));
        let action = format!("mark {}", self.name);
        let answers = socket.ask(action, &RouteNetlinkMessage::NewLink(link))?;
        Ok(answers.all_done()?)
    }

    /// The address of a bridge that has none.
    fn derived_mac(&self) -> Option<MacAddr> {
        let ips: Vec<IpAddr> = self.gateways.iter().map(IpNet::addr).collect();
        MacAddr::of_pod(&ips)
    }

    fn has_ipv4(&self) -> bool {
        self.gateways.iter().any(|net| net.addr().is_ipv4())
    }

    fn has_ipv6(&self) -> bool {
        self.gateways.iter().any(|net| net.addr().is_ipv6())
    }

    fn gone(&self) -> BridgeError {
        BridgeError::Gone {
            name: self.name.to_owned(),
        }
    }
}

impl Plan {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        let Self {
            remove,
            add,
            up,
            forward,
            adopt,
            link: _,
        } = self;
        remove.is_empty() && add.is_empty() && !up && !forward && !adopt
    }
}

/// A bridge that keeps the VLANs of its ports apart.
fn filtering_bridge() -> Vec<LinkInfo> {
    let filters = InfoBridge::VlanFiltering(true);
    vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![filters])),
    ]
}

/// As the reference plugin: a bridge has one IPv4 address, and any number of
/// IPv6 ones as long as their subnets are disjoint.
fn conflicts(found: IpNet, wanted: IpNet) -> bool {
    match (found, wanted) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(a), IpNet::V6(b)) => {
            !a.addr().is_unicast_link_local() && (a.contains(&b.addr()) || b.contains(&a.addr()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
