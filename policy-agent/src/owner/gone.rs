//! Connections to endpoints that are gone, for those who want them to end
//! (`resetGoneEndpoints`).
//!
//! A client that waits for an answer of a pod whose node has died waits for as long as TCP
//! repeats itself. When conntrack has forgotten its flow, its next segment is led to an endpoint
//! that does not know the connection, or is refused where there is none: it is reset.
//!
//! An endpoint that has lost its slots may only terminate, or not be ready for now, or have
//! moved. It is gone when no EndpointSlice has its address and no pod.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use dataplane::kernel::Kernel;
use proxy::model::Protocol;

use super::Owner;
use super::flows::{GoneSlot, Held};

/// What led to endpoints that are gone, or will be.
#[derive(Debug, Default)]
pub(super) struct GoneEndpoints {
    is_on: bool,
    /// TCP frontends with an endpoint to which nothing new goes. By frontend, since a Service
    /// whose endpoint it still is keeps its connections.
    left: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl GoneEndpoints {
    pub(super) const fn set(&mut self, is_on: bool) {
        self.is_on = is_on;
    }
}

impl<K: Kernel> Owner<K> {
    /// Notes which endpoints a committed transaction has taken slots from.
    pub(super) fn note_gone(&mut self, gone: &[GoneSlot]) {
        if !self.gone.is_on {
            return;
        }
        let of_tcp = gone
            .iter()
            .filter(|(slot, _)| slot.protocol == Protocol::Tcp.number());
        let left = of_tcp.map(|(slot, endpoint)| (slot.frontend, *endpoint));
        self.gone.left.extend(left);
    }

    /// Ends the connections to those of them that are gone. That this fails stops nothing.
    pub(super) fn end_gone_connections(&mut self) {
        if self.gone.left.is_empty() {
            return;
        }
        let tcp = Protocol::Tcp.number();
        let mut left = std::mem::take(&mut self.gone.left);
        // It may have come back.
        let mut held = Held::default();
        left.retain(|(frontend, endpoint)| {
            !self.has_endpoint(&mut held, tcp, *frontend, *endpoint)
        });
        let is_in_use = |endpoint: &SocketAddr| self.index.is_in_use(endpoint.ip());
        let (mut stay, free): (BTreeSet<_>, BTreeSet<_>) = left
            .into_iter()
            .partition(|(_, endpoint)| is_in_use(endpoint));
        let addresses: BTreeSet<IpAddr> = free.iter().map(|(_, endpoint)| endpoint.ip()).collect();
        let (known, gone): (BTreeSet<_>, BTreeSet<_>) = match addresses.is_empty() {
            true => Default::default(),
            false => {
                let known = self.proxy.endpoints_among(&addresses);
                free.into_iter()
                    .partition(|(_, endpoint)| known.contains(&endpoint.ip()))
            }
        };
        stay.extend(known);
        self.gone.left = stay;
        let stale: Vec<_> = gone
            .into_iter()
            .flat_map(|(frontend, endpoint)| self.stale_flows(tcp, frontend, Some(endpoint)))
            .collect();
        if stale.is_empty() {
            return;
        }
        match self.kernel.forget_flows(&stale) {
            Ok(count) => {
                self.service_progress.reset(count);
                tracing::info!(count, "connections to endpoints that are gone are reset");
            }
            Err(error) => tracing::warn!(%error, "connections to gone endpoints stay"),
        }
    }
}
