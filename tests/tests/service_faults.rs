//! Services while things move beneath them: slices, the node's addresses, the agent.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::node::{NODE_NAME, Node};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{OUTSIDE, Scene};
use tests::traffic::{Hammer, PATIENT, Protocol, SHORT};
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const OLD: [&str; 2] = ["10.96.0.11", "fd96::11"];
const NODE_PORT: u16 = 30080;
const INTERVAL: Duration = Duration::from_millis(2);
fn pods() -> Vec<(&'static str, Value)> {
    vec![
        ("shop/web-0", json!({"app": "web"})),
        ("shop/web-1", json!({"app": "web"})),
        ("shop/client", json!({"app": "client"})),
    ]
}

fn web() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &[(80, 80)])
}

/// services.md 31, 32.
#[test]
fn an_endpoint_that_moves_between_slices_loses_no_connection_and_counts_once() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let mut service = web();
    service["spec"]["selector"] = Value::Null;
    let slice = |ordinal: u32, pods: &[&str]| {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|key| {
                json!({"addresses": [scene.pod(key).ip(Family::V4)], "nodeName": NODE_NAME,
                    "conditions": {"ready": true}})
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "shop", "name": format!("web-{ordinal}"),
                "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints,
            "ports": [{"name": "tcp-80", "port": 80, "protocol": "TCP"}],
        })
    };
    let (zero, one) = ("shop/web-0", "shop/web-1");
    let endpoints = || -> Result<usize> {
        let services = scene.agent.json(&["services"])?;
        let frontends = services[0]["frontends"].as_array().into_iter().flatten();
        let mut served = frontends.filter(|frontend| frontend["state"] == "served");
        let count = served
            .next()
            .and_then(|frontend| Some(frontend["endpoints"].as_array()?.len()));
        Ok(count.unwrap_or_default())
    };
    scene.apply(&[service.clone(), slice(0, &[zero, one]), slice(1, &[])])?;
    let target: SocketAddr = "10.96.0.10:80".parse()?;
    let client = &scene.pod("shop/client").netns;
    let hammer = Hammer::start(client, Protocol::Tcp, target, PATIENT, INTERVAL)?;
    for _ in 0..5 {
        for (first, second) in [
            // It is in both slices, then in the new one only.
            (vec![zero, one], vec![one]),
            (vec![zero], vec![one]),
            // At once, and back.
            (vec![], vec![zero, one]),
            (vec![zero, one], vec![]),
        ] {
            scene.apply(&[service.clone(), slice(0, &first), slice(1, &second)])?;
            assert_eq!(endpoints()?, 2, "{first:?} {second:?}");
        }
    }
    let tally = hammer.stop()?;
    assert_eq!(tally.failed(), 0, "{tally:?}");
    assert_eq!(tally.answers.len(), 2, "{tally:?}");
    Ok(())
}

/// services.md 15.
#[test]
fn a_new_address_of_the_node_serves_node_ports_within_two_seconds() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut service = web();
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["ports"] =
        json!([{"name": "http", "port": 80, "targetPort": 80, "nodePort": NODE_PORT}]);
    let scene = Scene::start(&node, &pods(), &[service])?;
    let ask = |ip: &str, limit| {
        let target = SocketAddr::new(ip.parse()?, NODE_PORT);
        scene.ask_for(OUTSIDE, Protocol::Tcp, target, limit)
    };
    assert!(ask("192.0.2.2", PATIENT)?.is_answered());
    for (ip, length, flags) in [("192.0.2.7", 24, ""), ("2001:db8:77::7", 64, "nodad")] {
        assert!(!ask(ip, SHORT)?.is_answered(), "{ip} is nobody's");
        let link = format!("{ip}/{length} dev uplink {flags}");
        node.netns.ip(&format!("address add {link}"))?;
        eventually(SOON, || {
            let outcome = ask(ip, SHORT)?;
            ensure!(outcome.is_answered(), "{ip}: {outcome}");
            Ok(())
        })?;
        node.netns
            .ip(&format!("address del {ip}/{length} dev uplink"))?;
    }
    assert!(ask("192.0.2.2", PATIENT)?.is_answered());
    Ok(())
}

/// services.md 48, 49.
#[test]
fn services_deleted_while_the_agent_was_dead_go_and_the_others_lose_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let old = objects::service("shop/old", OLD, &json!({"app": "web"}), &[(80, 80)]);
    let mut scene = Scene::start(&node, &pods(), &[web(), old])?;
    let target: SocketAddr = "10.96.0.10:80".parse()?;
    let stale: SocketAddr = "10.96.0.11:80".parse()?;
    let client = &scene.pods["shop/client"].netns;
    let hammer = Hammer::start(client, Protocol::Tcp, target, PATIENT, INTERVAL)?;
    scene.agent.kill()?;
    node.manifests.write("objects", &[web()])?;
    let ask = |limit| client.enter(move || tests::traffic::ask(Protocol::Tcp, stale, limit));
    assert!(ask(PATIENT)?.is_answered(), "the rules stay");
    scene.agent = Agent::start(&node)?;
    assert!(!ask(SHORT)?.is_answered(), "the stale Service is gone");
    let tally = hammer.stop()?;
    assert!(tally.answered() > 0 && tally.failed() == 0, "{tally:?}");
    assert!(scene.agent.verify()?.status.success());
    Ok(())
}
