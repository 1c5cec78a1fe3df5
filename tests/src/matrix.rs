//! Many attempts at once, expected against observed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::interrupt;
use crate::netns::NetNs;
use crate::traffic::{Outcome, PATIENT, Protocol, ask};

/// How long an attempt may take that is not to be answered. TCP repeats a lost first
/// packet after a second, so one lost packet does not look like a denial.
pub const LIMIT: Duration = Duration::from_millis(1500);

/// How often an attempt that should be answered is repeated if it is not.
const RETRIES: u32 = 2;

/// How many attempts run at a time: each is a thread.
const PARALLEL: usize = 512;

/// What has to become of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// A server answers: one of these, or any if there are none.
    Answer(Vec<String>),
    /// Nothing comes back: denied by policy.
    Silence,
    /// Turned away at once.
    Refusal,
}

impl Expect {
    /// Any server answers, or nothing does.
    pub fn answered(allowed: bool) -> Self {
        if allowed {
            Self::Answer(Vec::new())
        } else {
            Self::Silence
        }
    }

    fn limit(&self) -> Duration {
        match self {
            Self::Answer(_) | Self::Refusal => PATIENT,
            Self::Silence => LIMIT,
        }
    }

    /// Whether `outcome` is as expected.
    pub fn is_met_by(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Answer(servers) => outcome.server().is_some_and(|server| {
                servers.is_empty() || servers.iter().any(|allowed| allowed == server)
            }),
            Self::Silence => *outcome == Outcome::Timeout,
            Self::Refusal => *outcome == Outcome::Refused,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(servers) if servers.is_empty() => f.write_str("an answer"),
            Self::Answer(servers) => write!(f, "an answer of {}", servers.join(" or ")),
            Self::Silence => f.write_str("no answer"),
            Self::Refusal => f.write_str("refused"),
        }
    }
}

/// One attempt and what is expected of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    /// Which of the sources asks.
    pub from: String,
    /// What the target is called.
    pub to: String,
    /// Over what.
    pub protocol: Protocol,
    /// Address and port.
    pub target: SocketAddr,
    /// What has to come of it.
    pub expect: Expect,
}

/// A cell with what came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observed {
    /// The attempt.
    pub cell: Cell,
    /// Its last outcome.
    pub outcome: Outcome,
}

impl Observed {
    /// Whether it came as expected.
    pub fn agrees(&self) -> bool {
        self.cell.expect.is_met_by(&self.outcome)
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell {
            from,
            to,
            protocol,
            target,
            expect,
        } = &self.cell;
        write!(
            f,
            "{from} to {to} ({protocol} {target}): expected {expect}, {}",
            self.outcome
        )
    }
}

/// Tries every cell, many at a time, from the namespaces in `sources`.
///
/// A missing answer is asked for again, as any client would on a machine that
/// is busy. An answer that ought not to be, or from the wrong server, is never
/// explained away: the first outcome stands.
pub fn observe(sources: &BTreeMap<String, &NetNs>, cells: &[Cell]) -> Result<Vec<Observed>> {
    let mut observed = attempt(sources, cells)?;
    for _ in 0..RETRIES {
        let (settled, open): (Vec<_>, Vec<_>) = observed.into_iter().partition(|observed| {
            observed.outcome.is_answered() || !matches!(observed.cell.expect, Expect::Answer(_))
        });
        observed = settled;
        if open.is_empty() {
            break;
        }
        let cells: Vec<_> = open.into_iter().map(|observed| observed.cell).collect();
        observed.extend(attempt(sources, &cells)?);
    }
    observed.sort_by(|a, b| key(&a.cell).cmp(&key(&b.cell)));
    Ok(observed)
}

/// Tries every cell and fails with a list of those that came otherwise.
pub fn verify(sources: &BTreeMap<String, &NetNs>, cells: &[Cell]) -> Result<()> {
    let observed = observe(sources, cells)?;
    let wrong: Vec<_> = observed
        .iter()
        .filter(|cell| !cell.agrees())
        .map(|cell| format!("  {cell}"))
        .collect();
    if !wrong.is_empty() {
        bail!(
            "{} of {} cells differ:\n{}",
            wrong.len(),
            observed.len(),
            wrong.join("\n")
        );
    }
    Ok(())
}

fn attempt(sources: &BTreeMap<String, &NetNs>, cells: &[Cell]) -> Result<Vec<Observed>> {
    let mut observed = Vec::with_capacity(cells.len());
    for batch in cells.chunks(PARALLEL) {
        interrupt::check()?;
        let mut running = Vec::with_capacity(batch.len());
        for cell in batch {
            let netns = sources
                .get(&cell.from)
                .with_context(|| format!("no source {}", cell.from))?;
            let (protocol, target, limit) = (cell.protocol, cell.target, cell.expect.limit());
            running.push((cell, netns.spawn(move || ask(protocol, target, limit))?));
        }
        for (cell, thread) in running {
            let outcome = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            observed.push(Observed {
                cell: cell.clone(),
                outcome,
            });
        }
    }
    Ok(observed)
}

fn key(cell: &Cell) -> (&str, &str, Protocol, SocketAddr) {
    (&cell.from, &cell.to, cell.protocol, cell.target)
}
