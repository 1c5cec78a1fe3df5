//! What a load balancer's health check of this node says: `healthCheckNodePort`.

use std::collections::BTreeSet;

use crate::Proxy;
use crate::index::Slice;
use crate::model::{ObjectKey, Service, ServiceType, TrafficPolicy};

/// A health check that this node answers. Only a Service of type LoadBalancer with
/// `externalTrafficPolicy: Local` has one: the load balancer is to send to nodes with
/// endpoints only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The Service.
    pub service: ObjectKey,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Number of addresses on this node with a ready endpoint, the *weight* of the node;
    /// the check fails at 0. Terminating endpoints do not count: new connections are to
    /// go elsewhere.
    pub local_endpoints: usize,
}

impl Proxy {
    /// The health checks of this node, sorted by Service.
    pub fn health_checks(&self) -> impl Iterator<Item = HealthCheck> {
        let keys = self.index.iter().map(|(key, _)| key);
        keys.filter_map(|key| self.health_check(key))
    }

    /// The health check of a Service, if it has one.
    pub fn health_check(&self, service: &ObjectKey) -> Option<HealthCheck> {
        let entry = self.index.get(service)?;
        Some(HealthCheck {
            service: service.clone(),
            port: port_of(entry.service()?)?,
            local_endpoints: self.local_endpoints(&entry.slices),
        })
    }

    fn local_endpoints(&self, slices: &[Slice]) -> usize {
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let ready_here = endpoints.filter(|endpoint| {
            endpoint.conditions.ready && endpoint.node.as_deref() == Some(&*self.node.name)
        });
        let addresses: BTreeSet<_> = ready_here.map(|endpoint| endpoint.address).collect();
        addresses.len()
    }
}

fn port_of(service: &Service) -> Option<u16> {
    let is_checked = service.kind == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local;
    service.health_check_node_port.filter(|_| is_checked)
}
