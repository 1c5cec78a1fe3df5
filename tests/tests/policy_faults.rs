//! NetworkPolicy where something is not as it should be: tables of another layout, a full
//! connection table, a runtime that asks twice.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::inspect::{self, ruleset};
use tests::netns::NetNs;
use tests::node::Node;
use tests::objects::{self, policy};
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::random::number;
use tests::require_root;
use tests::scene::Scene;
use tests::shop::{app, pods, web_for_front};
use tests::traffic::{Hammer, PATIENT, Protocol, SHORT, Stream, ask, limit};
use tests::wait::SOON;

const PAUSE: Duration = Duration::from_millis(1);

/// netpol.md 63: an agent that finds tables of another layout, as an upgrade does, makes them
/// its own in one change: nothing is open or cut for a moment.
#[test]
fn tables_of_another_layout_are_taken_over_without_a_gap() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods(), &[web_for_front()])?;
    let web = scene.pod("shop/web").at(Family::V4, 80);
    let [front, probe] = ["shop/front", "lab/probe"].map(|key| &scene.pod(key).netns);
    let live = Stream::open(front, Protocol::Tcp, web, Duration::from_millis(5))?;
    let denied = Hammer::start(probe, Protocol::Tcp, web, Duration::from_millis(20), PAUSE)?;
    let allowed = Hammer::start(front, Protocol::Tcp, web, PATIENT, PAUSE)?;
    let before = names(&node)?;
    for round in 0..3 {
        scene.agent.kill()?;
        inspect::nft(
            &node.netns,
            &format!(
                "add chain inet trammel older-{round}
                 add rule inet trammel older-{round} counter drop
                 add map inet trammel older-map {{ type ipv4_addr : verdict; }}
                 add element inet trammel older-map {{ 203.0.113.{round} : goto older-{round} }}
                 add chain inet trammel older-base {{ type filter hook forward priority 5; policy accept; }}
                 add rule inet trammel older-base ip daddr vmap @older-map
                 flush chain inet trammel denied-ingress
                 add rule inet trammel denied-ingress counter drop
                 insert rule inet trammel forward counter"
            ),
        )?;
        scene.agent = Agent::start(&node)?;
        ensure!(scene.agent.verify()?.status.success());
        assert_eq!(names(&node)?, before, "what is not of its layout is gone");
    }
    let (denied, allowed) = (denied.stop()?, allowed.stop()?);
    assert!(denied.answered() == 0 && denied.failed() > 10, "{denied:?}");
    assert!(
        allowed.failed() == 0 && allowed.answered() > 10,
        "{allowed:?}"
    );
    let seen = scene.servers["shop/web"].seen();
    let probe = scene.pod("lab/probe").ip(Family::V4);
    assert!(seen.iter().all(|seen| seen.peer.ip() != probe));
    live.flows(SOON)
}

/// Kind and name of every object; the number of elements of sets and maps.
fn names(node: &Node) -> Result<BTreeMap<String, usize>> {
    let objects = ruleset(&node.netns)?;
    let name = |object: &Value| {
        let (kind, object) = object.as_object()?.iter().next()?;
        let elements = inspect::items(&object["elem"]).len();
        let name = format!(
            "{kind} {} {} {}",
            object["table"], object["chain"], object["name"]
        );
        Some((name, elements))
    };
    let mut counted = BTreeMap::new();
    for (name, elements) in objects.iter().filter_map(name) {
        // What packets leave behind.
        let is_learnt = ["origins", "affinity", "forgers"];
        if !is_learnt.iter().any(|learnt| name.contains(learnt)) {
            *counted.entry(name).or_insert(0) += elements + 1;
        }
    }
    Ok(counted)
}

/// netpol.md 70: where the connection table is full a denied packet is denied, and flows that
/// are there go on.
#[test]
fn a_full_connection_table_opens_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web_for_front()])?;
    let web = scene.pod("shop/web").at(Family::V4, 80);
    let front = &scene.pod("shop/front").netns;
    let live = Stream::open(front, Protocol::Tcp, web, Duration::from_millis(10))?;
    let read = |name: &str| -> Result<u64> {
        let text = node.netns.read_sysctl(&format!("net.netfilter.{name}"));
        Ok(text.context("connection tracking")?.parse()?)
    };
    let limit = read("nf_conntrack_max")?;
    node.netns
        .sysctl("net.netfilter.nf_conntrack_udp_timeout", 300)?;
    // Nobody reads what is sent to these ports; each is a flow.
    let target = tests::node::OUTSIDE_IPS[0];
    let sent = node.netns.enter(move || -> Result<()> {
        for _ in 0..limit.div_ceil(60_000) + 1 {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for port in 1000..=61_000u16 {
                // A full buffer loses one flow of many.
                socket.send_to(b"", (target, port)).ok();
            }
        }
        Ok(())
    })?;
    sent?;
    let count = read("nf_conntrack_count")?;
    assert!(count > limit - limit / 10, "{count} flows of {limit}");

    for (from, port) in [("lab/probe", 80), ("shop/front", 81)] {
        for protocol in Protocol::ALL {
            let target = scene.pod("shop/web").at(Family::V4, port);
            for _ in 0..20 {
                let outcome = scene.ask_for(from, protocol, target, Duration::from_millis(30))?;
                assert!(
                    !outcome.is_answered(),
                    "{from} {protocol} {target}: {outcome}"
                );
            }
        }
    }
    let allowed = |source: std::net::IpAddr, port| {
        (source, port) == (scene.pod("shop/front").ip(Family::V4), 80)
    };
    for seen in scene.servers["shop/web"].seen() {
        assert!(allowed(seen.peer.ip(), seen.port), "{seen:?}");
    }
    live.flows(SOON).context("a live flow")
}

/// netpol.md 61: a runtime that asks twice, or for what there never was, leaves nothing in
/// the tables.
#[test]
fn repeated_adds_and_unmatched_dels_leave_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut all = pods();
    all.push(("default/again", app("again")));
    let scene = Scene::start(&node, &pods(), &[web_for_front()])?;
    scene.apply_pods(&all)?;
    let attachments = || -> Result<usize> {
        let status = scene.agent.json(&["status"])?;
        Ok(inspect::items(&status["attachments"]).len())
    };
    let before = names(&node)?;
    for _ in 0..2 {
        Call::new(&node, "DEL", "never", &NetNs::create("never")?).silent()?;
    }
    assert_eq!((names(&node)?, attachments()?), (before.clone(), 3));

    let netns = NetNs::create("again")?;
    let add = Call::new(&node, "ADD", "again", &netns);
    add.result()?;
    scene.agent.wait()?;
    let once = names(&node)?;
    assert_ne!(once, before, "its addresses are bound");
    let again = add.run()?;
    assert_ne!(again.code, 128, "{again:?}");
    scene.agent.wait()?;
    assert_eq!((names(&node)?, attachments()?), (once, 4));
    for _ in 0..2 {
        Call::new(&node, "DEL", "again", &netns).silent()?;
    }
    scene.agent.wait()?;
    assert_eq!((names(&node)?, attachments()?), (before, 3));
    assert!(scene.agent.verify()?.status.success());
    Ok(())
}

/// netpol.md 57: ADD returns when the pod may do what it may.
#[test]
fn what_is_allowed_works_as_soon_as_add_returns() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let for_new = policy(
        "shop/new",
        &json!({"podSelector": {"matchLabels": app("new")}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": 80}]}]}),
    );
    let scene = Scene::start(&node, &pods(), &[for_new])?;
    let keys: Vec<_> = (0..number("TRAMMEL_NEW_PODS", 20))
        .map(|number| format!("shop/new-{number}"))
        .collect();
    let mut all = pods();
    all.extend(keys.iter().map(|key| (key.as_str(), app("new"))));
    scene.apply_pods(&all)?;
    for (key, family) in keys.iter().zip(Family::ALL.into_iter().cycle()) {
        let pod = Pod::add(&node, key)?;
        let target = scene.pod("lab/probe").at(family, 80);
        let outcome = pod
            .netns
            .enter(move || ask(Protocol::Tcp, target, PATIENT))?;
        assert!(outcome.is_answered(), "{key} {family}: {outcome}");
        let denied = scene.pod("lab/probe").at(family, 81);
        let outcome = pod.netns.enter(move || ask(Protocol::Tcp, denied, SHORT))?;
        assert!(!outcome.is_answered(), "{key} {family}: {outcome}");
    }
    Ok(())
}

/// netpol.md 14: a port of a container that runs beside the others from the start on.
#[test]
fn the_name_of_a_native_sidecars_port_is_a_port_of_its_pod() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let rules = json!({"podSelector": {"matchLabels": app("web")},
        "ingress": [{"ports": [{"port": "proxy"}, {"port": "init"}]}]});
    let scene = Scene::start(&node, &pods()[1..], &[policy("shop/web", &rules)])?;
    let mut web = objects::pod("shop/web", &app("web"), &[]);
    web["spec"]["initContainers"] = json!([
        {"name": "once", "ports": [{"name": "init", "containerPort": 80}]},
        {"name": "beside", "restartPolicy": "Always",
            "ports": [{"name": "proxy", "containerPort": 81}]},
    ]);
    node.manifests.write("web", &[web])?;
    scene.agent.wait()?;
    let mut scene = scene;
    scene.add("shop/web")?;
    for family in Family::ALL {
        for (port, passes) in [(81, true), (80, false)] {
            let target = scene.pod("shop/web").at(family, port);
            let outcome = scene.ask_for("lab/probe", Protocol::Tcp, target, limit(passes))?;
            assert_eq!(outcome.is_answered(), passes, "{target}: {outcome}");
        }
    }
    Ok(())
}
