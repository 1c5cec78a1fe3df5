//! Which senders are pods: pods of another plugin on their own bridge reach Services of this
//! agent, and endpoints see them or the node, as the mode says.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::matrix::LIMIT;
use tests::netns::NetNs;
use tests::node::{NODE_NAME, Node, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::traffic::{Outcome, PATIENT, Protocol, Server, ask};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const VIP: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const SERVER: &str = "shop/web";
/// Of the Services and of their endpoints.
const PORTS: [(u16, u16); 1] = [(8000, 80)];

/// The bridge of the other plugin, and the addresses behind it.
const BRIDGE: &str = "cni0";
const PREFIXES: [&str; 2] = ["10.99.0.0/24", "fd99::/64"];
const GATEWAYS: [&str; 2] = ["10.99.0.1", "fd99::1"];
const FIRST: [&str; 2] = ["10.99.0.2", "fd99::2"];
const SECOND: [&str; 2] = ["10.99.0.3", "fd99::3"];

/// A node with that bridge, to which the neighbour routes the Services.
fn with_bridge() -> Result<Node> {
    let node = Node::new()?;
    node.netns.ip(&format!("link add {BRIDGE} type bridge"))?;
    node.netns.up(BRIDGE)?;
    for (gateway, length) in GATEWAYS.into_iter().zip([24, 64]) {
        node.netns
            .add_address(BRIDGE, &format!("{gateway}/{length}"))?;
    }
    for family in Family::ALL {
        let via = node.ip(family);
        node.outside
            .ip(&format!("route add {} via {via}", family.pick(VIP)))?;
    }
    Ok(node)
}

/// A pod of the other plugin.
fn other_pod(node: &Node, port: &str, ips: [&str; 2]) -> Result<NetNs> {
    let pod = NetNs::create("other")?;
    node.netns.ip(&format!(
        "link add {port} type veth peer name eth0 netns {}",
        pod.name()
    ))?;
    node.netns.ip(&format!("link set {port} master {BRIDGE}"))?;
    for (ip, length) in ips.into_iter().zip([24, 64]) {
        pod.add_address("eth0", &format!("{ip}/{length}"))?;
    }
    pod.up("eth0")?;
    node.netns.up(port)?;
    for via in GATEWAYS {
        pod.ip(&format!("route add default via {via}"))?;
    }
    Ok(pod)
}

fn own_node(pod_cidrs: [&str; 2]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
    })
}

fn web() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &PORTS)
}

fn start<'n>(node: &'n Node, objects: &[Value], arguments: &[&str]) -> Result<Scene<'n>> {
    let pods = [(SERVER, json!({"app": "web"}))];
    Scene::start_with(node, &pods, objects, arguments)
}

/// Whom the endpoint sees when `from` asks.
fn seen(from: &NetNs, protocol: Protocol, ip: IpAddr) -> Result<IpAddr> {
    let outcome = from.enter(move || ask(protocol, SocketAddr::new(ip, 8000), PATIENT))?;
    match outcome {
        Outcome::Answered { peer, .. } => Ok(peer.ip()),
        outcome => anyhow::bail!("{} {protocol} {ip}: {outcome}", from.name()),
    }
}

/// Whether endpoints see the sender itself at the cluster IP, in both families.
fn is_seen_over(protocols: &[Protocol], from: &NetNs, own: [&str; 2]) -> Result<bool> {
    let mut kept = Vec::new();
    for family in Family::ALL {
        for protocol in protocols {
            let seen = seen(from, *protocol, family.pick(WEB))?;
            kept.push(seen == family.pick(own));
        }
    }
    ensure!(
        kept.iter().all(|is_kept| *is_kept == kept[0]),
        "the same in both families and protocols: {kept:?}"
    );
    Ok(kept[0])
}

fn is_seen(from: &NetNs, own: [&str; 2]) -> Result<bool> {
    is_seen_over(&Protocol::ALL, from, own)
}

/// services.md section 1, detectLocal: the four modes of kube-proxy.
#[test]
fn the_mode_says_whose_addresses_endpoints_see() -> Result<()> {
    require_root!();
    let cidrs = PREFIXES.join(",");
    let bridge = [
        "--detect-local-mode",
        "BridgeInterface",
        "--pod-bridge-interface",
    ];
    let prefix = [
        "--detect-local-mode",
        "InterfaceNamePrefix",
        "--pod-interface-name-prefix",
    ];
    let by = |mode: [&'static str; 3], name: &'static str| [&mode[..], &[name]].concat();
    for (arguments, sees_pod, sees_outside) in [
        (vec![], false, false),
        (vec!["--cluster-cidr", &cidrs], true, false),
        (vec!["--detect-local-mode", "NodeCIDR"], true, false),
        (by(bridge, BRIDGE), true, false),
        (by(bridge, "cni"), false, false),
        (by(prefix, "cn"), true, false),
        (by(prefix, "upl"), false, true),
    ] {
        let node = with_bridge()?;
        let pod = other_pod(&node, "port0", FIRST)?;
        let scene = start(&node, &[web(), own_node(PREFIXES)], &arguments)?;
        let look = |from: &NetNs, own, expected, who: &str| -> Result<()> {
            let is_seen = is_seen(from, own).with_context(|| format!("{arguments:?}"))?;
            ensure!(is_seen == expected, "{arguments:?} {who}: {is_seen}");
            Ok(())
        };
        look(&pod, FIRST, sees_pod, "the other plugin's pod")?;
        look(&node.outside, OUTSIDE_IPS, sees_outside, "somebody outside")?;
        for family in Family::ALL {
            let target = SocketAddr::new(family.pick(WEB), 8000);
            let outcome = scene.ask_for(NODE, Protocol::Tcp, target, PATIENT)?;
            ensure!(outcome.is_answered(), "{arguments:?}: {outcome}");
        }
    }
    Ok(())
}

/// services.md section 1, detectLocal: kube-proxy ends its process for that.
#[test]
fn the_mode_node_cidr_follows_the_node() -> Result<()> {
    require_root!();
    let node = with_bridge()?;
    let pod = other_pod(&node, "port0", FIRST)?;
    let elsewhere = ["10.98.0.0/24", "fd98::/64"];
    let arguments = ["--detect-local-mode", "NodeCIDR"];
    let scene = start(&node, &[web()], &arguments)?;
    let problems = scene.agent.verb(&["status"])?;
    ensure!(problems.contains("spec.podCIDRs"), "{problems}");
    for (cidrs, expected) in [(elsewhere, false), (PREFIXES, true), (elsewhere, false)] {
        scene.apply(&[web(), own_node(cidrs)])?;
        // A datagram from a port that comes back goes as the one before it.
        let is_seen = is_seen_over(&[Protocol::Tcp], &pod, FIRST)?;
        ensure!(is_seen == expected, "{cidrs:?}: {is_seen}");
    }
    let problems = scene.agent.verb(&["status"])?;
    ensure!(!problems.contains("spec.podCIDRs"), "{problems}");
    Ok(())
}

/// services.md 22: pods that are known by their bridge reach endpoints on other nodes.
#[test]
fn pods_behind_the_bridge_reach_all_endpoints_of_the_policy_local() -> Result<()> {
    require_root!();
    let node = with_bridge()?;
    let pod = other_pod(&node, "port0", FIRST)?;
    let mut service = objects::service("shop/given", WEB, &json!({}), &PORTS);
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    service["status"]["loadBalancer"]["ingress"] = json!(VIP.map(|ip| json!({"ip": ip})));
    let mut objects = objects::slices("shop/given", OUTSIDE_IPS, "n2", &PORTS).to_vec();
    objects.push(service);
    let arguments = [
        "--detect-local-mode",
        "BridgeInterface",
        "--pod-bridge-interface",
        BRIDGE,
    ];
    // The endpoint knows the way back, as another node would.
    for family in Family::ALL {
        let (range, via) = (PREFIXES[usize::from(family == Family::V6)], node.ip(family));
        node.outside.ip(&format!("route add {range} via {via}"))?;
    }
    let scene = start(&node, &objects, &arguments)?;
    for family in Family::ALL {
        let vip = family.pick(VIP);
        for protocol in Protocol::ALL {
            assert_eq!(seen(&pod, protocol, vip)?, family.pick(FIRST));
        }
        let target = SocketAddr::new(vip, 8000);
        let outcome = scene.ask_for(OUTSIDE, Protocol::Tcp, target, LIMIT)?;
        ensure!(!outcome.is_answered(), "not for others: {outcome}");
    }
    Ok(())
}

/// services.md 5. With br_netfilter what is translated goes on in its bridge, and has lost its
/// interface when its source is chosen.
#[test]
fn a_pod_keeps_its_address_towards_its_neighbour_on_the_bridge() -> Result<()> {
    require_root!();
    let node = with_bridge()?;
    node.set_bridge_nf(true)?;
    let pods = [
        other_pod(&node, "port0", FIRST)?,
        other_pod(&node, "port1", SECOND)?,
    ];
    let _server = Server::start(&pods[1], "neighbour", &[80])?;
    let mut objects = objects::slices("shop/given", SECOND, NODE_NAME, &PORTS).to_vec();
    objects.push(objects::service("shop/given", WEB, &json!({}), &PORTS));
    for (mode, flag, value) in [
        ("BridgeInterface", "--pod-bridge-interface", BRIDGE),
        ("InterfaceNamePrefix", "--pod-interface-name-prefix", "cn"),
    ] {
        let scene = start(&node, &objects, &["--detect-local-mode", mode, flag, value])?;
        ensure!(is_seen(&pods[0], FIRST)?, "{mode}");
        ensure!(!is_seen(&node.outside, OUTSIDE_IPS)?, "{mode}");
        for family in Family::ALL {
            let target = SocketAddr::new(family.pick(WEB), 8000);
            let outcome = scene.ask_for(NODE, Protocol::Tcp, target, PATIENT)?;
            ensure!(outcome.is_answered(), "{mode}: {outcome}");
        }
    }
    Ok(())
}

/// netpol.md 91 on a node with pods of another plugin, as while it changes to this one: policies
/// hold for those behind bridges that the agent was told of, and `explain` says what packets do.
#[test]
fn what_policies_do_to_pods_of_another_plugin_is_explained() -> Result<()> {
    require_root!();
    let other = "shop/other";
    for (bridges, is_guarded) in [("[cbr0]", false), ("[cbr0, cni0]", true)] {
        let node = with_bridge()?;
        for range in PREFIXES.into_iter().zip(Family::ALL) {
            let (range, via) = (range.0, node.ip(range.1));
            node.outside.ip(&format!("route add {range} via {via}"))?;
        }
        let pod = other_pod(&node, "port0", FIRST)?;
        let _server = Server::start(&pod, other, &[80])?;
        let config = node.dir().join("config.yaml");
        std::fs::write(&config, format!("bridges: {bridges}"))?;
        let mut object = objects::pod(other, &json!({"app": "other"}), &[80]);
        object["status"]["podIPs"] = json!(FIRST.map(|ip| json!({"ip": ip})));
        let scene = start(
            &node,
            &[object, objects::deny_all("shop")],
            &["--config", config.to_str().context("a path as text")?],
        )?;
        for family in Family::ALL {
            let target = SocketAddr::new(family.pick(FIRST), 80);
            let limit = if is_guarded { LIMIT } else { PATIENT };
            let outcome = scene.ask_for(OUTSIDE, Protocol::Tcp, target, limit)?;
            ensure!(
                outcome.is_answered() != is_guarded,
                "{bridges} {family:?}: {outcome}"
            );
        }
        let outside = OUTSIDE_IPS[0];
        let explained = tests::agent::verb(&node, &["explain", outside, other, "-o", "json"])?;
        let answer: Value = serde_json::from_str(&explained.stdout)?;
        let connection = &answer["connections"][0];
        let said = (
            explained.status.code(),
            &connection["allowed"],
            &connection["ingress"]["decision"],
            &connection["kernel"]["check"],
        );
        let expected = match is_guarded {
            false => (Some(0), true, "notEnforced", "agrees"),
            true => (Some(1), false, "denied", "skipped"),
        };
        let expected = (
            expected.0,
            &json!(expected.1),
            &json!(expected.2),
            &json!(expected.3),
        );
        ensure!(said == expected, "{bridges}: {answer:#}");
        let found = tests::agent::verb(&node, &["lint"])?;
        let is_told = found.stdout.contains(&format!("{other} (by {BRIDGE})"));
        ensure!(is_told != is_guarded, "{bridges}: {found:?}");
    }
    Ok(())
}
