//! Undoing an attachment, whole or half done: DEL, GC, and an ADD that failed.

use std::net::IpAddr;

use dataplane::attachment::{AttachmentKey, Request};
use nix::errno::Errno;

use super::leases::release;
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

/// Removes all that an attachment consists of: the link first, so that nothing
/// uses the addresses when they are freed, the record last, so that whatever
/// remains after an error is found again. One failure does not keep the rest.
///
/// `netns` is for an IPAM plugin of others; a record's own is preferred.
pub fn tear_down(
    document: &Document,
    environment: &Environment,
    key: &AttachmentKey,
    netns: Option<&str>,
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
    let netns = recorded
        .map(|attachment| attachment.netns.as_str())
        .or(netns);
    match release(document, environment, key, netns) {
        Ok(freed) => done.freed = freed,
        Err(error) => done.errors.push(error),
    }
    if let Err(error) = tell_agent(document, key) {
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
    if link::index(name).is_none() {
        return Ok(false);
    }
    let answers = Socket::open()?.ask(format!("remove {name}"), &link::removal(name))?;
    // The pod's namespace may have gone meanwhile, and the pair with it.
    answers.get(0).done_or(Errno::ENODEV)?;
    Ok(true)
}

/// An agent that is away is not waited for: it finds out from the records when it
/// comes back.
pub fn tell_agent(document: &Document, key: &AttachmentKey) -> Result<(), Error> {
    if let Some(mut agent) = Agent::connect(&document.agent_socket, Policy::Optional)? {
        agent.ask(&Request::Detach {
            attachment: key.clone(),
        })?;
    }
    Ok(())
}
