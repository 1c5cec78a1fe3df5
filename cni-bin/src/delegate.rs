//! The IPAM plugin that a part of the work is delegated to (CNI specification, section
//! 4): found in `CNI_PATH`, run with our environment and the whole configuration. What
//! it writes to standard error goes where ours goes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dataplane::attachment::AttachmentKey;
use ipnet::IpNet;
use serde_json::Value;

use crate::spec::json::{Object, get};
use crate::spec::options;
use crate::spec::result::{Dns, Route};
use crate::spec::{Code, Document, Environment, Error, Verb};

/// What the reference library reports where a plugin fails without saying why.
const UNKNOWN: u32 = 999;

/// The plugin.
#[derive(Clone, Debug)]
pub struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    document: &'a Document,
    environment: &'a Environment,
}

/// What it answered to ADD.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// Addresses with the lengths of their subnets' prefixes, and their gateways.
    pub addresses: Vec<(IpNet, Option<std::net::IpAddr>)>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

impl<'a> Delegate<'a> {
    /// The plugin of this name.
    ///
    /// # Errors
    /// Where `CNI_PATH` does not lead to it.
    pub fn find(
        name: &'a str,
        document: &'a Document,
        environment: &'a Environment,
    ) -> Result<Self, Error> {
        Ok(Self {
            name,
            program: find(name, environment)?,
            document,
            environment,
        })
    }

    /// ADD, for the attachment that our own environment names.
    ///
    /// # Errors
    /// The plugin's own. Whatever it did until then is its to undo: run
    /// [`del`](Self::del).
    pub fn add(&self) -> Result<Answer, Error> {
        let output = self.run(Verb::Add, None)?;
        let value: Value =
            serde_json::from_slice(&output).map_err(|error| self.nonsense(&error.to_string()))?;
        Answer::of(&value).map_err(|error| self.nonsense(&error.message))
    }

    /// DEL for an attachment, which need not be the one that our environment names.
    pub fn del(&self, key: &AttachmentKey, netns: Option<&str>) -> Result<(), Error> {
        self.run(Verb::Del, Some((key, netns))).map(drop)
    }

    /// CHECK, GC or STATUS, as we were asked ourselves.
    pub fn forward(&self, verb: Verb) -> Result<(), Error> {
        self.run(verb, None).map(drop)
    }

    fn run(
        &self,
        verb: Verb,
        attachment: Option<(&AttachmentKey, Option<&str>)>,
    ) -> Result<Vec<u8>, Error> {
        let program = &self.program;
        let io = |action: &str, error: std::io::Error| {
            let program = program.display();
            Error::new(
                Code::Io,
                format!("ipam.type: cannot {action} {program}: {error}"),
            )
        };
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb.to_string())
            .env(
                "CNI_PATH",
                self.environment.get("CNI_PATH").unwrap_or_default(),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some((key, netns)) = attachment {
            command
                .env("CNI_CONTAINERID", &key.container_id)
                .env("CNI_IFNAME", &key.ifname)
                .env("CNI_NETNS", netns.unwrap_or_default());
        }
        let mut child = command.spawn().map_err(|error| io("run", error))?;
        let conf = Value::Object(self.document.root().clone()).to_string();
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // Beside the reading: neither side must wait for a full pipe.
            scope.spawn(move || {
                // One that does not read its input has its reasons, and its exit code.
                stdin.map(|mut stdin| stdin.write_all(conf.as_bytes()))
            });
            child.wait_with_output()
        });
        let output = output.map_err(|error| io("wait for", error))?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(self.failure(&output.stdout, &output.status.to_string()))
        }
    }

    /// The plugin's own error, with its code.
    fn failure(&self, output: &[u8], status: &str) -> Error {
        let name = self.name;
        let said: Option<Value> = serde_json::from_slice(output).ok();
        let said = said.as_ref().and_then(Value::as_object);
        let text = |key: &str| {
            let text = said.and_then(|said| get(said, key)).and_then(Value::as_str);
            text.filter(|text| !text.is_empty())
        };
        let code = said
            .and_then(|said| get(said, "code"))
            .and_then(Value::as_u64);
        let code = code.and_then(|code| u32::try_from(code).ok());
        let code = Code::Plugin(code.filter(|code| *code != 0).unwrap_or(UNKNOWN));
        let error = match text("msg") {
            Some(message) => Error::new(code, format!("ipam {name}: {message}")),
            None => Error::new(code, format!("ipam {name} failed without a word: {status}")),
        };
        error.with_details(text("details").map(str::to_owned))
    }

    fn nonsense(&self, reason: &str) -> Error {
        let message = format!("ipam {} answers nonsense: {reason}", self.name);
        Error::new(Code::Plugin(UNKNOWN), message)
    }
}

impl Answer {
    /// Reads a result in the layout of any version from 0.3.0 on.
    pub fn of(value: &Value) -> Result<Self, Error> {
        let result = Object::at("result".to_owned(), value)?;
        let mut answer = Self::default();
        for (n, value) in result.array("ips")?.iter().enumerate() {
            let ip = Object::at(format!("result.ips[{n}]"), value)?;
            let text = ip.text("address")?.unwrap_or_default();
            let net: IpNet = text.parse().map_err(|_| {
                Error::config(format!(
                    "{}: {text:?} is not an address with its prefix length",
                    ip.path("address")
                ))
            })?;
            let gateway = ip.address("gateway")?;
            if gateway.is_some_and(|gateway| gateway.is_ipv4() != net.addr().is_ipv4()) {
                let message = format!("{}: not of the family of {net}", ip.path("gateway"));
                return Err(Error::config(message));
            }
            answer.addresses.push((net, gateway));
        }
        if answer.addresses.is_empty() {
            return Err(Error::config("result.ips: there is no address"));
        }
        for (n, value) in result.array("routes")?.iter().enumerate() {
            let route = Object::at(format!("result.routes[{n}]"), value)?;
            answer.routes.push(options::route(&route)?);
        }
        if let Some(dns) = result.object("dns")? {
            answer.dns = options::dns_of_result(&dns)?;
        }
        Ok(answer)
    }
}

/// The executable file in the first folder of `CNI_PATH` that has one.
fn find(name: &str, environment: &Environment) -> Result<PathBuf, Error> {
    let Some(path) = environment.get("CNI_PATH") else {
        let message = format!("CNI_PATH: missing; ipam.type {name:?} is looked for there");
        return Err(Error::new(Code::InvalidEnvironment, message));
    };
    let is_executable = |file: &PathBuf| {
        fs::metadata(file)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let folders = path.split(':').filter(|folder| !folder.is_empty());
    let mut files = folders.map(|folder| Path::new(folder).join(name));
    files.find(is_executable).ok_or_else(|| {
        Error::config(format!(
            "ipam.type: there is no plugin {name:?} in CNI_PATH ({path}): install it there"
        ))
    })
}

#[cfg(test)]
mod tests;
