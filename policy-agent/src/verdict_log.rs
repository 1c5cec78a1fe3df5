//! The verdict log: every packet that policy denies or whose sender is forged, within limits,
//! as a JSON line that says whose it was and why it is gone.
//!
//! ```text
//!  rule of a chain that denies ──NFLOG──► this thread ──► file, stdout or stderr
//!    (10 a second each)          (bounded)   │ 1,000 a second   and `trammel-agent log`
//!                                            └► Snapshot of the owner: whose address is it?
//! ```
//!
//! Nothing waits for this thread: a file that cannot be written, a reader that does not
//! read, or a flood cost records, which are counted, and change no verdict.

mod budget;
mod counters;
mod directory;
mod feed;
mod forgery;
mod packet;
mod record;
mod sink;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::kernel::{CommitError, Kernel, KernelError};
use dataplane::layout::denials::{LOG_GROUP, Origin, probe};
use dataplane::netlink::{LoggedPacket, Nftables, PacketLog};

use crate::health::Health;
use crate::runtime::Mail;
use crate::verdict_log::budget::Budget;
use crate::verdict_log::counters::Counters;
use crate::verdict_log::directory::Directory;
use crate::verdict_log::forgery::Forgery;
use crate::verdict_log::packet::Headers;
use crate::verdict_log::sink::Sink;

pub use crate::verdict_log::counters::DeniedBy;
pub use crate::verdict_log::feed::{Feed, News, Selection, Told};
pub use crate::verdict_log::record::Record;
pub use crate::verdict_log::sink::Target;

/// How long the thread waits for packets before it looks whether it is to end.
const WAIT: Duration = Duration::from_millis(250);
/// How often the kernel's counters of denied packets are read.
const COUNT: Duration = Duration::from_secs(5);
/// An agent that this one replaces may listen so much longer.
const PREDECESSOR: Duration = Duration::from_secs(2);
/// Records a second, and at once.
const RATE: u32 = 1_000;
const BURST: u32 = 2_000;

/// Why there is no verdict log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The kernel cannot log from a rule.
    #[error("the kernel refuses log rules (CONFIG_NFT_LOG, CONFIG_NFT_LIMIT)")]
    Rules(#[source] CommitError),
    /// The kernel does not hand packets over, or hands them to somebody else.
    #[error("no packets can be read (CONFIG_NETFILTER_NETLINK_LOG)")]
    Packets(#[source] KernelError),
}

/// Packets and records that there were and were not, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogNumbers {
    /// Records written.
    pub written: u64,
    /// Messages that the kernel had no room for.
    pub lost: u64,
    /// Packets without a record, because there were too many.
    pub suppressed: u64,
    /// Records that could not be written.
    pub failed: u64,
}

/// Listens to the packets that rules log. To be asked before such rules are wanted.
///
/// # Errors
/// Where this kernel cannot do it: everything else goes on without a log.
pub fn listen() -> Result<PacketLog, LogError> {
    let mut kernel = Nftables::open().map_err(LogError::Packets)?;
    kernel.commit(&probe()).map_err(LogError::Rules)?;
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match PacketLog::bind(LOG_GROUP) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(PREDECESSOR / 20),
            bound => return bound.map_err(LogError::Packets),
        }
    }
}

/// The running thread.
pub struct VerdictLog {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl VerdictLog {
    /// Starts the thread. Without a `log` it only counts.
    ///
    /// # Errors
    /// Where there is no thread or no socket to be had.
    pub fn start(
        log: Option<PacketLog>,
        target: &Target,
        owner: Sender<Mail>,
        health: Health,
        feed: Feed,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            log,
            kernel: Nftables::open()?,
            sink: Sink::new(target),
            directory: Directory::new(owner),
            counters: Counters::default(),
            budget: Budget::new(RATE, BURST),
            numbers: LogNumbers::default(),
            health,
            feed,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("verdict-log".into())
            .spawn(move || writer.run())?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread.
    ///
    /// # Errors
    /// Where it has panicked.
    pub fn stop(self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join()
    }
}

struct Writer {
    log: Option<PacketLog>,
    kernel: Nftables,
    sink: Sink,
    directory: Directory,
    counters: Counters,
    budget: Budget,
    numbers: LogNumbers,
    health: Health,
    feed: Feed,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self) {
        let mut next_count = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if Instant::now() >= next_count {
                self.count();
                next_count = Instant::now() + COUNT;
            }
            let Some(log) = &mut self.log else {
                std::thread::sleep(WAIT);
                continue;
            };
            let read = log.read(WAIT);
            self.numbers.lost = log.lost();
            match read {
                Ok(packets) => self.write(&packets),
                Err(error) => {
                    tracing::error!(%error, "the verdict log cannot be read any more");
                    self.log = None;
                }
            }
        }
    }

    fn write(&mut self, packets: &[LoggedPacket]) {
        if packets.is_empty() {
            return;
        }
        for packet in packets {
            if !self.budget.take(Instant::now()) {
                self.numbers.suppressed += 1;
                continue;
            }
            let Some(record) = self.record(packet) else {
                continue;
            };
            self.feed.tell(&record);
            match self.sink.write(&record) {
                Ok(()) => self.numbers.written += 1,
                Err(error) => {
                    if self.numbers.failed == 0 {
                        tracing::error!(%error, "the verdict log cannot be written");
                    }
                    self.numbers.failed += 1;
                }
            }
        }
        self.health.publish_log(self.numbers);
    }

    /// `None` for a message of others, a packet that is none, or one that needs no record.
    fn record(&mut self, packet: &LoggedPacket) -> Option<Record> {
        let origin = Origin::parse(&packet.prefix)?;
        if origin == Origin::Forged {
            let headers = forgery::headers(packet).filter(|headers| !headers.is_chatter())?;
            self.directory.prepare(&origin, None);
            let forgery = Forgery::new(packet, &headers, &self.directory);
            let record = Record::new(packet.time, &origin, &headers, None, &self.directory);
            return Some(record.of_forgery(forgery));
        }
        let headers = Headers::parse(&packet.payload)?;
        // Every pod solicits neighbours and reports multicast groups. That is counted only.
        if matches!(origin, Origin::Closed(_)) && headers.is_of_the_link() {
            return None;
        }
        let ports = headers.protocol.zip(headers.source_port);
        let frontend = ports.and_then(|(protocol, port)| {
            let known = self.kernel.origin(headers.source, protocol, port);
            known.unwrap_or_default()
        });
        self.directory.prepare(&origin, frontend);
        Some(Record::new(
            packet.time,
            &origin,
            &headers,
            frontend,
            &self.directory,
        ))
    }

    fn count(&mut self) {
        match self.kernel.denied() {
            Ok(denied) => {
                if self.counters.has_new(&denied) {
                    self.directory.refresh_if_old();
                }
                let added = self.counters.add(&denied, &self.directory);
                self.health.publish_denied(&added);
                self.directory.forget_if_old();
            }
            // No table yet, or no kernel any more: the owner tells.
            Err(error) => tracing::debug!(%error, "denied packets cannot be counted"),
        }
        self.health.publish_log(self.numbers);
    }
}
