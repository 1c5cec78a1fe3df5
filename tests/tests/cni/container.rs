//! Containers with servers, and what the node's tables hold for them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::pod::Family;
use tests::traffic::{Outcome, PATIENT, Protocol, SHORT, Server, ask};
use tests::{inspect, objects};

/// What containerd sends, word for word (go-cni has no JSON tags).
pub(crate) fn containerd(mappings: &[(u16, u16, &str)]) -> Value {
    let mapping = |(host, pod, protocol): &(u16, u16, &str)| json!({"HostPort": host, "ContainerPort": pod, "Protocol": protocol, "HostIP": ""});
    let mappings: Value = mappings.iter().map(mapping).collect();
    json!({"RuntimeConfig": {"PortMappings": mappings}})
}

/// A container that serves its ports by its own name.
pub(crate) struct Container<'n> {
    node: &'n Node,
    pub(crate) id: &'static str,
    pub(crate) netns: NetNs,
    pub(crate) result: Value,
    keys: Value,
    _server: Server,
}

impl<'n> Container<'n> {
    pub(crate) fn add(node: &'n Node, id: &'static str, keys: Value) -> Result<Self> {
        let netns = NetNs::create(id)?;
        let result = Call::new(node, "ADD", id, &netns)
            .keys(keys.clone())
            .result()?;
        let server = Server::start(&netns, id, &[80, 53])?;
        Ok(Self {
            node,
            id,
            netns,
            result,
            keys,
            _server: server,
        })
    }

    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        let ips = inspect::result_ips(&self.result).expect("a result");
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        ips.into_iter().find(of_family).expect("both families")
    }

    pub(crate) fn call(&self, verb: &str) -> Call<'n> {
        let mut keys = self.keys.clone();
        keys["prevResult"] = self.result.clone();
        Call::new(self.node, verb, self.id, &self.netns).keys(keys)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.call("CHECK").silent()
    }

    pub(crate) fn del(self) -> Result<()> {
        self.call("DEL").silent()
    }
}

pub(crate) fn ask_from(netns: &NetNs, protocol: Protocol, target: SocketAddr) -> Result<Outcome> {
    netns.enter(move || ask(protocol, target, PATIENT))
}

pub(crate) fn assert_answered(
    netns: &NetNs,
    protocol: Protocol,
    target: SocketAddr,
    by: &str,
) -> Result<()> {
    let outcome = ask_from(netns, protocol, target)?;
    let text = format!("{protocol} to {target} from {}: {outcome}", netns.name());
    assert_eq!(outcome.server(), Some(by), "{text}");
    Ok(())
}

pub(crate) fn assert_silent(netns: &NetNs, protocol: Protocol, target: SocketAddr) -> Result<()> {
    let outcome = netns.enter(move || ask(protocol, target, SHORT))?;
    assert!(!outcome.is_answered(), "{protocol} to {target}: {outcome}");
    Ok(())
}

/// The elements of a set or map of ours, as `nft` lists them.
pub(crate) fn elements(node: &Node, set: &str) -> Result<Vec<Value>> {
    let objects = inspect::ruleset(&node.netns)?;
    let found = objects.iter().filter_map(|object| {
        let set = object.get("set").or_else(|| object.get("map"));
        set.filter(|found| found["table"] == "trammel")
    });
    let mut named = found.filter(|found| found["name"] == set);
    let elements = named
        .next()
        .map(|found| inspect::items(&found["elem"]).cloned());
    Ok(elements.map(Iterator::collect).unwrap_or_default())
}

/// All elements that translate, by set.
pub(crate) fn translations(node: &Node) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut translations = BTreeMap::new();
    for name in [
        "host-addresses",
        "host-ports",
        "host-port-pods",
        "masqueraded",
        "inside",
    ] {
        for family in [4, 6] {
            let set = format!("{name}{family}");
            let elements = elements(node, &set)?;
            translations.insert(set, elements);
        }
    }
    Ok(translations)
}

/// The manifests of containers, which the harness calls `default/ID`, and an agent.
pub(crate) fn start_agent<'n>(node: &'n Node, ids: &[&str]) -> Result<Agent<'n>> {
    start_agent_with(node, ids, &[])
}

/// The same, with more arguments.
pub(crate) fn start_agent_with<'n>(
    node: &'n Node,
    ids: &[&str],
    arguments: &[&str],
) -> Result<Agent<'n>> {
    let mut manifests = vec![objects::namespace("default", &json!({}))];
    let pods = ids.iter().map(|id| {
        let key = format!("default/{id}");
        objects::pod(&key, &json!({"app": *id}), &[80, 53])
    });
    manifests.extend(pods);
    node.manifests.write("pods", &manifests)?;
    Agent::start_with(node, arguments)
}
