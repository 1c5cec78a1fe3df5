//! ADD and DEL with an error, or a kill, at every system call that changes something.
//!
//! `strace` injects the faults, so the plugin is the one that ships. Which calls there are
//! is read from an undisturbed run first: one that is added later is tried by itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tests::agent::Agent;
use tests::command::{self, LIMIT, Output};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::wait::eventually;
use tests::{inspect, require_root};

use crate::{assert_empty, is_empty};

/// System calls by which the plugin changes files, namespaces or the kernel's objects, or
/// learns whether it did.
const CALLS: &str = "openat,write,mkdir,link,linkat,unlink,unlinkat,rename,ftruncate,flock,\
                     setns,socket,bind,connect,sendto,recvfrom,ioctl,signalfd4";

/// A call of the plugin under `strace`, with its options.
fn traced(call: &Call<'_>, options: &[String]) -> Command {
    let plugin = call.command();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg("--");
    // The words before the plugin put it into the node's namespace; strace may be there
    // with it, and then counts the plugin's calls alone.
    let mut words = vec![plugin.get_program()];
    words.extend(plugin.get_args());
    let (plugin_path, before) = words.split_last().expect("a command has a program");
    let mut outer = Command::new(before[0]);
    outer.args(&before[1..]).arg("strace");
    outer.args(command.get_args()).arg(plugin_path);
    for (key, value) in plugin.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    outer
}

fn run(call: &Call<'_>, options: &[String]) -> Result<Output> {
    command::output(&mut traced(call, options), call.input_bytes(), LIMIT)
}

/// How often an undisturbed run makes each of [`CALLS`] once it has read its input: what
/// comes before is the C library's start.
struct Course(BTreeMap<String, (usize, usize)>);

impl Course {
    fn of(node: &Node, call: &Call<'_>) -> Result<Self> {
        let log = node.dir().join("strace");
        let options = [
            format!("--trace=execve,read,{CALLS}"),
            format!("--output={}", log.display()),
        ];
        let output = run(call, &options)?;
        ensure!(output.status.success(), "{}", command::complaint(&output));
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut started = false;
        for line in fs::read_to_string(&log)?.lines() {
            let call = line
                .split_once(' ')
                .map_or("", |(_, call)| call.trim_start());
            started |= call.starts_with("read(0,");
            let Some((name, _)) = call.split_once('(') else {
                continue;
            };
            let (before, all) = counts.entry(name.to_owned()).or_default();
            *all += 1;
            *before += usize::from(!started);
        }
        counts.retain(|name, _| CALLS.split(',').any(|wanted| wanted.trim() == name));
        ensure!(counts.len() > 8, "too few kinds of calls: {counts:?}");
        Ok(Self(counts))
    }

    /// Every call, as name and number among those of its name.
    fn calls(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().flat_map(|(name, (before, all))| {
            (before + 1..=*all).map(move |number| (name.as_str(), number))
        })
    }
}

fn inject(name: &str, fault: &str, number: usize) -> [String; 2] {
    [
        format!("--trace={name}"),
        format!("--inject={name}:{fault}:when={number}"),
    ]
}

/// Everything that outlives a container: links, leases, records and half-written files.
/// A lease's first name that stays alone stands for nothing, and the next request takes it.
fn traces(node: &Node) -> Result<Vec<String>> {
    let mut traces = node.ports()?;
    for dir in [node.data_dir().join(node.network()), node.records_dir()] {
        traces.extend(names(&dir)?);
    }
    const OF_THE_NETWORK: [&str; 3] = ["lock", ".boot", ".request"];
    traces.retain(|name| {
        !OF_THE_NETWORK.contains(&name.as_str()) && !name.starts_with("last_reserved")
    });
    Ok(traces)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn only_lo(pod: &NetNs) -> Result<()> {
    let links = pod.ip_json("link show")?;
    ensure!(inspect::items(&links).len() == 1, "in the pod: {links}");
    Ok(())
}

/// A node whose bridge and directories are there already, and the course of an ADD on it.
fn prepared() -> Result<(Node, NetNs, Course)> {
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let add = Call::new(&node, "ADD", "c1", &pod);
    add.result()?;
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    let course = Course::of(&node, &add)?;
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    Ok((node, pod, course))
}

/// cni.md 28.
#[test]
fn an_add_that_fails_at_any_call_leaves_nothing() -> Result<()> {
    require_root!();
    let (node, pod, course) = prepared()?;
    let add = Call::new(&node, "ADD", "c1", &pod);
    let mut failed = 0;
    for (name, number) in course.calls() {
        let output = run(&add, &inject(name, "error=EIO", number))?;
        let what = format!("{name} number {number}");
        if output.status.success() {
            // A call whose failure does not matter: then the attachment is whole.
            let result = serde_json::from_str::<serde_json::Value>(&output.stdout)?;
            Call::new(&node, "CHECK", "c1", &pod)
                .keys(json!({"prevResult": result}))
                .silent()
                .context(what.clone())?;
        } else {
            failed += 1;
            // An answer of the kernel that never came in may have been a success, and
            // the way home from the pod's namespace may be barred: then DEL does it.
            let is_blind = matches!(name, "recvfrom" | "setns");
            let left = traces(&node)?;
            ensure!(is_blind || left.is_empty(), "{what}: {left:?}");
            ensure!(is_blind || only_lo(&pod).is_ok(), "{what}: eth0 stays");
            if output.status.code() == Some(1) && !(name == "write" && output.stdout.is_empty()) {
                let error = serde_json::from_str::<serde_json::Value>(&output.stdout);
                ensure!(
                    error.is_ok_and(|error| error["code"].is_u64()),
                    "{what}: {output:?}"
                );
            }
        }
        Call::new(&node, "DEL", "c1", &pod)
            .silent()
            .context(what.clone())?;
        let left = traces(&node)?;
        ensure!(left.is_empty(), "{what}, after DEL: {left:?}");
        only_lo(&pod).context(what)?;
    }
    ensure!(failed > 20, "only {failed} calls matter");
    Ok(())
}

/// cni.md 55.
#[test]
fn an_add_killed_at_any_call_is_undone_by_del() -> Result<()> {
    require_root!();
    let (node, pod, course) = prepared()?;
    let add = Call::new(&node, "ADD", "c1", &pod);
    for (name, number) in course.calls() {
        let output = run(&add, &inject(name, "signal=KILL", number))?;
        ensure!(
            !output.status.success(),
            "{name} number {number}: {output:?}"
        );
        Call::new(&node, "DEL", "c1", &pod).silent()?;
        let left = traces(&node)?;
        ensure!(
            left.is_empty(),
            "{name} number {number}, after DEL: {left:?}"
        );
        only_lo(&pod).with_context(|| format!("{name} number {number}"))?;
    }
    Ok(())
}

/// cni.md 55: without DEL, the same ADD in another namespace works.
#[test]
fn an_add_killed_at_any_call_does_not_bar_the_next() -> Result<()> {
    require_root!();
    let (node, pod, course) = prepared()?;
    let other = NetNs::create("other")?;
    let add = Call::new(&node, "ADD", "c1", &pod);
    for (name, number) in course.calls() {
        run(&add, &inject(name, "signal=KILL", number))?;
        let what = format!("{name} number {number}");
        let again = Call::new(&node, "ADD", "c1", &other).run()?;
        if again.code != 0 {
            // Killed after it had said that all is done: an attachment like any other.
            ensure!(again.stdout.contains("exists already"), "{what}: {again:?}");
            ensure!(name == "write", "{what}: {again:?}");
        } else {
            let leases = node.leases()?;
            ensure!(leases.len() == 2, "{what}: {leases:?}");
            only_lo(&pod).context(what.clone())?;
        }
        Call::new(&node, "DEL", "c1", &other).silent()?;
        let left = traces(&node)?;
        ensure!(left.is_empty(), "{what}, after DEL: {left:?}");
    }
    Ok(())
}

/// cni.md 55: without anything, the agent.
#[test]
fn an_add_killed_at_any_call_is_undone_by_the_agent() -> Result<()> {
    require_root!();
    let (node, pod, course) = prepared()?;
    let agent = Agent::spawn_with(&node, &["--reap-interval", "50ms"])?;
    agent.wait()?;
    let add = Call::new(&node, "ADD", "c1", &pod);
    for (name, number) in course.calls() {
        run(&add, &inject(name, "signal=KILL", number))?;
        if name == "write" && !is_unfinished_or_gone(&node)? {
            // Complete, and nobody was told: its namespace decides.
            Call::new(&node, "DEL", "c1", &pod).silent()?;
        }
        eventually(LIMIT, || {
            ensure!(node.ports()?.is_empty(), "ports");
            ensure!(
                node.records()?.iter().all(|name| name.ends_with(".tmp")),
                "records"
            );
            Ok(())
        })
        .with_context(|| format!("{name} number {number}"))?;
    }
    // Leases of requests that died before their record go with the next request.
    let result = Call::new(&node, "ADD", "c2", &pod).result()?;
    ensure!(node.leases()?.len() == 2, "{:?}", node.leases()?);
    for ip in inspect::result_ips(&result)? {
        ensure!(node.leases()?.contains(&ip), "{ip}");
    }
    Call::new(&node, "DEL", "c2", &pod).silent()
}

fn is_unfinished_or_gone(node: &Node) -> Result<bool> {
    let records = node.records()?;
    Ok(records.is_empty() || records.iter().any(|name| name.ends_with(".tmp")))
}

/// cni.md 55.
#[test]
fn a_del_that_fails_or_is_killed_at_any_call_is_finished_by_the_next() -> Result<()> {
    require_root!();
    let (node, pod, _) = prepared()?;
    let (add, del) = (
        Call::new(&node, "ADD", "c1", &pod),
        Call::new(&node, "DEL", "c1", &pod),
    );
    add.result()?;
    let course = Course::of(&node, &del)?;
    for (name, number) in course.calls() {
        for fault in ["error=EIO", "signal=KILL"] {
            add.result()?;
            let output = run(&del, &inject(name, fault, number))?;
            if output.status.success() {
                let left = traces(&node)?;
                ensure!(left.is_empty(), "{name} number {number}: {left:?}");
            }
            del.silent()?;
            let left = traces(&node)?;
            ensure!(left.is_empty(), "{name} number {number}, {fault}: {left:?}");
        }
    }
    Ok(())
}

/// cni.md 65, and DESIGN 3: two sends for the links, none of them for anything else.
#[test]
fn an_add_runs_no_program_and_sends_two_batches() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (first, second) = (NetNs::create("first")?, NetNs::create("second")?);
    Call::new(&node, "ADD", "c1", &first).result()?;
    let log = node.dir().join("strace");
    let add = Call::new(&node, "ADD", "c2", &second);
    let options = [
        "--trace=execve,clone,clone3,fork,vfork,sendto,sendmsg,sendmmsg,nanosleep,\
         clock_nanosleep,poll,fsync,fdatasync,flock"
            .to_owned(),
        format!("--output={}", log.display()),
    ];
    let output = run(&add, &options)?;
    ensure!(output.status.success(), "{}", command::complaint(&output));
    let text = fs::read_to_string(&log)?;
    let count = |name: &str| text.lines().filter(|line| line.contains(name)).count();
    assert_eq!(count("execve("), 1, "the plugin itself:\n{text}");
    assert_eq!(count("fork(") + count("clone"), 0, "{text}");
    assert_eq!(count("sendto(") + count("sendmsg("), 2, "{text}");
    assert_eq!(count("nanosleep("), 0, "{text}");
    assert_eq!(count("sync("), 0, "{text}");
    assert_eq!(count("flock("), 2, "leases and record:\n{text}");
    for (id, pod) in [("c1", &first), ("c2", &second)] {
        Call::new(&node, "DEL", id, pod).silent()?;
    }
    assert_empty(&node)
}

/// Stops a process, found by its command line, in the node's namespace.
fn stop(child: &Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGSTOP)?;
    Ok(())
}

/// cni.md 56.
#[test]
fn a_stopped_holder_of_the_lock_makes_the_others_try_later_and_a_dead_one_does_not() -> Result<()> {
    require_root!();
    let (node, pod, _) = prepared()?;
    // Whoever holds it: a plugin of ours, or host-local.
    let lock = node.data_dir().join(node.network()).join("lock");
    let mut holder = Command::new("flock")
        .arg(&lock)
        .args(["sh", "-c", "echo held; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = holder.stdout.take().context("piped")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
    stop(&holder)?;
    let started = Instant::now();
    let (code, text) = Call::new(&node, "ADD", "c1", &pod).error()?;
    assert_eq!(code, 11, "{text}");
    ensure!(text.contains("lock"), "{text}");
    ensure!(
        started.elapsed() < Duration::from_secs(30),
        "kubelet waits longer"
    );
    ensure!(traces(&node)?.is_empty(), "{:?}", traces(&node)?);
    // `flock` runs the shell beside itself, and both have the file open.
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    for pid in fs::read_to_string(children)?.split_whitespace() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    holder.kill()?;
    holder.wait()?;
    Call::new(&node, "ADD", "c1", &pod).result()?;
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    assert_empty(&node)
}

/// cni.md 57.
#[test]
fn an_add_that_is_told_to_end_undoes_what_it_did() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = Agent::start(&node)?;
    let pod = NetNs::create("pod")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let call = Call::new(&node, "ADD", "c1", &pod);
        // While it waits for the agent, its port exists already.
        agent.pause()?;
        let mut plugin = call.spawn()?;
        eventually(LIMIT, || {
            ensure!(!node.ports()?.is_empty(), "no port yet");
            Ok(())
        })?;
        kill(Pid::from_raw(i32::try_from(plugin.id())?), signal)?;
        agent.resume()?;
        let status = plugin.wait()?;
        assert_eq!(status.code(), Some(1), "{signal}: {status}");
        assert_empty(&node)?;
        only_lo(&pod)?;
    }
    Ok(())
}

/// cni.md 57.
#[test]
fn an_add_whose_result_nobody_takes_is_undone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let call = Call::new(&node, "ADD", "c1", &pod);
    let mut child = call
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().context("piped")?;
    std::io::Write::write_all(&mut stdin, call.input_bytes())?;
    drop(stdin);
    assert_eq!(child.wait()?.code(), Some(1));
    assert_empty(&node)?;
    only_lo(&pod)
}

#[test]
fn what_an_add_cannot_undo_is_named_and_found_by_del() -> Result<()> {
    require_root!();
    let (node, pod, course) = prepared()?;
    let sends = course.calls().filter(|(name, _)| *name == "sendto").count();
    // The last of the two batches, and every attempt to take the first back.
    let options = [
        "--trace=sendto".to_owned(),
        format!("--inject=sendto:error=ENOBUFS:when={sends}+"),
    ];
    let output = run(&Call::new(&node, "ADD", "c1", &pod), &options)?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    ensure!(output.stdout.contains("not undone"), "{output:?}");
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 0));
    ensure!(!node.records()?.is_empty(), "the record tells of it");
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    ensure!(is_empty(&node)?);
    only_lo(&pod)
}
