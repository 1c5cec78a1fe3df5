//! In the place of the reference plugins, under their names.
//!
//! What the integration tests of `containernetworking/plugins` (`integration/`) expect of
//! `ptp`, `bridge` and `host-local`, alone and before `bandwidth`, run by cnitool: cni.md 66.
//! Its scripts for `firewall` and `tuning` concern none of ours. Added to the
//! configurations are `agentSocket`, `dataDir` and, for what ptp is, `"mode": "routed"`.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::Node;
use tests::{command, inspect, programs, require_root};

use crate::assert_empty;
use crate::bandwidth::transfer;

/// A folder of plugins: ours as bridge, ptp and host-local, Debian's bandwidth.
fn plugins(node: &Node) -> Result<PathBuf> {
    let folder = node.dir().join("bin");
    fs::create_dir_all(&folder)?;
    let bandwidth = Path::new(programs::REFERENCE_PLUGINS).join("bandwidth");
    for (name, program) in [
        ("bridge", programs::plugin()),
        ("ptp", programs::plugin()),
        ("host-local", programs::ipam_plugin()),
        ("bandwidth", bandwidth),
    ] {
        symlink(fs::canonicalize(program)?, folder.join(name))?;
    }
    Ok(folder)
}

/// A network as cnitool finds it.
struct Network<'n> {
    node: &'n Node,
    plugins: PathBuf,
    folder: PathBuf,
}

impl<'n> Network<'n> {
    /// Writes `chain` as a list, in a folder of its own.
    fn new(node: &'n Node, plugins: &Path, folder: &str, mut chain: Vec<Value>) -> Result<Self> {
        let first = &mut chain[0];
        first["agentSocket"] = json!(node.socket());
        first["ipam"]["dataDir"] = json!(node.data_dir());
        let list = json!({"cniVersion": "1.0.0", "name": node.network(), "plugins": chain});
        let folder = node.dir().join(folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("network.conflist"), list.to_string())?;
        Ok(Self {
            node,
            plugins: plugins.to_owned(),
            folder,
        })
    }

    fn cnitool(&self, verb: &str, pod: &NetNs) -> Result<()> {
        let mut command = self.node.netns.command(programs::cnitool());
        command
            .args([verb, self.node.network()])
            .arg(pod.path())
            .env("CNI_PATH", &self.plugins)
            .env("NETCONFPATH", &self.folder)
            .env_remove("CNI_ARGS")
            .env_remove("CAP_ARGS")
            .env_remove("CNI_IFNAME");
        command::run(&mut command).map(drop)
    }
}

/// The IPv4 address of a pod's `eth0`.
fn address(pod: &NetNs) -> Result<IpAddr> {
    let shown = pod.ip_json("-4 address show eth0")?;
    let address = shown[0]["addr_info"][0]["local"].as_str();
    Ok(address.context("no address")?.parse()?)
}

fn ptp(subnet: &str) -> Value {
    json!({"type": "ptp", "mode": "routed", "ipMasq": true, "mtu": 512,
        "ipam": {"type": "host-local", "subnet": subnet}})
}

/// Limits under the key that they use.
fn bandwidth() -> Value {
    json!({"type": "bandwidth", "capabilities": {"bandwidth": true}, "runtimeConfig": {"bandWidth": {
        "ingressRate": 80_000, "ingressBurst": 160_000, "egressRate": 80_000, "egressBurst": 160_000}}})
}

#[test]
fn as_ptp_with_host_local_and_with_bandwidth_behind_it() -> Result<()> {
    require_root!();
    let chains = [
        ("10.1.2.0/24", vec![ptp("10.1.2.0/24")]),
        ("10.9.2.0/24", vec![ptp("10.9.2.0/24"), bandwidth()]),
    ];
    for (subnet, chain) in chains {
        let node = Node::new()?;
        let plugins = plugins(&node)?;
        let network = Network::new(&node, &plugins, "ptp", chain)?;
        let pod = NetNs::create("pod")?;
        network.cnitool("add", &pod)?;
        let ip = address(&pod)?;
        ensure!(ip.to_string().starts_with(&subnet[..6]), "{ip}");
        assert_eq!(pod.ip_json("link show eth0")?[0]["mtu"], 512);
        let bridges = node.netns.ip_json("link show type bridge")?;
        assert_eq!(inspect::items(&bridges).len(), 0, "{bridges}");
        node.netns.ping(ip)?;
        network.cnitool("check", &pod)?;
        for _ in 0..2 {
            network.cnitool("del", &pod)?;
        }
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn as_bridge_a_pod_before_bandwidth_is_limited_and_its_neighbour_on_another_bridge_is_not()
-> Result<()> {
    require_root!();
    const BYTES: usize = 60_000;
    let node = Node::new()?;
    let plugins = plugins(&node)?;
    let bridge = |name: &str, subnet: &str| {
        json!({"type": "bridge", "bridge": name, "isDefaultGateway": true,
            "ipam": {"type": "host-local", "subnet": subnet}})
    };
    let chain = vec![bridge("test-bridge-0", "10.12.2.0/24"), bandwidth()];
    let limited = Network::new(&node, &plugins, "limited", chain)?;
    let chain = vec![bridge("test-bridge-1", "10.11.2.0/24")];
    let free = Network::new(&node, &plugins, "free", chain)?;
    let (one, two) = (NetNs::create("one")?, NetNs::create("two")?);
    limited.cnitool("add", &one)?;
    free.cnitool("add", &two)?;
    let ips = [address(&one)?, address(&two)?];
    for (ip, prefix) in ips.iter().zip(["10.12.2.", "10.11.2."]) {
        ensure!(ip.to_string().starts_with(prefix), "{ip}");
    }
    // Ten thousand bytes a second, behind a bucket of twenty thousand.
    let took = transfer(&node.netns, &one, ips[0], BYTES)?;
    ensure!(took > Duration::from_secs(2), "limited: {took:?}");
    transfer(&node.netns, &two, ips[1], BYTES)?;
    let links = node.netns.ip_json("link show type ifb")?;
    assert_eq!(
        inspect::items(&links).len(),
        1,
        "the limited one's: {links}"
    );
    limited.cnitool("del", &one)?;
    free.cnitool("del", &two)?;
    assert_empty(&node)
}
