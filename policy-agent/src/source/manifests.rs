//! Desired state from a directory of manifests.
//!
//! Every `.yaml`, `.yml` and `.json` file in the directory and its subdirectories is
//! read, each with any number of documents and (nested) Lists. Names that begin with a
//! dot are left out, symbolic links are followed: a mounted ConfigMap, whose files are
//! links into a hidden directory that is swapped as a whole, reads as what it shows.
//!
//! [`ManifestDir::scan`] compares the directory with what it last saw and tells the
//! difference. It is synchronous and keeps no objects, only their digests: the index
//! has them. [`watch::ManifestWatch`] says when a scan is worthwhile.
//!
//! What cannot be read never takes anything away:
//! - an object that is wrong keeps its last good state;
//! - a document that does not parse hides which objects it held, so objects that its
//!   file had and no other document of it names stay;
//! - a file that was just emptied is taken for one that is being written;
//! - a NetworkPolicy that was never readable isolates its whole namespace, a
//!   ClusterNetworkPolicy all pods.
//!
//! Files are best replaced by rename. One that is written in place may be seen half
//! written; it is read again at the next change.

mod document;
mod files;
mod ledger;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use proxy::model::ObjectKey;

use crate::complaint;
use crate::event::{Event, Kind, Object};
use files::FileState;
use ledger::Ledger;

pub use files::ManifestError;

/// Identity of an object across files.
type Id = (Kind, ObjectKey);

/// A directory of manifests and what was last told of it.
#[derive(Debug)]
pub struct ManifestDir {
    root: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    ledger: Ledger,
    problems: Vec<Problem>,
    named_kinds: BTreeSet<String>,
}

/// Something in the directory that needs a person.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// File, relative to the directory; empty for the directory itself.
    pub file: PathBuf,
    /// Which document of the file, counted from 1; 0 for the file as a whole.
    pub document: usize,
    /// First line of the document, or the line of the error where that is known; 0 for the
    /// file as a whole.
    pub line: usize,
    /// The object concerned, where that is known.
    pub object: Option<(Kind, ObjectKey)>,
    /// What is wrong and what to do.
    pub message: String,
}

impl From<&Problem> for complaint::Problem {
    fn from(problem: &Problem) -> Self {
        let object = problem.object.as_ref();
        let object = object.map(|(kind, key)| format!(" {kind} {key}"));
        Self {
            object: format!("{}{}", problem.file.display(), object.unwrap_or_default()),
            reason: problem.message.clone(),
        }
    }
}

/// What a file holds, for whoever does not follow a directory.
#[derive(Debug, Default)]
pub struct ParsedFile {
    /// Objects that can be used.
    pub objects: Vec<Object>,
    /// What cannot.
    pub problems: Vec<Problem>,
    /// Kinds that are none of ours, as `apiVersion/kind`.
    pub other_kinds: BTreeSet<String>,
}

/// Reads the bytes of a file; by its extension it is JSON, or YAML.
pub fn parse(file: &Path, bytes: &[u8]) -> ParsedFile {
    document::parse(file, bytes).into()
}

impl ManifestDir {
    /// Looks at the directory, which has to exist; nothing is read before the first
    /// [`ManifestDir::scan`].
    ///
    /// # Errors
    /// Where `root` is no directory or cannot be listed.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ManifestError> {
        let root = root.into();
        files::list(&root)?;
        Ok(Self {
            root,
            files: BTreeMap::new(),
            ledger: Ledger::default(),
            problems: Vec::new(),
            named_kinds: BTreeSet::new(),
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is wrong now, by file and document. What policies say of themselves
    /// ([`NetworkPolicy::problems`](crate::model::NetworkPolicy::problems)) is not
    /// repeated here.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Reads what has changed. The first scan tells one [`Event::Reset`] per kind, later
    /// ones the differences: new and changed objects before those that are gone.
    pub fn scan(&mut self) -> Vec<Event> {
        let mut problems = Vec::new();
        let parsed = self.refresh(&mut problems);
        problems.extend(self.files.values().flat_map(|f| f.problems().cloned()));
        let claims = ledger::winners(&self.files, &mut problems);
        let events = self.ledger.tell(&self.root, &claims, parsed);
        problems.sort();
        self.report(problems);
        events
    }

    /// Reads new and changed files and forgets those that are gone. Gives the contents
    /// of the files that were read.
    fn refresh(&mut self, problems: &mut Vec<Problem>) -> BTreeMap<PathBuf, document::Parsed> {
        let mut parsed = BTreeMap::new();
        let listing = match files::list(&self.root) {
            Ok(listing) => listing,
            Err(error) => {
                // Everything that was told stays.
                problems.push(Problem::of_file(Path::new(""), error.to_string()));
                return parsed;
            }
        };
        self.files.retain(|path, _| listing.may_hold(path));
        problems.extend(listing.problems);
        for path in listing.files {
            let state = self.files.entry(path.clone()).or_default();
            if let Some(content) = state.read(&self.root, &path) {
                for kind in &content.other_kinds {
                    if self.named_kinds.insert(kind.clone()) {
                        let file = path.display();
                        tracing::info!(kind, %file, "manifests of this kind are left alone");
                    }
                }
                parsed.insert(path, content);
            }
        }
        parsed
    }

    /// Takes over the current problems and logs those that are new.
    fn report(&mut self, problems: Vec<Problem>) {
        for problem in &problems {
            if self.problems.binary_search(problem).is_err() {
                tracing::warn!(directory = %self.root.display(), "{problem}");
            }
        }
        self.problems = problems;
    }
}

impl Problem {
    /// A problem of a file as a whole.
    fn of_file(file: &Path, message: String) -> Self {
        Self {
            file: file.to_owned(),
            document: 0,
            line: 0,
            object: None,
            message,
        }
    }
}

/// `web.yaml, document 2 (line 14), Service default/web: ...`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file.as_os_str().is_empty() {
            true => f.write_str("the directory")?,
            false => write!(f, "{}", self.file.display())?,
        }
        if self.document > 0 {
            write!(f, ", document {} (line {})", self.document, self.line)?;
        }
        if let Some((kind, key)) = &self.object {
            match key.namespace.is_empty() {
                true => write!(f, ", {kind} {}", key.name)?,
                false => write!(f, ", {kind} {key}")?,
            }
        }
        write!(f, ": {}", self.message)
    }
}

#[cfg(test)]
mod tests;
