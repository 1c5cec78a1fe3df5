//! `networking.k8s.io/v1` NetworkPolicy.
//!
//! Deny when unknown: whatever of a policy cannot be understood matches nothing and
//! is listed in [`NetworkPolicy::problems`]; the isolation that the policy asks for
//! stands. Where it cannot be known what is to be isolated, more is: a podSelector
//! that cannot be parsed selects the whole namespace, an unknown policyType means
//! both directions.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;

use super::{Convert, ConvertError, PortRef, object_key, parse_cidr, port_ref, protocol};
use crate::event::{Kind, Object};
use crate::model::policy::{AUDIT, NetworkPolicy, Peer, Peers, PortMatch, Ports, Rule};
use crate::model::{LabelSelector, selector::SelectorError};

type MetaSelector = k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// What went wrong so far in one policy.
#[derive(Default)]
pub(super) struct Problems {
    pub(super) problems: Vec<String>,
    /// What is understood, and hardly meant so.
    notes: Vec<String>,
}

/// Which directions a policy isolates.
struct Directions {
    ingress: bool,
    egress: bool,
}

impl Problems {
    /// The value, or `None` with the error noted.
    pub(super) fn note<T>(&mut self, result: Result<T, ConvertError>) -> Option<T> {
        result.map_err(|e| self.problems.push(e.to_string())).ok()
    }
}

impl Convert for networking::NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;

    fn convert(mut self) -> Result<Option<Object>, ConvertError> {
        let key = object_key(Self::KIND, &self.metadata)?;
        let spec = self.spec.unwrap_or_default();
        let mut problems = Problems::default();
        let audit = audit(self.metadata.annotations.as_ref(), &mut problems);
        let directions = directions(&spec, &mut problems);
        let pod_selector = match &spec.pod_selector {
            None => LabelSelector::everything(),
            Some(selector) => problems
                .note(parse_selector("spec.podSelector", selector))
                .unwrap_or_else(LabelSelector::everything),
        };
        let ingress = spec.ingress.unwrap_or_default().into_iter();
        let egress = spec.egress.unwrap_or_default().into_iter();
        let ingress = directions.ingress.then(|| {
            ingress
                .enumerate()
                .map(|(i, rule)| {
                    let path = format!("spec.ingress[{i}]");
                    problems.rule(&path, "from", rule.from, rule.ports)
                })
                .collect()
        });
        let egress = directions.egress.then(|| {
            egress
                .enumerate()
                .map(|(i, rule)| {
                    let path = format!("spec.egress[{i}]");
                    problems.rule(&path, "to", rule.to, rule.ports)
                })
                .collect()
        });
        Ok(Some(Object::NetworkPolicy(NetworkPolicy {
            key,
            uid: self.metadata.uid.take().unwrap_or_default(),
            pod_selector,
            ingress,
            egress,
            audit,
            problems: problems.problems,
            notes: problems.notes,
        })))
    }
}

impl Problems {
    fn rule(
        &mut self,
        path: &str,
        peers_field: &str,
        peers: Option<Vec<networking::NetworkPolicyPeer>>,
        ports: Option<Vec<networking::NetworkPolicyPort>>,
    ) -> Rule {
        let peers = match peers.unwrap_or_default() {
            peers if peers.is_empty() => Peers::Any,
            peers => Peers::Of(
                peers
                    .iter()
                    .enumerate()
                    .filter_map(|(i, peer)| self.peer(&format!("{path}.{peers_field}[{i}]"), peer))
                    .collect(),
            ),
        };
        let ports = match ports.unwrap_or_default() {
            ports if ports.is_empty() => Ports::Any,
            ports => Ports::Of(
                ports
                    .into_iter()
                    .enumerate()
                    .filter_map(|(i, port)| {
                        self.note(port_match(&format!("{path}.ports[{i}]"), port))
                    })
                    .collect(),
            ),
        };
        Rule { peers, ports }
    }

    fn peer(&mut self, path: &str, peer: &networking::NetworkPolicyPeer) -> Option<Peer> {
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => self.ip_block(&format!("{path}.ipBlock"), block),
            (Some(_), ..) => self.note(Err(ConvertError::conflict(
                path,
                "has an ipBlock beside a selector: make them two list entries",
            ))),
            (None, None, None) => self.note(Err(ConvertError::conflict(
                path,
                "has no podSelector, namespaceSelector or ipBlock: give it one of them",
            ))),
            (None, namespaces, pods) => {
                self.note(selectors(path, namespaces.as_ref(), pods.as_ref()))
            }
        }
    }

    /// Host bits are legal and mean nothing; whoever writes them means something else.
    fn prefix(&mut self, field: &str, text: &str) -> Option<IpNet> {
        let prefix = self.note(parse_prefix(field, text))?;
        let written = text.split('/').next().and_then(super::parse_ip);
        if written.is_some_and(|address| address != prefix.addr()) {
            self.notes.push(format!(
                "{field}: {text} has host bits and is read as {prefix}"
            ));
        }
        Some(prefix)
    }

    /// The API wants every `except` strictly inside `cidr`. One that takes nothing away is
    /// noted and left out, one that takes all away is noted and does so. One that cannot
    /// be read makes the whole block match nothing, because it is unknown what must
    /// stay out.
    fn ip_block(&mut self, path: &str, block: &networking::IPBlock) -> Option<Peer> {
        let cidr = self.prefix(&format!("{path}.cidr"), &block.cidr)?;
        let mut except = Vec::new();
        for (i, text) in block.except.iter().flatten().enumerate() {
            let field = format!("{path}.except[{i}]");
            let entry = self.prefix(&field, text)?;
            if cidr.contains(&entry) && cidr != entry {
                except.push(entry);
                continue;
            }
            if entry.contains(&cidr) {
                except.push(cidr);
            }
            self.problems.push(
                ConvertError::value(field, text, "use a prefix strictly inside cidr").to_string(),
            );
        }
        Some(Peer::IpBlock { cidr, except })
    }
}

/// A value that is neither is a mistake, and the policy is enforced.
pub(super) fn audit(
    annotations: Option<&BTreeMap<String, String>>,
    problems: &mut Problems,
) -> bool {
    match annotations
        .and_then(|all| all.get(AUDIT))
        .map(String::as_str)
    {
        Some("true") => true,
        None | Some("false") => false,
        Some(other) => {
            let field = format!("metadata.annotations[{AUDIT}]");
            let error = ConvertError::value(field, other, "use \"true\" or \"false\"");
            problems.problems.push(error.to_string());
            false
        }
    }
}

/// Rule of `SetDefaults_NetworkPolicy`: absent or empty means Ingress, and Egress as well
/// where there are egress rules.
fn directions(spec: &networking::NetworkPolicySpec, problems: &mut Problems) -> Directions {
    let listed = spec.policy_types.as_deref().unwrap_or_default();
    if listed.is_empty() {
        return Directions {
            ingress: true,
            egress: spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        };
    }
    let mut directions = Directions {
        ingress: false,
        egress: false,
    };
    for (i, entry) in listed.iter().enumerate() {
        match entry.as_str() {
            "Ingress" => directions.ingress = true,
            "Egress" => directions.egress = true,
            other => {
                directions.ingress = true;
                directions.egress = true;
                let field = format!("spec.policyTypes[{i}]");
                problems
                    .problems
                    .push(ConvertError::value(field, other, "use Ingress or Egress").to_string());
            }
        }
    }
    directions
}

fn selectors(
    path: &str,
    namespaces: Option<&MetaSelector>,
    pods: Option<&MetaSelector>,
) -> Result<Peer, ConvertError> {
    Ok(Peer::Pods {
        namespaces: namespaces
            .map(|selector| parse_selector(&format!("{path}.namespaceSelector"), selector))
            .transpose()?,
        pods: match pods {
            None => LabelSelector::everything(),
            Some(selector) => parse_selector(&format!("{path}.podSelector"), selector)?,
        },
    })
}

pub(super) fn parse_selector(
    field: &str,
    selector: &MetaSelector,
) -> Result<LabelSelector, ConvertError> {
    LabelSelector::parse(selector)
        .map_err(|e: SelectorError| ConvertError::conflict(field, e.to_string()))
}

pub(super) fn parse_prefix(field: &str, text: &str) -> Result<IpNet, ConvertError> {
    parse_cidr(text).ok_or_else(|| {
        ConvertError::value(
            field,
            text,
            "use a prefix such as 10.0.0.0/8 or 2001:db8::/32",
        )
    })
}

fn port_match(path: &str, entry: networking::NetworkPolicyPort) -> Result<PortMatch, ConvertError> {
    let protocol = protocol(&format!("{path}.protocol"), entry.protocol.as_deref())?;
    let end_field = || format!("{path}.endPort");
    let Some(value) = entry.port else {
        return match entry.end_port {
            None => Ok(PortMatch::All(protocol)),
            Some(_) => Err(ConvertError::conflict(
                end_field(),
                "needs port, where the range begins: add it",
            )),
        };
    };
    match (port_ref(&format!("{path}.port"), value)?, entry.end_port) {
        (PortRef::Number(first), None) => Ok(PortMatch::Range(protocol, first, first)),
        (PortRef::Number(first), Some(end)) => {
            let last = super::port(&end_field(), end)?;
            match last >= first {
                true => Ok(PortMatch::Range(protocol, first, last)),
                false => Err(ConvertError::value(
                    end_field(),
                    &end,
                    "the end of a range is not before port",
                )),
            }
        }
        (PortRef::Name(name), None) => Ok(PortMatch::Named(protocol, name)),
        (PortRef::Name(_), Some(_)) => Err(ConvertError::conflict(
            end_field(),
            "does not go with a port name: give port a number",
        )),
    }
}
