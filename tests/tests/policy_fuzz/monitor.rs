//! Who watches while something changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use tests::netns::NetNs;
use tests::random::Random;
use tests::traffic::{Hammer, PATIENT, Protocol, Server, ask};

use crate::world::{Connection, Verdicts};

/// A denied client tries so often that a moment is enough: it does not wait for an answer
/// that the server would have to give, the server's own word is asked for afterwards.
const HASTY: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(2);
/// Clients of each kind.
const CLIENTS: usize = 4;

/// Clients that go on while a step is taken.
pub(crate) struct Monitor {
    denied: Vec<(Connection, Hammer)>,
    allowed: Vec<(Connection, Hammer)>,
}

/// How often something was tried, and with what verdict.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tried {
    pub(crate) denied: usize,
    pub(crate) allowed: usize,
    /// Live flows that were to go on, and that were to be cut.
    pub(crate) flows_kept: usize,
    pub(crate) flows_cut: usize,
}

impl Monitor {
    /// Some of what has the same verdict before and after.
    pub(crate) fn start(
        steady: &Verdicts,
        sources: &BTreeMap<String, &NetNs>,
        random: &mut Random,
    ) -> Result<Self> {
        let mut start = |verdict: bool, limit| -> Result<Vec<_>> {
            let of_verdict = steady.iter().filter(|(_, allowed)| **allowed == verdict);
            let all: Vec<_> = of_verdict
                .map(|(connection, _)| connection.clone())
                .collect();
            let chosen = random.sample(&all, CLIENTS).into_iter();
            chosen
                .map(|connection| {
                    let netns = sources[&connection.from];
                    let (protocol, target) = (connection.protocol, connection.target);
                    let hammer = Hammer::start(netns, protocol, target, limit, PAUSE)?;
                    Ok((connection, hammer))
                })
                .collect()
        };
        Ok(Self {
            denied: start(false, HASTY)?,
            allowed: start(true, PATIENT)?,
        })
    }

    /// Ends it: no success where it is denied, no failure where it is allowed.
    pub(crate) fn finish(self, tried: &mut Tried) -> Result<()> {
        // All end before any is looked at: none outlives its step.
        let end = |hammers: Vec<(Connection, Hammer)>| -> Result<Vec<_>> {
            let ended = hammers
                .into_iter()
                .map(|(connection, hammer)| Ok((connection, hammer.stop()?)));
            ended.collect()
        };
        let (denied, allowed) = (end(self.denied)?, end(self.allowed)?);
        for (connection, tally) in denied {
            tried.denied += tally.failed();
            ensure!(
                tally.answered() == 0,
                "denied, and answered: {connection:?}: {tally:?}"
            );
        }
        for (connection, tally) in allowed {
            tried.allowed += tally.answered();
            ensure!(
                tally.failed() == 0,
                "allowed, and failed: {connection:?}: {tally:?}"
            );
        }
        Ok(())
    }
}

/// What servers have seen since.
pub(crate) struct Witness(BTreeMap<String, usize>);

impl Witness {
    pub(crate) fn start(servers: &BTreeMap<String, Server>) -> Self {
        let count = |(name, server): (&String, &Server)| (name.clone(), server.seen().len());
        Self(servers.iter().map(count).collect())
    }

    /// An error where a server has seen a client that it must not see.
    pub(crate) fn finish(
        self,
        servers: &BTreeMap<String, Server>,
        verdicts: &Verdicts,
    ) -> Result<()> {
        let denied: BTreeSet<(&str, Protocol, u16, IpAddr)> = verdicts
            .iter()
            .filter(|(_, allowed)| !**allowed)
            .map(|(c, _)| (&*c.to, c.protocol, c.target.port(), c.source))
            .collect();
        for (name, server) in servers {
            let since = self.0.get(name).copied().unwrap_or(0);
            for seen in &server.seen()[since..] {
                let key = (&**name, seen.protocol, seen.port, seen.peer.ip());
                ensure!(
                    !denied.contains(&key),
                    "denied, and seen by {name}: {seen:?}"
                );
            }
        }
        Ok(())
    }
}

/// Tries what is denied, once each.
pub(crate) fn try_denied(
    connections: &[Connection],
    sources: &BTreeMap<String, &NetNs>,
) -> Result<()> {
    const LIMIT: Duration = Duration::from_millis(150);
    let mut running = Vec::new();
    for connection in connections {
        let (protocol, target) = (connection.protocol, connection.target);
        let thread = sources[&connection.from].spawn(move || ask(protocol, target, LIMIT))?;
        running.push((connection, thread));
    }
    for (connection, thread) in running {
        let outcome = thread.join().map_err(|_| anyhow!("a client panicked"))??;
        ensure!(!outcome.is_answered(), "denied: {connection:?}: {outcome}");
    }
    Ok(())
}
