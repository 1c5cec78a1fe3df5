//! The node's place in the pod network of the cluster: routes to the pods of other nodes,
//! and the CNI configuration for its own.
//!
//! ```text
//!  owner ──Nodes──► follow ──► plan ──► change ──► kernel
//!                     ▲          pure: what there is to be, and what differs
//!                     └── links, addresses, next hops, routes (rtnetlink)
//! ```
//!
//! A node's PodCIDR is reached *directly*, by a route to the node's InternalIP, where that
//! is on a link of this node, and through a *tunnel* otherwise: one VXLAN device for each
//! family of the nodes' own addresses that is in use. Nothing is learnt from packets. Route,
//! neighbour and forwarding entry of a tunnel follow from the Node objects alone: the
//! Ethernet address of a node's tunnel is a hash of its name, and its address there is the
//! gateway of its PodCIDR, the first address, which no pod ever has.
//!
//! Routes carry a protocol number of their own, [`PROTOCOL`], by which they are found after
//! a restart and told from those of others, which are never touched. The end of the agent
//! changes nothing.
//!
//! - [`plan`]: what there is to be, a pure function of Nodes and links.
//! - [`change`]: what that is in the kernel's terms, and how to get there. Pure, too.
//! - [`kernel`]: looks and changes. [`sysctls`]: settings that forwarding needs.
//! - [`follow`]: when to look. [`conflist`]: the CNI configuration.

pub mod change;
pub mod conflist;
pub mod follow;
pub mod kernel;
pub mod plan;
pub mod sysctls;

use std::net::IpAddr;

use dataplane::attachment::MacAddr;
use dataplane::object::IpFamily;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::complaint::Problem;
use crate::config::network::NetworkMode;
use crate::model::Node;

/// `rtm_protocol` of our routes; `rt_protos` of iproute2 has no name for it.
pub const PROTOCOL: u8 = 116;

/// Name of the tunnel device over nodes' addresses of that family.
pub const fn tunnel_name(underlay: IpFamily) -> &'static str {
    match underlay {
        IpFamily::V4 => "trammel-vxlan4",
        IpFamily::V6 => "trammel-vxlan6",
    }
}

/// Ethernet address of a node's end of the tunnels: locally administered, from its name.
pub fn tunnel_mac(node: &str) -> MacAddr {
    let hash = Sha256::digest(node.as_bytes());
    MacAddr([
        0x0a ^ (hash[0] & 0xf0),
        hash[1],
        hash[2],
        hash[3],
        hash[4],
        hash[5],
    ])
}

/// The address of the node itself in a PodCIDR: its first, as every IPAM has it for the
/// gateway. `None`: the prefix has no room for a gateway and a pod.
pub fn gateway(pod_cidr: IpNet) -> Option<IpAddr> {
    let host_bits = pod_cidr.max_prefix_len() - pod_cidr.prefix_len();
    (host_bits >= 2).then(|| match pod_cidr {
        IpNet::V4(net) => IpAddr::from((u32::from(net.network()) + 1).to_be_bytes()),
        IpNet::V6(net) => IpAddr::from((u128::from(net.network()) + 1).to_be_bytes()),
    })
}

/// What of a Node object its network depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeNetwork {
    /// Name.
    pub name: String,
    /// Seconds since the epoch; of two claims to an address the older counts.
    pub created: i64,
    /// InternalIPs, in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

impl From<&Node> for NodeNetwork {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            created: node.created,
            addresses: node.internal_addresses.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
        }
    }
}

impl NodeNetwork {
    /// Its first address of the family.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().copied();
        addresses.find(|address| IpFamily::of(*address) == family)
    }
}

/// The pod network as this node sees it, for `status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// How pods of other nodes are reached.
    pub mode: NetworkMode,
    /// Of this node, as far as they are its own.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// MTU of pods.
    pub mtu: Option<u32>,
    /// PodCIDRs of other nodes.
    pub routes: Vec<RouteStatus>,
    /// The CNI configuration that is written, if one is.
    pub cni_conf: Option<String>,
    /// Times that somebody else had changed something of ours and it was repaired.
    pub repairs: u64,
    /// Why the kernel does not hold what it should.
    pub error: Option<String>,
    /// What is wrong with other Nodes.
    #[serde(skip)]
    pub problems: Vec<Problem>,
}

impl NetworkStatus {
    /// Before anything is known.
    pub(crate) const fn new(mode: NetworkMode) -> Self {
        Self {
            mode,
            pod_cidrs: Vec::new(),
            mtu: None,
            routes: Vec::new(),
            cni_conf: None,
            repairs: 0,
            error: None,
            problems: Vec::new(),
        }
    }
}

/// How a PodCIDR is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// The node whose it is.
    pub node: String,
    /// The prefix.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: IpNet,
    /// `direct` or `vxlan`.
    pub path: String,
    /// The node's address that the packets are sent to.
    pub node_address: IpAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_tunnel_address_is_the_first_of_its_pod_cidr() {
        for (pod_cidr, expected) in [
            ("10.88.3.0/24", Some("10.88.3.1")),
            ("10.88.3.4/30", Some("10.88.3.5")),
            ("10.88.3.4/31", None),
            ("fd88:3::/64", Some("fd88:3::1")),
            ("fd88:3::8/126", Some("fd88:3::9")),
            ("fd88:3::8/127", None),
        ] {
            let found = gateway(pod_cidr.parse().expect("a prefix"));
            assert_eq!(
                found.map(|ip| ip.to_string()).as_deref(),
                expected,
                "{pod_cidr}"
            );
        }
    }

    /// Other nodes compute it, too: it can never change.
    #[test]
    fn a_node_s_tunnel_mac_is_its_own_unicast_and_stays() {
        assert_eq!(tunnel_mac("n1"), tunnel_mac("n1"));
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..2000 {
            let mac = tunnel_mac(&format!("node-{number}"));
            assert_eq!(mac.0[0] & 0b11, 0b10, "unicast, locally administered");
            assert!(seen.insert(mac), "of two nodes: {mac}");
        }
        assert_eq!(tunnel_mac("n1").to_string(), "6a:6b:8b:b8:4c:e7");
    }
}
