//! The bridge: made on demand, by whichever of many parallel ADDs comes first.
//!
//! Every step is idempotent, so nobody waits for anybody: who loses a race finds
//! its work done. The last step marks the bridge with an alias. A later ADD that
//! sees the mark and the addresses has nothing to do, and it looks in the same
//! send that creates its port.

use std::net::IpAddr;

use dataplane::attachment::{MacAddr, Mode};
use dataplane::bridge_netfilter;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use crate::link;
use crate::netlink::observed::{Address, Link};
use crate::netlink::{Answer, Answers, Batch, NetlinkError, Socket};
use crate::sysctl::{self, SysctlError};

/// The alias of a bridge that is completely set up, for routed ports and for mode `l2`.
const MARK: &str = "trammel";
const MARK_L2: &str = "trammel l2";

/// Messages that [`Wanted::push_query`] adds to a batch.
pub const QUERY_LENGTH: usize = 2;

/// Why there is no usable bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Something else has the name.
    #[error("bridge: {name} exists and is {kind}, not a bridge: name another, or remove it")]
    NotABridge {
        /// The name.
        name: String,
        /// What it is.
        kind: String,
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
        "bridge: {name} has the pods of mode {found:?}, and this is mode {wanted:?}: name another bridge, or remove this one when its last pod has gone"
    )]
    OtherMode {
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

/// The bridge as configured.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Name.
    pub name: &'a str,
    /// That of its ports: [`Mode::L2`] or [`Mode::RoutedPorts`].
    pub mode: Mode,
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
    /// Settings, fixed Ethernet address and mark.
    adopt: bool,
}

impl<'a> Wanted<'a> {
    /// The bridge for pods with these gateways.
    pub fn new(
        name: &'a str,
        mode: Mode,
        mut gateways: Vec<IpNet>,
        mtu: u32,
        force_address: bool,
    ) -> Self {
        gateways.sort();
        gateways.dedup();
        Self {
            name,
            mode,
            gateways,
            mtu,
            force_address,
        }
    }

    /// Its index; it is made and set up where it does not exist.
    pub fn ensure(&self, socket: &mut Socket) -> Result<u32, BridgeError> {
        if let Some(index) = link::index(self.name) {
            return Ok(index);
        }
        self.create(socket)?;
        let index = link::index(self.name).ok_or_else(|| self.gone())?;
        let mut batch = Batch::default();
        self.push_query(&mut batch, index);
        let answers = socket.run(batch)?;
        let plan = self.plan(&answers)?;
        self.apply(socket, &plan)?;
        Ok(index)
    }

    /// Adds the questions whose answers [`plan`](Self::plan) needs, as the first
    /// messages of a batch.
    pub fn push_query(&self, batch: &mut Batch, index: u32) {
        link::push_link_query(batch, self.name, index);
        link::push_address_query(batch, self.name, index);
    }

    /// What is missing.
    pub fn plan(&self, answers: &Answers) -> Result<Plan, BridgeError> {
        let found = answers.get(0);
        found.done_or(Errno::ENODEV)?;
        let link = found
            .links()?
            .into_iter()
            .next()
            .ok_or_else(|| self.gone())?;
        let addresses: &Answer = answers.get(1);
        addresses.done()?;
        self.compare(link, &addresses.addresses()?)
    }

    fn compare(&self, link: Link, addresses: &[Address]) -> Result<Plan, BridgeError> {
        if link.kind.as_deref() != Some("bridge") {
            return Err(BridgeError::NotABridge {
                name: self.name.to_owned(),
                kind: link.kind.unwrap_or_else(|| "a device".to_owned()),
            });
        }
        let mark = link.alias.as_deref();
        if let Some(found) = mode_of(mark).filter(|found| *found != self.mode) {
            return Err(BridgeError::OtherMode {
                name: self.name.to_owned(),
                found: found.as_str(),
                wanted: self.mode.as_str(),
            });
        }
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
            adopt: link.alias.as_deref() != Some(self.mark_text())
                || (self.mode == Mode::L2 && !link.calls_netfilter),
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
            if self.mode == Mode::L2 && !bridge_netfilter::is_available() {
                return Err(BridgeError::NoBridgeNetfilter);
            }
            self.settings()?;
        }
        self.remove_conflicts(socket, plan)?;
        let mut batch = Batch::default();
        if plan.adopt {
            let link = self.fixed(&plan.link);
            let action = format!("fix the address of {}", self.name);
            batch.push(action, 0, &RouteNetlinkMessage::NewLink(link));
        }
        let link_local = plan.link.mac.filter(|_| plan.adopt && self.has_ipv6());
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
        let mut link = link::named(self.name);
        // A bridge without an address of its own takes the lowest of its ports',
        // another with every pod; its neighbours then wait for their caches.
        let mac = self.derived_mac();
        link.attributes
            .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Bridge,
            )]));
        let mut batch = Batch::default();
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let action = format!("create bridge {}", self.name);
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
        if self.mode == Mode::L2 {
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

    fn mark_text(&self) -> &'static str {
        if self.mode == Mode::L2 { MARK_L2 } else { MARK }
    }

    fn settings(&self) -> Result<(), BridgeError> {
        let name = self.name;
        if self.gateways.iter().any(|net| net.addr().is_ipv4()) {
            sysctl::set("ipv4/ip_forward", "1")?;
            // Pods must not be told of a shortcut to each other: it would pass by
            // the host's IP stack, or end at an isolated port. The kernel sends
            // redirects if either of the two is on.
            sysctl::set("ipv4/conf/all/send_redirects", "0")?;
            sysctl::set(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
        }
        if self.has_ipv6() {
            sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            sysctl::set("ipv6/conf/all/forwarding", "1")?;
        }
        // No pod is a router for its node.
        sysctl::set_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        Ok(())
    }

    fn mark(&self, socket: &mut Socket, index: u32) -> Result<(), BridgeError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes
            .push(LinkAttribute::IfAlias(self.mark_text().to_owned()));
        let action = format!("mark {}", self.name);
        let answers = socket.ask(action, &RouteNetlinkMessage::NewLink(link))?;
        Ok(answers.all_done()?)
    }

    /// The address of a bridge that has none.
    fn derived_mac(&self) -> Option<MacAddr> {
        let ips: Vec<IpAddr> = self.gateways.iter().map(IpNet::addr).collect();
        MacAddr::of_pod(&ips)
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
        self.remove.is_empty() && self.add.is_empty() && !self.up && !self.adopt
    }
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

/// Whether the link is a bridge that the plugin has made and set up.
pub fn is_ours(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge") && mode_of(link.alias.as_deref()).is_some()
}

/// The mode that a bridge's mark speaks of.
fn mode_of(mark: Option<&str>) -> Option<Mode> {
    match mark {
        Some(MARK) => Some(Mode::RoutedPorts),
        Some(MARK_L2) => Some(Mode::L2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(force_address: bool) -> Wanted<'static> {
        let net = |text: &str| text.parse().unwrap();
        Wanted {
            name: "cbr0",
            mode: Mode::RoutedPorts,
            gateways: vec![net("10.88.0.1/24"), net("fd88::1/64")],
            mtu: 1500,
            force_address,
        }
    }

    fn bridge() -> Link {
        Link {
            index: 7,
            up: true,
            name: "cbr0".into(),
            kind: Some("bridge".into()),
            alias: Some(MARK.into()),
            ..Link::default()
        }
    }

    fn on(index: u32, nets: &[&str]) -> Vec<Address> {
        let address = |net: &&str| Address {
            index,
            net: net.parse().unwrap(),
        };
        nets.iter().map(address).collect()
    }

    #[test]
    fn a_bridge_that_is_ready_needs_nothing() {
        let addresses = on(
            7,
            &["10.88.0.1/24", "fd88::1/64", "fe80::1/64", "2001:db8::1/64"],
        );
        assert!(
            wanted(false)
                .compare(bridge(), &addresses)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn what_is_missing_is_planned() {
        let link = Link {
            up: false,
            alias: None,
            ..bridge()
        };
        // The right address on another link does not count.
        let mut addresses = on(3, &["fd88::1/64"]);
        addresses.extend(on(7, &["10.88.0.1/24"]));
        let plan = wanted(false).compare(link, &addresses).unwrap();
        assert_eq!(plan.add, ["fd88::1/64".parse().unwrap()]);
        assert!(plan.up && plan.adopt && plan.remove.is_empty());
    }

    #[test]
    fn conflicting_addresses_are_refused_or_replaced() {
        for found in [
            "10.99.0.1/24",
            "10.88.0.1/16",
            "10.88.0.9/24",
            "fd88::2/64",
            "fd88::1/48",
        ] {
            let addresses = on(7, &[found]);
            let error = wanted(false).compare(bridge(), &addresses).unwrap_err();
            assert!(error.to_string().contains(found), "{error}");
            let plan = wanted(true).compare(bridge(), &addresses).unwrap();
            assert_eq!(plan.remove, [found.parse().unwrap()]);
            assert_eq!(plan.add.len(), 2);
        }
    }

    #[test]
    fn a_bridge_without_an_address_gets_the_derived_one() {
        let mac = |mac| {
            let link = Link { mac, ..bridge() };
            wanted(false)
                .compare(link, &[])
                .unwrap()
                .link
                .mac
                .unwrap()
                .to_string()
        };
        assert_eq!(mac(None), "0a:58:0a:58:00:01");
        assert_eq!(mac(Some(MacAddr([0; 6]))), "0a:58:0a:58:00:01");
        assert_eq!(mac(Some(MacAddr([2; 6]))), "02:02:02:02:02:02");
    }

    #[test]
    fn what_is_no_bridge_is_named() {
        let link = Link {
            kind: Some("dummy".into()),
            ..bridge()
        };
        let error = wanted(true).compare(link, &[]).unwrap_err();
        assert!(
            error.to_string().contains("cbr0 exists and is dummy"),
            "{error}"
        );
    }
}
