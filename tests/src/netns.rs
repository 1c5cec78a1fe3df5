//! A network namespace that exists as long as its value.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::traffic::PATIENT;
use crate::{command, name};

/// A network namespace. One that was made here has a name and `lo` up, and is deleted
/// when dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    path: PathBuf,
    is_ours: bool,
}

impl NetNs {
    /// Makes a namespace; `role` ends its name.
    pub fn create(role: &str) -> Result<Self> {
        let name = name::unique(role);
        // Before it is there: who is interrupted while `ip` makes it has it to delete.
        let netns = Self {
            path: Path::new("/run/netns").join(&name),
            name,
            is_ours: true,
        };
        command::run(Command::new("ip").args(["netns", "add", &netns.name]))?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// A namespace that another program made and will delete; `name` is for messages.
    pub fn existing(name: &str, path: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            path,
            is_ours: false,
        }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as a runtime gives it to a plugin.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that will run inside. Only the network namespace changes: `/sys`
    /// and the mounts stay as they are, unlike with `ip netns exec`.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            // Nothing outside of a test's own folders, unless it says where.
            .env("TRAMMEL_STATE_DIR", "off")
            .arg(format!("--net={}", self.path.display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `ip` inside, arguments separated by spaces.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        command::run(self.command("ip").args(arguments.split_whitespace()))
    }

    /// Runs `ip -j` inside. Nothing at all counts as an empty list.
    pub fn ip_json(&self, arguments: &str) -> Result<Value> {
        let text = self.ip(&format!("-j -d {arguments}"))?;
        if text.trim().is_empty() {
            return Ok(Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).with_context(|| format!("ip -j {arguments}"))
    }

    /// Writes a sysctl of this namespace, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: impl std::fmt::Display) -> Result<()> {
        command::run(
            self.command("sysctl")
                .arg("-qw")
                .arg(format!("{key}={value}")),
        )?;
        Ok(())
    }

    /// Reads a sysctl of this namespace; `None` where there is none of that name.
    pub fn read_sysctl(&self, key: &str) -> Option<String> {
        let text = command::run(self.command("sysctl").arg("-n").arg(key)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Brings a link up whose IPv6 addresses serve at once. While its link-local one is being
    /// probed (a second), a router asks nobody for a MAC there and loses what it forwards. And
    /// even an address that is not probed waits, by chance, as long as a router solicitation.
    pub fn up(&self, link: &str) -> Result<()> {
        for setting in ["accept_dad", "router_solicitation_delay"] {
            self.sysctl(&format!("net.ipv6.conf.{link}.{setting}"), 0)?;
        }
        self.ip(&format!("link set {link} up")).map(drop)
    }

    /// Gives a link an address, with the length of its prefix, that serves as soon as the
    /// link is up.
    pub fn add_address(&self, link: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {link} {nodad}"))
            .map(drop)
    }

    /// An echo request each second until one is answered, which it is to be.
    pub fn ping(&self, target: IpAddr) -> Result<()> {
        self.ping_for(target, PATIENT)
    }

    /// The same; an error if there is no answer within the whole seconds of `limit`.
    pub fn ping_for(&self, target: IpAddr, limit: Duration) -> Result<()> {
        let deadline = limit.as_secs().max(1);
        command::run(
            self.command("ping")
                .args(["-n", "-q", "-c1", &format!("-w{deadline}")])
                .arg(target.to_string()),
        )?;
        Ok(())
    }

    /// Starts a thread inside this namespace. What it opens stays there, also
    /// when another thread goes on with it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let netns = File::open(&self.path)
            .with_context(|| format!("cannot open {}", self.path.display()))?;
        thread::Builder::new()
            .name(self.name.clone())
            .stack_size(256 << 10)
            .spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
                Ok(work())
            })
            .context("cannot start a thread")
    }

    /// Runs `work` in a thread inside this namespace and waits for it.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.spawn(work)?
            .join()
            .map_err(|_| anyhow!("a thread in {} panicked", self.name))?
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        // A test may have deleted it itself.
        if self.is_ours
            && self.path.exists()
            && let Err(error) = command::run(Command::new("ip").args(["netns", "del", &self.name]))
        {
            eprintln!("cannot delete a namespace: {error:#}");
        }
    }
}
