//! Nodes that join, leave and change.

use anyhow::{Result, ensure};
use serde_json::json;
use tests::fabric::{Fabric, Join, pod_cidr};
use tests::pod::Family;
use tests::require_root;
use tests::wait::{SOON, eventually};

use super::{PROBE, WEB, gateway, own_routes, problems, two_pods};

#[test]
fn routes_follow_nodes_that_leave_join_and_change() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let netns = &fabric.nodes[0].netns;
    let pod_cidrs = Family::ALL.map(|family| pod_cidr(2, family));

    cluster.apply_nodes(&[fabric.node_object(1)])?;
    eventually(SOON, || {
        let routes = own_routes(netns)?;
        ensure!(routes.len() == 2, "n2 has left: {routes:?}");
        Ok(())
    })?;
    cluster.apply_nodes(&fabric.node_objects())?;
    for pod_cidr in &pod_cidrs {
        eventually(SOON, || gateway(netns, pod_cidr))?;
    }
    cluster.all_reach(&[PROBE, WEB])?;

    // It has another address.
    fabric.nodes[1]
        .netns
        .ip("address add 192.0.2.77/24 dev uplink")?;
    let mut nodes = fabric.node_objects();
    nodes[1]["status"]["addresses"][0]["address"] = json!("192.0.2.77");
    cluster.apply_nodes(&nodes)?;
    eventually(SOON, || {
        let found = gateway(netns, &pod_cidrs[0])?;
        ensure!(found == "192.0.2.77", "via {found}");
        Ok(())
    })?;
    cluster.all_reach(&[PROBE, WEB])?;

    // It has another PodCIDR.
    nodes[1]["spec"]["podCIDRs"] = json!(["10.88.78.0/24", pod_cidrs[1]]);
    cluster.apply_nodes(&nodes)?;
    eventually(SOON, || gateway(netns, "10.88.78.0/24"))?;
    ensure!(
        gateway(netns, &pod_cidrs[0]).is_err(),
        "the old one is nobody's"
    );
    Ok(())
}

/// An API server that does not know this node, as after a loss of its data, has no say in
/// what it reaches.
#[test]
fn routes_stay_while_the_own_node_is_unknown() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let netns = &fabric.nodes[0].netns;
    let before = own_routes(netns)?;
    fabric.nodes[0].manifests.write("nodes", &[])?;
    eventually(SOON, || {
        let problems = problems(&cluster, 1)?.join("\n");
        ensure!(problems.contains("there is no Node n1"), "{problems}");
        Ok(())
    })?;
    assert_eq!(own_routes(netns)?, before);
    cluster.all_reach(&[PROBE, WEB])
}

/// Both claim the prefix of n2; its Node is the older.
#[test]
fn a_prefix_of_two_nodes_is_the_older_one_s() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 3)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let mut nodes = fabric.node_objects();
    nodes[2]["spec"]["podCIDRs"] = nodes[1]["spec"]["podCIDRs"].clone();
    cluster.apply_nodes(&nodes)?;
    for number in 1..=3 {
        eventually(SOON, || {
            let problems = problems(&cluster, number)?.join("\n");
            ensure!(
                problems.contains("10.88.2.0/24 of node n3 overlaps"),
                "{problems}"
            );
            Ok(())
        })?;
    }
    for family in Family::ALL {
        let found = gateway(&fabric.nodes[0].netns, &pod_cidr(2, family))?;
        assert_eq!(found, fabric.node_ip(2, family).to_string());
    }
    cluster.all_reach(&[PROBE, WEB])
}
