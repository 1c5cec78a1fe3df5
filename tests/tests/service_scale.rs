//! Thousands of Services, and Services with a thousand endpoints: what one change costs, and
//! that nobody else notices it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::inspect::{fingerprint, nft, ruleset};
use tests::node::{Node, OUTSIDE_IPS};
use tests::require_root;
use tests::scene::{OUTSIDE, Scene};
use tests::traffic::{Hammer, Outcome, PATIENT, Protocol};
use tests::wait::eventually;

const MANY: u16 = 1_000;
/// How long they may take to be read, by a debug build on a busy machine.
const READING: Duration = Duration::from_secs(60);
const CLIENT: &str = "shop/client";
const WEB: &str = "10.96.0.10:80";
/// The neighbour outside answers at all addresses of it.
const ENDPOINTS: &str = "10.60.0.0/16";
const INTERVAL: Duration = Duration::from_millis(1);
/// For how many seconds changes go on, instead of some rounds.
const SOAK: &str = "TRAMMEL_SOAK_SECONDS";

/// A Service of one port and one family.
fn service(name: &str, ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    })
}

fn slice(service: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Value {
    let endpoints: Vec<_> = addresses
        .into_iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}, "nodeName": "other"}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    })
}

fn endpoint(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 60, high, low)
}

/// Services with three endpoints each, their addresses and names by number.
fn services(numbers: std::ops::Range<u16>) -> Vec<Value> {
    let objects = numbers.flat_map(|number| {
        let [high, low] = number.to_be_bytes();
        let name = format!("s{number}");
        let endpoints = (0..3).map(|i| endpoint(number.wrapping_mul(3).wrapping_add(i)));
        [
            service(&name, Ipv4Addr::new(10, 96, 100 + high, low)),
            slice(&name, endpoints),
        ]
    });
    objects.collect()
}

fn web(endpoints: impl IntoIterator<Item = u16>) -> Vec<Value> {
    let endpoints = endpoints.into_iter().map(endpoint);
    vec![
        service("web", Ipv4Addr::new(10, 96, 0, 10)),
        slice("web", endpoints),
    ]
}

/// A node with that many Services beside the one that is asked.
fn start<'n>(node: &'n Node, many: u16, endpoints: std::ops::Range<u16>) -> Result<Scene<'n>> {
    node.outside
        .ip(&format!("route add local {ENDPOINTS} dev lo"))?;
    let pods = [(CLIENT, json!({"app": "client"}))];
    let scene = Scene::start(node, &pods, &web(endpoints))?;
    node.manifests.write("many", &services(0..many))?;
    eventually(READING, || scene.agent.wait())?;
    assert_eq!(ask(&scene)?.server(), Some(OUTSIDE));
    Ok(scene)
}

fn ask(scene: &Scene<'_>) -> Result<Outcome> {
    scene.ask(CLIENT, Protocol::Tcp, WEB.parse()?)
}

fn hammer(scene: &Scene<'_>, target: &str) -> Result<Hammer> {
    let client = &scene.pod(CLIENT).netns;
    let target: SocketAddr = target.parse()?;
    Hammer::start(client, Protocol::Tcp, target, PATIENT, INTERVAL)
}

/// Ends it; every one of its many connections must have been answered.
fn unharmed(hammer: Hammer) -> Result<()> {
    let tally = hammer.stop()?;
    ensure!(tally.failed() == 0 && tally.answered() > 100, "{tally:?}");
    Ok(())
}

/// The rounds of a change that goes on: so many, or as many as the time of [`SOAK`] allows.
fn rounds(at_least: u16) -> Result<impl Iterator<Item = u32>> {
    let soak = match std::env::var(SOAK) {
        Ok(seconds) => seconds.parse().context(SOAK)?,
        Err(_) => 0,
    };
    let started = Instant::now();
    let soak = Duration::from_secs(soak);
    Ok((0..).take_while(move |round| *round < at_least.into() || started.elapsed() < soak))
}

/// Numbers of chains, rules, sets and maps.
fn size(node: &Node) -> Result<[usize; 4]> {
    let objects = ruleset(&node.netns)?;
    let count = |kind| objects.iter().filter(|o| o.get(kind).is_some()).count();
    Ok(["chain", "rule", "set", "map"].map(count))
}

/// Memory of the agent in KiB.
fn memory(agent: &Agent<'_>) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

fn number(agent: &Agent<'_>, key: &str) -> Result<u64> {
    let status = agent.json(&["status"])?;
    status[key]
        .as_u64()
        .with_context(|| format!("no {key} in {status}"))
}

/// services.md 59, 61: five elements at most each time, and the endpoints that stay answer.
#[test]
fn an_endpoint_that_flaps_among_thousands_of_services_costs_its_own_elements() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = start(&node, MANY, 0..4)?;
    let of_web = hammer(&scene, WEB)?;
    let of_other = hammer(&scene, "10.96.100.7:80")?;
    let mut before = None;
    for round in rounds(60)? {
        let flaps = |number: u16| round % 2 == 1 && u32::from(number) == round % 4;
        scene.apply(&web((0..4).filter(|number| !flaps(*number))))?;
        let operations = number(&scene.agent, "lastSyncOperations")?;
        // The first rounds make the chains for so many endpoints; a message is counted, too.
        ensure!(
            round < 4 || operations <= 10,
            "{operations} operations in round {round}"
        );
        if round == 10 {
            before = Some((size(&node)?, memory(&scene.agent)?));
        }
    }
    let (rules, memory_before) = before.expect("of round 10");
    assert_eq!(size(&node)?, rules, "chains, rules, sets and maps");
    let memory_after = memory(&scene.agent)?;
    ensure!(
        memory_after < memory_before + 4096,
        "{memory_before} KiB, then {memory_after} KiB"
    );
    unharmed(of_web)?;
    unharmed(of_other)
}

/// services.md 60.
#[test]
fn services_come_and_go_by_the_hundred_and_nothing_grows() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = start(&node, 0, 0..3)?;
    let unrelated = hammer(&scene, WEB)?;
    let mut before = None;
    for round in rounds(40)? {
        let first = 100 * u16::try_from(round % 20)?;
        node.manifests
            .write("many", &services(first..first + 100))?;
        scene.agent.wait()?;
        assert_eq!(number(&scene.agent, "services")?, 101);
        if round == 20 {
            before = Some((size(&node)?, memory(&scene.agent)?));
        }
    }
    let (rules, memory_before) = before.expect("of round 20");
    assert_eq!(size(&node)?, rules, "chains, rules, sets and maps");
    let memory_after = memory(&scene.agent)?;
    ensure!(
        memory_after < memory_before + 4096,
        "{memory_before} KiB, then {memory_after} KiB"
    );
    unharmed(unrelated)
}

/// services.md 62.
#[test]
fn a_service_goes_from_a_thousand_endpoints_to_none_and_back() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = start(&node, 10, 0..1000)?;
    let unrelated = hammer(&scene, "10.96.100.7:80")?;
    for _ in 0..2 {
        for _ in 0..50 {
            let outcome = ask(&scene)?;
            ensure!(outcome.server() == Some(OUTSIDE), "{outcome}");
        }
        scene.apply(&web(0..0))?;
        assert_eq!(ask(&scene)?, Outcome::Refused);
        scene.apply(&web(0..1000))?;
        let services = scene.agent.json(&["services"])?;
        let services = services.as_array().into_iter().flatten();
        let web = services.filter(|service| service["name"] == "web");
        let endpoints = web.flat_map(|web| web["frontends"][0]["endpoints"].as_array());
        let mut slots: Vec<_> = endpoints.flatten().map(|e| e["slot"].as_u64()).collect();
        slots.sort_unstable();
        assert!(slots.into_iter().eq((0..1000).map(Some)));
    }
    assert!(scene.agent.verify()?.status.success());
    unharmed(unrelated)
}

/// services.md 48, 63: whatever the number of Services, a restart writes nothing.
#[test]
fn a_killed_agent_finds_thousands_of_services_as_it_left_them() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = start(&node, MANY, 0..3)?;
    let before = fingerprint(&ruleset(&node.netns)?);
    let hammers = [WEB, "10.96.100.7:80"].map(|target| hammer(&scene, target));
    for _ in 0..2 {
        scene.agent.kill()?;
        scene.agent = Agent::spawn(&node)?;
        eventually(READING, || scene.agent.wait())?;
        assert_eq!(number(&scene.agent, "lastSyncOperations")?, 0);
    }
    assert!(
        fingerprint(&ruleset(&node.netns)?) == before,
        "same handles"
    );
    for hammer in hammers {
        unharmed(hammer?)?;
    }
    Ok(())
}

/// services.md 58: more than one commit takes; what is none of theirs passes meanwhile.
#[test]
fn a_cold_start_with_thousands_of_services_serves_all_and_disturbs_nobody() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = start(&node, 0, 0..3)?;
    let direct = hammer(&scene, &format!("{}:80", OUTSIDE_IPS[0]))?;
    scene.agent.kill()?;
    nft(
        &node.netns,
        "delete table inet trammel; delete table bridge trammel",
    )?;
    let web = WEB.parse()?;
    let unserved = move || tests::traffic::ask(Protocol::Tcp, web, Duration::from_millis(400));
    let outcome = scene.pods[CLIENT].netns.enter(unserved)?;
    assert!(!outcome.is_answered(), "{outcome}");
    let count = 3 * MANY + 200;
    node.manifests.write("many", &services(0..count))?;
    scene.agent = Agent::spawn(&node)?;
    eventually(4 * READING, || scene.agent.wait())?;
    assert_eq!(number(&scene.agent, "services")?, u64::from(count) + 1);
    for number in (0..count).step_by(32) {
        let [high, low] = number.to_be_bytes();
        let target = SocketAddr::new([10, 96, 100 + high, low].into(), 80);
        let outcome = scene.ask(CLIENT, Protocol::Tcp, target)?;
        ensure!(outcome.server() == Some(OUTSIDE), "{target}: {outcome}");
    }
    assert_eq!(ask(&scene)?.server(), Some(OUTSIDE));
    assert!(scene.agent.verify()?.status.success());
    unharmed(direct)
}

/// services.md 64: no first packet gets past the translation while the number of endpoints
/// goes up and down.
#[test]
fn no_packet_is_missed_by_a_service_that_shrinks() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = start(&node, 0, 0..8)?;
    let [vip, _] = WEB.split(':').collect::<Vec<_>>()[..] else {
        panic!("ip:port");
    };
    let vip: IpAddr = vip.parse()?;
    nft(
        &node.netns,
        &format!(
            "table inet probe {{
                chain after {{
                    type filter hook prerouting priority -90
                    ip daddr {vip} counter
                }}
            }}"
        ),
    )?;
    let hammers: Result<Vec<_>> = (0..4).map(|_| hammer(&scene, WEB)).collect();
    for round in 0..80u16 {
        let count = [8, 1, 5, 2, 3, 1, 7, 4][usize::from(round % 8)];
        scene.apply(&web(0..count))?;
    }
    for hammer in hammers? {
        unharmed(hammer)?;
    }
    let objects = ruleset(&node.netns)?;
    let probe = objects.iter().find(|o| o["rule"]["table"] == "probe");
    let missed = &probe.context("the counter")?["rule"]["expr"][1]["counter"]["packets"];
    assert_eq!(*missed, 0, "packets that were not translated");
    Ok(())
}
