//! VLANs of bridge ports, on kernels with CONFIG_BRIDGE_VLAN_FILTERING; and that all others
//! refuse them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command;
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::traffic::limit;
use tests::{inspect, require_root};

use crate::assert_empty;

/// Whether this kernel has bridges that keep VLANs apart.
fn has_vlan_filtering() -> Result<bool> {
    let probe = NetNs::create("probe")?;
    let made = probe.ip("link add br0 type bridge vlan_filtering 1");
    Ok(made.is_ok())
}

const TAGGED: &str = "";
const NATIVE: &str = "PVID Egress Untagged";
/// One that the port only sends of.
const UNTAGGED: &str = "Egress Untagged";

/// The VLANs of a port with their flags, by `bridge`.
fn vlans(node: &Node, port: &str) -> Result<BTreeMap<u64, String>> {
    let mut command = node.netns.command("bridge");
    command.args(["-j", "vlan", "show", "dev", port]);
    let shown: Value = serde_json::from_str(&command::run(&mut command)?)?;
    let mut vlans = BTreeMap::new();
    for vlan in inspect::items(&shown[0]["vlans"]) {
        let first = vlan["vlan"].as_u64().context("no number")?;
        let last = vlan["vlanEnd"].as_u64().unwrap_or(first);
        let flags = inspect::items(&vlan["flags"]).filter_map(Value::as_str);
        let flags = flags.collect::<Vec<_>>().join(" ");
        vlans.extend((first..=last).map(|vlan| (vlan, flags.clone())));
    }
    Ok(vlans)
}

/// An error unless these are the port's VLANs.
fn expect_vlans(node: &Node, port: &str, expected: &[(u64, &str)]) -> Result<()> {
    let expected = expected
        .iter()
        .map(|(vlan, flags)| (*vlan, (*flags).to_owned()));
    let (found, expected) = (vlans(node, port)?, expected.collect());
    ensure!(found == expected, "{port}: {found:?} is not {expected:?}");
    Ok(())
}

/// A pod of this test.
struct Member<'n> {
    node: &'n Node,
    id: &'static str,
    netns: NetNs,
    keys: Value,
    result: Value,
}

impl<'n> Member<'n> {
    fn add(node: &'n Node, id: &'static str, mut keys: Value) -> Result<Self> {
        keys["mode"] = json!("l2");
        let netns = NetNs::create(id)?;
        let call = Call::new(node, "ADD", id, &netns).keys(keys.clone());
        let result = call.result()?;
        Ok(Self {
            node,
            id,
            netns,
            keys,
            result,
        })
    }

    fn call(&self, verb: &str) -> Call<'n> {
        let mut keys = self.keys.clone();
        keys["prevResult"] = self.result.clone();
        Call::new(self.node, verb, self.id, &self.netns).keys(keys)
    }

    fn port(&self) -> Result<String> {
        inspect::host_interface(&self.result)
    }

    /// Whether it reaches the other's addresses, all of them, within a time that fits what is
    /// expected.
    fn reaches(&self, other: &Self, expected: bool) -> Result<bool> {
        let mut outcomes = Vec::new();
        for ip in inspect::result_ips(&other.result)? {
            outcomes.push(self.netns.ping_for(ip, limit(expected)).is_ok());
        }
        ensure!(outcomes[0] == outcomes[1], "families differ: {outcomes:?}");
        Ok(outcomes[0])
    }
}

/// cni.md 30.
#[test]
fn vlans_are_kept_apart_or_refused_by_the_kernels_option() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    if !has_vlan_filtering()? {
        return refused(&node);
    }
    let red = json!({"vlan": 100, "isGateway": true});
    let one = Member::add(&node, "one", red.clone())?;
    let two = Member::add(&node, "two", red.clone())?;
    let blue = Member::add(
        &node,
        "blue",
        json!({"vlan": 200, "preserveDefaultVlan": true}),
    )?;
    let trunk = json!({"vlanTrunk": [{"id": 100}, {"minID": 300, "maxID": 303}]});
    let trunk = Member::add(&node, "trunk", trunk)?;

    let bridge = node.netns.ip_json("link show cbr0")?[0].take();
    assert_eq!(
        bridge["linkinfo"]["info_data"]["vlan_filtering"], 1,
        "{bridge}"
    );
    expect_vlans(&node, &one.port()?, &[(100, NATIVE)])?;
    expect_vlans(&node, "cbr0-100", &[(100, NATIVE)])?;
    expect_vlans(&node, &blue.port()?, &[(1, UNTAGGED), (200, NATIVE)])?;
    let tagged = [100, 300, 301, 302, 303].map(|vlan| (vlan, TAGGED));
    let expected = [&[(1, NATIVE)], tagged.as_slice()].concat();
    expect_vlans(&node, &trunk.port()?, &expected)?;

    // The gateway's interface is behind the pod's, which addresses count from.
    let names: Vec<_> = inspect::items(&one.result["interfaces"])
        .map(|interface| interface["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(names, ["cbr0", &one.port()?, "eth0", "cbr0.100"]);
    assert_eq!(one.result["ips"][0]["interface"], 2);
    for family in Family::ALL {
        one.netns.ping(family.pick(GATEWAYS))?;
    }
    ensure!(
        one.reaches(&two, true)? && two.reaches(&one, true)?,
        "one VLAN"
    );
    ensure!(
        !one.reaches(&blue, false)? && !blue.reaches(&one, false)?,
        "two VLANs"
    );
    for pod in [&one, &two, &blue, &trunk] {
        pod.call("CHECK").silent()?;
    }

    let port = one.port()?;
    let mut leave = node.netns.command("bridge");
    leave.args(["vlan", "del", "dev", &port, "vid", "100"]);
    command::run(&mut leave)?;
    let (code, text) = one.call("CHECK").error()?;
    assert_eq!(code, 104, "{text}");
    ensure!(text.contains(&port) && text.contains("VLAN 100"), "{text}");

    for pod in [&one, &two, &blue, &trunk] {
        pod.call("DEL").silent()?;
    }
    node.netns.ip("link del cbr0.100")?;
    assert_empty(&node)
}

/// A kernel without the option: nothing is left, and a bridge that was there is as it was.
fn refused(node: &Node) -> Result<()> {
    let pod = NetNs::create("pod")?;
    let access = json!({"mode": "l2", "vlan": 100, "isGateway": true});
    let trunk = json!({"mode": "l2", "vlanTrunk": [{"minID": 2, "maxID": 9}]});
    for there_before in [false, true] {
        if there_before {
            node.netns.ip("link add cbr0 type bridge")?;
        }
        for keys in [&access, &trunk] {
            let call = Call::new(node, "ADD", "c1", &pod).keys(keys.clone());
            let (code, text) = call.error()?;
            assert_eq!(code, 100, "{text}");
            ensure!(text.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{text}");
            assert_empty(node)?;
            let links = pod.ip_json("link show")?;
            assert_eq!(inspect::items(&links).len(), 1, "{links}");
            let bridges = node.netns.ip_json("link show type bridge")?;
            assert_eq!(
                inspect::items(&bridges).len(),
                usize::from(there_before),
                "{bridges}"
            );
            let gateways = node.netns.ip_json("link show type veth")?;
            let gateways = inspect::items(&gateways);
            let mut names = gateways.filter_map(|link| link["ifname"].as_str());
            ensure!(names.all(|name| name == "uplink"), "a gateway is left");
            Call::new(node, "DEL", "c1", &pod)
                .keys(keys.clone())
                .silent()?;
        }
    }
    Ok(())
}

/// An agent sees nothing of what is switched inside a VLAN.
#[test]
fn vlans_are_refused_beside_an_agent() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let _agent = Agent::start(&node)?;
    let pod = NetNs::create("pod")?;
    for keys in [json!({"vlan": 100}), json!({"vlanTrunk": [{"id": 7}]})] {
        let mut keys = keys;
        keys["mode"] = json!("l2");
        let (code, text) = Call::new(&node, "ADD", "c1", &pod).keys(keys).error()?;
        assert_eq!(code, 2, "{text}");
        ensure!(text.contains("vlan") && text.contains("policies"), "{text}");
        assert_empty(&node)?;
    }
    let bridges = node.netns.ip_json("link show type bridge")?;
    assert_eq!(inspect::items(&bridges).len(), 0, "{bridges}");
    Ok(())
}
