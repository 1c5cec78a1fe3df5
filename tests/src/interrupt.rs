//! Ctrl-C and SIGTERM as a question that waits ask, so that guards still run
//! and remove what they made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Takes SIGINT, SIGTERM and SIGHUP for this process. By handlers, not by blocking them:
/// programs that it starts would inherit that, and never end at a SIGTERM.
pub fn install() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED))
            .with_context(|| format!("cannot take signal {signal}"))?;
    }
    Ok(())
}

/// An error if a signal has come since the last call. Only one caller gets it, so
/// that what it then unwinds through can still run programs.
pub fn check() -> Result<()> {
    if INTERRUPTED.swap(false, Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
