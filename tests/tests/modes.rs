//! The modes of a pod's link: the same connections, policies, Services and guards on
//! bridge ports that are routed, on bridge ports that are neighbours, and without a bridge.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::matrix::{self, Cell, Expect};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::objects;
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::traffic::{PATIENT, Protocol, SHORT, Server, ask};
use tests::wait::{SOON, eventually};
use tests::{inspect, require_root};

const MODES: [&str; 3] = ["routed-ports", "l2", "routed"];

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];

fn node(mode: &str) -> Result<Node> {
    // The mode must not need what a host may have switched off.
    let node = Node::with_bridge_nf(false)?;
    node.write_conflist(&node.conflist(json!({"mode": mode})))?;
    Ok(node)
}

/// cni.md 19, 33, 41, 64.
#[test]
fn pods_node_and_outside_reach_each_other_in_every_mode() -> Result<()> {
    require_root!();
    for mode in MODES {
        let node = node(mode)?;
        let (one, two) = (
            Pod::add(&node, "default/one")?,
            Pod::add(&node, "default/two")?,
        );
        let _server = Server::start(&two.netns, "two", &[80])?;
        for family in Family::ALL {
            one.netns.ping(family.pick(GATEWAYS))?;
            for from in [&one.netns, &node.netns, &node.outside] {
                from.ping(two.ip(family))?;
                for protocol in Protocol::ALL {
                    let target = two.at(family, 80);
                    let outcome = from.enter(move || ask(protocol, target, PATIENT))?;
                    assert!(
                        outcome.is_answered(),
                        "{mode} {family} {protocol}: {outcome}"
                    );
                }
            }
        }
        kernel_side(&node, &one, mode)?;
        one.check()?;
        one.del()?;
        two.del()?;
        assert_eq!(
            (node.ports()?, node.leases()?, node.records()?),
            (Vec::new(), Vec::new(), Vec::new()),
            "{mode}"
        );
    }
    Ok(())
}

/// What of the mode is visible to others.
fn kernel_side(node: &Node, pod: &Pod<'_>, mode: &str) -> Result<()> {
    let port = node.netns.ip_json(&format!("link show {}", pod.port()?))?[0].take();
    let master = (mode != "routed").then_some("cbr0");
    assert_eq!(port["master"].as_str(), master, "{port}");
    let eth0 = pod.netns.ip_json("address show eth0")?[0].take();
    let length = |local: std::net::IpAddr| {
        let mut addresses = inspect::items(&eth0["addr_info"]);
        let address = addresses.find(|address| address["local"] == local.to_string());
        address.map(|address| address["prefixlen"].clone())
    };
    let lengths = Family::ALL.map(|family| length(pod.ip(family)));
    let expected = if mode == "l2" { [24, 64] } else { [32, 128] };
    assert_eq!(
        lengths,
        expected.map(|length| Some(json!(length))),
        "{eth0}"
    );
    if mode == "routed" {
        let routes = node
            .netns
            .ip_json(&format!("route show {}", pod.ip(Family::V4)))?;
        assert_eq!(
            routes[0]["dev"].as_str(),
            Some(pod.port()?.as_str()),
            "{routes}"
        );
        let bridges = node.netns.ip_json("link show type bridge")?;
        assert_eq!(inspect::items(&bridges).len(), 0, "{bridges}");
        return Ok(());
    }
    let flags = &port["linkinfo"]["info_slave_data"];
    assert_eq!(flags["isolated"], mode == "routed-ports", "{flags}");
    assert_eq!(flags["hairpin"], true, "{flags}");
    let bridge = node.netns.ip_json("link show cbr0")?[0].take();
    let data = &bridge["linkinfo"]["info_data"];
    let calls = [&data["nf_call_iptables"], &data["nf_call_ip6tables"]];
    let on = json!(u8::from(mode == "l2"));
    assert_eq!(calls, [&on, &on], "{data}");
    Ok(())
}

/// cni.md 64: the policy sees what pods of one node send each other, Services lead to
/// neighbours and back to the pod itself.
#[test]
fn policies_and_services_hold_between_pods_of_one_node_in_every_mode() -> Result<()> {
    require_root!();
    let pods: Vec<(&str, Value)> = vec![
        ("shop/web", json!({"app": "web"})),
        ("shop/front", json!({"app": "front"})),
        ("lab/probe", json!({"app": "probe"})),
    ];
    let allow = objects::policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {}}], "ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}]}),
    );
    let service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    for mode in MODES {
        let node = node(mode)?;
        let scene = Scene::start(&node, &pods, &[allow.clone(), service.clone()])?;
        let mut cells = Vec::new();
        for family in Family::ALL {
            let vip = std::net::SocketAddr::new(family.pick(WEB), 8000);
            let (web, probe) = (scene.pod("shop/web"), scene.pod("lab/probe"));
            for protocol in Protocol::ALL {
                for (from, to, target, allowed) in [
                    ("shop/front", "web", web.at(family, 80), true),
                    ("shop/front", "web:81", web.at(family, 81), false),
                    ("shop/front", "the Service", vip, true),
                    ("shop/web", "the Service, which is itself", vip, true),
                    ("lab/probe", "web", web.at(family, 80), false),
                    ("lab/probe", "the Service", vip, false),
                    ("shop/web", "probe", probe.at(family, 80), true),
                    (NODE, "web", web.at(family, 80), true),
                    (NODE, "the Service", vip, true),
                    (OUTSIDE, "web", web.at(family, 80), false),
                    (OUTSIDE, "probe", probe.at(family, 80), true),
                ] {
                    cells.push(Cell {
                        from: from.to_owned(),
                        to: to.to_owned(),
                        protocol,
                        target,
                        expect: Expect::answered(allowed),
                    });
                }
            }
        }
        matrix::verify(&scene.sources(), &cells).map_err(|error| error.context(mode))?;
    }
    Ok(())
}

/// An isolated pod of mode `l2` has to find its neighbours' hardware addresses by
/// multicast, which no policy knows.
#[test]
fn neighbours_are_found_past_the_policies_and_nothing_else_is() -> Result<()> {
    require_root!();
    let node = node("l2")?;
    let pods: Vec<(&str, Value)> = ["shop/web", "shop/front"]
        .map(|key| (key, json!({"app": key[5..]})))
        .into();
    let scene = Scene::start(&node, &pods, &[objects::deny_all("shop")])?;
    let (web, front) = (scene.pod("shop/web"), scene.pod("shop/front"));
    for family in Family::ALL {
        let target = web.at(family, 80);
        let outcome = scene.ask_for("shop/front", Protocol::Tcp, target, matrix::LIMIT)?;
        assert!(!outcome.is_answered(), "{family}: {outcome}");
        let neighbours = front
            .netns
            .ip_json(&format!("neigh show {}", web.ip(family)))?;
        let mac = web.netns.ip_json("link show eth0")?[0]["address"].take();
        assert_eq!(neighbours[0]["lladdr"], mac, "{family}: {neighbours}");
        front
            .netns
            .ping_for(web.ip(family), SHORT)
            .expect_err("no policy allows it");
    }
    Ok(())
}

/// cni.md 42.
#[test]
fn check_names_the_route_that_a_pod_without_a_bridge_has_lost() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let keys = json!({"mode": "routed"});
    let result = Call::new(&node, "ADD", "c1", &pod)
        .keys(keys.clone())
        .result()?;
    let mut with_result = keys.clone();
    with_result["prevResult"] = result.clone();
    let check = Call::new(&node, "CHECK", "c1", &pod).keys(with_result);
    check.silent()?;
    let ip = inspect::result_ips(&result)?[1];
    node.netns.ip(&format!("-6 route del {ip}"))?;
    let (code, text) = check.error()?;
    assert_eq!(code, 104, "{text}");
    assert!(text.contains(&ip.to_string()), "{text}");
    Call::new(&node, "DEL", "c1", &pod).keys(keys).silent()
}

/// A bridge hands frames to the packet filter for the one mode, which breaks the other.
#[test]
fn a_bridge_has_ports_of_one_mode() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (one, two) = (NetNs::create("one")?, NetNs::create("two")?);
    Call::new(&node, "ADD", "c1", &one).result()?;
    let l2 = json!({"mode": "l2"});
    let (code, text) = Call::new(&node, "ADD", "c2", &two).keys(l2).error()?;
    assert_eq!(code, 7, "{text}");
    assert!(
        text.contains("cbr0") && text.contains("routed-ports"),
        "{text}"
    );
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 2));
    let other = json!({"mode": "l2", "bridge": "cbr1", "ipam": {"ranges": [
        [{"subnet": "10.87.0.0/24"}]]}});
    Call::new(&node, "ADD", "c2", &two)
        .keys(other.clone())
        .result()?;
    Call::new(&node, "DEL", "c2", &two).keys(other).silent()?;
    Call::new(&node, "DEL", "c1", &one).silent()
}

/// Mode `l2`: what the reference bridge plugin has for ports that only switch.
#[test]
fn isolation_hairpin_and_the_absence_of_a_gateway_are_as_asked_for() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys = json!({
        "mode": "l2", "portIsolation": true, "hairpinMode": false, "isGateway": false,
    });
    node.write_conflist(&node.conflist(keys))?;
    let (one, two) = (
        Pod::add(&node, "default/one")?,
        Pod::add(&node, "default/two")?,
    );
    for pod in [&one, &two] {
        let port = node.netns.ip_json(&format!("link show {}", pod.port()?))?[0].take();
        let flags = &port["linkinfo"]["info_slave_data"];
        assert_eq!(
            (&flags["isolated"], &flags["hairpin"]),
            (&json!(true), &json!(false))
        );
        pod.check()?;
    }
    let bridge = node.netns.ip_json("address show cbr0")?[0].take();
    let addresses = inspect::items(&bridge["addr_info"]);
    assert_eq!(
        addresses
            .filter(|address| address["scope"] == "global")
            .count(),
        0,
        "{bridge}"
    );
    let defaults = one.netns.ip_json("route show default")?;
    assert_eq!(inspect::items(&defaults).len(), 0, "{defaults}");
    one.netns
        .ping_for(two.ip(Family::V4), SHORT)
        .expect_err("both ports are isolated");
    Ok(())
}

/// cni.md 15.
#[test]
fn an_empty_ipam_makes_an_interface_without_addresses() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let mut conf = node.conf(json!({}));
    conf["ipam"] = json!({});
    let result = Call::new(&node, "ADD", "c1", &pod).conf(&conf).result()?;
    assert!(
        result.get("ips").is_none() && result.get("routes").is_none(),
        "{result}"
    );
    assert_eq!(inspect::items(&result["interfaces"]).len(), 3, "{result}");
    let eth0 = pod.ip_json("address show eth0")?[0].take();
    assert_eq!(eth0["operstate"], "UP", "{eth0}");
    let addresses = inspect::items(&eth0["addr_info"]);
    assert_eq!(
        addresses
            .filter(|address| address["scope"] == "global")
            .count(),
        0,
        "{eth0}"
    );
    let mut with_result = conf.clone();
    with_result["prevResult"] = result;
    Call::new(&node, "CHECK", "c1", &pod)
        .conf(&with_result)
        .silent()?;
    Call::new(&node, "DEL", "c1", &pod).conf(&conf).silent()?;

    conf["disableContainerInterface"] = json!(true);
    let result = Call::new(&node, "ADD", "c1", &pod).conf(&conf).result()?;
    let eth0 = pod.ip_json("link show eth0")?[0].take();
    assert!(
        !inspect::items(&eth0["flags"]).any(|flag| flag == "UP"),
        "{eth0}"
    );
    let mut with_result = conf.clone();
    with_result["prevResult"] = result;
    Call::new(&node, "CHECK", "c1", &pod)
        .conf(&with_result)
        .silent()?;
    Call::new(&node, "DEL", "c1", &pod).conf(&conf).silent()?;
    assert_eq!((node.ports()?.len(), node.records()?.len()), (0, 0));
    Ok(())
}

/// netpol.md 75: who asked the plugin is not there when the setting changes; the agent is.
#[test]
fn ports_are_isolated_exactly_while_bridges_call_no_packet_filter() -> Result<()> {
    require_root!();
    let node = Node::with_bridge_nf(false)?;
    let pods: Vec<(&str, Value)> = ["shop/web", "shop/front"]
        .map(|key| (key, json!({"app": key[5..]})))
        .into();
    let service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    let scene = Scene::start(&node, &pods, &[service])?;
    for on in [false, true, false] {
        node.set_bridge_nf(on)?;
        eventually(SOON, || {
            for pod in scene.pods.values() {
                let link = node.netns.ip_json(&format!("link show {}", pod.port()?))?[0].take();
                let isolated = &link["linkinfo"]["info_slave_data"]["isolated"];
                ensure!(*isolated == !on, "{}: isolated is {isolated}", pod.key());
            }
            let status = scene.agent.json(&["status"])?;
            ensure!(
                status["portsIsolated"] == !on,
                "{}",
                status["portsIsolated"]
            );
            Ok(())
        })?;
        for family in Family::ALL {
            let vip = std::net::SocketAddr::new(family.pick(WEB), 8000);
            for from in ["shop/front", "shop/web"] {
                let outcome = scene.ask(from, Protocol::Tcp, vip)?;
                assert!(
                    outcome.is_answered(),
                    "{family} {from}, bridge-nf {on}: {outcome}"
                );
            }
        }
    }
    Ok(())
}
