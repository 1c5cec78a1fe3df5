//! Undoing an attachment, whole or half done: DEL, GC, the agent for a runtime that is
//! gone ([`reap`](crate::reap)), and an ADD that failed.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use dataplane::attachment::{Attachment, AttachmentKey, Request};
use nix::errno::Errno;

use super::LOCK_TIMEOUT;
use super::leases::{needs_link, release, release_recorded};
use crate::agent::{Agent, AgentError};
use crate::attachment::Record;
use crate::link;
use crate::nat::{self, NodeLock};
use crate::netlink::{NetlinkError, Socket};
use crate::spec::{Document, Environment, Error};

/// What was there to undo, and what could not be undone.
#[derive(Debug, Default)]
pub struct Teardown {
    /// Whether there was a veth.
    pub link: bool,
    /// Addresses that were freed.
    pub freed: Vec<IpAddr>,
    /// What went wrong.
    pub errors: Vec<Error>,
    /// Why an agent that is there has not said that it has let go of the attachment. All else
    /// is done; what it holds in the kernel leads nowhere without the link, and the record
    /// stays to remind it.
    pub unheard: Option<AgentError>,
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

impl Teardown {
    /// What is left, for those who cannot go on while the agent holds anything.
    pub fn all_errors(self) -> Vec<Error> {
        let unheard = self.unheard.map(Error::from);
        self.errors.into_iter().chain(unheard).collect()
    }

    /// What is left, for a runtime, whose container ends whether the agent answers or not.
    pub fn into_errors(self) -> Vec<Error> {
        if let Some(unheard) = self.unheard {
            eprintln!("{unheard}: all else is done, and it frees what it holds when it goes on");
        }
        self.errors
    }
}

impl Configured<'_> {
    fn release(&self, key: &AttachmentKey) -> Result<Vec<IpAddr>, Error> {
        release(self.document, self.environment, key, self.netns)
    }
}

/// Removes all that an attachment consists of: the link first, so that nothing
/// uses the addresses when they are freed (unless they are given back over it), the record
/// last, so that whatever remains after an error is found again. One failure does not keep
/// the rest.
///
/// The agent is told at once and asked at the end: it works while the kernel waits for
/// the last user of the link. A port that it has let go of is closed.
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
    let notice = Notice::send(agent_socket, key);
    let recorded = record
        .as_ref()
        .and_then(|record| record.attachment.as_ref());
    let release = || {
        let freed = recorded.and_then(release_recorded);
        let freed = freed.or_else(|| configured.map(|configured| configured.release(key)));
        freed.unwrap_or(Ok(Vec::new()))
    };
    let present = configured.map(|configured| configured.document);
    let early = needs_link(recorded, present).then(release);
    match remove_link(&key.host_ifname()) {
        Ok(link) => done.link = link,
        Err(error) => done.errors.push(error.into()),
    }
    if let Err(error) = remove_link(&key.ifb_name()) {
        done.errors.push(error.into());
    }
    match early.unwrap_or_else(release) {
        Ok(freed) => done.freed = freed,
        Err(error) => done.errors.push(error),
    }
    let heard = notice.answer();
    let is_away = matches!(heard, Ok(false));
    match heard {
        Ok(_) => {}
        // Whether there is one cannot be said; then nobody may ever read the record.
        Err(error @ AgentError::Away { .. }) => done.errors.push(error.into()),
        Err(error) => done.unheard = Some(error),
    }
    let released = match recorded {
        Some(attachment) => release_nat(agent_socket, attachment, is_away),
        None if record.is_some() && is_away => release_unknown_nat(agent_socket),
        None => Ok(()),
    };
    done.errors.extend(released.err());
    if let Some(record) = record
        && done.errors.is_empty()
        && done.unheard.is_none()
    {
        done.errors.extend(record.remove().err().map(Error::from));
        // One that has started meanwhile may have read the record.
        if is_away && let Err(error) = tell_agent(agent_socket, key) {
            done.errors.push(error.into());
        }
    }
    done
}

/// Takes an attachment out of hostPorts and masquerading. Its port must be gone, and its
/// elements too, unless the agent `is_away`.
pub fn release_nat(
    agent_socket: &Path,
    attachment: &Attachment,
    is_away: bool,
) -> Result<(), Error> {
    if !nat::concerns(attachment) {
        return Ok(());
    }
    let lock = NodeLock::take(agent_socket, LOCK_TIMEOUT)?;
    lock.close_loopback(attachment)?;
    if is_away {
        lock.write()?;
    }
    nat::forget_flows_to(attachment)?;
    Ok(())
}

/// As [`release_nat`] where the record is damaged: what the kernel has beyond the wishes of
/// the others was its own.
fn release_unknown_nat(agent_socket: &Path) -> Result<(), Error> {
    Ok(NodeLock::take(agent_socket, LOCK_TIMEOUT)?.write()?)
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

/// Tells the agent, and returns whether there was one. One that is away is not waited for: it
/// finds out from the records when it comes back.
pub fn tell_agent(socket: &Path, key: &AttachmentKey) -> Result<bool, AgentError> {
    Notice::send(socket, key).answer()
}

/// A word to the agent that an attachment ends, on its way. `None`: there is no agent.
struct Notice(Result<Option<Agent>, AgentError>);

impl Notice {
    fn send(socket: &Path, key: &AttachmentKey) -> Self {
        let attachment = key.clone();
        let send = |mut agent: Agent| {
            agent.send(&Request::Detach { attachment })?;
            Ok(agent)
        };
        Self(Agent::find(socket).and_then(|agent| agent.map(send).transpose()))
    }

    /// Waits for its answer.
    fn answer(self) -> Result<bool, AgentError> {
        match self.0? {
            Some(mut agent) => agent.answer(Duration::ZERO).map(|_| true),
            None => Ok(false),
        }
    }
}
