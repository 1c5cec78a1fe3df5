//! What an ADD has made so far, and how to undo it.

use std::net::IpAddr;

use dataplane::attachment::AttachmentKey;
use ipam::Store;

use crate::attachment::Record;
use crate::command::LOCK_TIMEOUT;
use crate::command::leases::release;
use crate::command::teardown::{release_nat, remove_link, tell_agent};
use crate::spec::{Document, Environment, Error};

/// What exists of an attachment so far. Undone when dropped, unless released.
pub(super) struct Made<'a> {
    pub(super) document: &'a Document,
    pub(super) environment: &'a Environment,
    pub(super) key: AttachmentKey,
    pub(super) leases: Leases,
    pub(super) record: Option<Record>,
    pub(super) told_agent: bool,
    pub(super) link: bool,
    pub(super) ifb: bool,
    pub(super) nat: bool,
}

/// Addresses that were given to us.
pub(super) enum Leases {
    /// None.
    None,
    /// These, by the allocator in this process.
    InProcess(Vec<IpAddr>),
    /// Some, or at least asked for, by the plugin that IPAM is delegated to.
    Plugin,
}

impl Made<'_> {
    /// Undoes what was made and nothing else: links and leases of the same
    /// attachment that were there before are not ours to touch.
    pub(super) fn undo(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |outcome: Result<(), Error>| {
            if let Err(error) = outcome {
                left.push(format!("not undone: {error}"));
            }
        };
        if self.document.ipam.needs_link() {
            note(self.give_back());
        }
        if std::mem::take(&mut self.link) {
            note(
                remove_link(&self.key.host_ifname())
                    .map(drop)
                    .map_err(Error::from),
            );
        }
        if std::mem::take(&mut self.ifb) {
            note(
                remove_link(&self.key.ifb_name())
                    .map(drop)
                    .map_err(Error::from),
            );
        }
        note(self.give_back());
        let told_agent = std::mem::take(&mut self.told_agent);
        if told_agent {
            let told = tell_agent(&self.document.agent_socket, &self.key);
            note(told.map(drop).map_err(Error::from));
        }
        let record = self.record.as_ref();
        if std::mem::take(&mut self.nat)
            && let Some(attachment) = record.and_then(|record| record.attachment.as_ref())
        {
            note(release_nat(
                &self.document.agent_socket,
                attachment,
                !told_agent,
            ));
        }
        // Without it nobody would find what is left.
        if let Some(record) = self.record.take().filter(|_| left.is_empty())
            && let Err(error) = record.remove()
        {
            left.push(format!("not undone: {error}"));
        }
        left
    }

    /// Gives the addresses back, once.
    fn give_back(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.leases, Leases::None) {
            Leases::None => Ok(()),
            Leases::InProcess(ips) => self.free(&ips),
            Leases::Plugin => release(self.document, self.environment, &self.key, None).map(drop),
        }
    }

    fn free(&self, ips: &[IpAddr]) -> Result<(), Error> {
        let store = Store::new(&self.document.data_dir, &self.document.network);
        if let Some(locked) = store.lock_existing(LOCK_TIMEOUT)? {
            for &ip in ips {
                locked.free(ip)?;
            }
        }
        Ok(())
    }

    /// The attachment stays.
    pub(super) fn release(&mut self) {
        self.link = false;
        self.ifb = false;
        self.told_agent = false;
        self.nat = false;
        self.leases = Leases::None;
        self.record = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // Only a panic leaves anything to undo here; nobody is left to be told.
        drop(self.undo());
    }
}
