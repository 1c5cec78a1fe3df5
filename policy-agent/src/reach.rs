//! Which ports one address reaches at another: exact, over all 65,535 of each protocol.
//!
//! Rules cut the ports into a few classes that they treat alike, so one port of each class
//! is judged for all.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use proxy::model::Protocol;
use serde::{Deserialize, Serialize};

use crate::model::Pod;
use crate::model::cluster_policy::Tier;
use crate::model::policy::{PortMatch, Ports, Rule};
use crate::verdict::{Cluster, Direction, Flow, Transport};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Ports that all rules treat alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// One of them, for all.
    pub transport: Transport,
    /// The last of them; that of `transport` is the first.
    pub last: u16,
}

/// The ports on which one address reaches another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// First and last port of each range, sorted, apart from each other.
    pub tcp: Vec<(u16, u16)>,
    /// The same for UDP.
    pub udp: Vec<(u16, u16)>,
    /// The same for SCTP.
    pub sctp: Vec<(u16, u16)>,
    /// Protocols without ports, ICMP among them.
    pub others: bool,
}

/// The classes of a pair, sorted by protocol and port; the last is for protocols without
/// ports.
pub fn classes(cluster: &Cluster<'_>, source: IpAddr, destination: IpAddr) -> Vec<Class> {
    let rules = rules_about(cluster, source, destination);
    let pod = cluster.owner(destination);
    let mut classes = Vec::new();
    for protocol in PROTOCOLS {
        let firsts = cuts(&rules, protocol, pod);
        let lasts = firsts
            .iter()
            .skip(1)
            .map(|first| first - 1)
            .chain([u16::MAX]);
        classes.extend(firsts.iter().zip(lasts).map(|(first, last)| Class {
            transport: Transport::Port(protocol, *first),
            last,
        }));
    }
    let icmp = if destination.is_ipv4() { 1 } else { 58 };
    classes.push(Class {
        transport: Transport::Other(icmp),
        last: 0,
    });
    classes
}

/// What `source` reaches at `destination`.
pub fn reach(cluster: &Cluster<'_>, source: IpAddr, destination: IpAddr) -> Reach {
    let mut reach = Reach::default();
    for class in classes(cluster, source, destination) {
        let flow = Flow {
            source,
            destination,
            transport: class.transport,
        };
        if cluster.judge(&flow).is_allowed() {
            reach.add(class);
        }
    }
    reach
}

/// Every rule that the verdict may depend on.
fn rules_about<'a>(cluster: &Cluster<'a>, source: IpAddr, destination: IpAddr) -> Vec<&'a Rule> {
    let of = |address, direction| {
        let pods = cluster.owner(address).into_iter();
        pods.flat_map(move |pod| {
            let isolating = cluster.isolating(pod, direction);
            let tiers = [Tier::Admin, Tier::Baseline].into_iter();
            let of_tiers = tiers.flat_map(move |tier| cluster.selecting(tier, pod, direction));
            let of_tiers = of_tiers.flat_map(|(_, rules)| rules);
            let isolating = isolating.flat_map(|(_, rules)| rules);
            isolating.chain(of_tiers.map(|rule| &rule.matches))
        })
    };
    of(source, Direction::Egress)
        .chain(of(destination, Direction::Ingress))
        .collect()
}

/// The first port of each class.
fn cuts(rules: &[&Rule], protocol: Protocol, pod: Option<&Pod>) -> BTreeSet<u16> {
    let mut cuts = BTreeSet::from([1]);
    let mut cut = |first: u16, last: u16| {
        cuts.insert(first.max(1));
        cuts.extend(last.checked_add(1));
    };
    let ports = rules.iter().flat_map(|rule| match &rule.ports {
        Ports::Any => &[][..],
        Ports::Of(ports) => ports,
    });
    for port in ports {
        match port {
            PortMatch::Range(of, first, last) if *of == protocol => cut(*first, *last),
            PortMatch::Named(of, name) if *of == protocol => {
                let named = pod.into_iter().flat_map(|pod| &pod.ports);
                let named = named.filter(|p| p.name == *name && p.protocol == protocol);
                named.for_each(|p| cut(p.port, p.port));
            }
            PortMatch::All(_) | PortMatch::Range(..) | PortMatch::Named(..) => {}
        }
    }
    cuts
}

impl Class {
    /// `80/TCP`, `1-79/TCP`, `every UDP port`, `protocols without ports`.
    pub fn describe(classes: &[Self]) -> String {
        let mut reach = Reach::default();
        classes.iter().for_each(|class| reach.add(*class));
        reach.to_string()
    }
}

impl Reach {
    /// Everything.
    pub fn is_all(&self) -> bool {
        let all = [(1, u16::MAX)];
        self.others
            && [&self.tcp, &self.udp, &self.sctp]
                .iter()
                .all(|ranges| **ranges == all)
    }

    /// Nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the transport is among them.
    pub fn contains(&self, transport: Transport) -> bool {
        match transport {
            Transport::Other(_) => self.others,
            Transport::Port(protocol, port) => self
                .ranges(protocol)
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port)),
        }
    }

    fn ranges(&self, protocol: Protocol) -> &Vec<(u16, u16)> {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            Protocol::Sctp => &self.sctp,
        }
    }

    /// Classes come in order.
    fn add(&mut self, class: Class) {
        let Transport::Port(protocol, first) = class.transport else {
            self.others = true;
            return;
        };
        let ranges = match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
            Protocol::Sctp => &mut self.sctp,
        };
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(first) => *last = class.last,
            _ => ranges.push((first, class.last)),
        }
    }
}

/// `everything`, `nothing`, `80,443/TCP 53/UDP`, `all TCP`, `ICMP and the like`.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("everything");
        }
        if self.is_none() {
            return f.write_str("nothing");
        }
        let mut parts = Vec::new();
        for protocol in PROTOCOLS {
            match &self.ranges(protocol)[..] {
                [] => {}
                [(1, u16::MAX)] => parts.push(format!("all {protocol}")),
                ranges => {
                    let range = |(first, last): &(u16, u16)| {
                        if first == last {
                            first.to_string()
                        } else {
                            format!("{first}-{last}")
                        }
                    };
                    let ranges: Vec<_> = ranges.iter().map(range).collect();
                    parts.push(format!("{}/{protocol}", ranges.join(",")));
                }
            }
        }
        if self.others {
            parts.push("ICMP and other protocols".into());
        }
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests;
