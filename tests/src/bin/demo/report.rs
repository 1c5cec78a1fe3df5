//! What the demo found, as data.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use tests::matrix::Observed;
use tests::pod::Family;
use tests::traffic::{Outcome, Protocol};

/// Everything, one JSON document.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Whether every connection came out as expected and nothing was left behind.
    pub(crate) agrees: bool,
    /// What was done, in order.
    pub(crate) steps: Vec<Step>,
    /// The pods.
    pub(crate) pods: Vec<PodReport>,
    /// Every connection that was tried.
    pub(crate) matrix: Vec<CellReport>,
    /// Open connections and when they were cut.
    pub(crate) live_change: Vec<Cut>,
    /// From the first namespace to the last, in milliseconds.
    pub(crate) milliseconds: f64,
}

/// One thing that was done.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    /// By which program.
    pub(crate) by: String,
    /// What.
    pub(crate) what: String,
    /// How long it took.
    pub(crate) milliseconds: f64,
}

/// A pod as ADD made it.
#[derive(Debug, Serialize)]
pub(crate) struct PodReport {
    /// `namespace/name`.
    pub(crate) name: String,
    /// Its addresses.
    pub(crate) ips: Vec<IpAddr>,
    /// The node's end of its link.
    pub(crate) port: String,
}

/// One connection that was tried.
#[derive(Debug, Serialize)]
pub(crate) struct CellReport {
    /// Who asked.
    pub(crate) from: String,
    /// Whom.
    pub(crate) to: String,
    /// Over which IP family.
    pub(crate) family: String,
    /// Over what.
    pub(crate) protocol: Protocol,
    /// Under which address.
    pub(crate) target: SocketAddr,
    /// Whether it had to be answered.
    pub(crate) expected: bool,
    /// What came of it.
    pub(crate) observed: Outcome,
    /// Whether that is as expected.
    pub(crate) agrees: bool,
}

/// An open connection that a policy change cut.
#[derive(Debug, Serialize)]
pub(crate) struct Cut {
    /// Who had opened it.
    pub(crate) from: String,
    /// To whom.
    pub(crate) to: String,
    /// Over which IP family.
    pub(crate) family: String,
    /// From the change of the file to the first line that was not answered.
    pub(crate) milliseconds: f64,
}

impl CellReport {
    /// Of an attempt that was expected to be answered or not.
    pub(crate) fn new(observed: Observed, expected: bool) -> Self {
        let agrees = observed.agrees();
        let Observed { cell, outcome } = observed;
        Self {
            family: Family::of(cell.target.ip()).to_string(),
            from: cell.from,
            to: cell.to,
            protocol: cell.protocol,
            target: cell.target,
            expected,
            observed: outcome,
            agrees,
        }
    }
}

/// A duration in milliseconds, to a hundredth.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}
