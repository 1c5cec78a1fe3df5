//! One denied packet as a JSON object.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use dataplane::layout::denials::Origin;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::index::Owner;
use crate::model::Labels;
use crate::verdict_log::directory::Directory;
use crate::verdict_log::forgery::Forgery;
use crate::verdict_log::packet::Headers;

/// A line of the log. Fields that do not apply are left out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When the packet was seen, RFC 3339.
    time: String,
    /// What became of it.
    verdict: Verdict,
    /// Which side's policies denied it.
    direction: String,
    /// Why.
    reason: Reason,
    /// The policies: all that isolate the pod in this direction, `namespace/name`; or those
    /// of the tier that denied, `Admin name`; or those on audit.
    policies: Vec<String>,
    /// Name of the protocol, or its number.
    protocol: String,
    /// `SYN`, `ACK`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp_flags: Option<String>,
    /// Type and code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    icmp: Option<(u8, u8)>,
    /// Who sent it.
    source: End,
    /// To whom, after translation.
    destination: End,
    /// What the sender addressed, where that was translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frontend: Option<Frontend>,
    /// Who sent it really, where that is not `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgery: Option<Forgery>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    /// It is gone.
    Denied,
    /// It went on: the policies are audited only.
    WouldBeDenied,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
    /// The sender is not who it says.
    Forged,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Frontend {
    address: IpAddr,
    port: u16,
    /// `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
            Origin::Forged => (Verdict::Denied, Reason::Forged, None),
        };
        let policies = chain.map(|chain| directory.policies(chain.as_str()).to_vec());
        let end = |address, port| End::new(address, port, directory);
        Self {
            time: Timestamp::try_from(time)
                .map(|time| time.to_string())
                .unwrap_or_default(),
            verdict,
            direction: origin.direction().name().to_owned(),
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
            forgery: None,
        }
    }

    pub(super) fn of_forgery(mut self, forgery: Forgery) -> Self {
        self.forgery = Some(forgery);
        self
    }

    /// The pods at its ends, and the one that forged it.
    pub(super) fn pods(&self) -> [Option<&str>; 3] {
        let forger = self.forgery.as_ref().and_then(Forgery::pod);
        let (source, destination) = (&self.source.pod, &self.destination.pod);
        [source.as_deref(), destination.as_deref(), forger]
    }
}

/// `TIME denied egress TCP SYN shop/web 10.88.0.2:40232 -> lab/probe 10.88.0.3:80: not allowed
/// by shop/deny`
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Denied => "denied",
            Verdict::WouldBeDenied => "would be denied",
        };
        write!(
            f,
            "{} {verdict} {} {}",
            self.time, self.direction, self.protocol
        )?;
        if let Some(flags) = &self.tcp_flags {
            write!(f, " {flags}")?;
        }
        if let Some((kind, code)) = self.icmp {
            write!(f, " {kind}/{code}")?;
        }
        write!(f, " {} -> {}", self.source, self.destination)?;
        if let Some(Frontend {
            address,
            port,
            service,
        }) = &self.frontend
        {
            let service = service.as_deref().unwrap_or("a Service");
            write!(
                f,
                ", sent to {service} {}",
                SocketAddr::new(*address, *port)
            )?;
        }
        f.write_str(match self.reason {
            Reason::NotAllowed => ": not allowed by ",
            Reason::ClusterPolicy => ": denied by ",
            Reason::Audit => ": on audit, not allowed by ",
            Reason::UnknownAddress => ": nothing is known of the pod",
            Reason::Forged => ": ",
        })?;
        if let Some(forgery) = &self.forgery {
            forgery.fmt(f)?;
        }
        f.write_str(&self.policies.join(", "))
    }
}

/// `shop/web 10.88.0.2:80`
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pod) = &self.pod {
            write!(f, "{pod} ")?;
        }
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_a_sentence_and_comes_back_from_json() {
        let end = |address: &str, port, pod: Option<&str>| End {
            address: address.parse().expect("an address"),
            port,
            pod: pod.map(str::to_owned),
            labels: Labels::new(),
            node: None,
        };
        let mut record = Record {
            time: "2026-11-21T13:26:57Z".into(),
            verdict: Verdict::Denied,
            direction: "ingress".into(),
            reason: Reason::NotAllowed,
            policies: vec!["shop/deny".into(), "shop/web".into()],
            protocol: "TCP".into(),
            tcp_flags: Some("SYN".into()),
            icmp: None,
            source: end("10.88.0.4", Some(49_456), Some("lab/probe")),
            destination: end("10.88.0.2", Some(80), Some("shop/web")),
            frontend: Some(Frontend {
                address: "10.96.0.10".parse().expect("an address"),
                port: 8000,
                service: Some("shop/web".into()),
            }),
            forgery: None,
        };
        assert_eq!(
            record.to_string(),
            "2026-11-21T13:26:57Z denied ingress TCP SYN lab/probe 10.88.0.4:49456 -> shop/web \
             10.88.0.2:80, sent to shop/web 10.96.0.10:8000: not allowed by shop/deny, shop/web"
        );
        let json = serde_json::to_string(&record).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Record>(&json).expect("a record"),
            record
        );

        record.reason = Reason::UnknownAddress;
        record.policies.clear();
        record.tcp_flags = None;
        record.frontend = None;
        record.protocol = "ICMPv6".into();
        record.icmp = Some((128, 0));
        record.source = end("fd88::9", None, None);
        record.destination = end("fd88::2", None, Some("shop/web"));
        assert_eq!(
            record.to_string(),
            "2026-11-21T13:26:57Z denied ingress ICMPv6 128/0 fd88::9 -> shop/web fd88::2: nothing \
             is known of the pod"
        );

        record.reason = Reason::Forged;
        record.direction = "egress".into();
        let forgery = r#"{"what":"address","claimed":"fd88::9","pod":"lab/probe",
            "port":"trm0123456789ab","mac":"0a:58:0a:58:00:04"}"#;
        let record = record.of_forgery(serde_json::from_str(forgery).expect("a forgery"));
        assert_eq!(
            record.to_string(),
            "2026-11-21T13:26:57Z denied egress ICMPv6 128/0 fd88::9 -> shop/web fd88::2: forged by \
             lab/probe at trm0123456789ab: fd88::9 is not its address"
        );
        assert_eq!(record.pods(), [None, Some("shop/web"), Some("lab/probe")]);
    }
}
