//! A Kubernetes node as a namespace, with a neighbour outside the cluster.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::inspect;
use crate::manifests::Manifests;
use crate::name;
use crate::netns::NetNs;
use crate::pod::Family;

/// IPv4 range of a node's pods. The first address is the gateway.
pub const PODS_V4: &str = "10.88.0.0/24";
/// IPv6 range of a node's pods.
pub const PODS_V6: &str = "fd88::/64";
/// Range that the suites take cluster IPs from.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// The same for IPv6.
pub const SERVICES_V6: &str = "fd96::/112";
/// The gateway of the pods, on the bridge.
pub const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd88::1"];
/// The node's own addresses (RFC 5737 and RFC 3849 documentation ranges).
pub const NODE_IPS: [&str; 2] = ["192.0.2.2", "2001:db8:77::2"];
/// The addresses of the neighbour outside.
pub const OUTSIDE_IPS: [&str; 2] = ["192.0.2.1", "2001:db8:77::1"];
/// What the node is called in manifests and on the agent's command line.
pub const NODE_NAME: &str = "n1";

/// How packets of a pod may go: the plugin's mode, and whether bridges call the packet filter.
pub const WAYS: [(&str, bool); 4] = [
    ("routed-ports", false),
    ("routed-ports", true),
    ("l2", false),
    ("routed", false),
];

/// Where a node is.
#[derive(Clone, Copy, Debug)]
struct Place {
    name: &'static str,
    pods: [&'static str; 2],
    ips: [&'static str; 2],
    outside_ips: [&'static str; 2],
    /// On the link to the other node of a pair.
    link_ips: [&'static str; 2],
}

/// The node of most suites, and the second of a pair.
const PLACES: [Place; 2] = [
    Place {
        name: NODE_NAME,
        pods: [PODS_V4, PODS_V6],
        ips: NODE_IPS,
        outside_ips: OUTSIDE_IPS,
        link_ips: ["203.0.113.1", "2001:db8:79::1"],
    },
    Place {
        name: "n2",
        pods: ["10.88.1.0/24", "fd88:0:0:1::/64"],
        ips: ["198.51.100.2", "2001:db8:78::2"],
        outside_ips: ["198.51.100.1", "2001:db8:78::1"],
        link_ips: ["203.0.113.2", "2001:db8:79::2"],
    },
];

/// A node: forwarding on, an uplink with addresses of both families to a
/// namespace outside the cluster, and its own directories.
#[derive(Debug)]
pub struct Node {
    /// The node's namespace.
    pub netns: NetNs,
    /// The neighbour that routes pods' and Services' ranges to the node, as a
    /// router outside the cluster would.
    pub outside: NetNs,
    /// The manifests that this node's agent reads.
    pub manifests: Manifests,
    /// What it is called in manifests and on the agent's command line.
    pub name: String,
    place: &'static Place,
    network: String,
    dir: PathBuf,
}

impl Node {
    /// A node with the kernel's default settings.
    pub fn new() -> Result<Self> {
        Self::at(&PLACES[0])
    }

    /// Two nodes that share a link and have routes to each other's pods. Each has its own
    /// neighbour outside; their agents read the same manifests.
    pub fn pair() -> Result<[Self; 2]> {
        let mut nodes = [Self::at(&PLACES[0])?, Self::at(&PLACES[1])?];
        nodes[1].manifests = Manifests::in_dir(nodes[0].manifests.dir().to_owned());
        let peer = nodes[1].netns.name().to_owned();
        nodes[0].netns.ip(&format!(
            "link add nodes type veth peer name nodes netns {peer}"
        ))?;
        for node in &nodes {
            let [v4, v6] = node.place.link_ips;
            node.netns.add_address("nodes", &format!("{v4}/24"))?;
            node.netns.add_address("nodes", &format!("{v6}/64"))?;
            node.netns.up("nodes")?;
        }
        for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            for (range, via) in other.place.pods.iter().zip(other.place.link_ips) {
                node.netns.ip(&format!("route add {range} via {via}"))?;
            }
        }
        Ok(nodes)
    }

    /// A node of that name with the kernel's default settings, without links, routes and
    /// network configuration.
    pub fn unconnected(name: &str) -> Result<Self> {
        Self::unconnected_at(name, &PLACES[0])
    }

    fn at(place: &'static Place) -> Result<Self> {
        let node = Self::unconnected_at(place.name, place)?;
        node.forward()?;
        node.connect()?;
        node.write_conflist(&node.conflist(json!({})))?;
        Ok(node)
    }

    fn unconnected_at(name: &str, place: &'static Place) -> Result<Self> {
        let network = name::unique("net");
        let dir = name::scratch_root().join(&network);
        let node = Self {
            netns: NetNs::create("node")?,
            outside: NetNs::create("outside")?,
            manifests: Manifests::in_dir(dir.join("manifests")),
            name: name.to_owned(),
            place,
            network,
            dir,
        };
        for part in ["net.d", "ipam", "run", "manifests"] {
            let path = node.dir.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(node)
    }

    /// A node whose pods are connected in one of the [`WAYS`].
    pub fn with_mode(mode: &str, bridge_nf: bool) -> Result<Self> {
        let node = Self::with_bridge_nf(bridge_nf)?;
        node.write_conflist(&node.conflist(json!({"mode": mode})))?;
        Ok(node)
    }

    /// A node with `bridge-nf-call-iptables` and its IPv6 twin set.
    pub fn with_bridge_nf(on: bool) -> Result<Self> {
        let node = Self::new()?;
        node.set_bridge_nf(on)?;
        Ok(node)
    }

    /// Sets both `bridge-nf-call` sysctls of this node, where the kernel has them.
    pub fn set_bridge_nf(&self, on: bool) -> Result<()> {
        for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let key = format!("net.bridge.{key}");
            if self.netns.read_sysctl(&key).is_some() {
                self.netns.sysctl(&key, i32::from(on))?;
            }
        }
        Ok(())
    }

    fn forward(&self) -> Result<()> {
        self.netns.sysctl("net.ipv4.ip_forward", 1)?;
        self.netns.sysctl("net.ipv6.conf.all.forwarding", 1)
    }

    fn connect(&self) -> Result<()> {
        let (node, outside) = (&self.netns, &self.outside);
        node.ip(&format!(
            "link add uplink type veth peer name eth0 netns {}",
            outside.name()
        ))?;
        let Place {
            ips,
            outside_ips,
            pods,
            ..
        } = self.place;
        for (netns, link, addresses) in [(node, "uplink", ips), (outside, "eth0", outside_ips)] {
            netns.add_address(link, &format!("{}/24", addresses[0]))?;
            netns.add_address(link, &format!("{}/64", addresses[1]))?;
            netns.up(link)?;
        }
        for via in outside_ips {
            node.ip(&format!("route add default via {via}"))?;
        }
        for (ranges, via) in [
            ([pods[0], SERVICES_V4], ips[0]),
            ([pods[1], SERVICES_V6], ips[1]),
        ] {
            for range in ranges {
                outside.ip(&format!("route add {range} via {via}"))?;
            }
        }
        Ok(())
    }

    /// Its own address.
    pub fn ip(&self, family: Family) -> IpAddr {
        family.pick(self.place.ips)
    }

    /// Its address on the link to the other node of a pair.
    pub fn link_ip(&self, family: Family) -> IpAddr {
        family.pick(self.place.link_ips)
    }

    /// The address of its neighbour outside.
    pub fn outside_ip(&self, family: Family) -> IpAddr {
        family.pick(self.place.outside_ips)
    }

    /// The network's name: unique, for libcni keeps results under it.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// This node's own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of the network configuration, `NETCONFPATH`.
    pub fn conf_dir(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// The leases of this node's pods, conf key `ipam.dataDir`.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("ipam")
    }

    /// The agent's socket, conf key `agentSocket`.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/agent.sock")
    }

    /// The attachment records beside the agent's socket.
    pub fn records_dir(&self) -> PathBuf {
        self.dir.join("run/attachments")
    }

    /// The files of this node's leases: addresses without locks and marks.
    pub fn leases(&self) -> Result<Vec<IpAddr>> {
        Ok(file_names(&self.data_dir().join(&self.network))?
            .iter()
            .filter_map(|file| file.parse().ok())
            .collect())
    }

    /// The files in [`Self::records_dir`].
    pub fn records(&self) -> Result<Vec<String>> {
        file_names(&self.records_dir())
    }

    /// The host-side ends of pods, by name.
    pub fn ports(&self) -> Result<Vec<String>> {
        let links = self.netns.ip_json("link show type veth")?;
        Ok(inspect::items(&links)
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| !["uplink", "cbr0"].contains(name))
            .map(str::to_owned)
            .collect())
    }

    /// The plugin's configuration as a runtime passes it on standard input:
    /// `keys` are added to, or replace, those of the first and only plugin.
    pub fn conf(&self, keys: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0",
            "name": self.network,
            "type": "trammel",
            "bridge": "cbr0",
            "agentSocket": self.socket(),
            "ipam": {
                "type": "trammel-ipam",
                "ranges": self.place.pods.map(|subnet| json!([{"subnet": subnet}])),
                "dataDir": self.data_dir(),
            },
        });
        merge(&mut conf, keys);
        conf
    }

    /// The network configuration list with that plugin, see [`Self::conf`].
    pub fn conflist(&self, keys: Value) -> Value {
        let mut plugin = self.conf(keys);
        let mut outer = json!({});
        for key in ["cniVersion", "name"] {
            outer[key] = plugin[key].take();
            plugin
                .as_object_mut()
                .expect("made as an object")
                .remove(key);
        }
        outer["plugins"] = json!([plugin]);
        outer
    }

    /// Makes `conflist` the node's network configuration.
    pub fn write_conflist(&self, conflist: &Value) -> Result<()> {
        let path = self.conf_dir().join("10-trammel.conflist");
        fs::write(&path, format!("{conflist:#}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Lays `keys` over `into`, objects key by key; `null` removes a key.
fn merge(into: &mut Value, keys: Value) {
    match (into, keys) {
        (Value::Object(into), Value::Object(keys)) => {
            for (key, value) in keys {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, value) => *into = value,
    }
}

/// The names in a directory, sorted; none if there is no such directory.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
