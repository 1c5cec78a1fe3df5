//! A connection that stays open, to see when it is cut.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, ppoll};

use super::{Protocol, udp_to};
use crate::netns::NetNs;
use crate::wait::{SOON, eventually};

/// A stream that says nothing for so long is cut: longer than TCP's first repetition of a
/// lost segment (200 ms), or one lost packet would count.
const QUIET: Duration = Duration::from_millis(600);

/// A client that sends a numbered line at a fixed interval and notes which ones
/// come back. Over UDP the lines are datagrams of one socket.
#[derive(Debug)]
pub struct Stream {
    progress: Arc<Mutex<Progress>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// When each line was sent; its index is its number.
    sent: Vec<Instant>,
    /// The highest number that came back.
    echoed: Option<usize>,
    /// Why the connection ended, if it did.
    ended: Option<String>,
    stop: bool,
}

impl Stream {
    /// Opens a connection from `netns` and waits for the first line to return.
    pub fn open(
        netns: &NetNs,
        protocol: Protocol,
        target: SocketAddr,
        interval: Duration,
    ) -> Result<Self> {
        let progress = Arc::new(Mutex::new(Progress::default()));
        let shared = Arc::clone(&progress);
        let thread = netns.spawn(move || {
            if let Err(error) = connect(protocol, target)
                .and_then(|socket| keep_sending(&socket, &shared, interval))
            {
                lock(&shared).ended = Some(error.to_string());
            }
        })?;
        let stream = Self {
            progress,
            thread: Some(thread),
        };
        eventually(SOON, || match &*lock(&stream.progress) {
            Progress {
                ended: Some(why), ..
            } => bail!("{protocol} to {target}: {why}"),
            Progress { echoed: None, .. } => bail!("{protocol} to {target}: no answer"),
            _ => Ok(()),
        })
        .context("cannot open a stream")?;
        Ok(stream)
    }

    /// Waits until lines have stopped coming back, and returns when the first line was
    /// sent that did not.
    pub fn wait_for_cut(&self) -> Result<Instant> {
        let (instant, _) = eventually(SOON, || {
            let progress = lock(&self.progress);
            let next = progress.echoed.map_or(0, |number| number + 1);
            match progress.sent.get(next) {
                Some(sent) if sent.elapsed() >= QUIET => Ok(*sent),
                _ => bail!("the stream still flows: {next} lines"),
            }
        })?;
        Ok(instant)
    }

    /// When the first line was sent since that time.
    pub fn first_since(&self, time: Instant) -> Option<Instant> {
        let progress = lock(&self.progress);
        progress.sent.iter().copied().find(|sent| *sent >= time)
    }

    /// An error unless a line that is sent from now on comes back within `limit`.
    pub fn flows(&self, limit: Duration) -> Result<()> {
        let sent_so_far = lock(&self.progress).sent.len();
        eventually(limit, || {
            let progress = lock(&self.progress);
            match (&progress.ended, progress.echoed) {
                (_, Some(number)) if number >= sent_so_far => Ok(()),
                (Some(why), _) => bail!("the stream ended: {why}"),
                (None, last) => bail!("of {sent_so_far} lines the last to return was {last:?}"),
            }
        })?;
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.progress).stop = true;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

fn connect(protocol: Protocol, target: SocketAddr) -> io::Result<Socket> {
    match protocol {
        Protocol::Tcp => {
            let stream = TcpStream::connect_timeout(&target, SOON)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Socket::Tcp(stream))
        }
        Protocol::Udp => {
            let socket = udp_to(target)?;
            socket.set_nonblocking(true)?;
            Ok(Socket::Udp(socket))
        }
    }
}

/// Sends a line, then reads until the interval is over, and so on.
fn keep_sending(socket: &Socket, shared: &Mutex<Progress>, interval: Duration) -> io::Result<()> {
    let mut unread = String::new();
    loop {
        let started = Instant::now();
        let number = {
            let mut progress = lock(shared);
            if progress.stop {
                return Ok(());
            }
            progress.sent.push(started);
            progress.sent.len() - 1
        };
        // The buffer of a connection that is cut fills up: nothing is sent then.
        tolerate_wait(send(socket, &format!("line {number}\n")))?;
        loop {
            let left = interval.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            wait_for_input(socket, left)?;
            let mut buffer = [0; 4096];
            let Some(length) = tolerate_wait(receive(socket, &mut buffer))? else {
                continue;
            };
            if length == 0 && matches!(socket, Socket::Tcp(_)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            unread.push_str(&String::from_utf8_lossy(&buffer[..length]));
            take_lines(&mut unread, &mut lock(shared).echoed);
        }
    }
}

/// Waits with ppoll(2): the time-out of a socket counts in the kernel's ticks.
fn wait_for_input(socket: &Socket, limit: Duration) -> io::Result<()> {
    let fd = match socket {
        Socket::Tcp(stream) => stream.as_fd(),
        Socket::Udp(socket) => socket.as_fd(),
    };
    ppoll(
        &mut [PollFd::new(fd, PollFlags::POLLIN)],
        Some(limit.into()),
        None,
    )?;
    Ok(())
}

fn send(socket: &Socket, line: &str) -> io::Result<usize> {
    match socket {
        Socket::Tcp(stream) => (&mut &*stream).write(line.as_bytes()),
        Socket::Udp(socket) => socket.send(line.as_bytes()),
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    match socket {
        Socket::Tcp(stream) => (&mut &*stream).read(buffer),
        Socket::Udp(socket) => socket.recv(buffer),
    }
}

/// `None` for what would have to wait.
fn tolerate_wait<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes whole lines out of `unread` and raises `echoed` to the highest number.
fn take_lines(unread: &mut String, echoed: &mut Option<usize>) {
    while let Some(end) = unread.find('\n') {
        let line: String = unread.drain(..=end).collect();
        let number = line
            .trim()
            .strip_prefix("line ")
            .and_then(|number| number.parse().ok());
        *echoed = (*echoed).max(number);
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress
        .lock()
        .expect("no thread panics while it holds this")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_across_reads_and_greetings_left_out() {
        let (mut unread, mut echoed) = ("web 10.0.0.1:1\nline 3\nli".to_owned(), None);
        take_lines(&mut unread, &mut echoed);
        assert_eq!((unread.as_str(), echoed), ("li", Some(3)));
        unread.push_str("ne 2\nline 12\n");
        take_lines(&mut unread, &mut echoed);
        assert_eq!((unread.as_str(), echoed), ("", Some(12)));
    }
}
