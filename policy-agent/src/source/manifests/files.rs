//! Files: which there are, whether they changed, what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::document::{self, Claim, Parsed};
use super::{Id, Problem};

/// A file may change twice within one tick of the clock that stamps it (4 ms, two
/// seconds on some file systems). Younger files are read again to be sure.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// A file that was just emptied is taken for one that is being written, that long.
const EMPTY_AFTER: Duration = Duration::from_secs(1);

/// Directories below directories, at most: a guard against mistakes, not a limit that
/// anybody should meet.
const MAX_DEPTH: usize = 16;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be listed.
    #[error("cannot list the manifest directory {}: {source}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the directory holds.
#[derive(Default)]
pub(super) struct Listing {
    /// Manifest files, relative to the root.
    pub(super) files: BTreeSet<PathBuf>,
    /// Files and directories that could not be looked at: what they held may still be
    /// there.
    unknown: Vec<PathBuf>,
    /// Why not.
    pub(super) problems: Vec<Problem>,
}

/// What is known of one file.
#[derive(Debug, Default)]
pub(super) struct FileState {
    stamp: Option<Stamp>,
    /// Digest of the bytes.
    digest: u64,
    /// Objects that the file claims, by identity.
    pub(super) claims: BTreeMap<Id, Claim>,
    /// Problems of its contents.
    problems: Vec<Problem>,
    /// Why it could not be read the last time.
    unreadable: Option<Problem>,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Whether the file was old enough when it was read.
    settled: bool,
}

impl Listing {
    /// Whether the file is there or may be.
    pub(super) fn may_hold(&self, path: &Path) -> bool {
        self.files.contains(path) || self.unknown.iter().any(|p| path.starts_with(p))
    }

    fn cannot(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be read, so what it held stays: {error}");
        self.problems.push(Problem::of_file(path, message));
        self.unknown.push(path.to_owned());
    }
}

impl FileState {
    /// Current problems of the file.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(&self.unreadable)
    }

    /// Reads and takes over the file's contents, unless it is known not to have changed.
    pub(super) fn read(&mut self, root: &Path, path: &Path) -> Option<Parsed> {
        let full = root.join(path);
        match self.read_changed(&full) {
            Ok(bytes) => {
                self.unreadable = None;
                let parsed = document::parse(path, &bytes?);
                self.take_over(&parsed);
                Some(parsed)
            }
            Err(error) => {
                let message = format!("cannot be read, so what it held stays: {error}");
                self.unreadable = Some(Problem::of_file(path, message));
                self.stamp = None;
                None
            }
        }
    }

    /// The bytes, or `None` where they are the same as before.
    fn read_changed(&mut self, full: &Path) -> io::Result<Option<Vec<u8>>> {
        let metadata = fs::metadata(full)?;
        if self
            .stamp
            .is_some_and(|s| s.settled && s == Stamp::of(&metadata, true))
        {
            return Ok(None);
        }
        // The stamp is taken before the contents: a write in between is seen next time.
        let bytes = fs::read(full)?;
        if bytes.is_empty() && !self.claims.is_empty() && age(&metadata) < EMPTY_AFTER {
            return Ok(None);
        }
        let digest = digest(&bytes);
        let is_new = self.stamp.is_none() || self.digest != digest;
        self.stamp = Some(Stamp::of(&metadata, age(&metadata) >= SETTLED_AFTER));
        self.digest = digest;
        Ok(is_new.then_some(bytes))
    }

    fn take_over(&mut self, parsed: &Parsed) {
        let before = std::mem::take(&mut self.claims);
        self.claims = parsed.claims();
        if parsed.hides_objects {
            for (id, claim) in before {
                self.claims.entry(id).or_insert(claim);
            }
        }
        self.problems.clone_from(&parsed.problems);
    }
}

impl Stamp {
    fn of(metadata: &Metadata, settled: bool) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            settled,
        }
    }
}

/// Digest of anything, stable within this process.
pub(super) fn digest(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The manifest files below `root`.
pub(super) fn list(root: &Path) -> Result<Listing, ManifestError> {
    let mut listing = Listing::default();
    let mut above = Vec::new();
    walk(root, Path::new(""), &mut above, &mut listing).map_err(|source| ManifestError::List {
        path: root.to_owned(),
        source,
    })?;
    Ok(listing)
}

/// Lists one directory. `above` holds the identities of the directories that lead to
/// it, against links that go in circles.
fn walk(
    root: &Path,
    relative: &Path,
    above: &mut Vec<(u64, u64)>,
    listing: &mut Listing,
) -> io::Result<()> {
    let full = root.join(relative);
    let metadata = fs::metadata(&full)?;
    let identity = (metadata.dev(), metadata.ino());
    if above.contains(&identity) || above.len() >= MAX_DEPTH {
        return Ok(());
    }
    let entries = fs::read_dir(&full)?.collect::<io::Result<Vec<_>>>()?;
    above.push(identity);
    for entry in entries {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = relative.join(&name);
        match fs::metadata(root.join(&path)) {
            Ok(metadata) if metadata.is_dir() => {
                if let Err(error) = walk(root, &path, above, listing) {
                    listing.cannot(&path, &error);
                }
            }
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                listing.files.insert(path);
            }
            Ok(_) => {}
            // Gone between listing and looking, or a link that leads nowhere.
            Err(error) if is_manifest(&path) && entry.path().is_symlink() => {
                listing.cannot(&path, &error);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => listing.cannot(&path, &error),
        }
    }
    above.pop();
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Time since the last change by the clock of the file; zero where that lies ahead.
fn age(metadata: &Metadata) -> Duration {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanos = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    SystemTime::now()
        .duration_since(modified.max(changed))
        .unwrap_or_default()
}
