//! What a sync costs, against the kernel's own time for the same batch.
//!
//! Each measurement runs in a network namespace of its own. The floor is the same
//! transaction, encoded before the clock starts: only the kernel's work is in it. Results
//! are ratios of one run; absolute times belong to the machine.
//!
//! Run by `make bench`; needs root. `cargo test --benches` runs it once at a small size.

use std::net::IpAddr;
use std::process::{Command, exit};
use std::time::{Duration, Instant};

use dataplane::kernel::{CommitError, Kernel, KernelError, StaleFlow};
use dataplane::netlink::{Batch, Nftables};
use dataplane::object::{Element, Key, Name, Ruleset, TableId};
use dataplane::transaction::Transaction;
use nix::sched::{CloneFlags, unshare};
use policy_agent::event::{Event, Kind, Object};
use policy_agent::owner::{Owner, Settings};
use proxy::model::{
    EndpointSlice, ObjectKey, Protocol, Service, ServicePort, ServiceType, SliceEndpoint,
    SlicePort, TargetPort, TrafficPolicy,
};

/// Endpoints of each Service.
const ENDPOINTS: u32 = 3;
/// Changes of one endpoint that are timed; the median counts.
const CHANGES: usize = 201;
/// With this argument and a number the program measures one size and prints its row.
const SIZE: &str = "--size";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, size] = &arguments[..]
        && flag == SIZE
    {
        return measure(size.parse().expect("a number of Services"));
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this benchmark makes network namespaces: run it as root");
        exit(1);
    }
    // `cargo bench` says so; `cargo test --benches` does not.
    let full = arguments.iter().any(|argument| argument == "--bench");
    let sizes: &[u32] = if full {
        &[100, 1_000, 10_000, 50_000]
    } else {
        &[10]
    };
    println!(
        "| Services x {ENDPOINTS} | cold sync | its floor | ratio | one endpoint changed \
         | its floor | ratio | element operations | RSS |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for size in sizes {
        // A process each: the memory of one size is not that of the next.
        let program = std::env::current_exe().expect("the path of this program");
        let status = Command::new(program)
            .args([SIZE, &size.to_string()])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("size {size} failed");
            exit(1);
        }
    }
}

fn measure(size: u32) {
    own_namespace();
    let mut owner = Owner::new(settings(), Nftables::open().expect("nf_tables"));
    let events = everything(size);
    let started = Instant::now();
    let first = run(&mut owner, events);
    let cold = started.elapsed();
    assert!(first, "the first sync fails");
    let mut changes = Vec::with_capacity(CHANGES);
    for i in 0..CHANGES {
        let event = change(size / 2, i);
        let started = Instant::now();
        assert!(run(&mut owner, vec![event]), "a sync fails");
        changes.push(started.elapsed());
    }
    let rss = resident();
    drop(owner);

    let mut recorder = Owner::new(settings(), Recorder::default());
    assert!(run(&mut recorder, everything(size)), "recording fails");
    let prepared = recorder.kernel_mut().taken();
    let mut prepared_changes = Vec::with_capacity(CHANGES);
    for i in 0..CHANGES {
        assert!(
            run(&mut recorder, vec![change(size / 2, i)]),
            "recording fails"
        );
        prepared_changes.push(recorder.kernel_mut().taken());
    }
    let operations = prepared_changes
        .iter()
        .flatten()
        .map(Transaction::element_operations)
        .max();

    own_namespace();
    let mut kernel = Nftables::open().expect("nf_tables");
    let cold_floor = send(&mut kernel, &prepared);
    let floors = prepared_changes
        .iter()
        .map(|prepared| send(&mut kernel, prepared))
        .collect();

    let (changed, changed_floor) = (median(changes), median(floors));
    println!(
        "| {size} | {:.1} ms | {:.1} ms | {:.2} | {:.3} ms | {:.3} ms | {:.2} | {} | {} MiB |",
        millis(cold),
        millis(cold_floor),
        cold.as_secs_f64() / cold_floor.as_secs_f64(),
        millis(changed),
        millis(changed_floor),
        changed.as_secs_f64() / changed_floor.as_secs_f64(),
        operations.unwrap_or(0),
        rss >> 20,
    );
}

fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
}

fn settings() -> Settings {
    Settings {
        node: "n1".into(),
        compute_endpoints: false,
        bridges: vec!["cbr0".into()],
    }
}

/// Hands the events over and syncs until nothing is left to do.
fn run<K: Kernel>(owner: &mut Owner<K>, events: Vec<Event>) -> bool {
    events.into_iter().for_each(|event| owner.handle(event));
    while owner.is_dirty() {
        if owner.sync().is_err() {
            return false;
        }
    }
    true
}

/// Encodes, then takes the time of the kernel alone.
fn send(kernel: &mut Nftables, transactions: &[Transaction]) -> Duration {
    let batches: Vec<_> = transactions.iter().map(|tx| (tx, Batch::new(tx))).collect();
    let started = Instant::now();
    for (transaction, batch) in &batches {
        kernel
            .send(transaction, batch)
            .expect("the kernel takes it");
    }
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .expect("a size in kB");
    kib.trim().parse::<u64>().expect("a number") << 10
}

/// Takes every transaction and remembers it.
#[derive(Default)]
struct Recorder {
    transactions: Vec<Transaction>,
}

impl Recorder {
    fn taken(&mut self) -> Vec<Transaction> {
        std::mem::take(&mut self.transactions)
    }
}

impl Kernel for Recorder {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.transactions.push(transaction.clone());
        Ok(())
    }

    fn dump(&mut self, _: &[TableId]) -> Result<Ruleset, KernelError> {
        Ok(Ruleset::default())
    }

    fn learnt(&mut self, _: &TableId, _: &Name) -> Result<Vec<(Key, Element)>, KernelError> {
        Ok(Vec::new())
    }

    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError> {
        Ok(stale.len())
    }

    fn unmark_flows(&mut self, _: u32, _: u32) -> Result<usize, KernelError> {
        Ok(0)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        Ok(0)
    }
}

/// The objects of a cluster, as the first lists give them.
fn everything(size: u32) -> Vec<Event> {
    let services = (0..size).map(|i| Object::Service(service(i)));
    let slices = (0..size).map(|i| Object::EndpointSlice(slice(i, 0)));
    Kind::ALL
        .into_iter()
        .map(|kind| match kind {
            Kind::Service => Event::Reset(kind, services.clone().collect()),
            Kind::EndpointSlice => Event::Reset(kind, slices.clone().collect()),
            _ => Event::Reset(kind, Vec::new()),
        })
        .collect()
}

/// One endpoint of the Service has another address at each turn.
fn change(service: u32, turn: usize) -> Event {
    let version = u32::try_from(turn + 1).expect("few turns");
    Event::Apply(Object::EndpointSlice(slice(service, version)))
}

fn service(number: u32) -> Service {
    Service {
        key: key(number),
        uid: format!("uid-{number}"),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![address(0x0a60_0000 + number)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            target_port: TargetPort::Number(8080),
        }],
        selector: [("app".to_owned(), format!("app-{number}"))].into(),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        publish_not_ready: false,
        health_check_node_port: None,
        annotations: [].into(),
    }
}

fn slice(number: u32, version: u32) -> EndpointSlice {
    let endpoint = |i: u32| {
        // The first endpoint is the one that changes.
        let moved = if i == 0 { version << 19 } else { 0 };
        SliceEndpoint {
            address: address(0x0b00_0000 + number * ENDPOINTS + i + moved),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(format!("node-{}", number % 100)),
            zone: Some(format!("zone-{}", number % 3)),
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
        }
    };
    EndpointSlice {
        key: key(number),
        service: format!("service-{number}"),
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        triggered: None,
    }
}

fn key(number: u32) -> ObjectKey {
    ObjectKey::new(
        format!("namespace-{}", number % 100),
        format!("service-{number}"),
    )
}

fn address(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}
