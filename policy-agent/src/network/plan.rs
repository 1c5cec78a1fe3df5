//! What the kernel is to hold for the pod network: a pure function of the Nodes and of this
//! node's links.
//!
//! What cannot be decided now, because there is no way to a node at this moment, stays as it
//! is: a link that flaps must not turn routes into tunnels and back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::attachment::MacAddr;
use dataplane::object::IpFamily;
use ipnet::IpNet;
use proxy::model::ObjectKey;

use super::{NodeNetwork, gateway, tunnel_mac};
use crate::complaint::Complaint;
use crate::config::network::NetworkMode;
use crate::event::Kind;

/// What does not change while the agent runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Name of this node's Node object.
    pub node: String,
    /// How to reach the pods of others.
    pub mode: NetworkMode,
    /// UDP port of tunnels.
    pub vxlan_port: u16,
    /// Network identifier of tunnels.
    pub vxlan_vni: u32,
    /// MTU of pods, if it is not to be found out.
    pub mtu: Option<u32>,
}

/// This node's links, as far as the plan depends on them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Underlay {
    /// MTUs of the links with this node's addresses, by address.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// MTU of the way out of the node.
    pub default_mtu: u32,
    /// Where the kernel sends what is for the other nodes' addresses; without those that
    /// there is no route to.
    pub hops: BTreeMap<IpAddr, Hop>,
    /// Destinations of routes of others in the main table, and whose they are.
    pub foreign: BTreeMap<IpNet, String>,
}

/// How an address is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// It is this node's.
    Local,
    /// It is a neighbour on the link with that index.
    OnLink(u32),
    /// It is behind a router.
    Beyond,
}

/// What there is to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// PodCIDRs of this node that are nobody else's.
    pub pod_cidrs: Vec<IpNet>,
    /// Ways to PodCIDRs.
    pub routes: BTreeMap<IpNet, Way>,
    /// Whose the PodCIDRs of the routes are, and the address that leads there.
    pub nodes: BTreeMap<IpNet, (String, IpAddr)>,
    /// PodCIDRs of nodes that there is no way to now: what the kernel has for them stays.
    pub undecided: BTreeSet<IpNet>,
    /// The tunnels, by the family of the nodes' addresses.
    pub tunnels: BTreeMap<IpFamily, Tunnel>,
    /// MTU of pods.
    pub mtu: u32,
    /// What is wrong: about no object where it concerns this node.
    pub problems: Vec<Complaint>,
}

/// A way to a PodCIDR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Through a node that is a neighbour.
    Direct {
        /// Its address.
        via: IpAddr,
        /// The link that it is on.
        link: u32,
        /// Source of this node's own packets.
        source: Option<IpAddr>,
    },
    /// Through a tunnel.
    Tunnel {
        /// The tunnel.
        underlay: IpFamily,
        /// The other node's address in it.
        via: IpAddr,
        /// Source of this node's own packets.
        source: Option<IpAddr>,
    },
    /// To nobody: this node's own PodCIDR where no pod has the address. It must not leave
    /// the node by the default route, and come back by that of the router.
    Nowhere,
}

/// A VXLAN device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// This node's address under it.
    pub local: IpAddr,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// UDP port.
    pub port: u16,
    /// Network identifier.
    pub vni: u32,
    /// This node's addresses in it.
    pub addresses: BTreeSet<IpAddr>,
    /// The other nodes' addresses in it, and their Ethernet addresses.
    pub neighbours: BTreeMap<IpAddr, MacAddr>,
    /// The other nodes' addresses under it, by Ethernet address.
    pub remotes: BTreeMap<MacAddr, IpAddr>,
}

/// What VXLAN adds to a packet: outer IP header, UDP, VXLAN and inner Ethernet headers.
pub const fn overhead(underlay: IpFamily) -> u32 {
    match underlay {
        IpFamily::V4 => 50,
        IpFamily::V6 => 70,
    }
}

/// Smallest MTU of IPv6 (RFC 8200 section 5).
const IPV6_MTU: u32 = 1280;

/// Makes the plan. `None` while this node's own Node object is not known: an API server that
/// does not know this node has no say in what it can reach.
pub fn plan(settings: &Settings, nodes: &[NodeNetwork], underlay: &Underlay) -> Option<Plan> {
    let own = nodes.iter().find(|node| node.name == settings.node)?;
    let mut planner = Planner {
        settings,
        underlay,
        own,
        plan: Plan::default(),
    };
    let claims = planner.claims(nodes);
    planner.own_networks(&claims);
    if settings.mode != NetworkMode::None {
        for (pod_cidr, node) in &claims {
            planner.route(*pod_cidr, node);
        }
    }
    planner.set_mtu();
    let mut plan = planner.plan;
    plan.problems.sort();
    plan.problems.dedup();
    Some(plan)
}

struct Planner<'a> {
    settings: &'a Settings,
    underlay: &'a Underlay,
    own: &'a NodeNetwork,
    plan: Plan,
}

impl<'a> Planner<'a> {
    /// Which node has which prefix. All nodes decide alike: the older Node counts, then the
    /// name.
    fn claims(&mut self, nodes: &'a [NodeNetwork]) -> BTreeMap<IpNet, &'a NodeNetwork> {
        let addresses: BTreeMap<IpAddr, &NodeNetwork> = nodes
            .iter()
            .flat_map(|node| node.addresses.iter().map(move |address| (*address, node)))
            .collect();
        let mut by_age: Vec<_> = nodes.iter().collect();
        by_age.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        // Those that count so far are disjoint: by first address.
        let mut claims: BTreeMap<IpAddr, (IpNet, &NodeNetwork)> = BTreeMap::new();
        for node in by_age {
            for &pod_cidr in &node.pod_cidrs {
                let (first, last) = (pod_cidr.network(), pod_cidr.broadcast());
                if gateway(pod_cidr).is_none() {
                    let message = format!(
                        "PodCIDR {pod_cidr} of node {} is too small for a gateway and a pod: use \
                         /30 (IPv6: /126) at least",
                        node.name
                    );
                    self.complain(&[node], "InvalidPodCIDR", message);
                    continue;
                }
                if let Some((address, other)) = addresses.range(first..=last).next() {
                    let message = format!(
                        "PodCIDR {pod_cidr} of node {} contains {address}, the address of node \
                         {}: pods and nodes need networks of their own, so it is not routed",
                        node.name, other.name
                    );
                    self.complain(&[node, other], "InvalidPodCIDR", message);
                    continue;
                }
                let before = claims.range(..=last).next_back();
                if let Some((_, (taken, owner))) = before
                    && taken.broadcast() >= first
                {
                    let (taken, owner) = (*taken, *owner);
                    if owner.name == node.name && taken == pod_cidr {
                        continue;
                    }
                    let message = format!(
                        "PodCIDR {pod_cidr} of node {} overlaps {taken} of node {}, which is the \
                         older and keeps it: give one of them another",
                        node.name, owner.name
                    );
                    self.complain(&[node, owner], "PodCIDRConflict", message);
                    continue;
                }
                claims.insert(first, (pod_cidr, node));
            }
        }
        claims.into_values().collect()
    }

    fn own_networks(&mut self, claims: &BTreeMap<IpNet, &NodeNetwork>) {
        if self.own.pod_cidrs.is_empty() {
            let message = format!(
                "Node {} has no spec.podCIDRs, so its pods get no addresses: have \
                 kube-controller-manager allocate them (--allocate-node-cidrs --cluster-cidr)",
                self.own.name
            );
            self.complain(&[self.own], "NoPodCIDR", message);
        }
        for &pod_cidr in &self.own.pod_cidrs {
            let is_own = claims.get(&pod_cidr).map(|node| &node.name) == Some(&self.own.name);
            if is_own && !self.plan.pod_cidrs.contains(&pod_cidr) {
                self.plan.pod_cidrs.push(pod_cidr);
            }
            // Pods may have addresses of it in any case.
            if self.settings.mode != NetworkMode::None && gateway(pod_cidr).is_some() {
                self.plan.routes.insert(pod_cidr, Way::Nowhere);
            }
        }
    }

    fn route(&mut self, pod_cidr: IpNet, node: &NodeNetwork) {
        if node.name == self.own.name {
            return;
        }
        let overlaps = |own: &IpNet| own.contains(&pod_cidr) || pod_cidr.contains(own);
        if self.own.pod_cidrs.iter().any(overlaps) {
            // Told as a conflict; pods of this node stay where they are.
            return;
        }
        if let Some(whose) = self.underlay.foreign.get(&pod_cidr) {
            let message = format!(
                "there is a route to {pod_cidr}, the PodCIDR of node {}, that {whose} has made: \
                 it is left alone; remove it, or set the network mode to none",
                node.name
            );
            self.complain(&[self.own], "ForeignRoute", message);
            return;
        }
        let choice = match self.settings.mode {
            NetworkMode::None => return,
            NetworkMode::Direct => self.direct(pod_cidr, node),
            NetworkMode::Vxlan => self.tunnel(pod_cidr, node),
            NetworkMode::Auto => match self.direct(pod_cidr, node) {
                Choice::No(_) => self.tunnel(pod_cidr, node),
                choice => choice,
            },
        };
        let name = &node.name;
        let about = |why: String| {
            format!("PodCIDR {pod_cidr} of node {name} is not reached from this node: {why}")
        };
        match choice {
            Choice::Way(way, address) => {
                self.plan.routes.insert(pod_cidr, way);
                let whose = (name.clone(), address);
                self.plan.nodes.insert(pod_cidr, whose);
            }
            Choice::Later(why) => {
                self.plan.undecided.insert(pod_cidr);
                self.complain(&[node], "NodeUnreachable", about(why));
            }
            Choice::No(why) => self.complain(&[node], "NodeUnreachable", about(why)),
        }
    }

    fn direct(&self, pod_cidr: IpNet, node: &NodeNetwork) -> Choice {
        let family = IpFamily::of(pod_cidr.addr());
        let Some(via) = node.address(family) else {
            return Choice::No(format!(
                "it has no InternalIP of {}: set the network mode to auto or vxlan",
                name_of(family)
            ));
        };
        match self.underlay.hops.get(&via) {
            Some(Hop::OnLink(link)) => {
                let link = *link;
                let source = self.local(family);
                Choice::Way(Way::Direct { via, link, source }, via)
            }
            Some(Hop::Beyond) => Choice::No(format!(
                "its address {via} is behind a router: set the network mode to auto or vxlan"
            )),
            Some(Hop::Local) => Choice::No(format!("its address {via} is this node's")),
            None => Choice::Later(format!("there is no route to its address {via}")),
        }
    }

    fn tunnel(&mut self, pod_cidr: IpNet, node: &NodeNetwork) -> Choice {
        let mut families = IpFamily::BOTH.into_iter();
        let ends = families.find_map(|family| {
            let (local, remote) = (self.local(family)?, node.address(family)?);
            Some((family, local, remote))
        });
        let Some((underlay, local, remote)) = ends else {
            return Choice::No(
                "this node and that one have no InternalIPs of one family that this node's links \
                 have, too"
                    .to_owned(),
            );
        };
        if self.underlay.hops.get(&remote) == Some(&Hop::Local) {
            return Choice::No(format!("its address {remote} is this node's"));
        }
        let Some(via) = gateway(pod_cidr) else {
            return Choice::No("it is too small".to_owned());
        };
        let mac = tunnel_mac(&node.name);
        let gateways = self.own.pod_cidrs.iter().copied().filter_map(gateway);
        let tunnel = self.plan.tunnels.entry(underlay).or_insert_with(|| Tunnel {
            local,
            mac: tunnel_mac(&self.own.name),
            mtu: self.underlay.addresses[&local].saturating_sub(overhead(underlay)),
            port: self.settings.vxlan_port,
            vni: self.settings.vxlan_vni,
            addresses: gateways.collect(),
            neighbours: BTreeMap::new(),
            remotes: BTreeMap::new(),
        });
        tunnel.neighbours.insert(via, mac);
        tunnel.remotes.insert(mac, remote);
        let family = IpFamily::of(via);
        let mut sources = tunnel.addresses.iter().copied();
        let source = sources.find(|address| IpFamily::of(*address) == family);
        let way = Way::Tunnel {
            underlay,
            via,
            source,
        };
        Choice::Way(way, remote)
    }

    /// This node's address of the family, if one of its links has it.
    fn local(&self, family: IpFamily) -> Option<IpAddr> {
        let address = self.own.address(family)?;
        let is_here = self.underlay.addresses.contains_key(&address);
        is_here.then_some(address)
    }

    /// MTU of pods: what fits on every way.
    fn set_mtu(&mut self) {
        let link = |family| Some(self.underlay.addresses[&self.local(family)?]);
        let links = IpFamily::BOTH.into_iter().filter_map(link);
        let link_mtu = links.min().unwrap_or(self.underlay.default_mtu);
        let tunnels = self.plan.tunnels.values().map(|tunnel| tunnel.mtu);
        // In this mode there will be one as soon as there is another node.
        let always = (self.settings.mode == NetworkMode::Vxlan).then(|| {
            let mut families = IpFamily::BOTH.into_iter();
            let underlay = families.find(|family| self.local(*family).is_some());
            let mtu = underlay.and_then(link).unwrap_or(link_mtu);
            mtu.saturating_sub(overhead(underlay.unwrap_or(IpFamily::V4)))
        });
        let fits = tunnels.chain(always).fold(link_mtu, u32::min);
        self.plan.mtu = self.settings.mtu.unwrap_or(fits);
        let has_v6 = self.own.pod_cidrs.iter().any(|net| net.addr().is_ipv6());
        if has_v6 && self.plan.mtu < IPV6_MTU {
            let message = format!(
                "the MTU of pods is {}, and IPv6 needs {IPV6_MTU}: raise that of the node's link",
                self.plan.mtu
            );
            self.complain(&[self.own], "SmallMTU", message);
        }
    }

    /// What is wrong, with the nodes that it concerns.
    fn complain(&mut self, nodes: &[&NodeNetwork], reason: &'static str, message: String) {
        let concerns_own = nodes.iter().any(|node| node.name == self.own.name);
        let about = nodes.first().filter(|_| !concerns_own);
        self.plan.problems.push(Complaint {
            about: about.map(|node| (Kind::Node, ObjectKey::new("", &*node.name))),
            uid: None,
            reason,
            message,
        });
    }
}

/// How one PodCIDR is reached.
enum Choice {
    /// So, with the other node's address.
    Way(Way, IpAddr),
    /// Not to be said now.
    Later(String),
    /// Not this way, for that reason.
    No(String),
}

const fn name_of(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests;
