//! The verbs that ask a running agent.

mod log;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use proxy::ServiceStatus;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::{Answer, Query};
use crate::args::{Client, Output};
use crate::explain::{self, Explanation, Outcome};
use crate::lint::{Finding, Severity};
use crate::matrix::Matrix;
use crate::network::NetworkStatus;
use crate::owner::{PolicyStatus, Status, TierStatus};
use crate::plan::{Plan, Proposal};

pub use log::log;

/// An agent that holds the socket answers within this time, unless it is told to wait.
const ANSWER: Duration = Duration::from_secs(30);

/// `wait`.
///
/// # Errors
/// Where the agent is away, or has not synced in time: with its reason.
pub fn wait(client: &Client, timeout: Duration) -> anyhow::Result<ExitCode> {
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let _: Value = ask(
        &client.socket,
        &Query::Wait { timeout_ms },
        timeout + ANSWER,
    )?;
    if client.output == Output::Json {
        println!("{{\"synced\":true}}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `status`.
///
/// # Errors
/// Where the agent is away.
pub fn status(client: &Client) -> anyhow::Result<ExitCode> {
    let status = current_status(&client.socket)?;
    print(client, &status, || {
        let summary = &status.summary;
        let synced = match (&summary.error, summary.synced) {
            (Some(error), _) => format!("no: {error}"),
            (None, true) => "yes".to_owned(),
            (None, false) => "not yet".to_owned(),
        };
        println!("node        {}", summary.node);
        println!("synced      {synced}");
        println!(
            "last sync   {:.1} ms, {} operations; {} syncs, {} failures, {} repairs",
            summary.last_sync_seconds * 1e3,
            summary.last_sync_operations,
            summary.syncs,
            summary.failures,
            summary.repairs
        );
        println!("services    {}", summary.services);
        println!(
            "policies    {} (generation {}; {} groups and {} sets on this node)",
            summary.policies, summary.policy_generation, summary.policy.groups, summary.policy.sets
        );
        println!("pods        {} known", summary.pods);
        match status.ports_isolated {
            Some(true) => println!("ports       isolated"),
            Some(false) => println!("ports       not isolated: bridge-nf-call-iptables is 1"),
            None => {}
        }
        if let Some(network) = &status.network {
            println!("network     {}", describe_network(network));
        }
        println!("attachments {}", status.attachments.len());
        for attachment in &status.attachments {
            let ips: Vec<_> = attachment.ips.iter().map(ToString::to_string).collect();
            let pod = attachment.pod.as_deref().unwrap_or("(no pod)");
            let state = if attachment.programmed {
                ""
            } else {
                "  closed: its pod is not known"
            };
            println!("  {pod}  {}{state}", ips.join(" "));
        }
        for problem in &status.problems {
            println!("problem     {}: {}", problem.object, problem.reason);
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn describe_network(network: &NetworkStatus) -> String {
    let count = |path: &str| {
        let routes = network.routes.iter();
        routes.filter(|route| route.path == path).count()
    };
    let pod_cidrs: Vec<_> = network.pod_cidrs.iter().map(ToString::to_string).collect();
    let mtu = network.mtu.map(|mtu| format!(", MTU {mtu}"));
    format!(
        "{}: pods of {}{}; to {} PodCIDRs directly, to {} by VXLAN; {} repairs",
        network.mode,
        match pod_cidrs.is_empty() {
            true => "no PodCIDR".to_owned(),
            false => pod_cidrs.join(" "),
        },
        mtu.unwrap_or_default(),
        count("direct"),
        count("vxlan"),
        network.repairs
    )
}

/// The state of the agent on that socket.
///
/// # Errors
/// Where the agent is away.
pub(crate) fn current_status(socket: &Path) -> anyhow::Result<Status> {
    ask(socket, &Query::Status, ANSWER)
}

/// `services`.
///
/// # Errors
/// Where the agent is away.
pub fn services(client: &Client) -> anyhow::Result<ExitCode> {
    let services: Vec<ServiceStatus> = ask(&client.socket, &Query::Services, ANSWER)?;
    print(client, &services, || {
        services.iter().for_each(|service| println!("{service}"));
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `policies`.
///
/// # Errors
/// Where the agent is away.
pub fn policies(client: &Client) -> anyhow::Result<ExitCode> {
    let policies: Vec<PolicyStatus> = ask(&client.socket, &Query::Policies, ANSWER)?;
    print(client, &policies, || {
        for policy in &policies {
            match &policy.tier {
                None => println!("{}", policy.policy),
                Some(TierStatus { name, priority }) => {
                    println!("{} ({name} tier, priority {priority})", policy.policy);
                }
            }
            if policy.audit {
                println!("  on audit: it denies nothing");
            }
            for (direction, pods) in [
                ("ingress", &policy.isolates_ingress),
                ("egress", &policy.isolates_egress),
            ] {
                if !pods.is_empty() {
                    println!("  isolates {direction}: {}", pods.join(" "));
                }
            }
            for problem in &policy.problems {
                println!("  problem: {problem}");
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `verify`: exit status 1 where something differs.
///
/// # Errors
/// Where the agent is away or the kernel cannot be asked.
pub fn verify(client: &Client) -> anyhow::Result<ExitCode> {
    let differences: Vec<String> = ask(&client.socket, &Query::Verify, ANSWER)?;
    print(client, &differences, || {
        for difference in &differences {
            println!("to repair: {difference}");
        }
        if differences.is_empty() {
            println!("the kernel holds what is desired");
        }
    })?;
    Ok(if differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `explain`: exit status 0 where the connection comes about, 1 where it does not, 2 where
/// that cannot be said.
pub fn explain(client: &Client, from: String, to: String) -> ExitCode {
    let query = Query::Explain(explain::query::Query { from, to });
    let asked = ask::<Explanation>(&client.socket, &query, ANSWER);
    let shown = asked.and_then(|answer| {
        print(client, &answer, || println!("{answer}"))?;
        Ok(answer.outcome)
    });
    match shown {
        Ok(Outcome::Allowed) => ExitCode::SUCCESS,
        Ok(Outcome::Denied | Outcome::Partly) => ExitCode::FAILURE,
        Ok(Outcome::Disagreement) => ExitCode::from(2),
        Err(error) => {
            eprintln!("trammel-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `matrix`.
///
/// # Errors
/// Where the agent is away or the namespace is not known.
pub fn matrix(client: &Client, namespace: String) -> anyhow::Result<ExitCode> {
    let matrix: Matrix = ask(&client.socket, &Query::Matrix { namespace }, ANSWER)?;
    print(client, &matrix, || println!("{matrix}"))?;
    Ok(ExitCode::SUCCESS)
}

/// `lint`: exit status 1 where there is an error among the findings.
///
/// # Errors
/// Where the agent is away.
pub fn lint(client: &Client, namespace: Option<String>) -> anyhow::Result<ExitCode> {
    let findings: Vec<Finding> = ask(&client.socket, &Query::Lint { namespace }, ANSWER)?;
    print(client, &findings, || {
        findings.iter().for_each(|finding| println!("{finding}"));
        if findings.is_empty() {
            println!("nothing to say");
        }
    })?;
    let has_error = findings.iter().any(|f| f.severity == Severity::Error);
    Ok(if has_error {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// `plan`.
///
/// # Errors
/// Where the file cannot be read or the agent is away.
pub fn plan(client: &Client, file: &Path, delete: bool) -> anyhow::Result<ExitCode> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let query = Query::Plan(Proposal {
        file: file.display().to_string(),
        text,
        delete,
    });
    let plan: Plan = ask(&client.socket, &query, ANSWER)?;
    print(client, &plan, || println!("{plan}"))?;
    Ok(ExitCode::SUCCESS)
}

fn print(client: &Client, value: &impl Serialize, text: impl FnOnce()) -> anyhow::Result<()> {
    match client.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
        Output::Text => text(),
    }
    Ok(())
}

fn ask<T: DeserializeOwned>(socket: &Path, query: &Query, timeout: Duration) -> anyhow::Result<T> {
    let mut answer = String::new();
    connect(socket, query, Some(timeout))?
        .read_line(&mut answer)
        .context("the agent does not answer")?;
    let answer: Answer = serde_json::from_str(&answer).context("the agent's answer is no JSON")?;
    if let Some(error) = answer.error {
        bail!(error);
    }
    Ok(serde_json::from_value(answer.result.unwrap_or_default())?)
}

/// Asks, and returns what the answers can be read from; each may take so long.
fn connect(
    socket: &Path,
    query: &Query,
    timeout: Option<Duration>,
) -> anyhow::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "no agent answers on {}: is it running, and is this its --socket?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(timeout)?;
    let mut line = serde_json::to_string(query)?;
    line.push('\n');
    stream
        .write_all(line.as_bytes())
        .context("cannot ask the agent")?;
    Ok(BufReader::new(stream))
}

#[cfg(test)]
mod tests;
