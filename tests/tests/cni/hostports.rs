//! hostPorts with real traffic: from outside, from the node and from pods, with an agent and
//! without.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, NODE_IPS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::traffic::{Outcome, PATIENT, Protocol, SHORT};
use tests::wait::{SOON, eventually};
use tests::{inspect, require_root};

use crate::assert_empty;
use crate::container::{
    Container, ask_from, assert_answered, assert_silent, containerd, elements, start_agent,
};

/// cni.md 13, 64: from outside, from the node at 127.0.0.1 and at its own addresses, from
/// another pod, and from the pod itself.
fn is_reached_from_everywhere(node: &Node) -> Result<()> {
    let mappings = containerd(&[(8080, 80, "tcp"), (8053, 53, "UDP")]);
    let (one, two) = (
        Container::add(node, "one", mappings)?,
        Container::add(node, "two", json!({}))?,
    );
    for family in Family::ALL {
        for (protocol, port) in [(Protocol::Tcp, 8080), (Protocol::Udp, 8053)] {
            let target = |ip: IpAddr| SocketAddr::new(ip, port);
            let at_node = target(family.pick(NODE_IPS));
            for from in [&node.outside, &node.netns, &two.netns, &one.netns] {
                assert_answered(from, protocol, at_node, "one")?;
            }
            let at_gateway = target(family.pick(GATEWAYS));
            for from in [&node.netns, &two.netns, &one.netns] {
                assert_answered(from, protocol, at_gateway, "one")?;
            }
            // The other protocol is not mapped.
            let other = if protocol == Protocol::Tcp {
                Protocol::Udp
            } else {
                Protocol::Tcp
            };
            assert_silent(&node.outside, other, at_node)?;
        }
    }
    for (protocol, port) in [(Protocol::Tcp, 8080), (Protocol::Udp, 8053)] {
        for loopback in ["127.0.0.1", "127.0.0.53"] {
            let target = SocketAddr::new(loopback.parse()?, port);
            assert_answered(&node.netns, protocol, target, "one")?;
        }
    }
    one.check()?;
    one.del()?;
    let at_node = SocketAddr::new(Family::V4.pick(NODE_IPS), 8080);
    assert_silent(&node.outside, Protocol::Tcp, at_node)?;
    two.del()
}

#[test]
fn a_host_port_is_reached_from_everywhere_without_an_agent() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let before = inspect::tables(&node.netns)?;
        is_reached_from_everywhere(&node)?;
        assert_eq!(inspect::tables(&node.netns)?, before);
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn a_host_port_is_reached_from_everywhere_with_an_agent() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let agent = start_agent(&node, &["one", "two"])?;
        is_reached_from_everywhere(&node)?;
        assert!(agent.verify()?.status.success());
        assert_eq!(elements(&node, "host-ports4")?, Vec::<Value>::new());
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn a_pod_sees_who_asks_for_its_host_port() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
    for family in Family::ALL {
        let target = SocketAddr::new(family.pick(NODE_IPS), 8080);
        let outcome = ask_from(&node.outside, Protocol::Tcp, target)?;
        let Outcome::Answered { peer, .. } = outcome else {
            panic!("{outcome}")
        };
        assert_eq!(peer.ip(), family.pick(tests::node::OUTSIDE_IPS));
    }
    one.del()
}

/// CVE-2020-8558: the setting that makes 127.0.0.1 work must not open the node's own
/// services to pods and neighbours.
#[test]
fn what_listens_on_the_nodes_loopback_stays_its_own() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
    let setting = || node.netns.read_sysctl("net.ipv4.conf.cbr0.route_localnet");
    assert_eq!(setting().as_deref(), Some("1"), "127.0.0.1 needs it");
    let private = node.netns.enter(|| UdpSocket::bind("127.0.0.1:9999"))??;
    private.set_read_timeout(Some(SHORT))?;
    one.netns.ip("route add 127.0.0.1/32 via 10.88.0.1")?;
    one.netns
        .ip("route del local 127.0.0.0/8 dev lo table local")?;
    one.netns
        .ip("route del local 127.0.0.1 dev lo table local")?;
    let own = one.ip(Family::V4);
    let sent = one.netns.enter(move || -> std::io::Result<()> {
        let socket = UdpSocket::bind((own, 0))?;
        socket.send_to(b"?", "127.0.0.1:9999")?;
        Ok(())
    })?;
    sent.context("the datagram leaves the pod")?;
    let mut buffer = [0; 16];
    let received = private.recv_from(&mut buffer);
    assert!(
        received.is_err(),
        "a pod reached the node's loopback: {received:?}"
    );
    private.set_read_timeout(Some(PATIENT))?;
    node.netns.enter(|| -> std::io::Result<()> {
        UdpSocket::bind("127.0.0.1:0")?.send_to(b"own", "127.0.0.1:9999")?;
        Ok(())
    })??;
    assert_eq!(
        private.recv_from(&mut buffer)?.0,
        3,
        "the node itself reaches it"
    );
    one.del()?;
    assert_eq!(
        setting().as_deref(),
        Some("0"),
        "closed with the last of them"
    );
    Ok(())
}

#[test]
fn a_host_ip_limits_a_host_port_to_one_address_or_family() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    node.netns.ip("address add 192.0.2.3/24 dev uplink")?;
    let mapping = |ip: &str, port: u16| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": ip});
    let keys = json!({"runtimeConfig": {"portMappings": [
        mapping(NODE_IPS[0], 8001), mapping("0.0.0.0", 8002), mapping("::", 8003),
        mapping("127.0.0.1", 8004), mapping(NODE_IPS[1], 8005),
    ]}});
    let one = Container::add(&node, "one", keys)?;
    let (v4, v6) = (NODE_IPS[0].parse()?, NODE_IPS[1].parse()?);
    let second: IpAddr = "192.0.2.3".parse()?;
    for (ip, answering) in [
        (v4, &[8001, 8002][..]),
        (second, &[8002]),
        (v6, &[8003, 8005]),
    ] {
        for port in 8001..=8005 {
            let target = SocketAddr::new(ip, port);
            if answering.contains(&port) {
                assert_answered(&node.outside, Protocol::Tcp, target, "one")?;
            } else {
                assert_silent(&node.outside, Protocol::Tcp, target)?;
            }
        }
    }
    let loopback = SocketAddr::new("127.0.0.1".parse()?, 8004);
    assert_answered(&node.netns, Protocol::Tcp, loopback, "one")?;
    one.check()?;
    one.del()?;
    assert_empty(&node)
}

#[test]
fn a_taken_host_port_is_refused_with_the_name_of_who_has_it() -> Result<()> {
    require_root!();
    for with_agent in [false, true] {
        let node = Node::new()?;
        let _agent = with_agent
            .then(|| start_agent(&node, &["one", "two"]))
            .transpose()?;
        let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
        let two = NetNs::create("two")?;
        let wanted = json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 53, "hostIP": NODE_IPS[0]}]}});
        let call = Call::new(&node, "ADD", "two", &two).keys(wanted.clone());
        let (code, text) = call.error()?;
        assert_eq!(code, 103, "{text}");
        for named in ["default/one", "8080/tcp"] {
            assert!(text.contains(named), "{text}");
        }
        assert_eq!((node.ports()?.len(), node.records()?.len()), (1, 1));
        one.check()?;

        // UDP is another port, and a container whose namespace is gone has none.
        let udp = containerd(&[(8080, 80, "udp")]);
        Call::new(&node, "ADD", "two", &two).keys(udp).result()?;
        Call::new(&node, "DEL", "two", &two).silent()?;
        let old = one.call("DEL");
        drop(one);
        eventually(SOON, || {
            anyhow::ensure!(node.ports()?.is_empty(), "the port goes with the namespace");
            Ok(())
        })?;
        let two = Container::add(&node, "two", wanted)?;
        old.silent()?;
        two.check().context("the DEL of who had it takes nothing")?;
        two.del()?;
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn a_host_port_that_cannot_lead_anywhere_is_refused() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let keys = json!({
        "ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}]]},
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "hostIP": NODE_IPS[1]}]},
    });
    let (code, text) = Call::new(&node, "ADD", "c1", &pod).keys(keys).error()?;
    assert_eq!(code, 7, "{text}");
    assert!(text.contains(NODE_IPS[1]), "{text}");
    assert_empty(&node)
}
