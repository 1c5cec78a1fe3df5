//! What a sync costs, from objects in memory to what the kernel holds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dataplane::kernel::{CommitError, Kernel, KernelError, StaleFlow};
use dataplane::netlink::{Batch, Nftables};
use dataplane::object::{Element, Key, Name, Ruleset, TableId};
use dataplane::transaction::Transaction;
use policy_agent::owner::{Owner, Settings};
use serde::{Deserialize, Serialize};
use tests::netns::NetNs;

use crate::cluster::Cluster;
use crate::connections::enter;

/// Changes of one endpoint that are timed; the median counts.
const CHANGES: u32 = 101;

/// Times in milliseconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Syncs {
    /// The first sync.
    pub(crate) cold: f64,
    pub(crate) cold_floor: f64,
    /// The sync after one endpoint has changed.
    pub(crate) changed: f64,
    pub(crate) changed_floor: f64,
    /// Elements that such a change writes and removes, at the most.
    pub(crate) change_operations: usize,
    /// The first sync of a process that finds its tables.
    pub(crate) restart: f64,
    /// What it writes and removes.
    pub(crate) restart_operations: usize,
    /// Resident memory of the process with the objects, after the changes, in bytes.
    pub(crate) rss: u64,
}

/// Measures in the namespace of the caller, and leaves the tables there.
pub(crate) fn measure(cluster: Cluster) -> Result<Syncs> {
    let mut owner = owner(Nftables::open()?);
    let (cold, _) = run(&mut owner, cluster, None)?;
    let mut changes = Vec::new();
    for turn in 1..=CHANGES {
        changes.push(run(&mut owner, cluster, Some(turn))?.0);
    }
    let rss = resident()?;
    // As the next process will see it.
    run(&mut owner, cluster, Some(0))?;
    drop(owner);
    let mut next = self::owner(Nftables::open()?);
    let (restart, restart_operations) = run(&mut next, cluster, None)?;
    drop(next);

    let mut recorder = self::owner(Recorder::default());
    run(&mut recorder, cluster, None)?;
    let prepared = recorder.kernel_mut().taken();
    let mut prepared_changes = Vec::new();
    for turn in 1..=CHANGES {
        run(&mut recorder, cluster, Some(turn))?;
        prepared_changes.push(recorder.kernel_mut().taken());
    }
    drop(recorder);
    let operations = |change: &Vec<Transaction>| {
        let of_each = change.iter().map(Transaction::element_operations);
        of_each.sum()
    };
    let change_operations = prepared_changes.iter().map(operations).max();

    let netns = NetNs::create("floor")?;
    enter(&netns)?;
    let mut kernel = Nftables::open()?;
    let cold_floor = send(&mut kernel, &prepared)?;
    let floors: Result<Vec<_>> = prepared_changes
        .iter()
        .map(|prepared| send(&mut kernel, prepared))
        .collect();
    Ok(Syncs {
        cold: millis(cold),
        cold_floor: millis(cold_floor),
        changed: millis(median(changes)),
        changed_floor: millis(median(floors?)),
        change_operations: change_operations.unwrap_or(0),
        restart: millis(restart),
        restart_operations,
        rss,
    })
}

fn owner<K: Kernel>(kernel: K) -> Owner<K> {
    let settings = Settings {
        node: "n1".into(),
        compute_endpoints: false,
        bridges: vec!["cbr0".into()],
    };
    Owner::new(settings, kernel)
}

/// Hands over everything, or the change of one turn, and syncs until nothing is left to do.
/// Returns how long that took and how much was written.
fn run<K: Kernel>(
    owner: &mut Owner<K>,
    cluster: Cluster,
    turn: Option<u32>,
) -> Result<(Duration, usize)> {
    let events = match turn {
        None => cluster.events(),
        Some(turn) => vec![cluster.change(turn)],
    };
    let (mut took, mut operations) = (Duration::ZERO, 0);
    let mut started = Instant::now();
    events.into_iter().for_each(|event| owner.handle(event));
    while owner.is_dirty() {
        owner.sync()?;
        took += started.elapsed();
        operations += owner.summary().last_sync_operations;
        started = Instant::now();
    }
    Ok((took, operations))
}

/// Encodes, then takes the time of the kernel alone.
fn send(kernel: &mut Nftables, transactions: &[Transaction]) -> Result<Duration> {
    let batches: Vec<_> = transactions.iter().map(|tx| (tx, Batch::new(tx))).collect();
    let started = Instant::now();
    for (transaction, batch) in &batches {
        kernel.send(transaction, batch)?;
    }
    Ok(started.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Resident memory of this process in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.context("VmRSS in kB")?;
    Ok(kib.trim().parse::<u64>()? << 10)
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
