//! ADD: links, addresses, routes and the result.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::traffic::{PATIENT, Protocol, Server, ask};
use tests::wait::eventually;
use tests::{command, inspect, require_root};

use crate::assert_empty;

/// cni.md 19.
#[test]
fn a_pod_has_both_families_at_once_and_the_gateway_answers() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let pod = Pod::add(&node, "default/one")?;
        for family in Family::ALL {
            pod.netns.ping(family.pick(GATEWAYS))?;
            node.netns.ping(pod.ip(family))?;
        }
        pod_side(&pod)?;
        node_side(&node, &pod, bridge_nf)?;
        pod.check()?;
    }
    Ok(())
}

/// Addresses, routes and links as the pod sees them.
fn pod_side(pod: &Pod<'_>) -> Result<()> {
    let eth0 = pod.netns.ip_json("address show eth0")?[0].take();
    let flags = |link: &Value| link["flags"].as_array().cloned().unwrap_or_default();
    assert!(flags(&eth0).contains(&json!("UP")), "{eth0}");
    assert_eq!(eth0["mtu"], 1500, "that of the node's default route");
    for ip in pod.ips() {
        let length = if ip.is_ipv4() { 32 } else { 128 };
        let address = inspect::items(&eth0["addr_info"])
            .find(|address| address["local"] == ip.to_string())
            .with_context(|| format!("{ip} is not on {eth0}"))?;
        assert_eq!(address["prefixlen"], length, "{address}");
        assert!(address.get("tentative").is_none(), "{address}");
    }
    let IpAddr::V4(v4) = pod.ip(Family::V4) else {
        unreachable!("asked for IPv4")
    };
    let [a, b, c, d] = v4.octets();
    assert_eq!(
        eth0["address"],
        format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    );
    for (family, gateway) in ["-4", "-6"].into_iter().zip(GATEWAYS) {
        let routes = pod.netns.ip_json(&format!("{family} route show default"))?;
        assert_eq!(inspect::items(&routes).len(), 1, "{routes}");
        assert_eq!(
            (&routes[0]["gateway"], &routes[0]["dev"]),
            (&json!(gateway), &json!("eth0"))
        );
    }
    let lo = pod.netns.ip_json("link show lo")?[0].take();
    assert!(flags(&lo).contains(&json!("UP")), "{lo}");
    Ok(())
}

/// The bridge and the pod's port as the node sees them.
fn node_side(node: &Node, pod: &Pod<'_>, bridge_nf: bool) -> Result<()> {
    let port = node.netns.ip_json(&format!("link show {}", pod.port()?))?[0].take();
    assert_eq!(
        (&port["master"], &port["operstate"]),
        (&json!("cbr0"), &json!("UP")),
        "{port}"
    );
    let flags = &port["linkinfo"]["info_slave_data"];
    assert_eq!(flags["hairpin"], true, "{flags}");
    assert_eq!(flags["isolated"], !bridge_nf, "{flags}");
    let bridge = node.netns.ip_json("address show cbr0")?[0].take();
    let addresses: Vec<_> = inspect::items(&bridge["addr_info"])
        .filter(|address| address["scope"] == "global")
        .map(|address| address["local"].clone())
        .collect();
    assert_eq!(
        addresses,
        GATEWAYS.map(Value::from),
        "one gateway for each family"
    );
    Ok(())
}

/// cni.md 64.
#[test]
fn pods_reach_each_other_with_and_without_bridge_netfilter() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let (one, two) = (
            Pod::add(&node, "default/one")?,
            Pod::add(&node, "default/two")?,
        );
        let _server = Server::start(&two.netns, "two", &[80])?;
        for family in Family::ALL {
            one.netns.ping(two.ip(family))?;
            for protocol in Protocol::ALL {
                let target = two.at(family, 80);
                let outcome = one.netns.enter(move || ask(protocol, target, PATIENT))?;
                let seen = format!("answered by two, seen as {}", one.at(family, 0));
                let seen = seen.trim_end_matches('0');
                assert!(
                    outcome.to_string().starts_with(seen),
                    "{family} {protocol}: {outcome}"
                );
            }
            let outside = node.outside.enter({
                let target = two.at(family, 80);
                move || ask(Protocol::Tcp, target, PATIENT)
            })?;
            assert!(outside.is_answered(), "{family} from outside: {outside}");
        }
    }
    Ok(())
}

/// cni.md 16, 17.
#[test]
fn the_result_has_the_form_of_release_1_1() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let result = Call::new(&node, "ADD", "c1", &pod).result()?;
    assert_eq!(result["cniVersion"], "1.1.0");
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    assert_eq!(interfaces.len(), 3, "{result}");
    assert_eq!(
        (&interfaces[0]["name"], &interfaces[2]["name"]),
        (&json!("cbr0"), &json!("eth0"))
    );
    for interface in interfaces {
        assert!(interface["mac"].is_string(), "{interface}");
        assert!(interface["mtu"].is_u64(), "{interface}");
    }
    let sandboxes: Vec<_> = interfaces
        .iter()
        .filter_map(|interface| interface["sandbox"].as_str())
        .collect();
    let sandboxes: Vec<_> = sandboxes
        .into_iter()
        .filter(|path| !path.is_empty())
        .collect();
    assert_eq!(
        sandboxes,
        [pod.path().display().to_string()],
        "only the pod's own end"
    );
    let ips = result["ips"].as_array().context("no ips")?;
    for (ip, gateway) in ips.iter().zip(GATEWAYS) {
        assert_eq!(
            (&ip["interface"], &ip["gateway"]),
            (&json!(2), &json!(gateway)),
            "{ip}"
        );
        assert!(ip.get("version").is_none(), "{ip}");
    }
    let defaults: BTreeSet<_> = inspect::items(&result["routes"])
        .map(|r| r["dst"].to_string())
        .collect();
    assert_eq!(
        defaults,
        BTreeSet::from(["\"0.0.0.0/0\"".to_owned(), "\"::/0\"".to_owned()])
    );
    assert!(
        result.get("dns").is_none(),
        "an empty dns is left out: {result}"
    );
    Call::new(&node, "DEL", "c1", &pod).silent()
}

/// cni.md 18.
#[test]
fn the_result_has_the_form_of_older_releases_where_they_are_asked_for() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let pod = NetNs::create("pod")?;
        let call = |verb| Call::new(&node, verb, "c1", &pod).keys(json!({"cniVersion": version}));
        let result = call("ADD").result()?;
        assert_eq!(result["cniVersion"], version);
        let old = version.starts_with("0.");
        let versions: Vec<_> = inspect::items(&result["ips"])
            .filter_map(|ip| ip["version"].as_str())
            .collect();
        assert_eq!(
            versions,
            if old { vec!["4", "6"] } else { Vec::new() },
            "{result}"
        );
        assert_eq!(result.get("dns"), old.then_some(&json!({})), "{result}");
        assert!(
            inspect::items(&result["interfaces"])
                .all(|interface| !old || interface.get("mtu").is_none()),
            "{result}",
        );
        call("DEL").silent()?;
    }
    assert_empty(&node)
}

/// cni.md 23, 24, 25.
#[test]
fn an_interface_or_attachment_that_exists_is_code_102_and_stays_as_it_is() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (pod, fresh) = (NetNs::create("pod")?, NetNs::create("fresh")?);
    let result = Call::new(&node, "ADD", "c1", &pod).result()?;
    let leases = node.leases()?;
    for netns in [&pod, &fresh] {
        let (code, text) = Call::new(&node, "ADD", "c1", netns).error()?;
        assert_eq!(code, 102, "{text}");
    }
    fresh.ip("link add eth0 type veth peer name other")?;
    let (code, text) = Call::new(&node, "ADD", "c2", &fresh).error()?;
    assert_eq!(code, 102, "{text}");
    assert_eq!(
        inspect::items(&fresh.ip_json("link show type veth")?).len(),
        2
    );
    assert_eq!((node.leases()?, node.ports()?.len()), (leases, 1));
    Call::new(&node, "CHECK", "c1", &pod)
        .keys(json!({"prevResult": result}))
        .silent()?;

    Call::new(&node, "ADD", "c1", &pod)
        .env("CNI_IFNAME", "net1")
        .result()?;
    assert_eq!(
        node.ports()?.len(),
        2,
        "another interface is another attachment"
    );
    Call::new(&node, "DEL", "c1", &pod)
        .env("CNI_IFNAME", "net1")
        .silent()?;
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    assert_empty(&node)
}

/// cni.md 53.
#[test]
fn fifty_at_once_on_a_node_without_a_bridge_all_succeed() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pods: Vec<_> = (0..50)
        .map(|n| NetNs::create(&format!("p{n}")))
        .collect::<Result<_>>()?;
    let all = |verb: &'static str, run: fn(&Call<'_>) -> Result<Value>| -> Result<Vec<Value>> {
        thread::scope(|scope| {
            let calls: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(n, pod)| {
                    let call = Call::new(&node, verb, &format!("c{n}"), pod).patient();
                    scope.spawn(move || run(&call))
                })
                .collect();
            calls
                .into_iter()
                .map(|call| call.join().expect("asserts of a call"))
                .collect()
        })
    };
    let results = all("ADD", |call| call.result())?;
    let mut ips = BTreeSet::new();
    for result in &results {
        ips.extend(inspect::result_ips(result)?);
    }
    assert_eq!(ips.len(), 100, "all addresses differ");
    assert_eq!(node.ports()?.len(), 50);
    let bridge = node.netns.ip_json("address show cbr0")?[0].take();
    let gateways = inspect::items(&bridge["addr_info"]);
    assert_eq!(
        gateways
            .filter(|address| address["scope"] == "global")
            .count(),
        2,
        "{bridge}"
    );
    for (pod, result) in pods.iter().zip(&results) {
        pod.ping(Family::V4.pick(GATEWAYS))
            .with_context(|| result.to_string())?;
    }
    all("DEL", |call| call.silent().map(|()| Value::Null))?;
    assert_empty(&node)
}

/// cni.md 33.
#[test]
fn an_address_that_is_given_out_again_answers_at_once() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let peer = Pod::add(&node, "default/peer")?;
    // One address in each range, so that the second pod gets that of the first.
    node.write_conflist(&node.conflist(json!({"ipam": {"ranges": [
        [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9"}],
        [{"subnet": "fd88::/64", "rangeStart": "fd88::9", "rangeEnd": "fd88::9"}],
    ]}})))?;
    let mut last = None;
    for round in 0..3 {
        let pod = Pod::add(&node, &format!("default/pod-{round}"))?;
        assert_eq!(*last.get_or_insert_with(|| pod.ips().to_vec()), pod.ips());
        for family in Family::ALL {
            node.netns.ping(pod.ip(family))?;
            peer.netns.ping(pod.ip(family))?;
        }
    }
    Ok(())
}

/// cni.md 32.
#[test]
fn the_bridge_keeps_its_address_while_pods_come_and_go() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mac =
        || -> Result<Value> { Ok(node.netns.ip_json("link show cbr0")?[0]["address"].take()) };
    let first = {
        let _pod = Pod::add(&node, "default/first")?;
        mac()?
    };
    for round in 0..20 {
        let _pod = Pod::add(&node, &format!("default/pod-{round}"))?;
        assert_eq!(mac()?, first);
    }
    assert_eq!(mac()?, first);
    Ok(())
}

/// cni.md 29.
#[test]
fn a_bridge_name_that_another_link_has_is_code_100_and_the_link_stays() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    node.outside.ip(&format!(
        "link add other type veth peer name cbr0 netns {}",
        node.netns.name()
    ))?;
    let pod = NetNs::create("pod")?;
    let (code, text) = Call::new(&node, "ADD", "c1", &pod).error()?;
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("cbr0"), "{text}");
    assert_eq!(
        inspect::items(&node.netns.ip_json("link show cbr0 type veth")?).len(),
        1
    );
    assert_empty(&node)
}

/// cni.md 65.
#[test]
fn an_add_runs_no_other_program_and_sends_three_batches_at_most() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let _bridge = Pod::add(&node, "default/first")?;
    let pod = NetNs::create("pod")?;
    let trace = node.dir().join("trace");
    let call = Call::new(&node, "ADD", "c1", &pod);
    let inner = call.command();
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-e", "trace=execve,sendmsg,sendto", "-o"])
        .arg(&trace);
    traced.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => traced.env(key, value),
            None => traced.env_remove(key),
        };
    }
    let output = command::output(&mut traced, call.input_bytes(), command::LIMIT)?;
    assert!(output.status.success(), "{output:?}");
    let trace = fs::read_to_string(&trace)?;
    let count = |call: &str| trace.lines().filter(|line| line.contains(call)).count();
    // nsenter, which then becomes the plugin.
    assert!(count("execve(") - count("ENOENT") <= 2, "{trace}");
    assert!(count("sendmsg(") + count("sendto(") <= 3, "{trace}");
    Call::new(&node, "DEL", "c1", &pod).silent()
}

/// cni.md 66: the reference runtime, with the results that it keeps between its calls.
#[test]
fn cnitool_adds_checks_and_deletes_in_every_version_that_has_check() -> Result<()> {
    require_root!();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let node = Node::new()?;
        node.write_conflist(&node.conflist(json!({"cniVersion": version})))?;
        for round in 0..2 {
            let pod = Pod::add(&node, &format!("default/pod-{round}"))?;
            assert_eq!(pod.result["cniVersion"], version, "{}", pod.result);
            for family in Family::ALL {
                eventually(command::LIMIT, || pod.netns.ping(family.pick(GATEWAYS)))?;
                eventually(command::LIMIT, || node.netns.ping(pod.ip(family)))?;
            }
            pod.check()?;
            pod.del()?;
            pod.del()?;
            let links = pod.netns.ip_json("link show")?;
            assert_eq!(inspect::items(&links).len(), 1, "lo alone: {links}");
            assert_empty(&node)?;
        }
    }
    Ok(())
}
