//! Requests over HTTP.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tests::netns::NetNs;
use tests::wait::eventually;

use crate::cluster::SOON;
use crate::http::Connection;

/// A request that is answered may take so long: some lost segments, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request that must not be answered is given up after this.
const DENIED: Duration = Duration::from_millis(500);

/// A worker that is late by more than this does not catch up.
const LATE: Duration = Duration::from_secs(1);

/// A client that keeps its connections asks so often at once, so that its rate does not depend
/// on how soon a busy machine lets it and the servers run.
const TOGETHER: u32 = 10;

/// And so often over one connection, which lasts for some seconds at the pace of one worker.
const KEPT: u32 = 10 * TOGETHER;

/// Asks for one page over a connection of its own.
fn request(target: SocketAddr, limit: Duration) -> io::Result<String> {
    Connection::new(target, limit, 1).ask()
}

/// Waits until `target` answers from a namespace, and returns the name that it says.
pub(crate) fn answers(netns: &NetNs, target: SocketAddr) -> Result<String> {
    let (name, _) = eventually(SOON, || {
        Ok(netns.enter(move || request(target, Duration::from_secs(2)))??)
    })
    .map_err(|error| error.context(format!("{} to {target}", netns.name())))?;
    Ok(name)
}

/// Waits until `target` no longer answers from a namespace.
pub(crate) fn is_denied(netns: &NetNs, target: SocketAddr) -> Result<()> {
    eventually(SOON, || {
        let outcome = netns.enter(move || request(target, DENIED))?;
        match outcome {
            Err(error) if is_silence(&error) => Ok(()),
            other => Err(anyhow!("{} to {target}: {other:?}", netns.name())),
        }
    })?;
    Ok(())
}

fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// A client that asks again and again until it is stopped.
#[derive(Debug)]
pub(crate) struct Load {
    started: Instant,
    what: String,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    workers: Vec<JoinHandle<Result<Report>>>,
}

/// How a [`Load`] asks.
#[derive(Clone, Copy, Debug)]
struct Pace {
    workers: u32,
    /// Requests a second of all workers.
    rate: u32,
    /// Requests over one connection.
    kept: u32,
    /// Requests before the first answer.
    together: u32,
    /// What one request may take.
    limit: Duration,
}

/// What became of the requests of a [`Load`].
#[derive(Clone, Default, Debug)]
pub(crate) struct Report {
    /// Who asked whom.
    pub(crate) what: String,
    /// Answers by the name of the server.
    pub(crate) answers: BTreeMap<String, usize>,
    /// Everything else by what it was, with the time of the first since the start.
    pub(crate) failures: BTreeMap<String, (usize, Duration)>,
    /// From the start to the stop.
    pub(crate) took: Duration,
}

impl Load {
    /// A path that is allowed: `rate` requests a second, as far as the machine can, each over a
    /// connection of its own.
    pub(crate) fn allowed(netns: &NetNs, target: SocketAddr, rate: u32) -> Result<Self> {
        // The default range would be used up by the connections of half a minute.
        netns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        let pace = Pace {
            workers: (rate / 12).clamp(1, 64),
            rate,
            kept: 1,
            together: 1,
            limit: PATIENCE,
        };
        Self::start(netns, target, pace)
    }

    /// A path that is allowed: `rate` requests a second over connections that are kept, so that
    /// some are always open and in use.
    pub(crate) fn kept(netns: &NetNs, target: SocketAddr, rate: u32) -> Result<Self> {
        let pace = Pace {
            workers: (rate / 25).clamp(1, 32),
            rate,
            kept: KEPT,
            together: TOGETHER,
            limit: PATIENCE,
        };
        Self::start(netns, target, pace)
    }

    /// A path that is denied: some requests are always under way.
    pub(crate) fn denied(netns: &NetNs, target: SocketAddr) -> Result<Self> {
        let pace = Pace {
            workers: 16,
            rate: 40,
            kept: 1,
            together: 1,
            limit: DENIED,
        };
        Self::start(netns, target, pace)
    }

    fn start(netns: &NetNs, target: SocketAddr, pace: Pace) -> Result<Self> {
        let started = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let interval = Duration::from_secs(1) * pace.workers * pace.together / pace.rate;
        let spawn = |number: u32| {
            let worker = Worker {
                connection: Connection::new(target, pace.limit, pace.kept),
                together: pace.together,
                interval,
                // Spread over the interval, not all at once.
                next: started + interval * number / pace.workers,
                started,
                stop: Arc::clone(&stop),
                answered: Arc::clone(&answered),
            };
            netns.spawn(move || worker.work())
        };
        Ok(Self {
            started,
            what: format!("{} to {target}", netns.name()),
            workers: (0..pace.workers).map(spawn).collect::<Result<_>>()?,
            stop,
            answered,
        })
    }

    /// The answers so far.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends it and returns what it saw.
    pub(crate) fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Report {
            what: self.what.clone(),
            took: self.started.elapsed(),
            ..Report::default()
        };
        for worker in self.workers.drain(..) {
            let report = worker.join().map_err(|_| anyhow!("a client panicked"))??;
            sum.add(report);
        }
        eprintln!("{sum}");
        Ok(sum)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // A panic was or will be reported by the test.
            worker.join().ok();
        }
    }
}

/// One of the threads of a [`Load`].
#[derive(Debug)]
struct Worker {
    connection: Connection,
    together: u32,
    interval: Duration,
    next: Instant,
    started: Instant,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Worker {
    fn work(mut self) -> Report {
        let mut report = Report::default();
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now < self.next {
                thread::sleep(self.next - now);
            } else if now - self.next > LATE {
                self.next = now;
            }
            self.next += self.interval;
            let mut names = Vec::new();
            let outcome = self.connection.ask_together(self.together, &mut names);
            self.answered.fetch_add(names.len(), Ordering::Relaxed);
            let unanswered = self.together as usize - names.len();
            for server in names {
                *report.answers.entry(server).or_default() += 1;
            }
            if let Err(error) = outcome {
                let entry = report.failures.entry(error.to_string());
                // One that breaks off after its answers has failed, too.
                entry.or_insert((0, self.started.elapsed())).0 += unanswered.max(1);
            }
        }
        report
    }
}

impl Report {
    fn add(&mut self, other: Self) {
        for (server, count) in other.answers {
            *self.answers.entry(server).or_default() += count;
        }
        for (what, (count, first)) in other.failures {
            let entry = self.failures.entry(what).or_insert((0, first));
            *entry = (entry.0 + count, entry.1.min(first));
        }
    }

    /// The number of answers.
    pub(crate) fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    /// The number of requests without an answer.
    pub(crate) fn failed(&self) -> usize {
        self.failures.values().map(|(count, _)| count).sum()
    }

    /// An error unless there were answers and nothing else.
    pub(crate) fn never_failed(&self) -> Result<()> {
        ensure!(self.answered() > 0 && self.failed() == 0, "{self}");
        Ok(())
    }

    /// An error unless there were attempts and no answer.
    pub(crate) fn never_answered(&self) -> Result<()> {
        ensure!(self.answered() == 0 && self.failed() > 0, "{self}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} answers by {} servers and {} failures in {:.1?}, {} answers a second",
            self.what,
            self.answered(),
            self.answers.len(),
            self.failed(),
            self.took,
            self.answered() as u64 / self.took.as_secs().max(1),
        )?;
        for (what, (count, first)) in &self.failures {
            write!(f, "; {count} x {what}, first after {first:.1?}")?;
        }
        Ok(())
    }
}
