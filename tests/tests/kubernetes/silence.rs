//! Connections that are lost without a word.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::command;
use tests::inspect::nft;
use tests::node::Node;
use tests::objects::deny_all;
use tests::require_root;
use tests::wait::eventually;

use crate::cluster::Cluster;

/// Half a minute, and what a watch waits before it begins anew. Without a question to the other
/// side it is five minutes.
const NOTICED: Duration = Duration::from_secs(120);

/// What a server whose machine has died does, or a load balancer that has forgotten connections:
/// nothing comes through those that are open now, neither way. Others work.
fn silence(cluster: &Cluster<'_>) -> Result<()> {
    let port = cluster.api.address().port();
    let netns = &cluster.node.netns;
    let mut open = netns.command("ss");
    let filter = format!("dport = :{port}");
    let open = command::run(open.args(["-tnH", "state", "established", &filter]))?;
    let local = open.lines().filter_map(|line| {
        let local = line.split_whitespace().nth(2)?;
        Some(local.rsplit_once(':')?.1.to_owned())
    });
    let ports: Vec<_> = local.collect();
    ensure!(ports.len() >= 8, "a watch of each kind: {open}");
    let ports = ports.join(", ");
    nft(
        netns,
        &format!(
            "add table ip silence
            add chain ip silence output {{ type filter hook output priority 0; }}
            add rule ip silence output tcp dport {port} tcp sport {{ {ports} }} drop
            add rule ip silence output tcp sport {port} tcp dport {{ {ports} }} drop"
        ),
    )
}

/// netpol.md 65.
#[test]
fn watches_whose_connections_are_lost_without_a_word_go_on_over_others() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    silence(&cluster)?;
    cluster.api.put(&deny_all("shop"))?;
    eventually(NOTICED, || cluster.served_by(None))?;
    Ok(())
}
