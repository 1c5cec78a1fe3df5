//! The network configuration.
//!
//! Read in two steps. A [`Document`] is what every verb needs and what DEL and GC
//! must get by with: they undo what an earlier configuration did, whatever the
//! present one says. A [`Config`] is all of it, checked: nothing that it names is
//! silently left out.

use std::path::PathBuf;

use dataplane::attachment::{Bandwidth, DEFAULT_SOCKET, MacAddr, PortMapping};
use ipam::store::DEFAULT_DATA_DIR;
use serde_json::{Map, Value};

use super::args::{ExtraArgs, bad_ifname, is_identifier};
use super::error::{Code, Error};
use super::ipam::{Ipam, Pool};
use super::json::{Object, get, parse};
use super::options;
use super::port::Port;
use super::result::Dns;
use super::version::Version;
use super::{bandwidth, port_mappings};

/// The bridge, unless told otherwise.
pub const DEFAULT_BRIDGE: &str = "cbr0";

/// Whether pods may start without an agent that enforces policies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// No.
    Required,
    /// Yes; an agent that is there is asked all the same.
    Optional,
    /// Not said: required once an agent was installed, that is, where its socket
    /// exists.
    Automatic,
}

/// A configuration as far as any verb needs it.
#[derive(Clone, Debug)]
pub struct Document {
    root: Map<String, Value>,
    /// `cniVersion`.
    pub version: Version,
    /// `name`.
    pub network: String,
    /// `bridge`.
    pub bridge: String,
    /// `ipam.type`.
    pub ipam: Ipam,
    /// `ipam.dataDir`.
    pub data_dir: PathBuf,
    /// `agentSocket`.
    pub agent_socket: PathBuf,
    /// `policy`.
    pub policy: Policy,
}

/// All that ADD needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// How the pod's link is made.
    pub port: Port,
    /// `mtu`; `None`: that of the route to the outside.
    pub mtu: Option<u32>,
    /// `forceAddress`: replace a conflicting address of the bridge.
    pub force_address: bool,
    /// `isDefaultGateway`: whether each family gets a default route that IPAM
    /// does not give it. Not said: the families for which IPAM gives no routes.
    pub default_route: Option<bool>,
    /// The pod's Ethernet address, if it must be this one.
    pub mac: Option<MacAddr>,
    /// What the allocator in this process works with, where it is [`Ipam::InProcess`].
    pub pool: Option<Pool>,
    /// Name resolution for the result.
    pub dns: Dns,
    /// `statusExhausted`: whether STATUS reports that addresses have run out.
    pub status_exhausted: bool,
    /// Ports of the host that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// `ipMasq`: whether the pod is masqueraded outside of its networks.
    pub ip_masq: bool,
    /// The rates that the pod is held to.
    pub bandwidth: Option<Bandwidth>,
}

/// One attachment that GC must keep.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ValidAttachment {
    /// Its container.
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

impl Document {
    /// Parses standard input.
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
        Self::from_value(parse(input)?)
    }

    /// Reads what any verb needs.
    pub fn from_value(value: Value) -> Result<Self, Error> {
        let root = match value {
            Value::Object(root) => root,
            // Go decodes `null` into an empty configuration.
            Value::Null => return Err(Error::config("name: the network has none")),
            other => {
                let message = format!("standard input must be a JSON object, found {other:.40}");
                return Err(Error::new(Code::Decode, message));
            }
        };
        let object = Object::root(&root);
        let version = Version::of(&object)?;
        let network = object.text("name")?.unwrap_or_default().to_owned();
        if !is_identifier(&network) {
            return Err(Error::config(format!(
                "name: {network:?} must begin with a letter or digit and hold nothing but \
                 letters, digits, '_', '.' and '-'"
            )));
        }
        let bridge = object.text("bridge")?.unwrap_or(DEFAULT_BRIDGE).to_owned();
        if let Some(reason) = bad_ifname(&bridge) {
            return Err(Error::config(format!("bridge: {bridge:?} {reason}")));
        }
        let ipam = Ipam::of(&object)?;
        // A plugin's own section is the plugin's to judge.
        let section = match ipam {
            Ipam::InProcess => object.object("ipam")?,
            Ipam::Nobody | Ipam::Plugin(_) => None,
        };
        let data_dir = section.map(|ipam| ipam.text("dataDir"));
        let data_dir = data_dir.transpose()?.flatten();
        let data_dir = absolute("ipam.dataDir", data_dir.unwrap_or(DEFAULT_DATA_DIR))?;
        let socket = object.text("agentSocket")?.unwrap_or(DEFAULT_SOCKET);
        Ok(Self {
            version,
            network,
            bridge,
            ipam,
            data_dir,
            agent_socket: absolute("agentSocket", socket)?,
            policy: policy(&object)?,
            root,
        })
    }

    /// Reads and checks the rest.
    pub fn config(&self, args: &ExtraArgs) -> Result<Config, Error> {
        let root = Object::root(&self.root);
        let port = Port::of(&root, &self.ipam)?;
        if let Some(name) = port.vlan_gateway(&self.bridge)
            && let Some(reason) = bad_ifname(&name)
        {
            return Err(Error::config(format!(
                "bridge: {name:?}, the gateway of the VLAN, {reason}: name the bridge shorter"
            )));
        }
        let pool = match self.ipam {
            Ipam::InProcess => Some(Pool::of(&root, args)?),
            Ipam::Nobody | Ipam::Plugin(_) => None,
        };
        let runtime = root.object("runtimeConfig")?;
        let cni_args = options::cni_args(&root)?;
        // Without the gateway's address there is nothing to route to by ourselves.
        let default_route = root.boolean("isDefaultGateway")?;
        Ok(Config {
            mtu: mtu(&root, pool.as_ref().is_some_and(Pool::has_ipv6))?,
            force_address: root.boolean("forceAddress")?.unwrap_or(false),
            default_route: default_route.or((!port.is_gateway).then_some(false)),
            mac: options::mac(runtime.as_ref(), cni_args.as_ref(), args)?,
            dns: options::dns(&root, runtime.as_ref())?,
            status_exhausted: root.boolean("statusExhausted")?.unwrap_or(false),
            port,
            pool,
            port_mappings: port_mappings::port_mappings(&root, runtime.as_ref())?,
            ip_masq: options::ip_masq(&root)?,
            bandwidth: bandwidth::bandwidth(&root, runtime.as_ref())?,
        })
    }

    /// What the allocator in this process works with, whatever the rest says.
    pub fn pool(&self, args: &ExtraArgs) -> Result<Pool, Error> {
        Pool::of(&Object::root(&self.root), args)
    }

    /// `ipam.dataDir`, whoever the section is for.
    pub fn ipam_data_dir(&self) -> Result<PathBuf, Error> {
        let section = Object::root(&self.root).object("ipam")?;
        let stated = section.map(|ipam| ipam.text("dataDir")).transpose()?;
        absolute("ipam.dataDir", stated.flatten().unwrap_or(DEFAULT_DATA_DIR))
    }

    /// The whole configuration, for a plugin that a part of the work is delegated to.
    pub fn root(&self) -> &Map<String, Value> {
        &self.root
    }

    /// `prevResult`, whatever it is.
    pub fn prev_result(&self) -> Option<&Value> {
        get(&self.root, "prevResult")
    }

    /// The attachments that GC must keep. The current key wins over the one of
    /// libcni 1.1; neither is an error, because an absent list is not an empty one.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Error> {
        let root = Object::root(&self.root);
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some(key) = keys.into_iter().find(|key| root.value(key).is_some()) else {
            return Err(Error::config(format!(
                "{}: missing; GC without it would remove every attachment",
                keys[0]
            )));
        };
        let entry = |(n, value)| {
            let object = Object::at(format!("{key}[{n}]"), value)?;
            let required = |name: &str| {
                let missing = || Error::config(format!("{}: missing", object.path(name)));
                object.text(name)?.map(str::to_owned).ok_or_else(missing)
            };
            Ok(ValidAttachment {
                container_id: required("containerID")?,
                ifname: required("ifname")?,
            })
        };
        root.array(key)?.iter().enumerate().map(entry).collect()
    }
}

fn absolute(key: &str, path: &str) -> Result<PathBuf, Error> {
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(Error::config(format!(
            "{key}: {path:?} is not an absolute path"
        )))
    }
}

fn policy(root: &Object<'_>) -> Result<Policy, Error> {
    let stated = match root.text("policy")? {
        None => Policy::Automatic,
        Some("required") => Policy::Required,
        Some("optional") => Policy::Optional,
        Some(other) => {
            return Err(Error::config(format!(
                "policy: {other:?} is neither \"required\" nor \"optional\""
            )));
        }
    };
    // Spoofed frames are dropped by the agent's rules, for every port and always.
    // Who asks for it explicitly must not get a pod without.
    match (root.boolean("macspoofchk")?, stated) {
        (Some(true), Policy::Optional) => Err(Error::config(
            "macspoofchk: true needs the agent, but policy is \"optional\": drop one of them",
        )),
        (Some(true), _) => Ok(Policy::Required),
        _ => Ok(stated),
    }
}

/// `mtu`: 0 is "not said", as in the reference plugin. The bounds are those of
/// the protocols (RFC 791, RFC 8200 section 5) and of a veth.
fn mtu(root: &Object<'_>, ipv6: bool) -> Result<Option<u32>, Error> {
    let smallest = if ipv6 { 1280 } else { 68 };
    match root.number("mtu")? {
        None | Some(0) => Ok(None),
        Some(mtu) if (smallest..=65535).contains(&mtu) => Ok(Some(mtu)),
        Some(mtu) => Err(Error::config(format!(
            "mtu: {mtu} is not between {smallest} and 65535"
        ))),
    }
}

#[cfg(test)]
mod tests;
