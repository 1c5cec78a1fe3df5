//! The agent is replaced while the node works.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::wait::eventually;

use crate::cluster::{Cluster, NODES, SOON, require_cluster};
use crate::guarded::Guarded;
use crate::load::{Load, answers};
use crate::objects::{deployment, pod};
use crate::space::Space;

/// The rate on the allowed path that an upgrade has to hold out under.
const RATE: u32 = 1000;

/// So many requests have to be answered meanwhile, however long a busy machine takes for them.
const REQUESTS: usize = 20 * RATE as usize;

/// Every third as an upgrade does it, the others as a crash.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=60;

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

    let allowed = Load::busy(&friend.netns, cluster_ips[0], RATE)?;
    let denied = [
        Load::denied(&foe.netns, cluster_ips[0])?,
        Load::denied(&foe.netns, servers[0].targets()[1])?,
        Load::denied(&foe.netns, servers[1].targets()[0])?,
    ];
    let mut rounds = 0;
    while rounds < *ROUNDS.start() || allowed.answered() < REQUESTS {
        rounds += 1;
        ensure!(ROUNDS.end() >= &rounds, "{} answers", allowed.answered());
        for node in NODES {
            let end = if rounds % 3 == 0 { "stop" } else { "kill" };
            let agent = cluster.without(node, "agent", end)?;
            replace_program(&cluster, node)?;
            // Some traffic without any agent.
            thread::sleep(Duration::from_secs(1));
            agent.start()?;
            cluster.wait_for_agent(node)?;
        }
    }
    let report = allowed.stop()?;
    report.never_failed()?;
    ensure!(report.answers.len() == 2, "{report}");
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
