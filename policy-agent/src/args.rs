//! The command line.

pub mod network;
pub mod services;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dataplane::attachment::DEFAULT_SOCKET;

use crate::config::DenyWith;
use crate::config::duration::duration;
use crate::verdict_log::Target;

use network::NetworkFlags;
use services::ServiceFlags;

/// NetworkPolicy and Services of a node, on one nftables table.
#[derive(Parser, Debug)]
#[command(name = "trammel-agent", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent in the network namespace that it is started in.
    Run(Box<Run>),
    /// Wait until everything that is visible now is in the kernel.
    Wait {
        /// How long to wait: 500ms, 10s, 2m.
        #[arg(long, default_value = "10s", value_parser = duration)]
        timeout: Duration,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it as help")]
        client: Client,
    },
    /// What the agent knows, what it has written, and what is wrong.
    Status(Client),
    /// The Services with their frontends and endpoints.
    Services(Client),
    /// The policies with the pods of this node that they isolate.
    Policies(Client),
    /// Compare the kernel with what it should hold; exit status 1 where they differ.
    Verify(Client),
    /// Whether a connection comes about, and why: policies, Service, kernel. Exit status 0
    /// where it does, 1 where it does not, 2 where that cannot be said.
    Explain {
        /// Who connects: namespace/name of a pod, an address, or `node`.
        from: String,
        /// To whom: the same, or svc/namespace/name; with :PORT or :PORT/PROTOCOL
        /// (a number, a port name, or icmp).
        to: String,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it as help")]
        client: Client,
    },
    /// Who reaches whom in a namespace, on which ports.
    Matrix {
        /// The namespace.
        namespace: String,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it as help")]
        client: Client,
    },
    /// Policies that are valid and probably not what was meant; exit status 1 where there
    /// is an error among them.
    Lint {
        /// Policies of this namespace only.
        #[arg(long, short)]
        namespace: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it as help")]
        client: Client,
    },
    /// What manifests would change: who reaches whom, and which open connections are cut.
    Plan {
        /// YAML or JSON file with Namespaces, Pods and NetworkPolicies.
        file: PathBuf,
        /// The objects are to be deleted.
        #[arg(long)]
        delete: bool,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it as help")]
        client: Client,
    },
    /// The last packets that policy has denied, of a running agent.
    Log {
        /// Those to come, too.
        #[arg(long, short)]
        follow: bool,
        /// Of this pod only, at either end.
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_key)]
        pod: Option<String>,
        /// Of pods of this namespace only, at either end.
        #[arg(long, short)]
        namespace: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it as help")]
        client: Client,
    },
    /// Whether this node can carry the agent, and whether the one that runs is well: kernel,
    /// sysctls, rules of others, network configurations, API server. Exit status 1 where
    /// there is an error among the findings.
    Check(Box<Check>),
    /// Put the plugins where the container runtime looks for them, and set the sysctls that
    /// the agent needs: the steps before it in a container.
    Install(Install),
    /// Remove exactly our own tables, routes and tunnels, and where asked what was installed.
    /// The agent must not be running.
    Cleanup(Cleanup),
}

/// Settings of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Watch the API server that this kubeconfig file names.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Read objects from the YAML and JSON files of this folder, without a cluster. With
    /// neither this nor --kubeconfig: the API server of the cluster that the agent runs in.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// YAML file with further settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Socket for the CNI plugin and the other verbs; attachment records lie beside it.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How often to free what dead runtimes have left: attachments whose network namespace
    /// is gone or whose ADD was killed.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = positive_duration)]
    pub reap_interval: Duration,
    /// Address for /healthz, /livez, /readyz, /metrics and /proxyMode; none by default.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where each packet that policy denies is told, as a JSON line: a path, stdout, stderr
    /// or off. Rates are limited.
    #[arg(long, value_name = "PATH", default_value = "stdout", value_parser = Target::from_str)]
    pub verdict_log: Target,
    /// How what policy denies is answered: drop, or reject (a TCP reset or ICMP); by default
    /// as the configuration file says, else drop.
    #[arg(long, value_enum, value_name = "HOW")]
    pub deny_with: Option<DenyWith>,
    /// Where the objects of the API server are written down, for a start without it; off: not
    /// at all.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/trammel",
        env = "TRAMMEL_STATE_DIR",
        value_parser = StateDir::from_str
    )]
    pub state_dir: StateDir,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it as help")]
    pub services: ServiceFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it as help")]
    pub network: NetworkFlags,
}

/// Settings of `check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Ask the API server that this kubeconfig file names. Without it: that of the cluster,
    /// where this runs in a pod, and else none.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node's Node object, to look at it.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The agent's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the container runtime looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where the container runtime looks for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Write a file with the sysctls that the agent needs into this folder, such as
    /// /run/sysctl.d or /etc/sysctl.d.
    #[arg(long, value_name = "DIR")]
    pub sysctl_dir: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it as help")]
    pub client: Client,
}

/// Settings of `install`.
#[derive(Args, Debug)]
pub struct Install {
    /// Copy the plugins into this folder, such as /opt/cni/bin.
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Where the plugins are; by default beside this program.
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Set the sysctls.
    #[arg(long)]
    pub sysctls: bool,
    /// Write them into this folder, such as /run/sysctl.d, so that they stay.
    #[arg(long, value_name = "DIR")]
    pub sysctl_dir: Option<PathBuf>,
    /// Only those of this address family of pods; of both by default.
    #[arg(long, value_enum)]
    pub family: Vec<Family>,
    /// The agent's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Settings of `cleanup`.
#[derive(Args, Debug)]
pub struct Cleanup {
    /// Remove the tables that kube-proxy has left in nftables mode, and leave ours and a
    /// running agent alone.
    #[arg(long, conflicts_with_all = [
        "cni_conf_dir", "cni_bin_dir", "sysctl_dir", "data_dir", "state_dir", "wait", "force",
    ])]
    pub kube_proxy: bool,
    /// Remove the network configuration from this folder. This and the plugins stay while pods
    /// of this node are in the network: without them the runtime cannot end those.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Remove the plugins from this folder, and the bridge.
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Remove the file of sysctls from this folder.
    #[arg(long, value_name = "DIR")]
    pub sysctl_dir: Option<PathBuf>,
    /// Remove what IPAM has written of the network in this folder, that of `ipam.dataDir`.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Remove the objects that were written down in this folder, that of `run`.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where pods are left, wait until there are none, and say which.
    #[arg(long, conflicts_with = "force")]
    pub wait: bool,
    /// Where pods are left, go on: the runtime cannot end them before it has another network.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it as help")]
    pub client: Client,
}

/// Address families of pods.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// `--state-dir`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateDir {
    /// Nothing is written down.
    Off,
    /// This folder.
    Folder(PathBuf),
}

impl FromStr for StateDir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("give a folder or off".to_owned()),
            "off" => Ok(Self::Off),
            folder => Ok(Self::Folder(folder.into())),
        }
    }
}

/// How to reach the agent, and how to print.
#[derive(Args, Debug)]
pub struct Client {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Forms of output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

fn pod_key(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("write NAMESPACE/NAME".to_owned()),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("0 is no interval: write 500ms, 10s or 2m".to_owned()),
        interval => Ok(interval),
    }
}

#[cfg(test)]
mod tests;
