//! Which Service owns a frontend.
//!
//! Nothing keeps two Services from having the same address and port. Every node must
//! then choose the same one, and keep to it: by the kind of address, so that nobody takes a
//! cluster IP away by an external IP; then the oldest, then the lower UID, then the lower
//! key. The others wait for it to go.

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use crate::frontend::{FrontendId, FrontendKind};
use crate::hash::HashMap;
use crate::model::{ObjectKey, Service};

/// Who claims each frontend.
#[derive(Default, Debug)]
pub(crate) struct Claims {
    by_frontend: HashMap<FrontendId, Claim>,
}

#[derive(Debug)]
struct Claim {
    owner: Claimant,
    /// Others that claim it, in no order. Most frontends have none: no allocation.
    rivals: Vec<Claimant>,
}

#[derive(Debug)]
struct Claimant {
    kind: FrontendKind,
    service: Arc<Service>,
}

impl Claims {
    /// The owner of the frontend.
    pub(crate) fn owner(&self, id: FrontendId) -> Option<&ObjectKey> {
        let claim = self.by_frontend.get(&id)?;
        Some(&claim.owner.service.key)
    }

    /// The owners of the frontends at the address.
    pub(crate) fn owners_at(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        let claims = self.by_frontend.iter();
        let at = claims.filter(move |(id, _)| id.address == address);
        at.map(|(_, claim)| &claim.owner.service.key)
    }

    /// Those who claim the frontend, the owner first.
    pub(crate) fn claimants(&self, id: FrontendId) -> impl Iterator<Item = &ObjectKey> + use<'_> {
        let claim = self.by_frontend.get(&id).into_iter();
        let all = claim.flat_map(|claim| std::iter::once(&claim.owner).chain(&claim.rivals));
        all.map(|claimant| &claimant.service.key)
    }

    /// The Service claims the frontend. Returns whether others do so, too.
    pub(crate) fn claim(
        &mut self,
        id: FrontendId,
        kind: FrontendKind,
        service: &Arc<Service>,
    ) -> bool {
        let mut newcomer = Claimant {
            kind,
            service: Arc::clone(service),
        };
        match self.by_frontend.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(Claim {
                    owner: newcomer,
                    rivals: Vec::new(),
                });
                false
            }
            Entry::Occupied(entry) => {
                let claim = entry.into_mut();
                if seniority(&newcomer, &claim.owner).is_lt() {
                    std::mem::swap(&mut claim.owner, &mut newcomer);
                }
                claim.rivals.push(newcomer);
                true
            }
        }
    }

    /// The Service claims the frontend no more. Returns who inherits it.
    pub(crate) fn release(&mut self, id: FrontendId, service: &ObjectKey) -> Option<ObjectKey> {
        let Entry::Occupied(mut entry) = self.by_frontend.entry(id) else {
            return None;
        };
        let claim = entry.get_mut();
        if claim.owner.service.key != *service {
            claim.rivals.retain(|rival| rival.service.key != *service);
            return None;
        }
        let rivals = claim.rivals.iter().enumerate();
        let Some((heir, _)) = rivals.min_by(|(_, a), (_, b)| seniority(a, b)) else {
            entry.remove();
            return None;
        };
        claim.owner = claim.rivals.swap_remove(heir);
        Some(claim.owner.service.key.clone())
    }
}

/// `Less`: the first has the better claim.
fn seniority(a: &Claimant, b: &Claimant) -> Ordering {
    let (kinds, a, b) = ((a.kind, b.kind), &a.service, &b.service);
    debug_assert_ne!(a.key, b.key, "a Service claims a frontend once");
    kinds
        .0
        .cmp(&kinds.1)
        .then_with(|| a.created.cmp(&b.created))
        .then_with(|| a.uid.cmp(&b.uid))
        .then_with(|| a.key.cmp(&b.key))
}
