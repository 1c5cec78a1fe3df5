//! Settings of the pod network of the cluster: ways to the pods of other nodes, and the CNI
//! configuration of this one. All of it is off by default.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// The section `network` of the file; each key is a flag of `run` as well, and the flag
/// counts where both are given.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// How the pods of other nodes are reached; `none` by default.
    #[serde(deserialize_with = "parsed")]
    pub mode: NetworkMode,
    /// UDP port of VXLAN, the same on all nodes; 8472 by default, as the kernel has it.
    pub vxlan_port: u16,
    /// Network identifier of VXLAN, the same on all nodes; 116 by default.
    #[serde(rename = "vxlanVNI")]
    pub vxlan_vni: u32,
    /// MTU of pods. By default that of the link with the node's address, less what VXLAN
    /// adds where it is used.
    pub mtu: Option<u32>,
    /// Masquerade what pods send out of the cluster; `true` by default. Of the CNI
    /// configuration that is written.
    pub ip_masq: bool,
    /// Folder that the CNI configuration is written to, from the Node's PodCIDRs, as soon as
    /// pods can start.
    pub cni_conf_dir: Option<PathBuf>,
    /// CNI configuration list to write instead of the built-in one. What it lacks of
    /// `ipam.ranges`, `mtu`, `ipMasq` and `policy` is added.
    pub cni_conf_template: Option<PathBuf>,
}

/// How the pods of other nodes are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Directly where the other node's address is on a link of this one, by VXLAN otherwise.
    Auto,
    /// By routes to the other nodes' addresses, which must be on a link of this one.
    Direct,
    /// By VXLAN.
    Vxlan,
    /// By somebody else's doing.
    #[default]
    None,
}

impl NetworkMode {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("direct", Self::Direct),
        ("vxlan", Self::Vxlan),
        ("none", Self::None),
    ];
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, mode)| mode == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for NetworkMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = Self::ALL.iter().find(|(name, _)| *name == text);
        mode.map(|(_, mode)| *mode)
            .ok_or_else(|| format!("{text:?} is no mode: write auto, direct, vxlan or none"))
    }
}

/// Bits of a VXLAN network identifier (RFC 7348 section 5).
const VNI_BITS: u32 = 24;
/// Smallest MTU of IPv6 (RFC 8200 section 5), and largest of a veth.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65535;

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mode: NetworkMode::None,
            vxlan_port: 8472,
            vxlan_vni: 116,
            mtu: None,
            ip_masq: true,
            cni_conf_dir: None,
            cni_conf_template: None,
        }
    }
}

impl NetworkConfig {
    /// Whether there is anything to do.
    pub fn is_on(&self) -> bool {
        self.mode != NetworkMode::None || self.cni_conf_dir.is_some()
    }

    /// Whether pods of other nodes may be reached by VXLAN.
    pub const fn has_tunnels(&self) -> bool {
        matches!(self.mode, NetworkMode::Auto | NetworkMode::Vxlan)
    }

    /// What of the values cannot be used, with the name of the key.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.vxlan_port == 0 {
            return Some("vxlanPort is 0: write 8472, for example".into());
        }
        if self.vxlan_vni >> VNI_BITS != 0 {
            return Some(format!(
                "vxlanVNI is {}: it has {VNI_BITS} bits, write 0 to {}",
                self.vxlan_vni,
                (1 << VNI_BITS) - 1
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Some(format!(
                "mtu is {mtu}: write {} to {}, or leave it out",
                MTU.start(),
                MTU.end()
            ));
        }
        if self.cni_conf_template.is_some() && self.cni_conf_dir.is_none() {
            return Some(
                "cniConfTemplate is of no use without cniConfDir: say where to write it".into(),
            );
        }
        None
    }
}

fn parsed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NetworkMode, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_off_unless_it_is_configured() {
        let off = NetworkConfig::default();
        assert!(!off.is_on() && off.problem().is_none());
        for text in [
            "mode: auto",
            "cniConfDir: /etc/cni/net.d",
            "{mode: none, cniConfDir: /x}",
        ] {
            let config: NetworkConfig = serde_saphyr::from_str(text).expect(text);
            assert!(config.is_on() && config.problem().is_none(), "{text}");
        }
    }

    #[test]
    fn a_setting_of_the_network_that_cannot_be_is_named() {
        for (text, parts) in [
            ("mode: ipip", ["ipip", "auto, direct, vxlan or none"]),
            ("vxlanPort: 0", ["vxlanPort", "8472"]),
            ("vxlanVNI: 16777216", ["vxlanVNI", "16777215"]),
            ("mtu: 1279", ["mtu is 1279", "1280"]),
            ("cniConfTemplate: /x", ["cniConfTemplate", "cniConfDir"]),
            ("mtus: 1500", ["mtus", "unknown"]),
        ] {
            let problem = match serde_saphyr::from_str::<NetworkConfig>(text) {
                Ok(config) => config.problem().expect(text),
                Err(error) => error.to_string(),
            };
            assert!(
                parts.iter().all(|part| problem.contains(part)),
                "{text}: {problem}"
            );
        }
    }
}
