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
    /// the check fails at 0. Of two families it is that with more: a pod with an address of
    /// each is one endpoint. Endpoints that terminate or weigh 0 do not count: new connections
    /// are to go elsewhere.
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
        let service = entry.service()?;
        Some(HealthCheck {
            service: service.key.clone(),
            port: port_of(service)?,
            local_endpoints: self.local_endpoints(service, &entry.slices),
        })
    }

    fn local_endpoints(&self, service: &Service, slices: &[Slice]) -> usize {
        let ready_here = slices.iter().flat_map(|slice| {
            let endpoints = slice.endpoints().filter(|(endpoint, pod)| {
                endpoint.conditions.ready
                    && endpoint.node.as_deref() == Some(&*self.node.name)
                    && self.weights.admits(service, *pod, slice)
            });
            endpoints.map(|(endpoint, _)| endpoint.address)
        });
        let addresses: BTreeSet<_> = ready_here.collect();
        let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
        v4.max(addresses.len() - v4)
    }
}

fn port_of(service: &Service) -> Option<u16> {
    let is_checked = service.kind == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local;
    service.health_check_node_port.filter(|_| is_checked)
}
