//! Frees what dead runtimes have left, from time to time: see [`cni_bin::reap`].
//!
//! A thread of its own, because it enters namespaces and waits for locks. It tells the
//! owner through the agent's own socket, as the plugin does, so that there is one way in
//! which attachments end.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cni_bin::reap::{Reaped, reap, reap_leases};

/// The running thread.
pub struct Reaper {
    /// Dropped to end the thread.
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Reaper {
    /// Starts it: now, and then every `interval`.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(socket: &Path, interval: Duration) -> std::io::Result<Self> {
        let socket: PathBuf = socket.to_owned();
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || {
                loop {
                    pass(&socket);
                    match stopped.recv_timeout(interval) {
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        Ok(Self { stop, thread })
    }

    /// Ends it after the attachment that it is undoing.
    ///
    /// # Errors
    /// Where it has panicked.
    pub fn stop(self) -> std::thread::Result<()> {
        drop(self.stop);
        self.thread.join()
    }

    /// Whether it has ended by itself, which a panic would cause.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

fn pass(socket: &Path) {
    match reap(socket) {
        Ok(reaped) => reaped.iter().for_each(log),
        Err(error) => tracing::error!(%error, "dead attachments cannot be looked for"),
    }
    if let Err(error) = reap_leases(socket) {
        tracing::error!(%error, "leases of dead attachments cannot be freed");
    }
}

fn log(reaped: &Reaped) {
    let attachment = reaped.key.as_ref().map(ToString::to_string);
    let attachment = attachment.as_deref().unwrap_or("unknown");
    let cause = reaped.cause;
    if reaped.errors.is_empty() {
        tracing::info!(attachment, %cause, "undone what a dead runtime left");
    }
    for error in &reaped.errors {
        tracing::error!(attachment, %cause, %error, "a dead attachment cannot be undone yet");
    }
}
