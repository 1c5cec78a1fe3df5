//! Ports of the host that lead to ports of a pod: the capability `portMappings`.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::object::IpFamily;

/// A transport protocol that has ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// `IPPROTO_*`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Whether its flows outlive their endpoint: a client that goes on sending keeps the
    /// conntrack entry, and with it the address that the pod had.
    pub const fn outlives_endpoints(self) -> bool {
        matches!(self, Self::Udp | Self::Sctp)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One `hostPort` of a pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Address of the host; an unspecified one stands for all of its family, none for all of
    /// both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Transport,
}

impl PortMapping {
    /// Whether it is for addresses of the family.
    pub fn is_of(&self, family: IpFamily) -> bool {
        self.host_ip.is_none_or(|ip| IpFamily::of(ip) == family)
    }

    /// The one address of the host that it is for, if it is not for all.
    pub fn only_address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether some packet is for both of them.
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_port = (self.protocol, self.host_port) == (other.protocol, other.host_port);
        let same_family = IpFamily::BOTH
            .into_iter()
            .any(|family| self.is_of(family) && other.is_of(family));
        let same_address = match (self.only_address(), other.only_address()) {
            (Some(ip), Some(other)) => ip == other,
            _ => true,
        };
        same_port && same_family && same_address
    }

    /// Whether it makes a port of 127.0.0.0/8 lead to the pod.
    pub fn is_on_loopback(&self) -> bool {
        match self.host_ip {
            None => true,
            Some(IpAddr::V4(v4)) => v4.is_unspecified() || v4.is_loopback(),
            Some(IpAddr::V6(_)) => false,
        }
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => write!(f, "{}/{}", self.host_port, self.protocol),
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.host_port, self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: u16, protocol: Transport) -> PortMapping {
        PortMapping {
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().expect("an address")),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn mappings_overlap_where_a_packet_could_be_for_both() {
        let tcp = |ip, port| mapping(ip, port, Transport::Tcp);
        for (one, other, overlap) in [
            (tcp("", 80), tcp("", 80), true),
            (tcp("", 80), tcp("", 81), false),
            (tcp("", 80), mapping("", 80, Transport::Udp), false),
            (tcp("", 80), tcp("192.0.2.1", 80), true),
            (tcp("", 80), tcp("::", 80), true),
            (tcp("0.0.0.0", 80), tcp("::", 80), false),
            (tcp("0.0.0.0", 80), tcp("192.0.2.1", 80), true),
            (tcp("0.0.0.0", 80), tcp("2001:db8::1", 80), false),
            (tcp("192.0.2.1", 80), tcp("192.0.2.1", 80), true),
            (tcp("192.0.2.1", 80), tcp("192.0.2.2", 80), false),
        ] {
            assert_eq!(one.overlaps(&other), overlap, "{one} {other}");
            assert_eq!(other.overlaps(&one), overlap, "{other} {one}");
        }
    }

    #[test]
    fn a_record_says_what_is_not_default() {
        let text = r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"}"#;
        let parsed: PortMapping = serde_json::from_str(text).expect("a mapping");
        assert_eq!(parsed, mapping("", 8080, Transport::Tcp));
        assert_eq!(serde_json::to_string(&parsed).expect("JSON"), text);
        assert_eq!(parsed.to_string(), "8080/tcp");
        let other = mapping("2001:db8::1", 53, Transport::Udp);
        assert_eq!(other.to_string(), "[2001:db8::1]:53/udp");
    }
}
