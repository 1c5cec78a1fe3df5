//! The bridge, which others may change.

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::wait::{SOON, eventually};
use tests::{inspect, require_root};

use crate::assert_empty;

/// The addresses of the bridge, with the lengths of their prefixes, sorted; none of the
/// kernel's own.
fn addresses(node: &Node) -> Result<Vec<String>> {
    let bridge = node.netns.ip_json("address show cbr0")?[0].take();
    let global = inspect::items(&bridge["addr_info"]).filter(|one| one["scope"] == "global");
    let text = |one: &serde_json::Value| {
        let address = one["local"].as_str().context("an address")?;
        Ok(format!("{address}/{}", one["prefixlen"]))
    };
    let mut addresses = global.map(text).collect::<Result<Vec<_>>>()?;
    addresses.sort();
    Ok(addresses)
}

/// cni.md 19, 29: other software, or a person, may do any of this at any time.
#[test]
fn what_others_take_from_the_bridge_the_next_add_gives_back() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let settings = [
        "net.ipv4.ip_forward",
        "net.ipv4.conf.cbr0.forwarding",
        "net.ipv6.conf.all.forwarding",
        "net.ipv6.conf.cbr0.forwarding",
    ];
    let first = NetNs::create("first")?;
    let result = Call::new(&node, "ADD", "first", &first).result()?;
    let complete = addresses(&node)?;
    assert_eq!(complete, ["10.88.0.1/24", "fd88::1/64"]);
    let links = [
        "address del 10.88.0.1/24 dev cbr0",
        "address del fd88::1/64 dev cbr0",
        "address flush dev cbr0",
        "link set cbr0 down",
        "link set cbr0 down; link set cbr0 up",
        "link set cbr0 alias other",
    ];
    for change in links.into_iter().chain(settings) {
        if settings.contains(&change) {
            node.netns.sysctl(change, 0)?;
        } else {
            for step in change.split("; ") {
                node.netns.ip(step)?;
            }
        }
        let pod = NetNs::create("pod")?;
        let add = Call::new(&node, "ADD", "pod", &pod);
        add.result().with_context(|| change.to_owned())?;
        assert_eq!(addresses(&node)?, complete, "after {change}");
        for setting in settings {
            let found = node.netns.read_sysctl(setting);
            assert_eq!(found.as_deref(), Some("1"), "{setting} after {change}");
        }
        let others = inspect::result_ips(&result)?.into_iter();
        let gateways = GATEWAYS.map(|gateway| gateway.parse());
        for target in others.map(Ok).chain(gateways) {
            let target = target?;
            let reached = eventually(SOON, || pod.ping(target));
            reached.with_context(|| format!("after {change}"))?;
        }
        Call::new(&node, "DEL", "pod", &pod).silent()?;
    }
    Call::new(&node, "DEL", "first", &first).silent()?;
    assert_empty(&node)
}

/// cni.md 29: of IPv6 a bridge may have several addresses, but not two that claim the same
/// neighbours.
#[test]
fn an_ipv6_address_in_the_way_is_code_100_unless_it_may_be_replaced() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let call = |verb| Call::new(&node, verb, "c1", &pod);
    node.netns.ip("link add cbr0 type bridge")?;
    for address in ["fd99::1/64", "fd88::5/64", "fd88::1/96"] {
        node.netns
            .ip(&format!("address add {address} dev cbr0 nodad"))?;
    }
    let (code, text) = call("ADD").error()?;
    assert_eq!(code, 100, "{text}");
    let named = text.contains("fd88::5/64") || text.contains("fd88::1/96");
    assert!(named && text.contains("forceAddress"), "{text}");
    assert_empty(&node)?;
    assert_eq!(
        addresses(&node)?,
        ["fd88::1/96", "fd88::5/64", "fd99::1/64"],
        "untouched"
    );
    call("ADD").keys(json!({"forceAddress": true})).result()?;
    assert_eq!(
        addresses(&node)?,
        ["10.88.0.1/24", "fd88::1/64", "fd99::1/64"]
    );
    let gateway = GATEWAYS[1].parse()?;
    eventually(SOON, || pod.ping(gateway))?;
    call("DEL").silent()?;
    assert_empty(&node)
}

/// To the kernel it is a pattern for names: each ADD would make another bridge.
#[test]
fn a_name_that_is_a_pattern_is_refused() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let links = node.netns.ip_json("link show")?;
    let add = Call::new(&node, "ADD", "c1", &pod).keys(json!({"bridge": "cbr%d"}));
    let (code, text) = add.error()?;
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("cbr%d"), "{text}");
    assert_eq!(node.netns.ip_json("link show")?, links);
    let add = Call::new(&node, "ADD", "c1", &pod).env("CNI_IFNAME", "eth%d");
    let (code, text) = add.error()?;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("eth%d"), "{text}");
    assert_empty(&node)
}

/// cni.md 22: host-local takes it so.
#[test]
fn an_address_is_asked_for_with_or_without_the_length_of_a_prefix() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    for args in ["IP=10.88.0.77", "IP=10.88.0.77/24"] {
        let add = Call::new(&node, "ADD", "c1", &pod).env("CNI_ARGS", args);
        let ips = inspect::result_ips(&add.result()?)?;
        assert!(ips.contains(&"10.88.0.77".parse()?), "{args}: {ips:?}");
        Call::new(&node, "DEL", "c1", &pod).silent()?;
    }
    let add = Call::new(&node, "ADD", "c1", &pod).env("CNI_ARGS", "IP=10.88.0.0.1/24");
    let (code, text) = add.error()?;
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("10.88.0.0.1/24"), "{text}");
    assert_empty(&node)
}

/// cni.md 19: a bridge that is new does not hear yet who asks for its IPv6 address.
#[test]
fn a_pod_need_not_ask_where_the_gateway_is_over_ipv6() -> Result<()> {
    require_root!();
    for mode in ["routed-ports", "l2"] {
        let node = Node::new()?;
        let pod = NetNs::create("pod")?;
        let call = |verb| Call::new(&node, verb, "c1", &pod).keys(json!({"mode": mode}));
        call("ADD").result()?;
        let bridge = node.netns.ip_json("link show cbr0")?[0].take();
        let known = pod.ip_json("-6 neighbour show dev eth0")?;
        let mut gateway = inspect::items(&known).filter(|one| one["dst"] == GATEWAYS[1]);
        let found = gateway.next().context("an entry for the gateway")?;
        assert_eq!(found["lladdr"], bridge["address"], "{mode}: {found}");
        call("DEL").silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}
