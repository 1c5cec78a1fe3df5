//! Whom the words of a question mean, and all the ways that lead there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxy::model::{ObjectKey, Protocol};
use proxy::{FrontendStatus, ServiceStatus};

use crate::explain::query::{End, Port, Query, QueryError, parse};
use crate::index::Owner;
use crate::model::{Pod, PodPhase};
use crate::reach::{self, Class};
use crate::snapshot::{About, Snapshot};
use crate::verdict::{Flow, Transport};

/// A question with everybody found.
pub(super) struct Resolved {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) notes: Vec<String>,
    pub(super) aims: Vec<Aim>,
}

/// One way.
pub(super) enum Aim {
    /// To an address.
    Address {
        source: IpAddr,
        destination: IpAddr,
        transport: Transport,
        /// The ports that `transport` stands for.
        ports: String,
    },
    /// To a Service.
    Frontend {
        source: IpAddr,
        service: String,
        frontend: FrontendStatus,
    },
}

/// An end with its addresses.
struct Party {
    name: String,
    addresses: BTreeSet<IpAddr>,
}

/// The Services that a question may be about.
///
/// # Errors
/// See [`QueryError`].
pub fn about(query: &Query) -> Result<About, QueryError> {
    let mut about = About::default();
    for text in [&query.from, &query.to] {
        match parse(text)?.0 {
            End::Object(key) | End::Service(key) => about.services.push(key),
            End::Address(address) => about.addresses.push(address),
            End::Node => {}
        }
    }
    Ok(about)
}

pub(super) fn resolve(snapshot: &Snapshot, query: &Query) -> Result<Resolved, QueryError> {
    let (from, source_port) = parse(&query.from)?;
    if source_port.is_some() {
        return Err(QueryError::SourcePort(query.from.clone()));
    }
    let (to, port) = parse(&query.to)?;
    let mut finder = Finder {
        snapshot,
        notes: Vec::new(),
    };
    let sources = match &from {
        End::Service(_) => {
            let why = format!(
                "{} is a Service, which connects to nobody: name a pod",
                query.from
            );
            return Err(QueryError::Nothing(why));
        }
        end => finder.party(end)?,
    };
    let (to, aims) = match finder.service(&to)? {
        Some(service) => {
            let aims = finder.frontends(&sources, service, &to, port.as_ref())?;
            (format!("Service {}", service.key), aims)
        }
        None => {
            let target = finder.party(&to)?;
            let aims = finder.addresses(&sources, &target, port.as_ref())?;
            (target.name, aims)
        }
    };
    if aims.is_empty() {
        let why = format!("{} and {to} have no address family in common", sources.name);
        return Err(QueryError::Nothing(why));
    }
    Ok(Resolved {
        from: sources.name,
        to,
        notes: finder.notes,
        aims,
    })
}

/// Whose an address is, in words.
pub(crate) fn whose(snapshot: &Snapshot, address: IpAddr) -> String {
    match snapshot.index.owner(address) {
        Owner::Pod(pod) => pod.key.to_string(),
        Owner::Container => "a container that is no pod".into(),
        Owner::UnknownPod => "a pod that is not known yet".into(),
        Owner::Nobody if snapshot.node_addresses.contains(&address) => {
            format!("this node, {}", snapshot.node)
        }
        Owner::Nobody => {
            let mut nodes = snapshot.index.nodes.values();
            let node = nodes.find(|node| node.addresses.contains(&address));
            node.map_or_else(|| "outside".into(), |node| format!("node {}", node.name))
        }
    }
}

struct Finder<'a> {
    snapshot: &'a Snapshot,
    notes: Vec<String>,
}

impl<'a> Finder<'a> {
    /// The Service that the end is, by name, or because the address is its.
    fn service(&self, end: &End) -> Result<Option<&'a ServiceStatus>, QueryError> {
        let known = &self.snapshot.services;
        let find = |key: &ObjectKey| known.iter().find(|service| service.key == *key);
        match end {
            End::Service(key) => match find(key) {
                Some(service) => Ok(Some(service)),
                None => {
                    let services = self.snapshot.service_keys.iter();
                    Err(QueryError::unknown("Service", key, services))
                }
            },
            End::Object(key) if !self.is_pod(key) => Ok(find(key)),
            End::Address(address) => Ok(known.iter().find(|service| {
                let mut frontends = service.frontends.iter();
                frontends.any(|frontend| frontend.id.address == *address)
            })),
            End::Object(_) | End::Node => Ok(None),
        }
    }

    fn is_pod(&self, key: &ObjectKey) -> bool {
        let index = &self.snapshot.index;
        index.pods.contains_key(key) || index.attachments_of(key).next().is_some()
    }

    fn party(&mut self, end: &End) -> Result<Party, QueryError> {
        match end {
            End::Object(key) | End::Service(key) => self.pod(key),
            End::Address(address) => Ok(Party {
                name: format!("{address} ({})", whose(self.snapshot, *address)),
                addresses: BTreeSet::from([*address]),
            }),
            End::Node => {
                let of_object = self.snapshot.index.nodes.get(&self.snapshot.node);
                let listed = of_object.into_iter().flat_map(|node| &node.addresses);
                let own = self
                    .snapshot
                    .node_addresses
                    .iter()
                    .filter(|ip| is_global(**ip));
                let addresses: BTreeSet<_> = listed.chain(own).copied().collect();
                Ok(Party {
                    name: format!("this node, {}", self.snapshot.node),
                    addresses,
                })
            }
        }
    }

    fn pod(&mut self, key: &ObjectKey) -> Result<Party, QueryError> {
        let index = &self.snapshot.index;
        let Some((pod, addresses)) = self.snapshot.pod(key) else {
            let held = index.attachments_of(key).flat_map(|at| at.ips.clone());
            let addresses: BTreeSet<_> = held.collect();
            if addresses.is_empty() {
                return Err(QueryError::unknown("pod", key, index.pods.keys()));
            }
            self.notes.push(format!(
                "{key} is attached, but its Pod object is not known yet: it is closed until it is"
            ));
            return Ok(Party {
                name: key.to_string(),
                addresses,
            });
        };
        let addresses = self.addresses_of(pod, addresses)?;
        Ok(Party {
            name: key.to_string(),
            addresses,
        })
    }

    fn addresses_of(
        &mut self,
        pod: &Pod,
        addresses: BTreeSet<IpAddr>,
    ) -> Result<BTreeSet<IpAddr>, QueryError> {
        let key = &pod.key;
        if pod.phase == PodPhase::Finished {
            let why = format!("pod {key} has finished: it owns no address any more");
            return Err(QueryError::Nothing(why));
        }
        if pod.terminating {
            self.notes.push(format!(
                "{key} is being deleted; its policies hold until it is gone"
            ));
        }
        if pod.host_network {
            self.notes.push(format!(
                "{key} is on the host network: to policies it is its node, and no selector matches it"
            ));
            return Ok(pod.ips.iter().copied().collect());
        }
        if addresses.is_empty() {
            let node = pod.node.as_deref().unwrap_or("no node yet");
            let taken = pod
                .ips
                .iter()
                .map(|ip| format!("{ip} is {}", whose(self.snapshot, *ip)));
            let taken: Vec<_> = taken.collect();
            let why = match taken.is_empty() {
                true => format!("pod {key} (on {node}) has no address yet: nobody reaches it"),
                false => format!(
                    "pod {key} (on {node}) has lost its address: {}",
                    taken.join(", ")
                ),
            };
            return Err(QueryError::Nothing(why));
        }
        Ok(addresses)
    }

    fn frontends(
        &mut self,
        sources: &Party,
        service: &ServiceStatus,
        end: &End,
        port: Option<&Port>,
    ) -> Result<Vec<Aim>, QueryError> {
        let is_asked = |frontend: &&FrontendStatus| match port {
            None => true,
            Some(Port::Number(protocol, number)) => {
                (frontend.id.protocol, frontend.id.port) == (*protocol, *number)
            }
            Some(Port::Name(protocol, name)) => {
                frontend.port_name == *name && protocol.is_none_or(|p| p == frontend.id.protocol)
            }
            Some(Port::Icmp) => false,
        };
        let is_at = |frontend: &&FrontendStatus| match end {
            End::Address(address) => frontend.id.address == *address,
            _ => true,
        };
        let frontends: Vec<_> = service
            .frontends
            .iter()
            .filter(is_at)
            .filter(is_asked)
            .collect();
        if frontends.is_empty() {
            let ports: BTreeSet<_> = service
                .frontends
                .iter()
                .map(|frontend| format!("{}/{}", frontend.id.port, frontend.id.protocol))
                .collect();
            let ports: Vec<_> = ports.into_iter().collect();
            let why = match ports.is_empty() {
                true => "has no address that this node serves: ask for one of its pods".to_owned(),
                false => format!("has no such port: it has {}", ports.join(", ")),
            };
            return Err(QueryError::Nothing(format!(
                "Service {} {why}",
                service.key
            )));
        }
        self.notes.extend(service.problems.iter().cloned());
        let mut aims = Vec::new();
        for frontend in frontends {
            if let Some(source) = of_family(&sources.addresses, frontend.id.address) {
                aims.push(Aim::Frontend {
                    source,
                    service: service.key.to_string(),
                    frontend: frontend.clone(),
                });
            }
        }
        Ok(aims)
    }

    fn addresses(
        &self,
        sources: &Party,
        target: &Party,
        port: Option<&Port>,
    ) -> Result<Vec<Aim>, QueryError> {
        let mut aims = Vec::new();
        let mut has_v = [false, false];
        for destination in &target.addresses {
            let done = &mut has_v[usize::from(destination.is_ipv6())];
            let Some(source) = of_family(&sources.addresses, *destination).filter(|_| !*done)
            else {
                continue;
            };
            *done = true;
            let aim = |(transport, ports)| Aim::Address {
                source,
                destination: *destination,
                transport,
                ports,
            };
            aims.extend(
                self.transports(source, *destination, port)?
                    .into_iter()
                    .map(aim),
            );
        }
        Ok(aims)
    }

    /// The ports that are asked for, or where none is, those that rules treat alike.
    fn transports(
        &self,
        source: IpAddr,
        destination: IpAddr,
        port: Option<&Port>,
    ) -> Result<Vec<(Transport, String)>, QueryError> {
        let one = |protocol: Protocol, number: u16| {
            let transport = Transport::Port(protocol, number);
            (transport, format!("{number}/{protocol}"))
        };
        match port {
            Some(Port::Number(protocol, number)) => Ok(vec![one(*protocol, *number)]),
            Some(Port::Icmp) if destination.is_ipv4() => {
                Ok(vec![(Transport::Other(1), "ICMP".into())])
            }
            Some(Port::Icmp) => Ok(vec![(Transport::Other(58), "ICMPv6".into())]),
            Some(Port::Name(protocol, name)) => {
                let Owner::Pod(pod) = self.snapshot.index.owner(destination) else {
                    let why = format!("{destination} is no pod, and only pods name a port {name}");
                    return Err(QueryError::Nothing(why));
                };
                let named = pod.ports.iter().filter(|p| p.name == *name);
                let named = named.filter(|p| protocol.is_none_or(|of| of == p.protocol));
                let found: Vec<_> = named.map(|p| one(p.protocol, p.port)).collect();
                if found.is_empty() {
                    let names: BTreeSet<_> = pod.ports.iter().map(|p| p.name.as_str()).collect();
                    let names: Vec<_> = names.into_iter().collect();
                    let has = match names.is_empty() {
                        true => "no named port".to_owned(),
                        false => names.join(", "),
                    };
                    let why = format!("pod {} has no port named {name}: it has {has}", pod.key);
                    return Err(QueryError::Nothing(why));
                }
                Ok(found)
            }
            None => Ok(self.classes(source, destination)),
        }
    }

    /// Ports grouped by the words of their verdict.
    fn classes(&self, source: IpAddr, destination: IpAddr) -> Vec<(Transport, String)> {
        let cluster = self.snapshot.cluster();
        let mut groups: Vec<(String, Vec<Class>)> = Vec::new();
        for class in reach::classes(&cluster, source, destination) {
            let flow = Flow {
                source,
                destination,
                transport: class.transport,
            };
            let verdict = cluster.judge(&flow).to_string();
            match groups.iter_mut().find(|(of, _)| *of == verdict) {
                Some((_, classes)) => classes.push(class),
                None => groups.push((verdict, vec![class])),
            }
        }
        let group =
            |(_, classes): (String, Vec<Class>)| (classes[0].transport, Class::describe(&classes));
        groups.into_iter().map(group).collect()
    }
}

/// An address of the family of `other`; a routable one where there is a choice.
fn of_family(addresses: &BTreeSet<IpAddr>, other: IpAddr) -> Option<IpAddr> {
    let mut same = addresses
        .iter()
        .filter(|ip| ip.is_ipv4() == other.is_ipv4());
    same.next().copied()
}

/// Neither loopback nor link-local.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}
