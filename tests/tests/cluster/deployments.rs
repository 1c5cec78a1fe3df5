//! Deployments and Services while the pods behind them come and go.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::inspect::items;

use crate::cluster::{Cluster, NODES, require_cluster};
use crate::load::{Load, answers};
use crate::objects::{deployment, pod, service};
use crate::space::{Pod, Space};

/// Three pods on both nodes, their Service, and a client on each node.
fn web(space: &Space<'_>) -> Result<[Pod; 2]> {
    space.apply(&[
        deployment("web", 3),
        service("web"),
        pod("client1", NODES[0]),
        pod("client2", NODES[1]),
    ])?;
    space.rolled_out("web")?;
    Ok([space.ready_pod("client1")?, space.ready_pod("client2")?])
}

/// The addresses of a node.
fn addresses(cluster: &Cluster, node: &str) -> Result<Vec<IpAddr>> {
    let object = cluster.get(&["node", node])?;
    Ok(items(&object["status"]["addresses"])
        .filter_map(|address| address["address"].as_str()?.parse().ok())
        .collect())
}

/// issue 7, 4: Deployments, Services, NodePorts.
#[test]
fn a_service_is_served_at_all_its_addresses_from_everywhere() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "addresses")?;
    let clients = web(&space)?;
    let (cluster_ips, node_port) = space.service("web")?;
    let outside = cluster.outside()?;
    ensure!(cluster_ips.len() == 2, "cluster IPs {cluster_ips:?}");
    let pods = space.pods("web")?;
    for client in &clients {
        for target in pods
            .iter()
            .flat_map(Pod::targets)
            .chain(cluster_ips.clone())
        {
            answers(&client.netns, target)?;
        }
    }
    for node in NODES {
        let ips = addresses(&cluster, node)?;
        ensure!(ips.len() == 2, "addresses of {node}: {ips:?}");
        for ip in ips {
            let target = SocketAddr::new(ip, node_port);
            answers(&outside, target)?;
            answers(&clients[0].netns, target)?;
            answers(&cluster.netns(node)?, target)?;
        }
    }
    Ok(())
}

/// issue 7, 4: rolling updates.
#[test]
fn a_deployment_rolls_without_a_failed_request() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "rolling")?;
    let clients = web(&space)?;
    let (cluster_ips, node_port) = space.service("web")?;
    let before = space.pods("web")?;
    let outside = cluster.outside()?;
    let node_ip = addresses(&cluster, NODES[1])?[0];

    let loads = [
        Load::allowed(&clients[0].netns, cluster_ips[0], 50)?,
        Load::allowed(&clients[1].netns, cluster_ips[1], 50)?,
        Load::allowed(&outside, SocketAddr::new(node_ip, node_port), 50)?,
    ];
    space.kubectl(&["rollout", "restart", "deployment/web"])?;
    space.rolled_out("web")?;
    let after = space.pods("web")?;
    for client in &clients {
        for target in after.iter().flat_map(Pod::targets) {
            answers(&client.netns, target)?;
        }
    }
    for load in loads {
        let report = load.stop()?;
        report.never_failed()?;
        for pod in before.iter().chain(&after) {
            report
                .answers
                .get(&pod.name)
                .with_context(|| format!("{} never answered {report}", pod.name))?;
        }
    }
    Ok(())
}

/// issue 7, 4: node drain.
#[test]
fn a_node_is_drained_without_a_failed_request() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "drain")?;
    let [client, _] = web(&space)?;
    space.apply(&[json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}},
    })])?;
    let (cluster_ips, _) = space.service("web")?;
    let load = Load::allowed(&client.netns, cluster_ips[0], 50)?;
    let drained = cluster.kubectl(&[
        "drain",
        NODES[1],
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=180s",
    ]);
    let settled = drained.and_then(|_| space.rolled_out("web"));
    let pods = space.pods("web");
    cluster.kubectl(&["uncordon", NODES[1]])?;
    settled?;
    let elsewhere: Vec<_> = pods?
        .into_iter()
        .filter(|pod| pod.node != NODES[0])
        .collect();
    ensure!(elsewhere.is_empty(), "still on {}: {elsewhere:?}", NODES[1]);
    load.stop()?.never_failed()
}
