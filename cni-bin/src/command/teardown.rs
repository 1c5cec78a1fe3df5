//! Undoing an attachment, whole or half done: DEL, GC, the agent for a runtime that is
//! gone ([`reap`](crate::reap)), and an ADD that failed.

use std::net::IpAddr;
use std::path::Path;

use dataplane::attachment::{AttachmentKey, Request};
use nix::errno::Errno;

use super::leases::{release, release_recorded};
use crate::agent::Agent;
use crate::attachment::Record;
use crate::link;
use crate::netlink::{NetlinkError, Socket};
use crate::spec::{Document, Environment, Error, Policy};

/// What was there to undo, and what could not be undone.
#[derive(Debug, Default)]
pub struct Teardown {
    /// Whether there was a veth.
    pub link: bool,
    /// Addresses that were freed.
    pub freed: Vec<IpAddr>,
    /// What went wrong.
    pub errors: Vec<Error>,
}

/// What a request says about an attachment that may have no record.
#[derive(Clone, Copy)]
pub struct Configured<'a> {
    /// The present configuration.
    pub document: &'a Document,
    /// Where IPAM plugins of others are.
    pub environment: &'a Environment,
    /// The pod's namespace, for such a plugin.
    pub netns: Option<&'a str>,
}

impl Configured<'_> {
    fn release(&self, key: &AttachmentKey) -> Result<Vec<IpAddr>, Error> {
        release(self.document, self.environment, key, self.netns)
    }
}

/// Removes all that an attachment consists of: the link first, so that nothing
/// uses the addresses when they are freed, the record last, so that whatever
/// remains after an error is found again. One failure does not keep the rest.
///
/// The record knows what ADD did; the configuration may have changed since, and where
/// there is a record there need not be one.
pub fn tear_down(
    agent_socket: &Path,
    configured: Option<Configured<'_>>,
    key: &AttachmentKey,
    record: Option<Record>,
) -> Teardown {
    let mut done = Teardown::default();
    match remove_link(&key.host_ifname()) {
        Ok(link) => done.link = link,
        Err(error) => done.errors.push(error.into()),
    }
    let recorded = record
        .as_ref()
        .and_then(|record| record.attachment.as_ref());
    let freed = recorded.and_then(release_recorded);
    let freed = freed.or_else(|| configured.map(|configured| configured.release(key)));
    match freed.unwrap_or(Ok(Vec::new())) {
        Ok(freed) => done.freed = freed,
        Err(error) => done.errors.push(error),
    }
    if let Err(error) = tell_agent(agent_socket, key) {
        done.errors.push(error);
    }
    if let Some(record) = record
        && done.errors.is_empty()
        && let Err(error) = record.remove()
    {
        done.errors.push(error.into());
    }
    done
}

/// Removes a veth and with it its peer. `false`: there is none, so nobody pays
/// for opening a socket.
pub fn remove_link(name: &str) -> Result<bool, NetlinkError> {
    if !link::exists(name)? {
        return Ok(false);
    }
    let answers = Socket::open()?.ask(format!("remove {name}"), &link::removal(name))?;
    // The pod's namespace may have gone meanwhile, and the pair with it.
    answers.get(0).done_or(Errno::ENODEV)?;
    Ok(true)
}

/// An agent that is away is not waited for: it finds out from the records when it
/// comes back.
pub fn tell_agent(socket: &Path, key: &AttachmentKey) -> Result<(), Error> {
    if let Some(mut agent) = Agent::connect(socket, Policy::Optional)? {
        agent.ask(&Request::Detach {
            attachment: key.clone(),
        })?;
    }
    Ok(())
}
