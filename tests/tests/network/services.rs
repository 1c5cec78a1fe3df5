//! Services whose endpoints are on another node.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::cluster::{Cluster, OUTSIDE};
use tests::fabric::{Fabric, Join};
use tests::matrix::LIMIT;
use tests::objects::service;
use tests::pod::Family;
use tests::require_root;
use tests::traffic::Outcome;
use tests::wait::{SOON, eventually};

use super::{PROBE, WEB, two_pods};

const VIPS: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NODE_PORT: u16 = 30080;

/// A Service of the pod `shop/web` on port 8000; with a policy, also on a node port.
fn web(external_traffic_policy: Option<&str>) -> Value {
    let mut web = service("shop/web", VIPS, &json!({"app": "web"}), &[(8000, 80)]);
    if let Some(policy) = external_traffic_policy {
        let spec = &mut web["spec"];
        spec["type"] = json!("NodePort");
        spec["externalTrafficPolicy"] = json!(policy);
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            port["nodePort"] = json!(NODE_PORT);
        }
    }
    web
}

/// Whom `shop/web` sees when it answers, which has to come about.
fn answered(cluster: &Cluster<'_>, from: &str, target: SocketAddr) -> Result<IpAddr> {
    let attempt = || {
        let outcome = cluster.ask(from, target, LIMIT)?;
        match &outcome {
            Outcome::Answered { server, peer } if server == WEB => Some(peer.ip()),
            _ => None,
        }
        .with_context(|| format!("{from} to {target}: {outcome}"))
    };
    Ok(eventually(SOON, attempt)?.0)
}

fn across(join: Join, families: &[Family]) -> Result<()> {
    let fabric = Fabric::new(join, families, 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    cluster.apply(&[web(Some("Cluster"))])?;
    for family in Family::ALL {
        let vip = SocketAddr::new(family.pick(VIPS), 8000);
        let seen = answered(&cluster, PROBE, vip)?;
        assert_eq!(
            seen,
            cluster.pod(PROBE).ip(family),
            "a pod keeps its address"
        );
    }
    for &family in families {
        let vip = SocketAddr::new(family.pick(VIPS), 8000);
        answered(&cluster, "n1", vip)?;
        // By the node with the pod, and by the other one.
        for number in 1..=2 {
            let target = SocketAddr::new(fabric.node_ip(number, family), NODE_PORT);
            let seen = answered(&cluster, OUTSIDE, target)?;
            let outside = fabric.outside_ip(family);
            ensure!(seen != outside, "n{number} has to see the answer");
        }
    }

    cluster.apply(&[web(Some("Local"))])?;
    for &family in families {
        let at = |number| SocketAddr::new(fabric.node_ip(number, family), NODE_PORT);
        let seen = answered(&cluster, OUTSIDE, at(2))?;
        assert_eq!(seen, fabric.outside_ip(family), "the client's own address");
        let outcome = cluster.ask(OUTSIDE, at(1), LIMIT)?;
        ensure!(outcome == Outcome::Timeout, "no endpoint on n1: {outcome}");
    }
    Ok(())
}

/// services.md 14, 22 with two nodes on one link: ClusterIP and NodePort with both traffic
/// policies.
#[test]
fn services_reach_endpoints_on_a_neighbouring_node() -> Result<()> {
    require_root!();
    across(Join::Link, &Family::ALL)
}

/// The same through tunnels over IPv4.
#[test]
fn services_reach_endpoints_through_an_ipv4_network() -> Result<()> {
    require_root!();
    across(Join::Router, &[Family::V4])
}

/// The same through tunnels over IPv6.
#[test]
fn services_reach_endpoints_through_an_ipv6_network() -> Result<()> {
    require_root!();
    across(Join::Router, &[Family::V6])
}

/// kubeadm's hosts have both settings on.
#[test]
fn all_of_it_works_with_br_netfilter() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    for node in &fabric.nodes {
        node.set_bridge_nf(true)?;
    }
    let mut cluster = two_pods(&fabric, &["--network", "vxlan"])?;
    cluster.add_pod(1, "lab/near", &json!({}))?;
    cluster.apply(&[web(None)])?;
    cluster.all_reach(&[PROBE, WEB, "lab/near"])?;
    for family in Family::ALL {
        let vip = SocketAddr::new(family.pick(VIPS), 8000);
        answered(&cluster, PROBE, vip)?;
    }
    Ok(())
}
