//! Giving an attachment's addresses back to whoever gave them.

use std::net::IpAddr;
use std::path::Path;

use dataplane::attachment::{Attachment, AttachmentKey};
use ipam::Store;

use super::{LOCK_TIMEOUT, owner};
use crate::delegate::Delegate;
use crate::spec::{Document, Environment, Error, Ipam};

/// Frees all addresses of an attachment. Returns those that were held in this
/// process's own store: what a plugin frees, it does not say.
pub fn release(
    document: &Document,
    environment: &Environment,
    key: &AttachmentKey,
    netns: Option<&str>,
) -> Result<Vec<IpAddr>, Error> {
    match &document.ipam {
        Ipam::Plugin(name) => {
            Delegate::find(name, document, environment)?.del(key, netns)?;
            Ok(Vec::new())
        }
        // Also where the section is gone: it may have been there when ADD ran.
        Ipam::InProcess | Ipam::Nobody => free(&document.data_dir, key),
    }
}

/// As [`release`], from what the record says of them; `None` where it says nothing.
pub fn release_recorded(attachment: &Attachment) -> Option<Result<Vec<IpAddr>, Error>> {
    let key = &attachment.key;
    if let Some(data_dir) = &attachment.undo.data_dir {
        return Some(free_these(data_dir, key, &attachment.ips));
    }
    let plugin = attachment.undo.plugin.as_ref()?;
    let released = || {
        let document = Document::parse(plugin.conf.as_bytes())?;
        let environment = Environment::new([("CNI_PATH".into(), plugin.cni_path.clone().into())])?;
        release(&document, &environment, key, Some(&attachment.netns))
    };
    Some(released())
}

/// Whether the addresses are given back over the pod's link, as long as that is there: by
/// the record, or where there is none, by the present configuration.
pub fn needs_link(recorded: Option<&Attachment>, present: Option<&Document>) -> bool {
    match recorded {
        Some(attachment) => attachment.undo.plugin.as_ref().is_some_and(|plugin| {
            let document = Document::parse(plugin.conf.as_bytes());
            document.is_ok_and(|document| document.ipam.needs_link())
        }),
        None => present.is_some_and(|document| document.ipam.needs_link()),
    }
}

/// Frees those of these addresses that are the attachment's: no search among the leases
/// of all the others.
fn free_these(data_dir: &Path, key: &AttachmentKey, ips: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let Some(locked) = Store::new(data_dir, &key.network).lock_existing(LOCK_TIMEOUT)? else {
        return Ok(Vec::new());
    };
    Ok(locked.free_those_of(&owner(key), ips.iter().copied())?)
}

fn free(data_dir: &Path, key: &AttachmentKey) -> Result<Vec<IpAddr>, Error> {
    match Store::new(data_dir, &key.network).lock_existing(LOCK_TIMEOUT)? {
        Some(locked) => Ok(locked.free_all_of(&owner(key))?),
        None => Ok(Vec::new()),
    }
}
