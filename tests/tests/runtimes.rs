//! Containers of real runtimes on the plugin: podman and containerd, as Debian has them.
//!
//! No registry is needed: the image is one static program, made here. It answers every
//! connection to port 8080 with its container's name.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command::{self, Background, LIMIT};
use tests::netns::NetNs;
use tests::node::{NODE_IPS, Node};
use tests::wait::{SOON, eventually};
use tests::{inspect, programs, require_root};

/// The container's program. As process 1 it has to take signals on purpose.
const HELLO: &str = r#"
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
    const char *name = getenv("NAME");
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(8080)};
    int listener = socket(AF_INET6, SOCK_STREAM, 0);

    signal(SIGTERM, _exit);
    if (!name || bind(listener, (void *)&any, sizeof any) || listen(listener, 16))
        return 1;
    for (;;) {
        int peer = accept(listener, 0, 0);
        if (write(peer, name, strlen(name)) < 0 || close(peer))
            continue;
    }
}
"#;

const PORT: u16 = 8080;

/// Compiles the program into a folder, which is then a container's root file system.
fn root_file_system(node: &Node) -> Result<PathBuf> {
    let root = node.dir().join("rootfs");
    for dir in ["proc", "sys", "dev", "etc", "run", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let source = node.dir().join("hello.c");
    fs::write(&source, HELLO)?;
    let mut cc = Command::new("cc");
    cc.args(["-static", "-Os", "-o"])
        .arg(root.join("hello"))
        .arg(&source);
    command::run(&mut cc)?;
    Ok(root)
}

/// What the program at an address answers to somebody in a namespace.
fn ask(netns: &NetNs, server: SocketAddr) -> Result<String> {
    netns.enter(move || {
        let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

/// Waits until the container's program listens and answers with its name.
fn expect_answer(node: &Node, ips: &[IpAddr], name: &str) -> Result<()> {
    ensure!(ips.len() == 2, "one address of each family: {ips:?}");
    for &ip in ips {
        let (answer, _) = eventually(SOON, || ask(&node.netns, SocketAddr::new(ip, PORT)))?;
        ensure!(answer == name, "{ip} answered {answer:?}");
    }
    Ok(())
}

/// Fails unless no link, lease, record or element of a container is left.
fn expect_no_trace(node: &Node, ips: &[IpAddr]) -> Result<()> {
    let left = (node.ports()?, node.leases()?, node.records()?);
    ensure!(
        left.0.is_empty() && left.1.is_empty() && left.2.is_empty(),
        "ports, leases, records: {left:?}"
    );
    let ruleset = format!("{:?}", inspect::ruleset(&node.netns)?);
    for ip in ips {
        let quoted = format!("\"{ip}\"");
        ensure!(!ruleset.contains(&quoted), "{ip} is in the tables");
    }
    Ok(())
}

/// A node whose network configuration these runtimes understand.
fn node() -> Result<Node> {
    let node = Node::new()?;
    let keys = json!({"cniVersion": "1.0.0", "capabilities": {"portMappings": true}});
    node.write_conflist(&node.conflist(keys))?;
    Ok(node)
}

/// podman with everything of its own in a node's directory.
struct Podman<'n> {
    node: &'n Node,
    conf: PathBuf,
}

impl<'n> Podman<'n> {
    fn new(node: &'n Node) -> Result<Self> {
        let conf = node.dir().join("containers.conf");
        fs::write(
            &conf,
            format!(
                "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}]\n\
                 network_config_dir = {:?}\ndefault_network = {:?}\n\
                 [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
                 [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n",
                programs::bin_dir(),
                node.conf_dir(),
                node.network(),
            ),
        )?;
        let podman = Self { node, conf };
        let archive = node.dir().join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(root_file_system(node)?)
            .arg("-cf")
            .arg(&archive)
            .arg("hello");
        command::run(&mut tar)?;
        let archive = archive.display().to_string();
        podman.run(&[
            "import",
            "--change",
            "ENTRYPOINT [\"/hello\"]",
            &archive,
            "hello",
        ])?;
        Ok(podman)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let dir = |name: &str| self.node.dir().join(name);
        let mut command = self.node.netns.command("podman");
        command
            .env("CONTAINERS_CONF", &self.conf)
            .args(["--storage-driver", "vfs", "--root"])
            .arg(dir("storage"))
            .arg("--runroot")
            .arg(dir("runroot"))
            .args(arguments);
        command::run(&mut command)
    }

    fn start(&self, name: &str, publish: &str) -> Result<()> {
        let variable = format!("NAME={name}");
        self.run(&[
            "run",
            "-d",
            "--name",
            name,
            "--env",
            &variable,
            "--network",
            self.node.network(),
            "--publish",
            publish,
            "localhost/hello",
        ])?;
        Ok(())
    }

    /// Path of the container's network namespace, and its addresses.
    fn inspect(&self, name: &str) -> Result<(PathBuf, Vec<IpAddr>)> {
        let text = self.run(&["inspect", name])?;
        let inspected: Value = serde_json::from_str(&text)?;
        let settings = &inspected[0]["NetworkSettings"];
        let text = |key: &str| settings[key].as_str().unwrap_or_default().to_owned();
        let mut ips = Vec::new();
        for key in ["IPAddress", "GlobalIPv6Address"] {
            ips.push(
                text(key)
                    .parse()
                    .with_context(|| format!("{key} in {settings}"))?,
            );
        }
        Ok((PathBuf::from(text("SandboxKey")), ips))
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["rm", "--all", "--force", "--time", "0"]) {
            eprintln!("containers stay behind: {error:#}");
        }
    }
}

/// The containers' ports on the node's IPv4 address, from outside and from the node itself.
/// podman asks for the wildcard of IPv4 alone.
fn expect_published(node: &Node) -> Result<()> {
    for (port, name) in [(8081, "one"), (8082, "two")] {
        let server = SocketAddr::new(NODE_IPS[0].parse()?, port);
        for netns in [&node.outside, &node.netns] {
            let (answer, _) = eventually(SOON, || ask(netns, server))?;
            ensure!(
                answer == name,
                "{server} answered {answer:?} to {}",
                netns.name()
            );
        }
    }
    Ok(())
}

/// Issue 4, item 5; cni.md 36, 37.
#[test]
fn podman_containers_start_restart_and_go_without_a_trace() -> Result<()> {
    require_root!();
    let node = node()?;
    let agent = Agent::start(&node)?;
    let podman = Podman::new(&node)?;
    podman.start("one", "8081:8080")?;
    podman.start("two", "8082:8080")?;
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let (_, ips) = podman.inspect(name)?;
        expect_answer(&node, &ips, name)?;
        seen.extend(ips);
    }
    expect_published(&node)?;
    let (netns, _) = podman.inspect("one")?;
    for ip in &podman.inspect("two")?.1 {
        let mut ping = Command::new("nsenter");
        ping.arg(format!("--net={}", netns.display()))
            .args(["ping", "-n", "-q", "-c1", "-W5"])
            .arg(ip.to_string());
        command::run(&mut ping).with_context(|| format!("from one to {ip}"))?;
    }

    podman.run(&["restart", "--time", "1", "one"])?;
    let (_, ips) = podman.inspect("one")?;
    expect_answer(&node, &ips, "one")?;
    seen.extend(ips);
    expect_published(&node)?;
    ensure!(node.leases()?.len() == 4, "{:?}", node.leases()?);

    // One ends by itself, from podman's view, and one is taken away while it runs.
    podman.run(&["kill", "--signal", "KILL", "one"])?;
    podman.run(&["rm", "--force", "--time", "1", "one", "two"])?;
    expect_no_trace(&node, &seen)?;
    ensure!(agent.verify()?.status.success(), "{}", agent.log_text());
    Ok(())
}

/// containerd with everything of its own in a node's directory. `ctr` makes the network
/// calls itself and knows one place for plugins and one for their configuration, so it
/// shares a mount namespace in which these are the node's.
struct Containerd<'n> {
    node: &'n Node,
    process: Background,
    root: PathBuf,
}

impl<'n> Containerd<'n> {
    fn start(node: &'n Node) -> Result<Self> {
        let dir = node.dir().join("containerd");
        let plugins = dir.join("plugins");
        fs::create_dir_all(&plugins)?;
        fs::copy(programs::plugin(), plugins.join("trammel"))?;
        let conf = dir.join("config.toml");
        let path = |name: &str| dir.join(name);
        fs::write(
            &conf,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
                path("root"),
                path("state"),
                path("sock"),
                path("ttrpc"),
            ),
        )?;
        let mut command = node.netns.command("unshare");
        command
            .args(["--mount", "--propagation", "slave", "sh", "-ec"])
            .arg(
                "mkdir -p /etc/cni; mount -t tmpfs tmpfs /etc/cni; mount -t tmpfs tmpfs /opt\n\
                 mkdir -p /etc/cni/net.d /opt/cni/bin\n\
                 mount --bind \"$1\" /etc/cni/net.d; mount --bind \"$2\" /opt/cni/bin\n\
                 exec containerd --config \"$3\"",
            )
            .arg("sh")
            .args([&node.conf_dir(), &plugins, &conf]);
        let process = Background::spawn(&command, &dir.join("log"))?;
        let containerd = Self {
            node,
            process,
            root: root_file_system(node)?,
        };
        eventually(LIMIT, || containerd.ctr(&["version"]))
            .with_context(|| fs::read_to_string(dir.join("log")).unwrap_or_default())?;
        Ok(containerd)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.process.pid()))
            .args(["--mount", "--net", "ctr", "--address"])
            .arg(self.node.dir().join("containerd/sock"))
            .args(arguments);
        command
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        command::run(&mut self.command(arguments))
    }

    /// The command that runs a container.
    fn run(&self, options: &[&str], name: &str) -> Command {
        let variable = format!("NAME={name}");
        let root = self.root.display().to_string();
        let runc = self.node.dir().join("runc").display().to_string();
        let always = [
            "run",
            "--cni",
            "--env",
            &variable,
            "--runc-root",
            &runc,
            "--rootfs",
        ];
        self.command(&[&always, options, &[&root, name, "/hello"]].concat())
    }

    fn is_running(&self, name: &str) -> Result<bool> {
        let tasks = self.ctr(&["task", "ls"])?;
        Ok(tasks
            .lines()
            .any(|line| line.starts_with(name) && line.contains("RUNNING")))
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        // Their shims outlive containerd. Most tests have ended theirs.
        for name in self.ctr(&["task", "ls", "-q"]).unwrap_or_default().lines() {
            self.ctr(&["task", "delete", "--force", name]).ok();
        }
    }
}

/// The addresses of the one attachment that a node has.
fn addresses(node: &Node) -> Result<Vec<IpAddr>> {
    let records = node.records()?;
    ensure!(records.len() == 1, "{records:?}");
    let record = fs::read_to_string(node.records_dir().join(&records[0]))?;
    let record: Value = serde_json::from_str(&record)?;
    inspect::items(&record["ips"])
        .map(|ip| Ok(ip.as_str().context("text")?.parse()?))
        .collect()
}

fn wait_for_record(node: &Node) -> Result<Vec<IpAddr>> {
    let (ips, _) = eventually(LIMIT, || {
        ensure!(
            !node.records()?.iter().any(|name| is_temporary(name)),
            "ADD is under way"
        );
        addresses(node)
    })?;
    Ok(ips)
}

fn is_temporary(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "tmp")
}

/// Issue 4, item 5.
#[test]
fn a_containerd_container_starts_and_goes_without_a_trace() -> Result<()> {
    require_root!();
    let node = node()?;
    let agent = Agent::start(&node)?;
    let containerd = Containerd::start(&node)?;
    for round in ["first", "second"] {
        // ctr stays until its container ends, and then takes it off the network.
        let log = node.dir().join("ctr.log");
        let mut ctr = Background::spawn(&containerd.run(&["--rm"], round), &log)?;
        let ips =
            wait_for_record(&node).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        expect_answer(&node, &ips, round)?;
        // It answers before its start is over.
        eventually(LIMIT, || {
            ensure!(containerd.is_running(round)?, "{round} does not run");
            Ok(())
        })?;
        containerd.ctr(&["task", "kill", "--signal", "SIGTERM", round])?;
        eventually(LIMIT, || {
            ctr.status()?.context("ctr is still there")?;
            Ok(())
        })?;
        expect_no_trace(&node, &ips)?;
    }
    ensure!(agent.verify()?.status.success(), "{}", agent.log_text());
    Ok(())
}

/// Issue 4, item 5; cni.md 55: `ctr run --detach` never calls DEL.
#[test]
fn what_containerd_forgets_the_agent_frees() -> Result<()> {
    require_root!();
    let node = node()?;
    let agent = Agent::spawn_with(&node, &["--reap-interval", "200ms"])?;
    agent.wait()?;
    let containerd = Containerd::start(&node)?;
    command::run(&mut containerd.run(&["--detach"], "forgotten"))?;
    let ips = wait_for_record(&node)?;
    expect_answer(&node, &ips, "forgotten")?;
    containerd.ctr(&["task", "delete", "--force", "forgotten"])?;
    containerd.ctr(&["container", "rm", "forgotten"])?;
    eventually(LIMIT, || expect_no_trace(&node, &ips))?;
    Ok(())
}
