//! The tiers of ClusterNetworkPolicies.

use super::cluster::Cluster;
use super::{ClusterRuleRef, Direction, Judgement};
use crate::model::cluster_policy::{Action, ClusterRule, Tier};
use crate::model::policy::Rule;
use crate::model::{ClusterNetworkPolicy, Pod};

impl<'a> Cluster<'a> {
    /// The ClusterNetworkPolicies of a tier that select `pod` and have rules in that
    /// direction, in the order in which they are asked, each with these rules.
    pub fn selecting(
        &self,
        tier: Tier,
        pod: &Pod,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a ClusterNetworkPolicy, &'a [ClusterRule])> {
        let namespace = self.namespace(pod);
        let of_tier = self.cluster_policies.iter().copied();
        of_tier
            .filter(move |policy| policy.tier == tier)
            .filter(move |policy| policy.subject.contains(pod, namespace) == Some(true))
            .map(move |policy| match direction {
                Direction::Ingress => (policy, &policy.ingress[..]),
                Direction::Egress => (policy, &policy.egress[..]),
            })
            .filter(|(_, rules)| !rules.is_empty())
    }

    /// Whether it is known which ClusterNetworkPolicies select the pod.
    pub(super) fn knows_tiers_of(&self, pod: &Pod) -> bool {
        let namespace = self.namespace(pod);
        let mut policies = self.cluster_policies.iter();
        policies.all(|policy| policy.subject.contains(pod, namespace).is_some())
    }

    /// Asks a tier: the first rule that `matches` decides, or leaves it to the next tier.
    pub(super) fn tier(
        &self,
        tier: Tier,
        direction: Direction,
        pod: &'a Pod,
        matches: impl Fn(&Rule) -> bool,
    ) -> Option<Judgement<'a>> {
        let selecting = self.selecting(tier, pod, direction);
        let mut rules = selecting.flat_map(|(policy, rules)| {
            let refer = move |(index, rule)| ClusterRuleRef {
                policy,
                direction,
                index,
                rule,
            };
            rules.iter().enumerate().map(refer)
        });
        let by = rules.find(|by| matches(&by.rule.matches))?;
        let pod = &pod.key;
        match by.rule.action {
            Action::Accept => Some(Judgement::Accepted { pod, by }),
            Action::Deny => Some(Judgement::Refused { pod, by }),
            Action::Pass => None,
        }
    }
}
