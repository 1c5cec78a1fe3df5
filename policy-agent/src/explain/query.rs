//! Who and what: the words of the command line, and whom they mean.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use proxy::model::{ObjectKey, Protocol};
use serde::{Deserialize, Serialize};

/// Names that are this near are offered for one that is not known.
const NEAR: f64 = 0.8;
/// At most so many.
const OFFERED: usize = 3;

/// One end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// `namespace/name`: a pod, or where there is none, a Service.
    Object(ObjectKey),
    /// `svc/namespace/name`.
    Service(ObjectKey),
    /// An address.
    Address(IpAddr),
    /// `node`: this node.
    Node,
}

/// A port: number, name or protocol alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Port {
    /// `80`, `80/udp`.
    Number(Protocol, u16),
    /// `web`, `dns/udp`: of the pod, or of the Service. The protocol is that of the
    /// port of that name where it is not given.
    Name(Option<Protocol>, String),
    /// `icmp`: of the address's family.
    Icmp,
}

/// What is asked: `FROM TO[:PORT[/PROTO]]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Query {
    /// Who connects.
    pub from: String,
    /// To whom, and where.
    pub to: String,
}

/// Why a question cannot be answered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// Not of the form.
    #[error(
        "{0:?} is neither namespace/name of a pod, svc/namespace/name, node, nor an address, each with :PORT or :PORT/PROTOCOL where a port is wanted ([address]:port for IPv6)"
    )]
    End(String),
    /// No port.
    #[error("{0:?} is no port: write a number, a port name or icmp, and /tcp, /udp or /sctp")]
    Port(String),
    /// Who connects has a port, which policy does not look at.
    #[error("{0:?}: policy does not look at the source port, leave it out")]
    SourcePort(String),
    /// Nobody of that name.
    #[error("{what} {key} is not known{}", offer(.near))]
    Unknown {
        /// `pod` or `Service`.
        what: &'static str,
        /// The name.
        key: ObjectKey,
        /// Similar names.
        near: Vec<String>,
    },
    /// The object is there, but nothing can be said of it.
    #[error("{0}")]
    Nothing(String),
}

fn offer(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!(": did you mean {}?", near.join(" or ")),
    }
}

impl QueryError {
    /// With the names among `known` that are like `key`.
    pub fn unknown<'a>(
        what: &'static str,
        key: &ObjectKey,
        known: impl Iterator<Item = &'a ObjectKey>,
    ) -> Self {
        let wanted = key.to_string();
        let mut scored: Vec<(f64, String)> = known
            .map(|other| {
                let name = strsim::jaro_winkler(&key.name, &other.name);
                let namespace = strsim::jaro_winkler(&key.namespace, &other.namespace);
                // The right name in another namespace is near, too.
                (0.6f64.mul_add(name, 0.4 * namespace), other.to_string())
            })
            .filter(|(score, name)| *score >= NEAR && *name != wanted)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        scored.truncate(OFFERED);
        Self::Unknown {
            what,
            key: key.clone(),
            near: scored.into_iter().map(|(_, name)| name).collect(),
        }
    }
}

/// Reads an end and the port behind it.
///
/// # Errors
/// Where the text is of no known form.
pub fn parse(text: &str) -> Result<(End, Option<Port>), QueryError> {
    let wrong = || QueryError::End(text.to_owned());
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
        let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
        let port = match port {
            "" => None,
            port => Some(parse_port(port.strip_prefix(':').ok_or_else(wrong)?)?),
        };
        return Ok((End::Address(address.into()), port));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((End::Address(address.to_canonical()), None));
    }
    let (end, port) = match text.split_once(':') {
        Some((end, port)) => (end, Some(parse_port(port)?)),
        None => (text, None),
    };
    let parts: Vec<_> = end.split('/').collect();
    let end = match parts[..] {
        ["node"] => End::Node,
        [address] => End::Address(Ipv4Addr::from_str(address).map_err(|_| wrong())?.into()),
        ["svc", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            End::Service(ObjectKey::new(namespace, name))
        }
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            End::Object(ObjectKey::new(namespace, name))
        }
        _ => return Err(wrong()),
    };
    Ok((end, port))
}

fn parse_port(text: &str) -> Result<Port, QueryError> {
    let wrong = || QueryError::Port(text.to_owned());
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, Some(parse_protocol(protocol).ok_or_else(wrong)?)),
        None => (text, None),
    };
    match port.parse::<u16>() {
        Ok(0) => Err(wrong()),
        Ok(number) => Ok(Port::Number(protocol.unwrap_or(Protocol::Tcp), number)),
        Err(_) if port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) => Err(wrong()),
        Err(_) if port.eq_ignore_ascii_case("icmp") && protocol.is_none() => Ok(Port::Icmp),
        Err(_) => Ok(Port::Name(protocol, port.to_owned())),
    }
}

fn parse_protocol(text: &str) -> Option<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_ports_are_read() {
        let pod = || End::Object(ObjectKey::new("shop", "web"));
        let tcp = |port| Some(Port::Number(Protocol::Tcp, port));
        let v6: IpAddr = "fd88::2".parse().expect("an address");
        let v4: IpAddr = "10.88.0.2".parse().expect("an address");
        let table = [
            ("shop/web", pod(), None),
            ("shop/web:80", pod(), tcp(80)),
            (
                "shop/web:53/udp",
                pod(),
                Some(Port::Number(Protocol::Udp, 53)),
            ),
            ("shop/web:dns", pod(), Some(Port::Name(None, "dns".into()))),
            ("shop/web:icmp", pod(), Some(Port::Icmp)),
            (
                "svc/shop/web:80",
                End::Service(ObjectKey::new("shop", "web")),
                tcp(80),
            ),
            ("10.88.0.2", End::Address(v4), None),
            ("10.88.0.2:80/TCP", End::Address(v4), tcp(80)),
            ("fd88::2", End::Address(v6), None),
            ("[fd88::2]", End::Address(v6), None),
            ("[fd88::2]:80", End::Address(v6), tcp(80)),
            ("::ffff:10.88.0.2", End::Address(v4), None),
            ("node:22", End::Node, tcp(22)),
        ];
        for (text, end, port) in table {
            assert_eq!(parse(text), Ok((end, port)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in [
            "",
            "web",
            "a/b/c",
            "/web",
            "shop/",
            "shop/web:",
            "shop/web:0",
            "shop/web:65536",
            "shop/web:80/xyz",
            "10.88.0.256",
            "[fd88::2",
            "[fd88::2]80",
            "svc/web/",
            "1.2.3.4:",
        ] {
            let error = parse(text).expect_err(text).to_string();
            let named = text.split_once(':').map_or(text, |(_, port)| port);
            assert!(
                error.contains(text) || error.contains(named),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn similar_names_are_offered() {
        let known = ["shop/web-1", "shop/web-2", "lab/web-1", "shop/db"]
            .map(|key| key.split_once('/').expect("a key"))
            .map(|(namespace, name)| ObjectKey::new(namespace, name));
        let error = QueryError::unknown("pod", &ObjectKey::new("shop", "web-11"), known.iter());
        assert_eq!(
            error.to_string(),
            "pod shop/web-11 is not known: did you mean shop/web-1 or shop/web-2?"
        );
        let error = QueryError::unknown("pod", &ObjectKey::new("other", "thing"), known.iter());
        assert_eq!(error.to_string(), "pod other/thing is not known");
    }
}
