//! NetworkPolicies to chains, sets and map elements.
//!
//! ```text
//!  address ──binding──► group, one per direction ──► chain ──► rules ──► shared sets
//!  (of a pod here)      (the policies that select it)                  (pods, named ports, blocks)
//! ```
//!
//! The compiler keeps what it has written and what for, and is told which objects have
//! changed; a sync costs what depends on them. Only addresses of this node have bindings:
//! the policies of pods elsewhere are the business of their node. An address without a
//! binding is closed.
//!
//! Two pods share a group when the same policies select them. Where one direction of a
//! pod is isolated by no policy, its binding says so and there is no chain.
//!
//! The chain of a group that ClusterNetworkPolicies are part of begins with a jump to the chain
//! of its Admin tier, and ends with one to that of its Baseline tier unless NetworkPolicies
//! isolate the pod; groups share these chains ([`tiers`]).

mod groups;
mod hash;
mod rules;
mod sets;
mod tiers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::datatype::Bytes;
use dataplane::desired::Desired;
use dataplane::layout::INET;
use dataplane::layout::denials::Denials;
use dataplane::layout::policy::{Direction, isolated};
use dataplane::layout::services::HAIRPIN;
use dataplane::object::{Element, IpFamily, Key, Name};
use dataplane::rule::Verdict;
use proxy::model::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::index::{Index, Owner};
use groups::{GroupId, isolation, write_chain};
use sets::{Content, Sets};
use tiers::Tiers;

/// Compiles policies into the desired state.
#[derive(Debug)]
pub struct PolicyCompiler {
    node: String,
    denials: Denials,
    bindings: BTreeMap<IpAddr, Binding>,
    groups: BTreeMap<GroupId, Group>,
    tiers: Tiers,
    sets: Sets,
    dirty_addresses: BTreeSet<IpAddr>,
    dirty_pods: BTreeSet<ObjectKey>,
    dirty_policies: BTreeSet<ObjectKey>,
    dirty_cluster_policies: BTreeSet<String>,
    nodes_are_dirty: bool,
}

/// What an address of this node is bound to.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Binding {
    /// The pod; `None` for a container that is none.
    pod: Option<ObjectKey>,
    egress: Isolation,
    ingress: Isolation,
}

/// Whether and by what a pod is isolated in a direction.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Isolation {
    Open,
    By(GroupId),
}

#[derive(Debug)]
struct Group {
    /// Number of bindings to it.
    users: usize,
    chain: Name,
    used: Vec<Content>,
}

/// A policy group, as its chain stands for it in log messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyGroup {
    /// Direction that it judges.
    pub direction: Direction,
    /// The policies that select its pods: `namespace/name`, or tier and name.
    pub policies: Vec<String>,
}

/// What of the policies is on this node, for `status`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySummary {
    /// Addresses that are bound.
    pub bound_addresses: usize,
    /// Groups, which are chains.
    pub groups: usize,
    /// Chains of tiers of ClusterNetworkPolicies, which groups share.
    #[serde(default)]
    pub tiers: usize,
    /// Sets of peers, blocks and named ports, both families.
    pub sets: usize,
}

impl PolicyCompiler {
    /// Nothing bound: every address of the node is closed.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            denials: Denials::default(),
            bindings: BTreeMap::new(),
            groups: BTreeMap::new(),
            tiers: Tiers::default(),
            sets: Sets::default(),
            dirty_addresses: BTreeSet::new(),
            dirty_pods: BTreeSet::new(),
            dirty_policies: BTreeSet::new(),
            dirty_cluster_policies: BTreeSet::new(),
            nodes_are_dirty: false,
        }
    }

    /// How chains end that deny. To be set before the first sync.
    pub const fn set_denials(&mut self, denials: Denials) {
        self.denials = denials;
    }

    /// These pods are new, gone, or may have other labels, addresses or ports; or their
    /// namespace has other labels.
    pub fn pods_changed(&mut self, pods: impl IntoIterator<Item = ObjectKey>) {
        self.dirty_pods.extend(pods);
    }

    /// The policy is new, gone or different.
    pub fn policy_changed(&mut self, policy: ObjectKey) {
        self.dirty_policies.insert(policy);
    }

    /// The ClusterNetworkPolicy of that name is new, gone or different.
    pub fn cluster_policy_changed(&mut self, policy: String) {
        self.dirty_cluster_policies.insert(policy);
    }

    /// Labels or addresses of nodes have changed.
    pub const fn nodes_changed(&mut self) {
        self.nodes_are_dirty = true;
    }

    /// Addresses that an attachment holds now, or no longer.
    pub fn addresses_changed(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.dirty_addresses.extend(addresses);
    }

    /// Numbers for `status`.
    pub fn summary(&self) -> PolicySummary {
        PolicySummary {
            bound_addresses: self.bindings.len(),
            groups: self.groups.len(),
            tiers: self.tiers.len(),
            sets: self.sets.len() * 2,
        }
    }

    /// Whose denial a log message is, by the name of the chain that is its prefix.
    pub fn groups(&self) -> BTreeMap<String, PolicyGroup> {
        let groups = self.groups.keys().map(|id| {
            let chain = match id.is_audit {
                true => id.audit_chain(),
                false => id.chain(),
            };
            let policies = id.policies.iter().map(ToString::to_string).collect();
            (chain, id.direction, policies)
        });
        let named = |(chain, direction, policies): (Name, _, _)| {
            let group = PolicyGroup {
                direction,
                policies,
            };
            (chain.to_string(), group)
        };
        groups.chain(self.tiers.named()).map(named).collect()
    }

    /// The pods of this node that the policy isolates, against egress and ingress.
    pub fn isolated_by(&self, policy: &ObjectKey) -> [Vec<String>; 2] {
        self.pods_with(|group| !group.is_audit && group.policies.contains(policy))
    }

    /// The pods of this node to whose egress and ingress the ClusterNetworkPolicy's rules
    /// apply.
    pub fn selected_by(&self, policy: &str) -> [Vec<String>; 2] {
        self.pods_with(|group| group.tiers().any(|tier| tier.enforces(policy)))
    }

    fn pods_with(&self, is_meant: impl Fn(&GroupId) -> bool) -> [Vec<String>; 2] {
        let by = |isolation: &Isolation| match isolation {
            Isolation::Open => false,
            Isolation::By(group) => is_meant(group),
        };
        let pods = |side: fn(&Binding) -> &Isolation| -> Vec<String> {
            let isolated = self.bindings.values().filter(|binding| by(side(binding)));
            let names: BTreeSet<_> = isolated.filter_map(|binding| binding.pod.clone()).collect();
            names.iter().map(ToString::to_string).collect()
        };
        [
            pods(|binding| &binding.egress),
            pods(|binding| &binding.ingress),
        ]
    }

    /// Writes what has changed. Returns whether anything may have become narrower, so that
    /// live flows must be judged anew.
    pub fn sync(&mut self, index: &Index, desired: &mut Desired) -> bool {
        let pods = std::mem::take(&mut self.dirty_pods);
        let policies = std::mem::take(&mut self.dirty_policies);
        let cluster_policies = std::mem::take(&mut self.dirty_cluster_policies);
        self.collect_addresses(&pods, &policies, index);
        if !cluster_policies.is_empty() {
            self.collect_all_addresses(index);
        }

        let mut narrowed = self.sets.update(&pods, index, desired);
        if std::mem::take(&mut self.nodes_are_dirty) {
            narrowed |= self.sets.update_nodes(index, desired);
        }
        narrowed |= self.tiers.rewrite(
            &cluster_policies,
            self.denials,
            index,
            &mut self.sets,
            desired,
        );
        narrowed |= self.rewrite_groups(&policies, index, desired);
        for address in std::mem::take(&mut self.dirty_addresses) {
            narrowed |= self.rebind(address, index, desired);
        }
        narrowed
    }

    /// The addresses whose binding may have changed.
    fn collect_addresses(
        &mut self,
        pods: &BTreeSet<ObjectKey>,
        policies: &BTreeSet<ObjectKey>,
        index: &Index,
    ) {
        let namespaces: BTreeSet<&str> = policies.iter().map(|key| &*key.namespace).collect();
        for (address, binding) in &self.bindings {
            let Some(pod) = &binding.pod else { continue };
            if pods.contains(pod) || namespaces.contains(&*pod.namespace) {
                self.dirty_addresses.insert(*address);
            }
        }
        for key in pods {
            self.dirty_addresses.extend(
                index
                    .attachments_of(key)
                    .flat_map(|at| at.ips.iter().copied()),
            );
            if let Some(pod) = index.pods.get(key)
                && pod.node.as_deref() == Some(&self.node)
            {
                self.dirty_addresses.extend(index.addresses(pod));
            }
        }
    }

    /// A ClusterNetworkPolicy may select any pod.
    fn collect_all_addresses(&mut self, index: &Index) {
        self.dirty_addresses.extend(self.bindings.keys());
        let attached = index.attachments().values();
        let attached = attached.flat_map(|at| at.ips.iter().copied());
        self.dirty_addresses.extend(attached);
        let pods = index.pods.values();
        let here = pods.filter(|pod| pod.node.as_deref() == Some(&self.node));
        self.dirty_addresses
            .extend(here.flat_map(|pod| index.addresses(pod)));
    }

    /// Groups of which a policy has changed; those of which one is gone lose their last
    /// binding in the same sync.
    fn rewrite_groups(
        &mut self,
        policies: &BTreeSet<ObjectKey>,
        index: &Index,
        desired: &mut Desired,
    ) -> bool {
        let touched: Vec<GroupId> = self
            .groups
            .keys()
            .filter(|id| id.policies.iter().any(|key| policies.contains(key)))
            .cloned()
            .collect();
        for id in &touched {
            let used = write_chain(id, self.denials, index, &mut self.sets, desired);
            let group = self.groups.get_mut(id).expect("a key of the map");
            for content in std::mem::replace(&mut group.used, used) {
                self.sets.release(&content, desired);
            }
        }
        !touched.is_empty()
    }

    fn rebind(&mut self, address: IpAddr, index: &Index, desired: &mut Desired) -> bool {
        let wanted = self.wanted_binding(address, index);
        let old = self.bindings.get(&address).cloned();
        if wanted == old {
            return false;
        }
        let groups_of = |binding: &Option<Binding>| -> Vec<GroupId> {
            let isolations = binding.iter().flat_map(|b| [&b.egress, &b.ingress]);
            isolations
                .filter_map(|isolation| match isolation {
                    Isolation::Open => None,
                    Isolation::By(group) => Some(group.clone()),
                })
                .collect()
        };
        for id in groups_of(&wanted) {
            self.acquire_group(&id, index, desired);
        }
        match wanted.clone() {
            Some(binding) => {
                self.write_binding(address, &binding, desired);
                self.bindings.insert(address, binding);
            }
            None => {
                remove_binding(address, desired);
                self.bindings.remove(&address);
            }
        }
        for id in groups_of(&old) {
            self.release_group(&id, desired);
        }
        old.is_some()
    }

    /// `None`: closed.
    fn wanted_binding(&self, address: IpAddr, index: &Index) -> Option<Binding> {
        let is_held = index.holder(address).is_some();
        match index.owner(address) {
            Owner::Container => Some(Binding {
                pod: None,
                egress: Isolation::Open,
                ingress: Isolation::Open,
            }),
            Owner::Pod(pod) => {
                let is_here = is_held || pod.node.as_deref() == Some(&self.node);
                let owns = || index.addresses(pod).contains(&address);
                if !(is_here && owns() && tiers::are_known(pod, index)) {
                    return None;
                }
                Some(Binding {
                    pod: Some(pod.key.clone()),
                    egress: isolation(pod, Direction::Egress, index),
                    ingress: isolation(pod, Direction::Ingress, index),
                })
            }
            Owner::UnknownPod | Owner::Nobody => None,
        }
    }

    fn write_binding(&self, address: IpAddr, binding: &Binding, desired: &mut Desired) {
        let family = IpFamily::of(address);
        let comment = binding
            .pod
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let sides = [
            (Direction::Egress, &binding.egress),
            (Direction::Ingress, &binding.ingress),
        ];
        for (direction, isolation) in sides {
            let verdict: Verdict = match isolation {
                Isolation::Open => direction.allowed(),
                Isolation::By(group) => isolated(self.groups[group].chain.clone()),
            };
            let element = Element::verdict(verdict).with_comment(&comment);
            desired.insert(&INET, direction.map(family), address_key(address), element);
        }
        let element = Element::member().with_comment(&comment);
        desired.insert(&INET, HAIRPIN.of(family), pair_key(address), element);
    }

    fn acquire_group(&mut self, id: &GroupId, index: &Index, desired: &mut Desired) {
        if let Some(group) = self.groups.get_mut(id) {
            group.users += 1;
            return;
        }
        for tier in id.tiers() {
            self.tiers
                .acquire(tier, self.denials, index, &mut self.sets, desired);
        }
        let used = write_chain(id, self.denials, index, &mut self.sets, desired);
        let group = Group {
            users: 1,
            chain: id.chain(),
            used,
        };
        self.groups.insert(id.clone(), group);
    }

    fn release_group(&mut self, id: &GroupId, desired: &mut Desired) {
        let group = self
            .groups
            .get_mut(id)
            .expect("released as often as acquired");
        group.users -= 1;
        if group.users > 0 {
            return;
        }
        let group = self.groups.remove(id).expect("looked up above");
        desired.remove_chain(&INET, &group.chain);
        desired.remove_chain(&INET, &id.audit_chain());
        for content in &group.used {
            self.sets.release(content, desired);
        }
        for tier in id.tiers() {
            self.tiers.release(tier, &mut self.sets, desired);
        }
    }
}

fn remove_binding(address: IpAddr, desired: &mut Desired) {
    let family = IpFamily::of(address);
    for direction in Direction::BOTH {
        desired.remove(&INET, direction.map(family), &address_key(address));
    }
    desired.remove(&INET, HAIRPIN.of(family), &pair_key(address));
}

fn address_key(address: IpAddr) -> Key {
    Bytes::new().addr(address).build()
}

fn pair_key(address: IpAddr) -> Key {
    Bytes::new().addr(address).addr(address).build()
}

#[cfg(test)]
mod tests;
