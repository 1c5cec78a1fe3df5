//! Node ports, load balancer addresses and external IPs with real connections: from outside
//! the cluster, from pods and from the node, to endpoints here and on another host.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::command;
use tests::matrix::{self, Cell, Expect};
use tests::node::{NODE_IPS, Node, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::traffic::{Outcome, PATIENT, Protocol, SHORT, udp_to};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const VIP: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const EXTERNAL: [&str; 2] = ["203.0.113.20", "2001:db8:113::20"];
const RANGES: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];
const NODE_PORT: u16 = 30_080;
/// What the other host serves UDP on, too.
const SHARED_PORT: u16 = 81;
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 2] = ["shop/web-0", "shop/web-1"];

fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": "web"}))).into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

/// A Service of type LoadBalancer; its port 8000 is the pods' 80, over TCP and UDP.
fn balanced(change: impl FnOnce(&mut Value)) -> Value {
    let mut service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    service["spec"]["type"] = "LoadBalancer".into();
    for port in service["spec"]["ports"].as_array_mut().expect("ports") {
        port["nodePort"] = NODE_PORT.into();
    }
    service["spec"]["externalIPs"] = json!(EXTERNAL);
    service["status"]["loadBalancer"]["ingress"] = json!(VIP.map(|ip| json!({"ip": ip})));
    change(&mut service);
    service
}

fn local(service: &mut Value) {
    service["spec"]["externalTrafficPolicy"] = "Local".into();
}

/// The endpoint on another host, which is the neighbour outside.
fn elsewhere() -> Vec<Value> {
    objects::slices("shop/web", OUTSIDE_IPS, "n2", &[(8000, 80)]).into()
}

/// A node to which its neighbour routes the addresses from outside the cluster.
fn routed() -> Result<Node> {
    let node = Node::new()?;
    for (range, via) in RANGES.into_iter().zip(NODE_IPS) {
        node.outside.ip(&format!("route add {range} via {via}"))?;
    }
    Ok(node)
}

fn at(ips: [&str; 2], family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.pick(ips), port)
}

fn ways() -> impl Iterator<Item = (Family, Protocol)> {
    let families = Family::ALL.into_iter();
    families.flat_map(|family| Protocol::ALL.map(|protocol| (family, protocol)))
}

/// Every external frontend of the Service in the family.
fn frontends(family: Family) -> [SocketAddr; 3] {
    [
        at(NODE_IPS, family, NODE_PORT),
        at(VIP, family, 8000),
        at(EXTERNAL, family, 8000),
    ]
}

fn cells(from: &[&str], targets: impl Fn(Family) -> Vec<SocketAddr>, expect: &Expect) -> Vec<Cell> {
    let mut cells = Vec::new();
    for source in from {
        for (family, protocol) in ways() {
            cells.extend(targets(family).into_iter().map(|target| Cell {
                from: (*source).to_owned(),
                to: "the Service".to_owned(),
                protocol,
                target,
                expect: expect.clone(),
            }));
        }
    }
    cells
}

fn served_by(endpoints: &[&str]) -> Expect {
    Expect::Answer(endpoints.iter().map(ToString::to_string).collect())
}

fn verify(scene: &Scene<'_>, from: &[&str], expect: &Expect) -> Result<()> {
    let cells = cells(from, |family| frontends(family).into(), expect);
    matrix::verify(&scene.sources(), &cells)
}

/// services.md 1, 14, 17, 18.
#[test]
fn every_frontend_is_answered_from_everywhere() -> Result<()> {
    require_root!();
    let node = routed()?;
    let scene = Scene::start(&node, &pods(), &[balanced(|_| ())])?;
    let from = [OUTSIDE, CLIENT, NODE, ENDPOINTS[0]];
    verify(&scene, &from, &served_by(&ENDPOINTS))?;
    // Not on addresses that are not the node's, not on other ports.
    let others = |family: Family| vec![at(VIP, family, NODE_PORT), at(NODE_IPS, family, 8000)];
    let observed = matrix::observe(
        &scene.sources(),
        &cells(&[OUTSIDE, CLIENT], others, &Expect::Silence),
    )?;
    let answered: Vec<_> = observed
        .iter()
        .filter(|cell| cell.outcome.is_answered())
        .collect();
    ensure!(answered.is_empty(), "{answered:?}");
    Ok(())
}

fn peer(scene: &Scene<'_>, from: &str, protocol: Protocol, target: SocketAddr) -> Result<IpAddr> {
    let outcome = scene.ask(from, protocol, target)?;
    let Outcome::Answered { peer, .. } = &outcome else {
        anyhow::bail!("{from} {protocol} {target}: {outcome}")
    };
    Ok(peer.ip())
}

/// services.md 5, 6, 22: who is seen, with either policy, and live from one to the other (24).
#[test]
fn the_policy_local_keeps_the_address_of_a_client_outside() -> Result<()> {
    require_root!();
    let node = routed()?;
    let scene = Scene::start(&node, &pods(), &[balanced(|_| ())])?;
    for is_local in [false, true, false] {
        let service = balanced(|service| {
            if is_local {
                local(service);
            }
        });
        scene.apply(&[service])?;
        for (family, protocol) in ways() {
            let outside: IpAddr = OUTSIDE_IPS[usize::from(family == Family::V6)].parse()?;
            let pod = scene.pod(CLIENT).ip(family);
            for target in frontends(family) {
                let seen = peer(&scene, OUTSIDE, protocol, target)?;
                ensure!((seen == outside) == is_local, "{protocol} {target}: {seen}");
                let seen = peer(&scene, CLIENT, protocol, target)?;
                ensure!((seen == pod) == is_local, "{protocol} {target}: {seen}");
            }
            let seen = peer(&scene, CLIENT, protocol, at(WEB, family, 8000))?;
            assert_eq!(seen, pod, "a cluster IP keeps pods' addresses");
            let seen = peer(&scene, OUTSIDE, protocol, at(WEB, family, 8000))?;
            assert_ne!(seen, outside, "answers must come back through the node");
        }
    }
    Ok(())
}

/// services.md 22.
#[test]
fn without_a_local_endpoint_only_the_cluster_reaches_those_elsewhere() -> Result<()> {
    require_root!();
    let node = routed()?;
    let mut objects = elsewhere();
    objects.push(balanced(local));
    let scene = Scene::start(&node, &pods(), &objects)?;
    verify(&scene, &[CLIENT, NODE], &served_by(&[OUTSIDE]))?;
    verify(&scene, &[OUTSIDE], &Expect::Silence)
}

/// services.md 20, 21.
#[test]
fn source_ranges_close_load_balancer_addresses_and_nothing_else() -> Result<()> {
    require_root!();
    let node = routed()?;
    let restricted = |ranges: &[&str]| {
        balanced(|service| {
            service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
            service["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        })
    };
    let pod_ranges = ["10.88.0.0/24", " fd88::/64 "];
    let scene = Scene::start(&node, &pods(), &[restricted(&pod_ranges)])?;
    let vip = |family: Family| vec![at(VIP, family, 8000)];
    let others = |family: Family| {
        let [node_port, _, external] = frontends(family);
        vec![node_port, external]
    };
    let served = served_by(&ENDPOINTS);
    let mut expected = cells(&[CLIENT], vip, &served);
    expected.extend(cells(&[OUTSIDE], vip, &Expect::Silence));
    expected.extend(cells(&[OUTSIDE, CLIENT], others, &served));
    matrix::verify(&scene.sources(), &expected)?;

    scene.apply(&[restricted(&["192.0.2.0/24", "2001:db8:77::/64"])])?;
    let mut expected = cells(&[OUTSIDE, NODE], vip, &served);
    expected.extend(cells(&[CLIENT], vip, &Expect::Silence));
    matrix::verify(&scene.sources(), &expected)?;

    scene.apply(&[restricted(&["0.0.0.0/0", "::/0"])])?;
    matrix::verify(
        &scene.sources(),
        &cells(&[OUTSIDE, NODE, CLIENT], vip, &served),
    )
}

/// services.md 8, 9, 11, 19.
#[test]
fn what_nothing_serves_is_refused_at_once() -> Result<()> {
    require_root!();
    let node = routed()?;
    // Errors to one host are limited to one a second.
    node.netns.sysctl("net.ipv4.icmp_ratelimit", 0)?;
    node.netns.sysctl("net.ipv6.icmp.ratelimit", 0)?;
    let none = pods()
        .into_iter()
        .map(|(key, _)| (key, json!({"app": "none"})));
    let none: Vec<_> = none.collect();
    let scene = Scene::start(&node, &none, &[balanced(|_| ())])?;
    verify(&scene, &[OUTSIDE, CLIENT], &Expect::Refusal)?;
    scene.apply_pods(&pods())?;
    let closed = |family: Family| vec![at(WEB, family, 8001)];
    let refused = cells(&[OUTSIDE, CLIENT], closed, &Expect::Refusal);
    matrix::verify(&scene.sources(), &refused)?;
    for family in Family::ALL {
        let answer = scene.pod(CLIENT).netns.ping_for(family.pick(WEB), SHORT);
        ensure!(answer.is_err(), "a cluster IP answers no ping");
    }
    // A load balancer that is a proxy sends to node ports: its address is left to it.
    scene.apply(&[balanced(|service| {
        for entry in service["status"]["loadBalancer"]["ingress"]
            .as_array_mut()
            .expect("a list")
        {
            entry["ipMode"] = "Proxy".into();
        }
    })])?;
    let vip = |family: Family| vec![at(VIP, family, 8000)];
    let observed = matrix::observe(&scene.sources(), &cells(&[OUTSIDE], vip, &Expect::Silence))?;
    ensure!(
        observed.iter().all(|cell| !cell.outcome.is_answered()),
        "{observed:?}"
    );
    Ok(())
}

/// A client that keeps its port.
fn keeps_port(scene: &Scene<'_>, from: &str, target: SocketAddr) -> Result<UdpSocket> {
    let sources = scene.sources();
    let netns = sources.get(from).context("a source")?;
    netns.enter(move || -> Result<UdpSocket> {
        let socket = udp_to(target)?;
        socket.set_read_timeout(Some(PATIENT))?;
        Ok(socket)
    })?
}

/// Asks again where a datagram is lost, as UDP's clients must.
fn server_of(socket: &UdpSocket) -> Result<String> {
    let mut buffer = [0; 512];
    socket.set_nonblocking(true)?;
    while socket.recv(&mut buffer).is_ok() {}
    socket.set_nonblocking(false)?;
    let ask = |buffer: &mut [u8]| socket.send(b"?").and_then(|_| socket.recv(buffer));
    let length = ask(&mut buffer).or_else(|error| match error.kind() {
        ErrorKind::WouldBlock => ask(&mut buffer),
        _ => Err(error),
    })?;
    let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let name = line.split_whitespace().next();
    Ok(name.unwrap_or_default().to_owned())
}

/// services.md 40, 41, 42, 43.
#[test]
fn udp_flows_to_every_frontend_follow_the_endpoints_and_no_others_do() -> Result<()> {
    require_root!();
    let node = routed()?;
    // The node port has the number of a port of the other host.
    let service = || {
        balanced(|service| {
            for port in service["spec"]["ports"].as_array_mut().expect("ports") {
                port["nodePort"] = SHARED_PORT.into();
            }
        })
    };
    let scene = Scene::start(&node, &pods(), &[service()])?;
    for family in Family::ALL {
        let targets = [
            at(NODE_IPS, family, SHARED_PORT),
            at(VIP, family, 8000),
            at(EXTERNAL, family, 8000),
        ];
        let unrelated = keeps_port(&scene, CLIENT, at(OUTSIDE_IPS, family, SHARED_PORT))?;
        assert_eq!(server_of(&unrelated)?, OUTSIDE);
        let source = unrelated.local_addr()?;
        let sockets = targets.map(|target| keeps_port(&scene, OUTSIDE, target));
        for socket in sockets {
            let socket = socket?;
            let first = server_of(&socket)?;
            let mut others = pods();
            for (key, labels) in &mut others {
                if *key == first {
                    *labels = json!({"app": "retired"});
                }
            }
            scene.apply_pods(&others)?;
            let second = server_of(&socket)?;
            ensure!(
                first != second && ENDPOINTS.contains(&&*second),
                "{first}, {second}"
            );
            scene.apply_pods(&pods())?;
            assert_eq!(server_of(&socket)?, second);
        }
        scene.apply(&[])?;
        let flows = command::run(
            node.netns
                .command("conntrack")
                .args(["-L", "-p", "udp", "-f"])
                .arg(match family {
                    Family::V4 => "ipv4",
                    Family::V6 => "ipv6",
                }),
        )?;
        let ours = format!("sport={} dport={SHARED_PORT}", source.port());
        ensure!(
            flows.contains(&ours),
            "the flow to another host is gone:\n{flows}"
        );
        let stale = flows.lines().filter(|flow| flow.contains("dport=8000"));
        assert_eq!(stale.collect::<Vec<_>>(), [""; 0], "the Service is gone");
        scene.apply(&[service()])?;
        assert_eq!(server_of(&unrelated)?, OUTSIDE);
    }
    Ok(())
}

/// The schedulers that an annotation can name.
#[test]
fn an_annotation_chooses_how_connections_are_spread() -> Result<()> {
    require_root!();
    let node = routed()?;
    let scheduled = |name: &str| {
        balanced(|service| {
            service["metadata"]["annotations"] = json!({"trammel.io/scheduler": name});
        })
    };
    let scene = Scene::start(&node, &pods(), &[scheduled("rr")])?;
    let servers = |target: SocketAddr, count: usize| -> Result<Vec<String>> {
        let ask = |_| -> Result<String> {
            let outcome = scene.ask(OUTSIDE, Protocol::Tcp, target)?;
            Ok(outcome.server().context("an answer")?.to_owned())
        };
        (0..count).map(ask).collect()
    };
    for family in Family::ALL {
        let seen = servers(at(VIP, family, 8000), 8)?;
        ensure!(
            seen.windows(2).all(|pair| pair[0] != pair[1]),
            "one after the other: {seen:?}"
        );
    }
    for name in ["sh", "mh"] {
        scene.apply(&[scheduled(name)])?;
        for family in Family::ALL {
            let seen: BTreeSet<_> = servers(at(VIP, family, 8000), 12)?.into_iter().collect();
            assert_eq!(seen.len(), 1, "{name}: a client stays");
        }
    }
    let listed = command::run(
        node.netns
            .command("nft")
            .args(["list", "table", "inet", "trammel"]),
    )?;
    ensure!(listed.contains("source-hash-251"), "a Maglev table");
    scene.apply(&[scheduled("lc")])?;
    let problems = scene.agent.verb(&["status"])?;
    ensure!(
        problems.contains("use random, rr, wrr, sh or mh"),
        "{problems}"
    );
    verify(&scene, &[OUTSIDE], &served_by(&ENDPOINTS))
}
