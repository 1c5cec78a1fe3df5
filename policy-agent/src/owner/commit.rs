//! Commits: chunks, refused operations, changes by others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use dataplane::diff::diff;
use dataplane::kernel::{CommitError, Kernel, KernelError, Rejection};
use dataplane::layout;
use dataplane::layout::policy;
use dataplane::layout::services::{self, Lane, Slot};
use dataplane::object::Ruleset;
use dataplane::transaction::{Operation, Transaction};

use super::Owner;
use super::flows::lane_of;
use super::refused::{RefusedObjects, opens_the_node};
use crate::event::Kind;

/// Elements of one commit: 30,000 hold the netfilter lock for 0.1 s, and other users of
/// nftables wait for it.
const CHUNK: usize = 15_000;

/// Each round takes out what the kernel has blamed; a message names one element at a time.
const ROUNDS: usize = 64;

/// Why the kernel does not hold what is desired.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The first sync waits until everything was listed.
    #[error("waiting for the first list of {}", names(.0))]
    NotListed(Vec<Kind>),
    /// The kernel refuses the static rules or cannot be told.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<_> = kinds.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// What has come of the syncs so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// When the kernel last held what was desired.
    pub(super) last_success: Option<SystemTime>,
    /// Why it does not now.
    pub(super) error: Option<String>,
    /// Successful syncs.
    pub(super) syncs: u64,
    /// Failed ones.
    pub(super) failures: u64,
    /// How long the last took.
    pub(super) last_duration: Duration,
    /// Operations of the last, elements counted one by one.
    pub(super) last_operations: usize,
    /// Times that somebody else had changed our tables.
    pub(super) repairs: u64,
    /// Objects that the kernel refuses, with its words.
    pub(super) refused: RefusedObjects,
    /// Generation of the kernel's ruleset after our last look at it.
    kernel_generation: u32,
    /// What is applied is not known: the next commit begins with a look.
    unknown: bool,
    /// The tables were there before the first sync of this process.
    adopting: bool,
    /// Generation of the policies as of the last commit.
    enforced: Option<u16>,
}

impl Progress {
    pub(super) const fn is_synced(&self) -> bool {
        self.last_success.is_some() && self.error.is_none()
    }

    /// A commit of ours has gone through.
    pub(super) const fn has_committed(&mut self) {
        self.kernel_generation = self.kernel_generation.wrapping_add(1);
    }

    pub(super) fn adopting(&mut self, observed: &Ruleset) {
        self.adopting = !observed.tables.is_empty();
    }

    pub(super) fn finished(&mut self, started: Instant, result: &Result<(), SyncError>) {
        self.last_duration = started.elapsed();
        match result {
            Ok(()) => {
                self.last_success = Some(SystemTime::now());
                self.error = None;
                self.syncs += 1;
            }
            Err(error) => {
                self.error = Some(error.to_string());
                self.failures += 1;
            }
        }
    }
}

impl<K: Kernel> Owner<K> {
    /// What the kernel holds of our tables, and which of its generations that is.
    pub(super) fn observe(&mut self) -> Result<Ruleset, KernelError> {
        // Asked first: a change during the dump is then noticed by the next look.
        let generation = self.kernel.generation()?;
        let observed = self.kernel.dump(&layout::tables())?;
        self.progress.kernel_generation = generation;
        Ok(observed)
    }

    /// Commits what is not applied.
    ///
    /// Between the parts of a large transaction a flow may be judged by the old rules and get
    /// the new generation for it, so after the last part a new one begins.
    pub(super) fn commit(&mut self) -> Result<(), SyncError> {
        if self.progress.unknown {
            self.look()?;
        }
        if self.progress.adopting && !self.desired.transaction().is_empty() {
            // What was allowed under the rules found may not be any more.
            self.raise_generation()?;
        }
        self.progress.adopting = false;
        self.progress.last_operations = 0;
        let mut last = Vec::new();
        for _ in 0..ROUNDS {
            if self.narrowed {
                self.raise_generation()?;
            }
            let transaction = self.desired.transaction();
            match self.commit_chunks(transaction) {
                Ok(chunks) => {
                    self.desired.committed();
                    let before = self.progress.enforced.replace(self.generation);
                    if chunks < 2 || before == Some(self.generation) {
                        return Ok(());
                    }
                    self.narrowed = true;
                }
                Err((transaction, CommitError::Rejected(rejections))) => {
                    last.clone_from(&rejections);
                    if self.kernel.generation()? == self.progress.kernel_generation {
                        self.take_out(&transaction, rejections)?;
                    } else {
                        // Somebody else was there first: what is impossible now may have
                        // been right for the tables that we knew.
                        self.look()?;
                        self.raise_generation()?;
                    }
                }
                Err((_, error @ CommitError::Kernel(_))) => {
                    self.look_again();
                    return Err(error.into());
                }
            }
        }
        self.look_again();
        Err(SyncError::Commit(CommitError::Rejected(last)))
    }

    /// Returns the number of commits.
    fn commit_chunks(
        &mut self,
        transaction: Transaction,
    ) -> Result<usize, (Transaction, CommitError)> {
        let chunks = transaction.chunks(CHUNK, self.desired.ruleset());
        let several = chunks.len() > 1;
        let mut commits = 0;
        for chunk in chunks {
            if chunk.is_empty() {
                continue;
            }
            tracing::debug!(operations = chunk.operations.len(), "commit\n{chunk}");
            let count = chunk.operations.len() + chunk.element_operations();
            if let Err(error) = self.kernel.commit(&chunk) {
                if several {
                    // Earlier chunks are in: what is not is found out by a dump.
                    self.look_again();
                    self.narrowed |= commits > 0;
                }
                return Err((chunk, error));
            }
            commits += 1;
            self.progress.has_committed();
            self.progress.last_operations += count;
            let gone = self.gone_slots(&chunk);
            self.forget_flows(&chunk, &gone);
            self.note_affinity(&chunk, &gone);
            self.note_gone(&gone);
        }
        Ok(commits)
    }

    /// Takes what the kernel holds as what is applied.
    fn look(&mut self) -> Result<(), KernelError> {
        let observed = self.observe()?;
        self.desired.observe(observed);
        self.progress.unknown = false;
        Ok(())
    }

    /// What is applied is not known: compares with the kernel, now or before the next
    /// commit.
    fn look_again(&mut self) {
        self.progress.unknown = true;
        if let Err(error) = self.look() {
            tracing::error!(%error, "the tables cannot be read");
        }
    }

    /// Leaves out of the desired state what the kernel refuses, so that the rest goes
    /// through, see [`super::refused`].
    fn take_out(
        &mut self,
        transaction: &Transaction,
        rejections: Vec<Rejection>,
    ) -> Result<(), SyncError> {
        let mut replanned = BTreeSet::new();
        for rejection in &rejections {
            let operation = rejection
                .operation
                .and_then(|i| transaction.operations.get(i));
            let (desired, refused) = (&mut self.desired, &mut self.progress.refused);
            let reason = rejection.to_string();
            match operation {
                Some(operation) if opens_the_node(desired, operation) => {
                    self.look_again();
                    return Err(SyncError::Commit(CommitError::Rejected(rejections)));
                }
                Some(Operation::AddElements {
                    table,
                    set,
                    elements,
                }) if let Some((lane, family)) = lane_of(set, Lane::endpoints) => {
                    let blamed = elements.get(rejection.elements.clone()).unwrap_or_default();
                    for (key, _) in blamed {
                        let slot = Slot::parse(lane.entry, family, key);
                        let endpoint =
                            slot.and_then(|slot| self.proxy.leave_out(slot, lane.sources));
                        let place = (table, set, key);
                        match endpoint {
                            Some(endpoint) => {
                                let owner = slot.and_then(|slot| {
                                    self.proxy.owner(slot.protocol, slot.frontend)
                                });
                                replanned.extend(owner.cloned());
                                refused.leave_out_slot(desired, place, endpoint, &reason);
                            }
                            None => refused.leave_out_element(desired, place, &reason),
                        }
                    }
                }
                Some(Operation::AddElements {
                    table,
                    set,
                    elements,
                }) if let Some((lane, family)) = lane_of(set, Lane::frontends) => {
                    let blamed = elements.get(rejection.elements.clone()).unwrap_or_default();
                    for (key, _) in blamed {
                        let at = services::parse_frontend(lane.entry, family, key);
                        let slots = at.map_or(0, |(protocol, frontend)| {
                            self.proxy.slots(protocol, frontend, lane.sources)
                        });
                        let place = (table, (lane, family), key);
                        refused.leave_out_frontend(desired, place, slots, &reason);
                    }
                }
                Some(
                    Operation::AddElements {
                        table,
                        set,
                        elements,
                    }
                    | Operation::DeleteElements {
                        table,
                        set,
                        elements,
                    },
                ) => {
                    let blamed = elements.get(rejection.elements.clone()).unwrap_or_default();
                    for (key, _) in blamed {
                        refused.leave_out_element(desired, (table, set, key), &reason);
                    }
                }
                Some(Operation::AddRule { table, chain, .. })
                    if let Some(rules) = policy::closed(chain) =>
                {
                    refused.close_chain(desired, (table, chain), rules, &reason);
                }
                _ => {
                    self.look_again();
                    return Err(SyncError::Commit(CommitError::Rejected(rejections)));
                }
            }
            tracing::error!(error = %rejection, "left out: the kernel refuses it");
        }
        if !replanned.is_empty() {
            // Packets must not be led to slots that are empty. What else was left out of these
            // Services was meant for other slots.
            let elements = self.progress.refused.elements();
            let theirs = elements.filter(|(set, key, ..)| {
                let owners = self.owners_of_element(set, key);
                owners.iter().any(|(_, owner)| replanned.contains(owner))
            });
            let theirs = theirs.map(|(set, key, ..)| (set.clone(), key.clone()));
            let theirs: BTreeSet<_> = theirs.collect();
            let refused = &mut self.progress.refused;
            refused.restore_elements(&mut self.desired, &theirs);
            self.proxy.sync(&mut self.desired);
        }
        Ok(())
    }

    /// Looks whether somebody else has changed the tables, and repairs them. Cheap while
    /// nobody has. Returns whether there was something to repair.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub fn check(&mut self) -> Result<bool, SyncError> {
        if !self.progress.is_synced()
            || self.kernel.generation()? == self.progress.kernel_generation
        {
            return Ok(false);
        }
        let observed = self.observe()?;
        let drift = diff(&observed, self.desired.ruleset());
        if drift.is_empty() {
            // Changes of other tables.
            return Ok(false);
        }
        tracing::warn!(
            operations = drift.operations.len(),
            "somebody else has changed our tables, repairing\n{drift}"
        );
        self.progress.repairs += 1;
        self.desired.observe(observed);
        // Flows may have been allowed meanwhile that must not be.
        self.raise_generation()?;
        let started = Instant::now();
        let result = self.commit();
        self.progress.finished(started, &result);
        // What could not be repaired now is left to the next sync.
        self.dirty |= result.is_err();
        result.map(|()| true)
    }

    /// What would have to be done for the kernel to hold what is desired; empty where it
    /// does.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn verify(&mut self) -> Result<Transaction, SyncError> {
        let observed = self.kernel.dump(&layout::tables())?;
        Ok(diff(&observed, self.desired.ruleset()))
    }
}
