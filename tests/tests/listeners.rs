//! What the agent itself listens on for Services: health checks of load balancers, and node
//! ports on loopback addresses.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::{Agent, http_get};
use tests::matrix::LIMIT;
use tests::node::{NODE_IPS, NODE_NAME, Node};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, Scene};
use tests::traffic::{Outcome, Protocol, Stream};
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const OTHER: [&str; 2] = ["10.96.0.11", "fd96::11"];
const NODE_PORT: u16 = 30080;

fn pods() -> Vec<(&'static str, Value)> {
    vec![
        ("shop/web-0", json!({"app": "web"})),
        ("shop/web-1", json!({"app": "web"})),
        ("shop/client", json!({"app": "client"})),
    ]
}

/// A load balancer's Service whose endpoints are given.
fn balanced(key: &str, ips: [&str; 2], health_check: u16, node_port: u16) -> Value {
    let mut service = objects::service(key, ips, &Value::Null, &[]);
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    service["spec"]["healthCheckNodePort"] = health_check.into();
    service["spec"]["ports"] =
        json!([{"name": "http", "port": 80, "targetPort": 80, "nodePort": node_port}]);
    service
}

/// Endpoints of a Service, each with address, node and conditions.
fn slice(service: &str, ordinal: u32, port: u16, endpoints: &[(String, &str, Value)]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, node, conditions)| {
            json!({"addresses": [address], "nodeName": node, "conditions": conditions})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": format!("{service}-{ordinal}"),
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    })
}

/// Status, weight and body of a health check, asked from outside.
fn health(node: &Node, ip: &str, port: u16) -> Result<(u16, String, Value)> {
    let server = SocketAddr::new(ip.parse()?, port).to_string();
    let (status, head, body) = http_get(&node.outside, &server, "/any/path")?;
    let weight = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("X-Load-Balancing-Endpoint-Weight")
                .then(|| value.to_owned())
        })
        .with_context(|| format!("no weight in {head}"))?;
    Ok((status, weight, serde_json::from_str(&body).context(body)?))
}

/// services.md 23.
#[test]
fn a_health_check_fails_when_the_last_local_endpoint_is_not_ready_any_more() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let web = || balanced("shop/web", WEB, 31000, NODE_PORT);
    let ready = || json!({"ready": true});
    let terminating = || json!({"ready": false, "serving": true, "terminating": true});
    let [one, two] =
        ["shop/web-0", "shop/web-1"].map(|key| scene.pod(key).ip(Family::V4).to_string());
    let remote = "10.88.7.7".to_owned();
    for (endpoints, status, weight) in [
        (
            vec![(&one, NODE_NAME, ready()), (&two, NODE_NAME, ready())],
            200,
            "2",
        ),
        (
            vec![(&one, NODE_NAME, ready()), (&remote, "n2", ready())],
            200,
            "1",
        ),
        (
            vec![(&one, NODE_NAME, terminating()), (&two, NODE_NAME, ready())],
            200,
            "1",
        ),
        (vec![(&one, NODE_NAME, terminating())], 503, "0"),
        (vec![(&remote, "n2", ready())], 503, "0"),
    ] {
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .map(|(address, node, conditions)| (address.clone(), node, conditions))
            .collect();
        scene.apply(&[web(), slice("web", 0, 80, &endpoints)])?;
        for ip in NODE_IPS {
            let ((), _) = eventually(SOON, || {
                let (found, found_weight, body) = health(&node, ip, 31000)?;
                ensure!(
                    (found, &*found_weight) == (status, weight),
                    "{found} {found_weight} {body}"
                );
                ensure!(
                    body["service"] == json!({"namespace": "shop", "name": "web"}),
                    "{body}"
                );
                ensure!(body["localEndpoints"] == weight.parse::<u64>()?, "{body}");
                ensure!(body["serviceProxyHealthy"] == true, "{body}");
                Ok(())
            })
            .with_context(|| format!("{endpoints:?} by {ip}"))?;
        }
    }
    // With the policy the check goes.
    let mut cluster = web();
    cluster["spec"]["externalTrafficPolicy"] = "Cluster".into();
    scene.apply(&[cluster])?;
    eventually(SOON, || {
        ensure!(health(&node, NODE_IPS[0], 31000).is_err(), "still answered");
        Ok(())
    })?;
    Ok(())
}

/// services.md 23.
#[test]
fn a_health_check_whose_port_is_taken_concerns_no_other_and_comes_when_it_is_free() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let holder = node
        .netns
        .enter(|| TcpListener::bind("192.0.2.2:31001"))??;
    let services = [
        balanced("shop/web", WEB, 31000, NODE_PORT),
        balanced("shop/other", OTHER, 31001, NODE_PORT + 1),
    ];
    let scene = Scene::start(&node, &pods(), &services)?;
    eventually(SOON, || health(&node, NODE_IPS[0], 31000))?;
    let problems =
        || Ok::<_, anyhow::Error>(scene.agent.json(&["status"])?["problems"].to_string());
    eventually(SOON, || {
        let problems = problems()?;
        let names = [
            "Service shop/other",
            "healthCheckNodePort 31001",
            "192.0.2.2:31001",
        ];
        ensure!(
            names.iter().all(|name| problems.contains(name)),
            "{problems}"
        );
        ensure!(!problems.contains("31000"), "{problems}");
        Ok(())
    })?;
    health(&node, NODE_IPS[1], 31001).context("the other address is free")?;
    drop(holder);
    eventually(SOON, || health(&node, NODE_IPS[0], 31001))?;
    eventually(SOON, || {
        ensure!(!problems()?.contains("31001"), "{}", problems()?);
        Ok(())
    })?;
    Ok(())
}

/// A NodePort Service by selector.
fn node_port_service() -> Value {
    let mut service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[]);
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["ports"] =
        json!([{"name": "http", "port": 80, "targetPort": 80, "nodePort": NODE_PORT}]);
    service
}

fn loopback(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(["127.0.0.1", "::1"]), NODE_PORT)
}

/// services.md 16.
#[test]
fn node_ports_are_served_on_loopback_addresses_if_that_is_set() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut service = node_port_service();
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    let mut scene = Scene::start(&node, &pods(), &[service.clone()])?;
    for family in Family::ALL {
        let outcome = scene.ask(NODE, Protocol::Tcp, loopback(family))?;
        assert_eq!(outcome, Outcome::Refused, "{family}: not by default");
    }
    scene.agent.stop()?;
    let arguments = ["--nodeport-addresses", "primary,localhost"];
    scene.agent = Agent::start_with(&node, &arguments)?;
    for family in Family::ALL {
        let mut answers = std::collections::BTreeSet::new();
        eventually(SOON, || {
            let outcome = scene.ask(NODE, Protocol::Tcp, loopback(family))?;
            answers.extend(outcome.server().map(str::to_owned));
            ensure!(answers.len() == 2, "{family}: {answers:?}, last {outcome}");
            Ok(())
        })?;
        let stream = Stream::open(
            &node.netns,
            Protocol::Tcp,
            loopback(family),
            Duration::from_millis(5),
        )?;
        stream.flows(SOON)?;
        // Connections through it outlive the Service, as those through rules do.
        scene.apply(&[])?;
        eventually(SOON, || {
            let outcome = scene.ask(NODE, Protocol::Tcp, loopback(family))?;
            ensure!(outcome == Outcome::Refused, "{family}: {outcome}");
            Ok(())
        })?;
        stream.flows(SOON)?;
        service["spec"]["sessionAffinity"] = "ClientIP".into();
        scene.apply(&[service.clone()])?;
        let first = eventually(SOON, || {
            let outcome = scene.ask(NODE, Protocol::Tcp, loopback(family))?;
            outcome
                .server()
                .map(str::to_owned)
                .context("not answered yet")
        })?
        .0;
        for _ in 0..5 {
            let outcome = scene.ask(NODE, Protocol::Tcp, loopback(family))?;
            assert_eq!(outcome.server(), Some(&*first), "{family}: sticky");
        }
        service["spec"]
            .as_object_mut()
            .context("an object")?
            .remove("sessionAffinity");
        scene.apply(&[service.clone()])?;
    }
    Ok(())
}

/// services.md 16.
#[test]
fn a_node_port_on_loopback_passes_over_endpoints_that_refuse_and_resets_without_any() -> Result<()>
{
    require_root!();
    let node = Node::new()?;
    let arguments = ["--nodeport-addresses", "localhost"];
    let scene = Scene::start_with(&node, &pods(), &[], &arguments)?;
    let mut service = node_port_service();
    service["spec"]["selector"] = Value::Null;
    let endpoint = |key: &str| {
        let ip = scene.pod(key).ip(Family::V4).to_string();
        vec![(ip, NODE_NAME, json!({"ready": true}))]
    };
    let deaf = slice("web", 0, 7, &endpoint("shop/web-0"));
    let good = slice("web", 1, 80, &endpoint("shop/web-1"));
    scene.apply(&[service.clone(), deaf.clone(), good])?;
    for _ in 0..4 {
        eventually(SOON, || {
            let outcome = scene.ask(NODE, Protocol::Tcp, loopback(Family::V4))?;
            ensure!(outcome.server() == Some("shop/web-1"), "{outcome}");
            Ok(())
        })?;
    }
    scene.apply(&[service, deaf])?;
    let answered = scene.ask_for(NODE, Protocol::Tcp, loopback(Family::V4), LIMIT)?;
    assert!(!answered.is_answered(), "{answered}");
    Ok(())
}

#[test]
fn a_node_port_that_another_program_has_on_loopback_is_a_problem() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let holder = node
        .netns
        .enter(|| TcpListener::bind(("127.0.0.1", NODE_PORT)))??;
    let arguments = ["--nodeport-addresses", "localhost"];
    let scene = Scene::start_with(&node, &pods(), &[node_port_service()], &arguments)?;
    eventually(SOON, || {
        let problems = scene.agent.json(&["status"])?["problems"].to_string();
        ensure!(problems.contains("node port 30080"), "{problems}");
        Ok(())
    })?;
    let outcome = scene.ask(NODE, Protocol::Tcp, loopback(Family::V6))?;
    assert!(outcome.is_answered(), "{outcome}");
    drop(holder);
    eventually(SOON, || {
        let outcome = scene.ask(NODE, Protocol::Tcp, loopback(Family::V4))?;
        ensure!(outcome.is_answered(), "{outcome}");
        Ok(())
    })?;
    Ok(())
}
