//! Of which object it is what the kernel refuses: an operator can do something about a
//! Service or a policy, and nothing about an element.

use std::collections::BTreeSet;

use dataplane::kernel::Kernel;
use dataplane::layout::policy::Direction;
use dataplane::layout::services::{self, CLUSTER_IPS, Entry, Lane, RESTRICTED, Sources};
use dataplane::object::{IpFamily, Key, Name};
use proxy::model::ObjectKey;

use super::Owner;
use crate::complaint::Complaint;
use crate::event::Kind;

impl<K: Kernel> Owner<K> {
    /// The elements that the kernel refuses, once for each object that it is of; for none
    /// where it is of this node alone. Chains are of policies, which have Events of their own.
    pub(super) fn refusals(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        for (set, key, object, reason) in self.progress.refused.elements() {
            let owners = self.owners_of_element(set, key);
            let complaint = |about: Option<(Kind, ObjectKey)>| Complaint {
                uid: match &about {
                    Some((Kind::Service, key)) => self.proxy.uid(key).map(str::to_owned),
                    _ => None,
                },
                about,
                reason: "KernelRefused",
                message: format!(
                    "{object} is left out, the kernel refuses it: {reason}; it is tried again"
                ),
            };
            if owners.is_empty() {
                complaints.push(complaint(None));
            }
            complaints.extend(owners.into_iter().map(Some).map(complaint));
        }
        complaints
    }

    pub(super) fn owners_of_element(&self, set: &Name, key: &Key) -> BTreeSet<(Kind, ObjectKey)> {
        let services = |keys: BTreeSet<ObjectKey>| {
            let keys = keys.into_iter();
            keys.map(|key| (Kind::Service, key)).collect()
        };
        for family in IpFamily::BOTH {
            if let Some(entry) = entry_of(set, family) {
                // The keys of slots begin like those of their frontends.
                let frontend = services::parse_frontend(entry, family, key);
                let owner = frontend.and_then(|(protocol, at)| self.proxy.owner(protocol, at));
                return services(owner.into_iter().cloned().collect());
            }
            let Some(address) = services::parse_address(family, key) else {
                continue;
            };
            if CLUSTER_IPS.of(family) == set {
                return services(self.proxy.services_at(address));
            }
            if Direction::BOTH
                .map(|direction| direction.map(family))
                .contains(&set)
                && let crate::index::Owner::Pod(pod) = self.index.owner(address)
            {
                return [(Kind::Pod, pod.key.clone())].into();
            }
        }
        BTreeSet::new()
    }
}

/// How the frontends are found that the map has keys of.
fn entry_of(map: &Name, family: IpFamily) -> Option<Entry> {
    Entry::BOTH.into_iter().find(|entry| {
        let lanes = [Sources::All, Sources::Cluster].map(|sources| Lane::new(*entry, sources));
        let of_lanes = lanes
            .into_iter()
            .flat_map(|lane| [lane.frontends(), lane.endpoints()]);
        let others = [
            entry.unserved(),
            entry.external(),
            entry.sticky(),
            entry.affinity_groups(),
        ];
        let mut all = of_lanes.chain(others);
        all.any(|of| of.of(family) == map)
            || (*entry == Entry::Address && RESTRICTED.of(family) == map)
    })
}
