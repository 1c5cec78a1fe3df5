//! ClusterNetworkPolicies.

use super::{Finding, Severity};
use crate::model::{ClusterNetworkPolicy, Pod};
use crate::snapshot::Snapshot;

/// What is to be said of all of them.
pub(super) fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let mut policies: Vec<_> = snapshot.index.cluster_policies.values().collect();
    policies.sort_by(|a, b| a.precedence(b));
    let mut findings = Vec::new();
    for (at, policy) in policies.iter().enumerate() {
        findings.extend(not_understood(policy));
        findings.extend(selects_nothing(policy, snapshot));
        let equals = policies[..at].iter();
        findings.extend(equals.filter_map(|other| equal_priority(policy, other, snapshot)));
    }
    findings
}

fn not_understood(policy: &ClusterNetworkPolicy) -> impl Iterator<Item = Finding> {
    policy.problems.iter().map(|problem| {
        let (field, message) = problem.split_once(": ").unwrap_or(("spec", problem));
        Finding {
            message: message.to_owned(),
            action: "until it is corrected it fails closed: what would accept matches nothing, \
                     what would deny or pass denies"
                .to_owned(),
            ..of(policy, (Severity::Error, "not-understood"), field)
        }
    })
}

fn selects_nothing(policy: &ClusterNetworkPolicy, snapshot: &Snapshot) -> Option<Finding> {
    let is_selected = selected(policy, snapshot).next().is_some();
    (!is_selected).then(|| Finding {
        message: "it selects no pod".to_owned(),
        action: "compare it with the labels of namespaces and pods".to_owned(),
        ..of(
            policy,
            (Severity::Warning, "selects-nothing"),
            "spec.subject",
        )
    })
}

/// The API leaves open which of two is asked first. `other` is, by its name.
fn equal_priority(
    policy: &ClusterNetworkPolicy,
    other: &ClusterNetworkPolicy,
    snapshot: &Snapshot,
) -> Option<Finding> {
    let is_equal = (policy.tier, policy.priority) == (other.tier, other.priority);
    let has_both = |rules: fn(&ClusterNetworkPolicy) -> bool| rules(policy) && rules(other);
    let meet = has_both(|policy| !policy.ingress.is_empty())
        || has_both(|policy| !policy.egress.is_empty());
    if !is_equal || !meet || policy.audit || other.audit {
        return None;
    }
    let namespace = |pod: &Pod| snapshot.index.namespaces.get(&*pod.key.namespace);
    let of_both = selected(policy, snapshot)
        .find(|pod| other.subject.contains(pod, namespace(pod)) == Some(true))?;
    Some(Finding {
        message: format!(
            "{} of the tier {} has the priority {}, too, and {} is subject to both: the API \
             leaves open which of them is asked first, here it is {0}, by its name",
            other.name, policy.tier, policy.priority, of_both.key
        ),
        action: "give them different priorities".to_owned(),
        ..of(
            policy,
            (Severity::Warning, "equal-priority"),
            "spec.priority",
        )
    })
}

/// The pods that are subject to it.
fn selected<'a>(
    policy: &ClusterNetworkPolicy,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = &'a Pod> {
    let index = &snapshot.index;
    let is_subject = |pod: &&Pod| {
        let namespace = index.namespaces.get(&*pod.key.namespace);
        !pod.host_network && policy.subject.contains(pod, namespace) == Some(true)
    };
    index.pods.values().filter(is_subject)
}

/// A finding without words.
fn of(policy: &ClusterNetworkPolicy, (severity, code): (Severity, &str), field: &str) -> Finding {
    Finding {
        object: format!("ClusterNetworkPolicy {}", policy.name),
        field: field.to_owned(),
        severity,
        code: code.to_owned(),
        message: String::new(),
        action: String::new(),
    }
}
