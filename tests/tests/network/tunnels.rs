//! VXLAN between nodes that are no neighbours.

use anyhow::{Result, ensure};
use serde_json::json;
use tests::cluster::{Cluster, conflist};
use tests::fabric::{Fabric, Join, pod_cidr};
use tests::inspect::items;
use tests::netns::NetNs;
use tests::pod::Family;
use tests::require_root;
use tests::wait::{SOON, eventually};

use super::{PROBE, WEB, gateway, no_problems, own_routes, problems, two_pods};

/// IPv4 and IPv6 header with that of ICMP.
const PING_HEADERS: [u32; 2] = [28, 48];

/// What a tunnel adds.
fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

fn tunnel(underlay: Family) -> &'static str {
    match underlay {
        Family::V4 => "trammel-vxlan4",
        Family::V6 => "trammel-vxlan6",
    }
}

/// Where a tunnel's forwarding entries lead, as `bridge` prints them.
fn remotes(netns: &NetNs, link: &str) -> Result<Vec<String>> {
    let text = tests::command::run(std::process::Command::new("bridge").args([
        "-j",
        "-n",
        netns.name(),
        "fdb",
        "show",
        "dev",
        link,
    ]))?;
    let entries: serde_json::Value = serde_json::from_str(&text)?;
    let remotes = items(&entries).filter_map(|entry| entry["dst"].as_str());
    Ok(remotes.map(str::to_owned).collect())
}

/// Whether a packet of that size on the pod's own link, which nobody may fragment, comes back.
fn fits(cluster: &Cluster<'_>, from: &str, to: &str, family: Family, size: u32) -> Result<bool> {
    let payload = size - PING_HEADERS[usize::from(family == Family::V6)];
    let target = cluster.pod(to).ip(family).to_string();
    let output = cluster
        .netns(from)
        .command("ping")
        .args([
            "-n",
            "-q",
            "-c1",
            "-w20",
            "-Mdo",
            "-s",
            &payload.to_string(),
        ])
        .arg(target)
        .output()?;
    Ok(output.status.success())
}

fn over(underlay: Family) -> Result<()> {
    let fabric = Fabric::new(Join::Router, &[underlay], 3)?;
    let mut cluster = two_pods(&fabric, &["--network", "auto"])?;
    cluster.add_pod(3, "lab/third", &json!({}))?;
    cluster.all_reach(&[PROBE, WEB, "lab/third"])?;
    // A node's own packets have its address in the pod network, so that the answer comes back
    // the same way.
    for family in Family::ALL {
        cluster.reaches("n1", WEB, family)?;
        let node = family.pick(["10.88.1.1", "fd88:1::1"]);
        let seen = cluster.servers[WEB].seen();
        assert!(seen.iter().any(|seen| seen.peer.ip() == node), "{seen:?}");
    }

    let netns = &fabric.nodes[0].netns;
    let link = tunnel(underlay);
    let tunnels = netns.ip_json("link show type vxlan")?;
    let names: Vec<_> = items(&tunnels).map(|link| &link["ifname"]).collect();
    assert_eq!(names, [link], "one is enough for both families of pods");
    let data = &tunnels[0]["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"]), (&json!(116), &json!(8472)));
    assert_eq!(data["learning"], false);
    let mtu = 1500 - overhead(underlay);
    assert_eq!(tunnels[0]["mtu"], mtu);
    assert_eq!(conflist(&fabric.nodes[0])?["plugins"][0]["mtu"], mtu);
    let mut expected: Vec<_> = [2, 3]
        .map(|number| fabric.node_ip(number, underlay).to_string())
        .into();
    let mut found = remotes(netns, link)?;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    for family in Family::ALL {
        let via = family.pick(["10.88.2.1", "fd88:2::1"]).to_string();
        assert_eq!(gateway(netns, &pod_cidr(2, family))?, via);
        let neighbours = netns.ip_json(&format!("neigh show {via} dev {link}"))?;
        assert_eq!(neighbours[0]["state"], json!(["PERMANENT"]), "{neighbours}");
    }
    for number in 1..=3 {
        no_problems(&cluster, number)?;
    }

    for family in Family::ALL {
        assert!(
            fits(&cluster, PROBE, WEB, family, mtu)?,
            "{family}: what fits passes"
        );
        assert!(
            !fits(&cluster, PROBE, WEB, family, mtu + 1)?,
            "{family}: no more than that"
        );
    }
    Ok(())
}

/// Pods of both families over an IPv4 network, and what fits into a packet.
#[test]
fn pods_reach_each_other_through_an_ipv4_network() -> Result<()> {
    require_root!();
    over(Family::V4)
}

/// The same over one that has IPv6 alone.
#[test]
fn pods_reach_each_other_through_an_ipv6_network() -> Result<()> {
    require_root!();
    over(Family::V6)
}

/// The mode goes before what would be possible.
#[test]
fn neighbours_use_a_tunnel_where_that_is_asked_for() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let arguments = [
        "--network",
        "vxlan",
        "--vxlan-port",
        "4789",
        "--vxlan-vni",
        "7",
    ];
    let cluster = two_pods(&fabric, &arguments)?;
    cluster.all_reach(&[PROBE, WEB])?;
    let tunnels = fabric.nodes[0].netns.ip_json("link show type vxlan")?;
    let data = &tunnels[0]["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"]), (&json!(7), &json!(4789)));
    let (_, _, text) =
        tests::agent::http_get(&fabric.nodes[0].netns, tests::agent::LISTEN, "/metrics")?;
    let line = "trammel_network_routes{path=\"vxlan\"} 2";
    assert!(text.lines().any(|found| found == line), "{text}");
    Ok(())
}

#[test]
fn a_node_behind_a_router_is_not_reached_directly() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Router, &[Family::V4], 2)?;
    let cluster = Cluster::start(&fabric, &["--network", "direct"], &[])?;
    let problems = problems(&cluster, 1)?.join("\n");
    assert!(problems.contains("behind a router"), "{problems}");
    let others = own_routes(&fabric.nodes[0].netns)?;
    assert_eq!(others.len(), 2, "its own PodCIDRs: {others:?}");
    Ok(())
}

/// Routes, neighbours, forwarding entries and the device itself.
#[test]
fn what_is_taken_from_a_tunnel_comes_back() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Router, &[Family::V4], 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let netns = &fabric.nodes[0].netns;
    let link = tunnel(Family::V4);
    let node = fabric.node_ip(2, Family::V4).to_string();
    let neighbours = netns.ip_json(&format!("neigh show 10.88.2.1 dev {link}"))?;
    let mac = neighbours[0]["lladdr"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let change = |arguments: &str| {
        let mut command = std::process::Command::new("bridge");
        command.args(["-n", netns.name()]);
        tests::command::run(command.args(arguments.split_whitespace()))
    };
    let is_whole = || {
        let found = remotes(netns, link)?;
        ensure!(found == [node.as_str()], "{found:?}");
        let via = gateway(netns, &pod_cidr(2, Family::V4))?;
        ensure!(via == "10.88.2.1", "{via}");
        let found = netns.ip_json(&format!("neigh show 10.88.2.1 dev {link}"))?;
        ensure!(found[0]["lladdr"] == mac.as_str(), "{found}");
        Ok(())
    };
    is_whole()?;
    change(&format!("fdb del {mac} dev {link} dst {node}"))?;
    eventually(SOON, is_whole)?;
    change(&format!(
        "fdb replace {mac} dev {link} dst 198.18.100.2 self permanent"
    ))?;
    eventually(SOON, is_whole)?;
    netns.ip(&format!("neigh del 10.88.2.1 dev {link}"))?;
    eventually(SOON, is_whole)?;
    netns.ip(&format!("route del {}", pod_cidr(2, Family::V4)))?;
    eventually(SOON, is_whole)?;
    netns.ip(&format!("address flush dev {link}"))?;
    eventually(SOON, || {
        let found = netns.ip(&format!("address show dev {link}"))?;
        ensure!(
            found.contains("10.88.1.1/32") && found.contains("fd88:1::1/128"),
            "{found}"
        );
        is_whole()
    })?;
    netns.ip(&format!("link set {link} down"))?;
    eventually(SOON, || {
        let found = netns.ip_json(&format!("link show {link}"))?;
        ensure!(found[0]["flags"].to_string().contains("\"UP\""), "{found}");
        is_whole()
    })?;
    cluster.all_reach(&[PROBE, WEB])?;
    netns.ip(&format!("link del {link}"))?;
    eventually(SOON, is_whole)?;
    cluster.all_reach(&[PROBE, WEB])
}

/// A tunnel that nobody needs any more goes, and `cleanup` takes the others.
#[test]
fn tunnels_go_with_the_last_node_behind_them() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Router, &Family::ALL, 2)?;
    let mut cluster = Cluster::start(&fabric, &["--network", "auto"], &[])?;
    let netns = &fabric.nodes[0].netns;
    let count = || -> Result<usize> { Ok(items(&netns.ip_json("link show type vxlan")?).count()) };
    assert_eq!(count()?, 1);
    cluster.apply_nodes(&[fabric.node_object(1)])?;
    eventually(SOON, || {
        ensure!(count()? == 0, "n2 has left");
        Ok(())
    })?;
    cluster.apply_nodes(&fabric.node_objects())?;
    eventually(SOON, || {
        ensure!(count()? == 1, "n2 is back");
        Ok(())
    })?;
    cluster.agents.remove(0).stop()?;
    assert_eq!(count()?, 1, "the end of the agent changes nothing");
    let output = tests::agent::verb(&fabric.nodes[0], &["cleanup"])?;
    assert!(output.stdout.contains(tunnel(Family::V4)), "{output:?}");
    assert_eq!(count()?, 0);
    assert_eq!(own_routes(netns)?, []);
    Ok(())
}

/// A link of that name that is somebody else's is not touched.
#[test]
fn a_link_of_the_tunnel_s_name_is_left_alone_and_told() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Router, &[Family::V4], 2)?;
    let netns = &fabric.nodes[0].netns;
    let link = tunnel(Family::V4);
    netns.ip(&format!("link add {link} type bridge"))?;
    let node = &fabric.nodes[0];
    node.manifests.write("nodes", &fabric.node_objects())?;
    let agent = tests::agent::Agent::start_with(node, &["--network", "auto"])?;
    eventually(SOON, || {
        let status = agent.json(&["status"])?;
        let error = status["network"]["error"].to_string();
        ensure!(error.contains("is no VXLAN device"), "{error}");
        Ok(())
    })?;
    netns.ip(&format!("link del {link}"))?;
    eventually(SOON, || gateway(netns, &pod_cidr(2, Family::V4)))?;
    Ok(())
}
