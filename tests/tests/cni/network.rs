//! ADD: what the configuration and the runtime ask for, and what the node has already.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::{inspect, require_root};

use crate::assert_empty;

fn add<'n>(node: &'n Node, pod: &NetNs, keys: &Value) -> Call<'n> {
    Call::new(node, "ADD", "c1", pod).keys(keys.clone())
}

fn del(node: &Node, pod: &NetNs) -> Result<()> {
    Call::new(node, "DEL", "c1", pod).silent()
}

/// cni.md 14.
#[test]
fn null_is_absent_and_of_equal_keys_the_last_counts() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let conf = node.conf(json!({})).to_string();
    let conf = conf.replacen(
        '{',
        r#"{"mtu": 1280, "MTU": 9000, "mtu": 1390, "hairpinMode": null, "#,
        1,
    );
    Call::new(&node, "ADD", "c1", &pod).input(conf).result()?;
    assert_eq!(pod.ip_json("link show eth0")?[0]["mtu"], 1390);
    del(&node, &pod)?;
    assert_empty(&node)
}

/// cni.md 19.
#[test]
fn the_mtu_is_that_of_the_way_out_unless_it_is_configured() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    node.netns.ip("link set uplink mtu 1442")?;
    for (keys, mtu) in [(json!({}), 1442), (json!({"mtu": 1300}), 1300)] {
        let result = add(&node, &pod, &keys).result()?;
        let port = inspect::host_interface(&result)?;
        for link in [
            pod.ip_json("link show eth0")?,
            node.netns.ip_json(&format!("link show {port}"))?,
        ] {
            assert_eq!(link[0]["mtu"], mtu, "{link}");
        }
        assert_eq!(result["interfaces"][2]["mtu"], mtu, "{result}");
        del(&node, &pod)?;
    }
    // By the other family, and nowhere.
    for (family, mtu) in [("-4", 1442), ("-6", 1500)] {
        node.netns.ip(&format!("{family} route delete default"))?;
        let result = add(&node, &pod, &json!({})).result()?;
        assert_eq!(result["interfaces"][2]["mtu"], mtu, "{result}");
        del(&node, &pod)?;
    }
    assert_empty(&node)
}

/// cni.md 19: what the kernel would make for every processor and leave unused.
#[test]
fn both_ends_have_one_queue() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let result = add(&node, &pod, &json!({})).result()?;
    let port = inspect::host_interface(&result)?;
    for link in [
        pod.ip_json("-d link show eth0")?,
        node.netns.ip_json(&format!("-d link show {port}"))?,
    ] {
        assert_eq!(link[0]["num_tx_queues"], 1, "{link}");
        assert_eq!(link[0]["num_rx_queues"], 1, "{link}");
    }
    del(&node, &pod)?;
    assert_empty(&node)
}

/// cni.md 20.
#[test]
fn a_default_route_of_ipam_and_is_default_gateway_make_one_route() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24"}]);
    let keys = json!({"isDefaultGateway": true, "ipam": {"routes": routes}});
    let result = add(&node, &pod, &keys).result()?;
    for (family, gateway) in ["-4", "-6"].into_iter().zip(GATEWAYS) {
        let shown = pod.ip_json(&format!("{family} route show default"))?;
        assert_eq!(inspect::items(&shown).len(), 1, "{shown}");
        assert_eq!(shown[0]["gateway"], gateway);
    }
    let dsts = inspect::items(&result["routes"]).map(|route| route["dst"].clone());
    assert_eq!(
        dsts.collect::<Vec<_>>(),
        [json!("0.0.0.0/0"), json!("198.51.100.0/24"), json!("::/0")]
    );
    del(&node, &pod)?;

    let keys = json!({"isDefaultGateway": false});
    add(&node, &pod, &keys).result()?;
    assert_eq!(
        inspect::items(&pod.ip_json("-4 route show default")?).len(),
        0
    );
    del(&node, &pod)
}

/// cni.md 21.
#[test]
fn attributes_of_routes_are_applied_and_echoed() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let routes = json!([
        {"dst": "198.51.100.0/24", "mtu": 1333, "advmss": 1200, "priority": 77},
        {"dst": "203.0.113.0/24", "gw": "10.88.0.1", "table": 4242},
        {"dst": "192.0.2.128/25", "scope": 0},
        {"dst": "2001:db8:9::/48", "mtu": 1300, "table": 77},
    ]);
    let keys = json!({"ipam": {"routes": routes}});
    let result = add(&node, &pod, &keys).result()?;
    for (n, route) in inspect::items(&routes).enumerate() {
        for (key, value) in route.as_object().context("made as an object")? {
            assert_eq!(result["routes"][n][key], *value, "{result}");
        }
    }
    let shown = pod.ip_json("route show 198.51.100.0/24")?[0].take();
    assert_eq!(shown["metric"], 77, "{shown}");
    assert_eq!(shown["metrics"][0]["mtu"], 1333, "{shown}");
    assert_eq!(shown["metrics"][0]["advmss"], 1200, "{shown}");
    let shown = pod.ip_json("route show table 4242")?;
    assert_eq!(shown[0]["dst"], "203.0.113.0/24", "{shown}");
    let shown = pod.ip_json("-6 route show table 77")?;
    assert_eq!(shown[0]["dst"], "2001:db8:9::/48", "{shown}");
    let mut with_result = keys;
    with_result["prevResult"] = result;
    Call::new(&node, "CHECK", "c1", &pod)
        .keys(with_result)
        .silent()?;
    del(&node, &pod)?;
    assert_empty(&node)
}

/// cni.md 22.
#[test]
fn what_the_runtime_asks_for_comes_before_args_before_cni_args() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let mac = |last: u8| format!("02:00:00:00:00:{last:02x}");
    let mut keys = json!({
        "runtimeConfig": {"mac": mac(1), "ips": ["10.88.0.77/24", "fd88::77"]},
        "args": {"cni": {"mac": mac(2)}},
    });
    let cni_args = format!("IgnoreUnknown=1;MAC={}", mac(3));
    for (last, remove) in [(1, "runtimeConfig"), (2, "args"), (3, "")] {
        let call = add(&node, &pod, &keys).env("CNI_ARGS", &cni_args);
        let result = call.result()?;
        assert_eq!(pod.ip_json("link show eth0")?[0]["address"], mac(last));
        if last == 1 {
            let ips = inspect::result_ips(&result)?;
            assert_eq!(
                ips,
                [
                    "10.88.0.77".parse::<std::net::IpAddr>()?,
                    "fd88::77".parse()?
                ]
            );
        }
        del(&node, &pod)?;
        keys.as_object_mut()
            .context("made as an object")?
            .remove(remove);
    }
    let call = add(&node, &pod, &json!({})).env("CNI_ARGS", "IP=10.88.0.99");
    assert_eq!(call.result()?["ips"][0]["address"], "10.88.0.99/32");
    del(&node, &pod)?;
    let ranges = json!([[{"subnet": "10.99.0.0/24", "gateway": "10.99.0.7"}]]);
    let keys = json!({"forceAddress": true, "bridge": "cbr1", "ipam": {"ranges": null},
        "runtimeConfig": {"ipRanges": ranges}});
    let result = add(&node, &pod, &keys).result()?;
    assert_eq!(result["ips"][0]["gateway"], "10.99.0.7", "{result}");
    del(&node, &pod)?;
    assert_empty(&node)
}

/// cni.md 22.
#[test]
fn an_address_that_cannot_be_had_is_code_103_and_nothing_is_taken() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (pod, other) = (NetNs::create("pod")?, NetNs::create("other")?);
    let taken = json!({"runtimeConfig": {"ips": ["10.88.0.5"]}});
    Call::new(&node, "ADD", "c2", &other).keys(taken).result()?;
    let before = node.leases()?;
    for ip in [
        "10.88.0.5",
        "10.88.0.1",
        "10.77.0.5",
        "10.88.0.255",
        "fd88::1",
        "fd99::5",
    ] {
        let keys = json!({"runtimeConfig": {"ips": [ip]}});
        let (code, text) = add(&node, &pod, &keys).error()?;
        assert_eq!(code, 103, "{ip}: {text}");
        assert!(text.contains(ip), "{text}");
        assert_eq!(
            (node.leases()?, node.ports()?.len()),
            (before.clone(), 1),
            "{ip}"
        );
    }
    Call::new(&node, "DEL", "c2", &other).silent()?;
    assert_empty(&node)
}

/// cni.md 27.
#[test]
fn the_own_namespace_is_allowed_to_those_who_say_so() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let call = |verb| {
        Call::new(&node, verb, "c1", &node.netns)
            .env("CNI_IFNAME", "own0")
            .env("CNI_NETNS_OVERRIDE", "1")
            .keys(json!({"isDefaultGateway": false}))
    };
    call("ADD").result()?;
    node.netns.ip("link show own0")?;
    call("DEL").silent()?;
    node.netns.ip("link show own0").expect_err("it is gone");
    assert_empty(&node)
}

/// cni.md 29.
#[test]
fn a_conflicting_address_of_the_bridge_is_code_100_unless_it_may_be_replaced() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    node.netns.ip("link add cbr0 type bridge")?;
    node.netns.ip("address add 10.66.0.1/24 dev cbr0")?;
    let (code, text) = add(&node, &pod, &json!({})).error()?;
    assert_eq!(code, 100, "{text}");
    assert!(
        text.contains("10.66.0.1/24") && text.contains("forceAddress"),
        "{text}"
    );
    assert_empty(&node)?;
    let addresses = || -> Result<Vec<Value>> {
        let bridge = node.netns.ip_json("-4 address show cbr0")?[0].take();
        Ok(inspect::items(&bridge["addr_info"])
            .map(|a| a["local"].clone())
            .collect())
    };
    assert_eq!(addresses()?, ["10.66.0.1"], "untouched");
    add(&node, &pod, &json!({"forceAddress": true})).result()?;
    assert_eq!(addresses()?, [GATEWAYS[0]]);
    del(&node, &pod)?;
    assert_empty(&node)
}

/// cni.md 30, and every key of the reference bridge plugin that is refused.
#[test]
fn values_that_cannot_be_honoured_are_refused_and_named() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    for (keys, code, names) in [
        (
            json!({"hairpinMode": true, "promiscMode": true}),
            7,
            ["hairpinMode", "promiscMode"],
        ),
        (json!({"vlan": -1}), 7, ["vlan", "-1"]),
        (json!({"vlan": 4095}), 7, ["vlan", "4095"]),
        (
            json!({"vlanTrunk": [{"minID": 9, "maxID": 3}]}),
            7,
            ["vlanTrunk[0]", "minID 9"],
        ),
        (
            json!({"vlanTrunk": [{"id": 0}]}),
            7,
            ["vlanTrunk[0].id", "0"],
        ),
        (json!({"ipMasqBackend": "pf"}), 2, ["ipMasqBackend", "pf"]),
        (json!({"vlan": 100}), 2, ["vlan", "100"]),
        (json!({"vlanTrunk": [{"id": 100}]}), 2, ["vlanTrunk", "100"]),
        (json!({"promiscMode": true}), 2, ["promiscMode", "true"]),
        (json!({"enabledad": true}), 2, ["enabledad", "true"]),
        (
            json!({"uplinkInterface": "eth7"}),
            2,
            ["uplinkInterface", "eth7"],
        ),
        (json!({"portIsolation": true}), 2, ["portIsolation", "true"]),
        (json!({"isGateway": false}), 2, ["isGateway", "false"]),
        (json!({"mode": "l4"}), 2, ["mode", "l4"]),
        (
            json!({"disableContainerInterface": true}),
            7,
            ["disableContainerInterface", "ipam"],
        ),
    ] {
        let (found, text) = add(&node, &pod, &keys).error()?;
        assert_eq!(found, code, "{keys}: {text}");
        assert!(
            names.iter().all(|name| text.contains(name)),
            "{keys}: {text}"
        );
    }
    assert_empty(&node)
}

/// cni.md 31.
#[test]
fn ipv6_that_is_off_in_the_sandbox_is_turned_on() -> Result<()> {
    require_root!();
    for mode in ["routed-ports", "l2", "routed"] {
        let node = Node::new()?;
        node.write_conflist(&node.conflist(json!({"mode": mode})))?;
        let netns = NetNs::create("pod")?;
        for scope in ["all", "default", "lo"] {
            netns.sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), 1)?;
        }
        let pod = Pod::add_netns(&node, "default/one", netns)?;
        pod.netns.ping(Family::V6.pick(GATEWAYS))?;
        pod.netns.ping("::1".parse()?)?;
        pod.check()?;
    }
    Ok(())
}

/// cni.md 31: the node's half of a pair without a bridge.
#[test]
fn ipv6_that_is_off_on_new_links_of_the_node_is_turned_on_for_a_pods_link() -> Result<()> {
    require_root!();
    for mode in ["routed-ports", "l2", "routed"] {
        let node = Node::new()?;
        node.netns.sysctl("net.ipv6.conf.default.disable_ipv6", 1)?;
        node.write_conflist(&node.conflist(json!({"mode": mode})))?;
        let pod = Pod::add(&node, "default/one")?;
        pod.netns.ping(Family::V6.pick(GATEWAYS))?;
        node.netns.ping(pod.ip(Family::V6))?;
    }
    Ok(())
}

/// cni.md 31: where links begin without IPv6, on the node or in the pod, those of pods have it.
#[test]
fn ipv6_works_where_new_links_begin_without_it_in_every_mode() -> Result<()> {
    require_root!();
    for mode in ["routed-ports", "l2", "routed"] {
        let node = Node::new()?;
        let pod = NetNs::create("pod")?;
        for netns in [&node.netns, &pod] {
            netns.sysctl("net.ipv6.conf.default.disable_ipv6", 1)?;
        }
        let keys = json!({"mode": mode});
        let result = add(&node, &pod, &keys).result()?;
        for ip in inspect::result_ips(&result)? {
            node.netns.ping(ip)?;
        }
        pod.ping(Family::V6.pick(GATEWAYS))?;
        del(&node, &pod)?;
        assert_empty(&node)?;
    }
    Ok(())
}
