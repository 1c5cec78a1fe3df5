//! Services and connection tracking: flows that outlive the agent, and a table that is full.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::node::{Node, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::Scene;
use tests::traffic::{PATIENT, Protocol, Stream};
use tests::wait::eventually;

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const CLIENT: &str = "shop/client";
/// Of two endpoints all of them choose the same once in 8 million times.
const FLOWS: u16 = 24;
/// The agent looks every five seconds; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(180);

fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ["shop/web-0", "shop/web-1"]
        .map(|key| (key, json!({"app": "web"})))
        .into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

fn web() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)])
}

fn at(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// services.md 45.
#[test]
fn flows_over_udp_outlive_the_agent_and_its_restart() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods(), &[web()])?;
    let server_of = |socket: &UdpSocket| -> Result<String> {
        let mut buffer = [0; 512];
        socket.send(b"?")?;
        let length = socket.recv(&mut buffer)?;
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let server = line.split_whitespace().next();
        Ok(server.context("a name")?.to_owned())
    };
    let client = &scene.pod(CLIENT).netns;
    let sockets: Vec<UdpSocket> = client.enter(|| -> Result<Vec<UdpSocket>> {
        let socket = |family: Family| {
            let any = if family == Family::V4 {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(at(family))?;
            socket.set_read_timeout(Some(PATIENT))?;
            Ok(socket)
        };
        let families = (0..FLOWS).flat_map(|_| Family::ALL);
        families.map(socket).collect()
    })??;
    let before: Vec<_> = sockets.iter().map(server_of).collect::<Result<_>>()?;
    scene.agent.kill()?;
    scene.agent = Agent::start(&node)?;
    let after: Vec<_> = sockets.iter().map(server_of).collect::<Result<_>>()?;
    assert_eq!(before, after, "each flow stays with its endpoint");
    Ok(())
}

/// services.md 56: it is told, and what is there goes on.
#[test]
fn a_full_table_is_told_and_counted_and_ends_no_connection() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let client = &scene.pod(CLIENT).netns;
    let interval = Duration::from_millis(50);
    let live = Stream::open(client, Protocol::Tcp, at(Family::V4), interval)?;
    let sysctl = |name: &str| -> Result<u64> {
        let name = format!("net.netfilter.{name}");
        let text = node.netns.read_sysctl(&name).context(name)?;
        Ok(text.parse()?)
    };
    let limit = sysctl("nf_conntrack_max")?;
    // Nobody answers; the flows are to stay for as long as the agent needs to look.
    for name in ["udp_timeout", "udp_timeout_stream"] {
        node.netns
            .sysctl(&format!("net.netfilter.nf_conntrack_{name}"), 600)?;
    }
    let fill = move || -> Result<()> {
        for _ in 0..limit.div_ceil(60_000) + 1 {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for port in 1_000..=61_000u16 {
                // A full buffer loses one flow of many.
                socket.send_to(b"", (OUTSIDE_IPS[0], port)).ok();
            }
        }
        Ok(())
    };
    node.netns.enter(fill)??;
    let count = sysctl("nf_conntrack_count")?;
    ensure!(count > limit - limit / 10, "{count} flows of {limit}");
    eventually(LIMIT, || {
        let log = scene.agent.log_text();
        ensure!(log.contains("connection tracking is full"), "{log}");
        let (_, metrics) = scene.agent.get("/metrics")?;
        let metric = |name: &str| -> Result<f64> {
            let mut lines = metrics.lines();
            let number = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(number.context("no such metric")?.parse()?)
        };
        let entries = metric("trammel_conntrack_entries")?;
        let limit = metric("trammel_conntrack_limit")?;
        ensure!(entries > limit * 0.9, "{entries} of {limit}");
        Ok(())
    })?;
    live.flows(PATIENT)
}
