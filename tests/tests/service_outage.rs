//! Services while the API server is away, and when it is back.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::{self, LISTEN};
use tests::api_server::ApiServer;
use tests::command::Background;
use tests::inspect::{fingerprint, ruleset};
use tests::node::{NODE_NAME, Node};
use tests::objects;
use tests::pod::{Family, Pod};
use tests::programs;
use tests::require_root;
use tests::scene::ShownLog;
use tests::traffic::{Hammer, PATIENT, Protocol, Server, ask};
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 2] = ["shop/web-0", "shop/web-1"];
/// A change that waits for twice as long is a failure: with this the outage is as long as one
/// of many minutes with the default.
const SYNC_PERIOD: &str = "1s";
const OUTAGE: Duration = Duration::from_secs(10);

fn service() -> Value {
    objects::service("shop/web", WEB, &json!({}), &[(8000, 80)])
}

fn at(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// The slice that a controller would write for one endpoint.
fn slice(family: Family, pod: &Pod<'_>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop",
            "name": format!("web-{}", family.to_string().to_lowercase()),
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family.to_string(),
        "endpoints": [{"addresses": [pod.ip(family)], "conditions": {"ready": true},
            "nodeName": NODE_NAME}],
        "ports": [{"name": "tcp-8000", "protocol": "TCP", "port": 80}],
    })
}

/// Makes that pod the endpoint of the Service.
fn serve_by(api: &ApiServer, pod: &Pod<'_>) -> Result<()> {
    let mut slices = Family::ALL.into_iter().map(|family| slice(family, pod));
    slices.try_for_each(|slice| api.put(&slice))
}

fn healthy(node: &Node) -> Result<()> {
    let (status, _, body) = agent::http_get(&node.netns, LISTEN, "/healthz")?;
    ensure!(status == 200, "{status}: {body}");
    Ok(())
}

fn served_by(client: &Pod<'_>, server: &str) -> Result<()> {
    for family in Family::ALL {
        let ask = move || ask(Protocol::Tcp, at(family), PATIENT);
        let outcome = client.netns.enter(ask)?;
        ensure!(outcome.server() == Some(server), "{family}: {outcome}");
    }
    Ok(())
}

/// services.md 47, for seconds in place of minutes: nobody notices, the health check does not
/// fail, and what has changed meanwhile changes its own elements alone.
#[test]
fn services_work_while_the_api_server_is_away_and_follow_it_when_it_is_back() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let api = ApiServer::start(&node.netns)?;
    let kubeconfig = node.dir().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig())?;
    api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}))?;
    api.put(&objects::namespace("shop", &json!({})))?;
    for key in ENDPOINTS.into_iter().chain([CLIENT]) {
        api.put(&objects::pod(key, &json!({"app": key}), &[80]))?;
    }
    api.put(&service())?;
    let mut command = node.netns.command(programs::agent());
    command
        .args(["run", "--node-name", NODE_NAME, "--listen", LISTEN])
        .args(["--sync-period", SYNC_PERIOD, "--kubeconfig"])
        .arg(&kubeconfig)
        .arg("--socket")
        .arg(node.socket());
    let log = node.dir().join("agent.log");
    let _agent = Background::spawn(&command, &log)?;
    let _log = ShownLog::of(&log);
    eventually(SOON, || {
        let output = agent::verb(&node, &["wait", "--timeout", "10s"])?;
        ensure!(output.status.success(), "{}", output.stderr);
        Ok(())
    })?;
    let client = Pod::add(&node, CLIENT)?;
    let mut servers = Vec::new();
    let mut endpoints = Vec::new();
    for key in ENDPOINTS {
        let pod = Pod::add(&node, key)?;
        servers.push(Server::start(&pod.netns, key, &[80])?);
        endpoints.push(pod);
    }
    serve_by(&api, &endpoints[0])?;
    eventually(SOON, || served_by(&client, ENDPOINTS[0]))?;

    let rules = || Ok::<_, anyhow::Error>(fingerprint(&ruleset(&node.netns)?));
    let before = rules()?;
    let hammer = |family| {
        let interval = Duration::from_millis(5);
        Hammer::start(&client.netns, Protocol::Tcp, at(family), PATIENT, interval)
    };
    let hammers = Family::ALL.map(hammer);
    api.go_away();
    let looks = 20;
    for _ in 0..looks {
        thread::sleep(OUTAGE / looks);
        healthy(&node)?;
    }
    assert_eq!(rules()?, before);

    serve_by(&api, &endpoints[1])?;
    api.come_back();
    eventually(SOON, || served_by(&client, ENDPOINTS[1]))?;
    healthy(&node)?;
    for hammer in hammers {
        let tally = hammer?.stop()?;
        ensure!(tally.failed() == 0 && tally.answered() > 100, "{tally:?}");
    }
    let after = rules()?;
    let mut changed: Vec<Value> = after
        .keys()
        .filter(|object| !before.contains_key(*object))
        .map(|object| serde_json::from_str(object).context("an object"))
        .collect::<Result<_>>()?;
    changed.sort_by_key(|object| object["map"]["name"].to_string());
    let names: Vec<_> = changed
        .iter()
        .map(|object| &object["map"]["name"])
        .collect();
    assert_eq!(names, ["endpoints4", "endpoints6"], "{changed:#?}");
    Ok(())
}
