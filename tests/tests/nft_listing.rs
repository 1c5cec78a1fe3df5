//! What administrators see of the tables: `nft list ruleset`, of any age.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::inspect::ruleset;
use tests::node::Node;
use tests::pod::Family;
use tests::scene::Scene;
use tests::traffic::Protocol;
use tests::{command, objects, privilege, programs, require_root};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const CLIENT: &str = "shop/client";

/// services.md 69: with something of every kind; what it prints is what there is, and the same
/// by the `nft` of this machine and by the newest.
#[test]
fn nft_lists_a_node_in_use() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut balanced = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    balanced["spec"]["type"] = "LoadBalancer".into();
    balanced["spec"]["sessionAffinity"] = "ClientIP".into();
    for port in balanced["spec"]["ports"].as_array_mut().expect("ports") {
        port["nodePort"] = 30_080.into();
    }
    balanced["spec"]["externalTrafficPolicy"] = "Local".into();
    balanced["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.0/24", "2001:db8::/32"]);
    balanced["spec"]["externalIPs"] = json!(["203.0.113.9", "2001:db8:9::9"]);
    balanced["status"]["loadBalancer"]["ingress"] =
        json!([{"ip": "203.0.113.1"}, {"ip": "2001:db8:9::1"}]);
    let mut hashed = objects::service(
        "shop/hashed",
        ["10.96.0.11", "fd96::11"],
        &json!({"app": "web"}),
        &[(80, 80)],
    );
    hashed["metadata"]["annotations"] = json!({"trammel.io/scheduler": "sh"});
    let nobody = objects::service(
        "shop/nobody",
        ["10.96.0.12", "fd96::12"],
        &json!({"app": "nobody"}),
        &[(80, 80)],
    );
    let policy = objects::policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"], "egress": [{}],
            "ingress": [{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}],
                "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]}]}),
    );
    let mut pods: Vec<_> = ["shop/web-0", "shop/web-1", "shop/web-2"]
        .map(|key| (key, json!({"app": "web"})))
        .into();
    pods.push((CLIENT, json!({"app": "client"})));
    let by_bridge = [
        "--detect-local-mode",
        "BridgeInterface",
        "--pod-bridge-interface",
        "cni0",
    ];
    let objects = [balanced, hashed, nobody, policy];
    let scene = Scene::start_with(&node, &pods, &objects, &by_bridge)?;
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let target = SocketAddr::new(family.pick(WEB), 8000);
            let outcome = scene.ask(CLIENT, protocol, target)?;
            ensure!(outcome.is_answered(), "{family} {protocol}: {outcome}");
        }
    }
    let text = command::run(node.netns.command("nft").args(["list", "ruleset"]))?;
    for part in [
        "comment \"shop/web:tcp-8000\"",
        "jhash ip saddr mod 3",
        "ip daddr set ct original ip daddr",
        "tcp . 30080",
        "203.0.113.9",
    ] {
        ensure!(text.contains(part), "no {part:?} in\n{text}");
    }
    let objects = ruleset(&node.netns)?;
    let names: BTreeSet<_> = objects
        .iter()
        .flat_map(|object| ["chain", "set", "map"].map(|kind| &object[kind]["name"]))
        .filter_map(Value::as_str)
        .collect();
    ensure!(names.len() > 60, "{names:?}");
    for name in names {
        ensure!(text.contains(name), "{name} is missing in\n{text}");
    }
    // The client is remembered under a group, whose frontends say of which Service it is.
    let groups = text
        .split("map affinity-groups4")
        .nth(1)
        .unwrap_or_default();
    let groups = groups.split("\n\t}").next().unwrap_or_default();
    ensure!(
        groups.contains("comment \"shop/web:tcp-8000\" : 2"),
        "{groups}"
    );
    the_newest_agrees(&node)
}

/// The newest `nft` prints no warning, and of each object as much.
fn the_newest_agrees(node: &Node) -> Result<()> {
    let newest = programs::newest_nft();
    if !newest.exists() {
        privilege::skip("listed by this machine's nft alone, `make setup` found no newer one");
        return Ok(());
    }
    let list = |arguments: &[&str]| -> Result<String> {
        let output = node.netns.command(&newest).args(arguments).output()?;
        let complaints = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && complaints.is_empty(),
            "{arguments:?}: {}, {complaints}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    let text = list(&["list", "ruleset"])?;
    let complaints = text
        .lines()
        .filter(|line| line.starts_with('#') || line.contains("[invalid"));
    let complaints: Vec<_> = complaints.collect();
    ensure!(complaints.is_empty(), "{complaints:?}");
    let listed: Value = serde_json::from_str(&list(&["-j", "list", "ruleset"])?)?;
    let listed = listed["nftables"].as_array().context("a list")?;
    let (newest, here) = (extent(listed), extent(&ruleset(&node.netns)?));
    let differ: BTreeSet<_> = newest
        .keys()
        .chain(here.keys())
        .filter(|name| newest.get(*name) != here.get(*name))
        .collect();
    ensure!(differ.is_empty(), "they differ: {differ:?}");
    Ok(())
}

/// The objects by kind and name, with the number of rules or elements; of those that packets
/// write not, since they come and go.
fn extent(objects: &[Value]) -> BTreeMap<String, usize> {
    let mut extent = BTreeMap::new();
    for object in objects {
        let Some((kind, object)) = object.as_object().and_then(|object| object.iter().next())
        else {
            continue;
        };
        let name =
            |field: &str| format!("{} {} {}", object["family"], object["table"], object[field]);
        match kind.as_str() {
            "rule" => *extent.entry(name("chain")).or_default() += 1,
            "chain" | "set" | "map" => {
                // nft 1.0.6 says of maps only that their elements time out.
                let flags = object["flags"].to_string();
                let is_dynamic = ["dynamic", "timeout"]
                    .iter()
                    .any(|flag| flags.contains(flag));
                let elements = object["elem"].as_array().filter(|_| !is_dynamic);
                *extent.entry(name("name")).or_default() += elements.map_or(0, Vec::len);
                extent.insert(format!("{kind} {}", name("name")), 1);
            }
            _ => {}
        }
    }
    extent
}
