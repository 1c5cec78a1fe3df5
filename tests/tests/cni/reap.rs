//! What is left when nobody calls DEL: the agent frees it, and the next ADD copes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use serde_json::json;
use tests::agent::Agent;
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::pod::Pod;
use tests::wait::{SOON, eventually};
use tests::{command, inspect, require_root};

use crate::{assert_empty, is_empty};

/// The agent looks this often.
const OFTEN: [&str; 2] = ["--reap-interval", "200ms"];
fn agent(node: &Node) -> Result<Agent<'_>> {
    let agent = Agent::spawn_with(node, &OFTEN)?;
    agent.wait()?;
    Ok(agent)
}

/// Whether an address stands anywhere in the node's tables.
fn is_in_tables(node: &Node, ip: &str) -> Result<bool> {
    let quoted = format!("\"{ip}\"");
    let objects = inspect::ruleset(&node.netns)?;
    Ok(objects
        .iter()
        .any(|object| object.to_string().contains(&quoted)))
}

/// cni.md 55.
#[test]
fn the_agent_frees_what_a_dead_runtime_left_and_no_living_pod() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = agent(&node)?;
    let alive = Pod::add(&node, "default/alive")?;
    let dead = NetNs::create("dead")?;
    let result = Call::new(&node, "ADD", "dead", &dead).result()?;
    let ips = inspect::result_ips(&result)?;
    for ip in &ips {
        ensure!(is_in_tables(&node, &ip.to_string())?, "{ip} was admitted");
    }
    drop(dead);
    eventually(SOON, || {
        let left = (node.leases()?, node.ports()?, node.records()?);
        ensure!(
            (left.0.len(), left.1.len(), left.2.len()) == (2, 1, 1),
            "{left:?}"
        );
        Ok(())
    })?;
    for ip in &ips {
        ensure!(
            !is_in_tables(&node, &ip.to_string())?,
            "{ip} is still there"
        );
    }
    // Several passes later.
    std::thread::sleep(Duration::from_secs(1));
    alive.check()?;
    ensure!(agent.verify()?.status.success());
    ensure!(agent.log_text().contains("its network namespace is gone"));
    alive.del()?;
    assert_empty(&node)
}

/// The path of a namespace may vanish while a process still lives in it.
#[test]
fn a_namespace_that_only_a_process_holds_is_alive() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let _agent = agent(&node)?;
    let pod = NetNs::create("pod")?;
    let mut inside = pod
        .command("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()?;
    Call::new(&node, "ADD", "c1", &pod).result()?;
    let name = pod.name().to_owned();
    // Only once nsenter has become what it runs is the process inside.
    eventually(SOON, || {
        let program = fs::read_to_string(format!("/proc/{}/comm", inside.id()))?;
        ensure!(program.trim() == "sleep", "{program}");
        Ok(())
    })?;
    command::run(Command::new("ip").args(["netns", "del", &name]))?;
    std::thread::sleep(Duration::from_secs(1));
    let left = (node.leases()?.len(), node.ports()?.len());
    inside.kill()?;
    inside.wait()?;
    assert_eq!(left, (2, 1), "while the process lived");
    eventually(SOON, || {
        ensure!(is_empty(&node)?, "{:?}", node.records()?);
        Ok(())
    })?;
    Ok(())
}

/// Kills an ADD when it has made its port and waits for the agent, which is stopped.
fn killed_add(node: &Node, agent: &Agent<'_>, id: &str, pod: &NetNs) -> Result<()> {
    let ports = node.ports()?.len();
    let call = Call::new(node, "ADD", id, pod);
    agent.pause()?;
    let mut plugin = call.spawn()?;
    eventually(SOON, || {
        ensure!(node.ports()?.len() > ports, "no port yet");
        Ok(())
    })?;
    plugin.kill()?;
    plugin.wait()?;
    agent.resume()
}

/// cni.md 55.
#[test]
fn an_add_that_was_killed_is_undone_while_its_namespace_lives() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = agent(&node)?;
    let pod = NetNs::create("pod")?;
    killed_add(&node, &agent, "c1", &pod)?;
    eventually(SOON, || {
        ensure!(
            is_empty(&node)?,
            "{:?} {:?}",
            node.records()?,
            node.ports()?
        );
        Ok(())
    })?;
    let links = pod.ip_json("link show")?;
    assert_eq!(inspect::items(&links).len(), 1, "lo alone: {links}");
    Ok(())
}

/// cni.md 55: without DEL, the same ADD in a new namespace works.
#[test]
fn an_add_takes_the_place_of_one_that_was_killed() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = Agent::start(&node)?;
    let (old, new) = (NetNs::create("old")?, NetNs::create("new")?);
    killed_add(&node, &agent, "c1", &old)?;
    let result = Call::new(&node, "ADD", "c1", &new).result()?;
    let check = json!({"prevResult": result});
    Call::new(&node, "CHECK", "c1", &new).keys(check).silent()?;
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 2));
    let links = old.ip_json("link show")?;
    assert_eq!(inspect::items(&links).len(), 1, "lo alone: {links}");
    Call::new(&node, "DEL", "c1", &new).silent()?;
    assert_empty(&node)
}

/// cni.md 44, 55: without an agent.
#[test]
fn a_full_range_gives_up_the_addresses_of_dead_attachments() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys = json!({"ipam": {"ranges": [[{"subnet": "10.88.0.0/29"}]]}});
    let mut pods = Vec::new();
    for n in 0..5 {
        let pod = NetNs::create("pod")?;
        let id = format!("c{n}");
        Call::new(&node, "ADD", &id, &pod)
            .keys(keys.clone())
            .result()?;
        pods.push(pod);
    }
    drop(pods.remove(2));
    eventually(SOON, || {
        ensure!(node.ports()?.len() == 4, "the kernel takes its time");
        Ok(())
    })?;
    let pod = NetNs::create("extra")?;
    let call = Call::new(&node, "ADD", "extra", &pod).keys(keys.clone());
    assert_eq!(
        inspect::result_ips(&call.result()?)?[0].to_string(),
        "10.88.0.4"
    );
    let other = NetNs::create("other")?;
    let (code, _) = Call::new(&node, "ADD", "other", &other)
        .keys(keys.clone())
        .error()?;
    assert_eq!(code, 101, "the others are alive");
    for id in ["c0", "c1", "c2", "c3", "c4", "extra"] {
        Call::new(&node, "DEL", id, &pod)
            .keys(keys.clone())
            .without("CNI_NETNS")
            .silent()?;
    }
    assert_empty(&node)
}

/// Runs the call as another boot of the machine would.
fn in_another_boot(node: &Node, call: &Call<'_>) -> Result<command::Output> {
    let id = node.dir().join("boot_id");
    fs::write(&id, "11111111-2222-4333-8444-555555555555\n")?;
    let plugin = call.command();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg("mount --bind \"$0\" /proc/sys/kernel/random/boot_id; exec \"$@\"")
        .arg(&id)
        .arg(plugin.get_program())
        .args(plugin.get_args());
    for (key, value) in plugin.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command::output(&mut command, call.input_bytes(), command::LIMIT)
}

fn make_older_than_the_boot(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let file = fs::File::options().write(true).open(entry?.path())?;
        file.set_modified(SystemTime::UNIX_EPOCH)?;
    }
    Ok(())
}

/// cni.md 63: with records that went with `/run`, and with such as stayed.
#[test]
fn after_a_reboot_all_addresses_are_free_again() -> Result<()> {
    require_root!();
    for records_stay in [false, true] {
        let node = Node::new()?;
        let keys = json!({"ipam": {"ranges": [[{"subnet": "10.88.0.0/29"}]]}});
        for n in 0..5 {
            let pod = NetNs::create("pod")?;
            Call::new(&node, "ADD", &format!("c{n}"), &pod)
                .keys(keys.clone())
                .result()?;
        }
        eventually(SOON, || {
            ensure!(node.ports()?.is_empty(), "the kernel takes its time");
            Ok(())
        })?;
        assert_eq!(node.leases()?.len(), 5);
        make_older_than_the_boot(&node.data_dir().join(node.network()))?;
        if !records_stay {
            fs::remove_dir_all(node.records_dir())?;
        }
        let pod = NetNs::create("new")?;
        let call = Call::new(&node, "ADD", "new", &pod).keys(keys.clone());
        let output = in_another_boot(&node, &call)?;
        ensure!(output.status.success(), "{}", command::complaint(&output));
        assert_eq!(node.leases()?.len(), 1, "records stay: {records_stay}");
        let del = Call::new(&node, "DEL", "new", &pod).keys(keys);
        let output = in_another_boot(&node, &del)?;
        ensure!(output.status.success(), "{}", command::complaint(&output));
        ensure!(node.leases()?.is_empty() && node.ports()?.is_empty());
    }
    Ok(())
}
