//! `cleanup`: removes exactly our own tables.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, bail};
use dataplane::diff::diff;
use dataplane::kernel::Kernel;
use dataplane::layout;
use dataplane::netlink::Nftables;
use dataplane::object::Ruleset;

use crate::args::{Client, Output};

/// Removes the tables of the network namespace that this runs in, and the socket file, so
/// that the plugin no longer waits for an agent.
///
/// # Errors
/// Where an agent is running, which would write them again, or the kernel refuses.
pub fn run(client: &Client) -> anyhow::Result<ExitCode> {
    if UnixStream::connect(&client.socket).is_ok() {
        bail!(
            "an agent is running on {}: stop it first, or it writes the tables again",
            client.socket.display()
        );
    }
    let mut kernel = Nftables::open()?;
    let observed = kernel.dump(&layout::tables())?;
    kernel.commit(&diff(&observed, &Ruleset::default()))?;
    match std::fs::remove_file(&client.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("cannot remove {}", client.socket.display()));
        }
        _ => {}
    }
    let removed: Vec<_> = observed.tables.keys().map(ToString::to_string).collect();
    match client.output {
        Output::Json => println!("{}", serde_json::json!({ "removed": removed })),
        Output::Text if removed.is_empty() => println!("there are no tables of ours"),
        Output::Text => removed
            .iter()
            .for_each(|table| println!("removed table {table}")),
    }
    Ok(ExitCode::SUCCESS)
}
