//! Flows that conntrack would keep where they must not go.
//!
//! A commit says itself which they are: it deletes the slots that led to an endpoint, and it
//! adds the frontends that flows may be older than. So this covers whatever the reason was:
//! an endpoint or a Service that came or went, another traffic policy, or leftovers that an
//! adoption cleared away.
//!
//! Only UDP and SCTP: a TCP connection ends and begins anew by itself, and until then an
//! endpoint that terminates may finish it. See [`super::gone`] for those that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use dataplane::kernel::{Kernel, StaleFlow};
use dataplane::layout::services::{self, Entry, Lane, Slot, Sources};
use dataplane::layout::{INET, services::NODE_ADDRESSES};
use dataplane::object::{Element, IpFamily, Key, Name};
use dataplane::transaction::{Operation, Transaction};
use proxy::model::Protocol;

use super::Owner;

/// A slot and the endpoint that it led to.
pub(super) type GoneSlot = (Slot, SocketAddr);

/// The endpoints of frontends, by protocol and address, that were asked about.
pub(super) type Held = BTreeMap<(u8, SocketAddr), BTreeSet<SocketAddr>>;

impl<K: Kernel> Owner<K> {
    /// Forgets the flows that a committed transaction has left behind. That this fails stops
    /// nothing: they end when their clients pause.
    pub(super) fn forget_flows(&mut self, committed: &Transaction, gone: &[GoneSlot]) {
        let mut stale: Vec<_> = gone
            .iter()
            .filter(|(slot, _)| keeps_flows(slot.protocol))
            .flat_map(|(slot, endpoint)| {
                self.stale_flows(slot.protocol, slot.frontend, Some(*endpoint))
            })
            .collect();
        let new = new_frontends(committed).into_iter();
        stale.extend(
            new.filter(|(protocol, _)| keeps_flows(*protocol))
                .flat_map(|(protocol, frontend)| self.stale_flows(protocol, frontend, None)),
        );
        if stale.is_empty() {
            return;
        }
        let started = Instant::now();
        match self.kernel.forget_flows(&stale) {
            Ok(count) => {
                self.service_progress.reconciled(started.elapsed(), count);
                tracing::debug!(stale = stale.len(), count, "flows forgotten");
            }
            Err(error) => tracing::warn!(%error, "flows to removed endpoints stay"),
        }
    }

    /// The slots that a committed transaction has taken from endpoints, where no other slot
    /// of the frontend leads to the same one.
    pub(super) fn gone_slots(&self, committed: &Transaction) -> Vec<GoneSlot> {
        let deleted = committed.operations.iter().filter_map(|operation| {
            let Operation::DeleteElements { set, elements, .. } = operation else {
                return None;
            };
            let (lane, family) = lane_of(set, Lane::endpoints)?;
            Some((lane, family, elements))
        });
        let deleted = deleted.flat_map(|(lane, family, elements)| {
            elements.iter().filter_map(move |(key, element)| {
                let slot = Slot::parse(lane.entry, family, key)?;
                Some((slot, services::parse_endpoint(family, element)?))
            })
        });
        let mut gone: Vec<_> = deleted.collect();
        let mut held = Held::default();
        gone.retain(|(slot, endpoint)| {
            !self.has_endpoint(&mut held, slot.protocol, slot.frontend, *endpoint)
        });
        gone
    }

    /// Whether a slot of the frontend leads to the endpoint. A frontend with many endpoints may
    /// be asked about many: it is looked through once.
    pub(super) fn has_endpoint(
        &self,
        held: &mut Held,
        protocol: u8,
        frontend: SocketAddr,
        endpoint: SocketAddr,
    ) -> bool {
        let endpoints = held
            .entry((protocol, frontend))
            .or_insert_with(|| self.endpoints_of(protocol, frontend));
        endpoints.contains(&endpoint)
    }

    fn endpoints_of(&self, protocol: u8, frontend: SocketAddr) -> BTreeSet<SocketAddr> {
        let family = IpFamily::of(frontend.ip());
        let entry = Entry::of(frontend.ip());
        let lanes = [Sources::All, Sources::Cluster].map(|sources| Lane::new(entry, sources));
        let slots = lanes.into_iter().flat_map(|lane| {
            let map = lane.endpoints().of(family);
            (0..).map_while(move |number| {
                let (ip, port) = (frontend.ip(), frontend.port());
                let key = services::slot_key(ip, protocol, port, number);
                self.desired.get(&INET, map, &key)
            })
        });
        slots
            .filter_map(|element| services::parse_endpoint(family, element))
            .collect()
    }

    /// The flows from a frontend to an endpoint, or without one those that are not
    /// translated. A node port is one on every address of the node, and on no other: flows
    /// to other hosts that have its number are not ours.
    pub(super) fn stale_flows(
        &self,
        protocol: u8,
        frontend: SocketAddr,
        endpoint: Option<SocketAddr>,
    ) -> Vec<StaleFlow> {
        let addresses = match Entry::of(frontend.ip()) {
            Entry::Address => vec![frontend.ip()],
            Entry::NodePort => self.node_addresses(IpFamily::of(frontend.ip())),
        };
        let flow = |address: IpAddr| {
            let frontend = SocketAddr::new(address, frontend.port());
            StaleFlow {
                protocol,
                frontend,
                endpoint: endpoint.unwrap_or(frontend),
            }
        };
        addresses.into_iter().map(flow).collect()
    }

    /// The addresses with node ports, as the rules have them.
    fn node_addresses(&self, family: IpFamily) -> Vec<IpAddr> {
        let set = NODE_ADDRESSES.of(family);
        let table = self.desired.ruleset().tables.get(&*INET);
        let set = table.and_then(|table| table.sets.get(set)).into_iter();
        let keys = set.flat_map(|set| set.elements.keys());
        keys.filter_map(|key| services::parse_address(family, key))
            .collect()
    }
}

fn keeps_flows(protocol: u8) -> bool {
    [Protocol::Udp, Protocol::Sctp]
        .map(Protocol::number)
        .contains(&protocol)
}

/// The frontends that have endpoints since the transaction and had none before.
fn new_frontends(committed: &Transaction) -> BTreeSet<(u8, SocketAddr)> {
    let frontends = |elements: &[(Key, Element)], lane: Lane, family: IpFamily| -> BTreeSet<_> {
        let keys = elements.iter();
        keys.filter_map(|(key, _)| services::parse_frontend(lane.entry, family, key))
            .collect()
    };
    let (mut added, mut deleted) = (BTreeSet::new(), BTreeSet::new());
    for operation in &committed.operations {
        let (set, elements, into) = match operation {
            Operation::AddElements { set, elements, .. } => (set, elements, &mut added),
            Operation::DeleteElements { set, elements, .. } => (set, elements, &mut deleted),
            _ => continue,
        };
        if let Some((lane, family)) = lane_of(set, Lane::frontends)
            && lane.sources == Sources::All
        {
            into.append(&mut frontends(elements, lane, family));
        }
    }
    added.difference(&deleted).copied().collect()
}

/// Of which lane and family the map is.
pub(super) fn lane_of(
    map: &Name,
    of: fn(Lane) -> &'static dataplane::layout::PerFamily,
) -> Option<(Lane, IpFamily)> {
    let lanes = Lane::ALL.into_iter();
    let mut all = lanes.flat_map(|lane| IpFamily::BOTH.map(|family| (lane, family)));
    all.find(|(lane, family)| of(*lane).of(*family) == map)
}
