//! The chains of ClusterNetworkPolicies.
//!
//! Pods that the same policies of a tier select share one chain for each direction: its
//! rules accept, deny, or return to the chain of the pod's group, which goes on with the
//! next tier. That is what Pass means, and what a tier that matches nothing does.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::desired::Desired;
use dataplane::layout::INET;
use dataplane::layout::denials::{self, Denials};
use dataplane::layout::policy::Direction;
use dataplane::object::{Chain, Name};
use dataplane::rule::Verdict;

use super::hash::short_hash;
use super::rules::Writer;
use super::sets::{Content, Sets};
use crate::index::Index;
use crate::model::cluster_policy::Tier;
use crate::model::{ClusterNetworkPolicy, Pod};

/// The policies of a tier that select a pod and have rules in the direction, at least
/// one, in the order in which they are asked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TierId {
    direction: Direction,
    tier: Tier,
    policies: Vec<String>,
}

/// All chains of tiers.
#[derive(Default, Debug)]
pub(super) struct Tiers {
    chains: BTreeMap<TierId, Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Number of groups that jump to it.
    users: usize,
    used: Vec<Content>,
}

/// Whether it is known which ClusterNetworkPolicies select the pod.
pub(super) fn are_known(pod: &Pod, index: &Index) -> bool {
    let namespace = index.namespaces.get(&*pod.key.namespace);
    let mut policies = index.cluster_policies.values();
    policies.all(|policy| policy.subject.contains(pod, namespace).is_some())
}

impl TierId {
    /// The tier of a pod; `None` where it is empty.
    pub(super) fn of(pod: &Pod, tier: Tier, direction: Direction, index: &Index) -> Option<Self> {
        let namespace = index.namespaces.get(&*pod.key.namespace);
        let has_rules = |policy: &ClusterNetworkPolicy| match direction {
            Direction::Egress => !policy.egress.is_empty(),
            Direction::Ingress => !policy.ingress.is_empty(),
        };
        let all = index.cluster_policies.values();
        let mut policies: Vec<_> = all
            .filter(|policy| policy.tier == tier && has_rules(policy))
            .filter(|policy| policy.subject.contains(pod, namespace) == Some(true))
            .collect();
        policies.sort_by(|a, b| a.precedence(b));
        let names: Vec<_> = policies.iter().map(|policy| policy.name.clone()).collect();
        (!names.is_empty()).then_some(Self {
            direction,
            tier,
            policies: names,
        })
    }

    pub(super) fn contains(&self, policy: &str) -> bool {
        self.policies.iter().any(|name| name == policy)
    }

    /// The policies as comments and hashes have them.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let tier = self.tier;
        self.policies
            .iter()
            .map(move |name| format!("{tier} {name}"))
    }

    pub(super) fn chain(&self) -> Name {
        let tier = match self.tier {
            Tier::Admin => "admin",
            Tier::Baseline => "baseline",
        };
        self.direction
            .tier_chain(tier, &short_hash(&self.policies.join(",")))
    }
}

impl Tiers {
    /// The chains with their direction and policies.
    pub(super) fn named(&self) -> impl Iterator<Item = (Name, Direction, Vec<String>)> {
        let ids = self.chains.keys();
        ids.map(|id| (id.chain(), id.direction, id.names().collect()))
    }

    /// Number of chains.
    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    /// The tier is in use once more.
    pub(super) fn acquire(
        &mut self,
        id: &TierId,
        denials: Denials,
        index: &Index,
        sets: &mut Sets,
        desired: &mut Desired,
    ) {
        if let Some(shared) = self.chains.get_mut(id) {
            shared.users += 1;
            return;
        }
        let used = write_chain(id, denials, index, sets, desired);
        self.chains.insert(id.clone(), Shared { users: 1, used });
    }

    /// One use less; the last takes the chain away.
    pub(super) fn release(&mut self, id: &TierId, sets: &mut Sets, desired: &mut Desired) {
        let shared = self
            .chains
            .get_mut(id)
            .expect("released as often as acquired");
        shared.users -= 1;
        if shared.users > 0 {
            return;
        }
        let shared = self.chains.remove(id).expect("looked up above");
        let chain = id.chain();
        desired.remove_chain(&INET, &denials::tier_denial_chain(&chain));
        desired.remove_chain(&INET, &chain);
        for content in &shared.used {
            sets.release(content, desired);
        }
    }

    /// Writes the chains of which a policy has changed. Returns whether there are any.
    pub(super) fn rewrite(
        &mut self,
        policies: &BTreeSet<String>,
        denials: Denials,
        index: &Index,
        sets: &mut Sets,
        desired: &mut Desired,
    ) -> bool {
        let mut is_touched = false;
        for (id, shared) in &mut self.chains {
            if !id.policies.iter().any(|name| policies.contains(name)) {
                continue;
            }
            is_touched = true;
            let used = write_chain(id, denials, index, sets, desired);
            for content in std::mem::replace(&mut shared.used, used) {
                sets.release(&content, desired);
            }
        }
        is_touched
    }
}

/// Writes the chain and returns the sets that it reads, which are acquired.
fn write_chain(
    id: &TierId,
    denials: Denials,
    index: &Index,
    sets: &mut Sets,
    desired: &mut Desired,
) -> Vec<Content> {
    let chain = id.chain();
    let denied = denials::tier_denial_chain(&chain);
    let mut writer = Writer::new(id.direction, index, sets, desired);
    writer.denied = Verdict::Goto(denied.clone());
    let names = id.policies.iter();
    for policy in names.filter_map(|name| index.cluster_policies.get(name)) {
        writer.cluster_policy(policy);
    }
    let (rules, used) = (writer.rules, writer.used);
    let comment = format!("{} tier, {}", id.tier, id.direction.name());
    desired.chain(&INET, &chain, Chain::regular(&comment, rules));
    let rules = denials::deny(id.direction, &chain, denials);
    desired.chain(&INET, &denied, Chain::regular(&comment, rules));
    used
}
