//! etcd is restored to what it was some time ago.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::command;
use tests::wait::eventually;

use crate::cluster::{Cluster, NODES, SOON, require_cluster};
use crate::guarded::Guarded;
use crate::load::answers;
use crate::objects::{pod, service};
use crate::space::Space;

/// More changes than an API server makes itself while it starts: by fewer it would be where it
/// was before the agents have looked.
const CHANGES: u32 = 600;

/// The control plane without etcd and API server. They start when dropped, and what relies on
/// them again, as Kubernetes wants it after a restore.
struct Stopped<'c>(&'c Cluster);

impl<'c> Stopped<'c> {
    fn begin(cluster: &'c Cluster) -> Result<Self> {
        let stopped = Self(cluster);
        for program in ["apiserver", "etcd"] {
            cluster.proc("node1", program, "kill")?;
        }
        Ok(stopped)
    }

    fn start(&self) -> Result<()> {
        for program in ["etcd", "apiserver"] {
            self.0.proc("node1", program, "start")?;
        }
        self.0.wait_for_api()?;
        for program in ["controller-manager", "scheduler"] {
            self.0.proc("node1", program, "restart")?;
        }
        for node in NODES {
            self.0.proc(node, "kubelet", "restart")?;
        }
        Ok(())
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.start() {
            eprintln!("the cluster is not as it was: {error:#}");
        }
    }
}

/// etcd's data and their backup.
fn data(cluster: &Cluster) -> [PathBuf; 2] {
    ["etcd", "etcd.backup"].map(|name| cluster.run_dir().join("node1").join(name))
}

fn back_up(cluster: &Cluster) -> Result<()> {
    let _stopped = Stopped::begin(cluster)?;
    let [data, backup] = data(cluster);
    let mut copy = Command::new("cp");
    command::run(copy.arg("-a").arg(data).arg(backup))?;
    Ok(())
}

fn restore(cluster: &Cluster) -> Result<()> {
    let _stopped = Stopped::begin(cluster)?;
    let [data, backup] = data(cluster);
    fs::remove_dir_all(&data)
        .and_then(|()| fs::rename(backup, data))
        .context("cannot restore etcd's data")
}

/// The names of the Services that the agent of a node serves.
fn served(cluster: &Cluster, node: &str) -> Result<String> {
    let program = cluster.run_dir().join(node).join("bin/trammel-agent");
    cluster.node(node, &[&program.to_string_lossy(), "services"])
}

/// issue 7, 4: etcd restored. What came after the backup is gone from every node, and what went
/// is back.
#[test]
fn a_backup_of_etcd_is_followed_where_it_differs() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "backup")?;
    let guarded = Guarded::apply(&space, pod("web", NODES[1]))?;
    space.ready_pod("web")?;
    guarded.holds_at(guarded.cluster_ips[0])?;
    back_up(&cluster)?;

    space.apply(&[service("afterwards")])?;
    space.kubectl(&["delete", "networkpolicy", "--all"])?;
    let settings: Vec<Value> = (0..CHANGES)
        .map(|number| {
            json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("change-{number}")}})
        })
        .collect();
    space.apply(&settings)?;
    answers(&guarded.foe.netns, guarded.cluster_ips[0])?;
    for node in NODES {
        eventually(SOON, || {
            let served = served(&cluster, node)?;
            ensure!(served.contains("/afterwards"), "{node}: {served}");
            Ok(())
        })?;
    }

    restore(&cluster)?;
    for node in NODES {
        eventually(SOON, || {
            let served = served(&cluster, node)?;
            ensure!(!served.contains("/afterwards"), "{node}: {served}");
            Ok(())
        })?;
        cluster.wait_until_ready(node)?;
    }
    for target in &guarded.cluster_ips {
        guarded.holds_at(*target)?;
    }
    // And it is followed from there.
    space.kubectl(&["delete", "networkpolicy", "--all"])?;
    answers(&guarded.foe.netns, guarded.cluster_ips[1])?;
    Ok(())
}
