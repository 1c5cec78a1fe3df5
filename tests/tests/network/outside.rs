//! Pods and the world outside of the cluster.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use tests::fabric::{Fabric, Join};
use tests::pod::Family;
use tests::require_root;
use tests::traffic::{Outcome, PATIENT, Server};

use super::{PROBE, two_pods};
use tests::cluster::{Cluster, OUTSIDE};

/// Whom the server sees when the pod asks.
fn seen_by(cluster: &Cluster<'_>, from: &str, target: IpAddr, port: u16) -> Result<IpAddr> {
    let outcome = cluster.ask(from, (target, port).into(), PATIENT)?;
    match outcome {
        Outcome::Answered { peer, .. } => Some(peer.ip()),
        _ => None,
    }
    .with_context(|| format!("{from} to {target}: {outcome}"))
}

/// Outside knows no pods, so they are masqueraded; towards nodes and their pods they keep
/// their addresses, which policies go by.
#[test]
fn pods_are_masqueraded_out_of_the_cluster_only() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let _server = Server::start(&fabric.nodes[1].netns, "n2", &[8080])?;
    for family in Family::ALL {
        let seen = seen_by(&cluster, PROBE, fabric.outside_ip(family), 80)?;
        assert_eq!(seen, fabric.node_ip(1, family), "{OUTSIDE} sees the node");
        let seen = seen_by(&cluster, PROBE, fabric.node_ip(2, family), 8080)?;
        assert_eq!(seen, cluster.pod(PROBE).ip(family), "n2 sees the pod");
    }
    Ok(())
}

#[test]
fn masquerading_can_be_left_to_others() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 1)?;
    let arguments = ["--network", "auto", "--ip-masq=false"];
    let mut cluster = Cluster::start(&fabric, &arguments, &[])?;
    cluster.add_pod(1, PROBE, &serde_json::json!({}))?;
    for family in Family::ALL {
        let (pods, node) = (
            tests::fabric::pod_cidr(1, family),
            fabric.node_ip(1, family),
        );
        fabric.outside.ip(&format!("route add {pods} via {node}"))?;
        let seen = seen_by(&cluster, PROBE, fabric.outside_ip(family), 80)?;
        assert_eq!(seen, cluster.pod(PROBE).ip(family));
    }
    Ok(())
}
