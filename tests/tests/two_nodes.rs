//! NetworkPolicy between two nodes, each with an agent of its own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::netns::NetNs;
use tests::node::{Node, PODS_V4, PODS_V6};
use tests::objects::{self, policy};
use tests::pod::{Family, Pod};
use tests::require_root;
use tests::scene::{PORTS, ShownLog};
use tests::shop::app;
use tests::traffic::{Protocol, Server, Stream, ask, limit};

const NODE_PORT: u16 = 30080;

/// Two nodes with agents. Its parts end in the order of the fields.
struct Pair<'n> {
    agents: [Agent<'n>; 2],
    _logs: [ShownLog; 2],
    nodes: &'n [Node; 2],
}

impl<'n> Pair<'n> {
    fn start(nodes: &'n [Node; 2]) -> Result<Self> {
        let agents = [Agent::start(&nodes[0])?, Agent::start(&nodes[1])?];
        let _logs = agents
            .each_ref()
            .map(|agent| ShownLog::of(agent.log_path()));
        Ok(Self {
            agents,
            _logs,
            nodes,
        })
    }

    /// Replaces the manifests of both and waits until both kernels have them.
    fn apply(&self, objects: &[Value]) -> Result<()> {
        self.nodes[0].manifests.write("objects", objects)?;
        self.agents.iter().try_for_each(Agent::wait)
    }
}

fn namespaces() -> Vec<Value> {
    let nodes = ["n1", "n2"].map(|name| {
        json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name}})
    });
    let shop = objects::namespace("shop", &json!({"team": "shop"}));
    [&nodes[..], &[shop]].concat()
}

/// A pod of that node with the addresses that the API knows.
fn pod(key: &str, labels: &Value, node: &Node, ips: &[IpAddr]) -> Value {
    let mut pod = objects::pod(key, labels, &PORTS);
    pod["spec"]["nodeName"] = node.name.clone().into();
    pod["status"]["podIPs"] = ips.iter().map(|ip| json!({"ip": ip})).collect();
    pod
}

/// Whether it is answered, within a time that fits what is expected.
fn answers(netns: &NetNs, target: SocketAddr, expected: bool) -> Result<bool> {
    let outcome = netns.enter(move || ask(Protocol::Tcp, target, limit(expected)))?;
    Ok(outcome.is_answered())
}

/// netpol.md 32: a node reaches its own pods whatever policies say, another's only where an
/// ipBlock has its address.
#[test]
fn another_node_is_an_address_like_any_other() -> Result<()> {
    require_root!();
    let nodes = Node::pair()?;
    let pair = Pair::start(&nodes)?;
    let mut objects = namespaces();
    objects.push(pod("shop/web", &app("web"), &nodes[1], &[]));
    pair.apply(&objects)?;
    let web = Pod::add(&nodes[1], "shop/web")?;
    let _server = Server::start(&web.netns, "web", &PORTS)?;
    objects[3] = pod("shop/web", &app("web"), &nodes[1], web.ips());
    let blocks: Vec<_> = Family::ALL
        .map(|family| {
            let ip = nodes[0].link_ip(family);
            json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}})
        })
        .into();
    for (rules, allowed) in [
        (json!([]), false),
        (json!([{"from": [{"namespaceSelector": {}}]}]), false),
        (json!([{"from": blocks}]), true),
    ] {
        let spec = json!({"podSelector": {}, "ingress": rules});
        let with_policy = [&objects[..], &[policy("shop/web", &spec)]].concat();
        pair.apply(&with_policy)?;
        for family in Family::ALL {
            let target = web.at(family, 80);
            assert!(
                answers(&nodes[1].netns, target, true)?,
                "its own node, {family}"
            );
            let other = answers(&nodes[0].netns, target, allowed)?;
            assert_eq!(other, allowed, "the other node, {family}, {rules}");
        }
    }
    Ok(())
}

/// A node port for the pods with that label.
fn node_port(external_policy: &str) -> Value {
    let mut service = objects::service(
        "shop/web",
        ["10.96.0.10", "fd96::10"],
        &app("web"),
        &[(8000, 80)],
    );
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["externalTrafficPolicy"] = external_policy.into();
    service["spec"]["ports"] = json!([{"name": "tcp-8000", "port": 8000, "targetPort": 80,
        "protocol": "TCP", "nodePort": NODE_PORT}]);
    service
}

/// netpol.md 33, 34: on the node that it enters by a connection from outside has the client's
/// address, with either policy; on the next it has the first node's, which is nobody's own
/// node there.
#[test]
fn a_client_of_a_node_port_is_judged_by_the_address_that_the_node_sees() -> Result<()> {
    require_root!();
    let nodes = Node::pair()?;
    let pair = Pair::start(&nodes)?;
    for (number, external_policy, on) in [(0, "Cluster", 0), (1, "Local", 0), (2, "Cluster", 1)] {
        let key = format!("shop/web-{number}");
        let mut objects = namespaces();
        objects.push(node_port(external_policy));
        objects.push(pod(&key, &app("web"), &nodes[on], &[]));
        pair.apply(&objects)?;
        let web = Pod::add(&nodes[on], &key)?;
        let _server = Server::start(&web.netns, "web", &PORTS)?;
        objects[4] = pod(&key, &app("web"), &nodes[on], web.ips());
        for family in Family::ALL {
            let entry = SocketAddr::new(nodes[0].ip(family), NODE_PORT);
            let outside = &nodes[0].outside;
            let block = |ip: IpAddr| {
                let length = if ip.is_ipv4() { 32 } else { 128 };
                json!([{"from": [{"ipBlock": {"cidr": format!("{ip}/{length}")}}]}])
            };
            let of_client = block(nodes[0].outside_ip(family));
            let of_node = block(nodes[0].link_ip(family));
            // The pod is behind the entry node only in the third case.
            let (client_opens, node_opens) = (on == 0, on == 1);
            for (rules, allowed) in [
                (json!([]), false),
                (of_client, client_opens),
                (of_node, node_opens),
            ] {
                let spec = json!({"podSelector": {}, "ingress": rules});
                let with_policy = [&objects[..], &[policy("shop/web", &spec)]].concat();
                pair.apply(&with_policy)?;
                let answered = answers(outside, entry, allowed)?;
                assert_eq!(answered, allowed, "{external_policy}, {family}, {rules}");
            }
        }
    }
    Ok(())
}

/// netpol.md 53, 57: an address that moves between nodes, from one pod to another, has the
/// rights of its new pod everywhere, and a live flow of the old one's is cut.
#[test]
fn an_address_that_moves_to_another_node_has_the_new_pods_rights() -> Result<()> {
    require_root!();
    let nodes = Node::pair()?;
    let pair = Pair::start(&nodes)?;
    let moving: [IpAddr; 2] = ["10.88.0.200".parse()?, "fd88::200".parse()?];
    let ranges = json!({"ipam": {"ranges": [
        [{"subnet": PODS_V4, "rangeStart": moving[0], "rangeEnd": moving[0]}],
        [{"subnet": PODS_V6, "rangeStart": moving[1], "rangeEnd": moving[1]}],
    ]}});
    // The second node has pods of the same range, and a route to each on the first.
    for range in [PODS_V4, PODS_V6] {
        nodes[1].netns.ip(&format!("route del {range}"))?;
    }
    nodes[1].write_conflist(&nodes[1].conflist(ranges.clone()))?;
    let only_front = policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": app("web")}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": app("front")}}]}]}),
    );
    let mut objects = namespaces();
    objects.extend([
        only_front,
        pod("shop/web", &app("web"), &nodes[0], &[]),
        pod("shop/front", &app("front"), &nodes[1], &[]),
    ]);
    pair.apply(&objects)?;
    let web = Pod::add(&nodes[0], "shop/web")?;
    let _server = Server::start(&web.netns, "web", &PORTS)?;
    objects[4] = pod("shop/web", &app("web"), &nodes[0], web.ips());

    // A peer on the other node.
    route(&nodes[0], &moving, Some(&nodes[1]))?;
    route(&nodes[1], web.ips(), Some(&nodes[0]))?;
    let front = Pod::add(&nodes[1], "shop/front")?;
    objects[5] = pod("shop/front", &app("front"), &nodes[1], front.ips());
    pair.apply(&objects)?;
    let target = web.at(Family::V4, 80);
    assert!(answers(&front.netns, target, true)?);
    let live = Stream::open(
        &front.netns,
        Protocol::Tcp,
        target,
        Duration::from_millis(10),
    )?;

    // The address becomes that of a pod on this node that is no peer.
    objects[5] = pod("shop/other", &app("other"), &nodes[0], front.ips());
    pair.apply(&objects)?;
    live.wait_for_cut()?;
    front.del()?;
    drop(live);
    route(&nodes[0], &moving, None)?;
    nodes[0].write_conflist(&nodes[0].conflist(ranges))?;
    let other = Pod::add(&nodes[0], "shop/other")?;
    assert_eq!(other.ips(), front.ips(), "the address is used again");
    for family in Family::ALL {
        assert!(
            !answers(&other.netns, web.at(family, 80), false)?,
            "{family}"
        );
    }
    // And with the label of a peer it is one at once.
    objects[5] = pod("shop/other", &app("front"), &nodes[0], other.ips());
    pair.apply(&objects)?;
    for family in Family::ALL {
        assert!(answers(&other.netns, web.at(family, 80), true)?, "{family}");
    }
    Ok(())
}

/// Leads the addresses to the other node, or no more.
fn route(node: &Node, ips: &[IpAddr], to: Option<&Node>) -> Result<()> {
    for ip in ips {
        match to {
            Some(other) => {
                let via = other.link_ip(Family::of(*ip));
                node.netns.ip(&format!("route add {ip} via {via}"))?;
            }
            None => {
                node.netns.ip(&format!("route del {ip}"))?;
            }
        }
    }
    Ok(())
}
