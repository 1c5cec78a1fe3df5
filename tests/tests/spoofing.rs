//! Pods that pretend: addresses of others, hardware addresses of others, ways
//! around the node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::inspect;
use tests::node::{GATEWAYS, NODE_IPS, Node, WAYS};
use tests::objects::deny_all;
use tests::pod::Family;
use tests::require_root;
use tests::scene::Scene;
use tests::traffic::{Protocol, SHORT, send_from};
use tests::wait::{SOON, eventually};

/// Two namespaces; the thief is `lab/probe`.
fn pods() -> Vec<(&'static str, Value)> {
    ["shop/web", "shop/front", "lab/probe"]
        .map(|key| (key, json!({"app": "any"})))
        .into()
}

/// netpol.md 73.
#[test]
fn a_pod_cannot_speak_for_an_address_that_is_not_its_own() -> Result<()> {
    require_root!();
    for (mode, bridge_nf) in WAYS {
        let node = Node::with_mode(mode, bridge_nf)?;
        let scene = Scene::start(&node, &pods(), &[])?;
        let thief = &scene.pod("lab/probe").netns;
        let victim = scene.pod("shop/front");
        let node_ips = NODE_IPS.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        for family in Family::ALL {
            let target = scene.pod("shop/web").at(family, 80);
            let node_ip = node_ips[usize::from(family == Family::V6)];
            let own = scene.pod("lab/probe").ip(family);
            for forged in [victim.ip(family), node_ip] {
                let (length, nodad) = if forged.is_ipv4() {
                    (32, "")
                } else {
                    (128, " nodad")
                };
                thief.ip(&format!("address add {forged}/{length} dev eth0{nodad}"))?;
                thief.enter(move || send_from(forged, target, "forged"))??;
                thief.ip(&format!("address del {forged}/{length} dev eth0"))?;
            }
            thief.enter(move || send_from(own, target, "own"))??;
            let seen = eventually(SOON, || {
                let seen = scene.servers["shop/web"].seen();
                let seen: Vec<_> = seen.iter().map(|seen| seen.peer.ip()).collect();
                seen.contains(&own)
                    .then_some(seen)
                    .context("the pod's own datagram is not there")
            })?;
            let forged: Vec<_> = seen
                .0
                .iter()
                .filter(|ip| Family::of(**ip) == family && **ip != own)
                .collect();
            assert!(forged.is_empty(), "{mode}: {forged:?} arrived");
        }
    }
    Ok(())
}

/// netpol.md 73.
#[test]
fn a_pod_cannot_take_over_a_neighbours_address_on_the_bridge() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let (thief, victim) = (scene.pod("lab/probe"), scene.pod("shop/front"));
    let neighbours = || -> Result<BTreeMap<String, Value>> {
        let all = node.netns.ip_json("neigh show dev cbr0")?;
        let entry =
            |entry: &Value| Some((entry["dst"].as_str()?.to_owned(), entry["lladdr"].clone()));
        Ok(inspect::items(&all).filter_map(entry).collect())
    };
    for family in Family::ALL {
        node.netns.ping(victim.ip(family))?;
        let ip = victim.ip(family);
        let before = neighbours()?;
        let (length, option) = if ip.is_ipv4() {
            (32, "")
        } else {
            (128, " nodad")
        };
        thief
            .netns
            .ip(&format!("address add {ip}/{length} dev eth0{option}"))?;
        thief.netns.ip("neigh flush all")?;
        let gateway = family.pick(GATEWAYS);
        let from = thief
            .netns
            .command("ping")
            .args([
                "-n",
                "-q",
                "-c2",
                "-i0.2",
                "-W1",
                "-I",
                &ip.to_string(),
                &gateway.to_string(),
            ])
            .output()?;
        assert!(
            !from.status.success(),
            "the gateway answered {ip} at the wrong port"
        );
        assert_eq!(
            neighbours()?.get(&ip.to_string()),
            before.get(&ip.to_string()),
            "{family}"
        );
        thief
            .netns
            .ip(&format!("address del {ip}/{length} dev eth0"))?;
        node.netns.ping(ip).context("the victim is still there")?;
    }
    Ok(())
}

/// netpol.md 73.
#[test]
fn a_pod_with_another_hardware_address_is_cut_off() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let thief = &scene.pod("lab/probe").netns;
    thief.ip("link set eth0 address 02:00:00:00:00:66")?;
    for family in Family::ALL {
        let target = scene.pod("shop/web").at(family, 80);
        let outcome = scene.ask_for("lab/probe", Protocol::Udp, target, SHORT)?;
        assert!(!outcome.is_answered(), "{family}: {outcome}");
    }
    assert!(scene.servers["shop/web"].seen().is_empty());
    Ok(())
}

/// netpol.md 74.
#[test]
fn a_route_of_its_own_to_a_neighbour_takes_no_pod_past_its_policy() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let scene = Scene::start(&node, &pods(), &[deny_all("shop")])?;
        let (probe, web) = (scene.pod("lab/probe"), scene.pod("shop/web"));
        for family in Family::ALL {
            // On the link, with the neighbour's own hardware address.
            let (ip, mac) = (
                web.ip(family),
                web.netns.ip_json("link show eth0")?[0]["address"].take(),
            );
            let mac = mac.as_str().context("a link has an address")?.to_owned();
            probe.netns.ip(&format!("route replace {ip} dev eth0"))?;
            probe.netns.ip(&format!(
                "neigh replace {ip} lladdr {mac} dev eth0 nud permanent"
            ))?;
            let outcome = scene.ask_for("lab/probe", Protocol::Udp, web.at(family, 80), SHORT)?;
            assert!(!outcome.is_answered(), "{family}: {outcome}");
        }
        assert!(
            scene.servers["shop/web"].seen().is_empty(),
            "bridge-nf {bridge_nf}"
        );
    }
    Ok(())
}
