//! ClusterNetworkPolicy with real packets. Its semantics in full are the table tests of
//! policy-agent; here the kernel is asked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::node::{NODE_IPS, NODE_NAME, Node, OUTSIDE_IPS};
use tests::objects::{self, cluster_policy, deny_all};
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::traffic::{Protocol, Server, Stream, limit};
use tests::wait::SOON;

fn pods() -> Vec<(&'static str, Value)> {
    ["shop/web", "shop/front", "lab/probe"]
        .map(|key| (key, json!({"app": key.split_once('/').expect("a key").1})))
        .into()
}

fn team(name: &str) -> Value {
    json!({"namespaces": {"matchLabels": {"team": name}}})
}

/// A policy on the pods of shop.
fn on_shop(name: &str, tier: &str, priority: u16, rules: &Value) -> Value {
    let mut spec = json!({"tier": tier, "priority": priority, "subject": team("shop")});
    for (side, list) in rules.as_object().expect("rules by side") {
        spec[side] = list.clone();
    }
    cluster_policy(name, &spec)
}

/// Whether an attempt at port 80 is answered, in both families alike, within a time that fits
/// what is expected.
fn answered(scene: &Scene<'_>, from: &str, to: &str, expected: bool) -> Result<bool> {
    let mut outcomes = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let target = scene.pod(to).at(family, 80);
            outcomes.push(scene.ask_for(from, protocol, target, limit(expected))?);
        }
    }
    let all = outcomes.iter().all(|outcome| outcome.is_answered());
    let none = outcomes.iter().all(|outcome| !outcome.is_answered());
    assert!(all || none, "{from} to {to}: {outcomes:?}");
    Ok(all)
}

/// netpol.md 85, 86, 89.
#[test]
fn tiers_decide_before_and_after_network_policies() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let accept_lab = json!({"action": "Accept", "from": [team("lab")]});
    let deny_lab = json!({"action": "Deny", "from": [team("lab")]});
    let pass_lab = json!({"action": "Pass", "from": [team("lab")]});
    let admin = |rules: Value| on_shop("admin", "Admin", 10, &json!({"ingress": rules}));
    let baseline = on_shop("base", "Baseline", 10, &json!({"ingress": [deny_lab]}));
    let closed = deny_all("shop");
    let cases: [(&str, Vec<Value>, bool, bool); 7] = [
        ("Baseline", vec![baseline.clone()], false, true),
        ("Admin denies", vec![admin(json!([deny_lab]))], false, true),
        (
            "Admin accepts against Baseline",
            vec![admin(json!([accept_lab, deny_lab])), baseline.clone()],
            true,
            true,
        ),
        (
            "Admin accepts against a NetworkPolicy",
            vec![admin(json!([accept_lab])), closed.clone()],
            true,
            false,
        ),
        (
            "Admin passes to a NetworkPolicy",
            vec![admin(json!([pass_lab, accept_lab])), closed],
            false,
            false,
        ),
        (
            "Admin passes to Baseline",
            vec![admin(json!([pass_lab, accept_lab])), baseline],
            false,
            true,
        ),
        (
            "Admin passes to nobody",
            vec![admin(json!([pass_lab]))],
            true,
            true,
        ),
    ];
    for (what, objects, from_lab, from_shop) in cases {
        scene.apply(&objects)?;
        assert_eq!(
            answered(&scene, "lab/probe", "shop/web", from_lab)?,
            from_lab,
            "{what}"
        );
        assert_eq!(
            answered(&scene, "shop/front", "shop/web", from_shop)?,
            from_shop,
            "{what}"
        );
        assert!(
            answered(&scene, NODE, "shop/web", true)?,
            "{what}: the node is exempt"
        );
    }
    Ok(())
}

/// netpol.md 88, 90: networks, nodes by their labels, and what is not understood.
#[test]
fn egress_to_networks_and_nodes_follows_the_rules_in_order() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let to = |action: &str, peer: Value| json!({"action": action, "to": [peer]});
    let node_object = |labels: Value| {
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": NODE_NAME, "labels": labels},
            "status": {"addresses": NODE_IPS.map(|ip| json!({"type": "InternalIP", "address": ip}))}})
    };
    let rules = json!({"egress": [
        to("Accept", json!({"nodes": {"matchLabels": {"dns": "yes"}}})),
        to("Accept", json!({"networks": [format!("{}/32", OUTSIDE_IPS[0])]})),
        to("Deny", json!({"networks": ["0.0.0.0/0", "::/0"]})),
    ]});
    let policy = on_shop("out", "Admin", 10, &rules);
    let scene = Scene::start(
        &node,
        &pods(),
        &[node_object(json!({"dns": "yes"})), policy.clone()],
    )?;
    let _on_node = Server::start(&node.netns, NODE, &[80])?;
    let reaches = |from: &str, ip: &str, expected: bool| -> Result<()> {
        let target = (ip.parse::<std::net::IpAddr>()?, 80).into();
        let outcome = scene.ask_for(from, Protocol::Tcp, target, limit(expected))?;
        ensure!(
            outcome.is_answered() == expected,
            "{from} to {ip}: {outcome}"
        );
        Ok(())
    };
    for ip in NODE_IPS {
        reaches("shop/web", ip, true)?;
    }
    reaches("shop/web", OUTSIDE_IPS[0], true)?;
    reaches("shop/web", OUTSIDE_IPS[1], false)?;
    reaches("lab/probe", OUTSIDE_IPS[1], true).context("not a subject")?;
    assert!(!answered(&scene, "shop/web", "lab/probe", false)?);
    assert!(
        answered(&scene, OUTSIDE, "shop/web", true)?,
        "the other direction"
    );

    scene.apply(&[node_object(json!({})), policy])?;
    for ip in NODE_IPS {
        reaches("shop/web", ip, false).context("the node has lost its label")?;
    }

    // A peer of a version to come: the Accept rule is void, the Deny rule denies all.
    for action in ["Accept", "Deny"] {
        let unknown = json!({"egress": [
            {"action": action, "to": [{"workloads": {}}]},
            to("Deny", json!({"networks": [format!("{}/32", OUTSIDE_IPS[0])]})),
        ]});
        scene.apply(&[on_shop("out", "Admin", 10, &unknown)])?;
        reaches("shop/web", OUTSIDE_IPS[0], false).context(action)?;
        reaches("shop/web", OUTSIDE_IPS[1], action == "Accept").context(action)?;
        let status = scene.agent.json(&["status"])?;
        let problems = status["problems"].to_string();
        assert!(problems.contains("ClusterNetworkPolicy out"), "{problems}");
        assert!(
            problems.contains("spec.egress[0].to[0].workloads"),
            "{problems}"
        );
    }
    Ok(())
}

/// netpol.md 30: NetworkPolicy cannot keep a pod from its own Service, a tier can.
#[test]
fn a_pod_reaches_itself_by_its_service_unless_a_tier_denies_it() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ips = ["10.96.0.10", "fd96::10"];
    let service = objects::service("shop/web", ips, &json!({"app": "web"}), &[(8000, 80)]);
    let scene = Scene::start(&node, &pods(), &[service.clone(), deny_all("shop")])?;
    let reaches_itself = |expected: bool| -> Result<Vec<bool>> {
        let ask = |family: Family| {
            let target = (family.pick(ips), 8000).into();
            Ok(scene
                .ask_for("shop/web", Protocol::Tcp, target, limit(expected))?
                .is_answered())
        };
        Family::ALL.into_iter().map(ask).collect()
    };
    assert_eq!(
        reaches_itself(true)?,
        [true, true],
        "under a NetworkPolicy that denies all"
    );
    let deny = json!({"ingress": [{"action": "Deny", "from": [team("shop")]}]});
    scene.apply(&[service, on_shop("self", "Admin", 10, &deny)])?;
    assert_eq!(
        reaches_itself(false)?,
        [false, false],
        "denied by the Admin tier"
    );
    assert!(answered(&scene, "lab/probe", "shop/web", true)?);
    Ok(())
}

/// netpol.md 46 for tiers: also where a set that is denied gains a member.
#[test]
fn a_tier_that_denies_cuts_live_flows_and_spares_others() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let interval = Duration::from_millis(5);
    let open = |from: &str| {
        let target = scene.pod("shop/web").at(Family::V6, 80);
        Stream::open(&scene.pod(from).netns, Protocol::Tcp, target, interval)
    };
    let (denied, allowed) = (open("lab/probe")?, open("shop/front")?);
    let bad = json!({"pods": {"podSelector": {"matchLabels": {"quarantine": "yes"}}}});
    let deny = json!({"ingress": [{"action": "Deny", "from": [bad]}]});
    scene.apply(&[on_shop("quarantine", "Admin", 0, &deny)])?;
    denied.flows(SOON).context("nobody is in quarantine")?;
    let mut all = pods();
    all[2].1["quarantine"] = "yes".into();
    scene.apply_pods(&all)?;
    denied.wait_for_cut()?;
    allowed.flows(SOON)?;
    let listed = scene.agent.json(&["policies"])?;
    assert_eq!(listed[0]["policy"], "quarantine", "{listed}");
    assert_eq!(
        listed[0]["tier"],
        json!({"name": "Admin", "priority": 0}),
        "{listed}"
    );
    assert_eq!(
        listed[0]["isolatesIngress"],
        json!(["shop/front", "shop/web"]),
        "{listed}"
    );
    assert!(
        scene.agent.verify()?.status.success(),
        "the kernel holds what is desired"
    );
    Ok(())
}
