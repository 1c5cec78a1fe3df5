//! The tiers of ClusterNetworkPolicies.

use super::cluster::Cluster;
use super::{ClusterRuleRef, Direction, Flow, Judgement};
use crate::model::cluster_policy::{Action, ClusterRule, Tier};
use crate::model::policy::Rule;
use crate::model::{ClusterNetworkPolicy, Pod};

impl<'a> Cluster<'a> {
    /// The ClusterNetworkPolicies of a tier that select `pod` and have rules in that
    /// direction, in the order in which they are asked, each with these rules. Those that
    /// are audited only are not asked.
    pub fn selecting(
        &self,
        tier: Tier,
        pod: &Pod,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a ClusterNetworkPolicy, &'a [ClusterRule])> {
        let all = self.selecting_or_audited(tier, pod, direction);
        all.filter(|(policy, _)| !policy.audit)
    }

    /// Those of [`Cluster::selecting`]'s kind that are audited only.
    pub fn auditing(
        &self,
        tier: Tier,
        pod: &Pod,
        direction: Direction,
    ) -> impl Iterator<Item = &'a ClusterNetworkPolicy> {
        let all = self.selecting_or_audited(tier, pod, direction);
        all.map(|(policy, _)| policy).filter(|policy| policy.audit)
    }

    fn selecting_or_audited(
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
        let mut enforced = self.cluster_policies.iter().filter(|policy| !policy.audit);
        enforced.all(|policy| policy.subject.contains(pod, namespace).is_some())
    }

    /// The Deny rules of audited ClusterNetworkPolicies that the flow meets on that side: each
    /// policy by itself, as if it alone were enforced beside those that are.
    pub fn would_refuse(&self, direction: Direction, flow: &Flow) -> Vec<ClusterRuleRef<'a>> {
        let Some(side) = self.side(direction, flow) else {
            return Vec::new();
        };
        if !self.knows_tiers_of(side.pod) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for tier in [Tier::Admin, Tier::Baseline] {
            let is_isolated = || self.isolating(side.pod, direction).next().is_some();
            if tier == Tier::Baseline && is_isolated() {
                break;
            }
            for (policy, rules) in self.selecting_or_audited(tier, side.pod, direction) {
                let mut rules = rules.iter().enumerate();
                let Some((index, rule)) = rules.find(|(_, rule)| side.matches(&rule.matches, ""))
                else {
                    continue;
                };
                match (policy.audit, rule.action) {
                    (true, Action::Deny) => found.push(ClusterRuleRef {
                        policy,
                        direction,
                        index,
                        rule,
                    }),
                    (true, Action::Accept | Action::Pass) => {}
                    (false, Action::Pass) => break,
                    (false, Action::Accept | Action::Deny) => return found,
                }
            }
        }
        found
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
