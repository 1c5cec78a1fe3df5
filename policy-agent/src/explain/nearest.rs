//! The rule that came nearest to allowing a flow, and what of it did not match.

use std::net::IpAddr;

use crate::explain::describe::{Described, describe_port};
use crate::index::Index;
use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};
use crate::model::{LabelSelector, Labels, NetworkPolicy, Pod};
use crate::verdict::{Direction, Flow, Transport};

/// A rule that did not match.
pub(super) struct Near {
    /// How far it is from matching: the number of conditions that do not hold, where
    /// ones that a label or a port number could mend count least.
    distance: u32,
    /// Its text.
    pub(super) rule: String,
    /// What does not hold.
    pub(super) why: Vec<String>,
}

/// One side of a flow that is judged.
pub(super) struct Side<'a> {
    pub(super) index: &'a Index,
    pub(super) flow: &'a Flow,
    pub(super) direction: Direction,
    /// The pod at the other end, if it is one.
    pub(super) peer: Option<&'a Pod>,
    /// The pod that the connection goes to, if it is one.
    pub(super) destination: Option<&'a Pod>,
}

impl Side<'_> {
    /// The nearest of the rules of these policies.
    pub(super) fn nearest<'p>(
        &self,
        policies: impl IntoIterator<Item = &'p NetworkPolicy>,
    ) -> Option<(&'p NetworkPolicy, usize, Near)> {
        let mut nearest: Option<(&NetworkPolicy, usize, Near)> = None;
        for policy in policies {
            let rules = match self.direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            for (number, rule) in rules.iter().flatten().enumerate() {
                let near = self.near(policy, rule);
                let is_nearer = |(_, _, best): &(_, _, Near)| near.distance < best.distance;
                if nearest.as_ref().is_none_or(is_nearer) {
                    nearest = Some((policy, number, near));
                }
            }
        }
        nearest
    }

    fn near(&self, policy: &NetworkPolicy, rule: &Rule) -> Near {
        let namespace = &policy.key.namespace;
        let described = Described {
            rule,
            direction: self.direction,
            namespace,
        };
        let mut near = Near {
            distance: 0,
            rule: described.to_string(),
            why: Vec::new(),
        };
        if let Peers::Of(peers) = &rule.peers {
            let misses = peers.iter().map(|peer| self.peer(peer, namespace));
            near.add(
                misses.min_by_key(|(distance, _)| *distance),
                "it names no peer",
            );
        }
        if let Ports::Of(ports) = &rule.ports {
            let misses = ports.iter().map(|port| self.port(port));
            near.add(
                misses.min_by_key(|(distance, _)| *distance),
                "it names no port",
            );
        }
        near
    }

    fn address(&self) -> IpAddr {
        match self.direction {
            Direction::Ingress => self.flow.source,
            Direction::Egress => self.flow.destination,
        }
    }

    /// How far the peer is from matching, and why.
    fn peer(&self, peer: &Peer, namespace: &str) -> (u32, String) {
        let address = self.address();
        match peer {
            Peer::IpBlock { cidr, except } => {
                let excepted = except.iter().find(|net| net.contains(&address));
                match excepted {
                    _ if !cidr.contains(&address) => (6, format!("{address} is not in {cidr}")),
                    Some(net) => (
                        1,
                        format!("{address} is in {cidr}, but in its except {net}"),
                    ),
                    None => (0, String::new()),
                }
            }
            Peer::Nodes(selector) => (6, format!("{address} is of no node {selector}")),
            Peer::Pods { namespaces, pods } => {
                let Some(pod) = self.peer else {
                    let why = format!("{address} is no pod's, and selectors match pods only");
                    return (8, why);
                };
                let mut why = Vec::new();
                let mut distance = 0;
                match namespaces {
                    None if *pod.key.namespace == *namespace => {}
                    None => {
                        distance += 2;
                        why.push(format!(
                            "without a namespaceSelector it means pods of {namespace}, and {} is not",
                            pod.key
                        ));
                    }
                    Some(selector) => match self.index.namespaces.get(&*pod.key.namespace) {
                        None => {
                            distance += 2;
                            why.push(format!("Namespace {} is not known", pod.key.namespace));
                        }
                        Some(of) => {
                            let what = format!("namespace {}", pod.key.namespace);
                            distance +=
                                unmet("namespaceSelector", selector, &what, &of.labels, &mut why);
                        }
                    },
                }
                let what = pod.key.to_string();
                distance += unmet("podSelector", pods, &what, &pod.labels, &mut why);
                (distance, why.join(", and "))
            }
        }
    }

    /// How far the port is from matching, and why.
    fn port(&self, port: &PortMatch) -> (u32, String) {
        let Transport::Port(protocol, number) = self.flow.transport else {
            return (
                4,
                "rules with ports never match protocols without ports".into(),
            );
        };
        let wrong = |of: &_| {
            (*of != protocol).then(|| {
                (
                    2,
                    format!("it allows {}, not {protocol}", describe_port(port)),
                )
            })
        };
        match port {
            PortMatch::All(of) => wrong(of).unwrap_or_default(),
            PortMatch::Range(of, first, last) => match wrong(of) {
                None if (*first..=*last).contains(&number) => (0, String::new()),
                None => (
                    1,
                    format!("it allows {}, not port {number}", describe_port(port)),
                ),
                Some(wrong) => wrong,
            },
            PortMatch::Named(of, name) => {
                if let Some(wrong) = wrong(of) {
                    return wrong;
                }
                let Some(pod) = self.destination else {
                    let why =
                        format!("the destination is no pod, and only pods name a port {name}");
                    return (4, why);
                };
                let named = pod
                    .ports
                    .iter()
                    .filter(|p| p.name == *name && p.protocol == protocol);
                let numbers: Vec<_> = named.map(|p| p.port).collect();
                match &numbers[..] {
                    [] => (
                        2,
                        format!("{} has no {protocol} port named {name}", pod.key),
                    ),
                    numbers if numbers.contains(&number) => (0, String::new()),
                    [first, ..] => (
                        1,
                        format!("port {name} of {} is {first}, not {number}", pod.key),
                    ),
                }
            }
        }
    }
}

impl Near {
    fn add(&mut self, miss: Option<(u32, String)>, empty: &str) {
        let (distance, why) = miss.unwrap_or_else(|| (16, empty.to_owned()));
        self.distance += distance;
        if distance > 0 {
            self.why.push(why);
        }
    }
}

/// Notes each requirement that does not hold and returns how many there are.
fn unmet(
    field: &str,
    selector: &LabelSelector,
    what: &str,
    labels: &Labels,
    why: &mut Vec<String>,
) -> u32 {
    let mut count = 0;
    for requirement in selector.requirements() {
        if requirement.matches(labels) {
            continue;
        }
        count += 1;
        let key = requirement.key();
        let has = match labels.get(key) {
            Some(value) => format!("has {key}={value}"),
            None => format!("has no label {key}"),
        };
        why.push(format!("{field} wants {requirement}, {what} {has}"));
    }
    count
}
