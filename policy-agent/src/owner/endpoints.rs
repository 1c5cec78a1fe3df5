//! Endpoints from selectors, where no EndpointSlice says them.
//!
//! In a cluster a controller writes EndpointSlices. Manifests rarely have them, so the
//! owner does the controller's part, for Services with a selector and without slices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataplane::kernel::Kernel;
use proxy::model::{ObjectKey, Service, TrafficDistribution};

use super::Owner;
use crate::index::in_namespace;
use crate::source::endpoints::{selects, slices_for};

/// Begins the names of slices that were computed. No object has such a name: one that is
/// given is never taken for one of them.
const COMPUTED: char = ':';

/// Whether a slice of the name is an object of the source.
pub(super) fn is_given(name: &str) -> bool {
    !name.starts_with(COMPUTED)
}

/// What was computed, and what must be again.
#[derive(Debug, Default)]
pub(super) struct ComputedEndpoints {
    /// With their selectors, which the proxy does not keep.
    services: BTreeMap<ObjectKey, Service>,
    dirty: BTreeSet<ObjectKey>,
    /// Keys of the slices given to the proxy, by Service.
    slices: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
}

impl<K: Kernel> Owner<K> {
    /// The Service is new, different, or with `None` gone.
    pub(super) fn note_service(&mut self, key: &ObjectKey, service: Option<&Service>) {
        if !self.settings.compute_endpoints {
            return;
        }
        let distribution = service.map(|service| service.traffic_distribution);
        if distribution == Some(TrafficDistribution::Unknown) {
            tracing::warn!(
                service = %key,
                "spec.trafficDistribution is not known, no endpoint is preferred: use \
                 PreferSameZone or PreferSameNode"
            );
        }
        match service {
            Some(service) => self.endpoints.services.insert(key.clone(), service.clone()),
            None => self.endpoints.services.remove(key),
        };
        self.endpoints.dirty.insert(key.clone());
    }

    /// The pod has changed, or is about to: Services that select it as it is now.
    pub(super) fn computed_endpoints_of_pod(&mut self, pod: &ObjectKey) {
        if !self.settings.compute_endpoints {
            return;
        }
        let Some(pod) = self.index.pods.get(pod) else {
            return;
        };
        let services = in_namespace(&self.endpoints.services, &pod.key.namespace);
        let selecting = services.filter(|service| selects(service, pod));
        let keys: Vec<_> = selecting.map(|service| service.key.clone()).collect();
        self.endpoints.dirty.extend(keys);
    }

    /// A Node has changed: endpoints on it may be in another zone.
    pub(super) fn computed_endpoints_of_zones(&mut self) {
        let services = self.endpoints.services.keys().cloned();
        self.endpoints.dirty.extend(services);
    }

    /// A slice that is given comes, changes, or with no `service` goes. It may have been of
    /// another Service.
    pub(super) fn slice_changes(&mut self, slice: &ObjectKey, service: Option<&str>) {
        if !self.settings.compute_endpoints {
            return;
        }
        let before = self.proxy.service_of(slice);
        let now = service.map(|service| ObjectKey::new(Arc::clone(&slice.namespace), service));
        self.endpoints.dirty.extend(before.into_iter().chain(now));
    }

    /// Computes what has changed and tells the proxy.
    pub(super) fn compute_endpoints(&mut self) {
        for key in std::mem::take(&mut self.endpoints.dirty) {
            let has_given = self.proxy.slices_of(&key).any(is_given);
            let service = self.endpoints.services.get(&key).filter(|_| !has_given);
            let slices = service.map(|service| {
                slices_for(
                    service,
                    self.index.pods_in(&key.namespace),
                    |pod| self.index.addresses(pod),
                    |node| {
                        let node = self.index.nodes.get(node)?;
                        node.zone().map(str::to_owned)
                    },
                )
            });
            let mut slices = slices.unwrap_or_default();
            for slice in &mut slices {
                slice.key.name = format!("{COMPUTED}{}", slice.key.name).into();
            }
            let now: BTreeSet<_> = slices.iter().map(|slice| slice.key.clone()).collect();
            let before = self.endpoints.slices.remove(&key).unwrap_or_default();
            for gone in before.difference(&now) {
                self.proxy.remove_slice(gone);
            }
            for slice in slices {
                self.proxy.apply_slice(slice);
            }
            if !now.is_empty() {
                self.endpoints.slices.insert(key, now);
            }
        }
    }
}
