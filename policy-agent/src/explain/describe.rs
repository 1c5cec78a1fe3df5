//! Rules and peers in words.

use std::fmt;

use proxy::model::Protocol;

use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};
use crate::verdict::Direction;

/// A rule of a policy in a namespace: `from pods app=web in shop; port 80/TCP`.
pub struct Described<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Which list it is in.
    pub direction: Direction,
    /// Namespace of its policy.
    pub namespace: &'a str,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.direction {
            Direction::Ingress => "from ",
            Direction::Egress => "to ",
        })?;
        match &self.rule.peers {
            Peers::Any => f.write_str("anybody")?,
            Peers::Of(peers) if peers.is_empty() => f.write_str("nobody")?,
            Peers::Of(peers) => {
                for (i, peer) in peers.iter().enumerate() {
                    let or = if i > 0 { " or " } else { "" };
                    write!(f, "{or}{}", describe_peer(peer, self.namespace))?;
                }
            }
        }
        f.write_str("; ")?;
        match &self.rule.ports {
            Ports::Any => f.write_str("any port and protocol"),
            Ports::Of(ports) if ports.is_empty() => f.write_str("no port"),
            Ports::Of(ports) => {
                f.write_str(if ports.len() > 1 { "ports " } else { "port " })?;
                for (i, port) in ports.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{}", describe_port(port))?;
                }
                Ok(())
            }
        }
    }
}

/// A peer of a policy in `namespace`.
pub fn describe_peer(peer: &Peer, namespace: &str) -> String {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let pods = if pods.is_everything() {
                "pods".to_owned()
            } else {
                format!("pods {pods}")
            };
            match namespaces {
                None => format!("{pods} in {namespace}"),
                Some(selector) if selector.is_everything() => format!("{pods} in any namespace"),
                Some(selector) => format!("{pods} in namespaces {selector}"),
            }
        }
        Peer::Nodes(selector) if selector.is_everything() => "nodes".to_owned(),
        Peer::Nodes(selector) => format!("nodes {selector}"),
        Peer::IpBlock { cidr, except } => {
            let mut text = cidr.to_string();
            for (i, net) in except.iter().enumerate() {
                text += if i > 0 { "," } else { " except " };
                text += &net.to_string();
            }
            text
        }
    }
}

/// A port as `explain` takes it: `80/TCP`, `8000-8100/TCP`, `dns/UDP`.
pub fn describe_port(port: &PortMatch) -> String {
    match port {
        PortMatch::All(protocol) => format!("every {protocol} port"),
        PortMatch::Range(protocol, first, last) => describe_range(*protocol, *first, *last),
        PortMatch::Named(protocol, name) => format!("{name}/{protocol}"),
    }
}

/// `80/TCP`, `8000-8100/TCP`.
pub fn describe_range(protocol: Protocol, first: u16, last: u16) -> String {
    if first == last {
        format!("{first}/{protocol}")
    } else {
        format!("{first}-{last}/{protocol}")
    }
}
