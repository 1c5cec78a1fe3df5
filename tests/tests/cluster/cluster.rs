//! The running cluster: its programs, its nodes, its API.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::command;
use tests::inspect::items;
use tests::netns::NetNs;
use tests::privilege;
use tests::programs::workspace;
use tests::wait::eventually;

/// Directory of the state of a running cluster, that is `$RUN` of `tests/cluster/up`.
const CLUSTER: &str = "TRAMMEL_CLUSTER";

/// The nodes that every cluster has; the first holds the control plane.
pub(crate) const NODES: [&str; 2] = ["node1", "node2"];

/// For what has to come about. Generous: the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(180);

/// How long one command may take. kubectl waits for at most [`SOON`].
const COMMAND: Duration = Duration::from_secs(240);

/// The cluster, for one scenario at a time.
#[derive(Debug)]
pub(crate) struct Cluster {
    run: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// Ends the calling test with a line that the runner does not swallow where there is no
/// cluster; else the cluster.
macro_rules! require_cluster {
    () => {
        match $crate::cluster::Cluster::take()? {
            Some(cluster) => cluster,
            None => return Ok(()),
        }
    };
}
pub(crate) use require_cluster;

impl Cluster {
    /// Waits for its turn. `None` if no cluster was named.
    ///
    /// # Errors
    /// If the named one is not there, or an earlier scenario left a node unusable.
    pub(crate) fn take() -> Result<Option<Self>> {
        static ALONE: Mutex<()> = Mutex::new(());
        let Some(run) = std::env::var_os(CLUSTER).map(PathBuf::from) else {
            privilege::skip(&format!(
                "needs a cluster: run `make cluster-test`, or set {CLUSTER}"
            ));
            return Ok(None);
        };
        // A scenario that failed has been reported; the next one looks for itself.
        let alone = ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        ensure!(
            run.join("settings").exists(),
            "{CLUSTER}={}: no cluster there; tests/cluster/up starts one",
            run.display()
        );
        let cluster = Self { run, _alone: alone };
        for node in NODES {
            cluster.wait_until_ready(node)?;
        }
        Ok(Some(cluster))
    }

    /// The directory of its state.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run
    }

    /// A program of `tests/cluster`.
    fn program<A: AsRef<OsStr>>(&self, name: &str, arguments: &[A]) -> Command {
        let mut command = Command::new(workspace().join("tests/cluster").join(name));
        command.env("RUN", &self.run).args(arguments);
        command
    }

    /// Runs kubectl, which has to succeed, and returns what it printed.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        succeed(&mut self.program("k", arguments), "")
    }

    /// Parses what `kubectl ... -o json` prints.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {arguments:?}"))
    }

    /// Creates or changes objects.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        succeed(
            &mut self.program("k", &["apply", "-f", "-"]),
            &list.to_string(),
        )?;
        Ok(())
    }

    /// Runs a command in all namespaces of a node, which has to succeed, and returns what
    /// it printed.
    pub(crate) fn node(&self, node: &str, arguments: &[&str]) -> Result<String> {
        succeed(
            &mut self.program("node", &[&[node], arguments].concat()),
            "",
        )
    }

    /// start, stop, kill, restart or pid of a program of a node.
    pub(crate) fn proc(&self, node: &str, program: &str, verb: &str) -> Result<String> {
        succeed(&mut self.program("proc", &[node, program, verb]), "")
    }

    /// Puts plugins and agents onto the nodes, as `up` does.
    pub(crate) fn install(&self) -> Result<()> {
        succeed(&mut self.program::<&str>("install", &[]), "")?;
        Ok(())
    }

    /// The network that many clusters have before, on all nodes: `add` or `remove`.
    pub(crate) fn bridge(&self, verb: &str) -> Result<()> {
        succeed(&mut self.program("bridge", &[verb]), "")?;
        Ok(())
    }

    /// Ends a program of a node by `stop` or `kill`.
    pub(crate) fn without(
        &self,
        node: &'static str,
        program: &'static str,
        how: &str,
    ) -> Result<Stopped<'_>> {
        self.proc(node, program, how)?;
        Ok(Stopped {
            cluster: self,
            node,
            program,
            is_stopped: true,
        })
    }

    /// Waits until the API server serves.
    pub(crate) fn wait_for_api(&self) -> Result<()> {
        eventually(SOON, || self.kubectl(&["get", "--raw", "/readyz"]))?;
        Ok(())
    }

    /// Waits until the agent of a node has everything that it sees in the kernel.
    pub(crate) fn wait_for_agent(&self, node: &str) -> Result<()> {
        let program = self.run.join(node).join("bin/trammel-agent");
        let program = program.to_string_lossy();
        eventually(SOON, || {
            self.node(node, &[&program, "wait", "--timeout", "10s"])
        })?;
        Ok(())
    }

    /// Whether the API server holds a node for ready.
    pub(crate) fn is_ready(&self, node: &str) -> Result<bool> {
        let object = self.get(&["node", node])?;
        Ok(items(&object["status"]["conditions"])
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
    }

    /// Waits until a node is ready.
    pub(crate) fn wait_until_ready(&self, node: &str) -> Result<()> {
        eventually(SOON, || {
            ensure!(self.is_ready(node)?, "{node} is not Ready");
            Ok(())
        })?;
        Ok(())
    }

    /// The network namespace of a node.
    pub(crate) fn netns(&self, node: &str) -> Result<NetNs> {
        Ok(NetNs::existing(node, self.init(node)?.join("ns/net")))
    }

    /// The world outside: the router between the nodes.
    pub(crate) fn outside(&self) -> Result<NetNs> {
        let settings = fs::read_to_string(self.run.join("settings"))?;
        let prefix = settings
            .lines()
            .find_map(|line| line.strip_prefix("PREFIX="))
            .context("no PREFIX in the settings of the cluster")?;
        let path = Path::new("/run/netns").join(format!("{prefix}router"));
        Ok(NetNs::existing("outside", path))
    }

    /// The network namespace of a pod, by the process of its container.
    pub(crate) fn pod_netns(&self, node: &str, name: &str, container_id: &str) -> Result<NetNs> {
        let id = container_id
            .strip_prefix("containerd://")
            .with_context(|| format!("{name}: container {container_id:?}"))?;
        let tasks = self.node(node, &["ctr", "-n", "k8s.io", "task", "ls"])?;
        let pid = tasks
            .lines()
            .find_map(|line| line.strip_prefix(id))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("{name}: container {id} does not run on {node}"))?;
        // Numbers of the node's own pid namespace, in the node's own /proc.
        let path = self.init(node)?.join("root/proc").join(pid).join("ns/net");
        Ok(NetNs::existing(name, path))
    }

    /// /proc of a node's first process, as this process sees it.
    fn init(&self, node: &str) -> Result<PathBuf> {
        let path = self.run.join(node).join("init.pid");
        let pid =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Path::new("/proc").join(pid.trim()))
    }
}

/// A program of the cluster that a scenario has ended. Started again when dropped.
#[derive(Debug)]
#[must_use = "it is started again when dropped"]
pub(crate) struct Stopped<'c> {
    cluster: &'c Cluster,
    node: &'static str,
    program: &'static str,
    is_stopped: bool,
}

impl Stopped<'_> {
    /// Starts it again.
    pub(crate) fn start(mut self) -> Result<()> {
        self.is_stopped = false;
        self.cluster.proc(self.node, self.program, "start")?;
        Ok(())
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.is_stopped
            && let Err(error) = self.cluster.proc(self.node, self.program, "start")
        {
            eprintln!(
                "cannot start {} on {} again: {error:#}",
                self.program, self.node
            );
        }
    }
}

fn succeed(command: &mut Command, input: &str) -> Result<String> {
    let output = command::output(command, input.as_bytes(), COMMAND)?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            command::describe(command),
            command::complaint(&output)
        );
    }
    Ok(output.stdout)
}
