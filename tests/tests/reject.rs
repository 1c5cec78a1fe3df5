//! `--deny-with reject`: who is denied learns it at once, and gets no further.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::matrix::LIMIT;
use tests::node::{NODE_IPS, Node, OUTSIDE_IPS, WAYS};
use tests::objects::{self, policy};
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::shop::{app, pods, web_for_front};
use tests::traffic::{Outcome, Protocol, SHORT, Server};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// Lab sends nothing out of the cluster, nor to the node.
fn lab_stays_inside() -> Value {
    let peers = json!([{"namespaceSelector": {}}]);
    policy(
        "lab/inside",
        &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]}),
    )
}

fn start<'n>(node: &'n Node, how: &[&str]) -> Result<Scene<'n>> {
    // One ICMP error a second to each address, by default: this suite asks more often.
    node.netns.sysctl("net.ipv4.icmp_ratelimit", 0)?;
    node.netns.sysctl("net.ipv6.icmp.ratelimit", 0)?;
    let service = objects::service("shop/web", WEB, &app("web"), &[(8000, 80)]);
    let objects = [service, web_for_front(), lab_stays_inside()];
    Scene::start_with(node, &pods(), &objects, how)
}

/// Issue 6: drop, reject by option.
#[test]
fn a_denied_client_is_refused_at_once_by_whichever_way_it_comes() -> Result<()> {
    require_root!();
    for (mode, bridge_nf) in WAYS {
        let node = Node::with_mode(mode, bridge_nf)?;
        let scene = start(&node, &["--deny-with", "reject"])?;
        for family in Family::ALL {
            refused_everywhere(&scene, family)
                .with_context(|| format!("{mode}, bridge-nf {bridge_nf}, {family}"))?;
        }
        let probe = scene.pod("lab/probe");
        if mode == "routed-ports" {
            // Where packets to nobody's address come by: that is no policy's denial.
            for family in Family::ALL {
                let nobody = family.pick(["10.88.0.250", "fd88::fa"]);
                let target = SocketAddr::new(nobody, 80);
                // After three seconds the node says that it has not found anybody.
                let outcome = scene.ask_for("shop/front", Protocol::Udp, target, SHORT)?;
                assert_eq!(outcome, Outcome::Timeout, "{nobody}");
            }
        }
        let seen = scene.servers["shop/web"].seen();
        let own = Family::ALL.map(|family| probe.ip(family));
        assert!(
            !seen.iter().any(|seen| own.contains(&seen.peer.ip())),
            "{mode}: nothing of the probe's arrives"
        );
        assert!(scene.agent.verify()?.status.success());
    }
    Ok(())
}

fn refused_everywhere(scene: &Scene<'_>, family: Family) -> Result<()> {
    let web = scene.pod("shop/web");
    let at = |ips: [&str; 2], port| SocketAddr::new(family.pick(ips), port);
    let node_port = 8080;
    let _on_node = Server::start(&scene.node.netns, NODE, &[node_port])?;
    for protocol in Protocol::ALL {
        // Whom a reset can reach as itself gets one; ICMP tells the others.
        let by_address = match protocol {
            Protocol::Tcp => is_refused as fn(&Outcome) -> bool,
            Protocol::Udp => is_prohibited,
        };
        for (from, target, is_told) in [
            ("lab/probe", web.at(family, 80), by_address),
            ("lab/probe", at(WEB, 8000), is_prohibited),
            ("lab/probe", at(OUTSIDE_IPS, 80), by_address),
            ("lab/probe", at(NODE_IPS, node_port), by_address),
            (OUTSIDE, web.at(family, 80), by_address),
            (OUTSIDE, at(WEB, 8000), is_prohibited),
            ("shop/front", web.at(family, 81), by_address),
        ] {
            let outcome = scene.ask(from, protocol, target)?;
            assert!(is_told(&outcome), "{from} {protocol} {target}: {outcome}");
        }
    }
    for target in [web.at(family, 80), at(WEB, 8000)] {
        let outcome = scene.ask("shop/front", Protocol::Tcp, target)?;
        assert_eq!(outcome.server(), Some("shop/web"), "{outcome}");
    }
    Ok(())
}

fn is_refused(outcome: &Outcome) -> bool {
    *outcome == Outcome::Refused
}

/// ICMP "administratively prohibited": EHOSTUNREACH for IPv4, EACCES for IPv6.
fn is_prohibited(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unreachable { .. })
}

/// Silence is the default, which the conformance tests of ClusterNetworkPolicy want.
#[test]
fn unless_asked_for_a_denial_is_silent() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = start(&node, &[])?;
    for family in Family::ALL {
        for target in [
            scene.pod("shop/web").at(family, 80),
            SocketAddr::new(family.pick(WEB), 8000),
        ] {
            for protocol in Protocol::ALL {
                let outcome = scene.ask_for("lab/probe", protocol, target, LIMIT)?;
                assert_eq!(outcome, Outcome::Timeout, "{protocol} {target}");
            }
        }
    }
    Ok(())
}
