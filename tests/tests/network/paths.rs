//! Ways from node to node.

use anyhow::Result;
use serde_json::json;
use tests::agent::{self, http_get};
use tests::cluster::Cluster;
use tests::fabric::{Fabric, Join, pod_cidr};
use tests::inspect::items;
use tests::pod::Family;
use tests::require_root;

use super::{PROBE, WEB, gateway, no_problems, own_routes, two_pods};

/// Both families by plain routes, whose next hop is the other node.
#[test]
fn pods_on_neighbouring_nodes_reach_each_other_directly() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 3)?;
    let mut cluster = two_pods(&fabric, &["--network", "auto"])?;
    cluster.add_pod(3, "lab/third", &json!({}))?;
    cluster.all_reach(&[PROBE, WEB, "lab/third"])?;
    for (number, other) in [(1, 2), (1, 3), (2, 1), (3, 2)] {
        let netns = &fabric.nodes[number - 1].netns;
        for family in Family::ALL {
            let found = gateway(netns, &pod_cidr(other, family))?;
            let expected = fabric.node_ip(other, family).to_string();
            assert_eq!(found, expected, "n{number} to n{other}");
        }
        assert_eq!(
            own_routes(netns)?.len(),
            6,
            "two ways, one's own, both families"
        );
        let tunnels = netns.ip_json("link show type vxlan")?;
        assert_eq!(items(&tunnels).count(), 0, "nobody needs a tunnel");
        no_problems(&cluster, number)?;
    }
    // From a node to a pod of another, which sees the node's own address.
    for family in Family::ALL {
        cluster.reaches("n1", WEB, family)?;
        let seen = cluster.servers[WEB].seen();
        let node = fabric.node_ip(1, family);
        assert!(seen.iter().any(|seen| seen.peer.ip() == node), "{seen:?}");
    }
    let status = cluster.agents[0].json(&["status"])?;
    let network = &status["network"];
    assert_eq!(
        (&network["mode"], &network["mtu"]),
        (&json!("auto"), &json!(1500))
    );
    let paths: Vec<_> = items(&network["routes"])
        .map(|route| &route["path"])
        .collect();
    assert_eq!(paths, ["direct"; 4]);
    Ok(())
}

/// A packet to an address of the own PodCIDR that no pod has must not go out by the default
/// route, from where it would come back.
#[test]
fn what_is_for_no_pod_does_not_leave_the_node() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 1)?;
    let _cluster = Cluster::start(&fabric, &["--network", "direct"], &[])?;
    let netns = &fabric.nodes[0].netns;
    for (family, target) in [("-4", "10.88.1.77"), ("-6", "fd88:1::77")] {
        let error = netns.ip(&format!("{family} route get {target}"));
        let error = format!("{:#}", error.expect_err("no way"));
        assert!(
            error.contains("unreachable") || error.contains("No route"),
            "{error}"
        );
    }
    Ok(())
}

/// The end of an agent cuts nothing, another finds everything as it is, and `cleanup` removes
/// what is ours and no route of others.
#[test]
fn the_network_outlives_the_agent_until_it_is_cleaned_up() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let arguments = ["--network", "auto"];
    let mut cluster = two_pods(&fabric, &arguments)?;
    let netns = &fabric.nodes[0].netns;
    netns.ip("route add 203.0.113.0/24 via 192.0.2.12")?;
    let before = own_routes(netns)?;
    cluster.agents.remove(0).kill()?;
    assert_eq!(own_routes(netns)?, before);
    cluster.all_reach(&[PROBE, WEB])?;

    let agent = tests::agent::Agent::start_with(&fabric.nodes[0], &arguments)?;
    agent.wait()?;
    let log = agent.log_text();
    assert_eq!(own_routes(netns)?, before);
    assert!(!log.contains("replace route"), "{log}");
    agent.stop()?;
    cluster.all_reach(&[PROBE, WEB])?;

    let output = agent::verb(&fabric.nodes[0], &["cleanup"])?;
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.contains("10.88.2.0/24"), "{}", output.stdout);
    assert_eq!(own_routes(netns)?, []);
    let others = netns.ip("route show 203.0.113.0/24")?;
    assert!(others.contains("192.0.2.12"), "{others}");
    Ok(())
}

/// The metrics tell how pods of others are reached.
#[test]
fn metrics_count_the_ways_to_other_nodes() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let _cluster = two_pods(&fabric, &["--network", "auto"])?;
    let (_, _, text) = http_get(&fabric.nodes[0].netns, agent::LISTEN, "/metrics")?;
    let line = "trammel_network_routes{path=\"direct\"} 2";
    assert!(text.lines().any(|found| found == line), "{text}");
    Ok(())
}
