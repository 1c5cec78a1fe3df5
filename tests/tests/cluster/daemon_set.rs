//! The manifests of `conf/` on the cluster, in place of the programs of its nodes.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::inspect::items;
use tests::programs::workspace;

use crate::cluster::{Cluster, NODES};

/// Where the API server is while nothing serves its Service.
const API_SERVER: [&str; 2] = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];

/// A folder of `conf/`.
pub(crate) fn conf(folder: &str) -> String {
    let path: PathBuf = workspace().join("conf").join(folder);
    path.to_string_lossy().into_owned()
}

/// The cluster with its agents as programs of the nodes ended. They, and the nodes' pods,
/// come back when dropped.
#[must_use = "it is undone when dropped"]
pub(crate) struct Removed<'c>(&'c Cluster);

impl<'c> Removed<'c> {
    pub(crate) fn begin(cluster: &'c Cluster) -> Result<Self> {
        let removed = Self(cluster);
        for node in NODES {
            cluster.proc(node, "agent", "stop")?;
        }
        Ok(removed)
    }

    fn put_back(&self) -> Result<()> {
        for folder in ["", "uninstall"] {
            self.0
                .kubectl(&["delete", "-k", &conf(folder), "--ignore-not-found"])?;
        }
        self.0.kubectl(&[&["uncordon"], &NODES[..]].concat())?;
        self.0.install()
    }
}

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("the cluster is not as it was: {error:#}");
        }
    }
}

/// Applies the whole of `conf/`, with the address of the API server, and waits for the agents.
pub(crate) fn apply_manifests(cluster: &Cluster) -> Result<()> {
    let node = cluster.get(&["node", NODES[0]])?;
    let address = items(&node["status"]["addresses"])
        .find_map(|address| (address["type"] == "InternalIP").then(|| address["address"].clone()))
        .context("node1 has no address")?;
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "trammel-api-server", "namespace": "kube-system"},
        "data": {API_SERVER[0]: address, API_SERVER[1]: "6443"},
    })])?;
    apply_folder(cluster, "")
}

/// Applies a folder of `conf/` with an agent in it, and waits for the agents.
pub(crate) fn apply_folder(cluster: &Cluster, folder: &str) -> Result<()> {
    cluster.kubectl(&["apply", "-k", &conf(folder)])?;
    rolled_out(cluster, "trammel-agent")
}

/// Waits until a DaemonSet has rolled out.
pub(crate) fn rolled_out(cluster: &Cluster, daemon_set: &str) -> Result<()> {
    let target = format!("daemonset/{daemon_set}");
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "rollout",
        "status",
        &target,
        "--timeout=180s",
    ])?;
    Ok(())
}

/// Waits for the end of the agents of a DaemonSet that is deleted: its pods go after it, and
/// until then they answer ADD.
pub(crate) fn agents_gone(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=trammel",
        "--timeout=180s",
    ])?;
    Ok(())
}

/// What Trammel has on a node, by the words of other programs.
pub(crate) fn traces(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (what, command) in [
        ("table", "nft list tables | grep trammel"),
        ("link", "ip -o link | grep -E 'cbr0|trm|trammel'"),
        (
            "route",
            "ip route show table all; ip -6 route show table all",
        ),
        (
            "file",
            "ls -d /opt/cni/bin/trammel* /etc/cni/net.d/*trammel* /run/sysctl.d/*trammel* \
             /run/trammel /var/lib/trammel /var/lib/cni/networks/*",
        ),
        ("qdisc", "tc qdisc show | grep -E 'tbf|ingress'"),
    ] {
        // What finds nothing fails.
        let text = cluster.node(
            node,
            &[
                "bash",
                "-c",
                &format!("{{ {command}; }} 2>/dev/null || true"),
            ],
        )?;
        let is_ours = |line: &&str| {
            what != "route" || line.contains("10.244.") || line.contains("fd00:10:244:")
        };
        found.extend(
            text.lines()
                .filter(is_ours)
                .map(|line| format!("{node}: {what} {line}")),
        );
    }
    Ok(found)
}

/// Drains nodes of everything but DaemonSets.
pub(crate) fn drain(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    const OPTIONS: [&str; 4] = [
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=180s",
    ];
    cluster.kubectl(&[&["drain"], nodes, &OPTIONS].concat())?;
    Ok(())
}
