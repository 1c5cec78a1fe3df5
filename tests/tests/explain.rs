//! `explain`, `matrix`, `lint` and `plan` against real packets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::agent;
use tests::inspect;
use tests::matrix::{self, Cell, Expect};
use tests::node::Node;
use tests::objects::{self, policy};
use tests::pod::Family;
use tests::random::Random;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::shop::{app, pods_with_two_fronts, web_for_front};
use tests::traffic::{Protocol, Stream};
use tests::wait::SOON;

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const PORTS: [u16; 2] = [80, 81];

/// Some policies of any kind.
fn random_policies(random: &mut Random) -> Vec<Value> {
    let selectors = [
        json!({}),
        json!({"matchLabels": app("web")}),
        json!({"matchLabels": app("front")}),
    ];
    let peers = [
        json!({"podSelector": {"matchLabels": app("front")}}),
        json!({"namespaceSelector": {"matchLabels": {"team": "lab"}}}),
        json!({"namespaceSelector": {}, "podSelector": {"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": ["probe"]}]}}),
        json!({"ipBlock": {"cidr": "192.0.2.0/24"}}),
        json!({"ipBlock": {"cidr": "2001:db8::/32"}}),
        json!({"ipBlock": {"cidr": "10.88.0.0/24", "except": ["10.88.0.2/31"]}}),
    ];
    let ports = [
        json!([]),
        json!([{"port": 80}]),
        json!([{"port": "udp-81", "protocol": "UDP"}]),
        json!([{"port": 80, "endPort": 90}, {"port": 81, "protocol": "UDP"}]),
    ];
    (0..3)
        .map(|number| {
            let namespace = random.pick(&["shop", "lab"]);
            let rules = |random: &mut Random, list: &str| -> Vec<Value> {
                (0..random.below(3))
                    .map(|_| {
                        let peers: Vec<_> = (0..random.below(3))
                            .map(|_| random.pick(&peers).clone())
                            .collect();
                        json!({list: peers, "ports": random.pick(&ports)})
                    })
                    .collect()
            };
            let types = random
                .pick(&[vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]])
                .clone();
            let spec = json!({
                "podSelector": random.pick(&selectors),
                "policyTypes": types,
                "ingress": rules(random, "from"),
                "egress": rules(random, "to"),
            });
            policy(&format!("{namespace}/p{number}"), &spec)
        })
        .collect()
}

/// What `explain` says of a connection, by its exit status, which has to fit its JSON.
fn explained(node: &Node, from: &str, to: &str) -> Result<(bool, Value)> {
    let output = agent::verb(node, &["explain", from, to, "-o", "json"])?;
    let answer: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| anyhow::anyhow!("{from} {to}: {error}: {output:?}"))?;
    let outcome = answer["outcome"].as_str().unwrap_or_default().to_owned();
    let code = output.status.code();
    ensure!(
        (code, outcome.as_str()) == (Some(0), "allowed")
            || (code == Some(1) && ["denied", "partly"].contains(&outcome.as_str())),
        "{from} {to}: {code:?} {answer:#}"
    );
    Ok((code == Some(0), answer))
}

/// netpol.md 91: random cells; what is explained is what packets do, and the kernel's own
/// tables say the same.
#[test]
fn an_explanation_agrees_with_packets_in_random_cells() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods_with_two_fronts(), &[])?;
    let mut random = Random::new(91);
    let mut answered = 0;
    for round in 0..3 {
        scene.apply(&random_policies(&mut random))?;
        let mut cells = Vec::new();
        for _ in 0..16 {
            let sources: Vec<_> = scene.sources().into_keys().collect();
            let from = random.pick(&sources).clone();
            let targets: Vec<_> = scene
                .pods
                .keys()
                .filter(|to| **to != from)
                .cloned()
                .collect();
            let to = random.pick(&targets).clone();
            let family = *random.pick(&Family::ALL);
            let protocol = *random.pick(&Protocol::ALL);
            let target = scene.pod(&to).at(family, *random.pick(&PORTS));
            let source = match from.as_str() {
                NODE => "node".to_owned(),
                OUTSIDE => family.pick(tests::node::OUTSIDE_IPS).to_string(),
                pod => scene.pod(pod).ip(family).to_string(),
            };
            let (allowed, answer) = explained(&node, &source, &format!("{target}/{protocol}"))?;
            let check = &answer["connections"][0]["kernel"]["check"];
            ensure!(*check == "agrees", "{answer:#}");
            answered += usize::from(allowed);
            cells.push(Cell {
                from,
                to,
                protocol,
                target,
                expect: Expect::answered(allowed),
            });
        }
        matrix::verify(&scene.sources(), &cells)
            .map_err(|error| error.context(format!("round {round}")))?;
    }
    assert!(
        answered > 4 && answered < 44,
        "{answered} of 48 tell nothing"
    );
    Ok(())
}

#[test]
fn a_service_is_explained_to_its_endpoints_and_in_words() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[
            objects::service("shop/web", WEB, &app("web"), &[(8000, 80)]),
            web_for_front(),
        ],
    )?;
    let allowed = scene
        .agent
        .verb(&["explain", "shop/front", "svc/shop/web:8000"])?;
    for part in [
        "allowed",
        "10.96.0.10:8000/TCP",
        "shop/web spec.ingress[0]",
        "agrees: passes",
    ] {
        assert!(allowed.contains(part), "{part} is not in\n{allowed}");
    }
    let (is_allowed, answer) = explained(&node, "lab/front", "10.96.0.10:8000")?;
    assert!(!is_allowed);
    let connection = &answer["connections"][0];
    let endpoint = scene.pod("shop/web").ip(Family::V4).to_string();
    assert_eq!(connection["destination"], json!(endpoint));
    assert_eq!(connection["ingress"]["isolatedBy"], json!(["shop/web"]));
    assert_eq!(connection["kernel"]["check"], "agrees");
    let why = connection["ingress"]["nearest"]["why"].to_string();
    assert!(why.contains("namespaceSelector"), "{why}");

    let unknown = agent::verb(&node, &["explain", "shop/fron", "shop/web:80"])?;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(
        unknown.stderr.contains("did you mean shop/front?"),
        "{unknown:?}"
    );
    Ok(())
}

/// netpol.md 93: what a plan says, packets do after it is applied, and the connections that
/// it says are cut, are.
#[test]
fn a_plan_comes_true() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods_with_two_fronts(), &[])?;
    let new = web_for_front();
    let target: SocketAddr = scene.pod("shop/web").at(Family::V4, 80);
    let open = |from: &str| {
        Stream::open(
            &scene.pod(from).netns,
            Protocol::Tcp,
            target,
            Duration::from_millis(20),
        )
    };
    let (doomed, spared) = (open("lab/probe")?, open("shop/front")?);
    doomed.flows(SOON)?;

    let file = node.dir().join("proposal.json");
    std::fs::write(&file, new.to_string())?;
    let path = file.display().to_string();
    let plan = scene.agent.json(&["plan", &path])?;
    let cut: Vec<_> = inspect::items(&plan["cut"])
        .map(|flow| {
            (
                flow["from"].as_str().unwrap_or_default(),
                flow["to"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(cut, [("lab/probe", "shop/web")], "{plan:#}");
    let changes: BTreeMap<_, _> = inspect::items(&plan["changes"])
        .map(|change| {
            let after = &change["after"];
            (
                after["from"].as_str().unwrap_or_default().to_owned(),
                after["ipv4"]["tcp"].clone(),
            )
        })
        .collect();
    let wanted = [
        ("lab/front", json!([])),
        ("lab/probe", json!([])),
        ("shop/front", json!([[80, 80]])),
    ];
    assert_eq!(
        changes,
        wanted.map(|(from, tcp)| (from.to_owned(), tcp)).into()
    );
    let text = scene.agent.verb(&["plan", &path])?;
    assert!(text.contains("1 of"), "{text}");

    scene.apply(&[new])?;
    spared.flows(SOON)?;
    assert!(
        doomed.flows(Duration::from_secs(2)).is_err(),
        "it should be cut"
    );
    let mut cells = Vec::new();
    for (from, tcp) in changes {
        for port in PORTS {
            let expect = Expect::answered(inspect::items(&tcp).any(|range| range[0] == port));
            let target = scene.pod("shop/web").at(Family::V4, port);
            cells.push(Cell {
                from: from.clone(),
                to: "shop/web".into(),
                protocol: Protocol::Tcp,
                target,
                expect,
            });
        }
    }
    matrix::verify(&scene.sources(), &cells)
}

#[test]
fn matrix_and_lint_print_text_and_json() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(
        &node,
        &pods_with_two_fronts(),
        &[policy(
            "shop/web",
            &json!({"podSelector": {"matchLabels": app("wep")}}),
        )],
    )?;
    let cells = scene.agent.json(&["matrix", "shop"])?;
    assert_eq!(inspect::items(&cells["cells"]).len(), 2, "{cells:#}");
    let text = scene.agent.verb(&["matrix", "shop"])?;
    assert!(text.contains("+ everything"), "{text}");
    let findings = scene.agent.json(&["lint"])?;
    assert_eq!(findings[0]["code"], "selects-nothing", "{findings:#}");
    let text = scene.agent.verb(&["lint", "-n", "shop"])?;
    assert!(text.contains("app=web"), "{text}");
    let unknown = agent::verb(&node, &["matrix", "shap"])?;
    assert!(unknown.stderr.contains("shop"), "{unknown:?}");
    Ok(())
}
