//! Session affinity with real connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command;
use tests::matrix::LIMIT;
use tests::node::{NODE_IPS, Node};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{OUTSIDE, Scene};
use tests::traffic::Protocol;
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NODE_PORT: u16 = 30_080;
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 3] = ["shop/web-0", "shop/web-1", "shop/web-2"];
/// By chance so many connections go to one endpoint of three once in half a million.
const MANY: usize = 13;

fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": "web"}))).into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

fn without(gone: &str) -> Vec<(&'static str, Value)> {
    let mut pods = pods();
    for (key, labels) in &mut pods {
        if *key == gone {
            *labels = json!({"app": "retired"});
        }
    }
    pods
}

/// A Service with a node port; `None`: without affinity.
fn sticky(seconds: Option<u32>) -> Value {
    let mut service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    service["spec"]["type"] = "NodePort".into();
    for port in service["spec"]["ports"].as_array_mut().expect("ports") {
        port["nodePort"] = NODE_PORT.into();
    }
    if let Some(seconds) = seconds {
        service["spec"]["sessionAffinity"] = "ClientIP".into();
        service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = seconds.into();
    }
    service
}

/// Every way to the Service: who asks, over what, where.
fn ways() -> Vec<(&'static str, Protocol, SocketAddr)> {
    let mut ways = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let cluster_ip = SocketAddr::new(family.pick(WEB), 8000);
            let node_port = SocketAddr::new(family.pick(NODE_IPS), NODE_PORT);
            ways.push((CLIENT, protocol, cluster_ip));
            ways.push((CLIENT, protocol, node_port));
            ways.push((OUTSIDE, protocol, node_port));
            ways.push((OUTSIDE, protocol, cluster_ip));
        }
    }
    ways
}

type Way = (&'static str, Protocol, SocketAddr);

fn server(scene: &Scene<'_>, (from, protocol, target): Way) -> Result<String> {
    let outcome = scene.ask(from, protocol, target)?;
    let server = outcome.server();
    Ok(server
        .with_context(|| format!("{from} {protocol} {target}: {outcome}"))?
        .to_owned())
}

/// Who is remembered: a client of a port of the Service, whatever address it uses.
fn clients() -> usize {
    let clients = ways().into_iter();
    let clients: BTreeSet<_> = clients
        .map(|(from, protocol, to)| (from, protocol, to.is_ipv4()))
        .collect();
    clients.len()
}

/// The server of each way, which has to be the same many times, and the same for all ways of
/// a client.
fn servers(scene: &Scene<'_>) -> Result<BTreeMap<Way, String>> {
    let mut servers = BTreeMap::new();
    for way in ways() {
        let first = server(scene, way)?;
        for _ in 1..MANY {
            let again = server(scene, way)?;
            ensure!(again == first, "{way:?}: {first}, then {again}");
        }
        servers.insert(way, first);
    }
    for (way, server) in &servers {
        let (from, protocol, to) = way;
        let same = |(f, p, t): &Way| (f, p, t.is_ipv4()) == (from, protocol, to.is_ipv4());
        for (other, theirs) in servers.iter().filter(|(other, _)| same(other)) {
            ensure!(theirs == server, "{way:?}: {server}, {other:?}: {theirs}");
        }
    }
    Ok(servers)
}

/// Number of entries that the rules have learnt.
fn learnt(node: &Node) -> Result<usize> {
    let mut count = 0;
    for map in ["affinity4", "affinity6"] {
        let text = command::run(
            node.netns
                .command("nft")
                .args(["-j", "list", "map", "inet", "trammel", map]),
        )?;
        let listed: Value = serde_json::from_str(&text)?;
        let objects = listed["nftables"].as_array().context("objects")?.iter();
        count += objects
            .filter_map(|object| object["map"]["elem"].as_array())
            .map(Vec::len)
            .sum::<usize>();
    }
    Ok(count)
}

/// Datagrams from a port that was used in the last half minute are the same flow, and stay with
/// its endpoint: among hundreds of flows a port comes back in every tenth run.
fn forget_flows(node: &Node) -> Result<()> {
    command::run(node.netns.command("conntrack").arg("-F")).map(drop)
}

/// services.md 35, 38.
#[test]
fn a_client_stays_with_its_endpoint_also_over_a_restart() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods(), &[sticky(Some(10_800))])?;
    let before = servers(&scene)?;
    scene.agent.kill()?;
    scene.agent = Agent::start(&node)?;
    assert_eq!(servers(&scene)?, before);
    assert_eq!(learnt(&node)?, clients());
    Ok(())
}

/// services.md 36: no connection fails, and nobody is sent back.
#[test]
fn the_clients_of_an_endpoint_that_goes_move_at_once_and_the_others_stay() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[sticky(Some(10_800))])?;
    for gone in ENDPOINTS {
        let before = servers(&scene)?;
        scene.apply_pods(&without(gone))?;
        let after = servers(&scene)?;
        for (way, server) in &before {
            let now = &after[way];
            ensure!(
                now != gone && (server == gone || now == server),
                "{way:?}: {server}, {now}"
            );
        }
        scene.apply_pods(&pods())?;
        assert_eq!(
            servers(&scene)?,
            after,
            "an endpoint that comes takes no client away"
        );
    }
    Ok(())
}

/// services.md 37: on, off, another timeout; and what was learnt goes with the Service.
#[test]
fn affinity_is_switched_and_timed_live() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[sticky(None)])?;
    let spread = |scene: &Scene<'_>| -> Result<()> {
        for way in ways() {
            let first = server(scene, way)?;
            let mut others = (0..4 * MANY).map(|_| server(scene, way));
            let moved = others.any(|server| server.is_ok_and(|server| server != first));
            ensure!(moved, "{way:?} always goes to {first}");
        }
        Ok(())
    };
    spread(&scene)?;
    assert_eq!(learnt(&node)?, 0);
    forget_flows(&node)?;
    scene.apply(&[sticky(Some(10_800))])?;
    servers(&scene)?;
    assert_eq!(learnt(&node)?, clients());
    // The clients are remembered for two seconds from now on, not for three hours.
    scene.apply(&[sticky(Some(2))])?;
    for way in ways() {
        server(&scene, way)?;
    }
    eventually(SOON, || {
        let entries = learnt(&node)?;
        ensure!(entries == 0, "{entries} entries have not timed out");
        Ok(())
    })?;
    forget_flows(&node)?;
    scene.apply(&[sticky(Some(10_800))])?;
    servers(&scene)?;
    scene.apply(&[sticky(None)])?;
    assert_eq!(learnt(&node)?, 0);
    spread(&scene)?;
    forget_flows(&node)?;
    scene.apply(&[sticky(Some(10_800))])?;
    servers(&scene)?;
    scene.apply(&[])?;
    assert_eq!(learnt(&node)?, 0);
    for (from, protocol, target) in ways() {
        let outcome = scene.ask_for(from, protocol, target, LIMIT)?;
        ensure!(
            !outcome.is_answered(),
            "{from} {protocol} {target}: {outcome}"
        );
    }
    Ok(())
}
