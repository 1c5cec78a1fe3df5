//! UDP flows to endpoints that are gone.
//!
//! A commit says itself which they are: it deletes the slots that led to them. So this
//! covers whatever the reason was: an endpoint or a Service that went, another traffic
//! policy, or leftovers that an adoption cleared away.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use dataplane::kernel::{Kernel, StaleFlow};
use dataplane::layout::INET;
use dataplane::layout::services::{self, ENDPOINTS, Slot};
use dataplane::object::IpFamily;
use dataplane::transaction::{Operation, Transaction};
use proxy::model::Protocol;

use super::Owner;

impl<K: Kernel> Owner<K> {
    /// Forgets the flows that a committed transaction has left without their endpoint. That
    /// this fails stops nothing: they end when their clients pause.
    pub(super) fn forget_flows(&mut self, committed: &Transaction) {
        let stale: Vec<_> = self.stale_flows(committed).into_iter().collect();
        if stale.is_empty() {
            return;
        }
        let started = Instant::now();
        match self.kernel.forget_flows(&stale) {
            Ok(count) => {
                self.service_progress.reconciled(started.elapsed(), count);
                tracing::debug!(endpoints = stale.len(), count, "UDP flows forgotten");
            }
            Err(error) => tracing::warn!(%error, "UDP flows to removed endpoints stay"),
        }
    }

    fn stale_flows(&self, committed: &Transaction) -> BTreeSet<StaleFlow> {
        let mut stale = BTreeSet::new();
        for operation in &committed.operations {
            let Operation::DeleteElements { set, elements, .. } = operation else {
                continue;
            };
            let family = IpFamily::BOTH
                .into_iter()
                .find(|family| ENDPOINTS.of(*family) == set);
            let Some(family) = family else { continue };
            let slots = elements.iter().filter_map(|(key, element)| {
                let slot = Slot::parse(family, key)?;
                Some((slot, services::parse_endpoint(family, element)?))
            });
            for (slot, endpoint) in slots {
                let is_udp = slot.protocol == Protocol::Udp.number();
                if is_udp && !self.has_endpoint(family, slot, endpoint) {
                    stale.insert(StaleFlow {
                        frontend: slot.frontend,
                        endpoint,
                    });
                }
            }
        }
        stale
    }

    /// Whether the frontend leads to the endpoint by another slot.
    fn has_endpoint(&self, family: IpFamily, slot: Slot, endpoint: SocketAddr) -> bool {
        let frontend = slot.frontend;
        (0..)
            .map(|number| {
                let key = services::slot_key(frontend.ip(), slot.protocol, frontend.port(), number);
                self.desired.get(&INET, ENDPOINTS.of(family), &key)
            })
            .map_while(|element| element)
            .any(|element| services::parse_endpoint(family, element) == Some(endpoint))
    }
}
