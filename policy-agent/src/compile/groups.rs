//! Policy groups: what selects a pod, and the chain that this makes.

use dataplane::desired::Desired;
use dataplane::layout::INET;
use dataplane::layout::denials::{self, Denials};
use dataplane::layout::policy::{self, Direction};
use dataplane::object::{Chain, Name};
use dataplane::rule::{Rule, Verdict};
use proxy::model::ObjectKey;

use super::Isolation;
use super::hash::short_hash;
use super::rules;
use super::sets::{Content, Sets};
use super::tiers::TierId;
use crate::index::Index;
use crate::model::cluster_policy::Tier;
use crate::model::{NetworkPolicy, Pod};

/// The policies that select a pod in a direction, at least one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct GroupId {
    pub(super) direction: Direction,
    /// The Admin tier, unless it is empty.
    pub(super) admin: Option<TierId>,
    /// No NetworkPolicy isolates it but these, which are audited: the packet is judged, told
    /// of and let go on.
    pub(super) is_audit: bool,
    /// NetworkPolicies by key.
    pub(super) policies: Vec<ObjectKey>,
    /// The Baseline tier, unless it is empty. None where NetworkPolicies isolate the pod:
    /// nothing comes after them.
    pub(super) baseline: Option<TierId>,
}

/// What selects the pod in the direction: tiers, and the policies of its namespace. Policies
/// that are audited matter where there is no other: what they would deny is denied then
/// already, and what they would allow, they do not.
pub(super) fn isolation(pod: &Pod, direction: Direction, index: &Index) -> Isolation {
    let isolates = |policy: &&NetworkPolicy| {
        let listed = match direction {
            Direction::Egress => policy.egress.is_some(),
            Direction::Ingress => policy.ingress.is_some(),
        };
        listed && policy.pod_selector.matches(&pod.labels)
    };
    let isolating = index.policies_in(&pod.key.namespace).filter(isolates);
    let (audited, enforced): (Vec<_>, Vec<_>) = isolating.partition(|policy| policy.audit);
    let baseline = TierId::of(pod, Tier::Baseline, direction, index);
    let group = GroupId {
        direction,
        admin: TierId::of(pod, Tier::Admin, direction, index),
        is_audit: enforced.is_empty() && !audited.is_empty(),
        baseline: baseline.filter(|_| enforced.is_empty()),
        policies: match enforced.is_empty() {
            true => keys(&audited),
            false => keys(&enforced),
        },
    };
    if group.policies.is_empty() && group.tiers().next().is_none() {
        Isolation::Open
    } else {
        Isolation::By(group)
    }
}

fn keys(policies: &[&NetworkPolicy]) -> Vec<ObjectKey> {
    policies.iter().map(|policy| policy.key.clone()).collect()
}

/// Writes the group's chain and returns the sets that it reads, which are acquired. The
/// chains of its tiers are there already.
pub(super) fn write_chain(
    id: &GroupId,
    denials: Denials,
    index: &Index,
    sets: &mut Sets,
    desired: &mut Desired,
) -> Vec<Content> {
    let jump = |chain: Name| Rule::new().jump(chain);
    let tier = |tier: &Option<TierId>| tier.as_ref().map(|tier| jump(tier.chain()));
    let allowed = id.direction.allowed();
    let chain = id.chain();
    let mut rules: Vec<_> = tier(&id.admin).into_iter().collect();

    let mut writer = rules::Writer::new(id.direction, index, sets, desired);
    if id.is_audit {
        writer.allowed = Verdict::Return;
    }
    if !id.policies.is_empty() {
        writer.rules.extend(policy::to_itself(&writer.allowed));
    }
    for policy in id.policies.iter().filter_map(|key| index.policies.get(key)) {
        writer.policy(policy);
    }
    let (mut of_policies, used) = (writer.rules, writer.used);
    if id.is_audit {
        let audit = id.audit_chain();
        of_policies.extend(denials::report(&audit, denials));
        desired.chain(&INET, &audit, Chain::regular(&id.comment(), of_policies));
        rules.push(jump(audit));
    } else {
        rules.extend(of_policies);
    }
    if id.is_audit || id.policies.is_empty() {
        rules.extend(tier(&id.baseline));
        let rest = Rule::new().verdict(allowed);
        rules.push(rest.comment("no policy isolates it"));
    } else {
        rules.extend(denials::deny(id.direction, &chain, denials));
    }
    desired.chain(&INET, &chain, Chain::regular(&id.comment(), rules));
    used
}

impl GroupId {
    pub(super) fn tiers(&self) -> impl Iterator<Item = &TierId> {
        self.admin.iter().chain(&self.baseline)
    }

    /// The policies in the order in which they are asked.
    fn names(&self) -> Vec<String> {
        let tier = |tier: &Option<TierId>| tier.iter().flat_map(TierId::names).collect::<Vec<_>>();
        let policies = self.policies.iter().map(ToString::to_string);
        let mut names = tier(&self.admin);
        names.extend(policies);
        names.extend(tier(&self.baseline));
        names
    }

    pub(super) fn chain(&self) -> Name {
        self.direction.group_chain(&self.hash())
    }

    /// Only a group that audits has it.
    pub(super) fn audit_chain(&self) -> Name {
        denials::audit_chain(&self.chain())
    }

    fn hash(&self) -> String {
        let audit = if self.is_audit { "audit:" } else { "" };
        short_hash(&format!("{audit}{}", self.names().join(",")))
    }

    fn comment(&self) -> String {
        let direction = self.direction.name();
        match &self.names()[..] {
            [] => String::new(),
            [single] => format!("{direction} of {single}"),
            [first, rest @ ..] => format!("{direction} of {first} and {} more", rest.len()),
        }
    }
}
