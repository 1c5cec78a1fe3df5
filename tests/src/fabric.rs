//! Several nodes of one cluster, and what joins them.
//!
//! ```text
//!   Link:    node ──┬── bridge ── outside        Routers: node ── router ── outside
//!            node ──┘                                     node ──┘
//! ```

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use crate::netns::NetNs;
use crate::node::Node;
use crate::pod::Family;

/// What joins the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Join {
    /// They are neighbours on one link.
    Link,
    /// Each is on a link of its own, with a router that knows no pods.
    Router,
}

/// Nodes, and a host outside of the cluster.
#[derive(Debug)]
pub struct Fabric {
    /// The nodes, `n1` first.
    pub nodes: Vec<Node>,
    /// A host outside, which the nodes' default routes lead to or through.
    pub outside: NetNs,
    /// The bridge or the router. Nodes' links in it are called as they are.
    pub middle: NetNs,
    families: Vec<Family>,
    join: Join,
}

impl Fabric {
    /// Nodes with addresses of these families.
    pub fn new(join: Join, families: &[Family], count: usize) -> Result<Self> {
        let fabric = Self {
            nodes: (1..=count)
                .map(|number| Node::unconnected(&format!("n{number}")))
                .collect::<Result<_>>()?,
            outside: NetNs::create("outside")?,
            middle: NetNs::create("middle")?,
            families: families.to_vec(),
            join,
        };
        let middle = &fabric.middle;
        if join == Join::Link {
            middle.ip("link add lan type bridge")?;
            middle.up("lan")?;
        } else {
            middle.sysctl("net.ipv4.ip_forward", 1)?;
            middle.sysctl("net.ipv6.conf.all.forwarding", 1)?;
        }
        fabric.connect(&fabric.outside, "outside", 100)?;
        for number in 1..=count {
            let node = &fabric.nodes[number - 1];
            fabric.connect(&node.netns, &node.name, number)?;
        }
        Ok(fabric)
    }

    /// The address of node `number`, from 1.
    pub fn node_ip(&self, number: usize, family: Family) -> IpAddr {
        address(self.join, number, family, 2)
    }

    /// The address of the host outside.
    pub fn outside_ip(&self, family: Family) -> IpAddr {
        address(self.join, 100, family, 2)
    }

    /// The Node objects, with a PodCIDR of each family: `10.88.N.0/24` and `fd88:N::/64`.
    pub fn node_objects(&self) -> Vec<Value> {
        let numbers = 1..=self.nodes.len();
        numbers.map(|number| self.node_object(number)).collect()
    }

    /// The Node object of node `number`.
    pub fn node_object(&self, number: usize) -> Value {
        let addresses = self.families.iter().map(|family| {
            let address = self.node_ip(number, *family);
            json!({"type": "InternalIP", "address": address})
        });
        let addresses: Vec<_> = addresses.collect();
        let pod_cidrs = Family::ALL.map(|family| pod_cidr(number, family));
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": self.nodes[number - 1].name,
                "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z"),
            },
            "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
            "status": {"addresses": addresses},
        })
    }

    fn connect(&self, netns: &NetNs, name: &str, number: usize) -> Result<()> {
        let middle = &self.middle;
        netns.ip(&format!(
            "link add uplink type veth peer name {name} netns {}",
            middle.name()
        ))?;
        // An address outlives its link's flaps, as it does where a daemon sees to it.
        netns.sysctl("net.ipv6.conf.uplink.keep_addr_on_down", 1)?;
        if self.join == Join::Link {
            middle.ip(&format!("link set {name} master lan"))?;
        }
        middle.up(name)?;
        netns.up("uplink")?;
        for &family in &self.families {
            let length = if family == Family::V4 { 24 } else { 64 };
            let ip = address(self.join, number, family, 2);
            netns.add_address("uplink", &format!("{ip}/{length}"))?;
            let gateway = match self.join {
                Join::Router => {
                    let gateway = address(self.join, number, family, 1);
                    middle.add_address(name, &format!("{gateway}/{length}"))?;
                    gateway
                }
                Join::Link if netns.name() != self.outside.name() => self.outside_ip(family),
                Join::Link => continue,
            };
            netns.ip(&format!("route add default via {gateway} dev uplink"))?;
        }
        Ok(())
    }
}

/// The PodCIDR of node `number`.
pub fn pod_cidr(number: usize, family: Family) -> String {
    match family {
        Family::V4 => format!("10.88.{number}.0/24"),
        Family::V6 => format!("fd88:{number}::/64"),
    }
}

/// A host on the link of `number`: on the one link all are told apart by their number, and
/// behind routers by `host`.
fn address(join: Join, number: usize, family: Family, host: usize) -> IpAddr {
    let text = match (join, family) {
        (Join::Link, Family::V4) => format!("192.0.2.{}", 10 + number),
        (Join::Link, Family::V6) => format!("2001:db8:77::{number}"),
        (Join::Router, Family::V4) => format!("198.18.{number}.{host}"),
        (Join::Router, Family::V6) => format!("2001:db8:{number}::{host}"),
    };
    text.parse().expect("made as an address")
}
