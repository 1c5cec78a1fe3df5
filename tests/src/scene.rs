//! A node with an agent, pods and their servers: where most tests begin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::netns::NetNs;
use crate::node::Node;
use crate::objects;
use crate::pod::Pod;
use crate::traffic::{Outcome, PATIENT, Protocol, Server, ask};

/// The ports that every pod of a scene serves, over TCP and UDP.
pub const PORTS: [u16; 2] = [80, 81];

/// The name of the node among the sources of a matrix.
pub const NODE: &str = "node";
/// The name of the neighbour outside the cluster among them.
pub const OUTSIDE: &str = "outside";

/// A running node. Its parts end in the order of the fields.
#[derive(Debug)]
pub struct Scene<'n> {
    /// The servers in the pods and outside, by the name they answer with.
    pub servers: BTreeMap<String, Server>,
    /// The pods by `namespace/name`.
    pub pods: BTreeMap<String, Pod<'n>>,
    /// The agent.
    pub agent: Agent<'n>,
    /// Shows what it logged.
    pub log: ShownLog,
    /// The node.
    pub node: &'n Node,
}

impl<'n> Scene<'n> {
    /// Writes namespaces, `pods` (key and labels) and `objects` as manifests,
    /// starts the agent, has the pods attached and starts their servers. Every
    /// namespace has the label `team` with its own name.
    pub fn start(node: &'n Node, pods: &[(&str, Value)], objects: &[Value]) -> Result<Self> {
        Self::start_with(node, pods, objects, &[])
    }

    /// As [`Self::start`], with further arguments for the agent.
    pub fn start_with(
        node: &'n Node,
        pods: &[(&str, Value)],
        objects: &[Value],
        arguments: &[&str],
    ) -> Result<Self> {
        node.manifests.write("pods", &pod_manifests(pods))?;
        node.manifests.write("objects", objects)?;
        let agent = Agent::start_with(node, arguments)?;
        let mut scene = Self {
            servers: BTreeMap::new(),
            pods: BTreeMap::new(),
            log: ShownLog::of(agent.log_path()),
            agent,
            node,
        };
        for (key, _) in pods {
            scene.add(key)?;
        }
        let outside = Server::start(&node.outside, OUTSIDE, &PORTS)?;
        scene.servers.insert(OUTSIDE.to_owned(), outside);
        scene.agent.wait()?;
        Ok(scene)
    }

    /// Has a pod attached and starts its servers.
    pub fn add(&mut self, key: &str) -> Result<()> {
        let pod = Pod::add(self.node, key)?;
        self.servers
            .insert(key.to_owned(), Server::start(&pod.netns, key, &PORTS)?);
        self.pods.insert(key.to_owned(), pod);
        Ok(())
    }

    /// Replaces the pods' manifests and waits until the kernel has them.
    pub fn apply_pods(&self, pods: &[(&str, Value)]) -> Result<()> {
        self.node.manifests.write("pods", &pod_manifests(pods))?;
        self.agent.wait()
    }

    /// Replaces all other manifests and waits until the kernel has them.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.node.manifests.write("objects", objects)?;
        self.agent.wait()
    }

    /// A pod that was given to [`Self::start`] or [`Self::add`].
    pub fn pod(&self, key: &str) -> &Pod<'n> {
        self.pods
            .get(key)
            .unwrap_or_else(|| panic!("no pod {key} in this scene"))
    }

    /// The namespaces of pods, node and outside by their names.
    pub fn sources(&self) -> BTreeMap<String, &NetNs> {
        let mut sources: BTreeMap<_, _> = self
            .pods
            .iter()
            .map(|(key, pod)| (key.clone(), &pod.netns))
            .collect();
        sources.insert(NODE.to_owned(), &self.node.netns);
        sources.insert(OUTSIDE.to_owned(), &self.node.outside);
        sources
    }

    /// One attempt from a pod, the node or outside that is to be answered, or refused.
    pub fn ask(
        &self,
        from: &str,
        protocol: Protocol,
        target: std::net::SocketAddr,
    ) -> Result<Outcome> {
        self.ask_for(from, protocol, target, PATIENT)
    }

    /// One attempt that may take `limit`.
    pub fn ask_for(
        &self,
        from: &str,
        protocol: Protocol,
        target: std::net::SocketAddr,
        limit: Duration,
    ) -> Result<Outcome> {
        let sources = self.sources();
        let netns = sources
            .get(from)
            .unwrap_or_else(|| panic!("no source {from}"));
        netns.enter(move || ask(protocol, target, limit))
    }
}

/// Prints an agent's log when dropped: the test runner shows it if the test fails.
#[derive(Debug)]
pub struct ShownLog(PathBuf);

impl ShownLog {
    /// Of an agent that logs to this file.
    pub fn of(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Drop for ShownLog {
    fn drop(&mut self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        eprintln!("log of the agent:\n{text}");
    }
}

/// The pods and the namespaces that they are in.
fn pod_manifests(pods: &[(&str, Value)]) -> Vec<Value> {
    let namespaces: BTreeSet<_> = pods
        .iter()
        .filter_map(|(key, _)| Some(key.split_once('/')?.0))
        .collect();
    let namespaces = namespaces
        .into_iter()
        .map(|name| objects::namespace(name, &json!({"team": name})));
    let pods = pods
        .iter()
        .map(|(key, labels)| objects::pod(key, labels, &PORTS));
    namespaces.chain(pods).collect()
}
