//! The agent that runs, as it describes itself.

use std::path::Path;

use super::Finding;
use crate::client;

/// At most so many objects are named.
const NAMED: usize = 5;

/// What was found.
pub(super) struct Checked {
    pub(super) findings: Vec<Finding>,
    /// Whether there is one.
    pub(super) answers: bool,
}

/// Asks it.
pub(super) fn check(socket: &Path) -> Checked {
    let status = match client::current_status(socket) {
        Ok(status) => status,
        Err(error) => {
            let finding = Finding::warning(
                "agent-away",
                format!("{error:#}"),
                "running pods and Services go on as they are; no pod starts, nothing is updated",
                "start it; before the first start this is as it should be",
            );
            return Checked {
                findings: vec![finding],
                answers: false,
            };
        }
    };
    let mut findings = Vec::new();
    let summary = &status.summary;
    if status.version == env!("CARGO_PKG_VERSION") {
        let what = format!("version {} on node {}", status.version, summary.node);
        findings.push(Finding::ok("agent", what));
    } else {
        let what = format!(
            "version {:?} runs, and this program is {}",
            status.version,
            env!("CARGO_PKG_VERSION")
        );
        findings.push(Finding::warning(
            "agent-version",
            what,
            "the program was replaced, and the agent was not restarted",
            "restart it: pods and connections do not notice",
        ));
    }
    match (&summary.error, summary.last_sync) {
        (Some(error), _) => findings.push(Finding::error(
            "agent-sync",
            format!("not synced: {error}"),
            "the kernel does not hold what it should",
            "see `trammel-agent status` and the agent's log",
        )),
        (None, None) => findings.push(Finding::warning(
            "agent-sync",
            "the first sync is not done",
            "no pod can start yet",
            "if it lasts: `trammel-agent wait` says what it waits for",
        )),
        (None, Some(_)) => findings.push(Finding::ok(
            "agent-sync",
            format!(
                "{} Services, {} policies, {} pods known",
                summary.services, summary.policies, summary.pods
            ),
        )),
    }
    let closed: Vec<_> = status
        .attachments
        .iter()
        .filter(|attachment| !attachment.programmed)
        .map(|attachment| attachment.pod.as_deref().unwrap_or(&attachment.attachment))
        .collect();
    if !closed.is_empty() {
        findings.push(Finding::warning(
            "agent-closed-pods",
            format!("{} pods are closed: {}", closed.len(), some(&closed)),
            "their objects are not known: nothing reaches them, and they reach nothing",
            "see whether the API server has them",
        ));
    }
    for problem in status.problems.iter().take(NAMED) {
        findings.push(Finding::warning(
            "agent-problem",
            format!("{}: {}", problem.object, problem.reason),
            "it is not enforced or served as it is written",
            "see `trammel-agent status` for all",
        ));
    }
    Checked {
        findings,
        answers: true,
    }
}

fn some(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>();
    let more = if names.len() > NAMED { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}
