//! Several nodes of one cluster: how pods reach each other, what comes back after others have
//! taken it away, and what it all means for policy, Services and the outside.

mod advertised;
mod conflist;
mod heal;
mod nodes;
mod outside;
mod paths;
mod policy;
mod services;
mod tunnels;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::fabric::Fabric;
use tests::inspect::items;
use tests::netns::NetNs;
use tests::wait::{SOON, eventually};

/// Protocol number of the agent's routes, as `ip` prints it.
const PROTOCOL: &str = "116";

const WEB: &str = "shop/web";
const PROBE: &str = "lab/probe";

/// A cluster of two nodes with a pod each: `lab/probe` on n1, `shop/web` on n2.
fn two_pods<'f>(fabric: &'f Fabric, arguments: &[&str]) -> Result<Cluster<'f>> {
    let mut cluster = Cluster::start(fabric, arguments, &[])?;
    cluster.add_pod(1, PROBE, &json!({"app": "probe"}))?;
    cluster.add_pod(2, WEB, &json!({"app": "web"}))?;
    Ok(cluster)
}

/// The routes of the agent in a namespace, of both families: destination and the rest.
fn own_routes(netns: &NetNs) -> Result<Vec<(String, Value)>> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let found = netns.ip_json(&format!(
            "{family} route show table main protocol {PROTOCOL}"
        ))?;
        routes.extend(items(&found).map(|route| {
            let destination = route["dst"].as_str().unwrap_or_default();
            (destination.to_owned(), route.clone())
        }));
    }
    Ok(routes)
}

/// The gateway of the agent's route to a PodCIDR; an error if there is no such route.
fn gateway(netns: &NetNs, pod_cidr: &str) -> Result<String> {
    let routes = own_routes(netns)?;
    let route = routes
        .iter()
        .find(|(destination, _)| destination == pod_cidr);
    let gateway = route.and_then(|(_, route)| route["gateway"].as_str());
    ensure!(gateway.is_some(), "no route to {pod_cidr}: {routes:?}");
    Ok(gateway.unwrap_or_default().to_owned())
}

/// What the status of node `number`'s agent says is wrong.
fn problems(cluster: &Cluster<'_>, number: usize) -> Result<Vec<String>> {
    let status = cluster.agents[number - 1].json(&["status"])?;
    let problems = items(&status["problems"]).map(|problem| problem["reason"].to_string());
    Ok(problems.collect())
}

/// Waits until it says that nothing is.
fn no_problems(cluster: &Cluster<'_>, number: usize) -> Result<()> {
    eventually(SOON, || {
        let problems = problems(cluster, number)?;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })?;
    Ok(())
}
