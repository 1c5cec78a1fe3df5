//! The scheduler `wrr` with real connections: shares, drains, and what cannot be read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::node::Node;
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{PORTS, Scene};
use tests::traffic::{PATIENT, Protocol, Stream, ask};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 2] = ["shop/web-0", "shop/web-1"];
/// Connections that are counted.
const COUNTED: u16 = 600;
/// Six standard deviations of the binomial distribution with a share of three quarters: a
/// false alarm in 500 million runs.
const TOLERANCE: u16 = 64;

fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": "web"}))).into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

fn web() -> Value {
    let mut service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    service["metadata"]["annotations"] = json!({"trammel.io/scheduler": "wrr"});
    service
}

fn at(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// Gives weights to the endpoints, or `None`.
fn weigh(scene: &Scene<'_>, weights: [Option<&str>; 2]) -> Result<()> {
    let weights: BTreeMap<_, _> = ENDPOINTS.into_iter().zip(weights).collect();
    let mut objects = vec![objects::namespace("shop", &json!({"team": "shop"}))];
    for (key, labels) in pods() {
        let mut pod = objects::pod(key, &labels, &PORTS);
        if let Some(Some(weight)) = weights.get(key) {
            pod["metadata"]["annotations"] = json!({"trammel.io/weight": weight});
        }
        objects.push(pod);
    }
    scene.node.manifests.write("pods", &objects)?;
    scene.agent.wait()
}

/// Which endpoint how many of the connections have come to.
fn count(scene: &Scene<'_>, family: Family, connections: u16) -> Result<[u16; 2]> {
    scene.pod(CLIENT).netns.enter(move || {
        let mut counts = [0; 2];
        for _ in 0..connections {
            let outcome = ask(Protocol::Tcp, at(family), PATIENT);
            let server = outcome.server().with_context(|| outcome.to_string())?;
            let at = ENDPOINTS.iter().position(|key| *key == server);
            counts[at.with_context(|| server.to_owned())?] += 1;
        }
        Ok(counts)
    })?
}

#[test]
fn endpoints_get_connections_by_the_weights_of_their_pods() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    weigh(&scene, [Some("300"), Some("100")])?;
    for family in Family::ALL {
        let [first, second] = count(&scene, family, COUNTED)?;
        let expected = COUNTED / 4 * 3;
        ensure!(
            first.abs_diff(expected) <= TOLERANCE,
            "{family}: {first} and {second}, not {expected}"
        );
    }
    assert!(scene.agent.verify()?.status.success());
    Ok(())
}

/// A drain: what is open goes on, all that is new goes elsewhere.
#[test]
fn an_endpoint_of_weight_0_keeps_its_connections_and_gets_no_others() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    weigh(&scene, [None, Some("0")])?;
    let client = &scene.pod(CLIENT).netns;
    let open = |family| Stream::open(client, Protocol::Tcp, at(family), Duration::from_millis(50));
    let streams = Family::ALL.map(open);
    weigh(&scene, [Some("0"), None])?;
    for (family, stream) in Family::ALL.into_iter().zip(streams) {
        assert_eq!(count(&scene, family, 40)?, [0, 40]);
        stream?.flows(PATIENT)?;
    }
    weigh(&scene, [Some("0"), Some("0")])?;
    for family in Family::ALL {
        let outcome = scene.ask(CLIENT, Protocol::Tcp, at(family))?;
        ensure!(outcome == tests::traffic::Outcome::Refused, "{outcome}");
    }
    Ok(())
}

#[test]
fn a_weight_that_cannot_be_read_is_told_and_weighs_1() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    weigh(&scene, [Some("heavy"), Some("0")])?;
    assert_eq!(count(&scene, Family::V4, 5)?, [5, 0]);
    let status = scene.agent.verb(&["status"])?;
    for part in [
        "Service shop/web",
        "trammel.io/weight: \"heavy\"",
        "it weighs 1",
    ] {
        ensure!(status.contains(part), "{part}: {status}");
    }
    let services = scene.agent.verb(&["services"])?;
    ensure!(services.contains("ready weight 0"), "{services}");
    Ok(())
}
