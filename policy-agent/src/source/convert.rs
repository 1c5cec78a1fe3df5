//! Kubernetes types to the model, one file per kind.
//!
//! A conversion has three outcomes: the object, nothing (it exists but is no
//! business of ours, such as an ExternalName Service), or an error that makes the whole
//! object invalid. NetworkPolicies have a fourth: what of them cannot be understood
//! is listed in the policy and matches nothing, so that the pods stay isolated.
//!
//! Defaults are those of the API server (`pkg/apis/*/v1/defaults.go`), validation
//! is that of `pkg/apis/*/validation` as far as the model depends on it.

mod address;
mod cluster_network_policy;
mod endpoint_slice;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod selector;
mod service;
mod service_cidr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proxy::model::{ObjectKey, Protocol};

use super::narrow::Fields;
use crate::event::{Kind, Object};
use crate::model::Labels;

pub use address::{parse_cidr, parse_ip};
pub use cluster_network_policy::ClusterNetworkPolicy;

/// Namespace of a namespaced object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// `metadata` of kinds with annotations of ours.
const ANNOTATED: Fields = Fields::AllBut(&[("managedFields", Fields::None)]);

/// A Kubernetes type that has a place in the model.
pub trait Convert: Sized {
    /// Its kind.
    const KIND: Kind;

    /// What the conversion uses, and the watch: nothing else is read of what the API server
    /// sends.
    const FIELDS: Fields = Fields::AllBut(&[("metadata", ANNOTATED)]);

    /// The object in the model, or `None` where it is no business of ours.
    ///
    /// # Errors
    /// Where a field cannot be understood; see [`ConvertError`].
    fn convert(self) -> Result<Option<Object>, ConvertError>;
}

/// Why an object cannot be used: the field, the value and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConvertError {
    /// A field that we cannot do without is absent.
    #[error("{field} is missing: {remedy}")]
    Missing {
        /// Path of the field.
        field: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A field has a value that means nothing to us.
    #[error("{field} is {value:?}: {remedy}")]
    Value {
        /// Path of the field.
        field: String,
        /// The value as written.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A field contradicts another one.
    #[error("{field}: {problem}")]
    Conflict {
        /// Path of the field.
        field: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl ConvertError {
    fn value(
        field: impl Into<String>,
        value: &(impl ToString + ?Sized),
        remedy: &'static str,
    ) -> Self {
        Self::Value {
            field: field.into(),
            value: value.to_string(),
            remedy,
        }
    }

    fn missing(field: impl Into<String>, remedy: &'static str) -> Self {
        Self::Missing {
            field: field.into(),
            remedy,
        }
    }

    fn conflict(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Conflict {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// The key of an object of that kind, with the default namespace where a namespaced
/// object names none.
///
/// # Errors
/// Where the object has no name.
pub fn object_key(kind: Kind, metadata: &ObjectMeta) -> Result<ObjectKey, ConvertError> {
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(ConvertError::missing("metadata.name", "name the object"));
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    Ok(match (kind.is_namespaced(), namespace) {
        (false, _) => ObjectKey::new("", name),
        (true, "") => ObjectKey::new(DEFAULT_NAMESPACE, name),
        (true, namespace) => ObjectKey::new(namespace, name),
    })
}

fn labels(metadata: &mut ObjectMeta) -> Labels {
    metadata.labels.take().unwrap_or_default()
}

/// `creationTimestamp` in seconds since the epoch, 0 where there is none.
fn created(metadata: &ObjectMeta) -> i64 {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

/// `protocol` with its default.
fn protocol(field: &str, value: Option<&str>) -> Result<Protocol, ConvertError> {
    match value.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(ConvertError::value(
            field,
            other,
            "use TCP, UDP or SCTP, in capitals",
        )),
    }
}

/// A port number.
fn port(field: &str, value: i32) -> Result<u16, ConvertError> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| ConvertError::value(field, &value, "use a port from 1 to 65535"))
}

/// A port number or a port name.
enum PortRef {
    Number(u16),
    Name(String),
}

fn port_ref(field: &str, value: IntOrString) -> Result<PortRef, ConvertError> {
    match value {
        IntOrString::Int(number) => port(field, number).map(PortRef::Number),
        IntOrString::String(name) if is_port_name(&name) => Ok(PortRef::Name(name)),
        IntOrString::String(name) if name.parse::<u32>().is_ok() => Err(ConvertError::value(
            field,
            &name,
            "write the number without quotes",
        )),
        IntOrString::String(name) => Err(ConvertError::value(
            field,
            &name,
            "use a number, or a port name of at most 15 lower case letters, digits and '-'",
        )),
    }
}

/// IANA service name (RFC 6335 section 5.1) as `IsValidPortName` reads it.
fn is_port_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=15).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

#[cfg(test)]
mod tests;
