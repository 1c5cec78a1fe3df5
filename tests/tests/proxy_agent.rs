//! The agent's side of the Service proxy: settings, health, metrics, node addresses.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::{self, Agent, http_get};
use tests::inspect::{self, ruleset};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, NODE_IPS, NODE_NAME, Node};
use tests::objects;
use tests::require_root;
use tests::scene::Scene;
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// This node's Node object.
fn own_node(change: impl FnOnce(&mut Value)) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}});
    change(&mut node);
    node
}

/// The elements of a set of the agent.
fn elements(netns: &NetNs, set: &str) -> Result<Vec<String>> {
    let objects = ruleset(netns)?;
    let object = objects.iter().find(|object| object["set"]["name"] == set);
    let object = object.with_context(|| format!("no set {set}"))?;
    let mut elements: Vec<_> = inspect::items(&object["set"]["elem"])
        .map(|element| {
            let value = element.get("elem").map_or(element, |e| &e["val"]);
            value.as_str().unwrap_or_default().to_owned()
        })
        .collect();
    elements.sort();
    Ok(elements)
}

/// services.md 68.
#[test]
fn a_node_that_is_being_removed_fails_healthz_and_not_livez() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let arguments = [
        "--healthz-bind-address",
        "0.0.0.0:10256",
        "--metrics-bind-address",
        "127.0.0.1:10249",
    ];
    let web = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(80, 80)]);
    let pods = [("shop/web", json!({"app": "web"}))];
    let scene = Scene::start_with(&node, &pods, &[web.clone(), own_node(|_| {})], &arguments)?;
    let health = |path: &str| -> Result<(u16, Value)> {
        // As a load balancer outside of the cluster asks.
        let server = format!("{}:10256", NODE_IPS[0]);
        let (status, head, body) = http_get(&node.outside, &server, path)?;
        ensure!(head.contains("application/json"), "{head}");
        Ok((status, serde_json::from_str(&body).context(body)?))
    };
    let (status, body) = health("/healthz")?;
    assert_eq!(
        (status, &body["nodeEligible"]),
        (200, &json!(true)),
        "{body}"
    );
    assert!(body["lastUpdated"].is_string() && body["currentTime"].is_string());
    let server = format!("{}:10256", NODE_IPS[0]);
    assert_eq!(http_get(&node.outside, &server, "/metrics")?.0, 404);

    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    for leaving in [
        own_node(|node| node["spec"]["taints"] = taint),
        own_node(|node| node["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()),
    ] {
        scene.apply(&[web.clone(), leaving])?;
        eventually(SOON, || {
            let (status, body) = health("/healthz")?;
            ensure!(
                status == 503 && body["nodeEligible"] == false,
                "{status} {body}"
            );
            Ok(())
        })?;
        assert_eq!(health("/livez")?.0, 200);
        scene.apply(&[web.clone(), own_node(|_| {})])?;
        eventually(SOON, || {
            let (status, body) = health("/healthz")?;
            ensure!(status == 200, "{status} {body}");
            Ok(())
        })?;
    }

    let proxy_mode = http_get(&node.netns, "127.0.0.1:10249", "/proxyMode")?;
    assert_eq!((proxy_mode.0, proxy_mode.2.as_str()), (200, "nftables"));
    let metrics = http_get(&node.netns, "127.0.0.1:10249", "/metrics")?.2;
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"503\"}",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
        "kubeproxy_sync_proxy_rules_service_changes_pending{ip_family=\"IPv4\"} 0",
        "trammel_conntrack_limit",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    Ok(())
}

#[test]
fn a_port_that_kube_proxy_still_has_is_served_when_it_is_free() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let holder = node
        .netns
        .enter(|| std::net::TcpListener::bind("127.0.0.1:10249"))??;
    let agent = Agent::start_with(&node, &["--metrics-bind-address", "127.0.0.1:10249"])?;
    let log = agent.log_text();
    assert!(log.contains("127.0.0.1:10249"), "{log}");
    drop(holder);
    eventually(SOON, || {
        let (status, _, _) = http_get(&node.netns, "127.0.0.1:10249", "/healthz")?;
        ensure!(status == 200, "{status}");
        Ok(())
    })?;
    Ok(())
}

/// services.md 14, 15.
#[test]
fn node_ports_follow_the_addresses_of_the_node() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = Agent::start(&node)?;
    let served = |expected: [&[&str]; 2]| -> Result<()> {
        for (set, expected) in ["node-addresses4", "node-addresses6"]
            .into_iter()
            .zip(expected)
        {
            let found = elements(&node.netns, set)?;
            ensure!(
                found == expected,
                "{set}: {found:?} instead of {expected:?}"
            );
        }
        Ok(())
    };
    // Without a Node object those of the interface with the default route.
    served([&NODE_IPS[..1], &NODE_IPS[1..]])?;
    node.netns.ip("address add 192.0.2.7/24 dev uplink")?;
    node.netns
        .ip("address add 2001:db8:77::7/64 dev uplink nodad")?;
    node.netns.ip("address add 198.51.100.1/32 dev lo")?;
    eventually(SOON, || {
        served([
            &["192.0.2.2", "192.0.2.7"],
            &["2001:db8:77::2", "2001:db8:77::7"],
        ])
    })?;
    node.netns.ip("address del 192.0.2.7/24 dev uplink")?;
    eventually(SOON, || {
        served([&["192.0.2.2"], &["2001:db8:77::2", "2001:db8:77::7"]])
    })?;
    node.manifests.write(
        "node",
        &[own_node(|node| {
            node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.2"}]);
        })],
    )?;
    agent.wait()?;
    served([&["192.0.2.2"], &[]])?;
    agent.stop()?;

    let agent = Agent::start_with(
        &node,
        &["--nodeport-addresses", "198.51.100.0/24,localhost"],
    )?;
    served([&["198.51.100.1"], &[]])?;
    agent.stop()?;
    node.netns.ip("link add cbr0 type bridge")?;
    node.netns
        .ip(&format!("address add {}/24 dev cbr0", GATEWAYS[0]))?;
    let _agent = Agent::start_with(&node, &["--nodeport-addresses", "all"])?;
    served([
        &[GATEWAYS[0], "192.0.2.2", "198.51.100.1"],
        &["2001:db8:77::2", "2001:db8:77::7"],
    ])
}

#[test]
fn settings_of_connection_tracking_are_those_of_kube_proxy() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let value = |name: &str| {
        let name = format!("net.netfilter.nf_conntrack_tcp_{name}");
        node.netns.read_sysctl(&name).context(name)
    };
    let agent = Agent::start(&node)?;
    assert_eq!(value("timeout_close_wait")?, "3600");
    assert_eq!(value("timeout_established")?, "86400");
    agent.stop()?;
    let liberal = value("be_liberal")?;
    let config = node.dir().join("agent.yaml");
    std::fs::write(
        &config,
        "services: {conntrack: {tcpCloseWaitTimeout: 30m, tcpEstablishedTimeout: 2h}}",
    )?;
    let config = config.display().to_string();
    let arguments = [
        "--config",
        &config,
        "--conntrack-tcp-timeout-established",
        "0",
    ];
    let agent = Agent::start_with(&node, &arguments)?;
    assert_eq!(value("timeout_close_wait")?, "1800");
    assert_eq!(value("timeout_established")?, "86400", "as it was");
    assert_eq!(value("be_liberal")?, liberal, "as it was");
    agent.stop()?;
    let _agent = Agent::start_with(&node, &["--conntrack-tcp-be-liberal"])?;
    assert_eq!(value("be_liberal")?, "1");
    Ok(())
}

/// services.md 52, 53, 70; netpol.md 68.
#[test]
fn tables_of_others_are_reported_and_those_of_kube_proxy_removed_on_demand() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    inspect::nft(
        &node.netns,
        "add table ip kube-proxy
        add chain ip kube-proxy services
        add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
        add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }
        add rule ip kube-proxy nat-prerouting jump services
        add rule ip kube-proxy services ip daddr . ip protocol . th dport vmap @service-ips
        add table ip6 kube-proxy
        add chain ip6 kube-proxy services
        add table ip nat
        add chain ip nat KUBE-SERVICES
        add table ip filter
        add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    )?;
    let agent = Agent::start(&node)?;
    let problems = |present: &[&str], absent: &[&str]| {
        // The tables are looked at every five seconds.
        eventually(SOON, || {
            let status = agent.verb(&["status"])?;
            for part in present {
                ensure!(status.contains(part), "{part} is not in\n{status}");
            }
            for part in absent {
                ensure!(!status.contains(part), "{part} is in\n{status}");
            }
            Ok(())
        })
    };
    let foreign = [
        "table ip filter drops",
        "table ip nat has kube-proxy's chains",
    ];
    let kube_proxy = ["table ip kube-proxy is", "table ip6 kube-proxy is"];
    problems(&[&foreign[..], &kube_proxy].concat(), &["trammel drops"])?;
    let cleaned = agent::verb(&node, &["cleanup", "--kube-proxy", "-o", "json"])?;
    assert!(cleaned.status.success(), "{cleaned:?}");
    let removed: Value = serde_json::from_str(&cleaned.stdout)?;
    assert_eq!(
        removed,
        json!({"removed": ["ip kube-proxy", "ip6 kube-proxy"]})
    );
    let left = ["bridge trammel", "inet trammel", "ip filter", "ip nat"];
    assert_eq!(inspect::tables(&node.netns)?, left);
    problems(&foreign, &["kube-proxy is"])?;
    let again = agent::verb(&node, &["cleanup", "--kube-proxy"])?;
    assert!(again.status.success(), "{again:?}");
    assert!(agent.verify()?.status.success());
    inspect::nft(&node.netns, "delete table ip filter; delete table ip nat")?;
    problems(&[], &["table ip"])?;
    Ok(())
}
