//! Attachment records: what ADD did, for DEL, CHECK, GC and the agent.
//!
//! A record is there before the first change to the kernel and gone after the
//! last. It appears whole, as a second name of the file `<hash>.tmp`. That first name
//! goes when ADD has succeeded, and the process holds the file's `flock` until it
//! exits. From outside one can thus tell:
//!
//! ```text
//!   lock held                   a request is under way
//!   lock free, both names       an ADD was killed: nobody was told of the attachment
//!   lock free, <hash>.json      an attachment
//!   lock free, <hash>.tmp       an ADD was killed before its first change
//! ```

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::attachment::{Attachment, AttachmentKey, records_dir};
use ipam::lock::lock_within;

/// Why records could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A system call failed.
    #[error("cannot {action} attachment record {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record is that of an ADD or DEL under way.
    #[error("another request for this attachment is under way ({})", path.display())]
    Busy {
        /// The record.
        path: PathBuf,
    },
}

/// The records that belong to an agent's socket.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

/// A record of ours, locked while this lives.
#[derive(Debug)]
pub struct Record {
    /// `None` where the file holds no attachment: a power cut.
    pub attachment: Option<Attachment>,
    path: PathBuf,
    _lock: File,
}

impl Records {
    /// The records beside `agent_socket`. Touches nothing.
    pub fn beside(agent_socket: &Path) -> Self {
        Self {
            dir: records_dir(agent_socket),
        }
    }

    /// Writes the record of an attachment and keeps it locked. It is unfinished until
    /// [`Record::finish`].
    ///
    /// # Errors
    /// [`RecordError::Busy`] where it has one: that of another ADD.
    pub fn create(&self, attachment: &Attachment) -> Result<Record, RecordError> {
        let path = self.path(&attachment.key);
        let created = create_new(&temporary(&path), is_abandoned);
        write(path, created, attachment, |temporary, path| {
            fs::hard_link(temporary, path)
        })
    }

    /// Opens and locks the record of an attachment, waiting for a request that
    /// is under way. `None`: there is none (any more).
    pub fn open(
        &self,
        key: &AttachmentKey,
        timeout: Duration,
    ) -> Result<Option<Record>, RecordError> {
        Self::open_file(self.path(key), timeout)
    }

    /// As [`open`](Self::open), by the path of the record.
    pub fn open_file(path: PathBuf, timeout: Duration) -> Result<Option<Record>, RecordError> {
        let io = |source| RecordError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        loop {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(io(error)),
            };
            if !lock_within(&file, timeout).map_err(io)? {
                return Err(RecordError::Busy { path });
            }
            // Who held the lock may have removed the record, or written another.
            if identity(&path) != Some(identity_of(&file.metadata().map_err(io)?)) {
                continue;
            }
            let mut content = Vec::new();
            (&file).read_to_end(&mut content).map_err(io)?;
            return Ok(Some(Record {
                attachment: serde_json::from_slice(&content).ok(),
                path,
                _lock: file,
            }));
        }
    }

    /// Whether the attachment has a record.
    pub fn exists(&self, key: &AttachmentKey) -> bool {
        // An error other than "not there" must not make it look dead.
        self.path(key).try_exists().unwrap_or(true)
    }

    /// Removes what an ADD that was killed while it wrote a record left beside it.
    pub fn remove_temporary(&self, key: &AttachmentKey) {
        // Nothing depends on it: the next ADD replaces it.
        let path = self.path(key);
        for left in [temporary(&path), replacement(&path)] {
            drop(fs::remove_file(left));
        }
    }

    /// All attachments that have a readable record, sorted by key.
    pub fn list(&self) -> Result<Vec<Attachment>, RecordError> {
        let all = self.read_all()?.into_iter();
        let mut attachments: Vec<Attachment> = all.filter_map(|(_, read)| read).collect();
        attachments.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(attachments)
    }

    /// The paths of the records that do not hold an attachment, sorted.
    pub fn damaged(&self) -> Result<Vec<PathBuf>, RecordError> {
        let all = self.read_all()?.into_iter();
        let damaged = all.filter(|(_, read)| read.is_none());
        Ok(damaged.map(|(path, _)| path).collect())
    }

    /// Every record with what it holds; `None` where it is damaged.
    fn read_all(&self) -> Result<Vec<(PathBuf, Option<Attachment>)>, RecordError> {
        let mut all = Vec::new();
        for path in self.files("json")? {
            match fs::read(&path) {
                // One that is damaged concerns no other.
                Ok(content) => all.push((path, serde_json::from_slice(&content).ok())),
                // One that vanishes meanwhile neither.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // But one that cannot be read may be anybody's.
                Err(source) => {
                    return Err(RecordError::Io {
                        action: "read",
                        path,
                        source,
                    });
                }
            }
        }
        Ok(all)
    }

    /// The paths of all records, readable or not, sorted.
    pub fn paths(&self) -> Result<Vec<PathBuf>, RecordError> {
        self.files("json")
    }

    /// Removes what ADDs that were killed before they had a record have left for longer
    /// than `age`, the time that no request takes.
    pub fn remove_abandoned(&self, age: Duration) -> Result<(), RecordError> {
        for path in self.files("tmp")? {
            let written = fs::symlink_metadata(&path).and_then(|file| file.modified());
            let is_old = written
                .ok()
                .and_then(|written| written.elapsed().ok())
                .is_some_and(|elapsed| elapsed > age);
            // That of a record tells that it is unfinished.
            if is_old && !path.with_extension("json").exists() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn files(&self, extension: &str) -> Result<Vec<PathBuf>, RecordError> {
        let io = |source| RecordError::Io {
            action: "list",
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|found| found == extension) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.dir.join(key.file_name())
    }
}

impl Record {
    /// Whether its ADD has not succeeded: it is under way, or was killed.
    pub fn is_unfinished(&self) -> bool {
        let record = identity(&self.path);
        record.is_some() && identity(&temporary(&self.path)) == record
    }

    /// Writes what its ADD has learnt since, in its place.
    pub fn replace(&self, attachment: &Attachment) -> Result<Self, RecordError> {
        let created = create_new(&temporary(&self.path), |_| Ok(true));
        write(self.path.clone(), created, attachment, rename_record)
    }

    /// ADD has succeeded; only its result is left to be told.
    pub fn finish(&self) -> Result<(), RecordError> {
        remove(&temporary(&self.path))
    }

    /// Removes the record. One that is gone is a success.
    pub fn remove(self) -> Result<(), RecordError> {
        // In this order: killed between the two, what stays stands for nothing.
        remove(&self.path)?;
        remove(&temporary(&self.path))
    }
}

fn remove(path: &Path) -> Result<(), RecordError> {
    remove_if_present(path).map_err(|source| RecordError::Io {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    Some(identity_of(&fs::symlink_metadata(path).ok()?))
}

fn identity_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Writes a new record, which `name` gives its name.
fn write(
    path: PathBuf,
    created: io::Result<File>,
    attachment: &Attachment,
    name: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> Result<Record, RecordError> {
    let temporary = temporary(&path);
    let written = created.and_then(|file| {
        let written = write_locked(&temporary, file, attachment)
            .and_then(|file| name(&temporary, &path).map(|()| file));
        // Unless it is another ADD's.
        let is_ours = |error: &io::Error| error.kind() != ErrorKind::WouldBlock;
        if written.as_ref().is_err_and(is_ours) {
            // The write's own error is the one to report.
            drop(fs::remove_file(&temporary));
        }
        written
    });
    match written {
        Ok(lock) => Ok(Record {
            attachment: Some(attachment.clone()),
            path,
            _lock: lock,
        }),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::AlreadyExists
            ) =>
        {
            Err(RecordError::Busy { path })
        }
        Err(source) => Err(RecordError::Io {
            action: "write",
            path,
            source,
        }),
    }
}

/// Gives a new record its name in the place of an older one of the same ADD.
fn rename_record(temporary: &Path, path: &Path) -> io::Result<()> {
    let third = replacement(path);
    // Left by a request that was killed between the two calls. If it stays, the first of them
    // says so.
    drop(fs::remove_file(&third));
    fs::hard_link(temporary, &third)?;
    fs::rename(&third, path)
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// The name by which a record comes into the place of an older one.
fn replacement(path: &Path) -> PathBuf {
    path.with_extension("new.tmp")
}

/// A new file in the place of one that `is_ours` to remove.
fn create_new(path: &Path, is_ours: fn(&Path) -> io::Result<bool>) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create_new(path)
        }
        // Not written over: who waits for its lock must see that it has gone.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_ours(path)? => {
            remove_if_present(path)?;
            File::create_new(path)
        }
        outcome => outcome,
    }
}

/// Whether the request that has left the file is over.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(left) => lock_within(&left, Duration::ZERO),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes a new record. Not synced, which costs more than all else that ADD does where
/// records are on a disk: only the machine's death could lose it, and with the machine
/// die the links and rules that it tells of.
fn write_locked(path: &Path, mut file: File, attachment: &Attachment) -> io::Result<File> {
    file.lock()?;
    // Another ADD may have found it between its creation and the lock, and abandoned.
    if identity(path) != Some(identity_of(&file.metadata()?)) {
        return Err(ErrorKind::WouldBlock.into());
    }
    file.write_all(&serde_json::to_vec(attachment)?)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
