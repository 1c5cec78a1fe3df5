//! ADD and DEL with an error, or a kill, at every system call that changes something.
//!
//! `strace` injects the faults, so the plugin is the one that ships. Which calls there are
//! is read from an undisturbed run first: one that is added later is tried by itself.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command::{self, LIMIT, Output};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::wait::eventually;
use tests::{inspect, require_root};

use crate::assert_empty;

/// System calls by which the plugin changes files, namespaces or the kernel's objects, or
/// learns whether it did.
const CALLS: &str = "?open,openat,write,mkdir,link,linkat,unlink,unlinkat,rename,ftruncate,flock,\
                     setns,socket,bind,connect,sendto,sendmsg,recvfrom,recvmsg,ioctl,signalfd4";

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
        counts.retain(|name, _| {
            CALLS
                .split(',')
                .any(|wanted| wanted.trim().trim_start_matches("?") == name)
        });
        ensure!(counts.len() > 6, "too few kinds of calls: {counts:?}");
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
    traces.extend(inspect::tables(&node.netns)?);
    let shapers = node.netns.ip_json("link show type ifb")?;
    traces.extend(inspect::items(&shapers).map(ToString::to_string));
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

/// A node and a container, as the tests with every call want them: the bridge and the
/// directories are there already.
struct Stage {
    node: Node,
    pod: NetNs,
    keys: Value,
}

impl Stage {
    fn new(keys: Value) -> Result<Self> {
        let stage = Self {
            node: Node::new()?,
            pod: NetNs::create("pod")?,
            keys,
        };
        stage.call("ADD").result()?;
        stage.call("DEL").silent()?;
        Ok(stage)
    }

    /// One with nothing but links and addresses, and one with all that there is.
    fn both() -> Result<[Self; 2]> {
        let all = json!({"ipMasq": true, "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
                "egressRate": 8_000_000, "egressBurst": 8_000_000}}});
        Ok([Self::new(json!({}))?, Self::new(all)?])
    }

    fn call(&self, verb: &str) -> Call<'_> {
        self.call_in(verb, &self.pod)
    }

    fn call_in(&self, verb: &str, pod: &NetNs) -> Call<'_> {
        Call::new(&self.node, verb, "c1", pod).keys(self.keys.clone())
    }

    /// CHECK against a result.
    fn check(&self, result: &str) -> Result<()> {
        let mut keys = self.keys.clone();
        keys["prevResult"] = serde_json::from_str(result)?;
        let reply = self.call("CHECK").keys(keys).run()?;
        ensure!(reply.code == 0, "{reply:?}");
        Ok(())
    }

    /// The course of an ADD.
    fn course(&self) -> Result<Course> {
        let course = Course::of(&self.node, &self.call("ADD"))?;
        self.call("DEL").silent()?;
        Ok(course)
    }

    fn expect_no_trace(&self, what: &str) -> Result<()> {
        let left = traces(&self.node)?;
        ensure!(left.is_empty(), "{what}: {left:?}");
        only_lo(&self.pod).with_context(|| what.to_owned())
    }
}

/// cni.md 28.
#[test]
fn an_add_that_fails_at_any_call_leaves_nothing() -> Result<()> {
    require_root!();
    for stage in Stage::both()? {
        let mut failed = 0;
        for (name, number) in stage.course()?.calls() {
            let output = run(&stage.call("ADD"), &inject(name, "error=EIO", number))?;
            let what = format!("{name} number {number}");
            if output.status.success() {
                // A call whose failure does not matter: then the attachment is whole.
                stage.check(&output.stdout).context(what.clone())?;
            } else {
                failed += 1;
                // An answer of the kernel that never came in may have been a success, and
                // the way home from the pod's namespace may be barred: then DEL does it.
                if !matches!(name, "recvfrom" | "recvmsg" | "setns") {
                    stage.expect_no_trace(&what)?;
                }
                // Only where the call was the one that says so is there no error to read.
                let error = serde_json::from_str::<Value>(&output.stdout);
                let has_code = error.is_ok_and(|error| error["code"].is_u64());
                ensure!(
                    has_code || matches!(name, "write" | "setns"),
                    "{what}: {output:?}"
                );
            }
            stage.call("DEL").silent().context(what.clone())?;
            stage.expect_no_trace(&format!("{what}, after DEL"))?;
        }
        ensure!(failed > 20, "only {failed} calls matter");
    }
    Ok(())
}

/// cni.md 55.
#[test]
fn an_add_killed_at_any_call_is_undone_by_del() -> Result<()> {
    require_root!();
    for stage in Stage::both()? {
        for (name, number) in stage.course()?.calls() {
            let output = run(&stage.call("ADD"), &inject(name, "signal=KILL", number))?;
            let what = format!("{name} number {number}");
            ensure!(!output.status.success(), "{what}: {output:?}");
            stage.call("DEL").silent().context(what.clone())?;
            stage.expect_no_trace(&what)?;
        }
    }
    Ok(())
}

/// cni.md 55: without DEL, the same ADD in another namespace works.
#[test]
fn an_add_killed_at_any_call_does_not_bar_the_next() -> Result<()> {
    require_root!();
    for stage in Stage::both()? {
        let other = NetNs::create("other")?;
        for (name, number) in stage.course()?.calls() {
            run(&stage.call("ADD"), &inject(name, "signal=KILL", number))?;
            let what = format!("{name} number {number}");
            let again = stage.call_in("ADD", &other).run()?;
            if again.code == 0 {
                let leases = stage.node.leases()?;
                ensure!(leases.len() == 2, "{what}: {leases:?}");
                only_lo(&stage.pod).context(what.clone())?;
            } else {
                // Killed after it had said that all is done: an attachment like any other.
                ensure!(again.stdout.contains("exists already"), "{what}: {again:?}");
                ensure!(name == "write", "{what}: {again:?}");
            }
            stage.call_in("DEL", &other).silent()?;
            stage.expect_no_trace(&what)?;
        }
    }
    Ok(())
}

/// cni.md 55: without anything, the agent.
#[test]
fn an_add_killed_at_any_call_is_undone_by_the_agent() -> Result<()> {
    require_root!();
    for stage in Stage::both()? {
        let node = &stage.node;
        let course = stage.course()?;
        let agent = Agent::spawn_with(node, &["--reap-interval", "50ms"])?;
        agent.wait()?;
        for (name, number) in course.calls() {
            let output = run(&stage.call("ADD"), &inject(name, "signal=KILL", number))?;
            // With an agent it makes fewer calls; and where it was killed when all was
            // done and only nobody was told yet, its namespace decides.
            if output.status.success() || !is_unfinished_or_gone(node)? {
                stage.call("DEL").silent()?;
            }
            eventually(LIMIT, || {
                let shapers = node.netns.ip_json("link show type ifb")?;
                let records = node.records()?;
                ensure!(node.ports()?.is_empty() && inspect::items(&shapers).len() == 0);
                ensure!(
                    records.iter().all(|name| name.ends_with(".tmp")),
                    "{records:?}"
                );
                Ok(())
            })
            .with_context(|| format!("{name} number {number}"))?;
        }
        // Leases of requests that died before their record go with the next request.
        let result = Call::new(node, "ADD", "c2", &stage.pod).result()?;
        let leases = node.leases()?;
        let ips = inspect::result_ips(&result)?;
        ensure!(
            leases.len() == 2 && ips.iter().all(|ip| leases.contains(ip)),
            "{leases:?}"
        );
        Call::new(node, "DEL", "c2", &stage.pod).silent()?;
        ensure!(agent.verify()?.status.success(), "{}", agent.log_text());
    }
    Ok(())
}

fn is_unfinished_or_gone(node: &Node) -> Result<bool> {
    let records = node.records()?;
    Ok(records.is_empty() || records.iter().any(|name| name.ends_with(".tmp")))
}

/// cni.md 55.
#[test]
fn a_del_that_fails_or_is_killed_at_any_call_is_finished_by_the_next() -> Result<()> {
    require_root!();
    for stage in Stage::both()? {
        let (add, del) = (stage.call("ADD"), stage.call("DEL"));
        add.result()?;
        for (name, number) in Course::of(&stage.node, &del)?.calls() {
            for fault in ["error=EIO", "signal=KILL"] {
                let what = format!("{name} number {number}, {fault}");
                add.result().context(what.clone())?;
                let output = run(&del, &inject(name, fault, number))?;
                if output.status.success() {
                    stage.expect_no_trace(&what)?;
                }
                del.silent().context(what.clone())?;
                stage.expect_no_trace(&what)?;
            }
        }
    }
    Ok(())
}

/// cni.md 65, and DESIGN 3: two sends for the links, none of them for anything else.
#[test]
fn an_add_runs_no_program_and_sends_two_batches() -> Result<()> {
    require_root!();
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
        "egressRate": 8_000_000, "egressBurst": 8_000_000});
    let limits = json!({"runtimeConfig": {"bandwidth": limits}});
    for keys in [
        json!({}),
        limits,
        json!({"mode": "l2"}),
        json!({"mode": "routed"}),
        json!({"disableContainerInterface": true, "mode": "l2", "ipam": null}),
    ] {
        expect_two_batches(&keys).with_context(|| keys.to_string())?;
    }
    Ok(())
}

fn expect_two_batches(keys: &Value) -> Result<()> {
    let node = Node::new()?;
    let (first, second) = (NetNs::create("first")?, NetNs::create("second")?);
    let call = |verb, id, pod| Call::new(&node, verb, id, pod).keys(keys.clone());
    call("ADD", "c1", &first).result()?;
    let log = node.dir().join("strace");
    let add = call("ADD", "c2", &second);
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
    assert!(count("flock(") <= 2, "leases and record:\n{text}");
    for (id, pod) in [("c1", &first), ("c2", &second)] {
        call("DEL", id, pod).silent()?;
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
    let stage = Stage::new(json!({}))?;
    let node = &stage.node;
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
    let (code, text) = stage.call("ADD").error()?;
    assert_eq!(code, 11, "{text}");
    ensure!(text.contains("lock"), "{text}");
    ensure!(
        started.elapsed() < Duration::from_secs(30),
        "kubelet waits longer"
    );
    stage.expect_no_trace("while the lock was held")?;
    // `flock` runs the shell beside itself, and both have the file open.
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    for pid in fs::read_to_string(children)?.split_whitespace() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    holder.kill()?;
    holder.wait()?;
    stage.call("ADD").result()?;
    stage.call("DEL").silent()?;
    stage.expect_no_trace("after all")
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
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    // A child of this process may have it until it begins its program.
    eventually(LIMIT, || {
        let mut end = [PollFd::new(writer.as_fd(), PollFlags::empty())];
        poll(&mut end, PollTimeout::ZERO)?;
        ensure!(end[0].any() == Some(true), "somebody may read");
        Ok(())
    })?;
    let mut child = call
        .command()
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()?;
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
    let stage = Stage::new(json!({}))?;
    let course = stage.course()?;
    let sends = course.calls().filter(|(name, _)| *name == "sendto").count();
    // The last of the two batches, and every attempt to take the first back.
    let options = [
        "--trace=sendto".to_owned(),
        format!("--inject=sendto:error=ENOBUFS:when={sends}+"),
    ];
    let output = run(&stage.call("ADD"), &options)?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    ensure!(output.stdout.contains("not undone"), "{output:?}");
    let node = &stage.node;
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 0));
    ensure!(!node.records()?.is_empty(), "the record tells of it");
    stage.call("DEL").silent()?;
    stage.expect_no_trace("after DEL")
}
