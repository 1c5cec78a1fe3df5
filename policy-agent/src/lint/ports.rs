//! Ports: names that no pod has.

use std::collections::BTreeSet;

use proxy::model::Protocol;

use super::{Linter, Severity, field};
use crate::model::Pod;
use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};
use crate::verdict::Direction;

impl Linter<'_> {
    pub(super) fn ports(&mut self) {
        for (direction, number, rule) in self.rules() {
            let Ports::Of(ports) = &rule.ports else {
                continue;
            };
            for (i, port) in ports.iter().enumerate() {
                if let PortMatch::Named(protocol, name) = port {
                    let path = format!("{}.ports[{i}].port", field(direction, number));
                    self.named(&path, (*protocol, name), direction, rule);
                }
            }
        }
    }

    /// A name is looked up on the pods that the connection goes to.
    fn named(
        &mut self,
        path: &str,
        (protocol, name): (Protocol, &str),
        direction: Direction,
        rule: &Rule,
    ) {
        let destinations: Vec<&Pod> = match direction {
            Direction::Ingress => self.selected().collect(),
            Direction::Egress => self.destinations(rule),
        };
        let has = |pod: &&Pod| {
            let mut ports = pod.ports.iter();
            ports.any(|port| port.name == name && port.protocol == protocol)
        };
        let without: Vec<_> = destinations.iter().filter(|pod| !has(pod)).collect();
        if without.is_empty() {
            return;
        }
        let names: BTreeSet<_> = without
            .iter()
            .flat_map(|pod| &pod.ports)
            .map(|port| format!("{}/{}", port.name, port.protocol))
            .collect();
        let names: Vec<_> = names.into_iter().collect();
        let has = match names.is_empty() {
            true => "they have no named ports: name one, or use a number".to_owned(),
            false => format!("they have {}", names.join(", ")),
        };
        let (severity, whom) = if without.len() == destinations.len() {
            (Severity::Warning, "no pod that it is for has".to_owned())
        } else {
            let keys: Vec<_> = without.iter().map(|pod| pod.key.to_string()).collect();
            (Severity::Hint, format!("{} do not have", keys.join(", ")))
        };
        self.find(
            (severity, "named-port-absent"),
            path,
            format!("{whom} a {protocol} port named {name}"),
            has,
        );
    }

    fn destinations(&self, rule: &Rule) -> Vec<&Pod> {
        let index = &self.snapshot.index;
        let own = &self.policy.key.namespace;
        let is_peer = |pod: &&Pod| match &rule.peers {
            // Everybody: that some have no such port is no mistake.
            Peers::Any => false,
            Peers::Of(peers) => peers.iter().any(|peer| match peer {
                Peer::IpBlock { .. } | Peer::Nodes(_) => false,
                Peer::Pods { namespaces, pods } => {
                    let in_namespace = match namespaces {
                        None => pod.key.namespace == *own,
                        Some(selector) => {
                            let namespace = index.namespaces.get(&*pod.key.namespace);
                            namespace.is_some_and(|of| selector.matches(&of.labels))
                        }
                    };
                    in_namespace && pods.matches(&pod.labels)
                }
            }),
        };
        let pods = index.pods.values().filter(|pod| !pod.host_network);
        pods.filter(is_peer).collect()
    }
}
