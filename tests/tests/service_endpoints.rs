//! Which Services are served and which endpoints are chosen, with real connections: what
//! conditions, hints and labels say, and what open connections notice of a change.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::node::{GATEWAYS, NODE_IPS, NODE_NAME, Node, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::traffic::{self, Outcome, PATIENT, Protocol, SHORT, Server, Stream, ask};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 2] = ["shop/web-0", "shop/web-1"];
/// Connections of one look: of two endpoints one is missed in 1 of 2 billion.
const LOOKS: u16 = 32;

fn pods() -> Vec<(&'static str, Value)> {
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": "web"}))).into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

/// Its endpoints are given.
fn web() -> Value {
    objects::service("shop/web", WEB, &json!({}), &[(8000, 80)])
}

fn at(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// Slices of both families; `endpoints` are addresses with what else is said of them.
fn slices(endpoints: &[([String; 2], Value)]) -> Vec<Value> {
    let slice = |(index, family): (usize, &str)| {
        let endpoints = endpoints.iter().map(|(addresses, said)| {
            let mut endpoint = json!({"addresses": [addresses[index]], "nodeName": NODE_NAME});
            for (field, value) in said.as_object().into_iter().flatten() {
                endpoint[field] = value.clone();
            }
            endpoint
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "shop", "name": format!("web-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [
                {"name": "tcp-8000", "port": 80, "protocol": "TCP"},
                {"name": "udp-8000", "port": 80, "protocol": "UDP"},
            ],
        })
    };
    ["IPv4", "IPv6"]
        .into_iter()
        .enumerate()
        .map(slice)
        .collect()
}

/// Both pods as endpoints, of which this is said.
fn of_pods(scene: &Scene<'_>, said: [Value; 2]) -> Vec<Value> {
    let addresses = ENDPOINTS.map(|key| {
        let pod = scene.pod(key);
        Family::ALL.map(|family| pod.ip(family).to_string())
    });
    slices(&addresses.into_iter().zip(said).collect::<Vec<_>>())
}

/// The Service with the pods as its endpoints.
fn serve(scene: &Scene<'_>, said: [Value; 2]) -> Result<()> {
    let mut objects = of_pods(scene, said);
    objects.push(web());
    scene.apply(&objects)
}

/// Who answers; nobody where connections are refused.
fn servers(scene: &Scene<'_>, family: Family) -> Result<BTreeSet<String>> {
    scene.pod(CLIENT).netns.enter(move || {
        let mut servers = BTreeSet::new();
        for _ in 0..LOOKS {
            match ask(Protocol::Tcp, at(family), PATIENT) {
                Outcome::Answered { server, .. } => {
                    servers.insert(server);
                }
                Outcome::Refused => {}
                other => anyhow::bail!("{family}: {other}"),
            }
        }
        Ok(servers)
    })?
}

/// These answer in both families, and no others.
fn answers(scene: &Scene<'_>, expected: &[&str]) -> Result<()> {
    for family in Family::ALL {
        let found = servers(scene, family)?;
        ensure!(found.iter().eq(expected), "{family}: {found:?}");
    }
    Ok(())
}

fn ready() -> Value {
    json!({"conditions": {"ready": true}})
}

fn conditions(ready: bool, serving: bool, terminating: bool) -> Value {
    json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

/// services.md 26, 28, 29.
#[test]
fn endpoints_are_chosen_by_their_conditions() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let unready = || conditions(false, false, false);
    let leaving = || conditions(false, true, true);
    let gone = || conditions(false, false, true);
    let [first, second] = ENDPOINTS;
    for (said, expected) in [
        ([ready(), ready()], &[first, second][..]),
        ([ready(), unready()], &[first]),
        ([leaving(), ready()], &[second]),
        ([leaving(), leaving()], &[first, second]),
        ([gone(), leaving()], &[second]),
        ([ready(), leaving()], &[first]),
        ([gone(), unready()], &[]),
    ] {
        serve(&scene, said.clone())?;
        answers(&scene, expected).with_context(|| format!("{said:?}"))?;
    }
    Ok(())
}

/// services.md 27.
#[test]
fn endpoints_that_are_published_regardless_need_not_be_ready() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let mut objects: Vec<_> = pods()
        .iter()
        .map(|(key, labels)| {
            let mut pod = objects::pod(key, labels, &[80, 81]);
            pod["status"]["conditions"][0]["status"] = "False".into();
            pod
        })
        .collect();
    objects.push(objects::namespace("shop", &json!({})));
    node.manifests.write("pods", &objects)?;
    for publishes in [false, true, false] {
        let app = json!({"app": "web"});
        let mut service = objects::service("shop/web", WEB, &app, &[(8000, 80)]);
        service["spec"]["publishNotReadyAddresses"] = publishes.into();
        scene.apply(&[service])?;
        let expected = if publishes { &ENDPOINTS[..] } else { &[] };
        answers(&scene, expected).with_context(|| format!("published: {publishes}"))?;
    }
    Ok(())
}

/// services.md 30.
#[test]
fn hints_keep_connections_on_the_node_or_in_its_zone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let own_node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE_NAME, "labels": {"topology.kubernetes.io/zone": "here"}},
    });
    node.manifests.write("node", &[own_node])?;
    let zone = |name: &str| json!({"hints": {"forZones": [{"name": name}]}});
    let both = |zone: &str, node: &str| json!({"hints": {"forZones": [{"name": zone}], "forNodes": [{"name": node}]}});
    let [first, second] = ENDPOINTS;
    for (said, expected) in [
        ([zone("here"), zone("there")], &[first][..]),
        ([zone("here"), ready()], &[first, second]),
        ([zone("there"), zone("there")], &[first, second]),
        ([both("here", "n9"), both("there", NODE_NAME)], &[second]),
        ([both("here", "n9"), both("there", "n9")], &[first]),
    ] {
        serve(&scene, said.clone())?;
        answers(&scene, expected).with_context(|| format!("{said:?}"))?;
    }
    Ok(())
}

/// services.md 13.
#[test]
fn a_service_that_becomes_another_proxys_or_a_name_is_not_served_until_it_is_back() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let labelled = |label: &str| {
        let mut service = web();
        service["metadata"]["labels"] = json!({label: "other"});
        service
    };
    let mut alias = web();
    alias["spec"]["type"] = "ExternalName".into();
    alias["spec"]["externalName"] = "web.example.com".into();
    for other in [
        labelled("service.kubernetes.io/service-proxy-name"),
        labelled("service.kubernetes.io/headless"),
        alias,
    ] {
        serve(&scene, [ready(), ready()])?;
        for family in Family::ALL {
            assert_eq!(servers(&scene, family)?.len(), 2, "{family}");
        }
        let mut objects = of_pods(&scene, [ready(), ready()]);
        objects.push(other.clone());
        scene.apply(&objects)?;
        for family in Family::ALL {
            let outcome = scene.ask_for(CLIENT, Protocol::Tcp, at(family), SHORT)?;
            ensure!(!outcome.is_answered(), "{family} {other}: {outcome}");
        }
        let listed = scene.agent.verb(&["services"])?;
        ensure!(!listed.contains("shop/web"), "{listed}");
    }
    Ok(())
}

/// services.md 25.
#[test]
fn the_internal_policy_local_leads_to_this_node_or_nowhere() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    let on = |name: &str| json!({"nodeName": name});
    let [first, _] = ENDPOINTS;
    for (said, expected) in [
        ([on(NODE_NAME), on("n2")], Some(first)),
        ([on("n2"), on("n2")], None),
    ] {
        let mut service = web();
        service["spec"]["internalTrafficPolicy"] = "Local".into();
        let mut objects = of_pods(&scene, said.clone());
        objects.push(service);
        scene.apply(&objects)?;
        for family in Family::ALL {
            for source in [CLIENT, NODE] {
                for _ in 0..8 {
                    let limit = traffic::limit(expected.is_some());
                    let outcome = scene.ask_for(source, Protocol::Tcp, at(family), limit)?;
                    ensure!(outcome.server() == expected, "{source} {said:?}: {outcome}");
                    // Endpoints are there, and may come here.
                    ensure!(outcome != Outcome::Refused, "{source} {said:?}");
                }
            }
        }
    }
    Ok(())
}

/// services.md 7: pods see each other without it (5).
#[test]
fn all_that_goes_through_a_service_comes_from_the_node_on_demand() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start_with(&node, &pods(), &[web()], &["--masquerade-all"])?;
    serve(&scene, [ready(), ready()])?;
    for family in Family::ALL {
        let outcome = scene.ask(CLIENT, Protocol::Tcp, at(family))?;
        let Outcome::Answered { peer, .. } = &outcome else {
            panic!("{family}: {outcome}")
        };
        assert_eq!(
            peer.ip(),
            family.pick(GATEWAYS),
            "the node's, on the bridge"
        );
    }
    Ok(())
}

/// services.md 34.
#[test]
fn an_endpoint_outside_the_cluster_sees_the_pod_that_asks() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut objects = slices(&[(OUTSIDE_IPS.map(str::to_owned), json!({"nodeName": null}))]);
    objects.push(web());
    let scene = Scene::start(&node, &pods(), &objects)?;
    for family in Family::ALL {
        let outcome = scene.ask(CLIENT, Protocol::Tcp, at(family))?;
        let Outcome::Answered { server, peer } = &outcome else {
            panic!("{family}: {outcome}")
        };
        assert_eq!(server, OUTSIDE);
        assert_eq!(peer.ip(), scene.pod(CLIENT).ip(family), "not masqueraded");
    }
    Ok(())
}

/// services.md 44: it may finish what it does, also when it is no endpoint any more.
#[test]
fn a_connection_to_an_endpoint_that_terminates_goes_on() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web()])?;
    serve(&scene, [ready(), conditions(false, false, false)])?;
    let client = &scene.pod(CLIENT).netns;
    let open = |family| Stream::open(client, Protocol::Tcp, at(family), Duration::from_millis(50));
    let streams: Vec<_> = Family::ALL.into_iter().map(open).collect::<Result<_>>()?;
    for said in [
        conditions(false, true, true),
        conditions(false, false, true),
    ] {
        serve(&scene, [said, ready()])?;
        for (family, stream) in Family::ALL.into_iter().zip(&streams) {
            stream.flows(PATIENT)?;
            let found = servers(&scene, family)?;
            ensure!(found.iter().eq(&[ENDPOINTS[1]]), "{family}: {found:?}");
        }
    }
    let mut left = of_pods(&scene, [ready(), ready()]);
    for slice in &mut left {
        let endpoints = slice["endpoints"].as_array_mut().context("endpoints")?;
        endpoints.remove(0);
    }
    left.push(web());
    scene.apply(&left)?;
    streams.iter().try_for_each(|stream| stream.flows(PATIENT))
}

/// services.md 66.
#[test]
fn a_load_balancer_with_the_nodes_address_takes_its_own_ports_alone() -> Result<()> {
    require_root!();
    const OWN_PORT: u16 = 9_999;
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let mut service = web();
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["allocateLoadBalancerNodePorts"] = false.into();
    let ingress = NODE_IPS.map(|ip| json!({"ip": ip}));
    service["status"]["loadBalancer"]["ingress"] = json!(ingress);
    let mut objects = of_pods(&scene, [ready(), ready()]);
    objects.push(service);
    scene.apply(&objects)?;
    let _server = Server::start(&node.netns, "the-node", &[OWN_PORT])?;
    for family in Family::ALL {
        let of_node = |port| SocketAddr::new(family.pick(NODE_IPS), port);
        let outcome = scene.ask(OUTSIDE, Protocol::Tcp, of_node(8000))?;
        let server = outcome.server().with_context(|| outcome.to_string())?;
        ensure!(ENDPOINTS.contains(&server), "{family}: {server}");
        let outcome = scene.ask(OUTSIDE, Protocol::Tcp, of_node(OWN_PORT))?;
        assert_eq!(outcome.server(), Some("the-node"), "{family}: {outcome}");
        node.outside.ping(family.pick(NODE_IPS))?;
    }
    Ok(())
}
