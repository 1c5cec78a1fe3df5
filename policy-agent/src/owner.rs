//! The one owner of the desired state.
//!
//! Everything that changes goes through here, one thing at a time: events of the sources,
//! attachments of the plugin, commits to the kernel. Nothing else writes the tables, so
//! there are no locks and no order to get wrong. The owner does no IO but through
//! [`Kernel`]; [`crate::runtime`] gives it its thread, its clock and its mailbox.
//!
//! ```text
//!  Event, Attachment ──► Index ──► PolicyCompiler ─┐
//!                          └─────► Proxy ──────────┴─► Desired ──► Transaction ──► Kernel
//! ```

mod affinity;
mod attachments;
mod blame;
mod commit;
mod complaints;
mod endpoints;
mod flows;
mod gone;
mod nat;
mod network;
mod news;
mod refused;
mod restore;
mod services;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use dataplane::attachment::AttachmentKey;
use dataplane::desired::Desired;
use dataplane::kernel::Kernel;
use dataplane::layout;
use dataplane::layout::denials::Denials;
use dataplane::layout::{GENERATION_MASK, INET, policy, ports};
use dataplane::object::Element;
use proxy::model::{ObjectKey, Service};
use proxy::{NodeIdentity, Proxy};

use crate::compile::PolicyCompiler;
use crate::event::{Event, Kind, Object};
use crate::index::Index;
use crate::model::Pod;
use crate::owner::endpoints::is_given;

pub use commit::SyncError;
pub use news::ServiceNews;
pub use restore::Earlier;
pub use services::{NoLocalEndpoints, Observations, ServiceSummary};
pub use status::{PolicyStatus, Status, Summary, TierStatus};

/// Settings of the owner.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node's Node object.
    pub node: String,
    /// Compute endpoints from selectors for Services without EndpointSlices, as the
    /// endpoint controller does in a cluster. For manifests.
    pub compute_endpoints: bool,
    /// Bridges that have pods even before the first attachment says so.
    pub bridges: Vec<String>,
}

/// The owner.
pub struct Owner<K> {
    settings: Settings,
    kernel: K,
    index: Index,
    policies: PolicyCompiler,
    proxy: Proxy,
    endpoints: endpoints::ComputedEndpoints,
    affinity: affinity::Sweep,
    gone: gone::GoneEndpoints,
    desired: Desired,
    denials: Denials,
    /// That of the policies, see [`layout::policy`].
    generation: u16,
    /// Kinds that were listed in full.
    listed: BTreeSet<Kind>,
    fallback: restore::Fallback,
    /// Interfaces with pods, and the attachments behind each.
    interfaces: BTreeMap<String, BTreeSet<AttachmentKey>>,
    /// Who wants which hostPort.
    nat: nat::NatClaims,
    /// Objects that cannot be used, with the reason.
    invalid: BTreeMap<(Kind, ObjectKey), String>,
    /// Whether Services are this agent's to serve.
    serves: bool,
    /// Whether bridge ports are isolated, see [`crate::isolation`].
    ports_isolated: Option<bool>,
    network: network::ClusterNetwork,
    /// Whether something has changed since the last sync.
    dirty: bool,
    /// Whether live flows are still to be judged anew for something that has.
    narrowed: bool,
    /// Counts changes, see [`crate::snapshot`].
    revision: u64,
    /// The revision for which endpoints that the kernel refuses were tried again.
    tried: u64,
    progress: commit::Progress,
    service_progress: services::ServiceProgress,
}

impl<K: Kernel> Owner<K> {
    /// An owner that has seen nothing yet and leaves the kernel's tables as they are.
    pub fn new(settings: Settings, kernel: K) -> Self {
        Self {
            policies: PolicyCompiler::new(&settings.node),
            proxy: Proxy::new(NodeIdentity {
                name: settings.node.clone(),
                zone: None,
            }),
            settings,
            kernel,
            index: Index::new(),
            endpoints: endpoints::ComputedEndpoints::default(),
            affinity: affinity::Sweep::default(),
            gone: gone::GoneEndpoints::default(),
            desired: Desired::new(),
            denials: Denials::default(),
            generation: 1,
            listed: BTreeSet::new(),
            fallback: restore::Fallback::default(),
            interfaces: BTreeMap::new(),
            nat: nat::NatClaims::default(),
            invalid: BTreeMap::new(),
            serves: true,
            ports_isolated: None,
            network: network::ClusterNetwork::default(),
            dirty: false,
            narrowed: false,
            revision: 0,
            tried: 0,
            progress: commit::Progress::default(),
            service_progress: services::ServiceProgress::default(),
        }
    }

    /// How packets are denied: silently and untold of unless this says otherwise. To be
    /// set before the first sync.
    pub const fn set_denials(&mut self, denials: Denials) {
        self.denials = denials;
        self.policies.set_denials(denials);
    }

    /// The kernel that it writes to.
    pub const fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Notes whether bridge ports are isolated, for the status.
    pub const fn set_ports_isolated(&mut self, isolated: bool) {
        self.ports_isolated = Some(isolated);
    }

    /// Whether a sync has something to do.
    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether the kernel refuses something, that is left out until it takes it.
    pub fn has_refused(&self) -> bool {
        self.progress.refused.len() > 0
    }

    /// Has what was refused tried again by the next sync.
    pub fn try_refused_again(&mut self) {
        if self.has_refused() {
            self.dirty = true;
            self.revision += 1;
        }
    }

    /// Whether everything was listed.
    pub fn has_listed_all(&self) -> bool {
        self.listed.len() == Kind::ALL.len()
    }

    /// Whether there is a state to enforce: until then the tables are left alone.
    pub fn knows_state(&self) -> bool {
        self.has_listed_all() || self.enforces_as_of().is_some()
    }

    /// Takes a change of an object.
    pub fn handle(&mut self, event: Event) {
        for event in self.put_aside(event) {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        self.dirty = true;
        self.revision += 1;
        if !self.serves && Kind::OF_SERVICES.contains(&event.kind()) {
            if let Event::Reset(kind, _) = event {
                self.listed.insert(kind);
            }
            return;
        }
        match event {
            Event::Apply(object) => {
                self.invalid.remove(&(object.kind(), object.key()));
                self.apply(object);
            }
            Event::Delete(kind, key) => {
                self.invalid.remove(&(kind, key.clone()));
                self.delete(kind, &key);
            }
            Event::Reset(kind, objects) => {
                let mut gone: BTreeSet<_> = self.keys(kind).into_iter().collect();
                if !gone.is_empty() {
                    objects.iter().for_each(|object| {
                        gone.remove(&object.key());
                    });
                }
                for key in &gone {
                    self.delete(kind, key);
                }
                self.invalid.retain(|(of, _), _| *of != kind);
                for object in objects {
                    self.apply(object);
                }
                self.listed.insert(kind);
                if kind == Kind::Node {
                    self.nodes_changed();
                }
            }
            Event::Invalid { kind, key, reason } => {
                tracing::warn!(%kind, %key, reason, "object cannot be used");
                self.invalid.insert((kind, key), reason);
            }
        }
    }

    fn apply(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                let old = self.index.namespaces.insert(name.clone(), namespace);
                if old.as_ref() != self.index.namespaces.get(&name) {
                    self.namespace_changed(&name);
                }
            }
            Object::Node(node) => {
                let is_own = node.name == self.settings.node;
                if is_own {
                    self.set_zone(node.zone().map(str::to_owned));
                }
                let name = node.name.clone();
                let old = self.index.nodes.insert(name.clone(), node);
                if old.as_ref() != self.index.nodes.get(&name) {
                    self.policies.nodes_changed();
                    self.computed_endpoints_of_zones();
                    self.nodes_changed();
                }
                if is_own {
                    self.own_node_changed();
                }
            }
            Object::Pod(pod) => {
                let key = pod.key.clone();
                self.set_pod(&key, Some(pod));
            }
            Object::Service(service) => self.set_service(service),
            Object::EndpointSlice(slice) => {
                self.slice_changes(&slice.key, Some(&slice.service));
                self.apply_slice(slice);
            }
            Object::NetworkPolicy(policy) => {
                let key = policy.key.clone();
                if self.index.policies.get(&key) == Some(&policy) {
                    return;
                }
                for problem in &policy.problems {
                    tracing::warn!(policy = %key, problem, "part of a policy matches nothing");
                }
                self.index.policies.insert(key.clone(), policy);
                self.policies.policy_changed(key);
            }
            Object::ClusterNetworkPolicy(policy) => {
                let name = policy.name.clone();
                if self.index.cluster_policies.get(&name) == Some(&policy) {
                    return;
                }
                for problem in &policy.problems {
                    tracing::warn!(policy = name, problem, "part of a policy fails closed");
                }
                self.index.cluster_policies.insert(name.clone(), policy);
                self.policies.cluster_policy_changed(name);
            }
            Object::ServiceCidr(cidr) => {
                self.index.service_cidrs.insert(cidr.name, cidr.ranges);
                self.service_cidrs_changed();
            }
        }
    }

    fn delete(&mut self, kind: Kind, key: &ObjectKey) {
        match kind {
            Kind::Namespace => {
                if self.index.namespaces.remove(&*key.name).is_some() {
                    self.namespace_changed(&key.name);
                }
            }
            Kind::Node => {
                if self.index.nodes.remove(&*key.name).is_some() {
                    self.policies.nodes_changed();
                    self.computed_endpoints_of_zones();
                    self.nodes_changed();
                }
                if *key.name == *self.settings.node {
                    self.set_zone(None);
                    self.own_node_changed();
                }
            }
            Kind::Pod => self.set_pod(key, None),
            Kind::Service => {
                self.service_progress.service_changed(key, None);
                self.proxy.remove_service(key);
                self.note_service(key, None);
            }
            Kind::EndpointSlice => {
                self.slice_changes(key, None);
                if self.proxy.remove_slice(key) {
                    self.service_progress.endpoints_changed(None);
                }
            }
            Kind::NetworkPolicy => {
                if self.index.policies.remove(key).is_some() {
                    self.policies.policy_changed(key.clone());
                }
            }
            Kind::ClusterNetworkPolicy => {
                if self.index.cluster_policies.remove(&*key.name).is_some() {
                    self.policies.cluster_policy_changed(key.name.to_string());
                }
            }
            Kind::ServiceCidr => {
                self.index.service_cidrs.remove(&*key.name);
                self.service_cidrs_changed();
            }
        }
    }

    fn set_zone(&mut self, zone: Option<String>) {
        let name = self.settings.node.clone();
        self.proxy.set_node(NodeIdentity { name, zone });
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let unnamespaced = |name: &String| ObjectKey::new("", &**name);
        match kind {
            Kind::Namespace => self.index.namespaces.keys().map(unnamespaced).collect(),
            Kind::Node => self.index.nodes.keys().map(unnamespaced).collect(),
            Kind::Pod => self.index.pods.keys().cloned().collect(),
            Kind::Service => self.proxy.service_keys().cloned().collect(),
            Kind::EndpointSlice => {
                let slices = self.proxy.slice_keys();
                slices.filter(|key| is_given(&key.name)).cloned().collect()
            }
            Kind::NetworkPolicy => self.index.policies.keys().cloned().collect(),
            Kind::ClusterNetworkPolicy => {
                let names = self.index.cluster_policies.keys();
                names.map(unnamespaced).collect()
            }
            Kind::ServiceCidr => self.index.service_cidrs.keys().map(unnamespaced).collect(),
        }
    }

    fn namespace_changed(&mut self, name: &str) {
        let pods: Vec<_> = self
            .index
            .pods_in(name)
            .map(|pod| pod.key.clone())
            .collect();
        self.policies.pods_changed(pods);
    }

    fn set_pod(&mut self, key: &ObjectKey, pod: Option<Pod>) {
        if self.index.pods.get(key) == pod.as_ref() {
            return;
        }
        self.computed_endpoints_of_pod(key);
        let weight = pod.as_ref().and_then(|pod| pod.weight.as_deref());
        self.proxy.set_pod_weight(key, weight);
        let affected = self.index.set_pod(key, pod);
        for pod in &affected {
            self.computed_endpoints_of_pod(pod);
        }
        self.policies.pods_changed(affected);
    }

    fn set_service(&mut self, service: Service) {
        let key = service.key.clone();
        self.note_service(&key, Some(&service));
        self.service_progress.service_changed(&key, Some(&service));
        self.proxy.apply_service(service);
    }

    /// Writes what has changed into the kernel.
    ///
    /// # Errors
    /// See [`SyncError`]; what was not written is tried again by the next sync.
    pub fn sync(&mut self) -> Result<(), SyncError> {
        if !self.knows_state() {
            return Err(self.not_listed());
        }
        let started = Instant::now();
        let result = self.compile_and_commit();
        self.progress.finished(started, &result);
        result
    }

    /// Which lists are still waited for, as the reason why nothing is done.
    pub fn not_listed(&self) -> SyncError {
        let missing = Kind::ALL
            .into_iter()
            .filter(|kind| !self.listed.contains(kind));
        SyncError::NotListed(missing.collect())
    }

    fn compile_and_commit(&mut self) -> Result<(), SyncError> {
        self.narrowed |= self.progress.refused.restore(&mut self.desired);
        if self.desired.ruleset().tables.is_empty() {
            self.adopt()?;
        }
        self.follow_nodes();
        self.compute_endpoints();
        if self.tried != self.revision {
            // Not whenever orphaned slots go, which the endpoint would leave behind each time.
            self.tried = self.revision;
            self.progress.refused.forget_endpoints();
            self.proxy.restore();
        }
        self.proxy.sync(&mut self.desired);
        self.narrowed |= self.policies.sync(&self.index, &mut self.desired);
        if self.narrowed {
            self.raise_generation()?;
        }
        self.dirty = false;
        let committed = self.commit();
        if committed.is_err() {
            self.dirty = true;
            return committed;
        }
        self.service_progress.synced();
        self.end_gone_connections();
        // Orphaned slots go one commit later.
        self.dirty = self.proxy.committed() | self.sweep_affinity();
        Ok(())
    }

    /// Wants the static layout and what the attachments need, and takes what the kernel
    /// holds as the state to start from.
    fn adopt(&mut self) -> Result<(), SyncError> {
        let observed = self.observe()?;
        match policy::generation(&observed) {
            Some(generation) => self.generation = generation,
            None => {
                // Flows may have marks of tables that somebody has removed.
                self.kernel.unmark_flows(GENERATION_MASK, 0)?;
            }
        }
        layout::install(&mut self.desired, self.generation);
        self.adopt_network(&observed);
        self.want_inside();
        layout::denials::set(&mut self.desired, self.denials);
        for bridge in self.settings.bridges.clone() {
            self.interfaces.entry(bridge.clone()).or_default();
            let key = ports::interface_key(&bridge);
            self.desired
                .insert(&INET, &ports::PORTS_OF_POD, key, Element::member());
        }
        let attachments: Vec<_> = self.index.attachments().values().cloned().collect();
        for attachment in &attachments {
            self.want_port(attachment);
        }
        layout::services::keep_chains(&mut self.desired, &observed);
        self.proxy.adopt(&observed);
        self.progress.adopting(&observed);
        self.desired.observe(observed);
        Ok(())
    }

    /// Has every live flow judged once more, from the next commit on.
    ///
    /// The numbers come again after 65,535 of them. No flow may carry one by then that was
    /// given before and never asked about since, so old marks are cleared first. Flows
    /// of the current number go on being allowed by it until the commit.
    ///
    /// # Errors
    /// Where that fails; the next sync tries again.
    fn raise_generation(&mut self) -> Result<(), SyncError> {
        self.narrowed = true;
        let next = match self.generation.checked_add(1) {
            Some(next) => next,
            None => {
                let current = policy::generation_mark(self.generation);
                let cleared = self.kernel.unmark_flows(GENERATION_MASK, current);
                let cleared = cleared.inspect_err(|_| self.dirty = true)?;
                tracing::info!(cleared, "generations begin anew");
                // 0 is the mark of flows that nobody has judged.
                1
            }
        };
        self.generation = next;
        self.narrowed = false;
        policy::set_generation(&mut self.desired, self.generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
