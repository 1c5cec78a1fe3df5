//! What was told of the directory, and what is to be told next.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proxy::model::ObjectKey;

use super::document::{self, Claim, ClaimState, Parsed};
use super::files::FileState;
use super::{Id, Problem};
use crate::event::{Event, Kind, Object};
use crate::model::Namespace;

/// For every object the first file, by name, that has it, and what it has.
pub(super) type Winners<'a> = BTreeMap<&'a Id, (&'a Path, &'a Claim)>;

/// Digests of what was last told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Of each object that the index has.
    told: BTreeMap<Id, u64>,
    /// Of each object that is invalid now.
    told_invalid: BTreeMap<Id, u64>,
    /// Whether the first scan is over.
    has_listed: bool,
}

/// Chooses a file for every object and notes the others as problems.
pub(super) fn winners<'a>(
    files: &'a BTreeMap<PathBuf, FileState>,
    problems: &mut Vec<Problem>,
) -> Winners<'a> {
    let mut winners = Winners::new();
    for (path, file) in files {
        for (id, claim) in &file.claims {
            match winners.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert((path, claim));
                }
                Entry::Occupied(first) => {
                    let first = first.get().0.display();
                    problems.push(Problem {
                        file: path.clone(),
                        document: claim.document,
                        line: claim.line,
                        object: Some(id.clone()),
                        message: format!("is in {first} already, which counts: remove one"),
                    });
                }
            }
        }
    }
    winners
}

impl Ledger {
    /// The difference between what was told and what there is. `parsed` holds the objects
    /// of the files that were just read; others are read again where needed (an object
    /// whose first file is gone and that a second one has).
    pub(super) fn tell(
        &mut self,
        root: &Path,
        winners: &Winners<'_>,
        mut parsed: BTreeMap<PathBuf, Parsed>,
    ) -> Vec<Event> {
        let mut events = self.implicit_namespaces(winners);
        for (id, (path, claim)) in winners {
            match claim.state {
                // One that was told to be invalid is told again, even as it was before.
                ClaimState::Good
                    if self.told.get(id) == Some(&claim.digest)
                        && !self.told_invalid.contains_key(id) => {}
                ClaimState::Good => {
                    let content = parsed
                        .entry((*path).to_owned())
                        .or_insert_with(|| read_again(root, path));
                    if let Some(object) = content.take(id, claim.digest) {
                        self.told.insert((*id).clone(), claim.digest);
                        self.told_invalid.remove(*id);
                        events.push(Event::Apply(object));
                    }
                }
                // Told to be gone below.
                ClaimState::NotOurs => {}
                ClaimState::Invalid(ref reason) => {
                    self.tell_invalid(id, claim.digest, reason, &mut events);
                }
            }
        }
        self.tell_gone(winners, &mut events);
        match std::mem::replace(&mut self.has_listed, true) {
            true => events,
            false => into_resets(events),
        }
    }

    /// A Namespace that nobody wrote down exists nevertheless where something is in it.
    fn implicit_namespaces(&mut self, winners: &Winners<'_>) -> Vec<Event> {
        let mut events = Vec::new();
        for name in implicit_names(winners) {
            let namespace = Namespace::implicit(name);
            let id = (Kind::Namespace, ObjectKey::new("", name));
            let digest = super::files::digest(&namespace.labels);
            if self.told.insert(id, digest) != Some(digest) {
                events.push(Event::Apply(Object::Namespace(namespace)));
            }
        }
        events
    }

    fn tell_invalid(&mut self, id: &Id, digest: u64, reason: &str, events: &mut Vec<Event>) {
        if self.told_invalid.insert(id.clone(), digest) == Some(digest) {
            return;
        }
        let (kind, key) = id.clone();
        if !self.told.contains_key(id)
            && let Some(object) = Object::unreadable(kind, &key, reason)
        {
            self.told.insert(id.clone(), digest);
            events.push(Event::Apply(object));
        }
        events.push(Event::Invalid {
            kind,
            key,
            reason: reason.to_owned(),
        });
    }

    fn tell_gone(&mut self, winners: &Winners<'_>, events: &mut Vec<Event>) {
        let implicit = implicit_names(winners);
        let stays = |id: &Id| match winners.get(id) {
            Some((_, claim)) => !matches!(claim.state, ClaimState::NotOurs),
            None => id.0 == Kind::Namespace && implicit.contains(&*id.1.name),
        };
        let told = self.told.keys().chain(self.told_invalid.keys());
        let gone: BTreeSet<_> = told.filter(|id| !stays(id)).cloned().collect();
        self.told.retain(|id, _| !gone.contains(id));
        self.told_invalid.retain(|id, _| !gone.contains(id));
        events.extend(gone.into_iter().map(|(kind, key)| Event::Delete(kind, key)));
    }
}

/// Namespaces that something is in and no Namespace object names.
fn implicit_names<'a>(winners: &Winners<'a>) -> BTreeSet<&'a str> {
    let mut names: BTreeSet<&str> = winners
        .keys()
        .filter(|(kind, _)| kind.is_namespaced())
        .map(|(_, key)| &*key.namespace)
        .collect();
    for (kind, key) in winners.keys() {
        if *kind == Kind::Namespace {
            names.remove(&*key.name);
        }
    }
    names
}

/// The contents of a file that has not changed. Should it have, its objects are not
/// found by their digests, and the next scan sees the change.
fn read_again(root: &Path, path: &Path) -> Parsed {
    fs::read(root.join(path))
        .map(|bytes| document::parse(path, &bytes))
        .unwrap_or_default()
}

/// One reset per kind, and after them what cannot be used.
fn into_resets(events: Vec<Event>) -> Vec<Event> {
    let mut objects: BTreeMap<Kind, Vec<Object>> = Kind::ALL
        .into_iter()
        .map(|kind| (kind, Vec::new()))
        .collect();
    let mut others = Vec::new();
    for event in events {
        match event {
            Event::Apply(object) => objects.entry(object.kind()).or_default().push(object),
            other => others.push(other),
        }
    }
    let resets = objects
        .into_iter()
        .map(|(kind, objects)| Event::Reset(kind, objects));
    resets.chain(others).collect()
}
