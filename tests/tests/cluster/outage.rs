//! The control plane goes away, forgets, and comes back.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::inspect::items;
use tests::wait::eventually;

use crate::cluster::{Cluster, NODES, SOON, require_cluster};
use crate::guarded::Guarded;
use crate::load::{Load, answers, is_denied};
use crate::objects::{PORT, pod};
use crate::space::{Pod, Space};

/// Longer than leases of nodes and the longest pause of any client.
const AWAY: Duration = Duration::from_secs(130);

/// A process of a container of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Process {
    /// In the node.
    pid: String,
    program: String,
    /// Tells network namespaces apart.
    netns: String,
}

/// The first processes of all containers of a node.
fn processes(cluster: &Cluster, node: &str) -> Result<Vec<Process>> {
    const LIST: &str = r#"for pid in $(ctr -n k8s.io task ls | awk 'NR > 1 && $3 == "RUNNING" {print $2}'); do
        echo "$pid $(</proc/$pid/comm) $(readlink /proc/$pid/ns/net)"; done"#;
    let text = cluster.node(node, &["bash", "-c", LIST])?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let [pid, program, netns] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                // It ended meanwhile.
                return None;
            };
            Some(Process {
                pid: pid.to_owned(),
                program: program.to_owned(),
                netns: netns.to_owned(),
            })
        })
        .collect())
}

/// Kills the process that holds the pod's namespaces, which kubelet then makes anew without
/// asking the API server, and returns the pod's new addresses.
fn remake_sandbox(cluster: &Cluster, pod: &Pod) -> Result<Vec<IpAddr>> {
    let own = fs::read_link(pod.netns.path()).context("the pod's namespace")?;
    let before = processes(cluster, &pod.node)?;
    let pause = before
        .iter()
        .find(|p| p.program == "pause" && own == Path::new(&p.netns))
        .with_context(|| format!("no pause process of {} among {before:?}", pod.name))?;
    cluster.node(&pod.node, &["kill", "-KILL", &pause.pid])?;
    let is_new = |p: &Process| before.iter().all(|old| old.netns != p.netns);
    let (server, _) = eventually(SOON, || {
        let now = processes(cluster, &pod.node)?;
        now.iter()
            .find(|p| is_new(p) && p.program != "pause")
            .cloned()
            .with_context(|| format!("no new server among {now:?}"))
    })?;
    let text = cluster.node(
        &pod.node,
        &[
            "nsenter",
            "-t",
            &server.pid,
            "--net",
            "ip",
            "-j",
            "address",
            "show",
            "eth0",
            "scope",
            "global",
        ],
    )?;
    let links: Value = serde_json::from_str(&text).context("ip -j address")?;
    Ok(items(&links[0]["addr_info"])
        .filter_map(|address| address["local"].as_str()?.parse().ok())
        .collect())
}

/// issue 7, 4: API server away; netpol.md 64, 65.
#[test]
fn everything_goes_on_while_the_api_server_is_away() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "away")?;
    let guarded = Guarded::apply(&space, pod("web", NODES[1]))?;
    let web = space.ready_pod("web")?;
    let Guarded {
        friend,
        foe,
        cluster_ips,
    } = &guarded;
    guarded.holds_at(cluster_ips[0])?;

    let allowed = Load::allowed(&friend.netns, cluster_ips[0], 50)?;
    let denied = Load::denied(&foe.netns, web.targets()[0])?;
    let api_server = cluster.without("node1", "apiserver", "kill")?;
    thread::sleep(AWAY);
    allowed.stop()?.never_failed()?;
    denied.stop()?.never_answered()?;

    // The sandbox that is made now has addresses that the API server never saw, and the
    // policies of its pod all the same.
    let addresses = remake_sandbox(&cluster, &web)?;
    ensure!(addresses.len() == 2, "new addresses {addresses:?}");
    for ip in addresses {
        ensure!(!web.ips.contains(&ip), "{ip} again");
        let target = SocketAddr::new(ip, PORT);
        guarded.holds_at(target)?;
    }
    api_server.start()?;
    cluster.wait_for_api()?;

    // What was not known until now is, and changes arrive again.
    space.apply(&[pod("late", NODES[1])])?;
    let late = space.ready_pod("late")?;
    is_denied(&late.netns, cluster_ips[0])?;
    space.kubectl(&["delete", "networkpolicy", "--all"])?;
    answers(&late.netns, cluster_ips[0])?;
    Ok(())
}

/// An API server that has forgotten everything, and no kubelet: they would delete all pods
/// when they see none, which is not what is tested here. Remembers when dropped.
struct Forgetful<'c> {
    cluster: &'c Cluster,
    is_over: bool,
}

impl<'c> Forgetful<'c> {
    fn begin(cluster: &'c Cluster) -> Result<Self> {
        let forgetful = Self {
            cluster,
            is_over: false,
        };
        for node in NODES {
            cluster.proc(node, "kubelet", "stop")?;
        }
        for program in ["controller-manager", "scheduler", "apiserver", "etcd"] {
            cluster.proc("node1", program, "kill")?;
        }
        let [data, aside] = forgetful.data();
        fs::rename(data, aside).context("cannot set etcd's data aside")?;
        cluster.proc("node1", "etcd", "start")?;
        cluster.proc("node1", "apiserver", "start")?;
        cluster.wait_for_api()?;
        Ok(forgetful)
    }

    /// etcd's data, and where they lie meanwhile.
    fn data(&self) -> [PathBuf; 2] {
        ["etcd", "etcd.aside"].map(|name| self.cluster.run_dir().join("node1").join(name))
    }

    fn end(mut self) -> Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> Result<()> {
        self.is_over = true;
        let cluster = self.cluster;
        cluster.proc("node1", "apiserver", "kill")?;
        cluster.proc("node1", "etcd", "kill")?;
        let [data, aside] = self.data();
        if aside.exists() {
            fs::remove_dir_all(&data)
                .and_then(|()| fs::rename(&aside, &data))
                .context("cannot restore etcd's data")?;
        }
        cluster.proc("node1", "etcd", "start")?;
        cluster.proc("node1", "apiserver", "start")?;
        cluster.wait_for_api()?;
        for program in ["controller-manager", "scheduler"] {
            cluster.proc("node1", program, "restart")?;
        }
        for node in NODES {
            cluster.proc(node, "kubelet", "restart")?;
        }
        Ok(())
    }
}

impl Drop for Forgetful<'_> {
    fn drop(&mut self) {
        if !self.is_over
            && let Err(error) = self.restore()
        {
            eprintln!("the cluster is not as it was: {error:#}");
        }
    }
}

/// issue 7, 4: etcd wiped and restored. What the empty one says are versions that the agents
/// are far ahead of, and an API server sends nothing of those to a watch: no agent forgets
/// what it knew, nothing is cut and nothing opens.
#[test]
fn a_wiped_etcd_cuts_and_opens_nothing_and_a_restored_one_is_followed() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "restored")?;
    let guarded = Guarded::apply(&space, pod("web", NODES[1]))?;
    let web = space.ready_pod("web")?;
    let Guarded {
        friend,
        foe,
        cluster_ips,
    } = &guarded;
    guarded.holds_at(cluster_ips[0])?;

    let allowed = Load::allowed(&friend.netns, cluster_ips[0], 50)?;
    let denied = Load::denied(&foe.netns, web.targets()[0])?;
    let forgetful = Forgetful::begin(&cluster)?;
    for target in cluster_ips {
        guarded.holds_at(*target)?;
    }
    forgetful.end()?;
    for node in NODES {
        cluster.wait_until_ready(node)?;
    }
    allowed.stop()?.never_failed()?;
    denied.stop()?.never_answered()?;
    for target in cluster_ips {
        guarded.holds_at(*target)?;
    }
    space.apply(&[pod("late", NODES[0])])?;
    let late = space.ready_pod("late")?;
    is_denied(&late.netns, cluster_ips[0])?;
    space.kubectl(&["delete", "networkpolicy", "--all"])?;
    answers(&late.netns, cluster_ips[0])?;
    Ok(())
}
