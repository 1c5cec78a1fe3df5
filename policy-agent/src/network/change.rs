//! The plan in the kernel's terms, and what differs from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use dataplane::attachment::MacAddr;
use dataplane::object::IpFamily;
use ipnet::IpNet;

use super::plan::{Plan, Way};

/// Metric of the routes that reject what is for no pod of this node. The bridge's own route
/// goes before them.
const LAST: u32 = 65_535;

/// What is ours in the kernel, the tunnel devices apart. Links are given by index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Addresses of the tunnels.
    pub addresses: BTreeSet<(u32, IpAddr)>,
    /// Neighbours in the tunnels.
    pub neighbours: BTreeMap<(u32, IpAddr), MacAddr>,
    /// Where the tunnels send what is for an Ethernet address.
    pub remotes: BTreeMap<(u32, MacAddr), IpAddr>,
    /// Routes of our protocol in the main table.
    pub routes: BTreeMap<RouteKey, Target>,
}

/// What makes two routes the same one to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RouteKey {
    /// Destination.
    pub destination: IpNet,
    /// `RTA_PRIORITY`.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// To a neighbour.
    Via {
        /// Its address.
        gateway: IpAddr,
        /// The link that it is on.
        link: u32,
        /// Source of this node's own packets.
        source: Option<IpAddr>,
    },
    /// To an error for the sender.
    Unreachable,
    /// To something that is never wanted.
    Other,
}

/// A step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Add an address to a tunnel, or remove it.
    Address(Step, u32, IpAddr),
    /// Add or remove a neighbour.
    Neighbour(Step, u32, IpAddr, MacAddr),
    /// Add or remove a forwarding entry.
    Remote(Step, u32, MacAddr, IpAddr),
    /// Add or remove a route.
    Route(Step, RouteKey, Target),
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There is none yet.
    Add,
    /// There is one of ours that differs.
    Replace,
    /// It is not wanted any more.
    Remove,
}

impl State {
    /// What the plan wants, with the indexes that the tunnels have.
    pub fn wanted(plan: &Plan, tunnels: &BTreeMap<IpFamily, u32>) -> Self {
        let mut state = Self::default();
        for (underlay, tunnel) in &plan.tunnels {
            // One that could not be made: there is no use in ways through it.
            let Some(&index) = tunnels.get(underlay) else {
                continue;
            };
            state
                .addresses
                .extend(tunnel.addresses.iter().map(|ip| (index, *ip)));
            let neighbours = tunnel.neighbours.iter();
            state
                .neighbours
                .extend(neighbours.map(|(ip, mac)| ((index, *ip), *mac)));
            let remotes = tunnel.remotes.iter();
            state
                .remotes
                .extend(remotes.map(|(mac, ip)| ((index, *mac), *ip)));
        }
        for (&destination, way) in &plan.routes {
            let default_metric = default_metric(destination);
            let (metric, target) = match *way {
                Way::Nowhere => (LAST, Target::Unreachable),
                Way::Direct { via, link, source } => {
                    let gateway = via;
                    let target = Target::Via {
                        gateway,
                        link,
                        source,
                    };
                    (default_metric, target)
                }
                Way::Tunnel {
                    underlay,
                    via,
                    source,
                } => {
                    let Some(&link) = tunnels.get(&underlay) else {
                        continue;
                    };
                    let gateway = via;
                    let target = Target::Via {
                        gateway,
                        link,
                        source,
                    };
                    (default_metric, target)
                }
            };
            let key = RouteKey {
                destination,
                metric,
            };
            state.routes.insert(key, target);
        }
        state
    }
}

/// That which the kernel gives to a route without one.
const fn default_metric(destination: IpNet) -> u32 {
    match destination {
        IpNet::V4(_) => 0,
        // IP6_RT_PRIO_USER
        IpNet::V6(_) => 1024,
    }
}

/// The steps from `observed` to `wanted`, in an order in which no route leads into a tunnel
/// that does not know the way yet. Routes to `undecided` destinations stay, and with them
/// everything that tunnels know.
pub fn changes(wanted: &State, observed: &State, undecided: &BTreeSet<IpNet>) -> Vec<Change> {
    let mut changes = Vec::new();
    for address in wanted.addresses.difference(&observed.addresses) {
        changes.push(Change::Address(Step::Add, address.0, address.1));
    }
    for (&(index, ip), &mac) in &wanted.neighbours {
        if let Some(step) = step(observed.neighbours.get(&(index, ip)), &mac) {
            changes.push(Change::Neighbour(step, index, ip, mac));
        }
    }
    for (&(index, mac), &ip) in &wanted.remotes {
        if let Some(step) = step(observed.remotes.get(&(index, mac)), &ip) {
            changes.push(Change::Remote(step, index, mac, ip));
        }
    }
    for (&key, &target) in &observed.routes {
        if !wanted.routes.contains_key(&key) && !undecided.contains(&key.destination) {
            changes.push(Change::Route(Step::Remove, key, target));
        }
    }
    for (&key, &target) in &wanted.routes {
        if let Some(step) = step(observed.routes.get(&key), &target) {
            changes.push(Change::Route(step, key, target));
        }
    }
    if undecided.is_empty() {
        for (&(index, mac), &ip) in &observed.remotes {
            if !wanted.remotes.contains_key(&(index, mac)) {
                changes.push(Change::Remote(Step::Remove, index, mac, ip));
            }
        }
        for (&(index, ip), &mac) in &observed.neighbours {
            if !wanted.neighbours.contains_key(&(index, ip)) {
                changes.push(Change::Neighbour(Step::Remove, index, ip, mac));
            }
        }
    }
    for address in observed.addresses.difference(&wanted.addresses) {
        changes.push(Change::Address(Step::Remove, address.0, address.1));
    }
    changes
}

fn step<T: PartialEq>(observed: Option<&T>, wanted: &T) -> Option<Step> {
    match observed {
        None => Some(Step::Add),
        Some(observed) if observed == wanted => None,
        Some(_) => Some(Step::Replace),
    }
}

impl Change {
    /// Whether it takes something away.
    pub const fn is_removal(&self) -> bool {
        let (Self::Address(step, ..)
        | Self::Neighbour(step, ..)
        | Self::Remote(step, ..)
        | Self::Route(step, ..)) = self;
        matches!(step, Step::Remove)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(step, link, ip) => write!(f, "{step} address {ip} of link {link}"),
            Self::Neighbour(step, link, ip, mac) => {
                write!(f, "{step} neighbour {ip} at {mac} of link {link}")
            }
            Self::Remote(step, link, mac, ip) => {
                write!(f, "{step} forwarding of {mac} to {ip} of link {link}")
            }
            Self::Route(step, key, target) => {
                write!(f, "{step} route {}", key.destination)?;
                match target {
                    Target::Via { gateway, .. } => write!(f, " via {gateway}"),
                    Target::Unreachable => f.write_str(" to nowhere"),
                    Target::Other => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Replace => "replace",
            Self::Remove => "remove",
        })
    }
}

#[cfg(test)]
mod tests;
