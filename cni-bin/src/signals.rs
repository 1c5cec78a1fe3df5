//! Signals that ask the process to end.
//!
//! A runtime that gives up on an ADD sends one of them. Ended half way, ADD would leave
//! its work to others; it goes on instead, which takes some milliseconds, and then
//! undoes all it has done.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::spec::{Code, Error};

/// The signals that are put off.
const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Signals that wait until somebody looks, from now to the end of this process.
#[derive(Debug)]
pub struct Deferred {
    pending: SignalFd,
}

impl Deferred {
    /// Puts them off for this thread and those that it starts; programs that it runs are
    /// not concerned.
    pub fn block() -> Result<Self, Error> {
        let set: SigSet = SIGNALS.into_iter().collect();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let pending = set
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&set, flags));
        let pending = pending.map_err(|errno| {
            Error::new(Code::Kernel, format!("cannot put off signals: {errno}"))
        })?;
        Ok(Self { pending })
    }

    /// An error if one has come.
    pub fn check(&self) -> Result<(), Error> {
        // Nothing can be read while none has.
        let Ok(Some(signal)) = self.pending.read_signal() else {
            return Ok(());
        };
        let number = i32::try_from(signal.ssi_signo).ok();
        let name = number
            .and_then(|number| Signal::try_from(number).ok())
            .map_or("a signal", Signal::as_str);
        let message = format!("ended by {name}: what was done is undone");
        Err(Error::new(Code::TryAgain, message))
    }
}
