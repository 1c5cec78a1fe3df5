//! `lint`: policies that are valid and probably not what was meant.
//!
//! Each finding has a code, the object and the field that it is about, and says what to do.
//! Nothing here changes what is enforced.

mod cluster;
mod peers;
mod policies;
mod ports;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::policy::Rule;
use crate::model::{NetworkPolicy, Pod};
use crate::snapshot::Snapshot;
use crate::verdict::Direction;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The policy does not do what it says.
    Error,
    /// It probably does not do what was meant.
    Warning,
    /// It can be written more simply.
    Hint,
}

/// Something that is probably not meant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// `Kind namespace/name`.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// What kind of finding, for filters: `selects-nothing`.
    pub code: String,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub action: String,
}

/// What is to be said of the policies of a namespace, or of all and of the
/// ClusterNetworkPolicies, sorted by object and field.
pub fn lint(snapshot: &Snapshot, namespace: Option<&str>) -> Vec<Finding> {
    let policies = snapshot.index.policies.values();
    let mut findings = Vec::new();
    for policy in policies.filter(|p| namespace.is_none_or(|name| *name == *p.key.namespace)) {
        let mut linter = Linter {
            snapshot,
            policy,
            findings: &mut findings,
        };
        linter.policy();
        linter.peers();
        linter.ports();
    }
    if namespace.is_none() {
        findings.extend(cluster::findings(snapshot));
    }
    findings.sort();
    findings.dedup();
    findings
}

/// One policy under examination.
struct Linter<'a> {
    snapshot: &'a Snapshot,
    policy: &'a NetworkPolicy,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Linter<'a> {
    fn find(
        &mut self,
        (severity, code): (Severity, &str),
        field: impl Into<String>,
        message: impl Into<String>,
        action: impl Into<String>,
    ) {
        self.findings.push(Finding {
            object: format!("NetworkPolicy {}", self.policy.key),
            field: field.into(),
            severity,
            code: code.to_owned(),
            message: message.into(),
            action: action.into(),
        });
    }

    /// The rules with their direction and number.
    fn rules(&self) -> Vec<(Direction, usize, &'a Rule)> {
        let policy = self.policy;
        let of = |direction, rules: &'a Option<Vec<Rule>>| {
            let rules = rules.iter().flatten().enumerate();
            rules.map(move |(number, rule)| (direction, number, rule))
        };
        of(Direction::Ingress, &policy.ingress)
            .chain(of(Direction::Egress, &policy.egress))
            .collect()
    }

    /// The pods that the policy selects; those on the host network are none of them.
    fn selected(&self) -> impl Iterator<Item = &'a Pod> {
        let policy = self.policy;
        let pods = self.snapshot.index.pods_in(&policy.key.namespace);
        pods.filter(|pod| !pod.host_network && policy.pod_selector.matches(&pod.labels))
    }
}

fn field(direction: Direction, number: usize) -> String {
    format!("spec.{direction}[{number}]")
}

impl fmt::Display for Finding {
    /// Two lines, without a final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Hint => "hint",
        };
        write!(
            f,
            "{severity} {} {} {}: {}\n  {}",
            self.code, self.object, self.field, self.message, self.action
        )
    }
}

#[cfg(test)]
mod tests;
