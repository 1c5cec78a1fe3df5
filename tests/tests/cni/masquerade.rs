//! `ipMasq`: who sees which address.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, NODE_IPS, Node, OUTSIDE_IPS};
use tests::pod::Family;
use tests::traffic::{Outcome, Protocol, Server};
use tests::{inspect, require_root};

use crate::assert_empty;
use crate::container::{Container, ask_from, elements, start_agent, start_agent_with};

/// The address that a server at `target` sees.
fn seen(from: &NetNs, protocol: Protocol, target: SocketAddr) -> Result<String> {
    match ask_from(from, protocol, target)? {
        Outcome::Answered { peer, .. } => Ok(peer.ip().to_string()),
        other => panic!("{protocol} to {target}: {other}"),
    }
}

/// A container of another network of the same node.
fn other_network(node: &Node) -> Value {
    json!({
        "name": format!("{}-b", node.network()), "bridge": "cbr1", "ipMasq": true,
        "ipam": {"ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]},
    })
}

fn pods_are_masqueraded_to_the_outside_only(node: &Node) -> Result<()> {
    let masqueraded = Container::add(node, "one", json!({"ipMasq": true}))?;
    let plain = Container::add(node, "two", json!({}))?;
    let other = Container::add(node, "three", other_network(node))?;
    let _outside = Server::start(&node.outside, "outside", &[80])?;
    let _node = Server::start(&node.netns, "node", &[81])?;
    for family in Family::ALL {
        let node_ip = family.pick(NODE_IPS);
        let outside = SocketAddr::new(family.pick(OUTSIDE_IPS), 80);
        for protocol in Protocol::ALL {
            let from = |pod: &Container<'_>, to| seen(&pod.netns, protocol, to);
            let own = |pod: &Container<'_>| pod.ip(family).to_string();
            assert_eq!(from(&masqueraded, outside)?, node_ip.to_string());
            assert_eq!(from(&other, outside)?, node_ip.to_string());
            assert_eq!(from(&plain, outside)?, own(&plain));
            // Other pods, also of another network, and the node itself see who asks.
            let at = |pod: &Container<'_>| SocketAddr::new(pod.ip(family), 80);
            assert_eq!(from(&masqueraded, at(&plain))?, own(&masqueraded));
            assert_eq!(from(&masqueraded, at(&other))?, own(&masqueraded));
            assert_eq!(from(&other, at(&masqueraded))?, own(&other));
            let at_node = SocketAddr::new(family.pick(GATEWAYS), 81);
            assert_eq!(from(&masqueraded, at_node)?, own(&masqueraded));
        }
    }
    masqueraded.check()?;
    for pod in [masqueraded, plain, other] {
        pod.del()?;
    }
    Ok(())
}

#[test]
fn pods_are_masqueraded_to_the_outside_only_without_an_agent() -> Result<()> {
    require_root!();
    for backend in ["iptables", "nftables"] {
        let node = Node::new()?;
        let pod = Container::add(
            &node,
            "one",
            json!({"ipMasq": true, "ipMasqBackend": backend}),
        )?;
        assert_eq!(elements(&node, "masqueraded4")?.len(), 1);
        assert_eq!(elements(&node, "masqueraded6")?.len(), 1);
        pod.del()?;
        assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    }
    let node = Node::new()?;
    pods_are_masqueraded_to_the_outside_only(&node)?;
    assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    assert_empty(&node)
}

#[test]
fn pods_are_masqueraded_to_the_outside_only_with_an_agent() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = start_agent(&node, &["one", "two", "three"])?;
    pods_are_masqueraded_to_the_outside_only(&node)?;
    assert!(agent.verify()?.status.success());
    assert_eq!(elements(&node, "masqueraded4")?.len(), 0);
    assert_empty(&node)
}

/// cni.md 42.
#[test]
fn check_names_a_pod_that_is_not_masqueraded() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = Container::add(&node, "one", json!({"ipMasq": true}))?;
    pod.check()?;
    let ip = pod.ip(Family::V6);
    let script = format!("delete element inet trammel masqueraded6 {{ {ip} }}");
    inspect::nft(&node.netns, &script)?;
    let (code, text) = pod.call("CHECK").error()?;
    assert_eq!(code, 104, "{text}");
    assert!(text.contains(&ip.to_string()), "{text}");
    pod.del()?;
    assert_empty(&node)
}

/// Networks whose ranges overlap, come and go: the kernel's intervals are those of what is
/// left.
#[test]
fn pod_networks_that_overlap_are_merged_and_taken_apart_again() -> Result<()> {
    require_root!();
    for with_agent in [false, true] {
        let node = Node::new()?;
        let _agent = with_agent
            .then(|| start_agent(&node, &["one", "two", "three"]))
            .transpose()?;
        let network = |suffix: &str, subnet: &str, start: &str| {
            json!({
                "name": format!("{}-{suffix}", node.network()),
                "bridge": format!("br-{suffix}"), "ipMasq": true,
                "ipam": {"ranges": [[{"subnet": subnet, "rangeStart": start}]]},
            })
        };
        let prefix = |addr: &str, len: u8| json!({"prefix": {"addr": addr, "len": len}});
        let inside = |expected: &[Value]| -> Result<()> {
            assert_eq!(elements(&node, "inside4")?, expected);
            Ok(())
        };
        let multicast = prefix("224.0.0.0", 4);
        let narrow = Container::add(&node, "one", network("a", "10.77.0.0/24", "10.77.0.9"))?;
        inside(&[prefix("10.77.0.0", 24), multicast.clone()])?;
        let wide = Container::add(&node, "two", network("b", "10.77.0.0/16", "10.77.7.9"))?;
        inside(&[prefix("10.77.0.0", 16), multicast.clone()])?;
        let beside = Container::add(&node, "three", network("c", "10.78.0.0/16", "10.78.0.9"))?;
        let both = json!({"range": ["10.77.0.0", "10.78.255.255"]});
        inside(&[both, multicast.clone()])?;
        wide.del()?;
        inside(&[
            prefix("10.77.0.0", 24),
            prefix("10.78.0.0", 16),
            multicast.clone(),
        ])?;
        beside.del()?;
        inside(&[prefix("10.77.0.0", 24), multicast])?;
        narrow.del()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// issue 7, "Must hold": a pod that comes or goes while the agent is replaced changes nothing for
/// the others. Masqueraded towards the pods of other nodes they would be strangers to policies.
#[test]
fn the_networks_of_other_nodes_stay_when_a_pod_leaves_without_the_agent() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cidrs = "10.88.0.0/16,10.200.0.0/16,fd00:200::/56";
    let agent = start_agent_with(&node, &["one", "two"], &["--cluster-cidr", cidrs])?;
    let stays = Container::add(&node, "one", json!({"ipMasq": true}))?;
    let leaves = Container::add(&node, "two", json!({"ipMasq": true}))?;
    let before = [elements(&node, "inside4")?, elements(&node, "inside6")?];
    let cluster = json!({"prefix": {"addr": "10.200.0.0", "len": 16}});
    assert!(before[0].contains(&cluster), "{before:?}");
    agent.stop()?;
    leaves.del()?;
    assert_eq!(elements(&node, "masqueraded4")?.len(), 1);
    let after = [elements(&node, "inside4")?, elements(&node, "inside6")?];
    assert_eq!(after, before);
    stays.del()
}
