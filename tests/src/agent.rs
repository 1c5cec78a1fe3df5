//! The agent as a process in a node's namespace.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::command::{self, Background, LIMIT, Output};
use crate::netns::NetNs;
use crate::node::Node;
use crate::programs;
use crate::wait::eventually;

/// Where the agent serves its endpoints, in the node's namespace.
pub const LISTEN: &str = "127.0.0.1:9870";

/// How long the agent may take to have everything in the kernel.
const READY: Duration = Duration::from_secs(60);

/// A running agent. Killed when dropped.
#[derive(Debug)]
pub struct Agent<'n> {
    node: &'n Node,
    process: Background,
    log: PathBuf,
}

impl<'n> Agent<'n> {
    /// Starts the agent on a node with the node's manifests, and waits until all
    /// of them are in the kernel.
    pub fn start(node: &'n Node) -> Result<Self> {
        let agent = Self::spawn(node)?;
        agent.wait()?;
        Ok(agent)
    }

    /// As [`Self::start`], with further arguments.
    pub fn start_with(node: &'n Node, arguments: &[&str]) -> Result<Self> {
        let agent = Self::spawn_with(node, arguments)?;
        agent.wait()?;
        Ok(agent)
    }

    /// Starts the agent and waits only until its socket answers.
    pub fn spawn(node: &'n Node) -> Result<Self> {
        Self::spawn_with(node, &[])
    }

    /// As [`Self::spawn`], with further arguments.
    pub fn spawn_with(node: &'n Node, arguments: &[&str]) -> Result<Self> {
        let log = node.dir().join("agent.log");
        let mut command = run_command(node);
        command.args(arguments);
        let process = Background::spawn(&command, &log)?;
        let mut agent = Self { node, process, log };
        let socket = node.socket();
        eventually(READY, || {
            if let Some(status) = agent.process.status()? {
                bail!("the agent has ended, {status}");
            }
            std::os::unix::net::UnixStream::connect(&socket)
                .with_context(|| format!("cannot connect to {}", socket.display()))
        })
        .with_context(|| agent.log_text())?;
        Ok(agent)
    }

    /// Waits until everything written so far is in the kernel.
    pub fn wait(&self) -> Result<()> {
        let limit = format!("{}s", READY.as_secs());
        self.verb(&["wait", "--timeout", &limit])
            .map(|_| ())
            .with_context(|| self.log_text())
    }

    /// Runs a verb of the agent's command line, which has to succeed, and returns
    /// what it printed.
    pub fn verb(&self, arguments: &[&str]) -> Result<String> {
        let output = verb(self.node, arguments)?;
        if !output.status.success() {
            bail!(
                "trammel-agent {}: {}",
                arguments.join(" "),
                command::complaint(&output)
            );
        }
        Ok(output.stdout)
    }

    /// Runs a verb with `-o json` and parses what it printed.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.verb(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text:?}"))
    }

    /// Whether `verify` finds the kernel as it should be. It says so by its exit
    /// status.
    pub fn verify(&self) -> Result<Output> {
        verb(self.node, &["verify"])
    }

    /// GETs a path from [`LISTEN`]: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let (status, _, body) = http_get(&self.node.netns, LISTEN, path)?;
        Ok((status, body))
    }

    /// Stops it where it is, until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Ends the agent without a chance to clean up.
    pub fn kill(mut self) -> Result<()> {
        self.process.stop(Signal::SIGKILL, READY).map(|_| ())
    }

    /// Asks the agent to end, which it has to do with success.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(Signal::SIGTERM, READY)?;
        if !status.success() {
            bail!("after SIGTERM: {status}\n{}", self.log_text());
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The file that the agent logs to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What the agent has logged.
    pub fn log_text(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        format!("log of the agent:\n{text}")
    }
}

/// Runs a verb of the agent's command line, whether an agent runs or not.
pub fn verb(node: &Node, arguments: &[&str]) -> Result<Output> {
    let mut command = node.netns.command(programs::agent());
    command.args(arguments).arg("--socket").arg(node.socket());
    command::output(&mut command, b"", LIMIT)
}

/// The command that runs the agent for a node.
pub fn run_command(node: &Node) -> std::process::Command {
    let mut command = node.netns.command(programs::agent());
    command
        .args(["run", "--node-name", &node.name, "--listen", LISTEN])
        .arg("--manifests")
        .arg(node.manifests.dir())
        .arg("--socket")
        .arg(node.socket());
    command
}

/// GETs a path of a server by HTTP/1.0 from a namespace: status, head and body.
pub fn http_get(netns: &NetNs, server: &str, path: &str) -> Result<(u16, String, String)> {
    let server = server
        .parse()
        .with_context(|| format!("server {server:?}"))?;
    let path = path.to_owned();
    netns.enter(move || get(server, &path))?
}

/// The server closes after its answer.
fn get(server: SocketAddr, path: &str) -> Result<(u16, String, String)> {
    let mut stream = TcpStream::connect_timeout(&server, READY)?;
    stream.set_read_timeout(Some(READY))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of headers")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((
        status.with_context(|| format!("no status in {head:?}"))?,
        head.to_owned(),
        body.to_owned(),
    ))
}
