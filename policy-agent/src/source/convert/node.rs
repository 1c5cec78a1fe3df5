//! `v1` Node.

use k8s_openapi::api::core::v1 as core;

use super::{Convert, ConvertError, created, labels, object_key, parse_cidr, parse_ip};
use crate::event::{Kind, Object};
use crate::model::Node;
use crate::source::narrow::{Fields, METADATA};

impl Convert for core::Node {
    const KIND: Kind = Kind::Node;
    const FIELDS: Fields = Fields::Only(&[
        ("metadata", METADATA),
        (
            "spec",
            Fields::Only(&[
                ("podCIDR", Fields::All),
                ("podCIDRs", Fields::All),
                ("taints", Fields::All),
            ]),
        ),
        ("status", Fields::Only(&[("addresses", Fields::All)])),
    ]);

    fn convert(mut self) -> Result<Option<Object>, ConvertError> {
        let name = object_key(Self::KIND, &self.metadata)?.name;
        let mut addresses = Vec::new();
        let mut internal_addresses = Vec::new();
        let listed = self.status.and_then(|s| s.addresses).unwrap_or_default();
        for (i, address) in listed.into_iter().enumerate() {
            if !matches!(address.type_.as_str(), "InternalIP" | "ExternalIP") {
                continue;
            }
            let ip = parse_ip(&address.address).ok_or_else(|| {
                ConvertError::value(
                    format!("status.addresses[{i}].address"),
                    &address.address,
                    "an InternalIP or ExternalIP is an IP address",
                )
            })?;
            addresses.push(ip);
            if address.type_ == "InternalIP" {
                internal_addresses.push(ip);
            }
        }
        let spec = self.spec.unwrap_or_default();
        let taints = spec.taints.into_iter().flatten();
        let cidrs = match spec.pod_cidrs {
            Some(cidrs) if !cidrs.is_empty() => cidrs,
            _ => spec
                .pod_cidr
                .into_iter()
                .filter(|c| !c.is_empty())
                .collect(),
        };
        let mut pod_cidrs = Vec::with_capacity(cidrs.len());
        for (i, cidr) in cidrs.iter().enumerate() {
            pod_cidrs.push(parse_cidr(cidr).ok_or_else(|| {
                ConvertError::value(
                    format!("spec.podCIDRs[{i}]"),
                    cidr,
                    "use a prefix such as 10.244.1.0/24",
                )
            })?);
        }
        Ok(Some(Object::Node(Node {
            name: name.to_string(),
            labels: labels(&mut self.metadata),
            addresses,
            internal_addresses,
            pod_cidrs,
            taints: taints.map(|taint| taint.key).collect(),
            terminating: self.metadata.deletion_timestamp.is_some(),
            created: created(&self.metadata),
        })))
    }
}
