//! The node, its pods and its agent, and how a step is taken on them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::agent::Agent;
use tests::matrix::{self, Cell, Expect};
use tests::netns::NetNs;
use tests::node::Node;
use tests::pod::Pod;
use tests::random::Random;
use tests::scene::{NODE, OUTSIDE, PORTS, ShownLog};
use tests::traffic::{Hammer, Server, Stream};
use tests::wait::SOON;

use crate::monitor::{Monitor, Tried, Witness, try_denied};
use crate::step::{Change, Step};
use crate::world::{Addresses, Connection, Verdicts, World};

/// Connections of each verdict that are tried after a step.
const SAMPLE: usize = 48;
/// Connections that stay open over many steps.
const FLOWS: usize = 3;
/// Everything that is real. Its parts end in the order of the fields.
pub(crate) struct Lab<'n> {
    flows: Vec<(Connection, Stream)>,
    servers: BTreeMap<String, Server>,
    pods: BTreeMap<String, Pod<'n>>,
    agent: Option<Agent<'n>>,
    _log: ShownLog,
    pub(crate) world: World,
    node: &'n Node,
    tried: Tried,
}

impl<'n> Lab<'n> {
    /// A node whose addresses are soon used again, with an agent.
    pub(crate) fn start(node: &'n Node) -> Result<Self> {
        node.write_conflist(&node.conflist(json!({"ipam": {"ranges": [
            [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.2", "rangeEnd": "10.88.0.8"}],
            [{"subnet": "fd88::/64", "rangeStart": "fd88::2", "rangeEnd": "fd88::8"}],
        ]}})))?;
        let world = World::new();
        node.manifests.write("world", &world.manifests())?;
        let agent = start_agent(node)?;
        let outside = Server::start(&node.outside, OUTSIDE, &PORTS)?;
        Ok(Self {
            flows: Vec::new(),
            servers: BTreeMap::from([(OUTSIDE.to_owned(), outside)]),
            pods: BTreeMap::new(),
            _log: ShownLog::of(agent.log_path()),
            agent: Some(agent),
            world,
            node,
            tried: Tried::default(),
        })
    }

    pub(crate) fn agent(&self) -> &Agent<'n> {
        self.agent.as_ref().expect("one runs between steps")
    }

    pub(crate) const fn tried(&self) -> Tried {
        self.tried
    }

    pub(crate) fn addresses(&self) -> Addresses {
        let pods = self.pods.iter();
        pods.map(|(key, pod)| (key.clone(), pod.ips().to_vec()))
            .collect()
    }

    /// Takes a step under the eyes of the monitor, and looks at what has come of it.
    pub(crate) fn take(&mut self, step: &Step, random: &mut Random) -> Result<()> {
        let before = self.world.verdicts(&self.addresses());
        let mut world = self.world.clone();
        step.change.apply(&mut world, |pod| self.ips(pod));
        let mut left = self.addresses();
        if let Change::Remove { pod, .. } | Change::Finish { pod } = &step.change {
            left.remove(pod);
            // Whoever goes takes its connections along.
            self.flows
                .retain(|(flow, _)| flow.from != *pod && flow.to != *pod);
        }
        let mut steady = before;
        let after = world.verdicts(&left);
        steady.retain(|connection, allowed| after.get(connection) == Some(allowed));

        let witness = Witness::start(&self.servers);
        let monitor = Monitor::start(&steady, &self.sources(), random)?;
        self.world = world;
        self.change(&step.change, step.agent_dies, random)?;
        monitor.finish(&mut self.tried)?;
        // Whatever a new pod may not do it never could.
        let after = self.world.verdicts(&self.addresses());
        let is_steady = |connection: &Connection| {
            let is_new = [&connection.from, &connection.to]
                .into_iter()
                .any(|name| self.pods.contains_key(name) && !left.contains_key(name));
            is_new || steady.contains_key(connection)
        };
        let mut closed = after.clone();
        closed.retain(|connection, allowed| !*allowed && is_steady(connection));
        witness.finish(&self.servers, &closed)?;
        self.follow_flows(&after, random)?;
        self.compare(&after, random)
    }

    fn ips(&self, pod: &str) -> Vec<IpAddr> {
        self.pods
            .get(pod)
            .map(|pod| pod.ips().to_vec())
            .unwrap_or_default()
    }

    fn sources(&self) -> BTreeMap<String, &NetNs> {
        let pods = self.pods.iter();
        let mut sources: BTreeMap<_, _> =
            pods.map(|(key, pod)| (key.clone(), &pod.netns)).collect();
        sources.insert(NODE.to_owned(), &self.node.netns);
        sources.insert(OUTSIDE.to_owned(), &self.node.outside);
        sources
    }

    fn write(&self) -> Result<()> {
        self.node.manifests.write("world", &self.world.manifests())
    }

    fn change(&mut self, change: &Change, agent_dies: bool, random: &mut Random) -> Result<()> {
        match change {
            Change::Create { pod, .. } | Change::Attach { pod } => {
                self.write()?;
                self.attach(pod, random)?;
            }
            Change::Remove {
                pod,
                description_first: false,
            } => {
                self.detach(pod)?;
                self.write()?;
            }
            Change::Remove { pod, .. } | Change::Finish { pod } => {
                self.write()?;
                self.detach(pod)?;
            }
            _ => self.write()?,
        }
        if agent_dies {
            // It may have begun to act on what was written, or not yet.
            std::thread::sleep(Duration::from_millis(random.below(40) as u64));
            let agent = self.agent.take().context("an agent")?;
            match random.one_in(4) {
                true => agent.stop()?,
                false => agent.kill()?,
            }
            self.agent = Some(start_agent(self.node)?);
        }
        self.agent().wait()
    }

    /// Attaches a pod that tries to reach others before it has an address.
    fn attach(&mut self, key: &str, random: &mut Random) -> Result<()> {
        let netns = NetNs::create(&key.replace('/', "-"))?;
        let others: Vec<_> = self.world.verdicts(&self.addresses()).into_keys().collect();
        let mut clients = Vec::new();
        for Connection {
            protocol, target, ..
        } in random.sample(&others, 2)
        {
            let [limit, pause] = [20, 1].map(Duration::from_millis);
            clients.push(Hammer::start(&netns, protocol, target, limit, pause)?);
        }
        let pod = Pod::add_netns(self.node, key, netns)?;
        // What they were answered is known from those who answered.
        for client in clients {
            client.stop()?;
        }
        self.servers
            .insert(key.to_owned(), Server::start(&pod.netns, key, &PORTS)?);
        self.pods.insert(key.to_owned(), pod);
        Ok(())
    }

    fn detach(&mut self, key: &str) -> Result<()> {
        let pod = self.pods.remove(key).context("an attached pod")?;
        pod.del()?;
        self.servers.remove(key);
        Ok(())
    }

    /// Live flows go on where they are allowed and are cut where they are not; then some are
    /// opened in place of those that have gone.
    fn follow_flows(&mut self, after: &Verdicts, random: &mut Random) -> Result<()> {
        for (connection, stream) in std::mem::take(&mut self.flows) {
            let allowed = after.get(&connection).copied();
            match allowed.with_context(|| format!("no verdict of {connection:?}"))? {
                true => {
                    let flows = stream.flows(SOON);
                    flows.with_context(|| format!("allowed, and cut: {connection:?}"))?;
                    self.tried.flows_kept += 1;
                    self.flows.push((connection, stream));
                }
                false => {
                    let cut = stream.wait_for_cut();
                    cut.with_context(|| format!("denied, and alive: {connection:?}"))?;
                    self.tried.flows_cut += 1;
                }
            }
        }
        let open = after.iter().filter(|(connection, allowed)| {
            **allowed && connection.from != NODE && connection.to != OUTSIDE
        });
        let open: Vec<_> = open.map(|(connection, _)| connection.clone()).collect();
        for connection in random.sample(&open, FLOWS - self.flows.len()) {
            let sources = self.sources();
            let netns = sources[&connection.from];
            let (protocol, target) = (connection.protocol, connection.target);
            let stream = Stream::open(netns, protocol, target, Duration::from_millis(10))?;
            self.flows.push((connection, stream));
        }
        Ok(())
    }

    /// Packets against the oracle.
    fn compare(&mut self, verdicts: &Verdicts, random: &mut Random) -> Result<()> {
        let witness = Witness::start(&self.servers);
        let mut of_verdict = |verdict: bool| {
            let found = verdicts.iter().filter(|(_, allowed)| **allowed == verdict);
            let found: Vec<_> = found.map(|(connection, _)| connection.clone()).collect();
            random.sample(&found, SAMPLE)
        };
        let (denied, allowed) = (of_verdict(false), of_verdict(true));
        let cells: Vec<_> = allowed.into_iter().map(cell).collect();
        matrix::verify(&self.sources(), &cells)?;
        try_denied(&denied, &self.sources())?;
        self.tried.allowed += cells.len();
        self.tried.denied += denied.len();
        witness.finish(&self.servers, verdicts)
    }
}

/// What it denies would fill the log that is shown where the test fails.
fn start_agent(node: &Node) -> Result<Agent<'_>> {
    Agent::start_with(node, &["--verdict-log", "off"])
}

fn cell(connection: Connection) -> Cell {
    Cell {
        expect: Expect::Answer(vec![connection.to.clone()]),
        from: connection.from,
        to: connection.to,
        protocol: connection.protocol,
        target: connection.target,
    }
}
