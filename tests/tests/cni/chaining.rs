//! Beside plugins of others in one list, run by the reference runtime.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, NODE_IPS, Node};
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::traffic::{PATIENT, Protocol, Server, ask};
use tests::{command, inspect, require_root};

use crate::assert_empty;

/// Makes ours the first plugin of a list, and `plugin` the second.
fn chain(node: &Node, plugin: Value) -> Result<()> {
    // Debian's plugins speak 1.0.0.
    let mut conflist = node.conflist(json!({"cniVersion": "1.0.0"}));
    let plugins = conflist["plugins"]
        .as_array_mut()
        .context("made as a list")?;
    plugins.push(plugin);
    node.write_conflist(&conflist)
}

/// CHECK, both gateways, and the end.
fn works_and_ends(node: &Node, pod: &Pod<'_>) -> Result<()> {
    pod.check()?;
    reaches_gateways(pod)?;
    pod.del()?;
    assert_empty(node)
}

/// From the pod's own addresses, as its sockets are bound to them: where routes depend on
/// the source, an unbound one finds none.
fn reaches_gateways(pod: &Pod<'_>) -> Result<()> {
    for family in Family::ALL {
        let (own, gateway) = (
            pod.ip(family).to_string(),
            family.pick(GATEWAYS).to_string(),
        );
        let mut ping = pod.netns.command("ping");
        ping.args(["-n", "-q", "-c1", "-w20", "-I", &own, &gateway]);
        command::run(&mut ping)?;
    }
    Ok(())
}

/// cni.md 34.
#[test]
fn tuning_behind_it_sets_what_it_is_told() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let sysctl = json!({"net.ipv4.conf.eth0.log_martians": "1"});
    chain(
        &node,
        json!({"type": "tuning", "sysctl": sysctl, "mtu": 1380}),
    )?;
    let pod = Pod::add(&node, "default/one")?;
    let value = pod.netns.read_sysctl("net.ipv4.conf.eth0.log_martians");
    assert_eq!(value.as_deref(), Some("1"));
    assert_eq!(pod.netns.ip_json("link show eth0")?[0]["mtu"], 1380);
    works_and_ends(&node, &pod)
}

/// cni.md 34.
#[test]
fn portmap_behind_it_publishes_ports() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    chain(
        &node,
        json!({"type": "portmap", "snat": true, "runtimeConfig": {"portMappings": mappings}}),
    )?;
    let pod = Pod::add(&node, "default/one")?;
    let _server = Server::start(&pod.netns, "one", &[80])?;
    let target = format!("{}:8080", NODE_IPS[0]).parse()?;
    let outcome = node
        .outside
        .enter(move || ask(Protocol::Tcp, target, PATIENT))?;
    assert!(outcome.is_answered(), "{outcome}");
    reaches_gateways(&pod)?;
    // Its CHECK (1.1.1) looks for the IPv4 rule of a dual-stack pod among those of IPv6.
    pod.del()?;
    assert_empty(&node)
}

/// cni.md 34.
#[test]
fn bandwidth_behind_it_finds_the_host_interface() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    chain(
        &node,
        json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000}),
    )?;
    let pod = Pod::add(&node, "default/one")?;
    let shown =
        command::run(
            node.netns
                .command("tc")
                .args(["qdisc", "show", "dev", &pod.port()?]),
        )?;
    assert!(shown.contains("tbf") && shown.contains("8Mbit"), "{shown}");
    works_and_ends(&node, &pod)
}

/// cni.md 34.
#[test]
fn firewall_behind_it_lets_its_addresses_through() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    chain(&node, json!({"type": "firewall", "backend": "iptables"}))?;
    let pod = Pod::add(&node, "default/one")?;
    let rules = command::run(node.netns.command("iptables").args(["-S", "CNI-FORWARD"]))?;
    assert!(rules.contains(&pod.ip(Family::V4).to_string()), "{rules}");
    works_and_ends(&node, &pod)
}

/// cni.md 34, 41: its routes are in another table afterwards.
#[test]
fn sbr_behind_it_moves_the_routes_to_a_table_of_their_own() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    chain(&node, json!({"type": "sbr"}))?;
    let pod = Pod::add(&node, "default/one")?;
    let rules = pod.netns.ip_json("rule show")?;
    let own = inspect::items(&rules).any(|rule| rule["src"] == pod.ip(Family::V4).to_string());
    assert!(own, "{rules}");
    works_and_ends(&node, &pod)
}

/// cni.md 34: the real loopback plugin before us.
#[test]
fn what_a_plugin_before_it_made_passes_through() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut conflist = node.conflist(json!({"cniVersion": "1.0.0"}));
    let plugins = conflist["plugins"]
        .as_array_mut()
        .context("made as a list")?;
    plugins.insert(0, json!({"type": "loopback"}));
    node.write_conflist(&conflist)?;
    let pod = Pod::add(&node, "default/one")?;
    let interfaces = inspect::items(&pod.result["interfaces"]);
    let names: Vec<_> = interfaces
        .map(|interface| interface["name"].clone())
        .collect();
    assert_eq!(
        (&names[0], names.len()),
        (&json!("lo"), 4),
        "{}",
        pod.result
    );
    let ours = inspect::items(&pod.result["ips"]).filter(|ip| ip["interface"] == 3);
    assert_eq!(
        ours.count(),
        2,
        "positions count from the first: {}",
        pod.result
    );
    pod.check()?;
    for family in Family::ALL {
        pod.netns.ping(family.pick(GATEWAYS))?;
    }
    pod.del()?;
    assert_empty(&node)
}

/// cni.md 34: a plugin of a later release, with fields and interfaces that we do not know.
#[test]
fn fields_that_it_does_not_know_pass_through_in_every_layout() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let previous = json!({
            "cniVersion": version,
            "interfaces": [{"name": "net7", "sandbox": "/elsewhere", "colour": "blue"}],
            "ips": [{"address": "192.0.2.9/24", "interface": 0, "weight": 7}],
            "routes": [{"dst": "203.0.113.0/24", "via": ["a", "b"]}],
            "futureField": {"deep": [1, {"x": null}]},
        });
        let keys = json!({"cniVersion": version, "prevResult": previous});
        let result = Call::new(&node, "ADD", "c1", &pod).keys(keys).result()?;
        assert_eq!(
            result["futureField"],
            json!({"deep": [1, {"x": null}]}),
            "{result}"
        );
        assert_eq!(result["interfaces"][0]["colour"], "blue", "{result}");
        assert_eq!(result["ips"][0]["weight"], 7, "{result}");
        assert_eq!(result["routes"][0]["via"], json!(["a", "b"]), "{result}");
        assert_eq!(result["ips"][1]["interface"], 3, "{result}");
        Call::new(&node, "DEL", "c1", &pod).silent()?;
    }
    assert_empty(&node)
}

/// cni.md 34.
#[test]
fn a_broken_result_of_the_plugin_before_is_an_error_and_nothing_is_left() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    for broken in [
        json!([1]),
        json!({"ips": "bad"}),
        json!({"interfaces": {"a": 1}}),
    ] {
        let keys = json!({"prevResult": broken});
        let (code, text) = Call::new(&node, "ADD", "c1", &pod).keys(keys).error()?;
        assert_eq!(code, 7, "{text}");
        assert!(text.contains("prevResult"), "{text}");
        assert_empty(&node)?;
        assert!(pod.ip_json("link show eth0").is_err());
    }
    Ok(())
}
