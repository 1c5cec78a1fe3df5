//! What the container runtime will use: the first network configuration of its folder, and
//! the plugins that it names.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cni_bin::spec::args::ExtraArgs;
use cni_bin::spec::port::Port;
use cni_bin::spec::{Document, Policy};
use dataplane::attachment::Mode;
use dataplane::bridge_netfilter;
use serde_json::Value;

use super::{Families, Finding};

/// The plugin's name in configurations.
const PLUGIN: &str = "trammel";
/// What containerd and CRI-O read.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What was found.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) findings: Vec<Finding>,
    /// The families that the configuration has ranges of.
    pub(super) families: Families,
}

/// A configuration file.
struct File {
    name: String,
    /// The network and its plugins, or why there are none.
    network: Result<Network, String>,
}

struct Network {
    name: Value,
    version: Value,
    plugins: Vec<Value>,
}

/// Looks at the folders of configurations and of plugins. `agent_runs`: the agent that
/// writes a configuration has had its time to do so.
pub(super) fn check(conf_dir: &Path, bin_dir: &Path, socket: &Path, agent_runs: bool) -> Checked {
    let mut checked = Checked::default();
    checked.findings.push(program(bin_dir));
    let files = match files(conf_dir) {
        Ok(files) => files,
        Err(error) => {
            checked.findings.push(Finding::error(
                "network-conf",
                format!("cannot read {}: {error}", conf_dir.display()),
                "the container runtime takes the pod network from there",
                "make it readable, or name the runtime's folder with --cni-conf-dir",
            ));
            return checked;
        }
    };
    checked.network(&files, conf_dir, agent_runs);
    let ours = files.iter().filter_map(|file| {
        let network = file.network.as_ref().ok()?;
        let plugin = network
            .plugins
            .iter()
            .find(|plugin| plugin["type"] == PLUGIN)?;
        Some((file, network, plugin))
    });
    if let Some((file, network, plugin)) = ours.into_iter().next() {
        checked.plugins(file, network, bin_dir);
        checked.settings(file, network, plugin, socket);
    }
    checked
}

impl Checked {
    /// Which network pods get.
    fn network(&mut self, files: &[File], folder: &Path, agent_runs: bool) {
        let is_ours = |file: &File| {
            let network = file.network.as_ref();
            network.is_ok_and(|network| network.plugins.iter().any(|p| p["type"] == PLUGIN))
        };
        for file in files {
            if let Err(reason) = &file.network {
                self.findings.push(Finding::error(
                    "network-conf-unreadable",
                    format!("{}: {reason}", folder.join(&file.name).display()),
                    "a runtime that comes to it stops there, and the node is not ready",
                    "correct or remove the file",
                ));
            }
        }
        let first = files.iter().find(|file| file.network.is_ok());
        let ours = files.iter().find(|file| is_ours(file));
        self.findings.push(match (first, ours) {
            (None, _) if agent_runs => Finding::error(
                "network-conf",
                format!("no network configuration in {}", folder.display()),
                "the runtime reports the network as not ready, and no pod starts",
                "give the agent --cni-conf-dir, which writes one, or put one there",
            ),
            (None, _) => Finding::warning(
                "network-conf",
                format!("no network configuration in {}", folder.display()),
                "the runtime reports the network as not ready until there is one",
                "the agent writes one with --cni-conf-dir as soon as it is ready",
            ),
            (Some(first), Some(ours)) if first.name == ours.name => Finding::ok(
                "network-conf",
                format!("pods get the network of {}", folder.join(&first.name).display()),
            ),
            (Some(first), Some(ours)) => Finding::error(
                "network-conf-shadowed",
                format!("{} sorts before {}", first.name, ours.name),
                "the runtime takes the first: new pods get another network and no policies",
                format!("remove {}", folder.join(&first.name).display()),
            ),
            (Some(first), None) => Finding::warning(
                "network-conf-foreign",
                format!("{} is not of {PLUGIN}", folder.join(&first.name).display()),
                "the runtime takes the first file: pods get that network, and policies do not act on them",
                "remove it when the agent is to take over, see the README on how to come from another network",
            ),
        });
    }

    /// Whether every program that the list names is there.
    fn plugins(&mut self, file: &File, network: &Network, bin_dir: &Path) {
        let ipam = network.plugins.iter().map(|plugin| &plugin["ipam"]["type"]);
        let named = network.plugins.iter().map(|plugin| &plugin["type"]);
        let names = named.chain(ipam).filter_map(Value::as_str);
        // That one is in process.
        for name in names.filter(|name| ![PLUGIN, "trammel-ipam"].contains(name)) {
            if !is_program(&bin_dir.join(name)) {
                self.findings.push(Finding::error(
                    "plugin-missing",
                    format!(
                        "{} names {name}, and {} has no such program",
                        file.name,
                        bin_dir.display()
                    ),
                    "every ADD fails",
                    format!("install it, or take it out of {}", file.name),
                ));
            }
        }
    }

    /// Whether the plugin would take its section, and what is in it.
    fn settings(&mut self, file: &File, network: &Network, plugin: &Value, socket: &Path) {
        let mut section = plugin.clone();
        section["name"] = network.name.clone();
        section["cniVersion"] = network.version.clone();
        let parsed = Document::from_value(section).and_then(|document| {
            let config = document.config(&ExtraArgs::default())?;
            Ok((document, config))
        });
        let (document, config) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                self.findings.push(Finding::error(
                    "network-conf-invalid",
                    format!("{}: {}", file.name, error.message),
                    "every ADD fails with this",
                    "correct the file",
                ));
                return;
            }
        };
        for set in config.pool.iter().flat_map(|pool| &pool.ranges) {
            self.families.add(set.is_ipv4());
        }
        if document.agent_socket != socket {
            self.findings.push(Finding::error(
                "agent-socket",
                format!(
                    "{}: agentSocket is {}, and the agent's is {}",
                    file.name,
                    document.agent_socket.display(),
                    socket.display()
                ),
                "the plugin does not find the agent, and pods stay closed or without policies",
                "make them the same (agent: --socket)",
            ));
        }
        if document.policy == Policy::Optional {
            self.findings.push(Finding::warning(
                "policy-optional",
                format!("{}: policy is \"optional\"", file.name),
                "a pod that starts while the agent is away is open until the agent is back",
                "set it to \"required\"",
            ));
        }
        if let Port { mode: Mode::L2, .. } = config.port
            && !bridge_netfilter::is_available()
        {
            self.findings.push(Finding::error(
                "bridge-netfilter",
                format!(
                    "{}: mode l2 needs br_netfilter, which the kernel lacks",
                    file.name
                ),
                "pods on one bridge would pass policies and Services by",
                "load the module br_netfilter, or use mode routed-ports",
            ));
        }
    }
}

/// The files that a runtime looks at, in its order.
fn files(folder: &Path) -> std::io::Result<Vec<File>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            paths.push(path);
        }
    }
    paths.sort();
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let files = paths.iter().map(|path| File {
        name: name(path),
        network: network(path),
    });
    Ok(files.collect())
}

fn network(path: &Path) -> Result<Network, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let plugins = match value["plugins"].take() {
        Value::Array(plugins) if !plugins.is_empty() => plugins,
        Value::Null if value["type"].is_string() => vec![value.clone()],
        _ => return Err("it names no plugin: neither \"plugins\" nor \"type\"".to_owned()),
    };
    Ok(Network {
        name: value["name"].take(),
        version: value["cniVersion"].take(),
        plugins,
    })
}

/// The plugin's program: there, executable, and of this version.
fn program(bin_dir: &Path) -> Finding {
    let path = bin_dir.join(PLUGIN);
    let action = format!("`trammel-agent install --to {}`", bin_dir.display());
    if !is_program(&path) {
        return Finding::error(
            "plugin-missing",
            format!("{} is no program", path.display()),
            "the runtime cannot start any pod",
            format!("{action}, or name the runtime's folder with --cni-bin-dir"),
        );
    }
    // Without variables it says on standard error who it is.
    let output = Command::new(&path)
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => {
            return Finding::error(
                "plugin-missing",
                format!("{} cannot be run: {error}", path.display()),
                "the runtime cannot start any pod",
                action,
            );
        }
    };
    let said = text
        .strip_prefix(PLUGIN)
        .and_then(|rest| rest.trim().split(':').next());
    let own = env!("CARGO_PKG_VERSION");
    match said {
        Some(version) if version == own => {
            Finding::ok("plugin", format!("{} {own}", path.display()))
        }
        Some(version) => Finding::warning(
            "plugin-version",
            format!(
                "{} is version {version}, and this agent {own}",
                path.display()
            ),
            "they are tested together",
            action,
        ),
        None => Finding::error(
            "plugin-foreign",
            format!("{} does not say that it is {PLUGIN}", path.display()),
            "another program has its name, or it cannot run here",
            action,
        ),
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests;
