//! `discovery.k8s.io/v1` EndpointSlice.

use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::jiff::Timestamp;
use proxy::model::{EndpointSlice, SliceEndpoint, SlicePort};
use proxy::weights;

use super::service::is_managed_elsewhere;
use super::{Convert, ConvertError, object_key, parse_ip, port, protocol};
use crate::event::{Kind, Object};

/// The label that names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The annotation that says when what the slice was written for has happened.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Convert for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    /// Slices of type FQDN, slices without a Service and slices of Services that we do
    /// not serve are left out.
    fn convert(self) -> Result<Option<Object>, ConvertError> {
        let key = object_key(Self::KIND, &self.metadata)?;
        let mut annotations = self.metadata.annotations.unwrap_or_default();
        let triggered = annotations
            .get(TRIGGERED)
            // It is for a metric only: an unreadable one is none.
            .and_then(|text| text.parse::<Timestamp>().ok())
            .map(Timestamp::as_millisecond);
        let weight = annotations.remove(weights::ANNOTATION);
        let mut labels = self.metadata.labels.unwrap_or_default();
        if is_managed_elsewhere(&labels) {
            return Ok(None);
        }
        let Some(service) = labels.remove(SERVICE_NAME).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let want_v4 = match self.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => return Ok(None),
            other => {
                return Err(ConvertError::value(
                    "addressType",
                    other,
                    "use IPv4, IPv6 or FQDN",
                ));
            }
        };
        let mut endpoints = Vec::new();
        for (i, entry) in self.endpoints.into_iter().flatten().enumerate() {
            endpoints.push(endpoint(&format!("endpoints[{i}]"), entry, want_v4)?);
        }
        let mut ports = Vec::new();
        for (i, entry) in self.ports.into_iter().flatten().enumerate() {
            ports.extend(slice_port(&format!("ports[{i}]"), entry)?);
        }
        Ok(Some(Object::EndpointSlice(EndpointSlice {
            key,
            service,
            ports,
            endpoints,
            triggered,
            weight,
        })))
    }
}

fn endpoint(
    path: &str,
    entry: discovery::Endpoint,
    want_v4: bool,
) -> Result<SliceEndpoint, ConvertError> {
    let field = || format!("{path}.addresses[0]");
    let text = entry
        .addresses
        .first()
        .ok_or_else(|| ConvertError::missing(field(), "every endpoint has an address"))?;
    let address = parse_ip(text)
        .filter(|address| address.is_ipv4() == want_v4)
        .ok_or_else(|| ConvertError::value(field(), text, "use an address of addressType"))?;
    let conditions = entry.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = entry.hints.unwrap_or_default();
    Ok(SliceEndpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: entry.node_name,
        zone: entry.zone,
        hint_zones: hints
            .for_zones
            .into_iter()
            .flatten()
            .map(|z| z.name)
            .collect(),
        hint_nodes: hints
            .for_nodes
            .into_iter()
            .flatten()
            .map(|n| n.name)
            .collect(),
        pod: entry
            .target_ref
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| target.name),
    })
}

/// `None` where the entry has no number ("all ports", which no Service port means).
fn slice_port(
    path: &str,
    entry: discovery::EndpointPort,
) -> Result<Option<SlicePort>, ConvertError> {
    let Some(number) = entry.port.filter(|number| *number != 0) else {
        return Ok(None);
    };
    Ok(Some(SlicePort {
        name: entry.name.unwrap_or_default(),
        protocol: protocol(&format!("{path}.protocol"), entry.protocol.as_deref())?,
        port: port(&format!("{path}.port"), number)?,
    }))
}
