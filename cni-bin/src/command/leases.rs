//! Giving an attachment's addresses back to whoever gave them.

use std::net::IpAddr;

use dataplane::attachment::AttachmentKey;
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
        Ipam::InProcess | Ipam::Nobody => {
            let store = Store::new(&document.data_dir, &document.network);
            match store.lock_existing(LOCK_TIMEOUT)? {
                Some(locked) => Ok(locked.free_all_of(&owner(key))?),
                None => Ok(Vec::new()),
            }
        }
    }
}
