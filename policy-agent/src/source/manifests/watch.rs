//! Says when the directory may have changed.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher};

/// How often the callback runs without any notification, by default. Notifications miss
/// files behind links that lead out of the directory, network file systems, and a
/// directory that is replaced as a whole.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Watches a directory until it is dropped.
pub struct ManifestWatch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// `None` where the kernel gives no notifications; polling does it then.
    watcher: Option<notify::RecommendedWatcher>,
}

impl ManifestWatch {
    /// Calls `changed`, on a thread of its own, after every change below `root` that the
    /// kernel tells of and every `poll` anyway. `changed` must be quick and must not mind
    /// being called for nothing.
    pub fn start(root: &Path, poll: Duration, changed: impl Fn() + Clone + Send + 'static) -> Self {
        let watcher = notifications(root, changed.clone())
            .inspect_err(|error| {
                tracing::warn!(
                    directory = %root.display(),
                    %error,
                    "no notifications of changed manifests, polling only"
                );
            })
            .ok();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(poll) {
                changed();
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
            watcher,
        }
    }
}

impl Drop for ManifestWatch {
    fn drop(&mut self) {
        self.watcher = None;
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the callback of the manifest watch panicked");
        }
    }
}

fn notifications(
    root: &Path,
    changed: impl Fn() + Send + 'static,
) -> notify::Result<notify::RecommendedWatcher> {
    let root: PathBuf = root.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error (a queue that ran over) may have hidden a change.
        if event.is_ok_and(|event| !may_be_a_change(event.kind)) {
            return;
        }
        changed();
    })?;
    watcher.watch(&root, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Our own reading makes Access events: without this a scan would cause the next.
fn may_be_a_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
