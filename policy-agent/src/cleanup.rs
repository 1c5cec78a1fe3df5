//! `cleanup`: removes exactly our own tables, routes and tunnels, as if there had never been an
//! agent, or exactly the tables of kube-proxy; and, where asked, what was installed for the
//! runtime.

mod installed;

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::bail;
use dataplane::attachment::records_dir;
use dataplane::diff::diff;
use dataplane::kernel::Kernel;
use dataplane::layout;
use dataplane::netlink::Nftables;
use dataplane::transaction::{Operation, Transaction};

use crate::args::{Cleanup, Client, Output};
use crate::foreign::kube_proxy_tables;
use crate::{network, records};

/// Removes the tables of the network namespace that this runs in, its routes to other nodes'
/// pods, and the socket file, so that the plugin no longer waits for an agent. What is left
/// is what the plugin writes itself on a node without one: hostPorts and masquerading of pods
/// that still run.
///
/// With folders of the runtime also the network configuration first, so that no more pods
/// come, and at last the plugins, which the runtime needs as long as there are any.
///
/// # Errors
/// Where an agent is running, which would write them again, or the kernel refuses, or pods
/// still need the plugins.
pub fn run(arguments: &Cleanup) -> anyhow::Result<ExitCode> {
    let client = &arguments.client;
    if UnixStream::connect(&client.socket).is_ok() {
        bail!(
            "an agent is running on {}: stop it first, or it writes the tables again",
            client.socket.display()
        );
    }
    let mut others = Vec::new();
    if let Some(folder) = &arguments.cni_conf_dir {
        others.extend(installed::remove_conf(folder)?);
    }
    let mut kernel = Nftables::open()?;
    let observed = kernel.dump(&layout::tables())?;
    let pods = records::read(&records_dir(&client.socket));
    let running = pods.iter().filter(|pod| records::has_port(pod));
    if let Some(folder) = &arguments.cni_bin_dir {
        installed::refuse_with_pods(running.clone())?;
        others.extend(installed::remove_plugins(folder)?);
        others.extend(installed::remove_bridges()?);
    }
    if let Some(folder) = &arguments.sysctl_dir {
        others.extend(installed::remove_sysctls(folder)?);
    }
    let left = layout::standalone::ruleset(running);
    kernel.commit(&diff(&observed, &left))?;
    others.extend(network::kernel::Kernel::open()?.remove_all()?);
    others.extend(installed::remove(&client.socket)?);
    let tables = observed.tables.keys();
    let tables = tables.filter(|table| !left.tables.contains_key(*table));
    let tables: Vec<_> = tables.map(ToString::to_string).collect();
    let kept: Vec<_> = left.tables.keys().map(ToString::to_string).collect();
    match client.output {
        Output::Json => println!(
            "{}",
            serde_json::json!({ "removed": tables, "kept": kept, "others": others })
        ),
        Output::Text => {
            if tables.is_empty() && kept.is_empty() && others.is_empty() {
                println!("there is nothing of ours");
            }
            for table in &tables {
                println!("removed table {table}");
            }
            for other in &others {
                println!("removed {other}");
            }
            for table in &kept {
                println!("kept in table {table}: hostPorts and masquerading of running pods");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the tables that kube-proxy has left in nftables mode. One that runs writes them
/// again. What it has left in iptables mode lies in tables that others use as well: its own
/// `--cleanup` removes that.
///
/// # Errors
/// Where the kernel refuses.
pub fn kube_proxy(client: &Client) -> anyhow::Result<ExitCode> {
    let mut kernel = Nftables::open()?;
    let theirs = kube_proxy_tables();
    let tables = kernel.chains()?.into_iter().map(|chain| chain.table);
    let present: BTreeSet<_> = tables.filter(|table| theirs.contains(table)).collect();
    let operations = present
        .iter()
        .map(|table| Operation::DeleteTable {
            table: table.clone(),
        })
        .collect();
    kernel.commit(&Transaction { operations })?;
    let removed: Vec<_> = present.iter().map(ToString::to_string).collect();
    match client.output {
        Output::Json => println!("{}", serde_json::json!({ "removed": removed })),
        Output::Text if removed.is_empty() => println!("there are no tables of kube-proxy"),
        Output::Text => removed
            .iter()
            .for_each(|table| println!("removed table {table}")),
    }
    Ok(ExitCode::SUCCESS)
}
