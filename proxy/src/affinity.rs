//! Which frontends share what is learnt of their clients.
//!
//! A client of a service port is to keep its endpoint whether it comes by the cluster IP, a
//! node port or a load balancer's address. So these are one [`AffinityGroup`], unless they
//! lead to different endpoints: those with `Local` traffic policies must not be led to
//! endpoints of other nodes by what was learnt elsewhere.

use std::collections::{BTreeSet, HashMap};

use dataplane::layout::services::AffinityGroup;
use sha2::{Digest as _, Sha256};

use crate::frontend::{Frontend, FrontendId};
use crate::model::{ObjectKey, Protocol, ServicePort, TrafficPolicy};

/// What has a group of its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Audience {
    service: ObjectKey,
    port: String,
    protocol: Protocol,
    reach: Reach,
}

/// Which endpoints a frontend leads to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Reach {
    /// All, for everybody.
    Cluster,
    /// Those of this node: clients are on it.
    LocalInternal,
    /// Those of this node for clients from outside, all for the cluster's.
    LocalExternal,
}

impl Audience {
    /// The clients of the frontend.
    pub(crate) fn of(service: &ObjectKey, port: &ServicePort, frontend: &Frontend) -> Self {
        Self {
            service: service.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            reach: match (frontend.policy, frontend.kind.is_external()) {
                (TrafficPolicy::Cluster, _) => Reach::Cluster,
                (TrafficPolicy::Local, false) => Reach::LocalInternal,
                (TrafficPolicy::Local, true) => Reach::LocalExternal,
            },
        }
    }

    /// A group for it, another for each attempt: the same on every node and after a restart,
    /// so that what was learnt before still counts.
    fn group(&self, attempt: u32) -> AffinityGroup {
        let text = format!("{self:?} {attempt}");
        let digest = Sha256::digest(text);
        let bytes = digest.first_chunk().expect("a digest has 32 bytes");
        AffinityGroup::new(u32::from_be_bytes(*bytes))
    }
}

/// The groups of all frontends with session affinity.
#[derive(Default, Debug)]
pub(crate) struct Groups {
    by_audience: HashMap<Audience, AffinityGroup>,
    members: HashMap<AffinityGroup, BTreeSet<FrontendId>>,
    by_frontend: HashMap<FrontendId, Audience>,
}

impl Groups {
    /// Puts the frontend, which may have been in another, into the group of the audience.
    pub(crate) fn join(&mut self, id: FrontendId, audience: Audience) -> AffinityGroup {
        if self.by_frontend.get(&id) != Some(&audience) {
            self.leave(id);
        }
        let group = match self.by_audience.get(&audience) {
            Some(group) => *group,
            None => self.found(&audience),
        };
        self.members.entry(group).or_default().insert(id);
        self.by_frontend.insert(id, audience);
        group
    }

    fn found(&mut self, audience: &Audience) -> AffinityGroup {
        let group = (0..)
            .map(|attempt| audience.group(attempt))
            .find(|group| !self.members.contains_key(group))
            .expect("fewer service ports than groups");
        self.by_audience.insert(audience.clone(), group);
        group
    }

    /// The frontend has no affinity.
    pub(crate) fn leave(&mut self, id: FrontendId) {
        let Some(audience) = self.by_frontend.remove(&id) else {
            return;
        };
        let Some(group) = self.by_audience.get(&audience).copied() else {
            return;
        };
        if let Some(members) = self.members.get_mut(&group) {
            members.remove(&id);
            if members.is_empty() {
                self.members.remove(&group);
                self.by_audience.remove(&audience);
            }
        }
    }

    /// Whether a frontend is in the group.
    pub(crate) fn has_members(&self, group: AffinityGroup) -> bool {
        self.members.contains_key(&group)
    }
}
