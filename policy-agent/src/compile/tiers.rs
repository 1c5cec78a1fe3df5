//! The chains of ClusterNetworkPolicies.
//!
//! Pods that the same policies of a tier select share one chain for each direction: its
//! rules accept, deny, or return to the chain of the pod's group, which goes on with the
//! next tier. That is what Pass means, and what a tier that matches nothing does.
//!
//! A policy that is audited has a chain of its own, which is asked in its place and decides
//! nothing: what it accepts or passes comes back, what it denies is told and comes back.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::desired::Desired;
use dataplane::layout::INET;
use dataplane::layout::denials::{self, Denials};
use dataplane::layout::policy::Direction;
use dataplane::object::{Chain, Name};
use dataplane::rule::{Rule, Verdict};

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
    policies: Vec<Member>,
}

/// A policy of a tier.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Member {
    name: String,
    audit: bool,
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
    let policies = index.cluster_policies.values();
    let mut enforced = policies.filter(|policy| !policy.audit);
    enforced.all(|policy| policy.subject.contains(pod, namespace).is_some())
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
        let member = |policy: &&ClusterNetworkPolicy| Member {
            name: policy.name.clone(),
            audit: policy.audit,
        };
        (!policies.is_empty()).then(|| Self {
            direction,
            tier,
            policies: policies.iter().map(member).collect(),
        })
    }

    /// Whether the policy is one of it, and enforced.
    pub(super) fn enforces(&self, policy: &str) -> bool {
        let mut members = self.policies.iter();
        members.any(|member| member.name == policy && !member.audit)
    }

    /// The policies as comments and hashes have them.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let tier = self.tier;
        self.policies.iter().map(move |member| match member.audit {
            true => format!("{tier} {} (audit)", member.name),
            false => format!("{tier} {}", member.name),
        })
    }

    pub(super) fn chain(&self) -> Name {
        let names: Vec<_> = self.policies.iter().map(Member::hashed).collect();
        self.chain_of(&names.join(","))
    }

    /// The chains of the policies that are audited, with their names.
    fn audits(&self) -> impl Iterator<Item = (Name, &str)> {
        let whole = self.chain();
        let audited = self.policies.iter().filter(|member| member.audit);
        audited.map(move |member| {
            let chain = self.chain_of(&format!("{whole}:{}", member.name));
            (denials::audit_chain(&chain), member.name.as_str())
        })
    }

    fn chain_of(&self, hashed: &str) -> Name {
        let tier = match self.tier {
            Tier::Admin => "admin",
            Tier::Baseline => "baseline",
        };
        self.direction.tier_chain(tier, &short_hash(hashed))
    }
}

impl Member {
    fn hashed(&self) -> String {
        let audit = if self.audit { "audit:" } else { "" };
        format!("{audit}{}", self.name)
    }
}

impl Tiers {
    /// The chains that tell of packets, with their direction and policies.
    pub(super) fn named(&self) -> impl Iterator<Item = (Name, Direction, Vec<String>)> {
        self.chains.keys().flat_map(|id| {
            let named = |name: &str| format!("{} {name}", id.tier);
            let enforced = id.policies.iter().filter(|member| !member.audit);
            let enforced = enforced.map(|member| named(&member.name)).collect();
            let audits = id.audits();
            let audits = audits.map(move |(chain, name)| (chain, id.direction, vec![named(name)]));
            [(id.chain(), id.direction, enforced)]
                .into_iter()
                .chain(audits)
        })
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
        for (audit, _) in id.audits() {
            desired.remove_chain(&INET, &audit);
            desired.remove_chain(&INET, &denials::tier_denial_chain(&audit));
        }
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
            if !id
                .policies
                .iter()
                .any(|member| policies.contains(&member.name))
            {
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
    let comment = format!("{} tier, {}", id.tier, id.direction.name());
    let mut audits = id.audits();
    let mut audit_chains = Vec::new();
    let mut writer = Writer::new(id.direction, index, sets, desired);
    let allowed = writer.allowed.clone();
    for member in &id.policies {
        let audit = member.audit.then(|| audits.next()).flatten();
        let Some(policy) = index.cluster_policies.get(&member.name) else {
            continue;
        };
        let Some((audit, name)) = audit else {
            writer.allowed = allowed.clone();
            writer.denied = Verdict::Goto(denied.clone());
            writer.cluster_policy(policy);
            continue;
        };
        let told = denials::tier_denial_chain(&audit);
        writer.allowed = Verdict::Return;
        writer.denied = Verdict::Goto(told.clone());
        let before = std::mem::take(&mut writer.rules);
        writer.cluster_policy(policy);
        let rules = std::mem::replace(&mut writer.rules, before);
        writer.rules.push(Rule::new().jump(audit.clone()));
        let comment = format!("{} {name} on audit", id.tier);
        let tells = denials::report(&audit, denials);
        audit_chains.push((told, Chain::regular(&comment, tells)));
        audit_chains.push((audit, Chain::regular(&comment, rules)));
    }
    let (rules, used) = (writer.rules, writer.used);
    desired.chain(&INET, &chain, Chain::regular(&comment, rules));
    let rules = denials::deny(id.direction, &chain, denials);
    desired.chain(&INET, &denied, Chain::regular(&comment, rules));
    for (name, chain) in audit_chains {
        desired.chain(&INET, &name, chain);
    }
    used
}
