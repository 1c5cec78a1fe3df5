//! Requests over HTTP, each with a connection of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tests::netns::NetNs;
use tests::wait::eventually;

use crate::cluster::SOON;

/// A request that is answered may take so long: some lost segments, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request that must not be answered is given up after this.
const DENIED: Duration = Duration::from_millis(500);

/// A worker that is late by more than this does not catch up.
const LATE: Duration = Duration::from_secs(1);

/// Asks for one page: the body, which is the name of the pod that answers.
fn request(target: SocketAddr, limit: Duration) -> io::Result<String> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&target, limit)?;
    let left = limit.saturating_sub(started.elapsed());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    // The server closes, so that this side's ports are free again at once.
    write!(stream, "GET /hostname HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.trim().to_owned()),
        _ => Err(io::Error::other(format!("answered {answer:?}"))),
    }
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
    workers: Vec<JoinHandle<Result<Report>>>,
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
    /// A path that is allowed: `rate` requests a second, as far as the machine can.
    pub(crate) fn allowed(netns: &NetNs, target: SocketAddr, rate: u32) -> Result<Self> {
        // The default range would be used up by the connections of half a minute.
        netns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        Self::start(netns, target, rate, PATIENCE)
    }

    /// A path that is denied: some requests are always under way.
    pub(crate) fn denied(netns: &NetNs, target: SocketAddr) -> Result<Self> {
        Self::start(netns, target, 40, DENIED)
    }

    fn start(netns: &NetNs, target: SocketAddr, rate: u32, limit: Duration) -> Result<Self> {
        let workers = (rate / 25).clamp(1, 32);
        let interval = Duration::from_secs(1) * workers / rate;
        let started = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |number: u32| {
            let stop = Arc::clone(&stop);
            // Spread over the interval, not all at once.
            let first = started + interval * number / workers;
            netns.spawn(move || work(target, first, interval, limit, started, &stop))
        };
        Ok(Self {
            started,
            what: format!("{} to {target}", netns.name()),
            workers: (0..workers).map(spawn).collect::<Result<_>>()?,
            stop,
        })
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

fn work(
    target: SocketAddr,
    first: Instant,
    interval: Duration,
    limit: Duration,
    started: Instant,
    stop: &AtomicBool,
) -> Report {
    let mut report = Report::default();
    let mut next = first;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < next {
            thread::sleep(next - now);
        } else if now - next > LATE {
            next = now;
        }
        next += interval;
        match request(target, limit) {
            Ok(server) => *report.answers.entry(server).or_default() += 1,
            Err(error) => {
                let entry = report.failures.entry(error.to_string());
                entry.or_insert((0, started.elapsed())).0 += 1;
            }
        }
    }
    report
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
            "{}: {} answers by {} servers and {} failures in {:.1?}",
            self.what,
            self.answered(),
            self.answers.len(),
            self.failed(),
            self.took,
        )?;
        for (what, (count, first)) in &self.failures {
            write!(f, "; {count} x {what}, first after {first:.1?}")?;
        }
        Ok(())
    }
}
