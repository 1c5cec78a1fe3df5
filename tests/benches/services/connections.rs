//! A client and a server with a node between them, each in a network namespace.

use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tests::netns::NetNs;

use crate::cluster::PORT;

/// Clients that connect at the same time, for the rate.
const CLIENTS: u32 = 4;
/// How often the targets take turns.
const ROUNDS: u32 = 2;
/// The server answers at all addresses of this range.
const SERVERS: &str = "203.0.113.0/24";
/// That of them which no Service leads to: no flow of one target is in the way of another's.
const DIRECT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);

/// The namespaces. They go with the value.
pub(crate) struct Lab {
    client: NetNs,
    node: NetNs,
    /// Kept for its name.
    _server: NetNs,
}

/// What connections cost.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Connections {
    /// Median of the time that connect(2) takes, in microseconds.
    pub(crate) latency: Ways,
    /// Connections a second of several clients at once.
    pub(crate) rate: Ways,
}

/// One figure for each way to the server.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ways {
    pub(crate) direct: f64,
    pub(crate) through_service: f64,
}

impl Lab {
    /// A server that accepts and closes, for as long as the process lives.
    pub(crate) fn new() -> Result<Self> {
        let [client, node, server] = ["client", "node", "server"].map(NetNs::create);
        let (client, node, server) = (client?, node?, server?);
        for (netns, link, network) in [(&client, "client", 1), (&server, "server", 2)] {
            node.ip(&format!(
                "link add {link} type veth peer name eth0 netns {}",
                netns.name()
            ))?;
            node.ip(&format!("address add 192.168.{network}.1/24 dev {link}"))?;
            node.ip(&format!("link set {link} up"))?;
            netns.ip(&format!("address add 192.168.{network}.2/24 dev eth0"))?;
            netns.ip("link set eth0 up")?;
            netns.ip(&format!("route add default via 192.168.{network}.1"))?;
        }
        node.ip(&format!("route add {SERVERS} via 192.168.2.2"))?;
        node.sysctl("net.ipv4.ip_forward", 1)?;
        server.ip(&format!("route add local {SERVERS} dev lo"))?;
        let listener = server.enter(|| TcpListener::bind(("0.0.0.0", PORT)))??;
        for listener in [listener.try_clone()?, listener] {
            thread::spawn(move || listener.incoming().for_each(drop));
        }
        Ok(Self {
            client,
            node,
            _server: server,
        })
    }

    /// The calling thread is on the node from now on.
    pub(crate) fn enter_node(&self) -> Result<()> {
        enter(&self.node)
    }

    /// Connects to the server directly and through the Service, in turns: `count` times for
    /// the latency, and as often by each client and in each round for the rate.
    pub(crate) fn connect(&self, service: SocketAddr, count: u32) -> Result<Connections> {
        let ways = [SocketAddr::new(DIRECT.into(), PORT), service];
        let latency = self.client.enter(move || -> Result<[f64; 2]> {
            let mut times = [(); 2].map(|()| Vec::new());
            for _ in 0..count {
                for (way, times) in ways.iter().zip(&mut times) {
                    times.push(connect(*way)?);
                }
            }
            Ok(times.map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2].as_secs_f64() * 1e6
            }))
        })??;
        let mut took = [Duration::ZERO; 2];
        for _ in 0..ROUNDS {
            for (way, took) in ways.into_iter().zip(&mut took) {
                *took += self.connect_at_once(way, count)?;
            }
        }
        let all = f64::from(ROUNDS * CLIENTS * count);
        let rate = took.map(|took| all / took.as_secs_f64());
        let ways = |[direct, through_service]: [f64; 2]| Ways {
            direct,
            through_service,
        };
        Ok(Connections {
            latency: ways(latency),
            rate: ways(rate),
        })
    }

    /// How long several clients take for their part.
    fn connect_at_once(&self, way: SocketAddr, count: u32) -> Result<Duration> {
        let started = Instant::now();
        let clients = (0..CLIENTS).map(|_| {
            self.client
                .spawn(move || (0..count).try_for_each(|_| connect(way).map(drop)))
        });
        let clients: Vec<_> = clients.collect::<Result<_>>()?;
        for client in clients {
            client.join().ok().context("a client panicked")???;
        }
        Ok(started.elapsed())
    }
}

/// How long it takes until the connection is there. The server ends it, or it would be behind
/// at once; then the client resets it, which leaves no port behind that waits.
fn connect(target: SocketAddr) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(target).with_context(|| target.to_string())?;
    let took = started.elapsed();
    let answer = stream.read(&mut [0])?;
    ensure!(answer == 0, "the server says nothing");
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(took)
}

/// The calling thread is in the namespace from now on.
pub(crate) fn enter(netns: &NetNs) -> Result<()> {
    let file = File::open(netns.path())?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| netns.name().to_owned())
}
