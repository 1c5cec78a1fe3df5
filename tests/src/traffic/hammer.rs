//! New connections without a pause, to see whether any one of them differs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::{Outcome, Protocol, ask};
use crate::netns::NetNs;

/// A client that opens one connection after the other until it is stopped.
#[derive(Debug)]
pub struct Hammer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Tally>>>,
}

/// What became of a hammer's attempts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Answers by server.
    pub answers: BTreeMap<String, usize>,
    /// Everything else by what it was.
    pub failures: BTreeMap<String, usize>,
}

impl Hammer {
    /// Starts in `netns`; each attempt may take `limit`, and `pause` lies between.
    pub fn start(
        netns: &NetNs,
        protocol: Protocol,
        target: SocketAddr,
        limit: Duration,
        pause: Duration,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = netns.spawn(move || {
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                tally.count(ask(protocol, target, limit));
                std::thread::sleep(pause);
            }
            tally
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it and returns what it saw.
    pub fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .take()
            .expect("taken only here and when dropped");
        thread.join().map_err(|_| anyhow!("a hammer panicked"))?
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Tally {
    /// Adds one outcome.
    pub fn count(&mut self, outcome: Outcome) {
        let entry = match outcome {
            Outcome::Answered { server, .. } => self.answers.entry(server),
            other => self.failures.entry(other.to_string()),
        };
        *entry.or_insert(0) += 1;
    }

    /// The number of answers.
    pub fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    /// The number of attempts without an answer.
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }
}
