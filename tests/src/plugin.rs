//! The plugin run by itself, as a runtime would: environment, standard input,
//! one JSON document back.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{self, LIMIT};
use crate::netns::NetNs;
use crate::node::Node;
use crate::wait::{SOON, eventually};
use crate::{pod, programs};

/// The error code of the CNI specification for that.
const TRY_LATER: u64 = 11;

/// One call of the plugin, in a node's namespace.
#[derive(Clone, Debug)]
pub struct Call<'n> {
    node: &'n Node,
    program: PathBuf,
    environment: BTreeMap<&'static str, String>,
    input: Vec<u8>,
    is_patient: bool,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Reply {
    /// Exit code; 128 and the signal's number if one ended it.
    pub code: i32,
    /// Standard output: one JSON document or nothing.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long the process lived.
    pub took: Duration,
}

impl<'n> Call<'n> {
    /// A call of `verb` with nothing but the node's configuration.
    pub fn bare(node: &'n Node, verb: &str) -> Self {
        let conf = node.conf(Value::Object(serde_json::Map::new()));
        Self {
            node,
            program: programs::plugin(),
            environment: BTreeMap::from([("CNI_COMMAND", verb.to_owned())]),
            input: conf.to_string().into_bytes(),
            is_patient: false,
        }
    }

    /// A complete call of `verb` for `eth0` of container `id` in `netns`.
    pub fn new(node: &'n Node, verb: &str, id: &str, netns: &NetNs) -> Self {
        Self::bare(node, verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns.path().display().to_string())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", programs::bin_dir().display().to_string())
            .env(
                "CNI_ARGS",
                pod::cni_args(&format!("default/{id}")).expect("has a slash"),
            )
    }

    /// Runs another program than the plugin of [`programs::plugin`].
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    /// Runs it again where it is told to try later (code 11), as a runtime does: many requests at
    /// once may take longer on a busy machine than one of them waits for its turn.
    pub fn patient(mut self) -> Self {
        self.is_patient = true;
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.environment.insert(key, value.into());
        self
    }

    /// Removes an environment variable.
    pub fn without(mut self, key: &'static str) -> Self {
        self.environment.remove(key);
        self
    }

    /// Sets the configuration.
    pub fn conf(self, conf: &Value) -> Self {
        self.input(conf.to_string())
    }

    /// Lays `keys` over the node's configuration, see [`Node::conf`].
    pub fn keys(self, keys: Value) -> Self {
        let conf = self.node.conf(keys);
        self.conf(&conf)
    }

    /// Sets what is on standard input.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// The command, for those who run it under something else.
    pub fn command(&self) -> std::process::Command {
        let mut command = self.node.netns.command(&self.program);
        for key in [
            "CNI_COMMAND",
            "CNI_CONTAINERID",
            "CNI_NETNS",
            "CNI_IFNAME",
            "CNI_PATH",
            "CNI_ARGS",
        ] {
            command.env_remove(key);
        }
        command.envs(&self.environment);
        command
    }

    /// What will be on standard input.
    pub fn input_bytes(&self) -> &[u8] {
        &self.input
    }

    /// Starts it, for those who end it before it ends by itself. Nobody reads what it
    /// prints.
    pub fn spawn(&self) -> Result<Child> {
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run the plugin")?;
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(&self.input)
            .context("cannot write its input")?;
        Ok(child)
    }

    /// Runs it.
    pub fn run(&self) -> Result<Reply> {
        let attempt = || {
            let reply = self.run_once()?;
            let is_later = || {
                let error: Value = serde_json::from_str(&reply.stdout).unwrap_or_default();
                error["code"] == TRY_LATER
            };
            ensure!(!self.is_patient || !is_later(), "{reply:?}");
            Ok(reply)
        };
        match self.is_patient {
            true => Ok(eventually(SOON, attempt)?.0),
            false => attempt(),
        }
    }

    fn run_once(&self) -> Result<Reply> {
        let output = command::output(&mut self.command(), &self.input, LIMIT)?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        Ok(Reply {
            code: output.status.code().unwrap_or(128 + signal.unwrap_or(0)),
            stdout: output.stdout,
            stderr: output.stderr,
            took: output.took,
        })
    }

    /// Runs it; it has to succeed, and what it printed has to be a result.
    pub fn result(&self) -> Result<Value> {
        let reply = self.run()?;
        assert_eq!(reply.code, 0, "{reply:?}");
        assert_eq!(reply.stderr, "", "quiet on success");
        serde_json::from_str(&reply.stdout).with_context(|| format!("{reply:?}"))
    }

    /// Runs it; it has to succeed without a word.
    pub fn silent(&self) -> Result<()> {
        let reply = self.run()?;
        assert_eq!(
            (reply.code, reply.stdout.as_str(), reply.stderr.as_str()),
            (0, "", "")
        );
        Ok(())
    }

    /// Runs it; it has to fail in the form of the CNI specification. Returns the
    /// error's code and its message with the details.
    pub fn error(&self) -> Result<(u64, String)> {
        let reply = self.run()?;
        assert_eq!(reply.code, 1, "{reply:?}");
        let error: Value =
            serde_json::from_str(&reply.stdout).with_context(|| format!("{reply:?}"))?;
        assert!(
            error["cniVersion"].is_string(),
            "an error names a version: {error}"
        );
        let code = error["code"]
            .as_u64()
            .with_context(|| format!("no code in {error}"))?;
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("msg").is_empty(), "an error says something: {error}");
        Ok((code, format!("{} {}", text("msg"), text("details"))))
    }
}
