//! Attachment records: what ADD did, for DEL, CHECK, GC and the agent.
//!
//! A record is there before the first change to the kernel and gone after the
//! last. It appears complete, by rename. The process that writes it holds its
//! `flock` until it exits, so that a request can tell an ADD that is under way
//! from one that died.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
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

    /// Writes the record of an attachment and keeps it locked.
    pub fn create(&self, attachment: &Attachment) -> Result<Record, RecordError> {
        let path = self.path(&attachment.key);
        let temporary = temporary(&path);
        let written = fs::create_dir_all(&self.dir)
            .and_then(|()| write_locked(&temporary, attachment))
            .and_then(|file| fs::rename(&temporary, &path).map(|()| file));
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
        let path = self.path(key);
        let io = |source| RecordError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        if !lock_within(&file, timeout).map_err(io)? {
            return Err(RecordError::Busy { path });
        }
        // Who held the lock may have removed the record.
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        Ok(Some(Record {
            attachment: serde_json::from_slice(&content).ok(),
            path,
            _lock: file,
        }))
    }

    /// Removes what an ADD that was killed while it wrote a record left beside it.
    pub fn remove_temporary(&self, key: &AttachmentKey) {
        // Nothing depends on it: the next ADD replaces it.
        drop(fs::remove_file(temporary(&self.path(key))));
    }

    /// All attachments that have a readable record, sorted by key.
    pub fn list(&self) -> Result<Vec<Attachment>, RecordError> {
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
        let mut attachments: Vec<Attachment> = Vec::new();
        for entry in entries {
            let path = entry.map_err(io)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                // One that vanishes meanwhile, or is damaged, concerns no other.
                let content = fs::read(&path).unwrap_or_default();
                attachments.extend(serde_json::from_slice::<Attachment>(&content));
            }
        }
        attachments.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(attachments)
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.dir.join(key.file_name())
    }
}

impl Record {
    /// Removes the record. One that is gone is a success.
    pub fn remove(self) -> Result<(), RecordError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(RecordError::Io {
                action: "remove",
                path: self.path.clone(),
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// Writes a new file, synced: where records are on a disk, an empty one after a
/// power cut would hide which addresses the kernel's rules still name.
fn write_locked(path: &Path, attachment: &Attachment) -> io::Result<File> {
    // Left by a request that died. Its locked inode must not be reused.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = File::create_new(path)?;
    file.lock()?;
    file.write_all(&serde_json::to_vec(attachment)?)?;
    file.sync_data()?;
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
        drop(record);
        let record = records.open(&key, SOON).unwrap().unwrap();
        assert_eq!(record.attachment, Some(attachment("a")));
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
        records.create(&attachment("a")).unwrap();
        assert!(!left.exists());
        fs::write(&left, "{\"net").unwrap();
        records.remove_temporary(&key);
        assert!(!left.exists());
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
        fs::write(folder.join(attachment("c").key.file_name()), "").unwrap();
        fs::write(folder.join("0123.tmp"), "").unwrap();
        let ids: Vec<_> = records
            .list()
            .unwrap()
            .into_iter()
            .map(|a| a.key.container_id)
            .collect();
        assert_eq!(ids, ["a", "b"]);
        let damaged = records.open(&attachment("c").key, SOON).unwrap().unwrap();
        assert_eq!(damaged.attachment, None);
    }
}
