//! What the plugin costs, against Debian's reference plugins and against the kernel.
//!
//! Both sides work in the same namespaces, in turns, within one run. Each call is timed
//! from before the fork to the end of the process, its result read, as a runtime waits for
//! it. Results are ratios of one run; absolute times belong to the machine.
//!
//! Leases lie on the same disk for both. The plugin's records lie in memory, as on a node,
//! whose `/run` does (file-hierarchy(7)); that of a container or a small machine may not.
//! No agent runs, as the reference has none.
//!
//! Run by `make bench`; needs root. `cargo test --benches` runs it once at a small size.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{Node, PODS_V4, PODS_V6};
use tests::{inspect, name, programs};

/// Pods that start at once.
const PARALLEL: usize = 50;

/// Where Linux has a file system in memory, whatever its `/run` is.
const IN_MEMORY: &str = "/dev/shm";

/// How often each thing is done; medians count.
struct Rounds {
    single: usize,
    parallel: usize,
}

fn main() -> Result<()> {
    if !tests::privilege::ready() {
        return Ok(());
    }
    // `cargo bench` says so; `cargo test --benches` does not.
    let full = std::env::args().any(|argument| argument == "--bench");
    let rounds = match full {
        true => Rounds {
            single: 101,
            parallel: 7,
        },
        false => Rounds {
            single: 2,
            parallel: 1,
        },
    };
    let node = Node::new()?;
    let bench = Bench::new(&node)?;
    // Children of this thread start in the namespace that it is in: no other program
    // is needed to put them there, whose start would be timed with theirs.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| -> Result<()> {
            let netns = fs::File::open(node.netns.path())?;
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            bench.run(&rounds)
        });
        run.join().expect("a benchmark does not panic")
    })
}

/// A plugin with its configuration.
struct Side {
    program: PathBuf,
    conf: Value,
    bridge: &'static str,
}

/// What a node of the reference plugins has to be told for what ours does in one: their
/// portmap is called after bridge, with its result.
struct Translated {
    ours: Side,
    bridge: Side,
    portmap: Side,
}

struct Bench {
    ours: Side,
    reference: Side,
    /// Where the plugin's records lie.
    run_dir: PathBuf,
}

impl Bench {
    fn new(node: &Node) -> Result<Self> {
        let run_dir = Path::new(IN_MEMORY).join(name::unique("bench"));
        fs::create_dir(&run_dir)?;
        let conf = |kind: &str, bridge: &str, ipam: &str| {
            json!({
                "cniVersion": "1.0.0",
                "name": format!("{}-{kind}", node.network()),
                "type": kind,
                "bridge": bridge,
                "isDefaultGateway": true,
                "hairpinMode": true,
                "agentSocket": run_dir.join("agent.sock"),
                "policy": "optional",
                "ipam": {
                    "type": ipam,
                    "ranges": [[{"subnet": PODS_V4}], [{"subnet": PODS_V6}]],
                    "dataDir": node.data_dir(),
                },
            })
        };
        // The two bridges have the same subnets, so only one is there at a time.
        Ok(Self {
            ours: Side {
                program: programs::plugin(),
                conf: conf("trammel", "cbr0", "trammel-ipam"),
                bridge: "cbr0",
            },
            reference: Side {
                program: Path::new(programs::REFERENCE_PLUGINS).join("bridge"),
                conf: conf("bridge", "cni0", "host-local"),
                bridge: "cni0",
            },
            run_dir,
        })
    }

    fn run(&self, rounds: &Rounds) -> Result<()> {
        println!(
            "| work | trammel | baseline | ratio | must | baseline is |\n\
             | --- | ---: | ---: | ---: | ---: | --- |"
        );
        let (ours, theirs) = self.starts(rounds.single)?;
        row("start and end (VERSION)", ours, theirs, "", "bridge");
        let single = self.singles(rounds.single)?;
        row(
            "ADD, both families",
            single.add,
            single.their_add,
            "<= 1/8",
            "bridge + host-local",
        );
        row(
            "DEL",
            single.del,
            single.their_del,
            "",
            "bridge + host-local",
        );
        row(
            "DEL",
            single.del,
            single.bare,
            "<= 1.3",
            "one RTM_DELLINK of such a pair",
        );
        let (ours, theirs) = self.translated(rounds.single)?;
        row(
            "ADD with ipMasq and a hostPort",
            ours,
            theirs,
            "<= 1/30",
            "bridge + ipMasq + portmap",
        );
        let (ours, theirs) = self.parallel(rounds.parallel)?;
        let work = format!("{PARALLEL} ADDs at once, no bridge yet");
        row(&work, ours, theirs, "<= 1/4", "bridge + host-local");
        Ok(())
    }

    /// Starting the programs and nothing else.
    fn starts(&self, rounds: usize) -> Result<(Duration, Duration)> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (side, times) in [(&self.ours, &mut ours), (&self.reference, &mut theirs)] {
                times.push(side.call("VERSION", "x", Path::new(""))?.1);
            }
        }
        Ok((median(ours), median(theirs)))
    }

    fn singles(&self, rounds: usize) -> Result<Single> {
        let pod = NetNs::create("pod")?;
        let mut times: [Vec<Duration>; 5] = Default::default();
        for side in [&self.ours, &self.reference] {
            // The first makes the bridge.
            side.call("ADD", "warm", pod.path())?;
            side.call("DEL", "warm", pod.path())?;
        }
        for round in 0..rounds {
            let id = format!("c{round}");
            self.with_bridge(&self.reference)?;
            times[1].push(self.reference.call("ADD", &id, pod.path())?.1);
            times[3].push(self.reference.call("DEL", &id, pod.path())?.1);
            self.with_bridge(&self.ours)?;
            times[0].push(self.ours.call("ADD", &id, pod.path())?.1);
            times[2].push(self.ours.call("DEL", &id, pod.path())?.1);
            let (result, _) = self.ours.call("ADD", &id, pod.path())?;
            times[4].push(remove_link(&inspect::host_interface(&result)?)?);
            self.ours.call("DEL", &id, pod.path())?;
        }
        let [add, their_add, del, their_del, bare] = times.map(median);
        Ok(Single {
            add,
            their_add,
            del,
            their_del,
            bare,
        })
    }

    /// Sets one side's bridge up and the other's down, if they are there.
    fn with_bridge(&self, side: &Side) -> Result<()> {
        for other in [&self.ours, &self.reference] {
            let state = if other.bridge == side.bridge {
                "up"
            } else {
                "down"
            };
            ip(&["link", "set", other.bridge, state])?;
        }
        Ok(())
    }

    /// With masquerading and a hostPort; no agent, so the plugin writes the rules itself.
    fn translated(&self, rounds: usize) -> Result<(Duration, Duration)> {
        let pod = NetNs::create("pod")?;
        let both = json!({
            "ipMasq": true,
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        });
        let sides = Translated {
            ours: self.ours.with(&both),
            bridge: self.reference.with(&json!({"ipMasq": true})),
            portmap: Side {
                program: Path::new(programs::REFERENCE_PLUGINS).join("portmap"),
                ..self.reference.with(&both)
            },
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let id = format!("m{round}");
            self.with_bridge(&self.reference)?;
            let (result, first) = sides.bridge.call("ADD", &id, pod.path())?;
            let portmap = sides.portmap.with(&json!({"prevResult": result}));
            theirs.push(first + portmap.call("ADD", &id, pod.path())?.1);
            portmap.call("DEL", &id, pod.path())?;
            sides.bridge.call("DEL", &id, pod.path())?;
            self.with_bridge(&self.ours)?;
            ours.push(sides.ours.call("ADD", &id, pod.path())?.1);
            sides.ours.call("DEL", &id, pod.path())?;
        }
        Ok((median(ours), median(theirs)))
    }

    /// Many pods at once on a node that had none.
    fn parallel(&self, rounds: usize) -> Result<(Duration, Duration)> {
        let pods = (0..PARALLEL)
            .map(|_| NetNs::create("pod"))
            .collect::<Result<Vec<_>>>()?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (side, times) in [(&self.ours, &mut ours), (&self.reference, &mut theirs)] {
                for bridge in [self.ours.bridge, self.reference.bridge] {
                    // It may be gone already.
                    ip(&["link", "delete", bridge]).ok();
                }
                times.push(side.add_all(&pods)?);
            }
        }
        Ok((median(ours), median(theirs)))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.run_dir).ok();
    }
}

/// Medians of what one pod costs.
struct Single {
    add: Duration,
    their_add: Duration,
    del: Duration,
    their_del: Duration,
    bare: Duration,
}

impl Side {
    /// The same with further keys.
    fn with(&self, keys: &Value) -> Self {
        let mut conf = self.conf.clone();
        for (key, value) in keys.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        Self {
            program: self.program.clone(),
            conf,
            bridge: self.bridge,
        }
    }

    /// Runs the plugin to its end: what it printed, and how long it took.
    fn call(&self, verb: &str, id: &str, netns: &Path) -> Result<(Value, Duration)> {
        let started = Instant::now();
        let child = self.start(verb, id, netns)?;
        let result = self.finish(child)?;
        Ok((result, started.elapsed()))
    }

    fn start(&self, verb: &str, id: &str, netns: &Path) -> Result<Child> {
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", programs::REFERENCE_PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut stdin = child.stdin.take().expect("piped");
        match stdin.write_all(self.conf.to_string().as_bytes()) {
            // It has ended without it: for VERSION there is no need.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written?,
        }
        Ok(child)
    }

    fn finish(&self, mut child: Child) -> Result<Value> {
        let mut text = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        stdout.read_to_string(&mut text)?;
        let status = child.wait()?;
        ensure!(status.success(), "{}: {text}", self.program.display());
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{text:?}"))
    }

    /// Adds all pods at once; the time until the last is done. Removes them again.
    fn add_all(&self, pods: &[NetNs]) -> Result<Duration> {
        let started = Instant::now();
        let children = pods
            .iter()
            .map(|pod| self.start("ADD", pod.name(), pod.path()))
            .collect::<Result<Vec<_>>>()?;
        let results = children
            .into_iter()
            .map(|child| self.finish(child))
            .collect::<Result<Vec<_>>>()?;
        let took = started.elapsed();
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        for result in &results {
            addresses.extend(inspect::result_ips(result)?);
        }
        ensure!(
            addresses.len() == 2 * pods.len(),
            "an address was given twice"
        );
        for pod in pods {
            self.call("DEL", pod.name(), pod.path())?;
        }
        Ok(took)
    }
}

/// The time of the kernel to remove a link, asked for by a message that is ready.
fn remove_link(name: &str) -> Result<Duration> {
    const RTM_DELLINK: u16 = 17;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    let index = nix::net::if_::if_nametoindex(name)?;
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_DELLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    // Sequence number and port; then `struct ifinfomsg`: family, type, index...
    message.extend([0; 12]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let socket = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let mut answer = [0; 4096];
    let started = Instant::now();
    send(socket, &message, MsgFlags::empty())?;
    let length = recv(socket, &mut answer, MsgFlags::empty())?;
    let took = started.elapsed();
    let error = answer[..length].get(16..20).context("a short answer")?;
    if error != [0; 4] {
        bail!("cannot remove {name}: {error:?}");
    }
    Ok(took)
}

fn ip(arguments: &[&str]) -> Result<()> {
    tests::command::run(Command::new("ip").args(arguments)).map(drop)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn row(work: &str, ours: Duration, baseline: Duration, must: &str, what: &str) {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let ratio = ours.as_secs_f64() / baseline.as_secs_f64();
    let ratio = match ratio < 0.5 {
        true => format!("1/{:.1}", 1.0 / ratio),
        false => format!("{ratio:.2}"),
    };
    println!(
        "| {work} | {:.2} ms | {:.2} ms | {ratio} | {must} | {what} |",
        millis(ours),
        millis(baseline)
    );
}
