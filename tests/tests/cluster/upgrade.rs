//! The agent is replaced while the node works.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::wait::eventually;

use crate::cluster::{Cluster, NODES, SOON, require_cluster};
use crate::guarded::Guarded;
use crate::load::{Load, answers};
use crate::objects::{deployment, pod};
use crate::space::Space;

/// Requests a second on the allowed path: over kept connections, and each over a new one. What
/// is to be held out under is 1,000; a client that was late does not always catch up.
const RATES: [u32; 2] = [550, 550];

/// How often the agent of each node is replaced; the last time as an upgrade does it, before as
/// after a crash.
const ROUNDS: usize = 3;

/// So many requests have to be answered while one agent is replaced, however long a busy
/// machine takes for them.
const REQUESTS: usize = 4_000;

/// Replaces the agent's program by rename, as an installer does.
fn replace_program(cluster: &Cluster, node: &str) -> Result<()> {
    let program = cluster.run_dir().join(node).join("bin/trammel-agent");
    let copy = program.with_extension("new");
    fs::copy(&program, &copy)
        .and_then(|_| fs::rename(&copy, &program))
        .with_context(|| format!("cannot replace {}", program.display()))
}

/// issue 7, "Must hold": upgrade under 1,000 requests a second on an allowed path and a
/// hammered denied path; netpol.md 62.
#[test]
fn the_agent_is_killed_and_replaced_and_nothing_fails_and_nothing_opens() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "upgrade")?;
    let guarded = Guarded::apply(&space, deployment("web", 2))?;
    space.rolled_out("web")?;
    let Guarded {
        friend,
        foe,
        cluster_ips,
    } = &guarded;
    let servers = space.pods("web")?;
    for target in cluster_ips {
        guarded.holds_at(*target)?;
    }

    let [kept, new] = RATES;
    let allowed = [
        Load::kept(&friend.netns, cluster_ips[0], kept)?,
        Load::allowed(&friend.netns, cluster_ips[0], new)?,
    ];
    let answered = || allowed.iter().map(Load::answered).sum::<usize>();
    let denied = [
        Load::denied(&foe.netns, cluster_ips[0])?,
        Load::denied(&foe.netns, servers[0].targets()[1])?,
        Load::denied(&foe.netns, servers[1].targets()[0])?,
    ];
    for round in 1..=ROUNDS {
        for node in NODES {
            let (before, started) = (answered(), Instant::now());
            let end = if round == ROUNDS { "stop" } else { "kill" };
            let agent = cluster.without(node, "agent", end)?;
            replace_program(&cluster, node)?;
            // Some traffic without any agent.
            thread::sleep(Duration::from_secs(1));
            agent.start()?;
            cluster.wait_for_agent(node)?;
            let (count, took) = (answered() - before, started.elapsed());
            eprintln!(
                "{node}, {end}: {count} answers in {took:.1?}, {:.0} a second",
                count as f64 / took.as_secs_f64()
            );
            eventually(SOON, || {
                let count = answered() - before;
                ensure!(count >= REQUESTS, "{count} answers");
                Ok(())
            })?;
        }
    }
    for load in allowed {
        let report = load.stop()?;
        report.never_failed()?;
        ensure!(report.answers.len() == servers.len(), "{report}");
    }
    for load in denied {
        load.stop()?.never_answered()?;
    }
    Ok(())
}

/// issue 7, 3: agent down means ADD code 11 with retry, running pods untouched.
#[test]
fn a_pod_waits_for_the_agent_and_starts_when_it_is_back() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "waiting")?;
    space.apply(&[pod("old", NODES[1]), pod("client", NODES[0])])?;
    let (old, client) = (space.ready_pod("old")?, space.ready_pod("client")?);

    let agent = cluster.without(NODES[1], "agent", "kill")?;
    space.apply(&[pod("new", NODES[1])])?;
    // containerd does not tell code 11 itself, only its message.
    eventually(SOON, || {
        let events = space.kubectl(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=new",
        ])?;
        ensure!(
            events.contains("FailedCreatePodSandBox") && events.contains("agent"),
            "{events}"
        );
        Ok(())
    })?;
    for target in old.targets() {
        answers(&client.netns, target)?;
    }
    agent.start()?;
    let new = space.ready_pod("new")?;
    for target in new.targets() {
        answers(&client.netns, target)?;
    }
    Ok(())
}
