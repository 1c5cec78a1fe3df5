//! A cluster of several nodes with their agents, and pods anywhere in it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::fabric::Fabric;
use crate::matrix::LIMIT;
use crate::netns::NetNs;
use crate::node::Node;
use crate::objects;
use crate::pod::{Family, Pod};
use crate::scene::{PORTS, ShownLog};
use crate::traffic::{Outcome, Protocol, Server, ask};
use crate::wait::{SOON, eventually};

/// The name of the host outside of the cluster among sources and servers.
pub const OUTSIDE: &str = "outside";

/// Running nodes. Its parts end in the order of the fields.
#[derive(Debug)]
pub struct Cluster<'f> {
    /// The servers in the pods and outside, by the name they answer with.
    pub servers: BTreeMap<String, Server>,
    /// The pods by `namespace/name`.
    pub pods: BTreeMap<String, Pod<'f>>,
    /// The agents, in the order of the nodes.
    pub agents: Vec<Agent<'f>>,
    /// Show what they logged.
    pub logs: Vec<ShownLog>,
    /// The nodes.
    pub fabric: &'f Fabric,
    /// Manifests of the pods, by key.
    manifests: BTreeMap<String, Value>,
}

impl<'f> Cluster<'f> {
    /// Writes the Nodes and `objects` as manifests of every node, starts the agents with
    /// these arguments more, and waits until each has written its CNI configuration.
    pub fn start(fabric: &'f Fabric, arguments: &[&str], objects: &[Value]) -> Result<Self> {
        let mut cluster = Self {
            servers: BTreeMap::new(),
            pods: BTreeMap::new(),
            agents: Vec::new(),
            logs: Vec::new(),
            fabric,
            manifests: BTreeMap::new(),
        };
        cluster.write("nodes", &fabric.node_objects())?;
        cluster.write("objects", objects)?;
        cluster.write("pods", &[])?;
        for node in &fabric.nodes {
            let agent = start_agent(node, arguments)?;
            cluster.logs.push(ShownLog::of(agent.log_path()));
            cluster.agents.push(agent);
        }
        for node in &fabric.nodes {
            eventually(SOON, || conflist(node))?;
        }
        let outside = Server::start(&fabric.outside, OUTSIDE, &PORTS)?;
        cluster.servers.insert(OUTSIDE.to_owned(), outside);
        Ok(cluster)
    }

    /// Ends the agent of a node without a chance to clean up, and starts another.
    pub fn restart(&mut self, number: usize, arguments: &[&str]) -> Result<()> {
        self.agents.remove(number - 1).kill()?;
        let agent = start_agent(&self.fabric.nodes[number - 1], arguments)?;
        self.agents.insert(number - 1, agent);
        Ok(())
    }

    /// Has a pod attached to node `number` and starts its servers. Its namespace has the
    /// label `team` with its own name.
    pub fn add_pod(&mut self, number: usize, key: &str, labels: &Value) -> Result<()> {
        let node = &self.fabric.nodes[number - 1];
        let mut manifest = objects::pod(key, labels, &PORTS);
        manifest["spec"]["nodeName"] = json!(node.name);
        self.manifests.insert(key.to_owned(), manifest);
        self.write_pods()?;
        let pod = Pod::add(node, key)?;
        // The other nodes know its addresses by its status alone.
        let ips = pod.ips().iter().map(|ip| json!({ "ip": ip }));
        let manifest = self.manifests.get_mut(key).expect("put above");
        manifest["status"]["podIPs"] = ips.collect();
        self.servers
            .insert(key.to_owned(), Server::start(&pod.netns, key, &PORTS)?);
        self.pods.insert(key.to_owned(), pod);
        self.write_pods()
    }

    /// Replaces the manifests that are neither Nodes nor pods, and waits until every kernel
    /// has them.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.write("objects", objects)?;
        self.wait()
    }

    /// Replaces the Nodes.
    pub fn apply_nodes(&self, nodes: &[Value]) -> Result<()> {
        self.write("nodes", nodes)?;
        self.wait()
    }

    /// Waits until every kernel has everything written so far.
    pub fn wait(&self) -> Result<()> {
        self.agents.iter().try_for_each(Agent::wait)
    }

    fn write_pods(&self) -> Result<()> {
        let namespaces = self.manifests.keys().filter_map(|key| key.split_once('/'));
        let namespaces: std::collections::BTreeSet<_> =
            namespaces.map(|(namespace, _)| namespace).collect();
        let namespaces = namespaces
            .into_iter()
            .map(|name| objects::namespace(name, &json!({"team": name})));
        let all: Vec<_> = namespaces.chain(self.manifests.values().cloned()).collect();
        self.write("pods", &all)?;
        self.wait()
    }

    fn write(&self, file: &str, objects: &[Value]) -> Result<()> {
        let mut nodes = self.fabric.nodes.iter();
        nodes.try_for_each(|node| node.manifests.write(file, objects))
    }

    /// A pod that was given to [`Self::add_pod`].
    pub fn pod(&self, key: &str) -> &Pod<'f> {
        self.pods
            .get(key)
            .unwrap_or_else(|| panic!("no pod {key} in this cluster"))
    }

    /// The namespace of a pod, of a node by its name, or outside.
    pub fn netns(&self, name: &str) -> &NetNs {
        let mut nodes = self.fabric.nodes.iter();
        if name == OUTSIDE {
            return &self.fabric.outside;
        }
        match nodes.find(|node| node.name == name) {
            Some(node) => &node.netns,
            None => &self.pod(name).netns,
        }
    }

    /// One attempt over TCP from a pod, a node or outside, which may take `limit`.
    pub fn ask(&self, from: &str, target: SocketAddr, limit: Duration) -> Result<Outcome> {
        let netns = self.netns(from);
        netns.enter(move || ask(Protocol::Tcp, target, limit))
    }

    /// An attempt over TCP to port 80 of a pod, repeated if it is not answered; the server
    /// has to see the client's own address if the client is a pod.
    pub fn reaches(&self, from: &str, to: &str, family: Family) -> Result<()> {
        let target = self.pod(to).at(family, 80);
        let (outcome, _) = eventually(SOON, || {
            let outcome = self.ask(from, target, LIMIT)?;
            ensure!(
                outcome.server() == Some(to),
                "{from} to {to} ({target}): {outcome}"
            );
            Ok(outcome)
        })?;
        let seen = match outcome {
            Outcome::Answered { peer, .. } => Some(peer.ip()),
            _ => None,
        };
        if let Some(pod) = self.pods.get(from) {
            let own = Some(pod.ip(family));
            ensure!(seen == own, "{from} is seen as {seen:?}, not {own:?}");
        }
        Ok(())
    }

    /// Every pair of these pods, both families.
    pub fn all_reach(&self, pods: &[&str]) -> Result<()> {
        for from in pods {
            for to in pods.iter().filter(|to| *to != from) {
                for family in Family::ALL {
                    self.reaches(from, to, family)?;
                }
            }
        }
        Ok(())
    }
}

/// Starts the agent of a node, and does not wait until it is ready.
fn start_agent<'f>(node: &'f Node, arguments: &[&str]) -> Result<Agent<'f>> {
    let template = node.dir().join("template.json");
    let list = node.conflist(json!({"ipam": {"ranges": null}}));
    fs::write(&template, list.to_string()).context("cannot write a template")?;
    let (template, dir) = (template.display().to_string(), node.conf_dir());
    let dir = dir.display().to_string();
    let mut all = vec!["--cni-conf-dir", &dir, "--cni-conf-template", &template];
    all.extend(arguments);
    Agent::spawn_with(node, &all)
}

/// The network configuration that the agent of a node has written.
pub fn conflist(node: &Node) -> Result<Value> {
    let path = node.conf_dir().join("10-trammel.conflist");
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}
