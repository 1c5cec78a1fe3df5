//! NetworkPolicy with real packets.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::matrix::{self, Cell, Expect};
use tests::node::{GATEWAYS, NODE_IPS, Node, OUTSIDE_IPS};
use tests::objects::{self, deny_all, policy};
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::shop::{app, pods_with_two_fronts};
use tests::traffic::{Outcome, Protocol, SHORT, Server, Stream, limit};
use tests::wait::SOON;

/// Expects exactly the attempts in `allowed` (from, to, port) to be answered, of
/// all that lead from any source to any pod, on both ports, over both protocols
/// and families.
fn verify(scene: &Scene<'_>, allowed: impl Fn(&str, &str, u16, Protocol) -> bool) -> Result<()> {
    let mut cells = Vec::new();
    for from in scene.sources().into_keys() {
        for (to, pod) in scene.pods.iter().filter(|(to, _)| **to != from) {
            for (port, protocol) in [80, 81]
                .into_iter()
                .flat_map(|p| Protocol::ALL.map(|q| (p, q)))
            {
                for family in Family::ALL {
                    cells.push(Cell {
                        from: from.clone(),
                        to: to.clone(),
                        protocol,
                        target: pod.at(family, port),
                        expect: Expect::answered(allowed(&from, to, port, protocol)),
                    });
                }
            }
        }
    }
    matrix::verify(&scene.sources(), &cells)
}

#[test]
fn without_a_policy_everybody_reaches_everybody() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods_with_two_fronts(), &[])?;
    verify(&scene, |_, _, _, _| true)
}

/// netpol.md 31, 32, 44.
#[test]
fn a_denied_namespace_is_closed_to_all_but_its_node_and_opens_when_the_policy_goes() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let scene = Scene::start(&node, &pods_with_two_fronts(), &[deny_all("shop")])?;
        verify(&scene, |from, to, _, _| {
            from == NODE || !(from.starts_with("shop/") || to.starts_with("shop/"))
        })?;
        scene.apply(&[])?;
        verify(&scene, |_, _, _, _| true)?;
    }
    Ok(())
}

/// netpol.md 16, 18, 19, 32, 43.
#[test]
fn each_kind_of_peer_and_port_opens_what_it_names_and_no_more() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods_with_two_fronts(), &[])?;
    type Allowed = fn(&str, u16, Protocol) -> bool;
    let tcp_80 = json!([{"port": 80}]);
    let rules: [(&str, Value, Allowed); 7] = [
        (
            "pods of the policy's own namespace",
            json!({"from": [{"podSelector": {"matchLabels": app("front")}}]}),
            |from, _, _| from == "shop/front",
        ),
        (
            "every pod of a namespace",
            json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "lab"}}}]}),
            |from, _, _| from.starts_with("lab/"),
        ),
        (
            "pods by both selectors",
            json!({"from": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [
                {"key": "app", "operator": "NotIn", "values": ["probe", "web"]}]}}]}),
            |from, _, _| from.ends_with("/front"),
        ),
        (
            "addresses outside",
            json!({"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}},
                {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:78::/48"]}}]}),
            |from, _, _| from == OUTSIDE,
        ),
        ("one port", json!({"ports": tcp_80}), |_, port, protocol| {
            (port, protocol) == (80, Protocol::Tcp)
        }),
        (
            "a range of ports and a named one",
            json!({"ports": [{"port": 81, "endPort": 90, "protocol": "UDP"}, {"port": "tcp-81"}]}),
            |_, port, _| port == 81,
        ),
        (
            "a peer at a port",
            json!({"ports": tcp_80, "from": [{"podSelector": {}}]}),
            |from, port, protocol| from == "shop/front" && (port, protocol) == (80, Protocol::Tcp),
        ),
    ];
    for (what, rule, allowed) in rules {
        let spec = json!({"podSelector": {"matchLabels": app("web")}, "ingress": [rule]});
        scene.apply(&[policy("shop/open", &spec)])?;
        verify(&scene, |from, to, port, protocol| {
            to != "shop/web" || from == NODE || allowed(from, port, protocol)
        })
        .context(what)?;
    }
    Ok(())
}

/// netpol.md 35.
#[test]
fn egress_is_judged_at_the_sender_also_towards_the_node_and_outside() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[policy(
            "shop/egress",
            &json!({"podSelector": {"matchLabels": app("web")}, "policyTypes": ["Egress"], "egress": [
                {"to": [{"namespaceSelector": {"matchLabels": {"team": "lab"}}}], "ports": [{"port": 81}]},
                {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]},
            ]}),
        )],
    )?;
    verify(&scene, |from, to, port, protocol| {
        from != "shop/web" || (to.starts_with("lab/") && (port, protocol) == (81, Protocol::Tcp))
    })?;
    let _on_node = Server::start(&node.netns, NODE, &[80])?;
    for (target, answered) in [
        (OUTSIDE_IPS[0], true),
        (OUTSIDE_IPS[1], false),
        (NODE_IPS[0], false),
        (NODE_IPS[1], false),
        (GATEWAYS[0], false),
    ] {
        let target: IpAddr = target.parse()?;
        for from in ["shop/web", "shop/front"] {
            let expected = answered || from == "shop/front";
            let target = (target, 80).into();
            let outcome = scene.ask_for(from, Protocol::Tcp, target, limit(expected))?;
            assert_eq!(
                outcome.is_answered(),
                expected,
                "{from} to {target}: {outcome}"
            );
        }
    }
    Ok(())
}

/// netpol.md 3.
#[test]
fn a_service_is_judged_by_the_endpoint_behind_it() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ips = ["10.96.0.10", "fd96::10"];
    let front = json!([{"podSelector": {"matchLabels": app("front")}}]);
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[
            objects::service("shop/web", ips, &app("web"), &[(8000, 80)]),
            policy(
                "shop/web",
                &json!({"podSelector": {"matchLabels": app("web")},
                    "ingress": [{"from": front, "ports": [{"port": 80}]}]}),
            ),
        ],
    )?;
    for (from, answered) in [
        ("shop/front", true),
        ("lab/front", false),
        ("lab/probe", false),
        (NODE, true),
    ] {
        for family in Family::ALL {
            let target = (family.pick(ips), 8000).into();
            let outcome = scene.ask_for(from, Protocol::Tcp, target, limit(answered))?;
            assert_eq!(
                outcome.is_answered(),
                answered,
                "{from} {family}: {outcome}"
            );
        }
    }
    Ok(())
}

/// netpol.md 60.
#[test]
fn a_pod_that_nobody_has_described_is_closed_until_its_manifest_comes() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods_with_two_fronts(), &[])?;
    scene.add("shop/late")?;
    let reaches = |from: &str, to: &str, expected: bool| -> Result<()> {
        for family in Family::ALL {
            let target = scene.pod(to).at(family, 80);
            let outcome = scene.ask_for(from, Protocol::Tcp, target, limit(expected))?;
            ensure!(
                outcome.is_answered() == expected,
                "{from} to {to}: {outcome}"
            );
        }
        Ok(())
    };
    reaches("shop/late", "shop/web", false)?;
    reaches("shop/web", "shop/late", false)?;
    reaches("shop/web", "shop/front", true).context("the others are not concerned")?;

    let mut all = pods_with_two_fronts();
    all.push(("shop/late", app("late")));
    scene.apply_pods(&all)?;
    reaches("shop/late", "shop/web", true)?;
    reaches("shop/web", "shop/late", true)
}

/// netpol.md 56.
#[test]
fn a_policy_holds_for_a_new_pod_from_its_first_packet() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut all = pods_with_two_fronts();
    let names: Vec<_> = (0..10).map(|n| format!("shop/new-{n}")).collect();
    all.extend(names.iter().map(|name| (name.as_str(), app("new"))));
    let mut scene = Scene::start(&node, &pods_with_two_fronts(), &[deny_all("shop")])?;
    scene.apply_pods(&all)?;
    let target = scene.pod("lab/probe").at(Family::V4, 80);
    for name in &names {
        scene.add(name)?;
        let outcome = scene.ask_for(name, Protocol::Udp, target, SHORT)?;
        assert!(!outcome.is_answered(), "{name}: {outcome}");
    }
    let seen = scene.servers["lab/probe"].seen();
    assert!(seen.is_empty(), "{seen:?}");
    Ok(())
}

/// netpol.md 46, 47.
#[test]
fn a_policy_that_narrows_cuts_open_connections_and_others_do_not() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods_with_two_fronts(), &[])?;
    let probe = &scene.pod("lab/probe").netns;
    let interval = Duration::from_millis(5);
    let mut streams = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let target = scene.pod("shop/web").at(family, 80);
            streams.push(Stream::open(probe, protocol, target, interval)?);
        }
    }
    let all_flow = || streams.iter().try_for_each(|stream| stream.flows(SOON));
    let unrelated = [
        deny_all("elsewhere"),
        policy(
            "lab/x",
            &json!({
        "podSelector": {"matchLabels": app("front")}, "ingress": []}),
        ),
    ];
    scene.apply(&unrelated)?;
    all_flow().context("after a policy for others")?;
    let still_allowed = policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": app("web")},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "lab"}}}]}]}),
    );
    scene.apply(&[still_allowed])?;
    all_flow().context("after a policy that allows it")?;

    scene.apply(&[deny_all("shop")])?;
    for stream in &streams {
        stream.wait_for_cut()?;
    }
    Ok(())
}

/// netpol.md 41.
#[test]
fn a_relabelled_pod_changes_its_policies_and_its_peers() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[policy(
            "shop/web",
            &json!({
        "podSelector": {"matchLabels": app("web")},
        "ingress": [{"from": [{"podSelector": {"matchLabels": app("front")}}]}]}),
        )],
    )?;
    let only_front = |from: &str, to: &str, _: u16, _: Protocol| {
        to != "shop/web" || from == NODE || from == "shop/front"
    };
    verify(&scene, only_front)?;
    let mut changed = pods_with_two_fronts();
    changed[1].1 = app("back");
    scene.apply_pods(&changed)?;
    verify(&scene, |from, to, _, _| to != "shop/web" || from == NODE)?;
    changed[0].1 = app("back");
    scene.apply_pods(&changed)?;
    verify(&scene, |_, _, _, _| true)?;
    scene.apply_pods(&pods_with_two_fronts())?;
    verify(&scene, only_front)
}

/// netpol.md 36: by the Service's address, over both protocols, and nothing beside it.
#[test]
fn a_rule_for_dns_opens_the_dns_service_and_nothing_else() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ips = ["10.96.0.10", "fd96::10"];
    let to = json!([{"namespaceSelector": {"matchLabels": {"team": "lab"}},
        "podSelector": {"matchLabels": app("probe")}}]);
    // The Service's port is 53, that of the pods behind it 80: the rule is about the pods.
    let dns = json!([{"protocol": "UDP", "port": 80}, {"protocol": "TCP", "port": "tcp-80"}]);
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[
            objects::service("lab/dns", ips, &app("probe"), &[(53, 80), (54, 81)]),
            policy(
                "shop/dns",
                &json!({"podSelector": {}, "policyTypes": ["Egress"],
                    "egress": [{"to": to, "ports": dns}]}),
            ),
        ],
    )?;
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let asks = [
                (53, "shop/web", true),
                (54, "shop/web", false),
                (54, "lab/front", true),
            ];
            for (port, from, answered) in asks {
                let target = (family.pick(ips), port).into();
                let outcome = scene.ask_for(from, protocol, target, limit(answered))?;
                let text = format!("{from} {family} {protocol} {port}: {outcome}");
                assert_eq!(outcome.is_answered(), answered, "{text}");
            }
            let front = scene.pod("lab/front").at(family, 80);
            let outcome = scene.ask_for("shop/web", protocol, front, SHORT)?;
            assert!(!outcome.is_answered(), "{family} {protocol}: {outcome}");
        }
    }
    Ok(())
}

/// netpol.md 40: who may send nothing learns of a Service without endpoints what everybody
/// does.
#[test]
fn a_service_without_endpoints_refuses_pods_under_any_policy() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ips = ["10.96.0.10", "fd96::10"];
    let service = objects::service("lab/none", ips, &app("nobody"), &[(80, 80)]);
    let scene = Scene::start(&node, &pods_with_two_fronts(), &[service, deny_all("shop")])?;
    for from in ["shop/web", "lab/front"] {
        for family in Family::ALL {
            let outcome = scene.ask(from, Protocol::Tcp, (family.pick(ips), 80).into())?;
            assert_eq!(outcome, Outcome::Refused, "{from} {family}");
        }
    }
    Ok(())
}

/// netpol.md 42: the labels of a namespace make its pods peers, and live flows follow.
#[test]
fn a_relabelled_namespace_changes_whom_a_policy_means() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let spec = json!({"podSelector": {}, "ingress": [
        {"from": [{"namespaceSelector": {"matchLabels": {"trusted": "yes"}}}]}]});
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[policy("shop/trusted", &spec)],
    )?;
    let relabel = |labels: Value| -> Result<()> {
        // The file sorts before the others': the first that names an object counts.
        node.manifests
            .write("namespaces", &[objects::namespace("lab", &labels)])?;
        scene.agent.wait()
    };
    let target = scene.pod("shop/web").at(Family::V6, 80);
    let reaches = || -> Result<bool> {
        let outcome = scene.ask_for("lab/probe", Protocol::Tcp, target, SHORT)?;
        Ok(outcome.is_answered())
    };
    assert!(!reaches()?);
    relabel(json!({"trusted": "yes"}))?;
    let probe = &scene.pod("lab/probe").netns;
    let stream = Stream::open(probe, Protocol::Tcp, target, Duration::from_millis(5))?;
    relabel(json!({"trusted": "no"}))?;
    stream.wait_for_cut()?;
    assert!(!reaches()?);
    Ok(())
}
