//! Waiting for what has to become true.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::interrupt;

/// For what has to happen: as long as the slowest machine may take, since a test that
/// succeeds waits no longer than it has to. The kernel takes longest: the links of a deleted
/// namespace were there for minutes, while it took down others with full connection tables.
pub const SOON: Duration = Duration::from_secs(180);

/// Repeats `attempt` until it succeeds and returns what it did and how long that
/// took; its last error after `limit`.
pub fn eventually<T>(
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<(T, Duration)> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok((value, started.elapsed())),
            Err(error) if started.elapsed() > limit => {
                return Err(error.context(format!("still so after {limit:?}")));
            }
            Err(_) => interrupt::check()?,
        }
        thread::sleep(Duration::from_millis(5));
    }
}
