//! What of the Services needs somebody's attention, kept up to date by what changes.
//!
//! To look at every Service takes a tenth of a second where there are many thousands. So the
//! proxy notes which of them can have other findings than before, and only those are looked
//! at again.

use std::collections::BTreeSet;

use crate::Proxy;
use crate::frontend::{FrontendId, FrontendKind};
use crate::model::ObjectKey;
use crate::status::FrontendState;

/// What is to be said of one Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Frontends that are served for another Service.
    pub contested: usize,
    /// Whether its cluster IPs drop connections for want of an endpoint on this node.
    pub drops_internal: bool,
    /// Whether it drops connections from outside the cluster for that.
    pub drops_external: bool,
    /// What of it is not served as it asks, and what to do.
    pub problems: Vec<String>,
}

impl Findings {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The Services that have to be looked at again.
#[derive(Default, Debug)]
pub(crate) struct Unreviewed {
    queue: BTreeSet<ObjectKey>,
    /// Those that are not in it yet, one perhaps several times.
    added: Vec<ObjectKey>,
}

impl Unreviewed {
    pub(crate) fn add(&mut self, key: ObjectKey) {
        self.added.push(key);
    }

    /// Takes all of them.
    pub(crate) fn append(&mut self, mut keys: Vec<ObjectKey>) {
        if self.added.is_empty() {
            self.added = keys;
        } else {
            self.added.append(&mut keys);
        }
    }

    fn next(&mut self) -> Option<ObjectKey> {
        self.queue.extend(self.added.drain(..));
        self.queue.pop_first()
    }
}

impl Proxy {
    /// The findings of at most so many of the Services that can have others than at the last
    /// call; those of a Service that is gone are empty. Without any when all were looked at.
    pub fn review(&mut self, at_most: usize) -> Vec<(ObjectKey, Findings)> {
        let mut reviewed = Vec::new();
        while reviewed.len() < at_most
            && let Some(key) = self.unreviewed.next()
        {
            let findings = self.findings(&key);
            reviewed.push((key, findings));
        }
        reviewed
    }

    /// Those who claim the frontend may learn another owner of it.
    pub(crate) fn review_claimants(&mut self, id: FrontendId) {
        for key in self.claims.claimants(id) {
            self.unreviewed.add(key.clone());
        }
    }

    fn findings(&self, key: &ObjectKey) -> Findings {
        let Some(status) = self.service(key) else {
            return Findings::default();
        };
        let mut findings = Findings {
            problems: status.problems,
            ..Findings::default()
        };
        for frontend in status.frontends {
            match (frontend.state, frontend.kind) {
                (FrontendState::Lost { .. }, _) => findings.contested += 1,
                (FrontendState::Dropped, FrontendKind::ClusterIp) => findings.drops_internal = true,
                (FrontendState::Dropped, _) => findings.drops_external = true,
                _ => {}
            }
        }
        findings
    }
}
