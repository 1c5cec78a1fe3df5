//! Whether one rule matches a flow.

use std::net::IpAddr;

use super::{Flow, Transport};
use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};
use crate::model::{Namespace, Node, Pod};

/// The end of a flow that a rule's `from` or `to` is about.
pub(super) struct Remote<'a> {
    /// Its address, canonical.
    pub(super) address: IpAddr,
    /// The pod that owns the address.
    pub(super) pod: Option<&'a Pod>,
    /// The Namespace of that pod, where it is known.
    pub(super) namespace: Option<&'a Namespace>,
    /// The nodes that have the address.
    pub(super) nodes: &'a [&'a Node],
}

/// Whether a rule of a policy in `namespace` matches the flow. `ports_of` is the
/// destination, if it is a pod: port names are looked up on it.
pub(super) fn rule_matches(
    rule: &Rule,
    namespace: &str,
    remote: &Remote<'_>,
    flow: &Flow,
    ports_of: Option<&Pod>,
) -> bool {
    let peers = match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(|p| peer_matches(p, namespace, remote)),
    };
    let ports = match &rule.ports {
        Ports::Any => true,
        Ports::Of(ports) => ports
            .iter()
            .any(|port| port_matches(port, flow.transport, ports_of)),
    };
    peers && ports
}

fn peer_matches(peer: &Peer, namespace: &str, remote: &Remote<'_>) -> bool {
    match peer {
        Peer::IpBlock { cidr, except } => {
            cidr.contains(&remote.address) && !except.iter().any(|e| e.contains(&remote.address))
        }
        Peer::Nodes(selector) => remote.nodes.iter().any(|n| selector.matches(&n.labels)),
        Peer::Pods { namespaces, pods } => {
            let Some(pod) = remote.pod else { return false };
            let in_namespace = match namespaces {
                None => *pod.key.namespace == *namespace,
                Some(selector) => remote
                    .namespace
                    .is_some_and(|n| selector.matches(&n.labels)),
            };
            in_namespace && pods.matches(&pod.labels)
        }
    }
}

fn port_matches(port: &PortMatch, transport: Transport, ports_of: Option<&Pod>) -> bool {
    let Transport::Port(protocol, number) = transport else {
        return false;
    };
    match port {
        PortMatch::All(of) => *of == protocol,
        PortMatch::Range(of, first, last) => *of == protocol && (*first..=*last).contains(&number),
        PortMatch::Named(of, name) => {
            *of == protocol
                && ports_of.is_some_and(|pod| {
                    pod.ports
                        .iter()
                        .any(|p| p.name == *name && p.protocol == protocol && p.port == number)
                })
        }
    }
}
