//! What others take away comes back within about a second.

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::cluster::Cluster;
use tests::fabric::{Fabric, Join, pod_cidr};
use tests::pod::Family;
use tests::require_root;
use tests::wait::{SOON, eventually};

use super::{PROBE, WEB, gateway, no_problems, own_routes, problems, two_pods};

fn repairs(cluster: &Cluster<'_>, number: usize) -> Result<u64> {
    let status = cluster.agents[number - 1].json(&["status"])?;
    Ok(status["network"]["repairs"].as_u64().unwrap_or_default())
}

#[test]
fn a_route_that_somebody_removes_or_changes_comes_back() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let netns = &fabric.nodes[0].netns;
    for family in Family::ALL {
        let pod_cidr = pod_cidr(2, family);
        let expected = fabric.node_ip(2, family).to_string();
        let outside = fabric.outside_ip(family);
        let before = repairs(&cluster, 1)?;
        for change in [
            format!("route del {pod_cidr}"),
            format!("route replace {pod_cidr} via {outside} proto 116"),
        ] {
            netns.ip(&change)?;
            eventually(SOON, || {
                let found = gateway(netns, &pod_cidr)?;
                ensure!(found == expected, "{change}: via {found}");
                Ok(())
            })?;
        }
        eventually(SOON, || {
            let now = repairs(&cluster, 1)?;
            ensure!(now >= before + 2, "{now} repairs, {before} before");
            Ok(())
        })?;
    }
    cluster.all_reach(&[PROBE, WEB])
}

/// The kernel takes the routes along with the link.
#[test]
fn routes_come_back_with_their_link() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let netns = &fabric.nodes[0].netns;
    let before = own_routes(netns)?;
    netns.ip("link set uplink down")?;
    assert_ne!(own_routes(netns)?, before);
    eventually(SOON, || {
        let problems = problems(&cluster, 1)?.join("\n");
        ensure!(problems.contains("no route to its address"), "{problems}");
        Ok(())
    })?;
    netns.ip("link set uplink up")?;
    eventually(SOON, || {
        let now = own_routes(netns)?;
        let destinations = |routes: &[(String, Value)]| -> Vec<String> {
            routes
                .iter()
                .map(|(destination, _)| destination.clone())
                .collect()
        };
        ensure!(destinations(&now) == destinations(&before), "{now:?}");
        Ok(())
    })?;
    cluster.all_reach(&[PROBE, WEB])?;
    no_problems(&cluster, 1)
}

/// A route to the same prefix that somebody else has made is theirs, and told; with it gone
/// ours is there.
#[test]
fn a_foreign_route_is_left_alone_and_told() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &[Family::V4], 2)?;
    fabric.nodes[0].netns.sysctl("net.ipv4.ip_forward", 0)?;
    let netns = &fabric.nodes[0].netns;
    let outside = fabric.outside_ip(Family::V4);
    netns.ip(&format!(
        "route add 10.88.2.0/24 via {outside} proto static"
    ))?;
    let cluster = Cluster::start(&fabric, &["--network", "direct"], &[])?;
    eventually(SOON, || {
        let problems = problems(&cluster, 1)?.join("\n");
        ensure!(problems.contains("protocol static"), "{problems}");
        Ok(())
    })?;
    let found = netns.ip("route show 10.88.2.0/24")?;
    assert!(found.contains(&outside.to_string()), "{found}");
    netns.ip("route del 10.88.2.0/24")?;
    eventually(SOON, || gateway(netns, "10.88.2.0/24"))?;
    Ok(())
}

/// `sysctl --system` sets it back wherever a file of the distribution says so.
#[test]
fn forwarding_is_switched_on_and_again() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 1)?;
    let netns = &fabric.nodes[0].netns;
    let _cluster = Cluster::start(&fabric, &["--network", "auto"], &[])?;
    let settings = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
    for setting in settings {
        assert_eq!(
            netns.read_sysctl(setting).as_deref(),
            Some("1"),
            "{setting}"
        );
        netns.sysctl(setting, 0)?;
    }
    for setting in settings {
        eventually(SOON, || {
            let now = netns.read_sysctl(setting);
            ensure!(now.as_deref() == Some("1"), "{setting}: {now:?}");
            Ok(())
        })?;
    }
    Ok(())
}
