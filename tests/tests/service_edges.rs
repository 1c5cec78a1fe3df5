//! Services at the edges: addresses that are nobody's, tables that are full, other programs
//! on the same node.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command::{self, Background};
use tests::inspect::{conntrack, nft, ruleset};
use tests::node::{NODE_IPS, Node};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{OUTSIDE, Scene};
use tests::traffic::{Outcome, PATIENT, Protocol, limit};
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NODE_PORT: u16 = 30_080;
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 3] = ["shop/web-0", "shop/web-1", "shop/web-2"];
/// Entries of the affinity map, of either family.
const AFFINITY_ENTRIES: u32 = 1 << 18;
const SHORT: Duration = Duration::from_millis(700);
fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": "web"}))).into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

fn web() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)])
}

fn with_node_port() -> Value {
    let mut service = web();
    service["spec"]["type"] = "NodePort".into();
    for port in service["spec"]["ports"].as_array_mut().expect("ports") {
        port["nodePort"] = NODE_PORT.into();
    }
    service
}

fn sticky(service: Value) -> Value {
    let mut service = service;
    service["spec"]["sessionAffinity"] = "ClientIP".into();
    service
}

fn ways() -> impl Iterator<Item = (Family, Protocol)> {
    Family::ALL
        .into_iter()
        .flat_map(|family| Protocol::ALL.map(|protocol| (family, protocol)))
}

fn at(ips: [&str; 2], family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.pick(ips), port)
}

fn problems(scene: &Scene<'_>) -> Result<String> {
    Ok(scene.agent.json(&["status"])?["problems"].to_string())
}

/// services.md 10.
#[test]
fn addresses_that_no_service_has_are_dropped_inside_the_range_and_let_be_outside() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd96::/112"]}});
    let scene = Scene::start(&node, &pods(), &[web(), cidr])?;
    let elsewhere = ["10.97.0.77", "fd97::77"];
    let unallocated = ["10.96.0.77", "fd96::77"];
    for ip in elsewhere.into_iter().chain(unallocated) {
        // Both would be answered if they were let out.
        node.outside.ip(&format!("address add {ip} dev lo nodad"))?;
    }
    for (family, protocol) in ways() {
        for from in [CLIENT, tests::scene::NODE] {
            // Over UDP its answer would come from another of its addresses.
            if protocol == Protocol::Tcp {
                let answered = scene.ask(from, protocol, at(elsewhere, family, 80))?;
                ensure!(
                    answered.server() == Some(OUTSIDE),
                    "{from} {family}: {answered}"
                );
            }
            let dropped = scene.ask_for(from, protocol, at(unallocated, family, 80), SHORT)?;
            // The node itself is told by its own kernel that it may not.
            let is_dropped = match from {
                CLIENT => dropped == Outcome::Timeout,
                _ => !dropped.is_answered() && dropped != Outcome::Refused,
            };
            ensure!(is_dropped, "{from} {family} {protocol}: {dropped}");
            let served = scene.ask(from, protocol, at(WEB, family, 8000))?;
            ensure!(served.is_answered(), "{from} {family} {protocol}: {served}");
        }
    }
    Ok(())
}

/// services.md 33.
#[test]
fn slices_of_names_and_of_a_family_that_the_service_lacks_are_left_alone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIP": WEB[0], "clusterIPs": [WEB[0]], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}]},
    });
    let slice = |name: &str, ty: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": ty,
            "metadata": {"namespace": "shop", "name": name,
                "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        })
    };
    let [v4, v6] = Family::ALL.map(|family| scene.pod(ENDPOINTS[0]).ip(family).to_string());
    let names = slice("names", "FQDN", "web.example.org");
    let other = slice("other", "IPv6", &v6);
    scene.apply(&[service.clone(), names.clone(), other.clone()])?;
    let target = at(WEB, Family::V4, 8000);
    assert_eq!(scene.ask(CLIENT, Protocol::Tcp, target)?, Outcome::Refused);
    scene.apply(&[service, names, other, slice("web", "IPv4", &v4)])?;
    for _ in 0..20 {
        let outcome = scene.ask(CLIENT, Protocol::Tcp, target)?;
        ensure!(outcome.server() == Some(ENDPOINTS[0]), "{outcome}");
    }
    assert_eq!(problems(&scene)?, "[]");
    Ok(())
}

/// services.md 67.
#[test]
fn an_external_ip_takes_no_cluster_ip_away() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd96::/112"]}});
    let mut thief = objects::service(
        "shop/a-thief",
        ["10.96.0.66", "fd96::66"],
        &json!({"app": "client"}),
        &[(8000, 80), (9000, 80)],
    );
    thief["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
    thief["spec"]["externalIPs"] = json!(WEB);
    // By its kind of address where no range is known, and by the range where one is.
    for objects in [vec![web(), thief.clone()], vec![web(), thief, cidr]] {
        let is_known = objects.len() == 3;
        let scene = Scene::start(&node, &pods(), &objects)?;
        for (family, protocol) in ways() {
            for from in [CLIENT, OUTSIDE] {
                for _ in 0..6 {
                    let outcome = scene.ask(from, protocol, at(WEB, family, 8000))?;
                    let server = outcome.server().unwrap_or_default();
                    ensure!(
                        ENDPOINTS.contains(&server),
                        "{from} {family} {protocol}: {outcome}"
                    );
                }
                // A port that its owner does not have.
                let other =
                    scene.ask_for(from, protocol, at(WEB, family, 9000), limit(!is_known))?;
                ensure!(
                    other.is_answered() != is_known,
                    "{from} {family} {protocol}: {other}"
                );
            }
        }
        let problems = problems(&scene)?;
        ensure!(
            problems.contains("a-thief") && problems.contains(WEB[0]),
            "{problems}"
        );
    }
    Ok(())
}

/// services.md 71: the marks of Istio, Calico and others are theirs, on packets and on flows.
#[test]
fn marks_of_other_programs_are_as_they_set_them() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let policy = objects::policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}],
            "policyTypes": ["Ingress"]}),
    );
    let services = [with_node_port(), sticky(with_node_port())];
    let scene = Scene::start(&node, &pods(), std::slice::from_ref(&policy))?;
    nft(
        &node.netns,
        "table inet other {
            chain first {
                type filter hook prerouting priority mangle;
                meta mark set 0x4007
                ct state new ct mark set 0x1234
            }
            chain last {
                type filter hook postrouting priority 200;
                ct status dnat meta mark 0x4007 ct mark & 0xffff == 0x1234 counter accept
                ct status dnat counter
            }
        }",
    )?;
    for service in services {
        scene.apply(&[policy.clone(), service])?;
        for (family, protocol) in ways() {
            for (from, target) in [
                (CLIENT, at(WEB, family, 8000)),
                (CLIENT, at(NODE_IPS, family, NODE_PORT)),
                (OUTSIDE, at(NODE_IPS, family, NODE_PORT)),
                // To itself, with the node's address.
                (ENDPOINTS[0], at(WEB, family, 8000)),
            ] {
                for _ in 0..4 {
                    let outcome = scene.ask(from, protocol, target)?;
                    ensure!(
                        outcome.is_answered(),
                        "{from} {protocol} {target}: {outcome}"
                    );
                }
            }
        }
    }
    let objects = ruleset(&node.netns)?;
    let counters: Vec<_> = objects
        .iter()
        .filter(|object| object["rule"]["chain"] == "last")
        .filter_map(|object| object["rule"]["expr"].as_array())
        .filter_map(|expressions| {
            expressions
                .iter()
                .find_map(|e| e["counter"]["packets"].as_u64())
        })
        .collect();
    ensure!(counters.len() == 2 && counters[0] > 100, "{counters:?}");
    assert_eq!(counters[1], 0, "packets with another mark");
    Ok(())
}

/// services.md 39.
#[test]
fn clients_who_find_no_room_to_be_remembered_are_balanced_and_counted() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[sticky(web())])?;
    let mut script = String::new();
    for first in (0..AFFINITY_ENTRIES).step_by(1 << 12) {
        script.push_str("add element inet trammel affinity4 {");
        for number in first..first + (1 << 12) {
            let [_, high, middle, low] = number.to_be_bytes();
            let client = format!("172.{}.{middle}.{low}", 16 + high);
            let _infallible = write!(script, " {client} . 240.0.0.1 timeout 1h : 10.1.0.1 . 80,");
        }
        script.push_str(" }\n");
    }
    nft(&node.netns, &script)?;
    let target = at(WEB, Family::V4, 8000);
    let mut servers = BTreeSet::new();
    for _ in 0..60 {
        let outcome = scene.ask(CLIENT, Protocol::Tcp, target)?;
        let server = outcome.server().with_context(|| format!("{outcome}"))?;
        servers.insert(server.to_owned());
    }
    assert_eq!(servers.len(), 3, "{servers:?}");
    eventually(SOON, || {
        let (_, metrics) = scene.agent.get("/metrics")?;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("trammel_affinity_unlearnt_total "));
        let count: f64 = line.context("no such metric")?.parse()?;
        ensure!(count >= 60.0, "{count}");
        Ok(())
    })?;
    let log = scene.agent.log_text();
    ensure!(log.contains("session affinity is full"), "{log}");
    Ok(())
}

/// Seconds of CPU that a process has taken, its own and the kernel's for it.
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let mut times = fields.split_whitespace().skip(11);
    let mut ticks = || -> Result<f64> { Ok(times.next().context("a time")?.parse::<f64>()?) };
    // USER_HZ is 100 on every Linux that this runs on.
    Ok((ticks()? + ticks()?) / 100.0)
}

/// services.md 46.
#[test]
fn stale_flows_are_found_among_a_hundred_thousand_others() -> Result<()> {
    require_root!();
    const FLOWS: usize = 100_000;
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    node.netns
        .sysctl("net.netfilter.nf_conntrack_udp_timeout", 600)?;
    node.outside.ip("route add blackhole 10.61.0.0/16")?;
    node.netns.enter(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 0..FLOWS {
            let [.., high, low] = (number / 100).to_be_bytes();
            let port = u16::try_from(1000 + number % 100)?;
            // The neighbour's complaints come back as errors of later datagrams.
            let _refused = socket.send_to(b"x", (Ipv4Addr::new(10, 61, high, low), port));
        }
        Ok(())
    })??;
    let count = || -> Result<usize> {
        let text = node.netns.read_sysctl("net.netfilter.nf_conntrack_count");
        Ok(text.context("a count")?.parse()?)
    };
    let full = count()?;
    ensure!(
        full > FLOWS * 9 / 10,
        "{full} flows; is nf_conntrack_max too low?"
    );
    let socket = scene.pod(CLIENT).netns.enter(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENT))?;
        socket.connect("10.96.0.10:8000")?;
        Ok(socket)
    })??;
    let before = cpu(scene.agent.pid())?;
    const ROUNDS: u32 = 6;
    for round in 0..ROUNDS {
        socket.send(b"who")?;
        let mut line = [0; 256];
        let len = socket.recv(&mut line)?;
        let line = String::from_utf8_lossy(&line[..len]).into_owned();
        let mut labels = pods();
        for (key, label) in &mut labels {
            if line.starts_with(*key) {
                *label = json!({"app": "retired"});
            }
        }
        scene.apply_pods(&labels)?;
        let entries = command::run(node.netns.command("conntrack").args([
            "-L",
            "-p",
            "udp",
            "--orig-dst",
            WEB[0],
        ]))?;
        let stays = entries.lines().count();
        ensure!(stays == 0, "round {round}, {line}: {entries}");
        scene.apply_pods(&pods())?;
    }
    let spent = (cpu(scene.agent.pid())? - before) / f64::from(2 * ROUNDS);
    ensure!(spent < 1.0, "{spent} s for each change");
    ensure!(count()? >= full - 100, "others were ended");
    ensure!(
        conntrack(&node.netns)?.len() >= full - 100,
        "others were ended"
    );
    Ok(())
}

/// services.md 55: a lost answer is no lost change.
#[test]
fn an_agent_whose_netlink_answers_are_lost_converges() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods(), &[web()])?;
    for (error, every) in [("ENOBUFS", 3), ("EINTR", 2), ("ENOMEM", 4)] {
        let log = node.dir().join("strace.log");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o"])
            .arg(&log)
            .args(["-e", "trace=recvfrom", "-e"])
            .arg(format!(
                "inject=recvfrom:error={error}:when={every}+{every}"
            ))
            .args(["-p", &scene.agent.pid().to_string()]);
        let mut tracer = Background::spawn(&strace, &node.dir().join("strace.err"))?;
        // It has attached when a call of the agent is in its log.
        eventually(SOON, || {
            ensure!(fs::metadata(&log)?.len() > 0, "nothing traced yet");
            Ok(())
        })?;
        let other = |number: u8| {
            let ips = [format!("10.96.1.{number}"), format!("fd96::1:{number}")];
            let ips = [&*ips[0], &*ips[1]];
            objects::service("shop/other", ips, &json!({"app": "web"}), &[(80, 80)])
        };
        for number in 1..=5 {
            node.manifests.write("objects", &[web(), other(number)])?;
            std::thread::sleep(Duration::from_millis(300));
        }
        let injected = eventually(SOON, || {
            let text = fs::read_to_string(&log)?;
            ensure!(text.contains("INJECTED"), "{text}");
            Ok(text)
        });
        tracer.stop(Signal::SIGTERM, SOON)?;
        injected?;
        fs::remove_file(&log)?;
        eventually(SOON, || scene.agent.wait())?;
        ensure!(scene.agent.verify()?.status.success(), "after {error}");
        for (family, protocol) in ways() {
            let target = at(["10.96.1.5", "fd96::1:5"], family, 80);
            let outcome = scene.ask(CLIENT, protocol, target)?;
            ensure!(
                outcome.is_answered(),
                "{error} {target} {protocol}: {outcome}"
            );
            let gone = at(["10.96.1.4", "fd96::1:4"], family, 80);
            let outcome = scene.ask_for(CLIENT, protocol, gone, SHORT)?;
            ensure!(
                !outcome.is_answered(),
                "{error} {gone} {protocol}: {outcome}"
            );
        }
        scene.apply(&[web()])?;
    }
    scene.agent.kill()?;
    scene.agent = Agent::start(&node)?;
    Ok(())
}
