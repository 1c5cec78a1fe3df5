//! `trammel-agent`: see [`policy_agent`].

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use policy_agent::args::{Arguments, Command};
use policy_agent::config::{Config, LogFormat};
use policy_agent::verdict_log::Selection;
use policy_agent::{agent, check, cleanup, client, install};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            // One line: what, and each cause behind it.
            eprintln!("trammel-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run(arguments) => {
            let config = match &arguments.config {
                Some(path) => Config::read(path)?,
                None => Config::default(),
            };
            log(config.log_format);
            agent::run(&arguments, &config)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Wait { timeout, client } => client::wait(&client, timeout),
        Command::Status(client) => client::status(&client),
        Command::Services(client) => client::services(&client),
        Command::Policies(client) => client::policies(&client),
        Command::Verify(client) => client::verify(&client),
        Command::Explain { from, to, client } => Ok(client::explain(&client, from, to)),
        Command::Matrix { namespace, client } => client::matrix(&client, namespace),
        Command::Lint { namespace, client } => client::lint(&client, namespace),
        Command::Plan {
            file,
            delete,
            client,
        } => client::plan(&client, &file, delete),
        Command::Log {
            follow,
            pod,
            namespace,
            client,
        } => client::log(&client, Selection { pod, namespace }, follow),
        Command::Check(arguments) => check::run(&arguments),
        Command::Install(arguments) => install::run(&arguments),
        Command::Cleanup(arguments) if arguments.kube_proxy => {
            cleanup::kube_proxy(&arguments.client)
        }
        Command::Cleanup(arguments) => cleanup::run(&arguments),
    }
}

/// Logs to standard error; `RUST_LOG=debug` adds each transaction.
fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
