//! A Kubernetes node in network namespaces: pods by the CNI plugin, a Service and
//! policies by the agent, and every connection expected against observed.
//!
//! `make demo` builds and runs it. Needs root, changes nothing outside its own
//! namespaces, and removes them at the end, also when it is interrupted.

mod expected;
mod report;
mod run;
mod terminal;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use nix::unistd::Uid;
use tests::{interrupt, name, programs};

use crate::terminal::Terminal;

/// Builds a node with pods, a Service and policies in network namespaces, and
/// compares every connection with what has to come of it.
#[derive(Parser)]
#[command(name = "trammel-demo", version)]
struct Arguments {
    /// What to print: text as it happens, or one JSON document at the end.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Remove what killed runs of demo and tests left behind, and nothing else.
    #[arg(long)]
    clean: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    match demo(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("trammel-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything came out as expected.
fn demo(arguments: &Arguments) -> Result<bool> {
    if !Uid::effective().is_root() {
        bail!("making network namespaces needs root: run `sudo target/release/trammel-demo`");
    }
    // Before any other thread.
    interrupt::install()?;
    if arguments.clean {
        name::sweep()?
            .iter()
            .for_each(|thing| println!("removed {thing}"));
        return Ok(true);
    }
    programs::check()?;
    let text = arguments.output == Output::Text;
    let report = run::run(&Terminal::new(text))?;
    if !text {
        let document = serde_json::to_string_pretty(&report).context("cannot write the report")?;
        println!("{document}");
    }
    Ok(report.agrees)
}
