//! A server on any number of ports, TCP and UDP, both families, in one thread.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::Protocol;
use crate::netns::NetNs;
use crate::wait::{SOON, eventually};

/// Answers each connection, and each datagram, with a line of its own name and
/// the client's address as it sees it, then echoes what comes. Stops when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<EventFd>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

/// A client that a server saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Over what.
    pub protocol: Protocol,
    /// The server's port.
    pub port: u16,
    /// The client's address.
    pub peer: SocketAddr,
}

impl Server {
    /// Listens in `netns` on every one of `ports`, over TCP and UDP.
    pub fn start(netns: &NetNs, name: &str, ports: &[u16]) -> Result<Self> {
        // Sockets that a server here had until now may be those of a child of this process
        // for a moment more, which another thread has forked and which has not begun its
        // program yet.
        let attempt = || {
            let wanted = ports.to_vec();
            let sockets = netns.enter(move || wanted.into_iter().map(listen).collect())?;
            match sockets {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(error),
                other => Ok(other),
            }
        };
        let sockets: io::Result<Vec<_>> = eventually(SOON, attempt)?.0;
        let sockets = sockets.with_context(|| format!("cannot listen in {}", netns.name()))?;
        let stop = Arc::new(EventFd::new().context("cannot make an eventfd")?);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut service = Service {
            name: name.to_owned(),
            stop: Arc::clone(&stop),
            seen: Arc::clone(&seen),
            sockets,
            connections: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name(format!("serve {name}"))
            .spawn(move || service.run())
            .context("cannot start a thread")?;
        Ok(Self {
            stop,
            seen,
            thread: Some(thread),
        })
    }

    /// Whom it has seen so far: one entry for each connection and datagram.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A counter of 1 cannot overflow.
        self.stop.write(1).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The sockets of one port.
struct Sockets {
    port: u16,
    tcp: TcpListener,
    udp: UdpSocket,
}

struct Service {
    name: String,
    stop: Arc<EventFd>,
    seen: Arc<Mutex<Vec<Seen>>>,
    sockets: Vec<Sockets>,
    connections: Vec<TcpStream>,
}

impl Service {
    fn run(&mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => panic!("poll: {error}"),
            };
            if ready[0] {
                return;
            }
            let (listeners, connections) = ready[1..].split_at(2 * self.sockets.len());
            // Connections first: accepting appends to them.
            let mut alive = connections.iter();
            self.connections.retain_mut(|connection| {
                let is_ready = alive.next().copied().unwrap_or(false);
                !is_ready || echo(connection).is_ok()
            });
            for (index, ready) in listeners.iter().enumerate() {
                if *ready {
                    // A client that has gone again is no concern of the others.
                    self.welcome(index).ok();
                }
            }
        }
    }

    /// Which of eventfd, listeners (TCP, UDP for each port) and connections have
    /// something to read.
    fn wait(&self) -> nix::Result<Vec<bool>> {
        let listeners = self
            .sockets
            .iter()
            .flat_map(|s| [s.tcp.as_fd(), s.udp.as_fd()]);
        let connections = self.connections.iter().map(AsFd::as_fd);
        let mut fds: Vec<_> = std::iter::once(self.stop.as_fd())
            .chain(listeners)
            .chain(connections)
            .map(|fd: BorrowedFd<'_>| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(fds.iter().map(|fd| fd.any().unwrap_or(false)).collect())
    }

    fn welcome(&mut self, index: usize) -> io::Result<()> {
        let Sockets { port, tcp, udp } = &self.sockets[index / 2];
        let greeting = |peer: SocketAddr| format!("{} {peer}\n", self.name);
        if index.is_multiple_of(2) {
            let (mut connection, peer) = tcp.accept()?;
            let peer = canonical(peer);
            self.note(Protocol::Tcp, *port, peer);
            connection.set_nodelay(true)?;
            connection.set_write_timeout(Some(Duration::from_secs(1)))?;
            connection.write_all(greeting(peer).as_bytes())?;
            self.connections.push(connection);
        } else {
            let mut buffer = [0; 2048];
            let (length, from) = udp.recv_from(&mut buffer)?;
            let peer = canonical(from);
            self.note(Protocol::Udp, *port, peer);
            let mut answer = greeting(peer).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            udp.send_to(&answer, from)?;
        }
        Ok(())
    }

    fn note(&self, protocol: Protocol, port: u16, peer: SocketAddr) {
        lock(&self.seen).push(Seen {
            protocol,
            port,
            peer,
        });
    }
}

/// Both families on one socket where the namespace has IPv6.
fn listen(port: u16) -> io::Result<Sockets> {
    let bind = |ip: IpAddr| -> io::Result<_> {
        Ok((TcpListener::bind((ip, port))?, UdpSocket::bind((ip, port))?))
    };
    let (tcp, udp) = match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            bind(Ipv4Addr::UNSPECIFIED.into())
        }
        bound => bound,
    }?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok(Sockets { port, tcp, udp })
}

/// Returns what a connection sent. An error when it is over.
fn echo(connection: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    match connection.read(&mut buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => connection.write_all(&buffer[..length]),
    }
}

/// An IPv4 client of a socket for both families as what it is.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn lock(seen: &Mutex<Vec<Seen>>) -> MutexGuard<'_, Vec<Seen>> {
    seen.lock().expect("no thread panics while it holds this")
}
