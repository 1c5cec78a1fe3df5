//! The objects as they came, in the form that compiling needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::frontend::Plan;
use crate::hash::HashMap;
use crate::intern::Pool;
use crate::model::{
    EndpointSlice, ObjectKey, Service, SliceEndpoint, SlicePort, TrafficDistribution,
};
use crate::topology::{Conditions, Hints};

/// Services with their slices. Either can come first.
#[derive(Default, Debug)]
pub(crate) struct Index {
    entries: BTreeMap<ObjectKey, Entry>,
    /// The name of a slice's Service, by the slice: a deletion has only the key.
    services: HashMap<ObjectKey, Arc<str>>,
    names: Pool<str>,
    hints: Pool<Hints>,
    /// Entries to be compiled by the next sync, see [`Entry::is_noted`].
    noted: Vec<ObjectKey>,
}

/// A Service and its slices.
#[derive(Default, Debug)]
pub(crate) struct Entry {
    /// The Service; `None` where slices came first or have stayed behind.
    pub(crate) service: Option<PlannedService>,
    /// Slices, sorted by name.
    pub(crate) slices: Vec<Slice>,
    /// Whether it waits for the next sync already.
    is_noted: bool,
}

/// A Service and what it is to be reached by.
#[derive(Clone, Debug)]
pub(crate) struct PlannedService {
    pub(crate) service: Arc<Service>,
    pub(crate) plan: Arc<Plan>,
}

/// An EndpointSlice.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Slice {
    pub(crate) name: Arc<str>,
    /// Ports of every endpoint.
    pub(crate) ports: Box<[SlicePort]>,
    /// Endpoints.
    pub(crate) endpoints: Box<[Endpoint]>,
    /// The names of their pods, see [`Slice::endpoints`].
    pods: Box<str>,
    /// What the slice says of their weight.
    pub(crate) weight: Option<Box<str>>,
}

/// An endpoint of a slice, in 64 bytes: there are many.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    /// Address.
    pub(crate) address: IpAddr,
    /// Conditions.
    pub(crate) conditions: Conditions,
    /// Node.
    pub(crate) node: Option<Arc<str>>,
    /// Zone.
    pub(crate) zone: Option<Arc<str>>,
    /// For whom it is; `None`: nothing is said.
    pub(crate) hints: Option<Arc<Hints>>,
}

impl Entry {
    /// The Service.
    pub(crate) fn service(&self) -> Option<&Service> {
        self.service.as_ref().map(|planned| &*planned.service)
    }
}

impl Index {
    /// The entry of a Service.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All entries, sorted by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Entry)> {
        self.entries.iter()
    }

    /// The Service of a slice.
    pub(crate) fn service_of(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        let service = self.services.get(slice)?;
        Some(ObjectKey::new(
            Arc::clone(&slice.namespace),
            Arc::clone(service),
        ))
    }

    /// The keys of all slices, in no order.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// Has the Service compiled by the next sync.
    pub(crate) fn note(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            note(&mut self.noted, key, entry);
        }
    }

    /// The same for those that the condition holds for.
    pub(crate) fn note_all(&mut self, concerned: impl Fn(&Entry) -> bool) {
        for (key, entry) in &mut self.entries {
            if concerned(entry) {
                note(&mut self.noted, key, entry);
            }
        }
    }

    /// The Services to be compiled, in the order in which they have changed.
    pub(crate) fn take_noted(&mut self) -> Vec<ObjectKey> {
        std::mem::take(&mut self.noted)
    }

    /// One of them, which from now on can be noted again.
    pub(crate) fn begin(&mut self, key: &ObjectKey) -> Option<&Entry> {
        let entry = self.entries.get_mut(key)?;
        entry.is_noted = false;
        Some(entry)
    }

    /// Puts the Service in, with what `plan` makes of it. Returns what it was and what it
    /// is, where something has changed.
    pub(crate) fn set_service(
        &mut self,
        mut service: Service,
        plan: impl FnOnce(&Service) -> Plan,
    ) -> Option<(Option<PlannedService>, PlannedService)> {
        // Endpoints are given: these are for who computes them.
        service.selector.clear();
        service.traffic_distribution = TrafficDistribution::None;
        let key = service.key.clone();
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.service() == Some(&service) {
            return None;
        }
        let new = PlannedService {
            plan: Arc::new(plan(&service)),
            service: Arc::new(service),
        };
        note(&mut self.noted, &key, entry);
        Some((entry.service.replace(new.clone()), new))
    }

    /// Gives each Service what `plan` makes of it.
    pub(crate) fn plan_again(&mut self, plan: impl Fn(&Service) -> Plan) {
        for (key, entry) in &mut self.entries {
            if let Some(planned) = &mut entry.service {
                planned.plan = Arc::new(plan(&planned.service));
                note(&mut self.noted, key, entry);
            }
        }
    }

    /// All Services with their plans.
    pub(crate) fn planned(&self) -> Vec<PlannedService> {
        let services = self.entries.values().flat_map(|entry| &entry.service);
        services.cloned().collect()
    }

    /// Takes the Service out.
    pub(crate) fn remove_service(&mut self, key: &ObjectKey) -> Option<PlannedService> {
        let entry = self.entries.get_mut(key)?;
        let old = entry.service.take();
        self.drop_if_empty(key);
        old
    }

    /// Puts the slice in. Returns whether that changes endpoints.
    pub(crate) fn set_slice(&mut self, slice: EndpointSlice) -> bool {
        let name = self.names.intern(&*slice.service);
        let owner = ObjectKey::new(Arc::clone(&slice.key.namespace), Arc::clone(&name));
        let before = self.services.insert(slice.key.clone(), name);
        let has_moved = before.is_some_and(|before| {
            let is_other = before != owner.name;
            if is_other {
                let before = ObjectKey::new(Arc::clone(&slice.key.namespace), before);
                self.take_slice(&before, &slice.key.name);
            }
            is_other
        });
        let new = Slice {
            name: slice.key.name,
            ports: slice.ports.into(),
            pods: join_pods(&slice.endpoints),
            endpoints: self.endpoints(slice.endpoints),
            weight: slice.weight.map(Into::into),
        };
        let entry = self.entries.entry(owner.clone()).or_default();
        let slices = &mut entry.slices;
        match slices.binary_search_by(|old| old.name.cmp(&new.name)) {
            Ok(at) if slices[at] == new => return has_moved,
            Ok(at) => slices[at] = new,
            Err(at) => slices.insert(at, new),
        }
        note(&mut self.noted, &owner, entry);
        true
    }

    /// Takes the slice out. Returns whether there was one.
    pub(crate) fn remove_slice(&mut self, key: &ObjectKey) -> bool {
        let Some(service) = self.services.remove(key) else {
            return false;
        };
        let owner = ObjectKey::new(Arc::clone(&key.namespace), service);
        self.take_slice(&owner, &key.name);
        true
    }

    fn take_slice(&mut self, owner: &ObjectKey, name: &str) {
        if let Some(entry) = self.entries.get_mut(owner) {
            entry.slices.retain(|slice| &*slice.name != name);
            note(&mut self.noted, owner, entry);
            self.drop_if_empty(owner);
        }
    }

    fn drop_if_empty(&mut self, key: &ObjectKey) {
        let entry = self.entries.get(key);
        if entry.is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.entries.remove(key);
        }
    }

    fn endpoints(&mut self, endpoints: Vec<SliceEndpoint>) -> Box<[Endpoint]> {
        let compact = |endpoint: SliceEndpoint| {
            let hints = Hints {
                nodes: endpoint.hint_nodes,
                zones: endpoint.hint_zones,
            };
            let mut shared = |name: Option<String>| name.map(|n| self.names.intern(n.as_str()));
            Endpoint {
                address: endpoint.address,
                conditions: Conditions {
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                },
                node: shared(endpoint.node),
                zone: shared(endpoint.zone),
                hints: (hints != Hints::default()).then(|| self.hints.intern(hints)),
            }
        };
        endpoints.into_iter().map(compact).collect()
    }
}

impl Slice {
    /// Whether an endpoint says for whom it is.
    pub(crate) fn has_hints(&self) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| endpoint.hints.is_some())
    }

    /// The endpoints, with the names of their pods.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, Option<&str>)> {
        let names = self.pods.split(BETWEEN_PODS);
        let names = names.map(|name| Some(name).filter(|name| !name.is_empty()));
        self.endpoints
            .iter()
            .zip(names.chain(std::iter::repeat(None)))
    }
}

/// No name of a pod has it.
const BETWEEN_PODS: char = '/';

/// All names in one text: they are asked for where there are weights, and two strings for each
/// endpoint would be most of what it takes.
fn join_pods(endpoints: &[SliceEndpoint]) -> Box<str> {
    let mut joined = String::new();
    if endpoints.iter().any(|endpoint| endpoint.pod.is_some()) {
        for endpoint in endpoints {
            joined.push_str(endpoint.pod.as_deref().unwrap_or_default());
            joined.push(BETWEEN_PODS);
        }
    }
    joined.into()
}

fn note(noted: &mut Vec<ObjectKey>, key: &ObjectKey, entry: &mut Entry) {
    if !std::mem::replace(&mut entry.is_noted, true) {
        noted.push(key.clone());
    }
}
