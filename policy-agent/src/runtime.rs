//! The owner's thread: its mailbox, its clock, and who waits for it.
//!
//! Commits block for as long as the kernel takes, up to a tenth of a second for a cold
//! start, so the owner has a thread of its own beside the asynchronous tasks that feed it.

mod mail;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::attachment::AttachmentKey;
use dataplane::kernel::Kernel;
use tokio::sync::{oneshot, watch};

use crate::complaint::{Complaint, Complaints, Problem};
use crate::health::Health;
use crate::network::follow::Nodes;
use crate::owner::{Owner, ServiceNews};
use crate::source::manifests::ManifestDir;

pub use mail::{Call, Mail};

/// A sync waits this long after the last change, so that a burst is one transaction...
const QUIET: Duration = Duration::from_millis(10);
/// ...but not longer than this after the first.
const PATIENCE: Duration = Duration::from_millis(50);
/// After a failed sync, doubled each time up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// So long an agent with objects of an earlier run waits for the API server.
const SILENCE: Duration = Duration::from_secs(10);
/// How often the kernel's tables are looked at for changes by others.
const CHECK: Duration = Duration::from_millis(500);
/// The next look comes after as many times as long as the last took: others that change their
/// tables all the time are not to keep the owner from everything else where ours are large.
const CHECK_PAUSE: u32 = 4;
/// Who has found the complaints of a review.
const OWNER: &str = "owner";
/// How long after a sync what it has changed is looked through, for what nobody waits for.
const REVIEW: Duration = Duration::from_secs(2);

/// Somebody who waits for a sync.
struct Waiter {
    for_what: Awaited,
    deadline: Instant,
    reply: oneshot::Sender<Result<bool, String>>,
}

/// What somebody waits for, beside a sync.
enum Awaited {
    /// That this attachment is programmed.
    Attachment(AttachmentKey),
    /// That the kernel knows of it.
    Detached,
    /// That everything was listed.
    Lists,
}

struct Runtime<K> {
    owner: Owner<K>,
    manifests: Option<ManifestDir>,
    mailbox: Receiver<Mail>,
    health: Health,
    waiters: Vec<Waiter>,
    /// When the oldest and the newest change came that are not synced.
    changed: Option<(Instant, Instant)>,
    /// Somebody waits: sync without debounce.
    urgent: bool,
    retry: Option<(Instant, Duration)>,
    last_error: Option<String>,
    periods: Periods,
    /// When the last sync was done, or tried.
    last_sync: Option<Instant>,
    /// When the next review is to be, if there is something to look at.
    review: Option<Instant>,
    outlets: Outlets,
    /// By who has found them.
    complaints: BTreeMap<&'static str, Vec<Complaint>>,
    unwatched: Vec<Problem>,
    /// When to fall back on the objects of an earlier run.
    fall_back: Option<Instant>,
    /// When what the kernel refuses is to be tried again, if there is something.
    refused: Option<Instant>,
}

/// Where the servers beside the owner read what they are to do.
#[derive(Default)]
pub struct Outlets {
    /// Published after each sync that changes it.
    pub services: watch::Sender<ServiceNews>,
    /// Everything that is wrong.
    pub complaints: watch::Sender<Complaints>,
    /// The Nodes, as far as the pod network depends on them.
    pub nodes: watch::Sender<Nodes>,
}

/// How often to sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Periods {
    /// Longest time until a failed sync is tried again.
    pub retry: Duration,
    /// Shortest time from the end of a sync to the start of the next.
    pub pause: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            retry: RETRY_MAX,
            pause: Duration::ZERO,
        }
    }
}

/// Starts the thread. It ends when it is told to or when nobody can tell it anything
/// any more.
///
/// # Errors
/// Where there is no thread to be had.
pub fn start<K: Kernel + Send + 'static>(
    owner: Owner<K>,
    manifests: Option<ManifestDir>,
    health: Health,
    periods: Periods,
    outlets: Outlets,
) -> std::io::Result<(Sender<Mail>, JoinHandle<()>)> {
    let (sender, mailbox) = channel();
    let runtime = Runtime {
        owner,
        manifests,
        mailbox,
        health,
        waiters: Vec::new(),
        changed: None,
        urgent: false,
        retry: None,
        last_error: None,
        periods,
        last_sync: None,
        review: None,
        outlets,
        complaints: BTreeMap::new(),
        unwatched: Vec::new(),
        fall_back: Some(Instant::now() + SILENCE),
        refused: None,
    };
    let thread = std::thread::Builder::new()
        .name("owner".into())
        .spawn(move || runtime.run())?;
    Ok((sender, thread))
}

impl<K: Kernel> Runtime<K> {
    fn run(mut self) {
        self.rescan();
        let mut next_check = Instant::now() + CHECK;
        loop {
            self.fall_back_if_due();
            if self.refused.take_if(|due| *due <= Instant::now()).is_some() {
                self.owner.try_refused_again();
            }
            self.sync_if_due();
            self.answer_waiters();
            let now = Instant::now();
            if now >= next_check {
                self.check();
                next_check = Instant::now() + CHECK.max(now.elapsed() * CHECK_PAUSE);
            }
            self.review_if_due();
            if let Some(nodes) = self.owner.take_nodes() {
                publish(&self.outlets.nodes, Some(nodes));
            }
            self.health.publish(&self.owner.summary());

            let mut wake = next_check.min(self.sync_due().unwrap_or(next_check));
            wake = wake.min(self.review.unwrap_or(wake));
            wake = wake.min(self.fall_back.unwrap_or(wake));
            wake = wake.min(self.refused.unwrap_or(wake));
            wake = self
                .waiters
                .iter()
                .fold(wake, |wake, waiter| wake.min(waiter.deadline));
            let sleep = wake.saturating_duration_since(Instant::now());
            match self.mailbox.recv_timeout(sleep) {
                Ok(Mail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(mail) => self.take(mail),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Everything that is there already belongs to the same transaction.
            while let Ok(mail) = self.mailbox.try_recv() {
                if matches!(mail, Mail::Stop) {
                    return;
                }
                self.take(mail);
            }
        }
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Event(event) => {
                self.owner.handle(event);
                self.note_change();
            }
            Mail::Rescan => self.rescan(),
            Mail::Complaints(from, complaints) => {
                self.complaints.insert(from, complaints);
                self.tell_complaints();
            }
            Mail::Unwatched(problems) => self.unwatched = problems,
            Mail::HostAddresses(addresses) => {
                self.owner.set_host_addresses(addresses);
                self.note_change();
            }
            Mail::Call(call) => self.call(call),
            Mail::PortsIsolated(isolated) => self.owner.set_ports_isolated(isolated),
            Mail::Network(status, direct) => {
                self.health.network(&status);
                self.owner.set_network(*status, direct);
                if self.owner.is_dirty() {
                    self.note_change();
                }
            }
            Mail::Ping => {}
            Mail::Stop => unreachable!("the loop ends at it"),
        }
    }

    fn rescan(&mut self) {
        let events = self
            .manifests
            .as_mut()
            .map(ManifestDir::scan)
            .unwrap_or_default();
        for event in events {
            self.owner.handle(event);
            self.note_change();
        }
    }

    fn note_change(&mut self) {
        let now = Instant::now();
        let first = self.changed.map_or(now, |(first, _)| first);
        if self.changed.is_none() {
            self.health.queued();
        }
        self.changed = Some((first, now));
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Attach {
                attachment,
                deadline,
                reply,
            } => {
                let key = attachment.key.clone();
                tracing::info!(attachment = %key, ips = ?attachment.ips, "attach");
                self.owner.attach(*attachment);
                self.wait_for(Awaited::Attachment(key), deadline, reply);
            }
            Call::Detach {
                key,
                deadline,
                reply,
            } => {
                let known = self.owner.detach(&key);
                tracing::info!(attachment = %key, known, "detach");
                if known {
                    self.wait_for(Awaited::Detached, deadline, reply);
                } else {
                    answer(reply, Ok(true));
                }
            }
            Call::Wait { deadline, reply } => {
                self.rescan();
                self.wait_for(Awaited::Lists, deadline, reply);
            }
            Call::Status(reply) => {
                let mut status = self.owner.status();
                // Those that are about an object came as its event, too.
                for problem in self.manifests.iter().flat_map(ManifestDir::problems) {
                    if !status
                        .problems
                        .iter()
                        .any(|known| known.reason == problem.message)
                    {
                        status.problems.push(Problem::from(problem));
                    }
                }
                // Those of the owner are in its status, and not as old as the last review.
                let of_others = self.complaints.iter().filter(|(from, _)| **from != OWNER);
                let of_others = of_others.flat_map(|(_, complaints)| complaints);
                status.problems.extend(of_others.map(Problem::from));
                status.problems.extend(self.unwatched.iter().cloned());
                answer(reply, status);
            }
            Call::NodePort {
                port,
                family,
                reply,
            } => answer(reply, self.owner.node_port_endpoints(port, family)),
            Call::Services(reply) => answer(reply, self.owner.services()),
            Call::Policies(reply) => answer(reply, self.owner.policies()),
            Call::Snapshot { about, reply } => answer(reply, self.owner.snapshot(&about)),
            Call::Verify(reply) => {
                let differences = self.owner.verify().map_err(|error| error.to_string());
                let lines = |differences: dataplane::transaction::Transaction| {
                    differences
                        .operations
                        .iter()
                        .map(ToString::to_string)
                        .collect()
                };
                answer(reply, differences.map(lines));
            }
        }
    }

    fn wait_for(
        &mut self,
        for_what: Awaited,
        deadline: Instant,
        reply: oneshot::Sender<Result<bool, String>>,
    ) {
        self.waiters.push(Waiter {
            for_what,
            deadline,
            reply,
        });
        self.urgent = true;
    }

    /// When the next sync is to be, if there is one to do.
    fn sync_due(&self) -> Option<Instant> {
        if !self.owner.is_dirty() || !self.owner.knows_state() {
            return None;
        }
        let now = Instant::now();
        let debounced = match self.changed {
            _ if self.urgent => now,
            Some((first, last)) => {
                let collected = (first + PATIENCE).min(last + QUIET);
                match self.last_sync {
                    Some(at) => collected.max(at + self.periods.pause),
                    None => collected,
                }
            }
            None => now,
        };
        Some(match self.retry {
            Some((at, _)) => debounced.max(at),
            None => debounced,
        })
    }

    fn sync_if_due(&mut self) {
        // A second sync takes away what the first has orphaned.
        while self.sync_due().is_some_and(|due| due <= Instant::now()) {
            self.changed = None;
            let result = self.owner.sync();
            self.last_sync = Some(Instant::now());
            match result {
                Ok(()) => {
                    if self.last_error.take().is_some() {
                        tracing::info!("the kernel holds the desired state again");
                    }
                    self.retry = None;
                    let again = || Instant::now() + self.periods.retry;
                    self.refused = self.owner.has_refused().then(again);
                    let summary = self.owner.summary();
                    tracing::debug!(
                        seconds = summary.last_sync_seconds,
                        operations = summary.last_sync_operations,
                        "synced"
                    );
                    let observations = self.owner.take_observations();
                    self.health.synced(&summary, &observations);
                    self.review.get_or_insert(Instant::now() + REVIEW);
                    publish(&self.outlets.services, self.owner.service_news());
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.last_error.as_ref() != Some(&error) {
                        tracing::error!(%error, "sync failed, trying again");
                    }
                    self.last_error = Some(error);
                    let pause = self
                        .retry
                        .map_or(RETRY, |(_, pause)| pause * 2)
                        .min(self.periods.retry);
                    self.retry = Some((Instant::now() + pause, pause));
                }
            }
        }
        self.urgent = false;
    }

    /// Enforces what an earlier run knew, where nobody has told anything newer.
    fn fall_back_if_due(&mut self) {
        if self.fall_back.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.fall_back = None;
        if self.owner.has_listed_all() {
            return;
        }
        match self.owner.restore() {
            Ok(true) => tracing::warn!(
                error = %self.owner.not_listed(),
                "enforcing the objects of an earlier run"
            ),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the tables cannot be read"),
        }
    }

    fn review_if_due(&mut self) {
        if self.review.is_some_and(|due| due <= Instant::now()) {
            let Some(complaints) = self.owner.review() else {
                // After what has come in meanwhile.
                self.review = Some(Instant::now());
                return;
            };
            self.review = None;
            self.complaints.insert(OWNER, complaints);
            self.tell_complaints();
        }
    }

    fn tell_complaints(&self) {
        let all: Complaints = self.complaints.values().flatten().cloned().collect();
        publish(&self.outlets.complaints, all);
    }

    fn check(&mut self) {
        if let Err(error) = self.owner.check() {
            tracing::error!(%error, "the tables cannot be checked");
        }
    }

    fn answer_waiters(&mut self) {
        let synced = self.owner.is_synced();
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            let is_there = match &waiter.for_what {
                Awaited::Attachment(key) => self.owner.is_programmed(key),
                Awaited::Detached => true,
                Awaited::Lists => self.owner.has_listed_all(),
            };
            let is_attachment = matches!(waiter.for_what, Awaited::Attachment(_));
            if synced && is_there {
                answer(waiter.reply, Ok(true));
            } else if waiter.deadline > now {
                self.waiters.push(waiter);
            } else if synced && is_attachment {
                answer(waiter.reply, Ok(false));
            } else {
                let why = self.why_not_synced(&waiter.for_what);
                answer(waiter.reply, Err(why));
            }
        }
    }

    fn why_not_synced(&self, for_what: &Awaited) -> String {
        let needs_lists = matches!(for_what, Awaited::Lists);
        if !self.owner.knows_state() || (needs_lists && !self.owner.has_listed_all()) {
            return self.owner.not_listed().to_string();
        }
        let error = self.last_error.clone();
        error.unwrap_or_else(|| "the deadline passed before the sync was done".to_owned())
    }
}

/// Wakes the readers only where something has changed.
fn publish<T: PartialEq>(outlet: &watch::Sender<T>, now: T) {
    outlet.send_if_modified(|value| {
        let is_new = *value != now;
        *value = now;
        is_new
    });
}

/// Whoever asked may have gone.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    drop(reply.send(value));
}

#[cfg(test)]
mod tests;
