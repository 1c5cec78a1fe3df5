//! One attempt to be answered, from the namespace of the calling thread.

use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use super::{Outcome, Protocol};

/// Every UDP client has a source port of its own, counted up from here. The kernel draws them
/// at random: one that comes back within 30 s is the same flow to connection tracking, and
/// keeps the endpoint and the translation that an earlier client was given.
const FIRST_UDP_PORT: u16 = 32_768;

/// How often a request over UDP is made within a short time.
const UDP_REQUESTS: u32 = 3;
/// How long an answer over UDP is waited for at most before the next request.
const UDP_WAIT: Duration = Duration::from_secs(1);

/// Asks `target` for its name and waits at most `limit`.
pub fn ask(protocol: Protocol, target: SocketAddr, limit: Duration) -> Outcome {
    let answer = match protocol {
        Protocol::Tcp => ask_tcp(target, limit),
        Protocol::Udp => ask_udp(target, limit),
    };
    answer.map_or_else(|error| of_error(&error), |line| of_line(&line))
}

/// Sends one datagram from `source`, an address that this namespace has to have
/// on an interface, and does not wait.
pub fn send_from(source: IpAddr, target: SocketAddr, text: &str) -> io::Result<()> {
    let socket = udp_from(source)?;
    socket.send_to(text.as_bytes(), target)?;
    Ok(())
}

/// A client that keeps its port.
pub fn udp_to(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = udp_from(any)?;
    socket.connect(target)?;
    Ok(socket)
}

/// A socket on a port that no client of this process had before.
fn udp_from(source: IpAddr) -> io::Result<UdpSocket> {
    static CLIENTS: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = FIRST_UDP_PORT | CLIENTS.fetch_add(1, Ordering::Relaxed);
        match UdpSocket::bind((source, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => (),
            bound => return bound,
        }
    }
}

fn ask_tcp(target: SocketAddr, limit: Duration) -> io::Result<String> {
    let started = Instant::now();
    let stream = TcpStream::connect_timeout(&target, limit)?;
    // Zero would mean no limit at all.
    let left = limit
        .saturating_sub(started.elapsed())
        .max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

fn ask_udp(target: SocketAddr, limit: Duration) -> io::Result<String> {
    let started = Instant::now();
    let socket = udp_to(target)?;
    socket.set_read_timeout(Some(UDP_WAIT.min(limit / UDP_REQUESTS)))?;
    let mut buffer = [0; 512];
    loop {
        socket.send(b"?")?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                return Ok(text.lines().next().unwrap_or_default().to_owned());
            }
            Err(error) if is_timeout(&error) && started.elapsed() < limit => (),
            Err(error) => return Err(error),
        }
    }
}

/// Also of a process that was stopped and goes on: signal(7), "Interruption of system calls [...]
/// by stop signals".
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn of_error(error: &io::Error) -> Outcome {
    let reason = error.to_string();
    match error.kind() {
        _ if is_timeout(error) => Outcome::Timeout,
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        // ICMP "administratively prohibited" reaches a socket as EACCES.
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::PermissionDenied => Outcome::Unreachable { reason },
        _ => Outcome::Failed { reason },
    }
}

/// The first line of a server: its name and the client's address.
fn of_line(line: &str) -> Outcome {
    let parsed = line.trim().split_once(' ').and_then(|(server, peer)| {
        Some(Outcome::Answered {
            server: server.to_owned(),
            peer: peer.parse().ok()?,
        })
    });
    parsed.unwrap_or_else(|| Outcome::Failed {
        reason: format!("answered {line:?}"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_greeting_names_the_server_and_the_client() {
        let peer = "[fd88::2]:4000".parse().unwrap();
        assert_eq!(
            of_line("shop/web [fd88::2]:4000\n"),
            Outcome::Answered {
                server: "shop/web".to_owned(),
                peer
            },
        );
        assert!(matches!(of_line(""), Outcome::Failed { .. }));
        assert!(matches!(of_line("HTTP/1.1 200"), Outcome::Failed { .. }));
    }

    #[test]
    fn no_two_udp_clients_have_the_same_port() {
        let port = || udp_to("127.0.0.1:9".parse().unwrap()).and_then(|client| client.local_addr());
        let ports: BTreeSet<_> = (0..1_000).map(|_| port().unwrap().port()).collect();
        assert_eq!(ports.len(), 1_000);
        assert!(*ports.first().unwrap() >= FIRST_UDP_PORT);
    }

    #[test]
    fn a_closed_port_refuses_and_a_silent_one_times_out() {
        let limit = Duration::from_millis(60);
        let closed = "127.0.0.1:1".parse().unwrap();
        assert_eq!(ask(Protocol::Tcp, closed, limit), Outcome::Refused);
        assert_eq!(ask(Protocol::Udp, closed, limit), Outcome::Refused);
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = silent.local_addr().unwrap();
        assert_eq!(ask(Protocol::Udp, target, limit), Outcome::Timeout);
    }
}
