//! Node ports on 127.0.0.1 and `::1`, where `nodePortAddresses` has `localhost`.
//!
//! The kernel does not route what is translated from a loopback address, so connections are
//! accepted here and passed on to an endpoint (KEP-6032 does the same). TCP only. The
//! endpoint is asked for with each connection: none is kept that could be out of date.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use dataplane::object::IpFamily;
use futures::FutureExt;
use proxy::NodePortEndpoints;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::complaint::Complaint;
use crate::listeners::Listeners;
use crate::owner::ServiceNews;
use crate::runtime::{Call, Mail};

/// Of the Event.
const REASON: &str = "FailedToListenOnNodePort";

/// An endpoint that does not answer for this long is passed over.
const CONNECT: Duration = Duration::from_secs(2);

/// Serves until the owner is gone.
pub async fn serve(news: watch::Receiver<ServiceNews>, mail: Sender<Mail>) {
    let turn = Arc::new(AtomicUsize::new(0));
    // Connections outlive their listener, as those through rules do.
    let connections = TaskTracker::new();
    let of_listeners = mail.clone();
    let listeners = Listeners::new(move |listener, address| {
        let relay = Relay {
            port: address.port(),
            family: IpFamily::of(address.ip()),
            turn: Arc::clone(&turn),
            mail: of_listeners.clone(),
        };
        accept(listener, relay, connections.clone()).boxed()
    });
    let failed = |address: SocketAddr, (): &(), error: &io::Error| Complaint {
        about: None,
        uid: None,
        reason: REASON,
        message: format!(
            "node port {} cannot be served on {address}: {error}; end what listens there",
            address.port()
        ),
    };
    listeners.follow(news, mail, REASON, plan, failed).await;
}

fn plan(news: &ServiceNews) -> (BTreeMap<SocketAddr, ()>, Vec<Complaint>) {
    let both = |port: &u16| {
        let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        addresses.map(|address: IpAddr| (SocketAddr::new(address, *port), ()))
    };
    let ports = news.loopback_node_ports.iter();
    (ports.flat_map(both).collect(), Vec::new())
}

/// Passes the connections of one port on.
#[derive(Clone)]
struct Relay {
    port: u16,
    family: IpFamily,
    /// Whose turn it is, over all ports.
    turn: Arc<AtomicUsize>,
    mail: Sender<Mail>,
}

async fn accept(listener: TcpListener, relay: Relay, connections: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                connections.spawn(relay.clone().pass_on(client));
            }
            Err(error) => {
                // Out of file descriptors, most likely: let others end.
                tracing::error!(%error, port = relay.port, "cannot accept on a node port");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Relay {
    async fn pass_on(self, mut client: TcpStream) {
        let Some(mut endpoint) = self.connect().await else {
            // A reset, as for a Service without endpoints.
            drop(client.set_zero_linger());
            return;
        };
        // Small segments pass at once, as they would without this.
        drop(client.set_nodelay(true));
        drop(endpoint.set_nodelay(true));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await {
            // One side has reset the connection: so does the other.
            tracing::debug!(%error, port = self.port, "connection to a node port ended");
            drop(client.set_zero_linger());
            drop(endpoint.set_zero_linger());
        }
    }

    /// The first endpoint that can be reached, beginning with the one whose turn it is.
    async fn connect(&self) -> Option<TcpStream> {
        let (port, family) = (self.port, self.family);
        let (reply, answer) = oneshot::channel();
        let call = Call::NodePort {
            port,
            family,
            reply,
        };
        self.mail.send(Mail::Call(call)).ok()?;
        let NodePortEndpoints {
            mut endpoints,
            is_sticky,
        } = answer.await.ok()??;
        // All clients have one address, so they all stick to the same endpoint.
        if !is_sticky && !endpoints.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len();
            endpoints.rotate_left(turn);
        }
        for endpoint in endpoints {
            match tokio::time::timeout(CONNECT, TcpStream::connect(endpoint)).await {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(error)) => {
                    tracing::debug!(%endpoint, %error, port, "endpoint of a node port passed over");
                }
                Err(_) => {
                    tracing::debug!(%endpoint, port, "endpoint of a node port does not answer");
                }
            }
        }
        None
    }
}
