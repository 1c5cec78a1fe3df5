//! `v1` Service.
//!
//! Not served, hence no object: ExternalName (a DNS alias), headless Services
//! (`clusterIP: None`: DNS names their pods, there is no address to serve) and those
//! labelled as somebody else's. This is what kube-proxy watches and skips
//! (`cmd/kube-proxy/app/server.go`, `pkg/proxy/util/utils.go` ShouldSkipService), so a
//! [`Service`] that reaches the index always has a cluster IP.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use proxy::model::{
    Service, ServicePort, ServiceType, TargetPort, TrafficDistribution, TrafficPolicy,
};

use super::{
    Convert, ConvertError, PortRef, created, object_key, parse_ip, port, port_ref, protocol,
};
use crate::event::{Kind, Object};
use crate::model::Labels;

/// Set on Services and slices that another proxy serves.
pub(super) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Set on slices of headless Services.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// `kubectl apply` stores the whole object in it; nobody reads it here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is absent.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// Longest affinity that the API server accepts: a day.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Whether another proxy, or nobody, serves the Service of an object with these labels.
pub(super) fn is_managed_elsewhere(labels: &Labels) -> bool {
    labels.contains_key(PROXY_NAME) || labels.contains_key(HEADLESS)
}

impl Convert for core::Service {
    const KIND: Kind = Kind::Service;

    fn convert(mut self) -> Result<Option<Object>, ConvertError> {
        let key = object_key(Self::KIND, &self.metadata)?;
        if self
            .metadata
            .labels
            .as_ref()
            .is_some_and(is_managed_elsewhere)
        {
            return Ok(None);
        }
        let spec = self.spec.unwrap_or_default();
        let Some(kind) = service_type(spec.type_.as_deref())? else {
            return Ok(None);
        };
        let Some(cluster_ips) = cluster_ips(&spec)? else {
            return Ok(None);
        };
        let load_balancer_ips = match kind {
            ServiceType::LoadBalancer => load_balancer_ips(self.status.unwrap_or_default())?,
            _ => Vec::new(),
        };
        let mut annotations = self.metadata.annotations.take().unwrap_or_default();
        annotations.remove(LAST_APPLIED);
        Ok(Some(Object::Service(Service {
            key,
            uid: self.metadata.uid.take().unwrap_or_default(),
            created: created(&self.metadata),
            kind,
            cluster_ips,
            external_ips: addresses("spec.externalIPs", spec.external_ips.iter().flatten())?,
            load_balancer_ips,
            affinity_seconds: affinity_seconds(&spec)?,
            internal_policy: traffic_policy(
                "spec.internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
            )?,
            external_policy: traffic_policy(
                "spec.externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
            )?,
            traffic_distribution: traffic_distribution(spec.traffic_distribution.as_deref()),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            health_check_node_port: optional_port(
                "spec.healthCheckNodePort",
                spec.health_check_node_port,
            )?,
            ports: ports(spec.ports.unwrap_or_default())?,
            source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
            selector: spec.selector.unwrap_or_default(),
            annotations,
        })))
    }
}

/// `None` for ExternalName.
fn service_type(value: Option<&str>) -> Result<Option<ServiceType>, ConvertError> {
    match value.unwrap_or("ClusterIP") {
        "ClusterIP" => Ok(Some(ServiceType::ClusterIp)),
        "NodePort" => Ok(Some(ServiceType::NodePort)),
        "LoadBalancer" => Ok(Some(ServiceType::LoadBalancer)),
        "ExternalName" => Ok(None),
        other => Err(ConvertError::value(
            "spec.type",
            other,
            "use ClusterIP, NodePort, LoadBalancer or ExternalName",
        )),
    }
}

/// `clusterIPs`, or `clusterIP` alone; `None` for a headless Service.
fn cluster_ips(spec: &core::ServiceSpec) -> Result<Option<Vec<IpAddr>>, ConvertError> {
    let listed: Vec<&String> = match spec.cluster_ips.as_deref() {
        Some(ips) if !ips.is_empty() => ips.iter().collect(),
        _ => spec.cluster_ip.iter().filter(|ip| !ip.is_empty()).collect(),
    };
    if listed.iter().any(|ip| ip.as_str() == "None") {
        return Ok(None);
    }
    if listed.is_empty() {
        return Err(ConvertError::missing(
            "spec.clusterIP",
            "set spec.clusterIP to a free address, because nothing allocates one without an API \
             server, or to None for a headless Service",
        ));
    }
    let ips = addresses("spec.clusterIPs", listed.iter().copied())?;
    let unusable = |ip: &IpAddr| ip.is_unspecified() || ip.is_multicast();
    if let Some(at) = ips.iter().position(unusable) {
        return Err(ConvertError::value(
            format!("spec.clusterIPs[{at}]"),
            listed[at],
            "use a unicast IP address",
        ));
    }
    let v4 = ips.iter().filter(|ip| ip.is_ipv4()).count();
    if v4 > 1 || ips.len() - v4 > 1 {
        return Err(ConvertError::conflict(
            "spec.clusterIPs",
            "lists two addresses of one family: keep one per family",
        ));
    }
    Ok(Some(ips))
}

/// Addresses that no Service can have are read, too: where they are not its cluster IPs, what
/// is wrong with them concerns them alone. Controllers have written 0.0.0.0 as the address of a
/// load balancer that has none yet.
fn addresses<'a>(
    path: &str,
    listed: impl Iterator<Item = &'a String>,
) -> Result<Vec<IpAddr>, ConvertError> {
    listed
        .enumerate()
        .map(|(i, text)| {
            parse_ip(text).ok_or_else(|| {
                ConvertError::value(format!("{path}[{i}]"), text, "use a unicast IP address")
            })
        })
        .collect()
}

/// `status.loadBalancer.ingress[].ip`; a load balancer with `ipMode: Proxy` sends to
/// node ports, and its address must stay reachable through it.
fn load_balancer_ips(status: core::ServiceStatus) -> Result<Vec<IpAddr>, ConvertError> {
    let ingress = status.load_balancer.and_then(|lb| lb.ingress);
    let vips: Vec<String> = ingress
        .into_iter()
        .flatten()
        .filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|entry| entry.ip)
        .filter(|ip| !ip.is_empty())
        .collect();
    addresses("status.loadBalancer.ingress", vips.iter())
}

fn affinity_seconds(spec: &core::ServiceSpec) -> Result<Option<u32>, ConvertError> {
    match spec.session_affinity.as_deref().unwrap_or("None") {
        "None" | "" => return Ok(None),
        "ClientIP" => {}
        other => {
            return Err(ConvertError::value(
                "spec.sessionAffinity",
                other,
                "use None or ClientIP",
            ));
        }
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .unwrap_or(DEFAULT_AFFINITY_SECONDS);
    u32::try_from(seconds)
        .ok()
        .filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds))
        .map(Some)
        .ok_or_else(|| {
            ConvertError::value(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                &seconds,
                "use 1 to 86400",
            )
        })
}

fn traffic_policy(field: &str, value: Option<&str>) -> Result<TrafficPolicy, ConvertError> {
    match value.unwrap_or("Cluster") {
        "Cluster" | "" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        other => Err(ConvertError::value(field, other, "use Cluster or Local")),
    }
}

fn traffic_distribution(value: Option<&str>) -> TrafficDistribution {
    match value.unwrap_or_default() {
        "" => TrafficDistribution::None,
        "PreferSameZone" | "PreferClose" => TrafficDistribution::SameZone,
        "PreferSameNode" => TrafficDistribution::SameNode,
        _ => TrafficDistribution::Unknown,
    }
}

/// 0 and absent are both "none".
fn optional_port(field: &str, value: Option<i32>) -> Result<Option<u16>, ConvertError> {
    value
        .filter(|number| *number != 0)
        .map(|number| port(field, number))
        .transpose()
}

fn ports(entries: Vec<core::ServicePort>) -> Result<Vec<ServicePort>, ConvertError> {
    let several = entries.len() > 1;
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::with_capacity(entries.len());
    for (i, entry) in entries.into_iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let parsed = service_port(&path, entry)?;
        if several && parsed.name.is_empty() {
            return Err(ConvertError::missing(
                format!("{path}.name"),
                "name every port of a Service that has several",
            ));
        }
        if !names.insert(parsed.name.clone()) {
            return Err(ConvertError::value(
                format!("{path}.name"),
                &parsed.name,
                "another port has that name: rename one",
            ));
        }
        if !numbers.insert((parsed.protocol, parsed.port)) {
            return Err(ConvertError::value(
                format!("{path}.port"),
                &parsed.port,
                "another port has that number and protocol: remove one",
            ));
        }
        ports.push(parsed);
    }
    Ok(ports)
}

fn service_port(path: &str, entry: core::ServicePort) -> Result<ServicePort, ConvertError> {
    let number = port(&format!("{path}.port"), entry.port)?;
    let target = match entry.target_port {
        None => TargetPort::Number(number),
        Some(target) if is_unset(&target) => TargetPort::Number(number),
        Some(target) => match port_ref(&format!("{path}.targetPort"), target)? {
            PortRef::Number(target) => TargetPort::Number(target),
            PortRef::Name(name) => TargetPort::Name(name),
        },
    };
    Ok(ServicePort {
        name: entry.name.unwrap_or_default(),
        protocol: protocol(&format!("{path}.protocol"), entry.protocol.as_deref())?,
        port: number,
        node_port: optional_port(&format!("{path}.nodePort"), entry.node_port)?,
        target_port: target,
    })
}

/// 0 and the empty string are defaulted like an absent value (`SetDefaults_Service`).
fn is_unset(target: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString) -> bool {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::{Int, String};
    match target {
        Int(number) => *number == 0,
        String(name) => name.is_empty(),
    }
}
