//! `cleanup`: removes exactly our own tables, routes and tunnels, as if there had never been an
//! agent, or exactly the tables of kube-proxy; and, where asked, what was installed for the
//! runtime.

mod installed;
mod pods;

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
use crate::network::{self, conflist};
use installed::Conf;
use pods::Stance;

/// Removes the tables of the network namespace that this runs in, its routes to other nodes'
/// pods, and the socket file, so that the plugin no longer waits for an agent. What is left
/// is what the plugin writes itself on a node without one: hostPorts and masquerading of pods
/// that still run.
///
/// With folders of the runtime, the network configuration, the plugins and the leases too, but
/// not before the last pod has left: the runtime needs them to end it. Nothing has been removed
/// then. No pod comes meanwhile, as there is no agent.
///
/// # Errors
/// Where an agent is running, which would write them again, or the kernel refuses, or pods
/// still need what is to be removed.
pub fn run(arguments: &Cleanup) -> anyhow::Result<ExitCode> {
    let client = &arguments.client;
    if UnixStream::connect(&client.socket).is_ok() {
        bail!(
            "an agent is running on {}: stop it first, or it writes the tables again",
            client.socket.display()
        );
    }
    let mut others = remove_installed(arguments)?;
    let mut kernel = Nftables::open()?;
    let observed = kernel.dump(&layout::tables())?;
    let running = pods::running(&records_dir(&client.socket));
    let left = layout::standalone::ruleset(running.iter());
    kernel.commit(&diff(&observed, &left))?;
    others.extend(network::kernel::Kernel::open()?.remove_all()?);
    others.extend(installed::remove(&client.socket)?);
    installed::remove_run_folder(&client.socket)?;
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

/// Removes what was installed for the runtime and what was written down. Returns what it was.
fn remove_installed(arguments: &Cleanup) -> anyhow::Result<Vec<String>> {
    let records = records_dir(&arguments.client.socket);
    let stance = match arguments {
        Cleanup { force: true, .. } => Stance::Ignore,
        Cleanup { wait: true, .. } => Stance::Wait,
        _ => Stance::Refuse,
    };
    let conf = match &arguments.cni_conf_dir {
        Some(folder) => Conf::find(folder)?,
        None => None,
    };
    let mut removed = Vec::new();
    if let Some(conf) = &conf {
        loop {
            pods::let_leave(&records, stance)?;
            conf.hide()?;
            // One may have been on its way in.
            if stance == Stance::Ignore || pods::running(&records).is_empty() {
                break;
            }
            conf.show()?;
        }
        removed.push(conf.remove()?);
    }
    if let Some(folder) = &arguments.cni_bin_dir {
        pods::let_leave(&records, stance)?;
        removed.extend(installed::remove_plugins(folder)?);
        removed.extend(installed::remove_bridges()?);
    }
    if let Some(folder) = &arguments.sysctl_dir {
        removed.extend(installed::remove_sysctls(folder)?);
    }
    if let Some(folder) = &arguments.data_dir {
        pods::let_leave(&records, stance)?;
        let network = conf.as_ref().map_or(conflist::NAME, |conf| &conf.network);
        removed.extend(installed::remove_leases(folder, network)?);
    }
    if let Some(folder) = &arguments.state_dir {
        removed.extend(installed::remove_state(folder)?);
    }
    Ok(removed)
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
