//! ClusterNetworkPolicies on audit, with real packets.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::matrix::{self, Cell, Expect};
use tests::node::{Node, OUTSIDE_IPS};
use tests::objects::cluster_policy;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::shop::{app, pods};
use tests::traffic::Protocol;
use tests::wait::{SOON, eventually};

/// Of what reaches the shop: front may do everything, lab not TCP 80, and nobody UDP 81.
fn tried(tier: &str, audit: bool) -> Value {
    let team = |name: &str| json!({"namespaces": {"matchLabels": {"team": name}}});
    let front = json!({"pods": {"podSelector": {"matchLabels": app("front")}}});
    let at = |protocol: &str, port: u16| json!([{protocol: {"destinationPort": {"number": port}}}]);
    let mut policy = cluster_policy(
        "try",
        &json!({"tier": tier, "priority": 10, "subject": team("shop"), "ingress": [
            {"action": "Accept", "from": [front]},
            {"action": "Deny", "from": [team("lab")], "protocols": at("tcp", 80)},
            {"action": "Deny", "from": [{"namespaces": {}}], "protocols": at("udp", 81)},
        ]}),
    );
    policy["metadata"]["annotations"] = json!({"trammel.io/audit": audit.to_string()});
    policy
}

fn is_denied(cell: &Cell) -> bool {
    let is_at = |protocol, port| (cell.protocol, cell.target.port()) == (protocol, port);
    cell.from == "lab/probe" && (is_at(Protocol::Tcp, 80) || is_at(Protocol::Udp, 81))
}

fn cells(scene: &Scene<'_>) -> Vec<Cell> {
    let mut cells = Vec::new();
    for from in ["shop/front", "lab/probe", OUTSIDE, NODE] {
        for family in Family::ALL {
            for port in [80, 81] {
                for protocol in Protocol::ALL {
                    cells.push(Cell {
                        from: from.to_owned(),
                        to: "shop/web".to_owned(),
                        protocol,
                        target: scene.pod("shop/web").at(family, port),
                        expect: Expect::answered(true),
                    });
                }
            }
        }
    }
    cells
}

/// What was told: source, destination, protocol.
fn told(path: &Path, by: &str) -> Result<BTreeSet<(String, String, String)>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut told = BTreeSet::new();
    for line in whole.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if record["verdict"] != "wouldBeDenied" || record["policies"] != json!([by]) {
            continue;
        }
        ensure!(record["reason"] == "audit", "{record:#}");
        let end = &record["destination"];
        let target = SocketAddr::new(
            end["address"].as_str().unwrap_or_default().parse()?,
            u16::try_from(end["port"].as_u64().unwrap_or_default())?,
        );
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let source = text(&record["source"]["address"]);
        told.insert((source, target.to_string(), text(&record["protocol"])));
    }
    Ok(told)
}

/// netpol.md 92 for tiers: a policy on audit denies and accepts nothing, and tells exactly
/// what it would deny.
#[test]
fn a_tier_on_audit_tells_exactly_what_enforcing_it_would_deny() -> Result<()> {
    require_root!();
    for tier in ["Admin", "Baseline"] {
        let node = Node::new()?;
        let path = node.dir().join("denied.json");
        let log = path.display().to_string();
        let objects = [tried(tier, true)];
        let scene = Scene::start_with(&node, &pods(), &objects, &["--verdict-log", &log])?;
        let mut cells = cells(&scene);
        matrix::verify(&scene.sources(), &cells).context("on audit everything passes")?;
        let source = |cell: &Cell| match cell.from.as_str() {
            OUTSIDE => Family::of(cell.target.ip()).pick(OUTSIDE_IPS),
            pod => scene.pod(pod).ip(Family::of(cell.target.ip())),
        };
        let wanted: BTreeSet<_> = cells
            .iter()
            .filter(|cell| is_denied(cell))
            .map(|cell| {
                let ends = (source(cell).to_string(), cell.target.to_string());
                (ends.0, ends.1, cell.protocol.to_string())
            })
            .collect();
        assert_eq!(wanted.len(), 4);
        let by = format!("{tier} try");
        eventually(SOON, || {
            let told = told(&path, &by)?;
            ensure!(told == wanted, "told {told:#?}, wanted {wanted:#?}");
            Ok(())
        })?;
        let target = scene.pod("shop/web").at(Family::V4, 80);
        let asked = ["explain", "lab/probe", &target.to_string(), "-o", "json"];
        let explained = tests::agent::verb(&node, &asked)?;
        let explained: Value = serde_json::from_str(&explained.stdout)?;
        let ingress = &explained["connections"][0]["ingress"];
        assert_eq!(ingress["decision"], "notIsolated", "{ingress:#}");
        assert_eq!(ingress["wouldBeDeniedBy"], json!([by]), "{ingress:#}");

        let listed = scene.agent.json(&["policies"])?;
        assert_eq!(listed[0]["audit"], true, "{listed:#}");
        assert_eq!(listed[0]["isolatesIngress"], json!([]), "{listed:#}");

        // Enforced, it denies just these.
        scene.apply(&[tried(tier, false)])?;
        for cell in &mut cells {
            cell.expect = Expect::answered(!is_denied(cell));
        }
        matrix::verify(&scene.sources(), &cells).context("enforced")?;
        let listed = scene.agent.json(&["policies"])?;
        assert_eq!(
            listed[0]["isolatesIngress"],
            json!(["shop/front", "shop/web"])
        );
        // And back: what was denied passes again.
        scene.apply(&[tried(tier, true)])?;
        for cell in &mut cells {
            cell.expect = Expect::answered(true);
        }
        matrix::verify(&scene.sources(), &cells).context("on audit again")?;
        assert!(scene.agent.verify()?.status.success());
    }
    Ok(())
}
