//! A node with pods whose agent watches an API server.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::agent;
use tests::api_server::ApiServer;
use tests::command::{self, Background};
use tests::inspect::{fingerprint, ruleset};
use tests::node::{NODE_NAME, Node};
use tests::objects::{self, deny_all};
use tests::pod::{Family, Pod};
use tests::programs;
use tests::traffic::{Outcome, Protocol, Server, ask, limit};
use tests::wait::{SOON, eventually};

pub(crate) const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// How long an agent may take to have everything in the kernel.
pub(crate) const READY: &str = "60s";
pub(crate) const PODS: [(&str, &str); 3] = [
    ("shop/web", "web"),
    ("shop/client", "client"),
    ("closed/web", "web"),
];

/// A node whose agent watches an API server. Its parts end in the order of the fields.
pub(crate) struct Cluster<'n> {
    pub(crate) servers: Vec<Server>,
    pub(crate) pods: Vec<Pod<'n>>,
    pub(crate) agent: Background,
    _log: ShownLog,
    pub(crate) api: ApiServer,
    pub(crate) node: &'n Node,
}

impl<'n> Cluster<'n> {
    /// Two namespaces, three pods, a Service, and a policy that closes one namespace.
    pub(crate) fn start(node: &'n Node) -> Result<Self> {
        let api = ApiServer::start(&node.netns)?;
        fs::write(kubeconfig(node), api.kubeconfig())?;
        api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}))?;
        api.put(&kube_system("one"))?;
        for namespace in ["shop", "closed"] {
            api.put(&objects::namespace(namespace, &json!({})))?;
        }
        for (key, app) in PODS {
            api.put(&objects::pod(key, &json!({"app": app}), &[80]))?;
        }
        api.put(&service())?;
        api.put(&deny_all("closed"))?;
        let agent = spawn(node)?;
        let mut cluster = Self {
            servers: Vec::new(),
            pods: Vec::new(),
            agent,
            _log: ShownLog(log(node)),
            api,
            node,
        };
        cluster.wait(READY)?;
        for (key, _) in PODS {
            let pod = Pod::add(node, key)?;
            cluster.servers.push(Server::start(&pod.netns, key, &[80])?);
            cluster.pods.push(pod);
        }
        cluster.serve_by("shop/web")?;
        eventually(SOON, || cluster.enforced())?;
        Ok(cluster)
    }

    pub(crate) fn pod(&self, key: &str) -> &Pod<'n> {
        let pod = self.pods.iter().find(|pod| pod.key() == key);
        pod.expect("a pod of this cluster")
    }

    /// Makes that pod the endpoint of the Service.
    pub(crate) fn serve_by(&self, key: &str) -> Result<()> {
        for family in Family::ALL {
            self.api.put(&slice(family, self.pod(key)))?;
        }
        Ok(())
    }

    /// Asks from the client.
    pub(crate) fn ask(
        &self,
        protocol: Protocol,
        target: SocketAddr,
        limit: Duration,
    ) -> Result<Outcome> {
        let client = &self.pod("shop/client").netns;
        client.enter(move || ask(protocol, target, limit))
    }

    /// Whether the Service is answered by that pod, or by nobody.
    pub(crate) fn served_by(&self, key: Option<&str>) -> Result<()> {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let target = service_address(family);
                let outcome = self.ask(protocol, target, limit(key.is_some()))?;
                ensure!(outcome.server() == key, "{family} {protocol}: {outcome}");
            }
        }
        Ok(())
    }

    /// Whether the closed pod can be reached.
    pub(crate) fn is_closed(&self, closed: bool) -> Result<()> {
        for family in Family::ALL {
            let target = self.pod("closed/web").at(family, 80);
            let outcome = self.ask(Protocol::Tcp, target, limit(!closed))?;
            ensure!(outcome.is_answered() != closed, "{family}: {outcome}");
        }
        Ok(())
    }

    /// Whether everything is as [`Self::start`] has it.
    pub(crate) fn enforced(&self) -> Result<()> {
        self.served_by(Some("shop/web"))?;
        self.is_closed(true)
    }

    pub(crate) fn wait(&self, timeout: &str) -> Result<()> {
        let output = agent::verb(self.node, &["wait", "--timeout", timeout])?;
        ensure!(output.status.success(), "{}", output.stderr);
        Ok(())
    }

    /// The API server answers again, but for policies; waits until they alone are missing.
    pub(crate) fn come_back_without_policies(&self) -> Result<()> {
        self.api.set_failing("NetworkPolicy", true);
        self.api.come_back();
        eventually(SOON, || {
            let error = self
                .wait("100ms")
                .expect_err("not all is listed")
                .to_string();
            ensure!(
                error.trim_end().ends_with("first list of NetworkPolicy"),
                "{error}"
            );
            Ok(())
        })?;
        Ok(())
    }

    /// Kills the agent and starts the next.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.agent.stop(Signal::SIGKILL, SOON)?;
        self.agent = spawn(self.node)?;
        Ok(())
    }

    /// Ends the agent and takes away what does not outlive a boot: pods, tables, `/run`.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.agent.stop(Signal::SIGKILL, SOON)?;
        self.servers.clear();
        for pod in self.pods.drain(..) {
            pod.forget()?;
        }
        for table in ["inet", "bridge"] {
            let mut command = self.node.netns.command("nft");
            command::run(command.args(["delete", "table", table, "trammel"]))?;
        }
        let run = self.node.socket();
        let run = run.parent().context("a folder")?;
        fs::remove_dir_all(run)?;
        fs::create_dir(run)?;
        Ok(())
    }

    /// Starts pods as a kubelet would: until it succeeds.
    pub(crate) fn start_pods(&mut self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let (pod, _) = eventually(SOON, || Pod::add(self.node, key))?;
            self.servers.push(Server::start(&pod.netns, key, &[80])?);
            self.pods.push(pod);
        }
        Ok(())
    }

    /// An error unless the client reaches that pod, or does not.
    pub(crate) fn reaches(&self, key: &str, expected: bool) -> Result<()> {
        for family in Family::ALL {
            let target = self.pod(key).at(family, 80);
            let outcome = self.ask(Protocol::Tcp, target, limit(expected))?;
            ensure!(
                outcome.is_answered() == expected,
                "{family} to {key}: {outcome}"
            );
        }
        Ok(())
    }

    pub(crate) fn rules(&self) -> Result<std::collections::BTreeMap<String, usize>> {
        Ok(fingerprint(&ruleset(&self.node.netns)?))
    }
}

/// Prints the agent's log when dropped: the test runner shows it if the test fails.
pub(crate) struct ShownLog(pub(crate) PathBuf);

impl Drop for ShownLog {
    fn drop(&mut self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        eprintln!("log of the agent:\n{text}");
    }
}

pub(crate) fn kubeconfig(node: &Node) -> PathBuf {
    node.dir().join("kubeconfig")
}

/// Where the agent writes objects down.
pub(crate) fn state_dir(node: &Node) -> PathBuf {
    node.dir().join("state")
}

pub(crate) fn log(node: &Node) -> PathBuf {
    node.dir().join("agent.log")
}

/// Starts an agent, on a node that has a proxy for what is outside of the cluster, and waits
/// until its socket answers.
pub(crate) fn spawn(node: &Node) -> Result<Background> {
    let mut command: Command = node.netns.command(programs::agent());
    command
        .env("HTTPS_PROXY", "http://192.0.2.9:3128")
        .args(["run", "--node-name", NODE_NAME, "--kubeconfig"])
        .arg(kubeconfig(node))
        .arg("--socket")
        .arg(node.socket())
        .arg("--state-dir")
        .arg(state_dir(node));
    let mut process = Background::spawn(&command, &log(node))?;
    eventually(SOON, || {
        let status = process.status()?;
        ensure!(status.is_none(), "the agent has ended: {status:?}");
        std::os::unix::net::UnixStream::connect(node.socket()).context("its socket")
    })?;
    Ok(process)
}

pub(crate) fn service() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)])
}

pub(crate) fn service_address(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// The namespace whose UID names a cluster.
pub(crate) fn kube_system(uid: &str) -> Value {
    let mut namespace = objects::namespace("kube-system", &json!({}));
    namespace["metadata"]["uid"] = json!(uid);
    namespace
}

/// The slice of the Service that a controller would write.
pub(crate) fn slice(family: Family, pod: &Pod<'_>) -> Value {
    let ports: Vec<_> = ["TCP", "UDP"]
        .map(|protocol| {
            let name = format!("{}-8000", protocol.to_lowercase());
            json!({"name": name, "protocol": protocol, "port": 80})
        })
        .into();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": format!("web-{}", family.to_string().to_lowercase()),
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family.to_string(),
        "endpoints": [{"addresses": [pod.ip(family)], "conditions": {"ready": true},
            "nodeName": NODE_NAME}],
        "ports": ports,
    })
}
