//! The `CNI_*` variables.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;

use dataplane::attachment::{AttachmentKey, MacAddr, PodRef};

use super::error::{Code, Error};

/// What the runtime wants (`CNI_COMMAND`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Take it off again.
    Del,
    /// Verify that it is attached as ADD left it.
    Check,
    /// Remove attachments that the runtime does not know.
    Gc,
    /// Say whether ADD could succeed.
    Status,
    /// List the supported versions.
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// The `CNI_*` variables of this process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

/// Container, interface and namespace that a request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`, verbatim; optional for DEL only.
    pub netns: Option<String>,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub own_netns_allowed: bool,
}

/// What `CNI_ARGS` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExtraArgs {
    /// `IP`: an address to use.
    pub ip: Option<IpAddr>,
    /// `MAC`: the Ethernet address to use.
    pub mac: Option<MacAddr>,
    /// The pod, from `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID`.
    pub pod: Option<PodRef>,
}

impl Environment {
    /// Takes the `CNI_*` variables out of an environment. Others are not looked
    /// at and may hold anything.
    pub fn new(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let mut ours = BTreeMap::new();
        for (name, value) in vars {
            let Some(name) = name.to_str().filter(|name| name.starts_with("CNI_")) else {
                continue;
            };
            match value.into_string() {
                Ok(value) => ours.insert(name.to_owned(), value),
                Err(value) => {
                    return Err(environment(format!("{name}: {value:?} is not valid UTF-8")));
                }
            };
        }
        Ok(Self(ours))
    }

    /// A variable; an empty one is absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// `CNI_COMMAND`; `None` where there is none.
    pub fn verb(&self) -> Result<Option<Verb>, Error> {
        let Some(command) = self.get("CNI_COMMAND") else {
            return Ok(None);
        };
        match command {
            "ADD" => Ok(Some(Verb::Add)),
            "DEL" => Ok(Some(Verb::Del)),
            "CHECK" => Ok(Some(Verb::Check)),
            "GC" => Ok(Some(Verb::Gc)),
            "STATUS" => Ok(Some(Verb::Status)),
            "VERSION" => Ok(Some(Verb::Version)),
            other => Err(environment(format!(
                "CNI_COMMAND: {other:?} is not one of ADD, DEL, CHECK, GC, STATUS, VERSION"
            ))),
        }
    }

    /// What ADD, DEL and CHECK are about. All missing variables are named at once.
    pub fn target(&self, verb: Verb) -> Result<Target, Error> {
        let mut required = vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
        if verb == Verb::Del {
            required.retain(|name| *name != "CNI_NETNS");
        }
        required.retain(|name| self.get(name).is_none());
        if !required.is_empty() {
            let message = format!("required variables are missing: {}", required.join(", "));
            return Err(environment(message));
        }
        let required = |name| self.get(name).unwrap_or_default().to_owned();
        let (container_id, ifname) = (required("CNI_CONTAINERID"), required("CNI_IFNAME"));
        if !is_identifier(&container_id) {
            return Err(environment(format!(
                "CNI_CONTAINERID: {container_id:?} must begin with a letter or digit and hold \
                 nothing but letters, digits, '_', '.' and '-'"
            )));
        }
        if let Some(reason) = bad_ifname(&ifname) {
            return Err(environment(format!("CNI_IFNAME: {ifname:?} {reason}")));
        }
        Ok(Target {
            container_id,
            ifname,
            netns: self.get("CNI_NETNS").map(str::to_owned),
            own_netns_allowed: self.get("CNI_NETNS_OVERRIDE").is_some_and(is_true),
        })
    }

    /// `CNI_ARGS`: `KEY=VALUE` pairs, separated by `;`, in any order.
    pub fn extra_args(&self) -> Result<ExtraArgs, Error> {
        let mut pairs = BTreeMap::new();
        for pair in self
            .get("CNI_ARGS")
            .into_iter()
            .flat_map(|args| args.split(';'))
        {
            match pair.split_once('=') {
                Some((key, value)) if !value.contains('=') => pairs.insert(key, value),
                _ => return Err(environment(format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))),
            };
        }
        if !ignore_unknown(&pairs)? {
            reject_unknown(&pairs)?;
        }
        let value = |key: &str| pairs.get(key).copied().filter(|value| !value.is_empty());
        let bad = |key: &str, value: &str, what: &str| {
            environment(format!("CNI_ARGS: {key}: {value:?} is not {what}"))
        };
        let ip = |text| requested_address(text).ok_or_else(|| bad("IP", text, "an IP address"));
        let mac = |text: &str| {
            text.parse()
                .map_err(|_| bad("MAC", text, "an Ethernet address"))
        };
        let pod = value("K8S_POD_NAMESPACE").zip(value("K8S_POD_NAME"));
        Ok(ExtraArgs {
            ip: value("IP").map(ip).transpose()?,
            mac: value("MAC").map(mac).transpose()?,
            pod: pod.map(|(namespace, name)| PodRef {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: value("K8S_POD_UID").map(str::to_owned),
            }),
        })
    }
}

impl Target {
    /// The attachment that this is in `network`.
    pub fn key(&self, network: &str) -> AttachmentKey {
        AttachmentKey {
            network: network.to_owned(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// Keys that mean something to us, or that every Kubernetes runtime sends.
const KNOWN_ARGS: [&str; 7] = [
    "IP",
    "IgnoreUnknown",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_NAME",
    "K8S_POD_NAMESPACE",
    "K8S_POD_UID",
    "MAC",
];

fn ignore_unknown(pairs: &BTreeMap<&str, &str>) -> Result<bool, Error> {
    match pairs.get("IgnoreUnknown") {
        None => Ok(false),
        Some(value) if is_true(value) => Ok(true),
        Some(value) if *value == "0" || value.eq_ignore_ascii_case("false") => Ok(false),
        Some(value) => Err(environment(format!(
            "CNI_ARGS: IgnoreUnknown: {value:?} is not 1, 0, true or false"
        ))),
    }
}

fn reject_unknown(pairs: &BTreeMap<&str, &str>) -> Result<(), Error> {
    let unknown = |key: &&&str| !KNOWN_ARGS.contains(*key);
    let unknown: Vec<&str> = pairs.keys().filter(unknown).copied().collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(environment(format!(
        "CNI_ARGS: unknown keys {}: remove them or add IgnoreUnknown=1",
        unknown.join(", ")
    )))
}

fn environment(message: String) -> Error {
    Error::new(Code::InvalidEnvironment, message)
}

fn is_true(text: &str) -> bool {
    text == "1" || text.eq_ignore_ascii_case("true")
}

/// An address that somebody asks for. A prefix length is allowed and means nothing, as in
/// host-local.
pub fn requested_address(text: &str) -> Option<IpAddr> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address.parse().ok()
}

/// The form of container IDs and network names: both become file names.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Why the kernel would not take this interface name; `None` if it would.
pub fn bad_ifname(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 15 {
        Some("must have 1 to 15 bytes")
    } else if name == "." || name == ".." {
        Some("must not be \".\" or \"..\"")
    } else if name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
        Some("must not hold '/', ':' or white space")
    } else if name.contains('%') {
        // "eth%d" is the first free one of eth0, eth1...
        Some("must not hold '%', which makes it a pattern to the kernel")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
