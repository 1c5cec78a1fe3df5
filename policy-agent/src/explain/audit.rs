//! What policies on audit would do.

use super::{Explainer, Side};
use crate::model::Pod;
use crate::model::cluster_policy::Tier;
use crate::verdict::{Direction, Flow, Judgement};

impl Explainer<'_> {
    /// Notes the audited policies that select the pod of the side, and those that would deny
    /// what is allowed now: NetworkPolicies all together, as only together they say what
    /// isolates the pod, and ClusterNetworkPolicies each by itself. `enforced` is the
    /// judgement with the former enforced, where there are any.
    pub(super) fn audit(
        &self,
        side: &mut Side,
        (direction, flow, pod): (Direction, &Flow, &Pod),
        enforced: Option<&Judgement<'_>>,
    ) {
        let of_namespace = self.snapshot.index.policies_in(&pod.key.namespace);
        let audited = of_namespace.filter(|policy| policy.audit).filter(|policy| {
            let listed = match direction {
                Direction::Ingress => policy.ingress.is_some(),
                Direction::Egress => policy.egress.is_some(),
            };
            listed && policy.pod_selector.matches(&pod.labels)
        });
        side.audited = audited.map(|policy| policy.key.to_string()).collect();
        if side.is_allowed() {
            if enforced.is_some_and(|judgement| !judgement.is_allowed()) {
                side.would_be_denied_by.clone_from(&side.audited);
            }
            let refusing = self.cluster.would_refuse(direction, flow).into_iter();
            let refusing = refusing.map(|by| format!("{} {}", by.policy.tier, by.policy.name));
            side.would_be_denied_by.extend(refusing);
        }
        for tier in [Tier::Admin, Tier::Baseline] {
            let of_tier = self.cluster.auditing(tier, pod, direction);
            let named = of_tier.map(|policy| format!("{tier} {}", policy.name));
            side.audited.extend(named);
        }
        side.audit_would_deny = !side.would_be_denied_by.is_empty();
    }
}
