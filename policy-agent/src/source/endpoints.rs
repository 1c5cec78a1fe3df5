//! Endpoints of a Service computed from its selector, where no EndpointSlice is given.
//!
//! This is the work of the EndpointSlice controller (`k8s.io/endpointslice`,
//! `reconciler.go` and `utils.go`) for one Service at a time: the caller asks again for
//! the Services whose pods changed. A pod's addresses come from a closure, because on this
//! node the CNI attachment knows them before any status does.
//!
//! One slice has one list of ports, so pods for which a named `targetPort` resolves
//! differently go to different slices. Slices are not split by size.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy::model::{
    EndpointSlice, ObjectKey, Protocol, Service, ServicePort, SliceEndpoint, SlicePort, TargetPort,
    TrafficDistribution,
};

use crate::model::{Labels, Pod, PodPhase};

/// The ports of one slice, as an ordered key.
type PortKey = Vec<(String, Protocol, u16)>;

/// Whether the pod is to serve the Service: same namespace, every label of the selector,
/// not finished. A Service without a selector selects no pod.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    !service.selector.is_empty()
        && service.key.namespace == pod.key.namespace
        && pod.phase == PodPhase::Live
        && has_labels(&pod.labels, &service.selector)
}

/// The slices of `service`, sorted: per family of its cluster IPs and per distinct port
/// list one slice, endpoints in the order of the pods' keys.
///
/// `pods` may be all pods or any superset of those that [`selects`] holds for. `addresses`
/// gives a pod's addresses (a pod without one of the family has no endpoint in it),
/// `zone` the zone of a node.
pub fn slices_for<'a, A>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Pod>,
    addresses: impl Fn(&'a Pod) -> A,
    zone: impl Fn(&str) -> Option<String>,
) -> Vec<EndpointSlice>
where
    A: IntoIterator<Item = IpAddr>,
{
    let mut selected: Vec<&Pod> = pods.into_iter().filter(|p| selects(service, p)).collect();
    selected.sort_by_key(|pod| &pod.key);

    let mut groups: BTreeMap<(bool, PortKey), Vec<SliceEndpoint>> = BTreeMap::new();
    for pod in selected {
        let ports = resolve_ports(&service.ports, pod);
        if ports.is_empty() {
            continue;
        }
        let addresses: Vec<IpAddr> = addresses(pod).into_iter().collect();
        for is_v6 in families(service) {
            if let Some(address) = addresses.iter().find(|a| a.is_ipv6() == is_v6) {
                groups
                    .entry((is_v6, ports.clone()))
                    .or_default()
                    .push(endpoint(service, pod, *address, &zone));
            }
        }
    }
    groups
        .into_iter()
        .enumerate()
        .map(|(i, ((is_v6, ports), endpoints))| slice(service, i, is_v6, ports, endpoints))
        .collect()
}

/// Families of the cluster IPs, IPv4 first; true is IPv6.
fn families(service: &Service) -> impl Iterator<Item = bool> {
    [false, true]
        .into_iter()
        .filter(|is_v6| service.cluster_ips.iter().any(|ip| ip.is_ipv6() == *is_v6))
}

fn has_labels(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// The Service's ports on that pod. A name that the pod does not have leaves that port
/// out for that pod alone.
fn resolve_ports(ports: &[ServicePort], pod: &Pod) -> PortKey {
    let resolve = |port: &ServicePort| match &port.target_port {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod
            .ports
            .iter()
            .find(|p| p.name == *name && p.protocol == port.protocol)
            .map(|p| p.port),
    };
    ports
        .iter()
        .filter_map(|port| Some((port.name.clone(), port.protocol, resolve(port)?)))
        .collect()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: IpAddr,
    zone: impl Fn(&str) -> Option<String>,
) -> SliceEndpoint {
    let ready = service.publish_not_ready || (pod.ready && !pod.terminating);
    let zone = pod.node.as_deref().and_then(zone);
    let (by_node, by_zone) = match service.traffic_distribution {
        TrafficDistribution::None | TrafficDistribution::Unknown => (false, false),
        TrafficDistribution::SameZone => (false, ready),
        TrafficDistribution::SameNode => (ready, ready),
    };
    SliceEndpoint {
        address,
        ready,
        serving: pod.ready,
        terminating: pod.terminating,
        node: pod.node.clone(),
        hint_zones: zone.clone().filter(|_| by_zone).into_iter().collect(),
        hint_nodes: pod.node.clone().filter(|_| by_node).into_iter().collect(),
        zone,
        pod: Some(pod.key.name.to_string()),
    }
}

fn slice(
    service: &Service,
    ordinal: usize,
    is_v6: bool,
    ports: PortKey,
    endpoints: Vec<SliceEndpoint>,
) -> EndpointSlice {
    let family = if is_v6 { "ipv6" } else { "ipv4" };
    let name = format!("{}-{family}-{ordinal}", service.key.name);
    EndpointSlice {
        key: ObjectKey::new(&*service.key.namespace, name),
        service: service.key.name.to_string(),
        ports: ports
            .into_iter()
            .map(|(name, protocol, port)| SlicePort {
                name,
                protocol,
                port,
            })
            .collect(),
        endpoints,
        triggered: None,
        weight: None,
    }
}

#[cfg(test)]
mod tests;
