//! Addresses from a DHCP server on the pod's link, by Debian's `dhcp` plugin and its daemon.

use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command::{Background, LIMIT};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::wait::eventually;
use tests::{inspect, programs, require_root};

use crate::assert_empty;

/// The server's own address, which is the router that it names.
const ROUTER: &str = "10.99.0.1";

/// A bridge of the node with a DHCP server behind one of its ports.
struct Lan {
    server: NetNs,
    leases: PathBuf,
    _process: Background,
}

impl Lan {
    fn new(node: &Node) -> Result<Self> {
        let server = NetNs::create("server")?;
        node.netns.ip("link add cbr0 type bridge")?;
        node.netns.ip("link set cbr0 up")?;
        node.netns.ip(&format!(
            "link add lan master cbr0 type veth peer name eth0 netns {}",
            server.name()
        ))?;
        node.netns.ip("link set lan up")?;
        server.ip(&format!("address add {ROUTER}/24 dev eth0"))?;
        server.ip("link set eth0 up")?;
        let leases = node.dir().join("dnsmasq.leases");
        let mut command = server.command("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file",
            ])
            .args([
                "--port=0",
                "--interface=eth0",
                "--bind-interfaces",
                "--no-ping",
            ])
            .args(["--user=root", "--dhcp-authoritative"])
            .arg("--dhcp-range=10.99.0.10,10.99.0.20,255.255.255.0,1h")
            .arg(format!("--dhcp-option=option:router,{ROUTER}"))
            .arg(format!("--dhcp-leasefile={}", leases.display()));
        let process = Background::spawn(&command, &node.dir().join("dnsmasq.log"))?;
        let listens = || -> Result<()> {
            let sockets = server
                .command("ss")
                .args(["-Hlun", "sport = 67"])
                .output()?;
            ensure!(!sockets.stdout.is_empty(), "nobody listens on port 67");
            Ok(())
        };
        eventually(LIMIT, listens)?;
        Ok(Self {
            server,
            leases,
            _process: process,
        })
    }

    /// The server's leases: Ethernet address and IP address of each.
    fn leases(&self) -> Result<Vec<(String, String)>> {
        let text = fs::read_to_string(&self.leases).context("no file of leases")?;
        let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let pair =
            |fields: Vec<&str>| Some((fields.get(1)?.to_string(), fields.get(2)?.to_string()));
        Ok(fields.filter_map(pair).collect())
    }
}

fn socket_of(node: &Node) -> PathBuf {
    node.dir().join("dhcp.sock")
}

/// The plugin's daemon, which keeps the leases.
fn daemon(node: &Node) -> Result<(Background, PathBuf)> {
    let socket = socket_of(node);
    let mut command = Command::new(Path::new(programs::REFERENCE_PLUGINS).join("dhcp"));
    command
        .args([
            "daemon",
            "-timeout",
            "3s",
            "-resendmax",
            "1s",
            "-socketpath",
        ])
        .arg(&socket);
    let process = Background::spawn(&command, &node.dir().join("dhcp.log"))?;
    eventually(LIMIT, || Ok(UnixStream::connect(&socket)?))?;
    Ok((process, socket))
}

fn call<'n>(node: &'n Node, verb: &str, pod: &NetNs, socket: &Path, keys: Value) -> Call<'n> {
    let mut conf = node.conf(keys);
    conf["cniVersion"] = json!("1.0.0");
    conf["ipam"] = json!({"type": "dhcp", "daemonSocketPath": socket});
    Call::new(node, verb, "c1", pod)
        .conf(&conf)
        .env("CNI_PATH", programs::REFERENCE_PLUGINS)
}

/// cni.md 35.
#[test]
fn a_server_on_the_link_gives_the_address_and_gets_it_back() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let lan = Lan::new(&node)?;
    let (_daemon, socket) = daemon(&node)?;
    let pod = NetNs::create("pod")?;
    let result = call(&node, "ADD", &pod, &socket, json!({})).result()?;
    let ips = inspect::result_ips(&result)?;
    let [ip] = ips.as_slice() else {
        panic!("one address: {result}")
    };
    let mac = result["interfaces"][2]["mac"].as_str().context("eth0")?;
    assert_eq!(lan.leases()?, [(mac.to_owned(), ip.to_string())]);
    assert_eq!(pod.ip_json("link show eth0")?[0]["address"], mac);
    assert_eq!(result["ips"][0]["gateway"], ROUTER, "{result}");
    let default = pod.ip_json("-4 route show default")?;
    assert_eq!(inspect::items(&default).len(), 1, "{default}");
    assert_eq!(default[0]["gateway"], ROUTER, "{default}");
    pod.ping(ROUTER.parse::<IpAddr>()?)?;
    lan.server.ping(*ip)?;
    // The router is the server's, not the bridge's.
    let bridge = node.netns.ip_json("-4 address show cbr0")?;
    assert_eq!(inspect::items(&bridge[0]["addr_info"]).len(), 0, "{bridge}");
    let keys = json!({"prevResult": result});
    call(&node, "CHECK", &pod, &socket, keys).silent()?;
    for _ in 0..2 {
        call(&node, "DEL", &pod, &socket, json!({})).silent()?;
        eventually(LIMIT, || {
            ensure!(lan.leases()?.is_empty(), "{:?}", lan.leases()?);
            Ok(())
        })?;
    }
    node.netns.ip("link delete lan")?;
    assert_empty(&node)
}

/// cni.md 28, 35.
#[test]
fn an_add_without_daemon_server_or_with_an_agent_leaves_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let (_, text) = call(&node, "ADD", &pod, &socket_of(&node), json!({})).error()?;
    ensure!(text.contains("dhcp.sock"), "{text}");
    let expect_nothing = || -> Result<()> {
        let links = pod.ip_json("link show")?;
        ensure!(inspect::items(&links).len() == 1, "{links}");
        assert_eq!(node.ports()?, Vec::<String>::new());
        Ok(())
    };
    expect_nothing()?;
    // Nobody could be told that the address is not wanted any more; now the next ADD does it.
    assert!(!node.records()?.is_empty());
    let (_daemon, socket) = daemon(&node)?;
    let (_, text) = call(&node, "ADD", &pod, &socket, json!({})).error()?;
    ensure!(text.contains("ipam dhcp"), "{text}");
    expect_nothing()?;
    assert_empty(&node)?;
    let _agent = Agent::start(&node)?;
    let (code, text) = call(&node, "ADD", &pod, &socket, json!({})).error()?;
    assert_eq!(code, 2, "{text}");
    ensure!(text.contains("agent"), "{text}");
    expect_nothing()?;
    assert_empty(&node)
}
