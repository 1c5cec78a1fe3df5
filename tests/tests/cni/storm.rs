//! Fifty requests at once, of all verbs, and while the plugin is replaced.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command::LIMIT;
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::wait::eventually;
use tests::{inspect, programs, require_root};

use crate::assert_empty;
use crate::container::containerd;

const WORKERS: u16 = 50;

/// Rounds in which every container is added, checked and deleted once.
const ROUNDS: u16 = 3;

/// A container that comes and goes.
struct Worker {
    number: u16,
    netns: NetNs,
    /// What its ADD returned, while it is attached.
    result: Option<Value>,
}

impl Worker {
    fn all() -> Result<Vec<Self>> {
        let worker = |number| {
            Ok(Self {
                number,
                netns: NetNs::create(&format!("p{number}"))?,
                result: None,
            })
        };
        (0..WORKERS).map(worker).collect()
    }

    fn call<'n>(&self, node: &'n Node, verb: &str) -> Call<'n> {
        Call::new(node, verb, &format!("c{}", self.number), &self.netns)
            .patient()
            .keys(self.keys())
    }

    /// Every second one has hostPorts, every third is masqueraded.
    fn keys(&self) -> Value {
        let port = 8000 + self.number;
        let mut keys = match self.number % 2 {
            0 => containerd(&[(port, 80, "tcp"), (port, 53, "udp")]),
            _ => json!({}),
        };
        keys["ipMasq"] = json!(self.number.is_multiple_of(3));
        keys
    }

    /// ADD, CHECK and DEL in turn, beginning with another one than its neighbours. CHECK
    /// needs an attachment; DEL does not.
    fn step(&mut self, node: &Node, step: u16) -> Result<()> {
        match (self.number + step) % 3 {
            0 => self.result = Some(self.call(node, "ADD").result()?),
            1 => {
                if let Some(result) = &self.result {
                    let mut keys = self.keys();
                    keys["prevResult"] = result.clone();
                    self.call(node, "CHECK").keys(keys).silent()?;
                }
            }
            _ => self.del(node)?,
        }
        Ok(())
    }

    fn del(&mut self, node: &Node) -> Result<()> {
        self.result = None;
        self.call(node, "DEL").silent()
    }
}

/// Has all of them do something at the same time.
fn at_once<'w>(
    workers: impl IntoIterator<Item = &'w mut Worker>,
    work: impl Fn(&mut Worker) -> Result<()> + Sync,
) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(move || work(worker)))
            .collect();
        // All of them, so that no failure hides behind another's.
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        for outcome in outcomes {
            // What it said when it panicked is on standard error.
            outcome.map_err(|_| anyhow!("a request did not do what it should"))??;
        }
        Ok(())
    })
}

fn mixed_requests(node: &Node) -> Result<()> {
    let rounds = std::env::var("TRAMMEL_ROUNDS").map_or(Ok(ROUNDS), |text| text.parse());
    let rounds: u16 = rounds.context("TRAMMEL_ROUNDS is a number")?;
    let mut workers = Worker::all()?;
    for step in 0..3 * rounds {
        at_once(&mut workers, |worker| worker.step(node, step))
            .with_context(|| format!("step {step}"))?;
        let attached: Vec<_> = workers
            .iter()
            .filter_map(|worker| worker.result.as_ref())
            .collect();
        let mut ips = BTreeSet::new();
        for result in &attached {
            ips.extend(inspect::result_ips(result)?);
        }
        assert_eq!(ips.len(), 2 * attached.len(), "all addresses differ");
        let leases: BTreeSet<_> = node.leases()?.into_iter().collect();
        assert_eq!(leases, ips, "step {step}");
        assert_eq!(node.ports()?.len(), attached.len(), "step {step}");
    }
    at_once(&mut workers, |worker| worker.del(node))?;
    assert_empty(node)?;
    for worker in &workers {
        let links = worker.netns.ip_json("link show")?;
        assert_eq!(inspect::items(&links).len(), 1, "lo alone: {links}");
    }
    Ok(())
}

/// cni.md 54.
#[test]
fn fifty_mixed_requests_at_once_leave_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    mixed_requests(&node)?;
    assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    Ok(())
}

/// cni.md 54.
#[test]
fn fifty_mixed_requests_at_once_leave_nothing_of_them_with_an_agent() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = Agent::start(&node)?;
    mixed_requests(&node)?;
    eventually(LIMIT, || {
        let ruleset = format!("{:?}", inspect::ruleset(&node.netns)?);
        for range in ["10.88.0.", "fd88::"] {
            ensure!(
                !ruleset.contains(range),
                "the tables have addresses in {range}"
            );
        }
        Ok(())
    })?;
    ensure!(agent.verify()?.status.success(), "{}", agent.log_text());
    Ok(())
}

/// cni.md 58: as an installer does it, again and again.
#[test]
fn replacing_the_plugin_by_rename_fails_no_request() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let bin = node.dir().join("bin");
    fs::create_dir(&bin)?;
    let versions = [bin.join("old"), bin.join("new")];
    for version in &versions {
        fs::copy(programs::plugin(), version)?;
    }
    let (plugin, fresh) = (bin.join("trammel"), bin.join(".trammel"));
    fs::hard_link(&versions[0], &plugin)?;
    // Two files in turn: a rename onto the same file would do nothing. Both were written
    // before, so that no child of this process has one open for writing.
    let replace = |number: usize| -> Result<()> {
        fs::hard_link(&versions[number % 2], &fresh)?;
        Ok(fs::rename(&fresh, &plugin)?)
    };
    let mut workers = Worker::all()?;
    let done = AtomicBool::new(false);
    let replaced = thread::scope(|scope| {
        let replacer = scope.spawn(|| -> Result<usize> {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                replace(number)?;
                thread::sleep(Duration::from_micros(200));
            }
            Ok(number)
        });
        let added = at_once(&mut workers, |worker| {
            worker.call(&node, "ADD").program(&plugin).result()?;
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let replaced = replacer.join().expect("it does not panic")?;
        added.map(|()| replaced)
    })?;
    assert!(replaced > usize::from(WORKERS), "{replaced} times only");
    assert_eq!(node.ports()?.len(), usize::from(WORKERS));
    at_once(&mut workers, |worker| {
        worker.call(&node, "DEL").program(&plugin).silent()
    })?;
    assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    assert_empty(&node)
}

/// cni.md 24: no runtime does it. Whatever it was, one of them has the attachment, whole, and
/// the others are told so.
#[test]
fn of_adds_of_one_attachment_at_once_one_succeeds() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pods = [NetNs::create("one")?, NetNs::create("two")?];
    for round in 0..10 {
        let add = |pod| Call::new(&node, "ADD", "c1", pod).keys(containerd(&[(8080, 80, "udp")]));
        let outcomes = thread::scope(|scope| {
            let four = pods.iter().chain(&pods);
            let threads: Vec<_> = four
                .map(|pod| scope.spawn(move || Ok((pod, add(pod).run()?))))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|outcome| outcome.map_err(|_| anyhow!("a request could not be made"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        let (told, refused): (Vec<_>, Vec<_>) =
            outcomes.iter().partition(|(_, reply)| reply.code == 0);
        for (_, reply) in &refused {
            let error: Value = serde_json::from_str(&reply.stdout)?;
            ensure!(
                [11, 102].map(Value::from).contains(&error["code"]),
                "{error}"
            );
            ensure!(error["details"].is_null(), "nothing is left: {error}");
        }
        let [(pod, reply)] = told.as_slice() else {
            anyhow::bail!("round {round}: {outcomes:?}");
        };
        let result: Value = serde_json::from_str(&reply.stdout)?;
        let mut keys = containerd(&[(8080, 80, "udp")]);
        keys["prevResult"] = result.clone();
        Call::new(&node, "CHECK", "c1", pod).keys(keys).silent()?;
        ensure!(node.ports()?.len() == 1 && node.records()?.len() == 1);
        let mut ips = inspect::result_ips(&result)?;
        ips.sort();
        assert_eq!(node.leases()?, ips);
        Call::new(&node, "DEL", "c1", pod).silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}
