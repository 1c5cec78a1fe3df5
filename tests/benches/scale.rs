//! What a large cluster costs the agent of one node: memory, CPU and what it asks of the
//! API server.
//!
//! The server is the suites' own, in this process: lists in pages, watches, 410 Gone. Its
//! objects are as large as real ones, managedFields and all; the agent is the program, as
//! on a node. Times include the server's; CPU and memory are the agent's alone.
//!
//! Run by `make bench`; needs root. `cargo test --benches` runs it once at a small size;
//! `-- --pods N` at that size only.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::api_server::ApiServer;
use tests::command::{self, Background};
use tests::node::{NODE_NAME, Node};
use tests::{programs, wait::eventually};

/// Pods of a node, and of a namespace.
const PER_NODE: usize = 50;
/// One Service for so many pods, which are its endpoints.
const PER_SERVICE: usize = 20;
/// Pods that change, one after the other.
const CHANGES: usize = 500;
/// Ticks of a second in `/proc/PID/stat` (`sysconf(_SC_CLK_TCK)` on every Linux there is).
const TICKS: f64 = 100.0;
/// Between two looks at the agent.
const POLL: Duration = Duration::from_millis(500);
/// How long the agent may take, on a machine that has other things to do.
const LIMIT: Duration = Duration::from_secs(900);

fn main() -> Result<()> {
    if !tests::privilege::ready() {
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().collect();
    let asked = arguments.iter().position(|argument| argument == "--pods");
    let asked = asked.and_then(|at| arguments.get(at + 1)?.parse().ok());
    // `cargo bench` says so; `cargo test --benches` does not.
    let full = arguments.iter().any(|argument| argument == "--bench");
    let sizes = match (asked, full) {
        (Some(pods), _) => vec![pods],
        (None, true) => vec![10_000, 100_000],
        (None, false) => vec![200],
    };
    println!(
        "| pods | nodes | first sync | its CPU | requests | received | RSS | peak | \
         CPU of {CHANGES} changed pods | received | CPU of a relist | peak |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for pods in sizes {
        measure(pods)?;
    }
    Ok(())
}

/// The agent's process, as the kernel accounts for it.
struct Usage {
    rss: u64,
    peak: u64,
    cpu: f64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kilobytes = |key: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let line = line.with_context(|| format!("no {key}"))?;
            let number = line.trim().trim_end_matches(" kB").parse::<u64>();
            Ok(number.with_context(|| format!("{key}{line}"))? << 10)
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may have spaces: from the state on.
        let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
        let ticks: f64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|number| number.parse::<f64>().ok())
            .sum();
        Ok(Self {
            rss: kilobytes("VmRSS:")?,
            peak: kilobytes("VmHWM:")?,
            cpu: ticks / TICKS,
        })
    }
}

/// Measures one size and prints its row.
fn measure(pods: usize) -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start(&node.netns)?;
    let nodes = pods.div_ceil(PER_NODE);
    api.fill((0..nodes).map(node_object))?;
    api.fill((0..nodes).map(namespace))?;
    api.fill((0..nodes).map(policy))?;
    api.fill((0..pods).map(|number| pod(number, "Running")))?;
    let services = pods / PER_SERVICE;
    api.fill((0..services).map(service))?;
    api.fill((0..services).map(slice))?;
    let kubeconfig = node.dir().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig())?;

    let started = Instant::now();
    let mut agent = node.netns.command(programs::agent());
    agent
        .args(["run", "--node-name", NODE_NAME, "--verdict-log", "off"])
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .arg("--socket")
        .arg(node.socket());
    let agent = Background::spawn(&agent, &node.dir().join("agent.log"))?;
    eventually(LIMIT, || {
        UnixStream::connect(node.socket()).context("the agent's socket")
    })?;
    wait(&node)?;
    ensure!(known(&node)? == Some(pods), "not all pods are known");
    let took = started.elapsed();
    let first = Usage::of(agent.pid())?;
    let (requests, received) = api.traffic();

    for number in 0..CHANGES {
        api.put(&pod(number * pods / CHANGES, "Failed"))?;
    }
    let (before, last) = (known(&node)?, pods);
    api.put(&pod(last, "Running"))?;
    eventually(LIMIT, || {
        std::thread::sleep(POLL);
        ensure!(known(&node)? > before, "the last change is not there");
        Ok(())
    })?;
    let changed = Usage::of(agent.pid())?;
    let (_, received_changes) = api.traffic();

    // One that no watch tells: it is known when everything is listed again.
    api.fill([pod(pods + 1, "Running")])?;
    api.disconnect();
    eventually(LIMIT, || {
        // What asks is a process too, and has its part of the machine.
        std::thread::sleep(POLL);
        ensure!(known(&node)? == Some(pods + 2), "not listed again");
        Ok(())
    })?;
    wait(&node)?;
    let relisted = Usage::of(agent.pid())?;

    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    println!(
        "| {pods} | {nodes} | {:.1} s | {:.1} s | {requests} | {} | {} | {} | {:.2} s | {} | {:.1} s | {} |",
        took.as_secs_f64(),
        first.cpu,
        mib(received),
        mib(first.rss),
        mib(first.peak),
        changed.cpu - first.cpu,
        mib(received_changes - received),
        relisted.cpu - changed.cpu,
        mib(relisted.peak),
    );
    Ok(())
}

fn verb(node: &Node, arguments: &[&str]) -> Result<command::Output> {
    let mut command = node.netns.command(programs::agent());
    command.args(arguments).arg("--socket").arg(node.socket());
    command::output(&mut command, b"", LIMIT)
}

/// Until what is visible is in the kernel.
fn wait(node: &Node) -> Result<()> {
    let output = verb(node, &["wait", "--timeout", "15m"])?;
    ensure!(output.status.success(), "{}", command::complaint(&output));
    Ok(())
}

/// The number of pods that the agent knows, once its first sync is done.
fn known(node: &Node) -> Result<Option<usize>> {
    let output = verb(node, &["status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    let pods = status["pods"].as_u64().filter(|_| status["synced"] == true);
    Ok(pods.and_then(|pods| usize::try_from(pods).ok()))
}

fn node_name(number: usize) -> String {
    match number {
        0 => NODE_NAME.to_owned(),
        number => format!("node-{number}"),
    }
}

/// What server-side apply keeps: about as much again as the object.
fn managed_fields(manager: &str, fields: &[&str]) -> Value {
    let owned: serde_json::Map<String, Value> = fields
        .iter()
        .map(|field| {
            (
                format!("f:{field}"),
                json!({".": {}, "f:lastTransitionTime": {}, "f:status": {}}),
            )
        })
        .collect();
    json!([{"manager": manager, "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": owned}, "f:status": {"f:conditions": owned}}}])
}

fn node_object(number: usize) -> Value {
    let (high, low) = (number >> 8, number & 255);
    let images: Vec<_> = (0..40)
        .map(|image| {
            let name = format!("registry.example/team/program-{image}");
            json!({"names": [format!("{name}@sha256:{image:064x}"), format!("{name}:v1")],
                "sizeBytes": 123_456_789})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(number), "uid": format!("node-{number}"),
            "labels": {"kubernetes.io/hostname": node_name(number), "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3)},
            "managedFields": managed_fields("kubelet", &["Ready", "MemoryPressure", "DiskPressure"])},
        "spec": {"podCIDRs": [format!("10.{}.{low}.0/24", 128 + high)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("198.18.{high}.{low}")},
                {"type": "Hostname", "address": node_name(number)}],
            "images": images}})
}

fn namespace_name(number: usize) -> String {
    format!("team-{number}")
}

fn namespace(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace_name(number),
        "labels": {"team": format!("{number}")}}})
}

/// Every namespace is closed to others.
fn policy(number: usize) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace_name(number), "name": "own", "uid": format!("p{number}")},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}})
}

fn ip(pod: usize) -> String {
    let node = pod / PER_NODE;
    format!(
        "10.{}.{}.{}",
        128 + (node >> 8),
        node & 255,
        2 + pod % PER_NODE
    )
}

/// About 5 KB, as they are in clusters.
fn pod(number: usize, phase: &str) -> Value {
    let namespace = namespace_name(number / PER_NODE);
    let app = format!("app-{}", number / PER_SERVICE);
    let environment: Vec<_> = (0..10)
        .map(|i| json!({"name": format!("VARIABLE_{i}"), "value": "a value of some length"}))
        .collect();
    let mounts = json!([{"name": "token", "readOnly": true,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    let conditions: Vec<_> = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ]
    .map(|of| json!({"type": of, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
    .into();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": format!("{app}-7c5ddbdf54-{number}"),
            "generateName": format!("{app}-7c5ddbdf54-"),
            "uid": format!("00000000-0000-4000-8000-{number:012}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop",
                "pod-template-hash": "7c5ddbdf54", "team": namespace},
            "annotations": {"checksum/config": format!("{number:064x}")},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                "blockOwnerDeletion": true, "name": app, "uid": format!("{number:036}")}],
            "managedFields": managed_fields("kubelet",
                &["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"])},
        "spec": {"nodeName": node_name(number / PER_NODE), "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "registry.example/team/program:v1",
                "env": environment, "volumeMounts": mounts,
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}],
            "volumes": [{"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt"}}]}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}]},
        "status": {"phase": phase, "podIP": ip(number), "podIPs": [{"ip": ip(number)}],
            "hostIP": "198.18.0.1", "conditions": conditions,
            "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0,
                "image": "registry.example/team/program:v1",
                "imageID": format!("registry.example/team/program@sha256:{number:064x}"),
                "containerID": format!("containerd://{number:064x}"),
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}})
}

fn service_name(number: usize) -> (String, String) {
    (
        namespace_name(number * PER_SERVICE / PER_NODE),
        format!("service-{number}"),
    )
}

fn service(number: usize) -> Value {
    let (namespace, name) = service_name(number);
    let address = format!(
        "10.{}.{}.{}",
        96 + (number >> 16),
        number >> 8 & 255,
        number & 255
    );
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("s{number}")},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}})
}

fn slice(number: usize) -> Value {
    let (namespace, name) = service_name(number);
    let pods = number * PER_SERVICE..(number + 1) * PER_SERVICE;
    let endpoints: Vec<_> = pods
        .map(|pod| {
            json!({"addresses": [ip(pod)], "conditions": {"ready": true, "serving": true},
                "nodeName": node_name(pod / PER_NODE),
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("pod-{pod}")}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": format!("{name}-x7k2p"),
            "labels": {"kubernetes.io/service-name": name}},
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}
