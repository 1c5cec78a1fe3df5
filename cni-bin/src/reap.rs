//! Attachments that nobody will DEL.
//!
//! A runtime may die, lose its state, or be killed with the plugin in the middle of an
//! ADD. The agent asks here from time to time, and ADD before it says that no address
//! is left.
//!
//! A pod that lives is never touched. Its host-side veth is the evidence: the kernel
//! destroys it together with the pod's namespace, and not before. Only where there is
//! none does the path of the namespace matter, and one that cannot be judged counts as
//! alive.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::attachment::{Attachment, AttachmentKey};
use ipam::store::DEFAULT_DATA_DIR;
use ipam::{Lease, Locked, Store};

use crate::attachment::{Record, RecordError, Records};
use crate::command::teardown::tear_down;
use crate::link;
use crate::netns::{Netns, NetnsError};
use crate::spec::Error;

/// How long no request takes, waiting for locks and the agent included.
const LONG_AGO: Duration = Duration::from_secs(60);

/// Why an attachment is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The machine has been restarted since.
    OtherBoot,
    /// The plugin was killed before it could tell the runtime of it.
    Unfinished,
    /// Its network namespace does not exist any more.
    NetnsGone,
    /// The path of its network namespace leads to another one.
    NetnsReplaced,
    /// Its network namespace has no such interface: a DEL was killed.
    InterfaceGone,
    /// Its record is damaged, and it has no link.
    Damaged,
}

/// An attachment that was undone, or that could not be.
#[derive(Debug)]
pub struct Reaped {
    /// Which; `None` where the record is damaged.
    pub key: Option<AttachmentKey>,
    /// Why.
    pub cause: Cause,
    /// What could not be undone; the record stays, and the next call tries again.
    pub errors: Vec<Error>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherBoot => "it is of an earlier boot",
            Self::Unfinished => "its ADD was killed",
            Self::NetnsGone => "its network namespace is gone",
            Self::NetnsReplaced => "its network namespace was replaced by another",
            Self::InterfaceGone => "its network namespace has no such interface",
            Self::Damaged => "its record is damaged",
        })
    }
}

/// Undoes the dead attachments whose records lie beside `agent_socket`, and returns what
/// it did. Attachments that a request is working on are left alone.
pub fn reap(agent_socket: &Path) -> Result<Vec<Reaped>, RecordError> {
    let records = Records::beside(agent_socket);
    let boot = ipam::boot::id().ok();
    let mut reaped = Vec::new();
    for path in records.paths()? {
        if has_link(&path) && !has_second_name(&path) {
            continue;
        }
        let record = match Records::open_file(path, Duration::ZERO) {
            Ok(Some(record)) => record,
            Ok(None) | Err(RecordError::Busy { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Some(attachment) = record.attachment.clone() else {
            // Which leases it had the file does not tell any more.
            let errors = record.remove().map_err(Error::from).err();
            reaped.push(Reaped {
                key: None,
                cause: Cause::Damaged,
                errors: errors.into_iter().collect(),
            });
            continue;
        };
        if let Some(cause) = judge(&record, &attachment, boot.as_deref()) {
            let key = attachment.key;
            let errors = tear_down(agent_socket, None, &key, Some(record)).all_errors();
            reaped.push(Reaped {
                key: Some(key),
                cause,
                errors,
            });
        }
    }
    records.remove_abandoned(LONG_AGO)?;
    Ok(reaped)
}

/// Frees, in every directory of leases that a record names and in the default one, what
/// [`free_dead_leases`] does. Directories in use are left for the next time.
pub fn reap_leases(agent_socket: &Path) -> Result<(), Error> {
    let records = Records::beside(agent_socket);
    let named = records.list()?.into_iter();
    let mut dirs: BTreeSet<PathBuf> = named.filter_map(|one| one.undo.data_dir).collect();
    dirs.insert(PathBuf::from(DEFAULT_DATA_DIR));
    let boot = ipam::boot::id().ok();
    for dir in dirs {
        let Ok(networks) = fs::read_dir(&dir) else {
            continue;
        };
        let names = networks.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for network in names {
            // Without a mark the directory is that of another plugin.
            if !dir.join(&network).join(ipam::boot::MARK).exists() {
                continue;
            }
            match Store::new(&dir, &network).lock_existing(Duration::ZERO) {
                Ok(Some(locked)) => free_dead_leases(&locked, &records, &network, boot.as_deref())?,
                Ok(None) | Err(ipam::StoreError::Busy { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Frees the leases of a request that was killed before it had a record, and those of
/// an earlier boot.
pub fn free_dead_leases(
    locked: &Locked,
    records: &Records,
    network: &str,
    boot: Option<&str>,
) -> Result<(), Error> {
    locked.free_interrupted(|owner| {
        // Of a container without an interface there was never a request of ours.
        let ifname = owner.ifname.clone().unwrap_or_default();
        records.exists(&AttachmentKey {
            network: network.to_owned(),
            container_id: owner.container_id.clone(),
            ifname,
        })
    })?;
    if let Some(boot) = boot {
        let is_recorded = |lease: &Lease| {
            // If the records cannot be read, it is.
            records.list().map_or(true, |all| {
                all.iter().any(|attachment| {
                    attachment.key.network == network
                        && attachment.ips.contains(&lease.ip)
                        && attachment.undo.boot.as_deref() == Some(boot)
                })
            })
        };
        locked.enter_boot(boot, is_recorded)?;
    }
    Ok(())
}

/// Whether a pod may run whose record is damaged: an address of which nobody knows who has
/// it may then be that pod's.
pub fn has_unrecorded_pod(records: &Records) -> bool {
    let damaged = records.damaged();
    damaged.map_or(true, |paths| paths.iter().any(|path| has_link(path)))
}

/// Whether the attachment's veth exists. Its name and the record's have the same hash.
fn has_link(record: &Path) -> bool {
    let hash = record.file_stem().and_then(|stem| stem.to_str());
    hash.is_none_or(|hash| link::exists(&AttachmentKey::host_ifname_of(hash)).unwrap_or(true))
}

/// Whether the record may be unfinished: a cheap look, before it is opened.
fn has_second_name(record: &Path) -> bool {
    record.with_extension("tmp").exists()
}

/// Why the attachment is dead; `None` if it is alive or cannot be judged.
fn judge(record: &Record, attachment: &Attachment, boot: Option<&str>) -> Option<Cause> {
    let recorded = attachment.undo.boot.as_deref();
    if recorded.zip(boot).is_some_and(|(then, now)| then != now) {
        return Some(Cause::OtherBoot);
    }
    if record.is_unfinished() {
        return Some(Cause::Unfinished);
    }
    if link::exists(&attachment.host_ifname).unwrap_or(true) {
        return None;
    }
    let netns = match Netns::open(&attachment.netns) {
        Ok(netns) => netns,
        Err(NetnsError::NotNetns { .. }) => return Some(Cause::NetnsGone),
        Err(NetnsError::Open { source, .. })
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory
            ) =>
        {
            return Some(Cause::NetnsGone);
        }
        Err(_) => return None,
    };
    let known = attachment.undo.netns_id;
    if known.zip(netns.id()).is_some_and(|(then, now)| then != now) {
        return Some(Cause::NetnsReplaced);
    }
    let is_gone = interface_is_gone(&netns, &attachment.key.ifname);
    is_gone.unwrap_or(false).then_some(Cause::InterfaceGone)
}

fn interface_is_gone(netns: &Netns, ifname: &str) -> Result<bool, NetnsError> {
    let home = Netns::own()?;
    let visit = netns.enter(&home)?;
    let exists = link::exists(ifname);
    visit.leave();
    Ok(matches!(exists, Ok(false)))
}

#[cfg(test)]
mod tests;
