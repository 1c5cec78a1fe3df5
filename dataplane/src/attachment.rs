//! What plugin and agent tell each other about a pod's port, and the protocol
//! in which they do.
//!
//! The plugin (`trammel`) creates an *attachment*; the agent binds its
//! addresses to policies and admits them past the anti-spoof rules. Both sides
//! meet here, in the crate that knows what a port is to the data plane, so that
//! neither depends on the other.
//!
//! Transport: a stream socket ([`DEFAULT_SOCKET`]), one JSON document per line:
//! a [`Request`] each way in, one [`Response`] back, any number per connection.
//! Unknown fields are ignored on both sides, so that plugin and agent may be
//! upgraded in either order.
//!
//! Attachment records: the plugin writes each attachment as
//! [`AttachmentKey::file_name`] into [`records_dir`] before its first change to the
//! kernel and removes it after its last, so that DEL, and an agent that was not
//! running at the time, know what there is.

mod port_mapping;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use port_mapping::{PortMapping, Transport};

/// Where the agent listens unless told otherwise (`--socket`, conf key `agentSocket`).
pub const DEFAULT_SOCKET: &str = "/run/trammel/agent.sock";

/// First bytes of the name of every host-side veth.
///
/// Anti-spoofing matches ports by it: a port with this prefix that no
/// attachment vouches for is closed.
pub const PORT_PREFIX: &str = "trm";

/// First bytes of the name of every device made for [`Bandwidth::egress`].
const IFB_PREFIX: &str = "tri";

/// The directory of attachment records that belongs to an agent socket.
pub fn records_dir(socket: &Path) -> PathBuf {
    socket
        .parent()
        .unwrap_or(Path::new("/"))
        .join("attachments")
}

/// An Ethernet address. Text form: `0a:58:0a:58:00:02`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MacAddr(pub [u8; 6]);

/// Why a string is not an Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an Ethernet address like 0a:58:0a:58:00:02")]
pub struct ParseMacError(String);

impl MacAddr {
    /// The address derived from a pod's addresses: `0a:58` and the IPv4
    /// address, or `0a:58` and a hash of the IPv6 address where there is no IPv4.
    ///
    /// A reused address thus keeps its MAC, and neighbours need not wait for
    /// their caches (33 to 47 s otherwise).
    pub fn of_pod(ips: &[IpAddr]) -> Option<Self> {
        let tail: [u8; 4] = match ips.iter().find(|ip| ip.is_ipv4()).or(ips.first())? {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let hash = Sha256::digest(v6.octets());
                [hash[0], hash[1], hash[2], hash[3]]
            }
        };
        Some(Self([0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]))
    }

    /// The IPv6 link-local address that the kernel derives from this MAC
    /// (modified EUI-64, RFC 4291 appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let m = self.0;
        let octets = [
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            m[0] ^ 0x02,
            m[1],
            m[2],
            0xff,
            0xfe,
            m[3],
            m[4],
            m[5],
        ];
        Ipv6Addr::from(octets)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| ParseMacError(text.to_owned()))?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(ParseMacError(text.to_owned())),
        }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What names one attachment: unique per node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// Network name of the CNI configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl AttachmentKey {
    /// Name of the host-side veth: [`PORT_PREFIX`] and 12 hexadecimal digits of
    /// a hash over the key, 15 bytes, the longest name that an interface can have.
    pub fn host_ifname(&self) -> String {
        Self::host_ifname_of(&self.hash12())
    }

    /// Name of the host-side veth of the attachment whose record is `<hash>.json`.
    pub fn host_ifname_of(hash: &str) -> String {
        format!("{PORT_PREFIX}{hash}")
    }

    /// Name of the device on which the pod's own traffic waits where it has a limit, see
    /// [`Bandwidth::egress`]. It must not look like a port.
    pub fn ifb_name(&self) -> String {
        format!("{IFB_PREFIX}{}", self.hash12())
    }

    /// Name of the attachment's record in [`records_dir`].
    pub fn file_name(&self) -> String {
        format!("{}.json", self.hash12())
    }

    fn hash12(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.network, &self.container_id, &self.ifname] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.finalize()[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

/// The pod that an attachment belongs to, from `K8S_POD_NAMESPACE`,
/// `K8S_POD_NAME` and `K8S_POD_UID` in `CNI_ARGS`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod; absent where the runtime does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// How a pod's link is connected to the node (conf key `mode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A port of the bridge; the pod has no neighbour but the gateway, so that all it
    /// sends passes the host's IP stack.
    #[default]
    RoutedPorts,
    /// A port of the bridge; pods are neighbours, as with the reference bridge plugin.
    /// The bridge hands their frames to the packet filter.
    L2,
    /// A veth that is no port of a bridge, with host routes to the pod.
    Routed,
}

impl Mode {
    /// All.
    pub const ALL: [Self; 3] = [Self::RoutedPorts, Self::L2, Self::Routed];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoutedPorts => "routed-ports",
            Self::L2 => "l2",
            Self::Routed => "routed",
        }
    }
}

/// One (network, container, interface) triple that ADD created, with what the
/// data plane must know about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Which attachment this is.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Path of the pod's network namespace, `CNI_NETNS` verbatim.
    pub netns: String,
    /// Host-side veth, [`AttachmentKey::host_ifname`].
    pub host_ifname: String,
    /// How it is connected.
    #[serde(default)]
    pub mode: Mode,
    /// Bridge that the veth is a port of; `None` for a routed veth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Address of the pod's end.
    pub mac: MacAddr,
    /// The pod's addresses, at most one per family in most configurations.
    pub ips: Vec<IpAddr>,
    /// The pod, absent for a container that is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// The networks outside of which its addresses are masqueraded (`ipMasq`); none: they
    /// never are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masquerade_beyond: Vec<IpNet>,
    /// The rates that it is held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// What else undoing it needs to know.
    #[serde(default)]
    pub undo: Undo,
}

/// What only undoing an attachment needs to know, so that it can be done from the record
/// alone: by DEL, GC, or the agent for a runtime that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Undo {
    /// Which namespace was at [`Attachment::netns`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<NetnsId>,
    /// The machine's boot, as `/proc/sys/kernel/random/boot_id` names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Where the leases lie (`ipam.dataDir`); absent where they are not ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The plugin that gave the addresses; absent where they are ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<IpamPlugin>,
    /// The interface by which the node reaches the pod, where that is the gateway of a VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan_gateway: Option<String>,
}

/// An IPAM plugin of others, to be run for DEL.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamPlugin {
    /// `CNI_PATH`, which leads to it.
    pub cni_path: String,
    /// The network configuration that it got, as JSON text.
    pub conf: String,
}

/// Names a network namespace while it exists: a path may lead to another one later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device of its file.
    pub dev: u64,
    /// Inode of its file.
    pub ino: u64,
}

impl Attachment {
    /// Whose it is, for those who read a list: `namespace/name` of the pod, else the
    /// container.
    pub fn owner_name(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => self.key.container_id.clone(),
        }
    }
}

/// Limits of a pod's traffic, as the pod sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what it receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// Of what it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may pass at once after a pause.
    pub burst: u32,
}

/// What the plugin asks of the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Request {
    /// Admit the attachment's addresses and bind them to the pod's policies.
    /// Answered when both are in the kernel, or when `timeout_ms` has passed: then
    /// with `programmed: false`, the port being closed until its policies are known.
    Attach {
        /// What ADD creates.
        attachment: Box<Attachment>,
        /// How long the agent may wait for the pod's object and policies, in
        /// milliseconds.
        #[serde(rename = "timeoutMs")]
        timeout_ms: u64,
    },
    /// Forget the attachment. Answered when its addresses are out of the
    /// kernel; an unknown attachment is a success.
    Detach {
        /// What DEL removes.
        attachment: AttachmentKey,
    },
    /// Is the agent there and does it enforce? For STATUS.
    Ready,
}

/// What the agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Whether the request was carried out.
    pub ok: bool,
    /// For [`Request::Attach`]: whether the pod's policies are in the kernel. While
    /// they are not, nothing passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed: Option<bool>,
    /// Where `ok` is false: what is wrong and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
