//! Connections to endpoints that vanish without a word, where they are to be reset: who waits
//! for an answer learns it, and nobody else loses a connection.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{NODE_IPS, Node, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::wait::SOON;

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const OTHER: [&str; 2] = ["10.96.0.11", "fd96::11"];
const NODE_PORT: u16 = 30_080;
const CLIENT: &str = "shop/client";
const ENDPOINTS: [&str; 2] = ["shop/web-0", "shop/web-1"];
const RESET: &str = "--reset-gone-endpoints";
/// Of two endpoints one is missed by so many connections in 1 of 10^12.
const ATTEMPTS: usize = 40;

fn pods(of_web: &[&'static str]) -> Vec<(&'static str, Value)> {
    let app = |key: &str| if of_web.contains(&key) { "web" } else { "none" };
    let mut pods: Vec<_> = ENDPOINTS.map(|key| (key, json!({"app": app(key)}))).into();
    pods.push((CLIENT, json!({"app": "client"})));
    pods
}

fn web() -> Value {
    let mut service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    service["spec"]["type"] = "NodePort".into();
    for port in service["spec"]["ports"].as_array_mut().expect("ports") {
        port["nodePort"] = NODE_PORT.into();
    }
    service
}

/// A connection whose server has said who it is.
struct Connection {
    server: String,
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(from: &NetNs, target: SocketAddr) -> Result<Self> {
        let stream = from.enter(move || TcpStream::connect_timeout(&target, SOON))??;
        stream.set_read_timeout(Some(SOON))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let server = line.split_whitespace().next().context("a name")?;
        Ok(Self {
            server: server.to_owned(),
            stream,
        })
    }

    /// To each of the two endpoints one.
    fn to_both(from: &NetNs, target: SocketAddr) -> Result<[Self; 2]> {
        let mut found = [None, None];
        for _ in 0..ATTEMPTS {
            let connection = Self::open(from, target)?;
            let index = ENDPOINTS.iter().position(|key| *key == connection.server);
            found[index.context("one of the two")?] = Some(connection);
            if let [Some(_), Some(_)] = found {
                return Ok(found.map(|connection| connection.expect("both")));
            }
        }
        bail!("{ATTEMPTS} connections to {target} have missed one endpoint")
    }

    /// What is sent comes back.
    fn works(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(b"still there\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.contains("still there"), "{}: {line:?}", self.server);
        Ok(())
    }

    /// What is sent is answered by a reset, if only the acknowledgement of what came last, which
    /// may be sent later than that.
    fn is_reset(&mut self) -> Result<()> {
        let mut line = String::new();
        let sent = self.stream.get_mut().write_all(b"anybody there\n");
        match sent.and_then(|()| self.stream.read_line(&mut line)) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => bail!("{}: {other:?}, {line:?}", self.server),
        }
    }
}

fn at(ips: [&str; 2], family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.pick(ips), port)
}

/// Ways to the Service, of each kind of client.
fn ways(family: Family) -> [(&'static str, SocketAddr); 4] {
    [
        (CLIENT, at(WEB, family, 8000)),
        (CLIENT, at(NODE_IPS, family, NODE_PORT)),
        (NODE, at(WEB, family, 8000)),
        (OUTSIDE, at(NODE_IPS, family, NODE_PORT)),
    ]
}

/// The pod is gone as with the power of its node: nothing of it is heard any more.
fn vanish(scene: &mut Scene<'_>, key: &str) -> Result<()> {
    let pod = scene.pods.remove(key).context("a pod")?;
    pod.netns.ip("link set eth0 down")?;
    scene.servers.remove(key);
    pod.del()
}

fn connections(scene: &Scene<'_>) -> Result<Vec<[Connection; 2]>> {
    let sources = scene.sources();
    let mut connections = Vec::new();
    for family in Family::ALL {
        for (from, target) in ways(family) {
            connections.push(Connection::to_both(sources[from], target)?);
        }
    }
    Ok(connections)
}

/// kubernetes#100698, #104098, #118814.
#[test]
fn clients_of_an_endpoint_that_is_gone_are_reset_and_the_others_go_on() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start_with(&node, &pods(&ENDPOINTS), &[web()], &[RESET])?;
    let mut connections = connections(&scene)?;
    let all_but = |gone: &[&str]| -> Vec<_> {
        let pods = pods(&ENDPOINTS).into_iter();
        pods.filter(|(key, _)| !gone.contains(key)).collect()
    };
    vanish(&mut scene, ENDPOINTS[0])?;
    scene.apply_pods(&all_but(&ENDPOINTS[..1]))?;
    for [gone, other] in &mut connections {
        gone.is_reset()?;
        other.works()?;
    }
    // Those that had ended count as well, as long as conntrack remembers them.
    let (_, metrics) = scene.agent.get("/metrics")?;
    let mut lines = metrics.lines();
    let reset = lines.find_map(|line| line.strip_prefix("trammel_connections_reset_total "));
    let reset: usize = reset.context("a counter")?.parse()?;
    ensure!(reset >= connections.len(), "{reset}");

    // The last one: nobody else can be asked.
    vanish(&mut scene, ENDPOINTS[1])?;
    scene.apply_pods(&all_but(&ENDPOINTS))?;
    for [_, other] in &mut connections {
        other.is_reset()?;
    }
    Ok(())
}

#[test]
fn a_pod_that_lives_keeps_its_connections_whatever_its_service_says() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start_with(&node, &pods(&ENDPOINTS), &[web()], &[RESET])?;
    let mut connections = connections(&scene)?;
    // It is not selected any more; the Service has others; it has none; it is gone.
    for of_web in [&ENDPOINTS[1..], &ENDPOINTS[..1], &[]] {
        scene.apply_pods(&pods(of_web))?;
        for connection in connections.iter_mut().flatten() {
            connection.works()?;
        }
    }
    scene.apply(&[])?;
    for connection in connections.iter_mut().flatten() {
        connection.works()?;
    }
    Ok(())
}

/// The neighbour as an endpoint of the Service, in both families; or nothing.
fn given(service: &str, is_there: bool) -> [Value; 2] {
    let key = format!("shop/{service}");
    objects::slices(&key, OUTSIDE_IPS, "n2", &[(8000, 80)]).map(|mut slice| {
        if !is_there {
            slice["endpoints"] = json!([]);
        }
        slice
    })
}

#[test]
fn an_endpoint_elsewhere_is_gone_when_no_service_has_it_and_direct_connections_stay() -> Result<()>
{
    require_root!();
    let node = Node::new()?;
    let objects = |has: [bool; 2]| {
        let mut objects = [given("one", has[0]), given("two", has[1])].concat();
        for (key, ips) in [("shop/one", WEB), ("shop/two", OTHER)] {
            objects.push(objects::service(key, ips, &json!({}), &[(8000, 80)]));
        }
        objects
    };
    let scene = Scene::start_with(&node, &pods(&[]), &objects([true, true]), &[RESET])?;
    let client = &scene.pod(CLIENT).netns;
    let (mut translated, mut direct) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        for ips in [WEB, OTHER] {
            translated.push(Connection::open(client, at(ips, family, 8000))?);
        }
        direct.push(Connection::open(client, at(OUTSIDE_IPS, family, 80))?);
    }
    scene.apply(&objects([false, true]))?;
    for connection in translated.iter_mut().chain(&mut direct) {
        connection.works()?;
    }
    scene.apply(&objects([false, false]))?;
    for connection in &mut translated {
        connection.is_reset()?;
    }
    for connection in &mut direct {
        connection.works()?;
    }
    Ok(())
}

/// services.md section 1, TCP conntrack: it is left alone unless that is asked for.
#[test]
fn without_being_asked_for_no_connection_is_reset() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let objects = |is_there: bool| {
        let mut objects = given("one", is_there).to_vec();
        objects.push(objects::service("shop/one", WEB, &json!({}), &[(8000, 80)]));
        objects
    };
    let scene = Scene::start(&node, &pods(&[]), &objects(true))?;
    let client = &scene.pod(CLIENT).netns;
    let targets = Family::ALL.map(|family| at(WEB, family, 8000));
    let connections = targets.map(|target| Connection::open(client, target));
    scene.apply(&objects(false))?;
    for connection in connections {
        connection?.works()?;
    }
    let flows = node
        .netns
        .command("conntrack")
        .args(["-L", "-p", "tcp"])
        .output()?;
    let flows = String::from_utf8_lossy(&flows.stdout);
    ensure!(flows.contains("dport=8000"), "{flows}");
    Ok(())
}
