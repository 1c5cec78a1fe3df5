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
    pub fn create(&self, attachment: &Attachment) -> Result<Record, RecordError> {
        let path = self.path(&attachment.key);
        let temporary = temporary(&path);
        let written = create_new(&temporary)
            .and_then(|file| write_locked(file, attachment))
            .and_then(|file| name_record(&temporary, &path).map(|()| file));
        match written {
            Ok(lock) => Ok(Record {
                attachment: Some(attachment.clone()),
                path,
                _lock: lock,
            }),
            Err(source) => {
                // The write's own error is the one to report.
                drop(fs::remove_file(&temporary));
                Err(RecordError::Io {
                    action: "write",
                    path,
                    source,
                })
            }
        }
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

/// Gives a new record its name, in the place of an older one of the same ADD.
fn name_record(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let third = replacement(path);
            // Left by a request that was killed between the two calls. If it stays, the
            // first of them says so.
            drop(fs::remove_file(&third));
            fs::hard_link(temporary, &third)?;
            fs::rename(&third, path)
        }
        outcome => outcome,
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// The name by which a record comes into the place of an older one.
fn replacement(path: &Path) -> PathBuf {
    path.with_extension("new.tmp")
}

fn create_new(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create_new(path)
        }
        // Left by a request that died. Its locked inode must not be reused.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            remove_if_present(path)?;
            File::create_new(path)
        }
        outcome => outcome,
    }
}

/// Writes a new record. Not synced, which costs more than all else that ADD does where
/// records are on a disk: only the machine's death could lose it, and with the machine
/// die the links and rules that it tells of.
fn write_locked(mut file: File, attachment: &Attachment) -> io::Result<File> {
    file.lock()?;
    file.write_all(&serde_json::to_vec(attachment)?)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use dataplane::attachment::{MacAddr, Mode};

    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    fn attachment(id: &str) -> Attachment {
        let key = AttachmentKey {
            network: "net".into(),
            container_id: id.into(),
            ifname: "eth0".into(),
        };
        Attachment {
            host_ifname: key.host_ifname(),
            key,
            netns: "/run/netns/x".into(),
            mode: Mode::RoutedPorts,
            bridge: Some("cbr0".into()),
            mac: MacAddr([0x0a, 0x58, 10, 0, 0, 2]),
            ips: vec!["10.0.0.2".parse().unwrap()],
            undo: Default::default(),
            pod: None,
            port_mappings: Vec::new(),
            masquerade_beyond: Vec::new(),
            bandwidth: None,
        }
    }

    #[test]
    fn a_record_is_locked_by_its_writer_and_gone_after_removal() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("agent.sock"));
        let key = attachment("a").key;
        assert!(records.open(&key, SOON).unwrap().is_none());
        let record = records.create(&attachment("a")).unwrap();
        assert!(matches!(
            records.open(&key, SOON),
            Err(RecordError::Busy { .. })
        ));
        assert!(record.is_unfinished());
        record.finish().unwrap();
        assert!(!record.is_unfinished());
        drop(record);
        let record = records.open(&key, SOON).unwrap().unwrap();
        assert_eq!(record.attachment, Some(attachment("a")));
        assert!(!record.is_unfinished());
        record.remove().unwrap();
        assert!(records.open(&key, SOON).unwrap().is_none());
        assert_eq!(
            fs::read_dir(dir.path().join("attachments"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn a_killed_add_leaves_a_record_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("agent.sock"));
        drop(records.create(&attachment("a")).unwrap());
        let record = records.open(&attachment("a").key, SOON).unwrap().unwrap();
        assert!(record.is_unfinished());
        assert_eq!(record.attachment, Some(attachment("a")));
        record.remove().unwrap();
        assert_eq!(
            fs::read_dir(dir.path().join("attachments"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn an_add_that_learns_more_replaces_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("agent.sock"));
        let first = records.create(&attachment("a")).unwrap();
        let mut more = attachment("a");
        more.ips.clear();
        // Of one that was killed while it did the same.
        let left = replacement(&records.path(&more.key));
        fs::write(&left, "{\"net").unwrap();
        let second = records.create(&more).unwrap();
        drop(first);
        assert!(matches!(
            records.open(&more.key, Duration::ZERO),
            Err(RecordError::Busy { .. })
        ));
        assert!(second.is_unfinished());
        second.finish().unwrap();
        drop(second);
        let record = records.open(&more.key, SOON).unwrap().unwrap();
        assert_eq!(record.attachment, Some(more));
        assert_eq!(
            fs::read_dir(dir.path().join("attachments"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn a_request_that_waited_for_a_removal_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("agent.sock"));
        let record = records.create(&attachment("a")).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let found = records.open(&attachment("a").key, Duration::from_secs(20));
                found.unwrap().is_none()
            });
            std::thread::sleep(SOON);
            record.remove().unwrap();
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn a_half_written_record_is_replaced_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("agent.sock"));
        let folder = dir.path().join("attachments");
        fs::create_dir(&folder).unwrap();
        let key = attachment("a").key;
        let left = folder.join(key.file_name()).with_extension("tmp");
        fs::write(&left, "{\"net").unwrap();
        assert!(records.open(&key, SOON).unwrap().is_none());
        let record = records.create(&attachment("a")).unwrap();
        record.finish().unwrap();
        assert!(!left.exists());
        // Not of this record, which is finished.
        fs::write(&left, "{\"net").unwrap();
        fs::write(left.with_extension("new.tmp"), "{\"net").unwrap();
        assert!(!record.is_unfinished());
        records.remove_temporary(&key);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(records.list().unwrap(), [attachment("a")]);
    }

    #[test]
    fn damaged_records_do_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("agent.sock"));
        for id in ["b", "a"] {
            drop(records.create(&attachment(id)).unwrap());
        }
        let folder = dir.path().join("attachments");
        fs::write(folder.join("torn.json"), "{\"net").unwrap();
        fs::write(folder.join(attachment("c").key.file_name()), b"\xff\0").unwrap();
        fs::write(folder.join("0123.tmp"), "").unwrap();
        let ids: Vec<_> = records
            .list()
            .unwrap()
            .into_iter()
            .map(|a| a.key.container_id)
            .collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(records.damaged().unwrap().len(), 2);
        let damaged = records.open(&attachment("c").key, SOON).unwrap().unwrap();
        assert_eq!(damaged.attachment, None);
    }
}
