//! Flags of the pod network, over the file of `--config`.

use std::path::PathBuf;

use clap::Args;

use crate::config::network::{NetworkConfig, NetworkMode};

/// See [`NetworkConfig`], which has the defaults.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Pod network")]
pub struct NetworkFlags {
    /// How the pods of other nodes are reached: auto (directly on a common link, by VXLAN
    /// otherwise), direct, vxlan, or none [default: none].
    #[arg(long = "network", value_name = "MODE")]
    pub mode: Option<NetworkMode>,
    /// UDP port of VXLAN [default: 8472].
    #[arg(long, value_name = "PORT")]
    pub vxlan_port: Option<u16>,
    /// Network identifier of VXLAN [default: 116].
    #[arg(long, value_name = "N")]
    pub vxlan_vni: Option<u32>,
    /// MTU of pods [default: that of the node's link, less what VXLAN adds].
    #[arg(long, value_name = "BYTES")]
    pub pod_mtu: Option<u32>,
    /// Masquerade what pods send out of the cluster [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub ip_masq: Option<bool>,
    /// Write the CNI configuration to this folder, from the Node's PodCIDRs, as soon as pods
    /// can start.
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// CNI configuration list to write instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub cni_conf_template: Option<PathBuf>,
}

impl NetworkFlags {
    /// The settings with what the flags say instead.
    pub fn over(&self, config: NetworkConfig) -> NetworkConfig {
        NetworkConfig {
            mode: self.mode.unwrap_or(config.mode),
            vxlan_port: self.vxlan_port.unwrap_or(config.vxlan_port),
            vxlan_vni: self.vxlan_vni.unwrap_or(config.vxlan_vni),
            mtu: self.pod_mtu.or(config.mtu),
            ip_masq: self.ip_masq.unwrap_or(config.ip_masq),
            cni_conf_dir: self.cni_conf_dir.clone().or(config.cni_conf_dir),
            cni_conf_template: self.cni_conf_template.clone().or(config.cni_conf_template),
        }
    }
}
