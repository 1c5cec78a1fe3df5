//! The manifests of `conf/`: from a node's program to the DaemonSet, its upgrade, and its
//! removal without a trace.

use anyhow::{Result, ensure};
use tests::wait::eventually;

use crate::cluster::{NODES, SOON, require_cluster};
use crate::daemon_set::{Removed, agents_gone, apply_manifests, conf, drain, rolled_out, traces};
use crate::guarded::Guarded;
use crate::load::{Load, answers, is_denied};
use crate::objects::{deployment, pod};
use crate::space::Space;

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
    agents_gone(&cluster)?;
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
    drain(&cluster, &NODES)?;
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
