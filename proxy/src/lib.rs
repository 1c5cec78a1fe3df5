//! The Service proxy: Services and EndpointSlices to elements of the data plane's maps.
//!
//! ```text
//!  Service ──► frontend::plan ──► claims: who owns an address.protocol.port
//!                                    │
//!  EndpointSlice ─► index ─► endpoints::candidates ─► topology::select
//!                                                          │
//!                                   Desired ◄── maps ◄── slots: which endpoint where
//! ```
//!
//! Everything is synchronous, deterministic and without IO: objects come in parsed
//! ([`model`]), elements go out into a [`Desired`], and [`Proxy::sync`] looks only at the
//! Services that have changed.
//!
//! A *frontend* is `address . protocol . port` of a service port, or a port of the node.
//! [`FrontendKind`] says which way to the Service it is, and its traffic policy selects the
//! endpoints.

mod addresses;
mod adopt;
mod affinity;
mod claims;
mod config;
mod endpoints;
mod findings;
mod frontend;
mod hash;
mod health;
mod index;
mod intern;
mod maps;
pub mod model;
mod node_ports;
mod program;
mod ranges;
pub mod scheduler;
pub mod slots;
mod status;
mod surroundings;
pub mod topology;
pub mod weights;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use dataplane::desired::Desired;
use dataplane::layout::services::{AffinityGroup, PodSources, Slot, Sources, set_pod_sources};
use dataplane::object::Ruleset;
use ipnet::IpNet;

use crate::addresses::ClusterIps;
use crate::claims::Claims;
use crate::frontend::Admission;
use crate::index::{Index, PlannedService};
use crate::maps::Maps;
use crate::model::{EndpointSlice, ObjectKey, Service};
use crate::surroundings::Surroundings;

pub use crate::config::ProxyConfig;
pub use crate::findings::Findings;
pub use crate::frontend::{FrontendId, FrontendKind};
pub use crate::health::HealthCheck;
pub use crate::node_ports::NodePortEndpoints;
pub use crate::status::{EndpointStatus, FrontendState, FrontendStatus, ServiceStatus};
pub use crate::topology::NodeIdentity;

/// The Services of a cluster as one node serves them.
pub struct Proxy {
    node: NodeIdentity,
    config: ProxyConfig,
    surroundings: Surroundings,
    index: Index,
    claims: Claims,
    affinity: affinity::Groups,
    weights: weights::Weights,
    cluster_ips: ClusterIps,
    /// How pods are known in what is desired, and whether all traffic to cluster IPs is
    /// masqueraded there.
    senders: Option<(PodSources, bool)>,
    maps: Maps,
    /// Frontends that somebody has given up since the last sync.
    released: BTreeSet<FrontendId>,
    unreviewed: findings::Unreviewed,
}

/// What a sync did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncReport {
    /// Services compiled.
    pub services: usize,
    /// Frontends that came, went, or have another number of endpoints.
    pub frontends: usize,
    /// Slots that have got an endpoint, or another one.
    pub slots_written: usize,
    /// Orphaned slots removed.
    pub slots_removed: usize,
}

impl Proxy {
    /// A proxy without Services.
    pub fn new(node: NodeIdentity) -> Self {
        Self {
            node,
            config: ProxyConfig::default(),
            surroundings: Surroundings::default(),
            index: Index::default(),
            claims: Claims::default(),
            affinity: affinity::Groups::default(),
            weights: weights::Weights::default(),
            cluster_ips: ClusterIps::default(),
            senders: None,
            maps: Maps::default(),
            released: BTreeSet::new(),
            unreviewed: findings::Unreviewed::default(),
        }
    }

    /// Takes the slots that the kernel's maps have, so that after a restart an endpoint
    /// stays where it is. To be called before the first sync; what no Service wants is
    /// forgotten by it.
    pub fn adopt(&mut self, observed: &Ruleset) {
        self.maps.adopt(adopt::slots(observed));
    }

    /// What is known of the node has changed.
    pub fn set_node(&mut self, node: NodeIdentity) {
        if self.node == node {
            return;
        }
        let renamed = self.node.name != node.name;
        self.node = node;
        self.index
            .note_all(|entry| renamed || entry.slices.iter().any(index::Slice::has_hints));
    }

    /// Other settings are in force.
    pub fn set_config(&mut self, config: ProxyConfig) {
        if self.config == config {
            return;
        }
        self.plan_again(|proxy| proxy.config = config);
    }

    /// Ranges of pods' addresses, in place of those of the last call: where pods are known by
    /// them ([`PodSources::Ranges`]), what comes from there is traffic of the cluster.
    pub fn set_cluster_cidrs(&mut self, ranges: &[IpNet]) {
        if self.surroundings.cluster_cidrs != ranges {
            self.surroundings.cluster_cidrs = ranges.to_vec();
            self.surroundings.changed = true;
        }
    }

    /// The addresses of this node on which node ports are served, in place of those of the
    /// last call. Loopback addresses are left out: the kernel does not route what is
    /// translated from them.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses = addresses.into_iter();
        let addresses: BTreeSet<_> = addresses.filter(|ip| !ip.is_loopback()).collect();
        if self.surroundings.node_addresses == addresses {
            return;
        }
        self.surroundings.node_addresses = addresses;
        self.surroundings.changed = true;
        self.index.note_all(|entry| {
            let service = entry.service();
            service.is_some_and(|service| !service.source_ranges.is_empty())
        });
    }

    /// The ranges that cluster IPs are allocated from, in place of those of the last call.
    /// What is sent to an address in them that no Service has is dropped.
    pub fn set_service_cidrs(&mut self, ranges: impl IntoIterator<Item = IpNet>) {
        let ranges: Vec<_> = ranges.into_iter().collect();
        if self.surroundings.service_cidrs == ranges {
            return;
        }
        self.surroundings.changed = true;
        self.plan_again(|proxy| proxy.surroundings.service_cidrs = ranges);
    }

    /// Makes a change after which Services may have other frontends.
    fn plan_again(&mut self, change: impl FnOnce(&mut Self)) {
        for planned in self.index.planned() {
            self.release(&planned);
        }
        change(self);
        let admission = admission(&self.config, &self.surroundings);
        self.index
            .plan_again(|service| frontend::plan(service, admission));
        for planned in self.index.planned() {
            self.claim(&planned);
        }
    }

    /// A Service is new or has changed.
    pub fn apply_service(&mut self, service: Service) {
        let admission = admission(&self.config, &self.surroundings);
        let plan = |service: &Service| frontend::plan(service, admission);
        let Some((old, new)) = self.index.set_service(service, plan) else {
            return;
        };
        if let Some(old) = old {
            self.release(&old);
        }
        self.claim(&new);
    }

    /// A Service is gone.
    pub fn remove_service(&mut self, key: &ObjectKey) {
        if let Some(old) = self.index.remove_service(key) {
            self.release(&old);
            self.unreviewed.add(key.clone());
        }
    }

    fn claim(&mut self, planned: &PlannedService) {
        for frontend in &planned.plan.frontends {
            let service = &planned.service;
            if self.claims.claim(frontend.id, frontend.kind, service) {
                self.review_claimants(frontend.id);
            }
        }
        self.cluster_ips.add(&planned.service);
    }

    fn release(&mut self, planned: &PlannedService) {
        for frontend in &planned.plan.frontends {
            if let Some(heir) = self.claims.release(frontend.id, &planned.service.key) {
                self.review_claimants(frontend.id);
                self.index.note(&heir);
            }
            self.released.insert(frontend.id);
        }
        self.cluster_ips.remove(&planned.service);
    }

    /// A slice is new or has changed. Returns whether that is news.
    pub fn apply_slice(&mut self, slice: EndpointSlice) -> bool {
        self.index.set_slice(slice)
    }

    /// A slice is gone. Returns whether there was one.
    pub fn remove_slice(&mut self, key: &ObjectKey) -> bool {
        self.index.remove_slice(key)
    }

    /// The pod has this annotation ([`weights::ANNOTATION`]), verbatim, or none.
    pub fn set_pod_weight(&mut self, pod: &ObjectKey, weight: Option<&str>) {
        self.weights.set(pod, weight);
    }

    /// Brings `desired` up to date. The layout must be installed in it
    /// ([`dataplane::layout::install`]), and it must be the same at every call.
    ///
    /// Costs what the changed Services have of endpoints, not what there is.
    pub fn sync(&mut self, desired: &mut Desired) -> SyncReport {
        let mut report = SyncReport::default();
        self.surroundings.write(desired);
        self.cluster_ips.write(desired);
        let senders = (self.config.pod_sources.clone(), self.config.masquerade_all);
        if self.senders.as_ref() != Some(&senders) {
            set_pod_sources(desired, &senders.0, senders.1);
            self.senders = Some(senders);
        }
        self.maps.prune(desired, &mut report);
        for id in std::mem::take(&mut self.released) {
            if self.claims.owner(id).is_none() {
                self.affinity.leave(id);
                self.maps.withdraw(desired, id, &mut report);
            }
        }
        let reweighted = self.weights.take_changed();
        if !reweighted.is_empty() {
            self.index
                .note_all(|entry| weights::concerns(&reweighted, entry));
        }
        let noted = self.index.take_noted();
        for key in &noted {
            self.compile(key, desired, &mut report);
        }
        self.unreviewed.append(noted);
        self.maps.forget_adopted();
        report
    }

    /// The kernel refuses an element of a frontend's slots: the next sync closes the gap, as
    /// if the frontend had not the endpoint, which is returned. `None` where the slot has
    /// none.
    pub fn leave_out(&mut self, slot: Slot, sources: Sources) -> Option<SocketAddr> {
        let id = FrontendId::of(slot.protocol, slot.frontend)?;
        let target = self.maps.leave_out((id, sources), slot.number)?;
        if let Some(owner) = self.claims.owner(id) {
            self.index.note(owner);
        }
        Some(SocketAddr::new(target.address, target.port))
    }

    /// The number of endpoints that a frontend, by IP protocol, has for these sources.
    pub fn slots(&self, protocol: u8, frontend: SocketAddr, sources: Sources) -> usize {
        let id = FrontendId::of(protocol, frontend);
        id.map_or(0, |id| self.maps.targets(id, sources).len())
    }

    /// Has the next sync try again what was left out.
    pub fn restore(&mut self) {
        for id in self.maps.take_refused() {
            if let Some(owner) = self.claims.owner(id) {
                self.index.note(owner);
            }
        }
    }

    /// What the last sync wrote is in the kernel. Returns whether a further sync is
    /// wanted: slots that nothing leads to any more are removed one commit later.
    pub fn committed(&mut self) -> bool {
        self.maps.committed()
    }

    /// Whether clients of a frontend are remembered under the group.
    pub fn has_affinity_group(&self, group: AffinityGroup) -> bool {
        self.affinity.has_members(group)
    }

    /// The Service as it is served after the last sync.
    pub fn service(&self, key: &ObjectKey) -> Option<ServiceStatus> {
        self.status(self.index.get(key)?)
    }

    /// Keys of the Services, sorted.
    pub fn service_keys(&self) -> impl Iterator<Item = &ObjectKey> {
        let services = self.index.iter();
        services.filter_map(|(key, entry)| entry.service.as_ref().map(|_| key))
    }

    /// Keys of the slices, in no order.
    pub fn slice_keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.index.slices()
    }

    /// The Service of a slice.
    pub fn service_of(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        self.index.service_of(slice)
    }

    /// Names of the slices of a Service, sorted.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &str> {
        let slices = self.index.get(service).map(|entry| &*entry.slices);
        let slices = slices.unwrap_or_default().iter();
        slices.map(|slice| &*slice.name)
    }

    /// The Service that a frontend, by IP protocol, is served for; the unspecified address
    /// stands for a node port.
    pub fn owner(&self, protocol: u8, frontend: SocketAddr) -> Option<&ObjectKey> {
        let id = FrontendId::of(protocol, frontend)?;
        self.claims.owner(id)
    }

    /// Those of the addresses that are endpoints of any Service, in whatever condition.
    pub fn endpoints_among(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let slices = self.index.iter().flat_map(|(_, entry)| &entry.slices);
        let endpoints = slices.flat_map(|slice| slice.endpoints().map(|(endpoint, _)| endpoint));
        endpoints
            .map(|endpoint| endpoint.address)
            .filter(|address| addresses.contains(address))
            .collect()
    }

    /// The Services that are reached at the address.
    pub fn services_at(&self, address: IpAddr) -> BTreeSet<ObjectKey> {
        self.claims.owners_at(address).cloned().collect()
    }

    /// The Services, sorted by key, as they are served after the last sync.
    pub fn services(&self) -> impl Iterator<Item = ServiceStatus> {
        let entries = self.index.iter();
        entries.filter_map(|(_, entry)| self.status(entry))
    }

    /// UID of a Service that has one.
    pub fn uid(&self, service: &ObjectKey) -> Option<&str> {
        let service = self.index.get(service)?.service()?;
        Some(&*service.uid).filter(|uid| !uid.is_empty())
    }
}

/// Which addresses may be served, as things are.
fn admission<'a>(config: &'a ProxyConfig, surroundings: &'a Surroundings) -> Admission<'a> {
    Admission {
        config,
        service_cidrs: &surroundings.service_cidrs,
    }
}

#[cfg(test)]
mod tests;
