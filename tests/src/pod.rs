//! A pod: a namespace that cnitool has attached to a node's network.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{self, LIMIT, Output};
use crate::inspect;
use crate::netns::NetNs;
use crate::node::Node;
use crate::programs;

/// A pod on a node. Dropping it runs DEL and deletes its namespace.
#[derive(Debug)]
pub struct Pod<'n> {
    /// The pod's network namespace.
    pub netns: NetNs,
    /// What ADD returned, as it was printed.
    pub result: Value,
    /// How long ADD took, cnitool's own start included.
    pub add_took: Duration,
    node: &'n Node,
    key: String,
    ips: Vec<IpAddr>,
    attached: AtomicBool,
}

impl<'n> Pod<'n> {
    /// Makes a namespace and has cnitool attach it. `key` is `namespace/name`.
    pub fn add(node: &'n Node, key: &str) -> Result<Self> {
        let (_, name) = split(key)?;
        let netns = NetNs::create(name)?;
        Self::add_netns(node, key, netns)
    }

    /// Has cnitool attach a namespace that exists.
    pub fn add_netns(node: &'n Node, key: &str, netns: NetNs) -> Result<Self> {
        let output = cnitool(node, key, &netns, "add")?;
        if !output.status.success() {
            bail!("ADD of {key}: {}", command::complaint(&output));
        }
        let mut pod = Self {
            netns,
            result: Value::Null,
            add_took: output.took,
            node,
            key: key.to_owned(),
            ips: Vec::new(),
            attached: AtomicBool::new(true),
        };
        pod.result = serde_json::from_str(&output.stdout)
            .with_context(|| format!("ADD of {key} printed {:?}", output.stdout))?;
        pod.ips = inspect::result_ips(&pod.result)?;
        Ok(pod)
    }

    /// `namespace/name`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its addresses in the order of the result.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its address of one family.
    pub fn ip(&self, family: Family) -> IpAddr {
        let found = self.ips.iter().find(|ip| Family::of(**ip) == family);
        *found.unwrap_or_else(|| panic!("{} has no {family} address: {:?}", self.key, self.ips))
    }

    /// That address with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Runs CHECK.
    pub fn check(&self) -> Result<()> {
        self.expect_success("check")
    }

    /// Runs DEL. The namespace stays.
    pub fn del(&self) -> Result<()> {
        self.attached.store(false, Ordering::Relaxed);
        self.expect_success("del")
    }

    /// Removes its namespace, and with it its link, as a loss of power would: nobody runs
    /// DEL.
    pub fn forget(self) -> Result<()> {
        self.attached.store(false, Ordering::Relaxed);
        let port = self.port()?;
        self.node.netns.ip(&format!("link del {port}"))?;
        Ok(())
    }

    /// The name of the node's end of its link.
    pub fn port(&self) -> Result<String> {
        inspect::host_interface(&self.result)
    }

    fn expect_success(&self, verb: &str) -> Result<()> {
        let output = cnitool(self.node, &self.key, &self.netns, verb)?;
        if !output.status.success() {
            bail!(
                "{} of {}: {}",
                verb.to_uppercase(),
                self.key,
                command::complaint(&output)
            );
        }
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.attached.load(Ordering::Relaxed)
            && let Err(error) = self.del()
        {
            eprintln!("{error:#}");
        }
    }
}

/// An IP family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Picks from a pair of IPv4 and IPv6 text addresses.
    pub fn pick(self, pair: [&str; 2]) -> IpAddr {
        let text = pair[usize::from(self == Self::V6)];
        text.parse()
            .unwrap_or_else(|_| panic!("{text} is no address"))
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The `CNI_ARGS` that a Kubernetes runtime gives for a pod.
pub fn cni_args(key: &str) -> Result<String> {
    let (namespace, name) = split(key)?;
    Ok(format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
         K8S_POD_INFRA_CONTAINER_ID={namespace}-{name};K8S_POD_UID={}",
        uid(key),
    ))
}

/// The UID that manifests and `CNI_ARGS` of the suites give to a pod.
pub fn uid(key: &str) -> String {
    key.replace('/', "-")
}

/// Runs cnitool in a node for a namespace.
pub fn cnitool(node: &Node, key: &str, netns: &NetNs, verb: &str) -> Result<Output> {
    let mut command = node.netns.command(programs::cnitool());
    command.args([verb, node.network()]).arg(netns.path());
    set_environment(&mut command, node, key)?;
    command::output(&mut command, b"", LIMIT)
}

fn set_environment(command: &mut Command, node: &Node, key: &str) -> Result<()> {
    let mut path = programs::bin_dir().into_os_string();
    path.push(":");
    path.push(programs::REFERENCE_PLUGINS);
    command
        .env("CNI_PATH", path)
        .env("NETCONFPATH", node.conf_dir())
        .env("CNI_ARGS", cni_args(key)?)
        .env_remove("CAP_ARGS")
        .env_remove("CNI_IFNAME");
    Ok(())
}

fn split(key: &str) -> Result<(&str, &str)> {
    key.split_once('/')
        .with_context(|| format!("{key:?} is not namespace/name"))
}
