//! `v1` Pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use proxy::weights;

use super::{Convert, ConvertError, created, labels, object_key, parse_ip, port, protocol};
use crate::event::{Kind, Object};
use crate::model::{ContainerPort, Pod, PodPhase};
use crate::source::narrow::{Fields, METADATA};

/// Of a container.
const CONTAINER: Fields = Fields::Only(&[("ports", Fields::All), ("restartPolicy", Fields::All)]);

impl Convert for core::Pod {
    const KIND: Kind = Kind::Pod;
    const FIELDS: Fields = Fields::Only(&[
        ("metadata", METADATA),
        (
            "spec",
            Fields::Only(&[
                ("nodeName", Fields::All),
                ("hostNetwork", Fields::All),
                ("containers", CONTAINER),
                ("initContainers", CONTAINER),
            ]),
        ),
        (
            "status",
            Fields::Only(&[
                ("phase", Fields::All),
                ("podIP", Fields::All),
                ("podIPs", Fields::All),
                (
                    "conditions",
                    Fields::Only(&[("type", Fields::All), ("status", Fields::All)]),
                ),
            ]),
        ),
    ]);

    fn convert(mut self) -> Result<Option<Object>, ConvertError> {
        let key = object_key(Self::KIND, &self.metadata)?;
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        Ok(Some(Object::Pod(Pod {
            key,
            uid: self.metadata.uid.take().unwrap_or_default(),
            labels: labels(&mut self.metadata),
            ports: named_ports(&spec)?,
            node: spec.node_name.filter(|name| !name.is_empty()),
            host_network: spec.host_network.unwrap_or(false),
            phase: match status.phase.as_deref() {
                Some("Succeeded" | "Failed") => PodPhase::Finished,
                _ => PodPhase::Live,
            },
            ready: is_ready(&status),
            ips: addresses(status)?,
            terminating: self.metadata.deletion_timestamp.is_some(),
            created: created(&self.metadata),
            weight: self
                .metadata
                .annotations
                .and_then(|mut annotations| annotations.remove(weights::ANNOTATION)),
        })))
    }
}

/// `status.podIPs`, or `status.podIP` alone.
fn addresses(status: core::PodStatus) -> Result<Vec<IpAddr>, ConvertError> {
    let listed: Vec<String> = status
        .pod_ips
        .unwrap_or_default()
        .into_iter()
        .map(|entry| entry.ip)
        .filter(|ip| !ip.is_empty())
        .collect();
    let (field, listed) = match listed.is_empty() {
        false => ("status.podIPs", listed),
        true => (
            "status.podIP",
            status
                .pod_ip
                .into_iter()
                .filter(|ip| !ip.is_empty())
                .collect(),
        ),
    };
    let parse = |ip: &String| {
        parse_ip(ip).ok_or_else(|| ConvertError::value(field, ip, "use an IP address"))
    };
    listed.iter().map(parse).collect()
}

/// A pod without any conditions was written by hand: it counts as ready. The kubelet
/// sets conditions before it reports an address.
fn is_ready(status: &core::PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.is_empty()
        || conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Named ports of the containers and then of the native sidecars (init containers with
/// `restartPolicy: Always`), which the EndpointSlice controller looks up in that order.
fn named_ports(spec: &core::PodSpec) -> Result<Vec<ContainerPort>, ConvertError> {
    let mut named = Vec::new();
    for (i, container) in spec.containers.iter().enumerate() {
        add_named_ports(&format!("spec.containers[{i}]"), container, &mut named)?;
    }
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        if container.restart_policy.as_deref() == Some("Always") {
            add_named_ports(&format!("spec.initContainers[{i}]"), container, &mut named)?;
        }
    }
    Ok(named)
}

fn add_named_ports(
    path: &str,
    container: &core::Container,
    named: &mut Vec<ContainerPort>,
) -> Result<(), ConvertError> {
    for (i, entry) in container.ports.iter().flatten().enumerate() {
        let Some(name) = entry.name.as_ref().filter(|name| !name.is_empty()) else {
            continue;
        };
        let path = format!("{path}.ports[{i}]");
        named.push(ContainerPort {
            name: name.clone(),
            protocol: protocol(&format!("{path}.protocol"), entry.protocol.as_deref())?,
            port: port(&format!("{path}.containerPort"), entry.container_port)?,
        });
    }
    Ok(())
}
