//! Session affinity to what is gone.
//!
//! The rules learn where clients go. When an endpoint, or the affinity of a frontend, goes,
//! what they have learnt of it is taken out right after the commit. A packet that was on its
//! way through the rules meanwhile may have left its entry a moment later, so there is a
//! second look with the next sync.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use dataplane::kernel::{CommitError, Kernel};
use dataplane::layout::INET;
use dataplane::layout::services::{
    self, AFFINITY, AffinityKey, Entry, NODE_ADDRESSES, frontend_key,
};
use dataplane::object::{Element, IpFamily, Key};
use dataplane::transaction::{Operation, Transaction, TransactionBuilder};

use super::Owner;

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
    /// Entries of a frontend, `protocol` and address, that lead to an endpoint.
    endpoints: BTreeSet<(u8, SocketAddr, SocketAddr)>,
    /// All entries of a frontend.
    frontends: BTreeSet<(u8, SocketAddr)>,
    /// All entries of an address.
    addresses: BTreeSet<IpAddr>,
}

impl Stale {
    fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.frontends.is_empty() && self.addresses.is_empty()
    }

    fn append(&mut self, mut other: Self) {
        self.endpoints.append(&mut other.endpoints);
        self.frontends.append(&mut other.frontends);
        self.addresses.append(&mut other.addresses);
    }

    /// Whether it is an entry to take out. The frontend of a node port stands in the map
    /// with the address that its client has used.
    fn has(&self, key: AffinityKey, endpoint: SocketAddr) -> bool {
        let address = key.frontend.ip();
        let any = SocketAddr::new(IpFamily::of(address).unspecified(), key.frontend.port());
        self.addresses.contains(&address)
            || [key.frontend, any].into_iter().any(|frontend| {
                self.frontends.contains(&(key.protocol, frontend))
                    || self.endpoints.contains(&(key.protocol, frontend, endpoint))
            })
    }
}

impl<K: Kernel> Owner<K> {
    /// Notes what a committed transaction leaves in the map.
    pub(super) fn note_affinity(&mut self, committed: &Transaction) {
        let mut stale = Stale::default();
        for (slot, endpoint) in self.gone_slots(committed) {
            if self.is_sticky(slot.protocol, slot.frontend) {
                let of_endpoint = (slot.protocol, slot.frontend, endpoint);
                stale.endpoints.insert(of_endpoint);
            }
        }
        for operation in &committed.operations {
            let Operation::DeleteElements { set, elements, .. } = operation else {
                continue;
            };
            for family in IpFamily::BOTH {
                let keys = || elements.iter().map(|(key, _)| key);
                for entry in Entry::BOTH {
                    if entry.sticky().of(family) == set {
                        let parse = |key| services::parse_frontend(entry, family, key);
                        stale.frontends.extend(keys().filter_map(|key| parse(key)));
                    }
                }
                if NODE_ADDRESSES.of(family) == set {
                    let parse = |key| services::parse_address(family, key);
                    stale.addresses.extend(keys().filter_map(|key| parse(key)));
                }
            }
        }
        self.affinity.next.append(stale);
    }

    fn is_sticky(&self, protocol: u8, frontend: SocketAddr) -> bool {
        let (ip, port) = (frontend.ip(), frontend.port());
        let map = Entry::of(ip).sticky().of(IpFamily::of(ip));
        let key = frontend_key(ip, protocol, port);
        self.desired.get(&INET, map, &key).is_some()
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
