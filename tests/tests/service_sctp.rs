//! Services over SCTP. This kernel has no SCTP sockets: first packets are made by hand and are
//! seen where they arrive.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{NODE_IPS, Node};
use tests::pod::Family;
use tests::scene::Scene;
use tests::traffic::sctp::{self, Arrivals};
use tests::wait::SOON;
use tests::{objects, require_root};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NODE_PORT: u16 = 30_900;
const ENDPOINTS: [&str; 2] = ["shop/web-0", "shop/web-1"];
/// How long is looked at one endpoint before the other.
const LOOK: Duration = Duration::from_millis(50);

fn pods(web: [&str; 2]) -> Vec<(&'static str, Value)> {
    let [first, second] = web.map(|app| json!({"app": app}));
    vec![
        (ENDPOINTS[0], first),
        (ENDPOINTS[1], second),
        ("shop/client", json!({"app": "client"})),
    ]
}

fn web() -> Value {
    let mut service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[]);
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["ports"] = json!([
        {"port": 9000, "targetPort": 9999, "protocol": "SCTP", "nodePort": NODE_PORT}]);
    service
}

/// Which endpoint a first packet reaches, at the port of its pod and at no other.
fn reached(scene: &Scene<'_>, from: &NetNs, target: SocketAddr) -> Result<Option<&'static str>> {
    let family = Family::of(target.ip());
    let listen = |key| Arrivals::listen(&scene.pod(key).netns, family);
    let [first, second] = ENDPOINTS.map(listen);
    let arrivals = [first?, second?];
    sctp::knock(from, target)?;
    let give_up = Instant::now() + SOON;
    while Instant::now() < give_up {
        for (key, arrivals) in ENDPOINTS.into_iter().zip(&arrivals) {
            if let Some(port) = arrivals.next(LOOK)? {
                ensure!(
                    port == 9999,
                    "{key}: a packet to {target} came to port {port}"
                );
                return Ok(Some(key));
            }
        }
    }
    Ok(None)
}

/// services.md 1: pods, the node and clients outside reach an endpoint; 40: a flow stays with it,
/// and goes to another when it has gone.
#[test]
fn sctp_reaches_an_endpoint_and_another_when_that_has_gone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    // Nobody answers: a flow that is only begun is forgotten after three seconds.
    node.netns
        .sysctl("net.netfilter.nf_conntrack_sctp_timeout_cookie_wait", 300)?;
    let scene = Scene::start(&node, &pods(["web", "web"]), &[web()])?;
    for family in Family::ALL {
        let cluster_ip = SocketAddr::new(family.pick(WEB), 9000);
        let node_port = SocketAddr::new(family.pick(NODE_IPS), NODE_PORT);
        let client = &scene.pod("shop/client").netns;
        for (from, target) in [
            (client, cluster_ip),
            (client, node_port),
            (&node.netns, cluster_ip),
            (&node.outside, node_port),
        ] {
            let first = reached(&scene, from, target)?.context("an endpoint")?;
            for _ in 0..4 {
                let again = reached(&scene, from, target)?;
                ensure!(again == Some(first), "{target}: {first}, then {again:?}");
            }
            let (labels, other) = match first == ENDPOINTS[0] {
                true => (["gone", "web"], ENDPOINTS[1]),
                false => (["web", "gone"], ENDPOINTS[0]),
            };
            scene.apply_pods(&pods(labels))?;
            let moved = reached(&scene, from, target)?;
            ensure!(moved == Some(other), "{target}: {first} is gone, {moved:?}");
            scene.apply_pods(&pods(["web", "web"]))?;
        }
    }
    Ok(())
}
