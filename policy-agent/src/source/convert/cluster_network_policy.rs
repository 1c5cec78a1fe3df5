//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
//!
//! The type is our own, as narrow as it is needed: the API has no Rust package. It
//! keeps the fields that it does not know, because a rule with such a field says
//! something that we would not do, and fails closed: Accept matches nothing, Deny and Pass
//! deny everything. The API asks for that where a peer has no known field; the same holds
//! for whatever else of a rule cannot be understood. Where it is not known which pods a
//! policy is for, or how it stands to others, it can take away but not give: it is asked
//! first, Accept rules match nothing, and Pass rules deny.

mod object;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as MetaSelector;
use proxy::model::Protocol;

use super::network_policy::{Problems, audit, parse_prefix, parse_selector};
use super::{Convert, ConvertError, is_port_name, object_key, port};
use crate::event::{Kind, Object};
use crate::model::LabelSelector;
use crate::model::cluster_policy::{
    Action, ClusterNetworkPolicy as Model, ClusterRule, PodSelection, Tier,
};
use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};
use object::{
    NamespacedPod, PeerSpec, ProtocolSpec, RuleSpec, Spec, Subject, TransportSpec, Unknown,
};

pub use object::ClusterNetworkPolicy;

/// Highest `spec.priority`.
const MAX_PRIORITY: i64 = 1000;

/// `from` or `to`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Ingress,
    Egress,
}

impl Convert for ClusterNetworkPolicy {
    const KIND: Kind = Kind::ClusterNetworkPolicy;

    fn convert(mut self) -> Result<Option<Object>, ConvertError> {
        let name = object_key(Self::KIND, &self.metadata)?.name;
        let mut problems = Problems::default();
        let audit = audit(self.metadata.annotations.as_ref(), &mut problems);
        let place = problems.note(self.spec.place());
        let (subject, is_subject_known) = self.spec.subject.selection(&mut problems);
        let may_give = place.is_some() && is_subject_known;
        let mut rules = |side: Side, rules: &[RuleSpec]| -> Vec<ClusterRule> {
            let parsed = rules.iter().enumerate();
            let parsed = parsed.map(|(i, rule)| rule.parse(side, i, &mut problems));
            let parsed = parsed.map(|rule| if may_give { rule } else { rule.only_taking() });
            parsed.collect()
        };
        let ingress = rules(Side::Ingress, &self.spec.ingress);
        let egress = rules(Side::Egress, &self.spec.egress);
        let (tier, priority) = place
            .filter(|_| is_subject_known)
            .unwrap_or((Tier::Admin, 0));
        Ok(Some(Object::ClusterNetworkPolicy(Model {
            name: name.to_string(),
            uid: self.metadata.uid.take().unwrap_or_default(),
            tier,
            priority,
            subject,
            ingress,
            egress,
            audit,
            problems: problems.problems,
        })))
    }
}

impl ClusterRule {
    /// The rule in a policy of which it is not known for whom it is.
    fn only_taking(self) -> Self {
        match self.action {
            Action::Accept => Self::accept_nothing(self.name),
            Action::Deny => self,
            Action::Pass => Self {
                action: Action::Deny,
                ..self
            },
        }
    }
}

impl Spec {
    fn place(&self) -> Result<(Tier, u16), ConvertError> {
        refuse_unknown("spec", &self.unknown)?;
        let tier = match self.tier.as_str() {
            "Admin" => Tier::Admin,
            "Baseline" => Tier::Baseline,
            other => {
                return Err(ConvertError::value(
                    "spec.tier",
                    other,
                    "use Admin or Baseline",
                ));
            }
        };
        let Some(priority) = self.priority else {
            return Err(ConvertError::missing(
                "spec.priority",
                "give a number from 0 to 1000",
            ));
        };
        let in_range = u16::try_from(priority)
            .ok()
            .filter(|_| priority <= MAX_PRIORITY);
        let priority = in_range.ok_or_else(|| {
            ConvertError::value("spec.priority", &priority, "use a number from 0 to 1000")
        })?;
        Ok((tier, priority))
    }
}

impl Subject {
    /// The pods that are or may be selected, and whether it is known which.
    fn selection(&self, problems: &mut Problems) -> (PodSelection, bool) {
        let parsed = refuse_unknown("spec.subject", &self.unknown).and_then(|()| {
            match (&self.namespaces, &self.pods) {
                (Some(namespaces), None) => of_namespaces("spec.subject.namespaces", namespaces),
                (None, Some(pods)) => pods.parse("spec.subject.pods"),
                (Some(_), Some(_)) => Err(ConvertError::conflict(
                    "spec.subject",
                    "has namespaces and pods: give one of them",
                )),
                (None, None) => Err(ConvertError::missing(
                    "spec.subject",
                    "give it namespaces or pods",
                )),
            }
        });
        match problems.note(parsed) {
            Some(selection) => (selection, true),
            None => (PodSelection::everything(), false),
        }
    }
}

impl NamespacedPod {
    fn parse(&self, path: &str) -> Result<PodSelection, ConvertError> {
        refuse_unknown(path, &self.unknown)?;
        let namespaces = format!("{path}.namespaceSelector");
        Ok(PodSelection {
            namespaces: parse_selector(&namespaces, &self.namespace_selector)?,
            pods: parse_selector(&format!("{path}.podSelector"), &self.pod_selector)?,
        })
    }
}

impl RuleSpec {
    /// The rule, or what stands for one that cannot be understood.
    fn parse(&self, side: Side, index: usize, problems: &mut Problems) -> ClusterRule {
        let path = match side {
            Side::Ingress => format!("spec.ingress[{index}]"),
            Side::Egress => format!("spec.egress[{index}]"),
        };
        let name = self.name.clone();
        let action = match self.action.as_str() {
            "Accept" => Ok(Action::Accept),
            "Deny" => Ok(Action::Deny),
            "Pass" => Ok(Action::Pass),
            other => Err(ConvertError::value(
                format!("{path}.action"),
                other,
                "use Accept, Deny or Pass",
            )),
        };
        let action = problems.note(action).unwrap_or(Action::Deny);
        match (problems.note(self.matches(side, &path)), action) {
            (Some(matches), action) => ClusterRule {
                name,
                action,
                matches,
            },
            (None, Action::Accept) => ClusterRule::accept_nothing(name),
            (None, Action::Deny | Action::Pass) => ClusterRule::deny_all(name),
        }
    }

    fn matches(&self, side: Side, path: &str) -> Result<Rule, ConvertError> {
        refuse_unknown(path, &self.unknown)?;
        let (field, listed, misplaced, other) = match side {
            Side::Ingress => ("from", &self.from, "to", &self.to),
            Side::Egress => ("to", &self.to, "from", &self.from),
        };
        if !other.is_empty() {
            let problem = format!("belongs to the other direction: use {field}");
            return Err(ConvertError::conflict(
                format!("{path}.{misplaced}"),
                problem,
            ));
        }
        if listed.is_empty() {
            return Err(ConvertError::missing(
                format!("{path}.{field}"),
                "list at least one peer",
            ));
        }
        let mut peers = Vec::new();
        for (i, peer) in listed.iter().enumerate() {
            peers.extend(peer.parse(side, &format!("{path}.{field}[{i}]"))?);
        }
        let ports = self.ports(path)?;
        let has_addresses = |peer: &Peer| matches!(peer, Peer::IpBlock { .. } | Peer::Nodes(_));
        if let Ports::Of(ports) = &ports
            && ports.iter().any(|p| matches!(p, PortMatch::Named(..)))
            && peers.iter().any(has_addresses)
        {
            return Err(ConvertError::conflict(
                format!("{path}.protocols"),
                "destinationNamedPort does not go with networks or nodes, which have no named \
                 ports: make them two rules",
            ));
        }
        Ok(Rule {
            peers: Peers::Of(peers),
            ports,
        })
    }

    fn ports(&self, path: &str) -> Result<Ports, ConvertError> {
        let Some(protocols) = &self.protocols else {
            return Ok(Ports::Any);
        };
        if protocols.is_empty() {
            return Err(ConvertError::missing(
                format!("{path}.protocols"),
                "list at least one, or leave the field out for all",
            ));
        }
        let mut ports = Vec::new();
        for (i, protocol) in protocols.iter().enumerate() {
            ports.extend(protocol.parse(&format!("{path}.protocols[{i}]"))?);
        }
        Ok(Ports::Of(ports))
    }
}

impl PeerSpec {
    fn parse(&self, side: Side, path: &str) -> Result<Vec<Peer>, ConvertError> {
        refuse_unknown(path, &self.unknown)?;
        let given = [
            ("namespaces", self.namespaces.is_some()),
            ("pods", self.pods.is_some()),
            ("nodes", self.nodes.is_some()),
            ("networks", !self.networks.is_empty()),
            ("domainNames", !self.domain_names.is_empty()),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        let given: Vec<_> = given.map(|(field, _)| field).collect();
        match given[..] {
            ["namespaces"] | ["pods"] => {}
            ["nodes"] | ["networks"] if side == Side::Egress => {}
            ["domainNames"] if side == Side::Egress => {
                return Err(ConvertError::conflict(
                    format!("{path}.domainNames"),
                    "is not supported: use networks",
                ));
            }
            [field] => {
                return Err(ConvertError::conflict(
                    format!("{path}.{field}"),
                    "is a peer of egress only: use namespaces or pods",
                ));
            }
            [] => {
                return Err(ConvertError::conflict(
                    path,
                    "has no peer that this version knows: use namespaces, pods, nodes or networks",
                ));
            }
            _ => {
                return Err(ConvertError::conflict(
                    path,
                    format!("has {}: make them list entries", given.join(" and ")),
                ));
            }
        }
        if let Some(namespaces) = &self.namespaces {
            let selection = of_namespaces(&format!("{path}.namespaces"), namespaces)?;
            return Ok(vec![selection.into()]);
        }
        if let Some(pods) = &self.pods {
            return Ok(vec![pods.parse(&format!("{path}.pods"))?.into()]);
        }
        if let Some(nodes) = &self.nodes {
            let selector = parse_selector(&format!("{path}.nodes"), nodes)?;
            return Ok(vec![Peer::Nodes(selector)]);
        }
        let block = |(i, text): (usize, &String)| {
            let cidr = parse_prefix(&format!("{path}.networks[{i}]"), text)?;
            let except = Vec::new();
            Ok(Peer::IpBlock { cidr, except })
        };
        self.networks.iter().enumerate().map(block).collect()
    }
}

impl From<PodSelection> for Peer {
    fn from(selection: PodSelection) -> Self {
        Self::Pods {
            namespaces: Some(selection.namespaces),
            pods: selection.pods,
        }
    }
}

impl ProtocolSpec {
    fn parse(&self, path: &str) -> Result<Vec<PortMatch>, ConvertError> {
        refuse_unknown(path, &self.unknown)?;
        let transports = [
            ("tcp", Protocol::Tcp, &self.tcp),
            ("udp", Protocol::Udp, &self.udp),
            ("sctp", Protocol::Sctp, &self.sctp),
        ];
        let given: Vec<_> = transports
            .into_iter()
            .filter_map(|(field, protocol, transport)| Some((field, protocol, transport.as_ref()?)))
            .collect();
        match (&given[..], &self.destination_named_port) {
            ([(field, protocol, transport)], None) => {
                let range = transport.parse(&format!("{path}.{field}"))?;
                Ok(vec![PortMatch::Range(*protocol, range.0, range.1)])
            }
            // The name alone: of whatever protocol the port is.
            ([], Some(name)) if is_port_name(name) => {
                let protocols = transports.map(|(_, protocol, _)| protocol);
                let named = protocols.map(|protocol| PortMatch::Named(protocol, name.clone()));
                Ok(named.into())
            }
            ([], Some(name)) => Err(ConvertError::value(
                format!("{path}.destinationNamedPort"),
                name,
                "use a port name of at most 15 lower case letters, digits and '-'",
            )),
            ([], None) => Err(ConvertError::conflict(
                path,
                "has no protocol that this version knows: use tcp, udp, sctp or \
                 destinationNamedPort",
            )),
            _ => Err(ConvertError::conflict(
                path,
                "has several protocols: make them list entries",
            )),
        }
    }
}

impl TransportSpec {
    /// First and last port.
    fn parse(&self, path: &str) -> Result<(u16, u16), ConvertError> {
        refuse_unknown(path, &self.unknown)?;
        let path = format!("{path}.destinationPort");
        let Some(spec) = &self.destination_port else {
            return Err(ConvertError::missing(path, "give it a number or a range"));
        };
        refuse_unknown(&path, &spec.unknown)?;
        match (spec.number, &spec.range) {
            (Some(number), None) => {
                let number = port(&format!("{path}.number"), number)?;
                Ok((number, number))
            }
            (None, Some(range)) => {
                let first = port(&format!("{path}.range.start"), range.start)?;
                let last = port(&format!("{path}.range.end"), range.end)?;
                if first < last {
                    return Ok((first, last));
                }
                Err(ConvertError::value(
                    format!("{path}.range.end"),
                    &last,
                    "a range ends after its start: use number for a single port",
                ))
            }
            _ => Err(ConvertError::conflict(
                path,
                "give it either number or range",
            )),
        }
    }
}

fn of_namespaces(path: &str, selector: &MetaSelector) -> Result<PodSelection, ConvertError> {
    Ok(PodSelection {
        namespaces: parse_selector(path, selector)?,
        pods: LabelSelector::everything(),
    })
}

fn refuse_unknown(path: &str, unknown: &Unknown) -> Result<(), ConvertError> {
    // A field that is null is not there.
    match unknown.iter().find(|(_, value)| !value.is_null()) {
        None => Ok(()),
        Some((field, _)) => Err(ConvertError::conflict(
            format!("{path}.{field}"),
            "is no field that this version knows: correct its spelling or place",
        )),
    }
}
