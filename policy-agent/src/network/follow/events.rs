//! That something has changed in the kernel. What, the next pass finds out.

use std::io;

use dataplane::object::IpFamily;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};

use super::super::tunnel_name;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `RTM_NEWNEIGH`, `RTM_DELNEIGH`.
const NEIGHBOURS: std::ops::RangeInclusive<u16> = 28..=29;
/// Larger than what the kernel puts into one datagram.
const BUFFER: usize = 64 * 1024;

/// The kernel's news.
pub(super) struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind_auto()?;
        for group in [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ] {
            socket.socket_mut().add_membership(group as u32)?;
        }
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Returns when something has changed that a pass depends on.
    pub(super) async fn wait(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer).await {
                Ok(()) if has_relevant(&self.buffer) => return Ok(()),
                Ok(()) => {}
                // The kernel drops news where they come faster than they are read.
                Err(error) if is_lost(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets what has come so far.
    pub(super) fn drain(&mut self) {
        loop {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if is_lost(&error) => {}
                // There is no more, or the next wait says why.
                Err(_) => return,
            }
        }
    }
}

fn is_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// Neighbours of pods come and go all the time: only those in the tunnels count.
fn has_relevant(mut messages: &[u8]) -> bool {
    while let Some(header) = messages.first_chunk::<HEADER>() {
        let [a, b, c, d, kind_low, kind_high, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([kind_low, kind_high]);
        // `ndm_ifindex`.
        let link = messages
            .get(HEADER + 4..)
            .and_then(|rest| rest.first_chunk());
        let link = link.map(|link| u32::from_ne_bytes(*link));
        let is_of_tunnel = || {
            let mut tunnels = IpFamily::BOTH.map(tunnel_name).into_iter();
            tunnels.any(|name| if_nametoindex(name).ok() == link)
        };
        if !NEIGHBOURS.contains(&kind) || is_of_tunnel() {
            return true;
        }
        let next = length.next_multiple_of(4).max(HEADER);
        messages = messages.get(next..).unwrap_or_default();
    }
    false
}
