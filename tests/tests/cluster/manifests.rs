//! The manifests of `conf/`: from a node's program to the DaemonSet, its upgrade, and its
//! removal without a trace.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::inspect::items;
use tests::programs::workspace;
use tests::wait::eventually;

use crate::cluster::{Cluster, NODES, SOON, require_cluster};
use crate::guarded::Guarded;
use crate::load::{Load, answers, is_denied};
use crate::objects::{deployment, pod};
use crate::space::Space;

/// Where the API server is while nothing serves its Service.
const API_SERVER: [&str; 2] = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];

fn conf(folder: &str) -> String {
    let path: PathBuf = workspace().join("conf").join(folder);
    path.to_string_lossy().into_owned()
}

/// The cluster with its agents as programs of the nodes ended. They, and the nodes' pods,
/// come back when dropped.
struct Removed<'c>(&'c Cluster);

impl<'c> Removed<'c> {
    fn begin(cluster: &'c Cluster) -> Result<Self> {
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

fn apply_manifests(cluster: &Cluster) -> Result<()> {
    let node = cluster.get(&["node", NODES[0]])?;
    let address = items(&node["status"]["addresses"])
        .find_map(|address| (address["type"] == "InternalIP").then(|| address["address"].clone()))
        .context("node1 has no address")?;
    cluster.apply(&[json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "trammel-api-server", "namespace": "kube-system"},
        "data": {API_SERVER[0]: address, API_SERVER[1]: "6443"},
    })])?;
    cluster.kubectl(&["apply", "-k", &conf("")])?;
    rolled_out(cluster, "trammel-agent")
}

fn rolled_out(cluster: &Cluster, daemon_set: &str) -> Result<()> {
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

/// What Trammel has on a node, by the words of other programs.
fn traces(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
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

/// issue 7, 1: everything in `conf/` is what a real API server takes, without an unknown field.
#[test]
fn the_api_server_takes_every_kustomization() -> Result<()> {
    let cluster = require_cluster!();
    for folder in [
        "",
        "base",
        "overlays/dual-stack",
        "overlays/ipv4",
        "overlays/ipv6",
        "overlays/kube-proxy",
        "uninstall",
    ] {
        let told = cluster.kubectl(&[
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "-k",
            &conf(folder),
        ])?;
        ensure!(told.contains("daemonset.apps/trammel-"), "{folder}: {told}");
    }
    Ok(())
}

/// issue 7, 1, 6: the manifests on a real API server; upgrade; uninstall.
#[test]
fn the_manifests_take_over_are_upgraded_and_leave_nothing() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "manifests")?;
    let guarded = Guarded::apply(&space, deployment("web", 2))?;
    space.rolled_out("web")?;
    let Guarded {
        friend,
        foe,
        cluster_ips,
    } = &guarded;
    guarded.holds_at(cluster_ips[0])?;

    let allowed = Load::allowed(&friend.netns, cluster_ips[0], 100)?;
    let denied = Load::denied(&foe.netns, cluster_ips[0])?;
    let removed = Removed::begin(&cluster)?;
    apply_manifests(&cluster)?;
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "rollout",
        "restart",
        "daemonset/trammel-agent",
    ])?;
    rolled_out(&cluster, "trammel-agent")?;
    space.apply(&[pod("late", NODES[1])])?;
    let late = space.ready_pod("late")?;
    is_denied(&late.netns, cluster_ips[0])?;
    answers(&friend.netns, cluster_ips[1])?;
    // Without an agent everything goes on as it was last.
    cluster.kubectl(&["delete", "-k", &conf(""), "--wait"])?;
    answers(&friend.netns, cluster_ips[1])?;
    allowed.stop()?.never_failed()?;
    denied.stop()?.never_answered()?;

    space.apply(&[pod("barred", NODES[1])])?;
    eventually(SOON, || {
        let about = [
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=barred",
        ];
        let events = space.kubectl(&about)?;
        ensure!(events.contains("FailedCreatePodSandBox"), "{events}");
        Ok(())
    })?;

    // Nothing is taken from the runtime that it needs to end the pods.
    cluster.kubectl(&["apply", "-k", &conf("uninstall")])?;
    eventually(SOON, || {
        let log = cluster.kubectl(&[
            "-n",
            "kube-system",
            "logs",
            "-l",
            "app.kubernetes.io/name=trammel-uninstall",
            "-c",
            "cleanup",
            "--prefix",
        ])?;
        let waiting = log.lines().filter(|line| line.contains("waiting for"));
        ensure!(waiting.count() >= NODES.len(), "{log}");
        Ok(())
    })?;
    for node in NODES {
        for file in ["/etc/cni/net.d/10-trammel.conflist", "/opt/cni/bin/trammel"] {
            cluster.node(node, &["test", "-e", file])?;
        }
    }
    cluster.kubectl(
        &[
            &["drain"],
            &NODES[..],
            &[
                "--ignore-daemonsets",
                "--force",
                "--delete-emptydir-data",
                "--timeout=180s",
            ],
        ]
        .concat(),
    )?;
    rolled_out(&cluster, "trammel-uninstall")?;
    for node in NODES {
        let left = traces(&cluster, node)?;
        ensure!(left.is_empty(), "{left:#?}");
    }

    // And back: the pods that were drained run again.
    drop(removed);
    for node in NODES {
        cluster.wait_until_ready(node)?;
    }
    space.rolled_out("web")
}
