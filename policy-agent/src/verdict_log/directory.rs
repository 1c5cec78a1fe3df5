//! Whose an address is and which policies a chain stands for, as of a moment ago.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use dataplane::attachment::Attachment;
use dataplane::layout::denials::Origin;
use tokio::sync::oneshot;

use crate::compile::PolicyGroup;
use crate::runtime::{Call, Mail};
use crate::snapshot::{About, Snapshot};

/// A snapshot is not taken again within this time...
const YOUNG: Duration = Duration::from_secs(1);
/// ...nor within so many times what it took: it keeps the owner from its work.
const SHARE: u32 = 20;
/// Addresses of Services that records were about, at most.
const FRONTENDS: usize = 256;
/// Groups that are gone and that late records may be of, at most.
const RETIRED: usize = 4_096;

/// The owner's state, asked for when it is needed.
pub(super) struct Directory {
    owner: Sender<Mail>,
    snapshot: Option<Snapshot>,
    taken: Option<Instant>,
    took: Duration,
    /// Groups by chain, also those that are gone.
    groups: BTreeMap<String, PolicyGroup>,
    frontends: BTreeSet<IpAddr>,
}

impl Directory {
    pub(super) const fn new(owner: Sender<Mail>) -> Self {
        Self {
            owner,
            snapshot: None,
            taken: None,
            took: Duration::ZERO,
            groups: BTreeMap::new(),
            frontends: BTreeSet::new(),
        }
    }

    /// Sees to it that what a record needs is there and not older than it need be.
    pub(super) fn prepare(&mut self, origin: &Origin, frontend: Option<SocketAddr>) {
        let mut is_known = true;
        if let Some(frontend) = frontend {
            if self.frontends.len() >= FRONTENDS {
                self.frontends.clear();
            }
            // The snapshot was not asked about a new one.
            is_known = !self.frontends.insert(frontend.ip());
        }
        is_known &= match origin {
            Origin::Group(_, chain) | Origin::Tier(_, chain) | Origin::Audit(_, chain) => {
                self.groups.contains_key(chain.as_str())
            }
            Origin::Closed(_) | Origin::Forged => true,
        };
        let age = self.taken.map(|taken| taken.elapsed());
        let young = YOUNG.max(self.took * SHARE);
        // A chain that is not known is newer than the snapshot.
        if age.is_none_or(|age| age > young || (!is_known && age > young / SHARE)) {
            self.refresh();
        }
    }

    /// The same without a record.
    pub(super) fn refresh_if_old(&mut self) {
        if self.is_old() {
            self.refresh();
        }
    }

    /// Gives back what the next record would have taken anew: it is as large as all objects.
    pub(super) fn forget_if_old(&mut self) {
        if self.is_old() {
            self.snapshot = None;
        }
    }

    fn is_old(&self) -> bool {
        let young = YOUNG.max(self.took * SHARE);
        self.taken.is_none_or(|taken| taken.elapsed() > young)
    }

    fn refresh(&mut self) {
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        let about = About {
            services: Vec::new(),
            addresses: self.frontends.iter().copied().collect(),
        };
        // An owner that has ended answers nobody: what was known is still so.
        let asked = self.owner.send(Mail::Call(Call::Snapshot { about, reply }));
        if let (Ok(()), Ok(snapshot)) = (asked, answer.blocking_recv()) {
            if self.groups.len() > RETIRED {
                self.groups.clear();
            }
            self.groups.extend(snapshot.groups.clone());
            self.snapshot = Some(snapshot);
        }
        self.took = started.elapsed();
        self.taken = Some(Instant::now());
    }

    /// The state of a moment ago, if there was an owner.
    pub(super) const fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// The attachment with that port.
    pub(super) fn attachment(&self, port: &str) -> Option<&Attachment> {
        let index = &self.snapshot.as_ref()?.index;
        let mut attachments = index.attachments().values();
        attachments.find(|attachment| attachment.host_ifname == port)
    }

    /// The policies that a chain stands for; empty where that is not known.
    pub(super) fn policies(&self, chain: &str) -> &[String] {
        self.groups.get(chain).map_or(&[], |group| &group.policies)
    }

    /// The Service with that frontend.
    pub(super) fn service(&self, frontend: SocketAddr) -> Option<String> {
        let services = &self.snapshot.as_ref()?.services;
        let service = services.iter().find(|service| {
            let mut frontends = service.frontends.iter();
            frontends.any(|f| (f.id.address, f.id.port) == (frontend.ip(), frontend.port()))
        });
        service.map(|service| service.key.to_string())
    }
}
