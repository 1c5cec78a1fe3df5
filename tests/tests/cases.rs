//! Policy cases of others with real packets.
//!
//! `netpol-cases` holds 230 cases with, for each step, the objects and what has
//! to come of every connection among nine pods. The folder is looked for at
//! `TRAMMEL_SHARED`, by default beside this tree. Every tenth case is tried, by Services every
//! twentieth, all of them with `TRAMMEL_CASES=all`. Left out are SCTP, which the kernel may not
//! offer as a socket, and connections of a pod to itself, which never leave it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::matrix::{self, Cell, Expect};
use tests::netns::NetNs;
use tests::node::Node;
use tests::objects;
use tests::pod::{Family, Pod};
use tests::traffic::{Protocol, Server};
use tests::{command, privilege, programs, require_root};

const FILES: [(Family, &str); 2] = [
    (Family::V4, "cases-v4.json.gz"),
    (Family::V6, "cases-v6.json.gz"),
];
/// Namespaces and names of the nine pods.
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Their addresses in the cases begin with these and end with a number from 10 on.
const ADDRESSES: [&str; 2] = ["10.244.1.", "fd00:10:244::"];
/// The addresses of their Services, with the same number.
const SERVICES: [&str; 2] = ["10.96.1.", "fd96::1:"];

/// By which address a pod is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    /// Its own.
    Pod,
    /// That of a Service which has it as its only endpoint.
    ClusterIp,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Case {
    index: u32,
    description: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    policies: Vec<Value>,
    pods: Vec<CasePod>,
    #[serde(rename = "NS")]
    namespaces: BTreeMap<String, Value>,
    table: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CasePod {
    namespace: String,
    name: String,
    labels: Value,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    port: u16,
    protocol: String,
    port_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    from: String,
    to: String,
    protocol: String,
    port: u16,
    allowed: String,
}

/// netpol.md 1, 2.
#[test]
fn cases_of_others_come_out_as_their_tables_say() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    node.outside.ip("route add 10.244.1.0/24 via 192.0.2.2")?;
    run(std::slice::from_ref(&node), Via::Pod)
}

/// netpol.md 3.
#[test]
fn cases_of_others_come_out_the_same_by_cluster_ips() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    run(std::slice::from_ref(&node), Via::ClusterIp)
}

/// netpol.md 4: every other pod is on another node, which judges for itself.
#[test]
fn cases_of_others_come_out_the_same_on_two_nodes() -> Result<()> {
    require_root!();
    let nodes = Node::pair()?;
    for (index, ips) in (0..9).map(|index| (index, addresses(index))) {
        let [there, here] = [&nodes[index % 2], &nodes[(index + 1) % 2]];
        for (ip, family) in ips.iter().zip(Family::ALL) {
            let via = there.link_ip(family);
            here.netns.ip(&format!("route add {ip} via {via}"))?;
        }
    }
    run(&nodes, Via::Pod)
}

/// Tries the cases with the pods spread over these nodes, which read the manifests of the
/// first.
fn run(nodes: &[Node], via: Via) -> Result<()> {
    let Some(folder) = folder() else {
        privilege::skip("netpol-cases is not there: set TRAMMEL_SHARED to the folder that has it");
        return Ok(());
    };
    let agents = nodes.iter().map(Agent::start).collect::<Result<Vec<_>>>()?;
    let pods = nine_pods(nodes)?;
    let _servers = pods
        .iter()
        .map(|(key, pod)| Server::start(&pod.netns, key, &[80, 81]))
        .collect::<Result<Vec<_>>>()?;
    let sources: BTreeMap<_, _> = pods
        .iter()
        .map(|(key, pod)| (key.clone(), &pod.netns))
        .collect();

    let mut tried = 0;
    for (family, file) in FILES {
        for case in select(read(&folder.join(file))?, via) {
            for (number, step) in case.steps.iter().enumerate() {
                let mut manifests = step.manifests(nodes);
                if via == Via::ClusterIp {
                    manifests.extend(services(nodes));
                }
                nodes[0].manifests.write("case", &manifests)?;
                agents.iter().try_for_each(Agent::wait)?;
                let cells = step.cells(&pods, family, via);
                tried += cells.len();
                matrix::verify(&sources, &cells).with_context(|| {
                    let Case {
                        index, description, ..
                    } = &case;
                    format!("case {index}, {description}, step {}, {family}", number + 1)
                })?;
            }
        }
    }
    assert!(tried > 5_000, "only {tried} connections were tried");
    Ok(())
}

fn folder() -> Option<PathBuf> {
    let shared = std::env::var_os("TRAMMEL_SHARED").map_or_else(
        || programs::workspace().with_file_name("shared"),
        PathBuf::from,
    );
    Some(shared.join("netpol-cases")).filter(|folder| folder.is_dir())
}

fn read(path: &Path) -> Result<Vec<Case>> {
    let text = command::run(Command::new("gzip").arg("-dc").arg(path))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The cases to try: those that do without pods beyond the nine; others by Services than by
/// pods' addresses.
fn select(cases: Vec<Case>, via: Via) -> impl Iterator<Item = Case> {
    let (nth, of) = match via {
        Via::Pod => (0, 10),
        Via::ClusterIp => (5, 20),
    };
    let all = std::env::var_os("TRAMMEL_CASES").is_some_and(|value| value == "all");
    cases
        .into_iter()
        .filter(|case| case.steps.iter().all(|step| step.pods.len() == 9))
        .enumerate()
        .filter(move |(number, _)| all || number % of == nth)
        .map(|(_, case)| case)
}

/// The nine pods with the addresses that they have in the cases.
fn nine_pods(nodes: &[Node]) -> Result<BTreeMap<String, Pod<'_>>> {
    let mut pods = BTreeMap::new();
    for (index, key) in keys().enumerate() {
        let node = &nodes[index % nodes.len()];
        let [v4, v6] = addresses(index);
        node.write_conflist(&node.conflist(json!({"ipam": {"ranges": [
            [{"subnet": "10.244.1.0/24", "rangeStart": v4, "rangeEnd": v4}],
            [{"subnet": "fd00:10:244::/64", "rangeStart": v6, "rangeEnd": v6}],
        ]}})))?;
        let pod = Pod::add_netns(node, &key, NetNs::create(&key.replace('/', "-"))?)?;
        pods.insert(key, pod);
    }
    Ok(pods)
}

/// Those of the pod of that number.
fn addresses(index: usize) -> [String; 2] {
    ADDRESSES.map(|prefix| format!("{prefix}{}", 10 + index))
}

/// Those of its Service.
fn service_addresses(index: usize) -> [String; 2] {
    SERVICES.map(|prefix| format!("{prefix}{}", 10 + index))
}

/// A Service of the same name for each pod. The labels of pods change, so the endpoints are
/// given.
fn services(nodes: &[Node]) -> Vec<Value> {
    let mut all = Vec::new();
    for (index, key) in keys().enumerate() {
        let ips = service_addresses(index);
        let ips = ips.each_ref().map(String::as_str);
        let ports = [(80, 80), (81, 81)];
        let service = objects::service(&key, ips, &json!({}), &ports);
        let node = &nodes[index % nodes.len()].name;
        let of_ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let of_ports: Vec<_> = of_ports
            .map(|port| {
                json!({"name": port["name"], "port": port["port"], "protocol": port["protocol"]})
            })
            .collect();
        let metadata = &service["metadata"];
        let name = metadata["name"].as_str().expect("a name").to_owned();
        for (ip, of) in addresses(index).into_iter().zip(["IPv4", "IPv6"]) {
            all.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": metadata["namespace"],
                    "name": format!("{name}-{}", of.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": of,
                "endpoints": [
                    {"addresses": [ip], "nodeName": node, "conditions": {"ready": true}}],
                "ports": of_ports,
            }));
        }
        all.push(service);
    }
    all
}

fn keys() -> impl Iterator<Item = String> {
    NAMESPACES.into_iter().flat_map(|namespace| {
        NAMES
            .into_iter()
            .map(move |name| format!("{namespace}/{name}"))
    })
}

impl Step {
    fn manifests(&self, nodes: &[Node]) -> Vec<Value> {
        let namespaces = self
            .namespaces
            .iter()
            .map(|(name, labels)| objects::namespace(name, labels));
        let policies = self.policies.iter().map(|policy| {
            let mut policy = policy.clone();
            policy["apiVersion"] = json!("networking.k8s.io/v1");
            policy["kind"] = json!("NetworkPolicy");
            policy
        });
        namespaces
            .chain(self.pods.iter().map(|pod| pod.manifest(nodes)))
            .chain(policies)
            .collect()
    }

    fn cells(&self, pods: &BTreeMap<String, Pod<'_>>, family: Family, via: Via) -> Vec<Cell> {
        let target = |row: &Row| match via {
            Via::Pod => pods[&row.to].at(family, row.port),
            Via::ClusterIp => {
                let index = keys().position(|of| of == row.to).expect("one of the nine");
                let ips = service_addresses(index);
                SocketAddr::new(family.pick(ips.each_ref().map(String::as_str)), row.port)
            }
        };
        let of_row = |row: &Row| {
            let protocol = match row.protocol.as_str() {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                _ => return None,
            };
            (row.from != row.to).then(|| Cell {
                from: row.from.clone(),
                to: row.to.clone(),
                protocol,
                target: target(row),
                expect: Expect::answered(row.allowed == "allowed"),
            })
        };
        self.table.iter().filter_map(of_row).collect()
    }
}

impl CasePod {
    fn manifest(&self, nodes: &[Node]) -> Value {
        let ports: Vec<_> = self
            .containers
            .iter()
            .map(
                |Container {
                     port,
                     protocol,
                     port_name,
                 }| {
                    json!({"name": port_name, "containerPort": port, "protocol": protocol})
                },
            )
            .collect();
        let key = format!("{}/{}", self.namespace, self.name);
        let mut pod = objects::pod(&key, &self.labels, &[]);
        let index = keys().position(|of| of == key).expect("one of the nine");
        pod["status"]["podIPs"] = addresses(index).map(|ip| json!({"ip": ip})).into();
        pod["spec"] = json!({"nodeName": nodes[index % nodes.len()].name,
            "containers": [{"name": "main", "image": "none", "ports": ports}]});
        pod
    }
}
