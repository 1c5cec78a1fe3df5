//! Which senders count as pods of the cluster: `detectLocalMode` and `detectLocal`, as in the
//! configuration of kube-proxy. Empty texts are as good as none, since kubeadm writes them.

use std::fmt;
use std::str::FromStr;

use dataplane::layout::services::PodSources;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

/// By what they are known. This node's own pods are in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DetectLocalMode {
    /// `clusterCIDRs`; without any, only this node's own pods count.
    #[default]
    ClusterCidr,
    /// `spec.podCIDRs` of this node.
    NodeCidr,
    /// `detectLocal.bridgeInterface`.
    BridgeInterface,
    /// `detectLocal.interfaceNamePrefix`.
    InterfaceNamePrefix,
}

/// The interfaces of those modes; empty where it is none of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DetectLocalConfig {
    /// What comes in by this interface comes from a pod.
    #[serde(deserialize_with = "bridge")]
    pub bridge_interface: String,
    /// What comes in by an interface whose name begins so comes from a pod.
    #[serde(deserialize_with = "prefix")]
    pub interface_name_prefix: String,
}

impl DetectLocalMode {
    /// All, by the names of kube-proxy.
    const NAMES: [(&'static str, Self); 4] = [
        ("ClusterCIDR", Self::ClusterCidr),
        ("NodeCIDR", Self::NodeCidr),
        ("BridgeInterface", Self::BridgeInterface),
        ("InterfaceNamePrefix", Self::InterfaceNamePrefix),
    ];

    /// The ranges of pods' addresses.
    pub(crate) const fn ranges<'a>(self, cluster: &'a [IpNet], node: &'a [IpNet]) -> &'a [IpNet] {
        match self {
            Self::ClusterCidr => cluster,
            Self::NodeCidr => node,
            Self::BridgeInterface | Self::InterfaceNamePrefix => &[],
        }
    }

    /// The same for the rules.
    pub(crate) fn pod_sources(self, interfaces: &DetectLocalConfig) -> PodSources {
        match self {
            Self::ClusterCidr | Self::NodeCidr => PodSources::Ranges,
            Self::BridgeInterface => PodSources::Interface(interfaces.bridge_interface.clone()),
            Self::InterfaceNamePrefix => {
                PodSources::InterfacePrefix(interfaces.interface_name_prefix.clone())
            }
        }
    }

    /// What the mode needs and has not.
    pub(crate) fn missing(self, interfaces: &DetectLocalConfig) -> Option<String> {
        let (value, key, flag) = match self {
            Self::ClusterCidr | Self::NodeCidr => return None,
            Self::BridgeInterface => (
                &interfaces.bridge_interface,
                "bridgeInterface",
                "--pod-bridge-interface",
            ),
            Self::InterfaceNamePrefix => (
                &interfaces.interface_name_prefix,
                "interfaceNamePrefix",
                "--pod-interface-name-prefix",
            ),
        };
        value.is_empty().then(|| {
            format!("detectLocalMode is {self}, which needs detectLocal.{key} or {flag}: set it")
        })
    }
}

impl FromStr for DetectLocalMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut names = Self::NAMES.into_iter();
        let named = names.find(|(name, _)| *name == text);
        named.map(|(_, mode)| mode).ok_or_else(|| {
            format!(
                "{text:?} is no mode: write ClusterCIDR, NodeCIDR, BridgeInterface or \
                 InterfaceNamePrefix"
            )
        })
    }
}

impl fmt::Display for DetectLocalMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::NAMES.into_iter();
        let named = names.find(|(_, mode)| mode == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl<'de> Deserialize<'de> for DetectLocalMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of an interface (`dev_valid_name` of the kernel).
pub(crate) fn interface_name(text: &str) -> Result<String, String> {
    let is_wrong = |c: char| matches!(c, '/' | ':' | '*' | '\0') || c.is_whitespace();
    let is_name = (1..=15).contains(&text.len()) && !matches!(text, "." | "..");
    if !is_name || text.contains(is_wrong) {
        return Err(format!(
            "{text:?} is no interface name, which has 1 to 15 bytes and no white space, \"/\", \
             \":\" or \"*\": write it as `ip link` does"
        ));
    }
    Ok(text.to_owned())
}

/// The same, or nothing.
pub(crate) fn interface_or_none(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        name => interface_name(name),
    }
}

/// What names of interfaces begin with, or nothing.
pub(crate) fn interface_prefix(text: &str) -> Result<String, String> {
    if let Some(prefix) = text.strip_suffix(['+', '*']) {
        return Err(format!("{text:?}: write {prefix:?}, it is a prefix anyway"));
    }
    interface_or_none(text)
}

fn bridge<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    interface_or_none(&text).map_err(serde::de::Error::custom)
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    interface_prefix(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<(DetectLocalMode, DetectLocalConfig), String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[derive(Default)]
        struct Written {
            detect_local_mode: DetectLocalMode,
            detect_local: DetectLocalConfig,
        }
        let written: Written = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let (mode, interfaces) = (written.detect_local_mode, written.detect_local);
        match mode.missing(&interfaces) {
            Some(problem) => Err(problem),
            None => Ok((mode, interfaces)),
        }
    }

    #[test]
    fn modes_are_written_as_for_kube_proxy() {
        let (cluster, node) = (
            ["10.0.0.0/8".parse().expect("a prefix")],
            ["10.1.0.0/16".parse().expect("a prefix")],
        );
        let kubeadm = "{detectLocalMode: '', detectLocal: {bridgeInterface: '', \
                       interfaceNamePrefix: ''}}";
        for (text, sources, ranges) in [
            (kubeadm, PodSources::Ranges, &cluster[..]),
            ("detectLocalMode: ClusterCIDR", PodSources::Ranges, &cluster),
            ("detectLocalMode: NodeCIDR", PodSources::Ranges, &node),
            (
                "{detectLocalMode: BridgeInterface, detectLocal: {bridgeInterface: cni0}}",
                PodSources::Interface("cni0".into()),
                &[],
            ),
            (
                "{detectLocalMode: InterfaceNamePrefix, detectLocal: {interfaceNamePrefix: cali}}",
                PodSources::InterfacePrefix("cali".into()),
                &[],
            ),
        ] {
            let (mode, interfaces) = written(text).expect(text);
            assert_eq!(mode.pod_sources(&interfaces), sources, "{text}");
            assert_eq!(mode.ranges(&cluster, &node), ranges, "{text}");
            assert_eq!(mode.to_string().parse(), Ok(mode), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_mode_or_an_interface_is_named() {
        for (text, parts) in [
            (
                "detectLocalMode: clusterCIDR",
                ["\"clusterCIDR\"", "ClusterCIDR, NodeCIDR"],
            ),
            (
                "detectLocalMode: BridgeInterface",
                ["detectLocal.bridgeInterface", "--pod-bridge-interface"],
            ),
            (
                "{detectLocalMode: InterfaceNamePrefix, detectLocal: {bridgeInterface: cni0}}",
                ["interfaceNamePrefix", "--pod-interface-name-prefix"],
            ),
            (
                "detectLocal: {bridgeInterface: a-bridge-of-pods}",
                ["\"a-bridge-of-pods\"", "15 bytes"],
            ),
            ("detectLocal: {bridgeInterface: br/0}", ["\"br/0\"", "1 to"]),
            ("detectLocal: {bridgeInterface: 'br 0'}", ["\"br 0\"", ""]),
            ("detectLocal: {bridgeInterface: '..'}", ["\"..\"", ""]),
            (
                "detectLocal: {interfaceNamePrefix: veth+}",
                ["\"veth+\"", "write \"veth\""],
            ),
            (
                "detectLocal: {interfaceNamePrefix: cali*}",
                ["\"cali*\"", "write \"cali\""],
            ),
            ("detectLocal: {bridge: cni0}", ["unknown", "bridge"]),
        ] {
            let error = written(text).expect_err(text);
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{text}: {error}"
            );
        }
    }
}
