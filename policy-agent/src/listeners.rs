//! Listening sockets that come and go with what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::Duration;

use futures::future::BoxFuture;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::complaint::Complaint;
use crate::owner::ServiceNews;
use crate::runtime::Mail;

/// How often an address that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

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

    /// Listens where `plan` says, until the owner is gone. An address that cannot be had is
    /// a complaint, is tried again, and does not concern the others.
    ///
    /// `plan` returns for each address whose it is, and what else is to be told; `failed`
    /// words what stands against an address.
    pub(crate) async fn follow<Whose>(
        mut self,
        mut news: watch::Receiver<ServiceNews>,
        mail: Sender<Mail>,
        reason: &'static str,
        plan: impl Fn(&ServiceNews) -> (BTreeMap<SocketAddr, Whose>, Vec<Complaint>),
        failed: impl Fn(SocketAddr, &Whose, &io::Error) -> Complaint,
    ) {
        let mut told = Vec::new();
        loop {
            let (wanted, mut complaints) = plan(&news.borrow_and_update());
            let failures = self.want(&wanted.keys().copied().collect());
            for (address, error) in &failures {
                complaints.push(failed(*address, &wanted[address], error));
            }
            if complaints != told {
                for complaint in complaints.iter().filter(|new| !told.contains(new)) {
                    let about = complaint.about.as_ref().map(tracing::field::debug);
                    tracing::warn!(about, "{}", complaint.message);
                }
                told.clone_from(&complaints);
                if mail.send(Mail::Complaints(reason, complaints)).is_err() {
                    return;
                }
            }
            let retry = async {
                match failures.is_empty() {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY).await,
                }
            };
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    /// Listens on these addresses and no others. Returns those where it cannot, with the
    /// reason; they are tried again by the next call.
    fn want(&mut self, wanted: &BTreeSet<SocketAddr>) -> Vec<(SocketAddr, io::Error)> {
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
