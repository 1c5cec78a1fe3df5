//! Nodes that work while their network is exchanged: the steps of `conf/README.md`, backwards and
//! forwards, between Trammel and the plugin bridge with kube-proxy.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::wait::eventually;

use crate::cluster::{Cluster, NODES, SOON, require_cluster};
use crate::daemon_set::{Removed, apply_folder, apply_manifests, conf, drain, rolled_out, traces};
use crate::guarded::Guarded;
use crate::load::{Load, answers};
use crate::objects::{deployment, pod};
use crate::space::Space;

/// Pod network and policies, with Services left to kube-proxy.
const BESIDE_KUBE_PROXY: &str = "overlays/kube-proxy";

/// Sorts before Trammel's own.
const OLD_CONFLIST: &str = "05-bridge.conflist";

/// kube-proxy, and what the plugin bridge needs, on all nodes. Removed when dropped.
struct Bridge<'c>(&'c Cluster);

impl<'c> Bridge<'c> {
    fn add(cluster: &'c Cluster) -> Result<Self> {
        let bridge = Self(cluster);
        cluster.bridge("add")?;
        Ok(bridge)
    }

    /// Has a node's new pods be of that network.
    fn put(&self, node: &str) -> Result<()> {
        let dir = self.0.run_dir().join(node);
        let to = dir.join("etc-cni/net.d").join(OLD_CONFLIST);
        fs::copy(dir.join("bridge.conflist"), &to)
            .with_context(|| format!("cannot write {}", to.display()))?;
        Ok(())
    }
}

impl Drop for Bridge<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.bridge("remove") {
            eprintln!("the old network is not removed: {error:#}");
        }
    }
}

/// Who serves Services changes, and no request of the friend fails, none of the foe succeeds.
fn unnoticed(guarded: &Guarded, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let Guarded {
        friend,
        foe,
        cluster_ips,
    } = guarded;
    for target in cluster_ips {
        guarded.holds_at(*target)?;
    }
    let allowed = [
        Load::kept(&friend.netns, cluster_ips[0], 50)?,
        Load::allowed(&friend.netns, cluster_ips[0], 50)?,
        Load::allowed(&friend.netns, cluster_ips[1], 50)?,
    ];
    let denied = Load::denied(&foe.netns, cluster_ips[0])?;
    change()?;
    for target in cluster_ips {
        answers(&friend.netns, *target)?;
    }
    for load in allowed {
        load.stop()?.never_failed()?;
    }
    denied.stop()?.never_answered()
}

/// Has all pods made anew where they are missing, with some on each node: a bridge is made for
/// the first.
fn work(space: &Space<'_>) -> Result<Guarded> {
    space.apply(&[pod("other", NODES[1])])?;
    let guarded = Guarded::apply(space, deployment("web", 2))?;
    space.kubectl(&["rollout", "restart", "deployment/web"])?;
    space.rolled_out("web")?;
    space.ready_pod("other")?;
    Ok(guarded)
}

/// Drains a node, and has it come back with the other network.
fn exchange(
    cluster: &Cluster,
    node: &str,
    old_bridge: &str,
    network: impl FnOnce() -> Result<()>,
) -> Result<()> {
    drain(cluster, &[node])?;
    network()?;
    // Two bridges cannot route one range.
    cluster.node(node, &["ip", "link", "delete", old_bridge])?;
    cluster.kubectl(&["uncordon", node])?;
    cluster.wait_until_ready(node)
}

/// issue 7, 6: from Trammel to bridge and kube-proxy, and from those to Trammel, node by node.
#[test]
fn nodes_change_to_bridge_and_kube_proxy_and_back_while_they_work() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "migration")?;
    let guarded = work(&space)?;
    let removed = Removed::begin(&cluster)?;
    apply_manifests(&cluster)?;

    let bridge = Bridge::add(&cluster)?;
    unnoticed(&guarded, || apply_folder(&cluster, BESIDE_KUBE_PROXY))?;
    for node in NODES {
        exchange(&cluster, node, "cbr0", || bridge.put(node))?;
    }
    cluster.kubectl(&["delete", "-k", &conf(BESIDE_KUBE_PROXY), "--wait"])?;
    cluster.kubectl(&["apply", "-k", &conf("uninstall")])?;
    rolled_out(&cluster, "trammel-uninstall")?;
    for node in NODES {
        let mut left = traces(&cluster, node)?;
        // What the old network has is as it is.
        left.retain(|line| !line.contains(": route ") || line.contains("proto 116"));
        left.retain(|line| !line.ends_with("/networks/bridge"));
        ensure!(left.is_empty(), "{left:#?}");
    }
    cluster.kubectl(&["delete", "-k", &conf("uninstall"), "--wait"])?;

    let old = work(&space)?;
    for target in &old.cluster_ips {
        answers(&old.friend.netns, *target)?;
        // Nobody enforces a policy.
        answers(&old.foe.netns, *target)?;
    }

    // Of the pods of a node that is not drained no request fails.
    let loads = [
        Load::allowed(&old.friend.netns, old.cluster_ips[0], 50)?,
        Load::allowed(&old.friend.netns, old.cluster_ips[1], 50)?,
    ];
    apply_folder(&cluster, BESIDE_KUBE_PROXY)?;
    let forget = |node: &'static str| {
        let cluster = &cluster;
        let file = format!("/etc/cni/net.d/{OLD_CONFLIST}");
        move || cluster.node(node, &["rm", &file]).map(drop)
    };
    let [first, second] = NODES;
    exchange(&cluster, second, "cni0", forget(second))?;
    for load in loads {
        load.stop()?.never_failed()?;
    }
    exchange(&cluster, first, "cni0", forget(first))?;
    let guarded = work(&space)?;

    unnoticed(&guarded, || {
        apply_manifests(&cluster)?;
        for node in NODES {
            cluster.proc(node, "kube-proxy", "stop")?;
        }
        let agents = cluster.kubectl(&[
            "-n",
            "kube-system",
            "get",
            "pod",
            "-l",
            "app.kubernetes.io/name=trammel",
            "-o",
            "name",
        ])?;
        for agent in agents.lines() {
            let cleanup = ["trammel-agent", "cleanup", "--kube-proxy"];
            let exec = ["-n", "kube-system", "exec", agent, "-c", "agent", "--"];
            let told = cluster.kubectl(&[&exec[..], &cleanup].concat())?;
            ensure!(told.contains("removed table ip kube-proxy"), "{told}");
        }
        Ok(())
    })?;
    // With its routes, in whose place the agents make their own.
    drop(bridge);
    for node in NODES {
        eventually(SOON, || {
            let routes = cluster.node(node, &["ip", "route", "show", "proto", "116"])?;
            ensure!(routes.contains("via"), "{node}: {routes}");
            Ok(())
        })?;
    }
    for target in &guarded.cluster_ips {
        guarded.holds_at(*target)?;
    }
    drop(removed);
    for node in NODES {
        cluster.wait_until_ready(node)?;
    }
    Ok(())
}
