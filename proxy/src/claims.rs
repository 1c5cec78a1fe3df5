//! Which Service owns a frontend.
//!
//! Nothing keeps two Services from having the same address and port. Every node must
//! then choose the same one, and keep to it: the oldest, then the lower UID, then the
//! lower key. The others wait for it to go.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::frontend::FrontendId;
use crate::model::{ObjectKey, Service};

/// Who claims each frontend.
#[derive(Default, Debug)]
pub(crate) struct Claims {
    by_frontend: HashMap<FrontendId, Claim>,
}

#[derive(Debug)]
struct Claim {
    owner: Arc<Service>,
    /// Others that claim it, in no order. Most frontends have none: no allocation.
    rivals: Vec<Arc<Service>>,
}

impl Claims {
    /// The owner of the frontend.
    pub(crate) fn owner(&self, id: FrontendId) -> Option<&ObjectKey> {
        self.by_frontend.get(&id).map(|claim| &claim.owner.key)
    }

    /// The Service claims the frontend.
    pub(crate) fn claim(&mut self, id: FrontendId, service: &Arc<Service>) {
        let mut newcomer = Arc::clone(service);
        match self.by_frontend.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(Claim {
                    owner: newcomer,
                    rivals: Vec::new(),
                });
            }
            Entry::Occupied(entry) => {
                let claim = entry.into_mut();
                if seniority(&newcomer, &claim.owner).is_lt() {
                    std::mem::swap(&mut claim.owner, &mut newcomer);
                }
                claim.rivals.push(newcomer);
            }
        }
    }

    /// The Service claims the frontend no more. Returns who inherits it.
    pub(crate) fn release(&mut self, id: FrontendId, service: &ObjectKey) -> Option<ObjectKey> {
        let Entry::Occupied(mut entry) = self.by_frontend.entry(id) else {
            return None;
        };
        let claim = entry.get_mut();
        if claim.owner.key != *service {
            claim.rivals.retain(|rival| rival.key != *service);
            return None;
        }
        let rivals = claim.rivals.iter().enumerate();
        let Some((heir, _)) = rivals.min_by(|(_, a), (_, b)| seniority(a, b)) else {
            entry.remove();
            return None;
        };
        claim.owner = claim.rivals.swap_remove(heir);
        Some(claim.owner.key.clone())
    }
}

/// `Less`: the first has the better claim.
fn seniority(a: &Service, b: &Service) -> Ordering {
    debug_assert_ne!(a.key, b.key, "a Service claims a frontend once");
    a.created
        .cmp(&b.created)
        .then_with(|| a.uid.cmp(&b.uid))
        .then_with(|| a.key.cmp(&b.key))
}
