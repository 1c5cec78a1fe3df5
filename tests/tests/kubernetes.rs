//! The agent on a Kubernetes API: `run --kubeconfig`, real pods, real traffic.

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
use tests::inspect::{fingerprint, ruleset, tables};
use tests::matrix::LIMIT;
use tests::node::{NODE_NAME, Node};
use tests::objects::{self, deny_all};
use tests::pod::{Family, Pod};
use tests::programs;
use tests::require_root;
use tests::traffic::{Outcome, Protocol, Server, ask};
use tests::wait::eventually;

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const SHORT: Duration = Duration::from_millis(400);
/// Watches try again after 0.8 s, then after twice as long each time.
const RETRIES: Duration = Duration::from_secs(20);
/// An agent waits for the API server for ten seconds before it looks to the disk.
const FALLBACK: Duration = Duration::from_secs(30);
const PODS: [(&str, &str); 3] = [
    ("shop/web", "web"),
    ("shop/client", "client"),
    ("closed/web", "web"),
];

/// A node whose agent watches an API server. Its parts end in the order of the fields.
struct Cluster<'n> {
    servers: Vec<Server>,
    pods: Vec<Pod<'n>>,
    agent: Background,
    _log: ShownLog,
    api: ApiServer,
    node: &'n Node,
}

impl<'n> Cluster<'n> {
    /// Two namespaces, three pods, a Service, and a policy that closes one namespace.
    fn start(node: &'n Node) -> Result<Self> {
        let api = ApiServer::start(&node.netns)?;
        fs::write(kubeconfig(node), api.kubeconfig())?;
        api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}))?;
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
        cluster.wait("10s")?;
        for (key, _) in PODS {
            let pod = Pod::add(node, key)?;
            cluster.servers.push(Server::start(&pod.netns, key, &[80])?);
            cluster.pods.push(pod);
        }
        cluster.serve_by("shop/web")?;
        eventually(LIMIT, || cluster.enforced())?;
        Ok(cluster)
    }

    fn pod(&self, key: &str) -> &Pod<'n> {
        let pod = self.pods.iter().find(|pod| pod.key() == key);
        pod.expect("a pod of this cluster")
    }

    /// Makes that pod the endpoint of the Service.
    fn serve_by(&self, key: &str) -> Result<()> {
        for family in Family::ALL {
            self.api.put(&slice(family, self.pod(key)))?;
        }
        Ok(())
    }

    /// Asks from the client.
    fn ask(&self, protocol: Protocol, target: SocketAddr, limit: Duration) -> Result<Outcome> {
        let client = &self.pod("shop/client").netns;
        client.enter(move || ask(protocol, target, limit))
    }

    /// Whether the Service is answered by that pod, or by nobody.
    fn served_by(&self, key: Option<&str>) -> Result<()> {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let limit = if key.is_some() { LIMIT } else { SHORT };
                let outcome = self.ask(protocol, service_address(family), limit)?;
                ensure!(outcome.server() == key, "{family} {protocol}: {outcome}");
            }
        }
        Ok(())
    }

    /// Whether the closed pod can be reached.
    fn is_closed(&self, closed: bool) -> Result<()> {
        for family in Family::ALL {
            let target = self.pod("closed/web").at(family, 80);
            let outcome = self.ask(Protocol::Tcp, target, SHORT)?;
            ensure!(outcome.is_answered() != closed, "{family}: {outcome}");
        }
        Ok(())
    }

    /// Whether everything is as [`Self::start`] has it.
    fn enforced(&self) -> Result<()> {
        self.served_by(Some("shop/web"))?;
        self.is_closed(true)
    }

    fn wait(&self, timeout: &str) -> Result<()> {
        let output = agent::verb(self.node, &["wait", "--timeout", timeout])?;
        ensure!(output.status.success(), "{}", output.stderr);
        Ok(())
    }

    /// The API server answers again, but for policies; waits until they alone are missing.
    fn come_back_without_policies(&self) -> Result<()> {
        self.api.set_failing("NetworkPolicy", true);
        self.api.come_back();
        eventually(RETRIES, || {
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
    fn restart(&mut self) -> Result<()> {
        self.agent.stop(Signal::SIGKILL, LIMIT)?;
        self.agent = spawn(self.node)?;
        Ok(())
    }

    /// Ends the agent and takes away what does not outlive a boot: pods, tables, `/run`.
    fn power_off(&mut self) -> Result<()> {
        self.agent.stop(Signal::SIGKILL, LIMIT)?;
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
    fn start_pods(&mut self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let (pod, _) = eventually(FALLBACK, || Pod::add(self.node, key))?;
            self.servers.push(Server::start(&pod.netns, key, &[80])?);
            self.pods.push(pod);
        }
        Ok(())
    }

    /// Whether the client reaches that pod.
    fn reaches(&self, key: &str) -> Result<bool> {
        let mut answered = Vec::new();
        for family in Family::ALL {
            let target = self.pod(key).at(family, 80);
            answered.push(self.ask(Protocol::Tcp, target, SHORT)?.is_answered());
        }
        ensure!(answered[0] == answered[1], "both families alike: {key}");
        Ok(answered[0])
    }

    fn rules(&self) -> Result<std::collections::BTreeMap<String, usize>> {
        Ok(fingerprint(&ruleset(&self.node.netns)?))
    }
}

/// Prints the agent's log when dropped: the test runner shows it if the test fails.
struct ShownLog(PathBuf);

impl Drop for ShownLog {
    fn drop(&mut self) {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        eprintln!("log of the agent:\n{text}");
    }
}

fn kubeconfig(node: &Node) -> PathBuf {
    node.dir().join("kubeconfig")
}

/// Where the agent writes objects down.
fn state_dir(node: &Node) -> PathBuf {
    node.dir().join("state")
}

fn log(node: &Node) -> PathBuf {
    node.dir().join("agent.log")
}

/// Starts an agent and waits until its socket answers.
fn spawn(node: &Node) -> Result<Background> {
    let mut command: Command = node.netns.command(programs::agent());
    command
        .args(["run", "--node-name", NODE_NAME, "--kubeconfig"])
        .arg(kubeconfig(node))
        .arg("--socket")
        .arg(node.socket())
        .arg("--state-dir")
        .arg(state_dir(node));
    let mut process = Background::spawn(&command, &log(node))?;
    eventually(LIMIT, || {
        let status = process.status()?;
        ensure!(status.is_none(), "the agent has ended: {status:?}");
        std::os::unix::net::UnixStream::connect(node.socket()).context("its socket")
    })?;
    Ok(process)
}

fn service() -> Value {
    objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)])
}

fn service_address(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// The slice of the Service that a controller would write.
fn slice(family: Family, pod: &Pod<'_>) -> Value {
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

#[test]
fn what_changes_in_the_api_is_enforced_also_after_a_disconnect() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    for disconnects in [false, true] {
        if disconnects {
            cluster.api.bookmark();
            cluster.api.disconnect();
        }
        cluster.api.put(&deny_all("shop"))?;
        eventually(RETRIES, || cluster.served_by(None))?;
        cluster.api.delete(&deny_all("shop"))?;
        eventually(RETRIES, || cluster.enforced())?;

        cluster.api.delete(&deny_all("closed"))?;
        eventually(RETRIES, || cluster.is_closed(false))?;
        cluster.serve_by("closed/web")?;
        eventually(RETRIES, || cluster.served_by(Some("closed/web")))?;
        cluster.api.put(&deny_all("closed"))?;
        cluster.serve_by("shop/web")?;
        eventually(RETRIES, || cluster.enforced())?;
    }
    assert_eq!(
        cluster.api.lists("Pod"),
        1,
        "a disconnected watch goes on where it was"
    );
    Ok(())
}

#[test]
fn a_pod_is_closed_until_the_api_knows_it() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let late = Pod::add(&node, "shop/late")?;
    let _server = Server::start(&late.netns, "late", &[80])?;
    let target = late.at(Family::V6, 80);
    let answered =
        |limit| Ok::<_, anyhow::Error>(cluster.ask(Protocol::Tcp, target, limit)?.is_answered());
    assert!(!answered(SHORT)?);
    let object = objects::pod("shop/late", &json!({"app": "late"}), &[80]);
    cluster.api.put(&object)?;
    eventually(RETRIES, || {
        ensure!(answered(SHORT)?, "still closed");
        Ok(())
    })?;
    cluster.api.delete(&object)?;
    eventually(RETRIES, || {
        ensure!(!answered(SHORT)?, "still open");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn an_api_that_goes_away_and_comes_back_changes_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let before = cluster.rules()?;
    cluster.api.go_away();
    std::thread::sleep(Duration::from_secs(1));
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);
    cluster
        .wait("1s")
        .context("what was visible is in the kernel")?;

    cluster.api.come_back();
    cluster.api.put(&objects::namespace("news", &json!({})))?;
    // It is watched again when this comes through.
    cluster.api.put(&deny_all("shop"))?;
    eventually(RETRIES, || cluster.served_by(None))?;
    cluster.api.delete(&deny_all("shop"))?;
    eventually(RETRIES, || cluster.enforced())?;
    Ok(())
}

#[test]
fn what_was_deleted_unseen_is_gone_after_410() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let lists = cluster.api.lists("Service");
    cluster.api.go_away();
    cluster.api.delete(&service())?;
    cluster.api.delete(&deny_all("closed"))?;
    cluster.api.forget();
    cluster.api.come_back();
    eventually(RETRIES, || cluster.is_closed(false))?;
    eventually(RETRIES, || cluster.served_by(None))?;
    eventually(RETRIES, || {
        ensure!(cluster.api.lists("Service") > lists, "not listed again");
        let services = agent::verb(&node, &["services", "-o", "json"])?.stdout;
        ensure!(!services.contains("shop"), "{services}");
        Ok(())
    })?;

    // The watch goes on from the new list.
    cluster.api.put(&service())?;
    cluster.api.put(&deny_all("closed"))?;
    eventually(RETRIES, || cluster.enforced())?;
    Ok(())
}

#[test]
fn a_restart_while_the_api_is_away_leaves_the_rules_as_they_are() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    let before = cluster.rules()?;
    cluster.api.go_away();
    cluster.restart()?;
    let error = cluster
        .wait("1s")
        .expect_err("nothing is listed")
        .to_string();
    assert!(
        error.contains("first list of Namespace, Node, Pod"),
        "{error}"
    );
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);

    // All but one kind: the pods would be open without their policies.
    cluster.come_back_without_policies()?;
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);

    cluster.api.set_failing("NetworkPolicy", false);
    cluster.wait("20s")?;
    assert_eq!(
        cluster.rules()?,
        before,
        "the same objects with the same handles"
    );
    cluster.enforced()
}

#[test]
fn an_agent_that_never_reached_the_api_writes_no_table() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let api = ApiServer::start(&node.netns)?;
    fs::write(kubeconfig(&node), api.kubeconfig())?;
    api.go_away();
    let _agent = spawn(&node)?;
    let _log = ShownLog(log(&node));
    let output = agent::verb(&node, &["wait", "--timeout", "500ms"])?;
    assert!(!output.status.success());
    assert_eq!(tables(&node.netns)?, Vec::<String>::new());
    api.come_back();
    let output = agent::verb(&node, &["wait", "--timeout", "20s"])?;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(tables(&node.netns)?.len(), 2);
    Ok(())
}

/// netpol.md 64: a node that boots without the API server enforces what it knew, is closed to
/// what it did not, and takes all that is new at once.
#[test]
fn a_boot_without_the_api_server_enforces_the_last_known_state() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    eventually(RETRIES, || {
        let text = fs::read_to_string(state_dir(&node).join("objects"))?;
        ensure!(text.contains("NetworkPolicy closed/deny-all"), "{text}");
        Ok(())
    })?;
    cluster.power_off()?;
    cluster.api.go_away();
    cluster.agent = spawn(&node)?;
    let refused = Pod::add(&node, "shop/client").expect_err("nothing is known yet");
    assert!(
        format!("{refused:#}").contains("waiting for the first list of"),
        "{refused:#}"
    );
    cluster.start_pods(&["shop/client", "shop/web", "closed/web", "shop/late"])?;
    assert!(cluster.reaches("shop/web")?);
    assert!(!cluster.reaches("closed/web")?, "a policy that was known");
    assert!(
        !cluster.reaches("shop/late")?,
        "a pod that nobody has described"
    );
    let status = agent::verb(&node, &["status"])?.stdout;
    assert!(
        status.contains("are enforced, waiting for the first list of"),
        "{status}"
    );
    let services = agent::verb(&node, &["services", "-o", "json"])?.stdout;
    assert!(services.contains("10.96.0.10"), "{services}");
    cluster
        .wait("100ms")
        .expect_err("what is there now was not seen");

    // Yesterday's policies are never enforced on today's pods.
    cluster.api.delete(&deny_all("closed"))?;
    cluster
        .api
        .put(&objects::pod("shop/late", &json!({"app": "late"}), &[80]))?;
    cluster.api.put(&objects::policy(
        "shop/late",
        &json!({"podSelector": {"matchLabels": {"app": "late"}}}),
    ))?;
    cluster.come_back_without_policies()?;
    assert!(!cluster.reaches("shop/late")? && !cluster.reaches("closed/web")?);
    cluster.api.set_failing("NetworkPolicy", false);
    cluster.wait("20s")?;
    assert!(cluster.reaches("closed/web")? && !cluster.reaches("shop/late")?);
    let status = agent::verb(&node, &["status"])?.stdout;
    assert!(!status.contains("are enforced"), "{status}");
    Ok(())
}

/// netpol.md 64: a file that is not what it was is worth nothing.
#[test]
fn a_damaged_state_on_disk_leaves_pods_closed_and_says_so() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    let path = state_dir(&node).join("objects");
    let (text, _) = eventually(RETRIES, || Ok(fs::read_to_string(&path)?))?;
    cluster.power_off()?;
    cluster.api.go_away();
    fs::write(
        &path,
        text.replacen("+ NetworkPolicy", "? NetworkPolicy", 1),
    )?;
    cluster.agent = spawn(&node)?;
    eventually(FALLBACK, || {
        let log = fs::read_to_string(log(&node))?;
        for text in [
            "no use can be made of the objects of an earlier run",
            "it is no line of a journal",
        ] {
            ensure!(log.contains(text), "{log}");
        }
        Ok(())
    })?;
    Pod::add(&node, "shop/client").expect_err("nothing is known");
    assert_eq!(tables(&node.netns)?, Vec::<String>::new());
    cluster.api.come_back();
    cluster.wait("20s")?;
    cluster.start_pods(&["shop/client", "shop/web", "closed/web"])?;
    assert!(cluster.reaches("shop/web")? && !cluster.reaches("closed/web")?);
    Ok(())
}
