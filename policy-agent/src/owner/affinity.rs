//! Session affinity to what is gone.
//!
//! The rules learn where clients go. When an endpoint, or the affinity of a frontend, goes,
//! what they have learnt of it is taken out right after the commit. A packet that was on its
//! way through the rules meanwhile may have left its entry a moment later, so there is a
//! second look with the next sync.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use dataplane::kernel::{CommitError, Kernel};
use dataplane::layout::INET;
use dataplane::layout::services::{
    self, AFFINITY, AffinityGroup, AffinityKey, Entry, frontend_key,
};
use dataplane::object::{Element, IpFamily, Key};
use dataplane::transaction::{Operation, Transaction, TransactionBuilder};

use super::Owner;
use super::flows::GoneSlot;

/// How often an entry may have timed out between the look at it and its removal.
const ROUNDS: usize = 8;

/// What entries are to be taken out.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    next: Stale,
    /// Once more.
    again: Stale,
}

#[derive(Clone, Debug, Default)]
struct Stale {
    /// Entries of a group that lead to an endpoint.
    endpoints: BTreeSet<(AffinityGroup, SocketAddr)>,
    /// All entries of a group.
    groups: BTreeSet<AffinityGroup>,
}

impl Stale {
    fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.groups.is_empty()
    }

    fn append(&mut self, mut other: Self) {
        self.endpoints.append(&mut other.endpoints);
        self.groups.append(&mut other.groups);
    }

    /// Whether it is an entry to take out.
    fn has(&self, key: AffinityKey, endpoint: SocketAddr) -> bool {
        self.groups.contains(&key.group) || self.endpoints.contains(&(key.group, endpoint))
    }
}

impl<K: Kernel> Owner<K> {
    /// Notes what a committed transaction leaves in the map.
    pub(super) fn note_affinity(&mut self, committed: &Transaction, gone: &[GoneSlot]) {
        let mut stale = Stale::default();
        for (slot, endpoint) in gone {
            // All frontends of a group have the same endpoints.
            if let Some(group) = self.affinity_group(slot.protocol, slot.frontend) {
                stale.endpoints.insert((group, *endpoint));
            }
        }
        for operation in &committed.operations {
            let Operation::DeleteElements { set, elements, .. } = operation else {
                continue;
            };
            for (entry, family) in Entry::BOTH
                .into_iter()
                .flat_map(|entry| IpFamily::BOTH.map(|family| (entry, family)))
            {
                if entry.affinity_groups().of(family) == set {
                    let groups = elements.iter().filter_map(|(_, element)| {
                        let group = AffinityGroup::of_element(family, element)?;
                        (!self.proxy.has_affinity_group(group)).then_some(group)
                    });
                    stale.groups.extend(groups);
                }
                if entry.sticky().of(family) == set {
                    // A frontend that still has a group is learnt for another time now.
                    let groups = elements.iter().filter_map(|(key, _)| {
                        let (protocol, at) = services::parse_frontend(entry, family, key)?;
                        self.affinity_group(protocol, at)
                    });
                    stale.groups.extend(groups);
                }
            }
        }
        self.affinity.next.append(stale);
    }

    /// Under what the clients of the frontend are remembered, if they are.
    fn affinity_group(&self, protocol: u8, frontend: SocketAddr) -> Option<AffinityGroup> {
        let (ip, port) = (frontend.ip(), frontend.port());
        let family = IpFamily::of(ip);
        let map = Entry::of(ip).affinity_groups().of(family);
        let element = self
            .desired
            .get(&INET, map, &frontend_key(ip, protocol, port))?;
        AffinityGroup::of_element(family, element)
    }

    /// Takes out what was noted. Returns whether to look once more.
    pub(super) fn sweep_affinity(&mut self) -> bool {
        let mut stale = std::mem::take(&mut self.affinity.again);
        let next = std::mem::take(&mut self.affinity.next);
        self.affinity.again.append(next.clone());
        stale.append(next);
        for family in IpFamily::BOTH {
            if !stale.is_empty()
                && let Err(error) = self.take_out_affinity(family, &stale)
            {
                self.service_progress.cleanup_failed();
                tracing::warn!(%error, "clients of removed endpoints may be sent to them");
            }
        }
        !self.affinity.again.is_empty()
    }

    fn take_out_affinity(&mut self, family: IpFamily, stale: &Stale) -> Result<(), CommitError> {
        let map = AFFINITY.of(family);
        let learnt = self.kernel.learnt(&INET, map)?;
        let mut entries: Vec<(Key, Element)> = learnt
            .into_iter()
            .filter(|(key, element)| {
                let entry = AffinityKey::parse_entry(family, (key, element));
                entry.is_some_and(|(key, endpoint)| stale.has(key, endpoint))
            })
            .collect();
        for _ in 0..ROUNDS {
            let mut builder = TransactionBuilder::new();
            builder.delete_elements(&INET, map, entries.clone());
            let transaction = builder.build();
            if transaction.is_empty() {
                return Ok(());
            }
            match self.kernel.commit(&transaction) {
                Ok(()) => {
                    self.progress.has_committed();
                    return Ok(());
                }
                Err(CommitError::Rejected(rejections)) => {
                    // Timed out meanwhile: without them.
                    let gone: BTreeSet<_> = rejections
                        .iter()
                        .flat_map(|rejection| rejection.elements.clone())
                        .collect();
                    let mut index = 0..;
                    entries.retain(|_| index.next().is_some_and(|i| !gone.contains(&i)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
