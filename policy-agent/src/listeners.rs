//! Listening sockets that come and go with what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

/// How often an address that could not be had is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// A task for each address.
pub(crate) struct Listeners {
    serve: Box<dyn Fn(TcpListener, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync>,
    tasks: BTreeMap<SocketAddr, JoinHandle<()>>,
}

impl Listeners {
    /// No sockets yet. `serve` accepts on each until it is dropped.
    pub(crate) fn new(
        serve: impl Fn(TcpListener, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            serve: Box::new(serve),
            tasks: BTreeMap::new(),
        }
    }

    /// Listens on these addresses and no others. Returns those where it cannot, with the
    /// reason; they are tried again by the next call.
    pub(crate) fn want(&mut self, wanted: &BTreeSet<SocketAddr>) -> Vec<(SocketAddr, io::Error)> {
        self.tasks.retain(|address, task| {
            let stays = wanted.contains(address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        let mut failures = Vec::new();
        for address in wanted {
            if self.tasks.contains_key(address) {
                continue;
            }
            match listen(*address) {
                Ok(listener) => {
                    let task = tokio::spawn((self.serve)(listener, *address));
                    self.tasks.insert(*address, task);
                }
                Err(error) => failures.push((*address, error)),
            }
        }
        failures
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

/// A socket of one family: one for all addresses of IPv6 leaves IPv4 alone.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
