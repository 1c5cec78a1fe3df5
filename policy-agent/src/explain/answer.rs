//! The answer to a [`Query`](super::query::Query), as it is printed and as JSON has it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::kernel::KernelCheck;

/// The whole answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who connects.
    pub from: String,
    /// To whom.
    pub to: String,
    /// The whole of it.
    pub outcome: Outcome,
    /// What there is to know before.
    pub notes: Vec<String>,
    /// Each way that the connection can go: by family, endpoint and, where no port was
    /// asked for, by what rules treat alike.
    pub connections: Vec<Connection>,
}

/// What all ways come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// All are allowed.
    Allowed,
    /// None is.
    Denied,
    /// Some are.
    Partly,
    /// The kernel does otherwise than it should.
    Disagreement,
}

/// One way that a connection can go.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Where it comes from.
    pub source: IpAddr,
    /// The Service that it is sent to.
    pub service: Option<ServiceStep>,
    /// Where it goes, after translation; `None` for a Service that has no endpoint.
    pub destination: Option<IpAddr>,
    /// Whose address that is.
    pub to: Option<String>,
    /// Protocol and port there.
    pub ports: String,
    /// Between whom it runs.
    pub path: String,
    /// Whether it comes about.
    pub allowed: bool,
    /// The source's side.
    pub egress: Option<Side>,
    /// The destination's side.
    pub ingress: Option<Side>,
    /// What the kernel does.
    pub kernel: KernelCheck,
}

/// What a Service does with the connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStep {
    /// `namespace/name`.
    pub service: String,
    /// Address, protocol and port.
    pub frontend: String,
    /// Which endpoints it goes to, or why to none.
    pub how: String,
    /// The slot of the endpoint.
    pub slot: Option<u32>,
    /// Among how many.
    pub slots: usize,
}

/// What one end's policies say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// The pod, `namespace/name`; for a container that is no pod, its address.
    pub pod: String,
    /// What they say.
    pub decision: Decision,
    /// The rule that decides.
    pub by: Option<RuleText>,
    /// All policies that isolate the pod in this direction; of one that none is enforced on,
    /// those that select it in vain.
    pub isolated_by: Vec<String>,
    /// The interface of another plugin that it is reached by, where that is why none is
    /// enforced.
    #[serde(default)]
    pub reached_by: Option<String>,
    /// For a denial, the rule that came nearest to allowing it.
    pub nearest: Option<NearMiss>,
    /// Policies that are audited only, `Admin name` and `Baseline name` among them.
    pub audited: Vec<String>,
    /// Whether some of them would deny it.
    pub audit_would_deny: bool,
    /// Which.
    pub would_be_denied_by: Vec<String>,
    /// The node whose agent decides, where that is not this one.
    pub decided_on: Option<String>,
}

/// What policies say of one side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Decision {
    /// No policy isolates it.
    NotIsolated,
    /// A rule allows it.
    Allowed,
    /// It is isolated and no rule allows it, or a rule denies it.
    Denied,
    /// The pod's object is not known: all is denied until it is.
    Closed,
    /// Its Namespace object is not known, on which ClusterNetworkPolicies hang: the same.
    NoNamespace,
    /// Another plugin has attached it: it is reached past all policies.
    NotEnforced,
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleText {
    /// Its policy.
    pub policy: String,
    /// Its field: `spec.ingress[0]`.
    pub field: String,
    /// It in words.
    pub text: String,
}

/// A rule that nearly matched.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NearMiss {
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleText,
    /// What of it did not match.
    pub why: Vec<String>,
}

impl Side {
    pub(super) fn new(pod: String, decision: Decision) -> Self {
        Self {
            pod,
            decision,
            by: None,
            isolated_by: Vec::new(),
            reached_by: None,
            nearest: None,
            audited: Vec::new(),
            audit_would_deny: false,
            would_be_denied_by: Vec::new(),
            decided_on: None,
        }
    }

    /// Whether this side lets the connection pass.
    pub const fn is_allowed(&self) -> bool {
        match self.decision {
            Decision::NotIsolated | Decision::Allowed | Decision::NotEnforced => true,
            Decision::Denied | Decision::Closed | Decision::NoNamespace => false,
        }
    }
}
