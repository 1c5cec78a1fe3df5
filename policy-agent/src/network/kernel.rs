//! The kernel's routes, tunnels and neighbours, by rtnetlink. Blocking; what is sent goes in
//! batches, and each message has an answer of its own.

mod messages;
mod observed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_bin::netlink::observed::Address;
use cni_bin::netlink::{Batch, NetlinkError, Socket};
use cni_bin::{link, mtu, sysctl};
use dataplane::object::IpFamily;
use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::change::{Change, RouteKey, State, Target};
use super::plan::{Hop, Plan, Tunnel, Underlay};
use super::{PROTOCOL, tunnel_name};
use messages::push_change;
use observed::{Link, RTN_LOCAL, RTN_UNICAST, RTN_UNREACHABLE, Route};

/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;
/// `RTPROT_RA`.
const ROUTER_ADVERTISEMENT: u8 = 9;
/// Driver of the tunnels.
const VXLAN: &str = "vxlan";

/// Questions in a batch: their answers have to fit into the socket's buffer, which they fill
/// before the first of them is read.
const QUESTIONS: usize = 16;
/// The same for changes, whose answers are short.
const CHANGES: usize = 64;

/// The network namespace of the thread that opens it.
pub struct Kernel {
    socket: Socket,
}

/// Links, addresses and routes at one moment.
#[derive(Debug)]
pub struct Surroundings {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

/// What became of tunnels.
#[derive(Debug, Default)]
pub struct Tunnels {
    /// Indexes of those that there are.
    pub indexes: BTreeMap<IpFamily, u32>,
    /// What was done, for the log.
    pub done: Vec<String>,
    /// What could not be done.
    pub errors: Vec<String>,
}

impl Kernel {
    /// Opens a socket.
    ///
    /// # Errors
    /// Where there is none to be had.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open()?;
        Ok(Self { socket })
    }

    /// Looks at everything that there is.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub fn look(&mut self) -> Result<Surroundings, NetlinkError> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let links = self.socket.dump("list the links", &question)?;
        links.all_done()?;
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let addresses = self.socket.dump("list the addresses", &question)?;
        addresses.all_done()?;
        let routes = self.socket.dump("list the routes", &link::route_query())?;
        routes.all_done()?;
        Ok(Surroundings {
            links: observed::links(links.get(0))?,
            addresses: addresses.get(0).addresses()?,
            routes: observed::routes(routes.get(0))?,
        })
    }

    /// Where the kernel sends what is for these addresses, as `ip route get` says it.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub fn hops(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Hop>, NetlinkError> {
        let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
        let mut hops = BTreeMap::new();
        for some in addresses.chunks(QUESTIONS) {
            let mut batch = Batch::default();
            for address in some {
                let action = format!("look up the route to {address}");
                batch.push(action, 0, &messages::lookup(*address));
            }
            let answers = self.socket.run(batch)?;
            for (address, answer) in some.iter().zip(answers.iter()) {
                // A refusal means that there is no route.
                let found = observed::routes(answer)?;
                let hop = found.first().and_then(|route| match route.kind {
                    RTN_LOCAL => Some(Hop::Local),
                    RTN_UNICAST if route.gateway.is_some() || route.is_complex => Some(Hop::Beyond),
                    RTN_UNICAST => Some(Hop::OnLink(route.link?)),
                    _ => None,
                });
                hops.extend(hop.map(|hop| (*address, hop)));
            }
        }
        Ok(hops)
    }

    /// Makes the tunnels as they are planned, and removes those that are not. One whose
    /// parameters cannot be changed is made anew.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub fn set_tunnels(
        &mut self,
        plan: &Plan,
        around: &Surroundings,
    ) -> Result<Tunnels, NetlinkError> {
        let mut tunnels = Tunnels::default();
        for underlay in IpFamily::BOTH {
            let name = tunnel_name(underlay);
            let found = around.links.iter().find(|link| link.name == name);
            let Some(wanted) = plan.tunnels.get(&underlay) else {
                match found {
                    Some(link) if link.kind == VXLAN && plan.undecided.is_empty() => {
                        self.ask(
                            &format!("remove {name}"),
                            &link::removal(name),
                            &mut tunnels,
                        )?;
                    }
                    // It still has ways to nodes that there is no route to now.
                    Some(link) if link.kind == VXLAN => {
                        tunnels.indexes.insert(underlay, link.index);
                    }
                    _ => {}
                }
                continue;
            };
            let is_ours = match found {
                Some(link) if link.kind != VXLAN => {
                    tunnels.errors.push(format!(
                        "there is a link {name} that is no VXLAN device: remove or rename it"
                    ));
                    continue;
                }
                Some(link) if is_tunnel(link, wanted) => {
                    if link.mtu != wanted.mtu || !link.up {
                        let message = messages::tunnel_settings(name, wanted);
                        self.ask(&format!("set {name}"), &message, &mut tunnels)?;
                    }
                    true
                }
                Some(_) => {
                    self.ask(
                        &format!("remove {name}"),
                        &link::removal(name),
                        &mut tunnels,
                    )?;
                    false
                }
                None => false,
            };
            if !is_ours {
                let message = messages::tunnel(name, wanted);
                let mut batch = Batch::default();
                let action = format!("create {name}");
                batch.push(&*action, messages::CREATE, &message);
                let settings = messages::tunnel_settings(name, wanted);
                batch.push(format!("set {name}"), 0, &settings);
                let answers = self.socket.run(batch)?;
                match answers.all_done() {
                    Ok(()) => tunnels.done.push(action),
                    Err(error) => tunnels.errors.push(error.to_string()),
                }
            }
            // The way back may be another: by the underlay, where that has a route.
            let setting = format!("ipv4/conf/{name}/rp_filter");
            let index = link::index(name);
            if index.is_some()
                && let Err(error) = sysctl::set_if_present(&setting, "0")
            {
                tunnels.errors.push(error.to_string());
            }
            tunnels.indexes.extend(index.map(|index| (underlay, index)));
        }
        Ok(tunnels)
    }

    fn ask(
        &mut self,
        action: &str,
        message: &RouteNetlinkMessage,
        tunnels: &mut Tunnels,
    ) -> Result<(), NetlinkError> {
        match self.socket.ask(action, message)?.all_done() {
            Ok(()) => tunnels.done.push(action.to_owned()),
            Err(error) => tunnels.errors.push(error.to_string()),
        }
        Ok(())
    }

    /// What there is of ours. `around` is from before the tunnels were set.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub fn state(
        &mut self,
        around: &Surroundings,
        tunnels: &BTreeMap<IpFamily, u32>,
    ) -> Result<State, NetlinkError> {
        let mut state = State::default();
        for &index in tunnels.values() {
            let addresses = around.addresses.iter();
            let of_tunnel = addresses.filter(|address| address.index == index);
            // The kernel makes up no address there; a link-local one would be somebody's.
            state
                .addresses
                .extend(of_tunnel.map(|address| (index, address.net.addr())));
            let found = self
                .socket
                .dump("list neighbours", &messages::neighbours(index))?;
            found.all_done()?;
            for found in observed::neighbours(found.get(0))? {
                state
                    .neighbours
                    .insert((found.link, found.address), found.mac);
            }
            let found = self
                .socket
                .dump("list forwarding entries", &messages::remotes(index))?;
            found.all_done()?;
            for found in observed::neighbours(found.get(0))? {
                state.remotes.insert((found.link, found.mac), found.address);
            }
        }
        for route in around.own_routes() {
            let key = RouteKey {
                destination: route.destination,
                metric: route.metric,
            };
            let target = match (route.kind, route.gateway, route.link) {
                (RTN_UNICAST, Some(gateway), Some(link)) if !route.is_complex => Target::Via {
                    gateway,
                    link,
                    source: route.source,
                },
                (RTN_UNREACHABLE, ..) => Target::Unreachable,
                _ => Target::Other,
            };
            state.routes.insert(key, target);
        }
        Ok(state)
    }

    /// Does the steps, and goes on after one that fails. Returns what has failed.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<String>, NetlinkError> {
        let mut errors = Vec::new();
        for some in changes.chunks(CHANGES) {
            let mut batch = Batch::default();
            for change in some {
                push_change(&mut batch, change);
            }
            let answers = self.socket.run(batch)?;
            for (change, answer) in some.iter().zip(answers.iter()) {
                // Somebody else has removed it, or the link took it along.
                let gone = [
                    Errno::ESRCH,
                    Errno::ENOENT,
                    Errno::EADDRNOTAVAIL,
                    Errno::ENODEV,
                ];
                let refusal = answer.outcome.as_ref().err();
                let is_gone = refusal.is_some_and(|refusal| gone.contains(&refusal.errno));
                if is_gone && change.is_removal() {
                    continue;
                }
                errors.extend(answer.done().err().map(|error| error.to_string()));
            }
        }
        Ok(errors)
    }

    /// Removes everything that is ours. Returns what was removed.
    ///
    /// # Errors
    /// Where the kernel does not answer, or refuses.
    pub fn remove_all(&mut self) -> Result<Vec<String>, NetlinkError> {
        let around = self.look()?;
        let nothing = State::default();
        let observed = self.state(&around, &BTreeMap::new())?;
        let changes = super::change::changes(&nothing, &observed, &BTreeSet::new());
        let mut removed = Vec::new();
        for some in changes.chunks(CHANGES) {
            let mut batch = Batch::default();
            for change in some {
                push_change(&mut batch, change);
                let done = change.to_string();
                removed.push(done.trim_start_matches("remove ").to_owned());
            }
            self.socket.run(batch)?.all_done()?;
        }
        for name in IpFamily::BOTH.map(tunnel_name) {
            let mut links = around.links.iter();
            if links.any(|link| link.name == name && link.kind == VXLAN) {
                let action = format!("remove {name}");
                self.socket.ask(action, &link::removal(name))?.all_done()?;
                removed.push(format!("link {name}"));
            }
        }
        Ok(removed)
    }
}

impl Surroundings {
    /// This node's links for the planner, without `hops`.
    pub fn underlay(&self) -> Underlay {
        let tunnels = IpFamily::BOTH.map(tunnel_name);
        let links: BTreeMap<u32, &Link> =
            self.links.iter().map(|link| (link.index, link)).collect();
        let mut underlay = Underlay {
            default_mtu: mtu::of_default_route(),
            ..Underlay::default()
        };
        for address in &self.addresses {
            let Some(link) = links.get(&address.index) else {
                continue;
            };
            if !tunnels.contains(&link.name.as_str()) {
                underlay.addresses.insert(address.net.addr(), link.mtu);
            }
        }
        for route in self.routes.iter().filter(|route| route.table == MAIN) {
            if route.protocol != PROTOCOL {
                let whose = protocol_name(route.protocol);
                underlay.foreign.insert(route.destination, whose);
            }
        }
        underlay
    }

    /// Names of the links whose routes come from router advertisements.
    pub fn advertised_links(&self) -> BTreeSet<&str> {
        let routes = self.routes.iter();
        let advertised = routes.filter(|route| route.protocol == ROUTER_ADVERTISEMENT);
        let indexes: BTreeSet<u32> = advertised.filter_map(|route| route.link).collect();
        let links = self.links.iter();
        links
            .filter(|link| indexes.contains(&link.index))
            .map(|link| link.name.as_str())
            .collect()
    }

    fn own_routes(&self) -> impl Iterator<Item = &Route> {
        let routes = self.routes.iter();
        routes.filter(|route| route.table == MAIN && route.protocol == PROTOCOL)
    }
}

/// Whether the device has the parameters that cannot be changed.
fn is_tunnel(link: &Link, wanted: &Tunnel) -> bool {
    let vxlan = &link.vxlan;
    (vxlan.vni, vxlan.port, vxlan.local) == (wanted.vni, wanted.port, Some(wanted.local))
        && link.mac == Some(wanted.mac)
        && !vxlan.learning
}

/// For people: those of `rt_protos` that are met on nodes.
fn protocol_name(protocol: u8) -> String {
    let name = match protocol {
        2 => "kernel",
        3 => "boot",
        4 => "static",
        11 => "zebra",
        12 => "bird",
        186 => "bgp",
        number => return format!("protocol {number}"),
    };
    format!("protocol {name}")
}
