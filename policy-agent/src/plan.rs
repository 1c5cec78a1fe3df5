//! `plan`: what manifests would change, before they are applied: which pairs of pods would
//! reach each other otherwise, and which connections that are open now would be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use dataplane::netlink::TrackedFlow;
use proxy::model::{ObjectKey, Protocol};
use serde::{Deserialize, Serialize};

use crate::event::Object;
use crate::explain::whose;
use crate::matrix::{Cell, Pods, cell};
use crate::snapshot::Snapshot;
use crate::source::manifests;
use crate::verdict::{Flow, Transport};

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// Name of the file, by which it is told whether it is JSON.
    pub file: String,
    /// Its text.
    pub text: String,
    /// The objects are to be deleted, not applied.
    pub delete: bool,
}

/// What would change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The objects that were understood.
    pub objects: Vec<String>,
    /// What of the file cannot be used, or is left alone.
    pub problems: Vec<String>,
    /// The pairs of pods that reach each other otherwise afterwards.
    pub changes: Vec<PairChange>,
    /// Connections through this node that would be cut.
    pub cut: Vec<CutFlow>,
    /// Connections through this node that were looked at; `None` where conntrack could not
    /// be read.
    pub flows: Option<usize>,
}

/// A pair that changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairChange {
    /// Now.
    pub before: Cell,
    /// Afterwards.
    pub after: Cell,
}

/// A connection that would be cut.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct CutFlow {
    /// Who connected.
    pub from: String,
    /// Address and port.
    pub source: String,
    /// To whom.
    pub to: String,
    /// Address, port and protocol, after translation.
    pub destination: String,
    /// What was addressed, where that was translated.
    pub via: Option<String>,
    /// Why it would be denied.
    pub because: String,
}

/// Works out what the manifests would change. `flows` are those of this node's conntrack.
pub fn plan(snapshot: &Snapshot, proposal: &Proposal, flows: Option<&[TrackedFlow]>) -> Plan {
    let parsed = manifests::parse(Path::new(&proposal.file), proposal.text.as_bytes());
    let mut after = snapshot.clone();
    let mut objects = Vec::new();
    let mut problems: Vec<_> = parsed.problems.iter().map(ToString::to_string).collect();
    let left_alone = parsed.other_kinds.iter();
    problems.extend(left_alone.map(|kind| format!("{kind} is left alone")));
    for object in parsed.objects {
        let (kind, key) = (object.kind(), object.key());
        let of_policy = match &object {
            Object::NetworkPolicy(policy) => &policy.problems[..],
            Object::ClusterNetworkPolicy(policy) => &policy.problems,
            _ => &[],
        };
        let named = of_policy.iter();
        problems.extend(named.map(|problem| format!("{kind} {key}: {problem}")));
        if apply(&mut after, object, proposal.delete) {
            objects.push(format!("{kind} {key}"));
        } else {
            problems.push(format!(
                "{kind} {key} is left alone: no policy depends on it"
            ));
        }
    }
    Plan {
        objects,
        problems,
        changes: changes(snapshot, &after),
        cut: cut(snapshot, &after, flows.unwrap_or_default()),
        flows: flows.map(<[_]>::len),
    }
}

/// Whether the object is one that verdicts depend on.
fn apply(snapshot: &mut Snapshot, object: Object, delete: bool) -> bool {
    let index = &mut snapshot.index;
    let key = object.key();
    match object {
        Object::Namespace(_) if delete => {
            index.namespaces.remove(&*key.name);
            // What is in it goes with it.
            let pods: Vec<_> = index
                .pods_in(&key.name)
                .map(|pod| pod.key.clone())
                .collect();
            for pod in pods {
                index.set_pod(&pod, None);
            }
            index
                .policies
                .retain(|policy, _| policy.namespace != key.name);
        }
        Object::Namespace(namespace) => {
            index.namespaces.insert(namespace.name.clone(), namespace);
        }
        Object::Pod(pod) => {
            // A manifest has no status: the pod keeps its addresses and its node.
            let known = index.pods.get(&key).cloned();
            let pod = (!delete).then(|| match known {
                Some(known) if pod.ips.is_empty() => crate::model::Pod {
                    ips: known.ips,
                    node: pod.node.or(known.node),
                    uid: known.uid,
                    created: known.created,
                    ..pod
                },
                _ => pod,
            });
            index.set_pod(&key, pod);
        }
        Object::NetworkPolicy(_) if delete => {
            index.policies.remove(&key);
        }
        Object::NetworkPolicy(policy) => {
            index.policies.insert(key, policy);
        }
        Object::ClusterNetworkPolicy(_) if delete => {
            index.cluster_policies.remove(&*key.name);
        }
        Object::ClusterNetworkPolicy(policy) => {
            index.cluster_policies.insert(policy.name.clone(), policy);
        }
        Object::Node(_)
        | Object::Service(_)
        | Object::EndpointSlice(_)
        | Object::ServiceCidr(_) => return false,
    }
    true
}

fn pods(snapshot: &Snapshot) -> Pods {
    let pods = snapshot.index.pods.values();
    pods.map(|pod| (pod.key.clone(), snapshot.index.addresses(pod)))
        .filter(|(_, addresses)| !addresses.is_empty())
        .collect()
}

/// The pairs that reach each other otherwise. A pod that comes or goes is no pair.
fn changes(before: &Snapshot, after: &Snapshot) -> Vec<PairChange> {
    let (old, new) = (pods(before), pods(after));
    let stay: Vec<_> = old
        .iter()
        .filter_map(|(key, addresses)| Some((key, addresses, new.get(key)?)))
        .collect();
    let touched = touched(before, after);
    let (was, is) = (before.cluster(), after.cluster());
    let mut changes = Vec::new();
    for (from, old_from, new_from) in &stay {
        for (to, old_to, new_to) in stay.iter().filter(|(to, ..)| to != from) {
            if !touched.concerns(from) && !touched.concerns(to) {
                continue;
            }
            let before = cell(&was, (from, old_from), (to, old_to));
            let after = cell(&is, (from, new_from), (to, new_to));
            if before != after {
                changes.push(PairChange { before, after });
            }
        }
    }
    changes
}

/// Namespaces with a policy that changes: verdicts of other pairs stay. `None`: something
/// changes that may concern every pair.
struct Touched(Option<BTreeSet<Arc<str>>>);

impl Touched {
    fn concerns(&self, pod: &ObjectKey) -> bool {
        let namespaces = self.0.as_ref();
        namespaces.is_none_or(|namespaces| namespaces.contains(&pod.namespace))
    }
}

fn touched(before: &Snapshot, after: &Snapshot) -> Touched {
    let (old, new) = (&before.index, &after.index);
    if old.namespaces != new.namespaces
        || old.pods != new.pods
        || old.cluster_policies != new.cluster_policies
    {
        return Touched(None);
    }
    let keys: BTreeSet<_> = old.policies.keys().chain(new.policies.keys()).collect();
    let changed = keys
        .into_iter()
        .filter(|key| old.policies.get(*key) != new.policies.get(*key));
    Touched(Some(changed.map(|key| key.namespace.clone()).collect()))
}

/// The flows that are allowed now and would not be.
fn cut(before: &Snapshot, after: &Snapshot, flows: &[TrackedFlow]) -> Vec<CutFlow> {
    let (was, is) = (before.cluster(), after.cluster());
    let mut cut = BTreeMap::new();
    for tracked in flows {
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = protocols
            .into_iter()
            .find(|p| p.number() == tracked.protocol);
        let flow = Flow {
            source: tracked.source.ip(),
            destination: tracked.destination.ip(),
            transport: match protocol {
                Some(protocol) => Transport::Port(protocol, tracked.destination.port()),
                None => Transport::Other(tracked.protocol),
            },
        };
        if !was.judge(&flow).is_allowed() {
            continue;
        }
        let verdict = is.judge(&flow);
        if verdict.is_allowed() {
            continue;
        }
        let name = protocol.map_or_else(|| tracked.protocol.to_string(), |p| p.to_string());
        let at = |address: std::net::SocketAddr| format!("{address}/{name}");
        let is_translated = tracked.frontend != tracked.destination;
        cut.insert(
            (tracked.source, tracked.destination, tracked.protocol),
            CutFlow {
                from: whose(before, flow.source),
                source: tracked.source.to_string(),
                to: whose(before, flow.destination),
                destination: at(tracked.destination),
                via: is_translated.then(|| at(tracked.frontend)),
                because: verdict.to_string(),
            },
        );
    }
    cut.into_values().collect()
}

impl fmt::Display for Plan {
    /// Some lines, without a final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "understood: {}", list(&self.objects))?;
        for problem in &self.problems {
            write!(f, "\nproblem: {problem}")?;
        }
        write!(f, "\n{} pairs of pods change", self.changes.len())?;
        for change in &self.changes {
            let (before, after) = (&change.before, &change.after);
            write!(
                f,
                "\n  {} -> {}: {} -> {}",
                before.from,
                before.to,
                before.text(),
                after.text()
            )?;
        }
        match self.flows {
            None => write!(f, "\nopen connections could not be read")?,
            Some(count) => write!(
                f,
                "\n{} of {count} open connections of this node would be cut",
                self.cut.len()
            )?,
        }
        for flow in &self.cut {
            let via = flow.via.iter().map(|via| format!(" via {via}"));
            let via: String = via.collect();
            write!(
                f,
                "\n  {} ({}) -> {} ({}){via}\n    {}",
                flow.from, flow.source, flow.to, flow.destination, flow.because
            )?;
        }
        Ok(())
    }
}

fn list(texts: &[String]) -> String {
    match texts {
        [] => "nothing".to_owned(),
        texts => texts.join(", "),
    }
}

#[cfg(test)]
mod tests;
