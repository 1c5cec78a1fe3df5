//! Waiting for a file lock, but not for ever.

use std::fs::{File, TryLockError};
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Takes the exclusive `flock` of `file`. `Ok(false)`: someone else held it for
/// all of `timeout`.
///
/// A free lock costs one system call. A held one is waited for in a thread of
/// its own: the kernel has no `flock` with a timeout, and polling would either
/// waste time or wake needlessly. After a timeout the thread stays blocked on
/// its own descriptor of the open file, so the caller must give up and exit: a
/// lock that arrives late is released with the process.
pub fn lock_within(file: &File, timeout: Duration) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => return Ok(true),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if timeout.is_zero() {
        return Ok(false);
    }
    let waiting = file.try_clone()?;
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        // Nobody listens any more after a timeout; then there is no one to tell.
        drop(sender.send(waiting.lock()));
    })?;
    match receiver.recv_timeout(timeout) {
        Ok(outcome) => outcome.map(|()| true),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_held_lock_times_out_and_a_freed_one_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holder = File::create(&path).unwrap();
        holder.lock().unwrap();
        let second = File::open(&path).unwrap();
        let start = Instant::now();
        assert!(!lock_within(&second, Duration::from_millis(50)).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(50));
        let third = File::open(&path).unwrap();
        let waiter = thread::spawn(move || lock_within(&third, Duration::from_secs(20)).unwrap());
        thread::sleep(Duration::from_millis(20));
        drop(second);
        drop(holder);
        assert!(waiter.join().unwrap());
    }
}
