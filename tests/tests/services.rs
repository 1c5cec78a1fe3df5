//! ClusterIP Services with real connections: both protocols, both families.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tests::matrix::{self, Cell, Expect, LIMIT};
use tests::node::{Node, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::traffic::{Hammer, Outcome, PATIENT, Protocol, Tally, ask, udp_to};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const ENDPOINTS: [&str; 3] = ["shop/web-0", "shop/web-1", "shop/web-2"];

/// Three endpoints and two clients; the Service's port 8000 is the pods' 80.
fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": "web"}))).into();
    pods.push(("shop/client", json!({"app": "client"})));
    pods.push(("other/visitor", json!({"app": "client"})));
    pods
}

fn web() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)])
}

fn at(ips: [&str; 2], family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.pick(ips), port)
}

/// Every way to ask the Service: family and protocol.
fn ways() -> impl Iterator<Item = (Family, Protocol)> {
    Family::ALL
        .into_iter()
        .flat_map(|family| Protocol::ALL.map(|protocol| (family, protocol)))
}

/// The Service asked from each source, by any of these servers.
fn cells(from: &[&str], ips: [&str; 2], port: u16, expect: &Expect) -> Vec<Cell> {
    let mut cells = Vec::new();
    for source in from {
        for (family, protocol) in ways() {
            cells.push(Cell {
                from: (*source).to_owned(),
                to: "the Service".to_owned(),
                protocol,
                target: at(ips, family, port),
                expect: expect.clone(),
            });
        }
    }
    cells
}

fn endpoints() -> Expect {
    Expect::Answer(ENDPOINTS.map(str::to_owned).into())
}

#[test]
fn a_cluster_ip_is_answered_by_its_endpoints_from_pods_node_and_endpoints_themselves() -> Result<()>
{
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let scene = Scene::start(&node, &pods(), &[web()])?;
        let from = [
            "shop/client",
            "other/visitor",
            NODE,
            "shop/web-0",
            "shop/web-1",
        ];
        matrix::verify(&scene.sources(), &cells(&from, WEB, 8000, &endpoints()))?;
        let refused = cells(&["shop/client", NODE], WEB, 8001, &Expect::Silence);
        let observed = matrix::observe(&scene.sources(), &refused)?;
        assert!(
            observed.iter().all(|cell| !cell.outcome.is_answered()),
            "{observed:?}"
        );
    }
    Ok(())
}

#[test]
fn an_endpoint_sees_the_address_of_the_pod_that_asks() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    for (family, protocol) in ways() {
        let outcome = scene.ask("shop/client", protocol, at(WEB, family, 8000))?;
        let Outcome::Answered { peer, .. } = &outcome else {
            panic!("{family}: {outcome}")
        };
        assert_eq!(peer.ip(), scene.pod("shop/client").ip(family));
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let own = [("shop/own", json!({"app": "own"}))];
        let service = objects::service("shop/own", WEB, &json!({"app": "own"}), &[(8000, 80)]);
        let scene = Scene::start(&node, &own, &[service])?;
        let answer = Expect::Answer(vec!["shop/own".to_owned()]);
        matrix::verify(&scene.sources(), &cells(&["shop/own"], WEB, 8000, &answer))?;
    }
    Ok(())
}

/// services.md 2: within 10 % where that is more than five standard deviations, in the other ways
/// within six.
#[test]
fn connections_are_spread_evenly_over_the_endpoints() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    for (family, protocol) in ways() {
        let (connections, tolerance) = match (family, protocol) {
            (Family::V4, Protocol::Tcp) => (6_000, 200),
            _ => (600, 70),
        };
        let target = at(WEB, family, 8000);
        let tally = scene.pod("shop/client").netns.enter(move || {
            let mut tally = Tally::default();
            (0..connections).for_each(|_| tally.count(ask(protocol, target, PATIENT)));
            tally
        })?;
        assert_eq!(
            tally.answered(),
            connections,
            "{family} {protocol}: {tally:?}"
        );
        for endpoint in ENDPOINTS {
            let share: usize = tally.answers.get(endpoint).copied().unwrap_or(0);
            assert!(
                share.abs_diff(connections / 3) <= tolerance,
                "{family} {protocol}: {tally:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn endpoints_come_and_go_without_a_failed_connection_to_the_others() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let client = &scene.pod("shop/client").netns;
    let hammers = ways()
        .map(|(family, protocol)| {
            let target = at(WEB, family, 8000);
            Hammer::start(client, protocol, target, PATIENT, Duration::from_millis(1))
        })
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..5 {
        for gone in [vec![2], vec![1, 2], vec![0], vec![]] {
            let mut pods = pods();
            for index in &gone {
                pods[*index].1 = json!({"app": "retired"});
            }
            scene.apply_pods(&pods)?;
            let left = ENDPOINTS
                .iter()
                .enumerate()
                .filter(|(index, _)| !gone.contains(index));
            let left = Expect::Answer(left.map(|(_, key)| (*key).to_owned()).collect());
            let cells: Vec<_> = (0..6)
                .flat_map(|_| cells(&["other/visitor"], WEB, 8000, &left))
                .collect();
            matrix::verify(&scene.sources(), &cells)?;
        }
    }
    for hammer in hammers {
        let tally = hammer.stop()?;
        assert!(tally.answered() > 50 && tally.failed() == 0, "{tally:?}");
    }
    Ok(())
}

#[test]
fn a_udp_client_that_keeps_its_port_is_not_left_with_an_endpoint_that_is_gone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    for family in Family::ALL {
        let target = at(WEB, family, 8000);
        let client = &scene.pod("shop/client").netns;
        let socket = client.enter(move || -> std::io::Result<UdpSocket> {
            let socket = udp_to(target)?;
            socket.set_read_timeout(Some(PATIENT))?;
            Ok(socket)
        })??;
        let first = server_of(&socket)?;
        assert_eq!(server_of(&socket)?, first, "a flow stays where it is");
        let mut others = pods();
        for (key, labels) in &mut others {
            if *key == first {
                *labels = json!({"app": "retired"});
            }
        }
        scene.apply_pods(&others)?;
        let second = server_of(&socket)?;
        assert_ne!(second, first, "{family}");
        assert!(ENDPOINTS.contains(&&*second), "{family}: {second}");
        scene.apply_pods(&pods())?;
        assert_eq!(
            server_of(&socket)?,
            second,
            "{family}: others are left alone"
        );
    }
    Ok(())
}

/// Who answers on a socket that is used again.
fn server_of(socket: &UdpSocket) -> Result<String> {
    let mut buffer = [0; 512];
    socket.send(b"?")?;
    let length = socket.recv(&mut buffer)?;
    let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(line
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

#[test]
fn a_pod_that_is_not_ready_is_no_endpoint() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let mut unready = objects::pod("shop/web-0", &json!({"app": "web"}), &[80, 81]);
    unready["status"]["conditions"][0]["status"] = json!("False");
    let mut manifests: Vec<_> = pods()[1..]
        .iter()
        .map(|(key, labels)| objects::pod(key, labels, &[80, 81]))
        .collect();
    manifests.push(unready);
    node.manifests.write("pods", &manifests)?;
    scene.agent.wait()?;
    let ready = Expect::Answer(ENDPOINTS[1..].iter().map(|key| (*key).to_owned()).collect());
    let cells: Vec<_> = (0..8)
        .flat_map(|_| cells(&["shop/client"], WEB, 8000, &ready))
        .collect();
    matrix::verify(&scene.sources(), &cells)
}

#[test]
fn a_service_without_endpoints_refuses_at_once_and_answers_with_its_first() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut none = pods();
    for (_, labels) in &mut none[..3] {
        *labels = json!({"app": "retired"});
    }
    let scene = Scene::start(&node, &none, &[web()])?;
    let from = ["shop/client", NODE];
    for source in from {
        for (family, protocol) in ways() {
            let outcome = scene.ask(source, protocol, at(WEB, family, 8000))?;
            // The node's own datagram is refused before it leaves the socket.
            let refused = match &outcome {
                Outcome::Unreachable { reason } => {
                    source == NODE && reason.contains("Operation not permitted")
                }
                outcome => *outcome == Outcome::Refused,
            };
            assert!(refused, "{source} {family} {protocol}: {outcome:?}");
        }
    }
    scene.apply_pods(&pods())?;
    matrix::verify(&scene.sources(), &cells(&from, WEB, 8000, &endpoints()))
}

#[test]
fn a_service_that_is_gone_answers_no_more_and_another_takes_its_address() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let from = ["shop/client", NODE];
    scene.apply(&[])?;
    let gone = matrix::observe(&scene.sources(), &cells(&from, WEB, 8000, &Expect::Silence))?;
    assert!(
        gone.iter().all(|cell| !cell.outcome.is_answered()),
        "{gone:?}"
    );
    let client = json!({"app": "client"});
    scene.apply(&[objects::service("shop/other", WEB, &client, &[(8000, 81)])])?;
    let answer = Expect::Answer(vec!["shop/client".to_owned()]);
    matrix::verify(&scene.sources(), &cells(&from, WEB, 8000, &answer))
}

#[test]
fn ports_of_one_service_lead_to_their_own_targets() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut service = web();
    service["spec"]["ports"] = json!([
        {"name": "one", "port": 8000, "targetPort": "tcp-80"},
        {"name": "two", "port": 8001, "targetPort": 81, "protocol": "TCP"},
        {"name": "three", "port": 8001, "targetPort": "udp-80", "protocol": "UDP"},
    ]);
    let scene = Scene::start(&node, &pods(), &[service])?;
    let served = [
        (Protocol::Tcp, 8000, 80),
        (Protocol::Tcp, 8001, 81),
        (Protocol::Udp, 8001, 80),
    ];
    for (protocol, port, _) in served {
        for family in Family::ALL {
            let outcome = scene.ask("shop/client", protocol, at(WEB, family, port))?;
            assert!(
                outcome.is_answered(),
                "{family} {protocol} {port}: {outcome}"
            );
        }
    }
    let mut seen = BTreeMap::new();
    for seen_by in ENDPOINTS.iter().flat_map(|key| scene.servers[*key].seen()) {
        *seen.entry((seen_by.protocol, seen_by.port)).or_insert(0) += 1;
    }
    let ports: Vec<_> = seen.into_keys().collect();
    let expected = [
        (Protocol::Tcp, 80),
        (Protocol::Tcp, 81),
        (Protocol::Udp, 80),
    ];
    assert_eq!(ports, expected, "{served:?}");
    let target = at(WEB, Family::V4, 8000);
    let outcome = scene.ask_for("shop/client", Protocol::Udp, target, LIMIT)?;
    assert!(!outcome.is_answered(), "TCP only: {outcome}");
    Ok(())
}

#[test]
fn slices_of_a_service_without_selector_lead_outside_the_cluster() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut service = web();
    service["spec"]["selector"] = Value::Null;
    let slices = [("IPv4", OUTSIDE_IPS[0]), ("IPv6", OUTSIDE_IPS[1])].map(|(family, ip)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "shop", "name": format!("web-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
            "ports": [
                {"name": "tcp-8000", "port": 80, "protocol": "TCP"},
                {"name": "udp-8000", "port": 81, "protocol": "UDP"},
            ],
        })
    });
    let objects: Vec<_> = std::iter::once(service).chain(slices).collect();
    let scene = Scene::start(&node, &pods(), &objects)?;
    let answer = Expect::Answer(vec![OUTSIDE.to_owned()]);
    matrix::verify(
        &scene.sources(),
        &cells(&["shop/client", NODE], WEB, 8000, &answer),
    )
}
