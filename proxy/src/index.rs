//! The objects as they came, in the form that compiling needs.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::intern::Pool;
use crate::model::{EndpointSlice, ObjectKey, Service, SliceEndpoint, SlicePort};
use crate::topology::{Conditions, Hints};

/// Services with their slices. Either can come first.
#[derive(Default, Debug)]
pub(crate) struct Index {
    entries: BTreeMap<ObjectKey, Entry>,
    /// The name of a slice's Service, by the slice: a deletion has only the key.
    services: HashMap<ObjectKey, Arc<str>>,
    names: Pool<str>,
    hints: Pool<Hints>,
}

/// A Service and its slices.
#[derive(Default, Debug)]
pub(crate) struct Entry {
    /// The Service; `None` where slices came first or have stayed behind.
    pub(crate) service: Option<Arc<Service>>,
    /// Slices, sorted by name.
    pub(crate) slices: Vec<Slice>,
}

/// An EndpointSlice.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Slice {
    name: Box<str>,
    /// Ports of every endpoint.
    pub(crate) ports: Box<[SlicePort]>,
    /// Endpoints.
    pub(crate) endpoints: Box<[Endpoint]>,
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

impl Index {
    /// The entry of a Service.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All entries, sorted by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Entry)> {
        self.entries.iter()
    }

    /// Puts the Service in. Returns what it was and what it is, the latter only where
    /// something has changed.
    pub(crate) fn set_service(
        &mut self,
        mut service: Service,
    ) -> (Option<Arc<Service>>, Option<Arc<Service>>) {
        // Endpoints are given: the selector is for who computes them.
        service.selector.clear();
        let entry = self.entries.entry(service.key.clone()).or_default();
        if entry.service.as_deref() == Some(&service) {
            return (entry.service.clone(), None);
        }
        let new = Arc::new(service);
        (entry.service.replace(Arc::clone(&new)), Some(new))
    }

    /// Takes the Service out.
    pub(crate) fn remove_service(&mut self, key: &ObjectKey) -> Option<Arc<Service>> {
        let entry = self.entries.get_mut(key)?;
        let old = entry.service.take();
        self.drop_if_empty(key);
        old
    }

    /// Puts the slice in. Returns the Services whose endpoints it changes.
    pub(crate) fn set_slice(&mut self, slice: EndpointSlice) -> Vec<ObjectKey> {
        let owner = ObjectKey::new(slice.key.namespace.as_str(), slice.service.as_str());
        let mut changed = Vec::new();
        if let Some(before) = self.services.get(&slice.key)
            && **before != *slice.service
        {
            changed.extend(self.remove_slice(&slice.key));
        }
        let name = self.names.intern(slice.service.as_str());
        self.services.insert(slice.key.clone(), name);

        let new = Slice {
            name: slice.key.name.into(),
            ports: slice.ports.into(),
            endpoints: self.endpoints(slice.endpoints),
        };
        let slices = &mut self.entries.entry(owner.clone()).or_default().slices;
        match slices.binary_search_by(|old| old.name.cmp(&new.name)) {
            Ok(at) if slices[at] == new => return changed,
            Ok(at) => slices[at] = new,
            Err(at) => slices.insert(at, new),
        }
        changed.push(owner);
        changed
    }

    /// Takes the slice out. Returns the Service whose endpoints that changes.
    pub(crate) fn remove_slice(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        let service = self.services.remove(key)?;
        let owner = ObjectKey::new(key.namespace.as_str(), &*service);
        let entry = self.entries.get_mut(&owner)?;
        entry.slices.retain(|slice| *slice.name != *key.name);
        self.drop_if_empty(&owner);
        Some(owner)
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
}
