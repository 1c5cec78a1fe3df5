//! What the owner has to do with the pod network of the cluster: it tells the Nodes to
//! [`crate::network`], and keeps the addresses of pods towards those who know the way back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::kernel::Kernel;
use dataplane::layout::{masquerade, tunnels};
use dataplane::object::Ruleset;
use ipnet::IpNet;

use super::Owner;
use crate::complaint::Problem;
use crate::event::Kind;
use crate::network::{NetworkStatus, NodeNetwork};

/// The pod network.
#[derive(Debug, Default)]
pub(super) struct ClusterNetwork {
    /// Whether this agent sees to it.
    is_on: bool,
    /// UDP port of tunnels, if there may be any.
    tunnel_port: Option<u16>,
    /// InternalIPs of all nodes.
    tunnel_ends: BTreeSet<IpAddr>,
    /// Nodes have changed since they were last taken.
    is_news: bool,
    /// What has changed is not wanted yet.
    inside_is_stale: bool,
    status: Option<NetworkStatus>,
    /// PodCIDRs of all nodes.
    pod_cidrs: BTreeSet<IpNet>,
    /// Addresses of nodes that know the way to this one's pods.
    direct: BTreeSet<IpNet>,
    /// What an earlier run has kept addresses towards, until there is a status: connections
    /// that begin meanwhile would be another's for good.
    adopted: BTreeSet<IpNet>,
}

impl ClusterNetwork {
    /// Where masqueraded pods keep their addresses.
    pub(super) fn inside(&self) -> impl Iterator<Item = IpNet> {
        let known = self.pod_cidrs.iter().chain(&self.direct);
        known.chain(&self.adopted).copied()
    }

    pub(super) const fn status(&self) -> Option<&NetworkStatus> {
        self.status.as_ref()
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.status.iter().flat_map(|status| &status.problems)
    }
}

impl<K: Kernel> Owner<K> {
    /// This agent sees to the pod network of the cluster, with tunnels by that UDP port. To
    /// be called before the first event.
    pub const fn follow_network(&mut self, tunnel_port: Option<u16>) {
        self.network.is_on = true;
        self.network.tunnel_port = tunnel_port;
    }

    /// The Nodes, if they have changed since the last call and have been listed.
    pub fn take_nodes(&mut self) -> Option<Arc<[NodeNetwork]>> {
        let is_due = self.network.is_news && self.listed.contains(&Kind::Node);
        if !is_due {
            return None;
        }
        self.network.is_news = false;
        Some(self.index.nodes.values().map(NodeNetwork::from).collect())
    }

    /// The pod network as it is, and the addresses of nodes that know the way to this one's
    /// pods.
    pub fn set_network(&mut self, status: NetworkStatus, direct: BTreeSet<IpNet>) {
        self.network.status = Some(status);
        let adopted = std::mem::take(&mut self.network.adopted);
        if self.network.direct != direct || !adopted.is_empty() {
            self.network.direct = direct;
            self.network.inside_is_stale = true;
            self.dirty = true;
        }
    }

    /// Goes on keeping addresses as the kernel does, until the network is known.
    pub(super) fn adopt_network(&mut self, observed: &Ruleset) {
        if self.network.is_on && self.network.status.is_none() {
            self.network.adopted = masquerade::inside_of(observed);
        }
    }

    pub(super) const fn nodes_changed(&mut self) {
        if self.network.is_on {
            self.network.is_news = true;
            self.network.inside_is_stale = true;
        }
    }

    /// Wants what has come of changed Nodes. An API server that does not know this node has
    /// no say in it, as in [`crate::network::plan`].
    pub(super) fn follow_nodes(&mut self) {
        if !std::mem::take(&mut self.network.inside_is_stale) {
            return;
        }
        if self.index.nodes.contains_key(&self.settings.node) {
            let nodes = || self.index.nodes.values();
            let pod_cidrs = nodes().flat_map(|node| &node.pod_cidrs);
            self.network.pod_cidrs = pod_cidrs.copied().collect();
            let ends = nodes().flat_map(|node| &node.internal_addresses);
            self.network.tunnel_ends = ends.copied().collect();
        }
        self.want_inside();
        // Before this node is known as one, nobody would be.
        if let Some(port) = self.network.tunnel_port
            && !self.network.tunnel_ends.is_empty()
        {
            tunnels::want(&mut self.desired, port, &self.network.tunnel_ends);
        }
    }
}
