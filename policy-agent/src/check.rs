//! `check`: whether this node can carry the agent, and whether the one that runs is well.
//!
//! ```text
//!  kernel        version, capabilities, every expression and link kind, in a network
//!                namespace that is made for it and goes with the process
//!  node          sysctls, MTU, rules of others: read only
//!  network_conf  what the container runtime will use, and the plugin's program
//!  api           reachable, clock, rights, this node's object
//!  agent         the one that runs
//! ```
//!
//! Nothing on the node is changed, unless `--sysctl-dir` asks for a file.

mod agent;
mod api;
mod kernel;
pub(crate) mod links;
mod network_conf;
mod node;

use std::fmt;
use std::process::ExitCode;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::args::{Check, Output};
use crate::config::Config;
use crate::source::kubernetes::causes;
use crate::sysctls;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Pods, policies or Services will not work.
    Error,
    /// A part of it may not work, or not for long.
    Warning,
    /// It is as it should be.
    Ok,
}

/// Something that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of finding, for filters: `ip-forward`.
    pub code: String,
    /// What was found.
    pub what: String,
    /// Why it matters; empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to do; empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub action: String,
}

impl Finding {
    fn ok(code: &str, what: impl Into<String>) -> Self {
        Self::new(Severity::Ok, code, what, "", "")
    }

    fn warning(
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, code, what, why, action)
    }

    fn error(
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Error, code, what, why, action)
    }

    fn new(
        severity: Severity,
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            code: code.to_owned(),
            what: what.into(),
            why: why.into(),
            action: action.into(),
        }
    }
}

impl fmt::Display for Finding {
    /// One line, and one each for the reason and what to do; no final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Ok => "ok",
        };
        write!(f, "{severity:<8}{}: {}", self.code, self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n        why: {}", self.why)?;
        }
        if !self.action.is_empty() {
            write!(f, "\n        do:  {}", self.action)?;
        }
        Ok(())
    }
}

/// Looks at everything and prints what was found. Exit status 1 where there is an error
/// among it.
///
/// # Errors
/// Where the configuration file cannot be used, the file of sysctls cannot be written, or
/// nothing could be looked at at all.
pub fn run(arguments: &Check) -> anyhow::Result<ExitCode> {
    let config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let mut findings = kernel::check();
    let agent = agent::check(&arguments.client.socket);
    let conf = network_conf::check(
        &arguments.cni_conf_dir,
        &arguments.cni_bin_dir,
        &arguments.client.socket,
        agent.answers,
    );
    let cluster = runtime.block_on(api::check(arguments));
    let families = conf.families.union(cluster.families);
    let links = runtime
        .block_on(links::look())
        .context("cannot list links")?;
    let node = node::check(&links, &config, families);
    findings.extend(node.findings);
    findings.extend(conf.findings);
    findings.extend(cluster.findings);
    findings.extend(agent.findings);
    if let Some(folder) = &arguments.sysctl_dir {
        let path = sysctls::write_file(folder, &node.sysctls)?;
        let what = format!(
            "{} is written; `sysctl -p {0}` applies it now",
            path.display()
        );
        findings.push(Finding::ok("sysctl-file", what));
    }
    // Stable: what is of one severity stays in the order of the areas.
    findings.sort_by_key(|finding| finding.severity);
    match arguments.client.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Text => findings.iter().for_each(|finding| println!("{finding}")),
    }
    let has_error = findings.iter().any(|f| f.severity == Severity::Error);
    Ok(if has_error {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The address families that pods of this node get, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    const fn add(&mut self, is_ipv4: bool) {
        if is_ipv4 {
            self.v4 = true;
        } else {
            self.v6 = true;
        }
    }

    const fn union(self, other: Self) -> Self {
        Self {
            v4: self.v4 || other.v4,
            v6: self.v6 || other.v6,
        }
    }

    const fn is_unknown(self) -> bool {
        !self.v4 && !self.v6
    }
}
