//! One denied packet as a JSON object.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use dataplane::layout::denials::Origin;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::index::Owner;
use crate::model::Labels;
use crate::verdict_log::directory::Directory;
use crate::verdict_log::packet::Headers;

/// A line of the log. Fields that do not apply are left out.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// When the packet was seen, RFC 3339.
    time: String,
    /// What became of it.
    verdict: Verdict,
    /// Which side's policies denied it.
    direction: &'static str,
    /// Why.
    reason: Reason,
    /// The policies: all that isolate the pod in this direction, `namespace/name`; or those
    /// of the tier that denied, `Admin name`; or those on audit.
    policies: Vec<String>,
    /// Name of the protocol, or its number.
    protocol: String,
    /// `SYN`, `ACK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp_flags: Option<String>,
    /// Type and code.
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp: Option<(u8, u8)>,
    /// Who sent it.
    source: End,
    /// To whom, after translation.
    destination: End,
    /// What the sender addressed, where that was translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    frontend: Option<Frontend>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    /// It is gone.
    Denied,
    /// It went on: the policies are audited only.
    WouldBeDenied,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Reason {
    /// No rule of the policies that isolate the pod allows it.
    NotAllowed,
    /// A rule of a ClusterNetworkPolicy denies it.
    ClusterPolicy,
    /// No rule of the policies on audit allows it.
    Audit,
    /// The pod's address is bound to no policies: its object is not known yet, or the
    /// address is nobody's.
    UnknownAddress,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Frontend {
    address: IpAddr,
    port: u16,
    /// `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

impl Record {
    pub(super) fn new(
        time: SystemTime,
        origin: &Origin,
        headers: &Headers,
        frontend: Option<SocketAddr>,
        directory: &Directory,
    ) -> Self {
        let (verdict, reason, chain) = match origin {
            Origin::Group(_, chain) => (Verdict::Denied, Reason::NotAllowed, Some(chain)),
            Origin::Tier(_, chain) => (Verdict::Denied, Reason::ClusterPolicy, Some(chain)),
            Origin::Audit(_, chain) => (Verdict::WouldBeDenied, Reason::Audit, Some(chain)),
            Origin::Closed(_) => (Verdict::Denied, Reason::UnknownAddress, None),
        };
        let policies = chain.map(|chain| directory.policies(chain.as_str()).to_vec());
        let end = |address, port| End::new(address, port, directory);
        Self {
            time: Timestamp::try_from(time)
                .map(|time| time.to_string())
                .unwrap_or_default(),
            verdict,
            direction: origin.direction().name(),
            reason,
            policies: policies.unwrap_or_default(),
            protocol: headers.protocol_name(),
            tcp_flags: headers.flag_names(),
            icmp: headers.icmp,
            source: end(headers.source, headers.source_port),
            destination: end(headers.destination, headers.destination_port),
            frontend: frontend.map(|frontend| Frontend {
                address: frontend.ip(),
                port: frontend.port(),
                service: directory.service(frontend),
            }),
        }
    }
}

impl End {
    fn new(address: IpAddr, port: Option<u16>, directory: &Directory) -> Self {
        let mut end = Self {
            address,
            port,
            pod: None,
            labels: Labels::new(),
            node: None,
        };
        let Some(snapshot) = directory.snapshot() else {
            return end;
        };
        let index = &snapshot.index;
        match index.owner(address) {
            Owner::Pod(pod) => {
                end.pod = Some(pod.key.to_string());
                end.labels.clone_from(&pod.labels);
                end.node.clone_from(&pod.node);
            }
            Owner::UnknownPod => {
                let pod = index.holder(address).and_then(crate::index::pod_key);
                end.pod = pod.map(|pod| pod.to_string());
                end.node = Some(snapshot.node.clone());
            }
            Owner::Container => end.node = Some(snapshot.node.clone()),
            Owner::Nobody => {
                let mut nodes = index.nodes.values();
                let node = nodes.find(|node| node.addresses.contains(&address));
                end.node = node.map(|node| node.name.clone());
            }
        }
        end
    }
}
