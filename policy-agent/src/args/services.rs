//! Flags of the Service proxy, over the file of `--config`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::config::detect_local::{DetectLocalMode, interface_or_none, interface_prefix};
use crate::config::duration::duration;
use crate::config::services::{NodePortAddress, ServiceConfig, prefix_of};

/// See [`ServiceConfig`], which has the defaults.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Services")]
pub struct ServiceFlags {
    /// Prefixes of all pods of the cluster: what comes from elsewhere to a cluster IP is
    /// masqueraded. Default: only this node's pods count as pods.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', value_parser = prefix_of)]
    pub cluster_cidr: Option<Vec<IpNet>>,
    /// By what pods are told from other senders: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix [default: ClusterCIDR].
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<DetectLocalMode>,
    /// The bridge of the pods, for the mode BridgeInterface.
    #[arg(long, value_name = "NAME", value_parser = interface_or_none)]
    pub pod_bridge_interface: Option<String>,
    /// What the names of the pods' interfaces begin with, for the mode InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX", value_parser = interface_prefix)]
    pub pod_interface_name_prefix: Option<String>,
    /// Where node ports are served: primary, localhost, all, or prefixes [default: primary].
    #[arg(long, value_name = "ADDRESS,..", value_delimiter = ',')]
    pub nodeport_addresses: Option<Vec<NodePortAddress>>,
    /// Masquerade everything that goes through a Service.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub masquerade_all: Option<bool>,
    /// Reset connections to endpoints that are gone, not those to terminating ones.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub reset_gone_endpoints: Option<bool>,
    /// Where external IPs may lie; all may by default.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', value_parser = prefix_of)]
    pub service_external_ip_range: Option<Vec<IpNet>>,
    /// Where ingress addresses of load balancers may lie; all may by default.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', value_parser = prefix_of)]
    pub loadbalancer_ip_range: Option<Vec<IpNet>>,
    /// A failed sync is tried again after this long at most; /healthz fails where a change
    /// has waited for twice as long [default: 30s].
    #[arg(long, value_parser = duration)]
    pub sync_period: Option<Duration>,
    /// Shortest time from the end of a sync to the start of the next [default: 0s].
    #[arg(long, value_parser = duration)]
    pub min_sync_period: Option<Duration>,
    /// Conntrack entries for each CPU; 0 leaves the kernel's limit [default: 32768].
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,
    /// Conntrack entries at least [default: 131072].
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<u32>,
    /// How long an established TCP connection may be idle; 0 leaves the kernel's value
    /// [default: 24h].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub conntrack_tcp_timeout_established: Option<Duration>,
    /// How long a TCP connection may wait for its closing half; 0 leaves the kernel's value
    /// [default: 1h].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub conntrack_tcp_timeout_close_wait: Option<Duration>,
    /// Accept TCP segments outside of the window.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Address for /healthz and /livez alone, such as 0.0.0.0:10256; none by default.
    #[arg(long, value_name = "ADDR:PORT")]
    pub healthz_bind_address: Option<SocketAddr>,
    /// Address for /metrics, /proxyMode and /healthz alone, such as 127.0.0.1:10249; none by
    /// default.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_bind_address: Option<SocketAddr>,
}

impl ServiceFlags {
    /// The settings with what the flags say instead.
    pub fn over(&self, mut config: ServiceConfig) -> ServiceConfig {
        fn set<T: Clone>(value: &mut T, flag: Option<&T>) {
            if let Some(flag) = flag {
                value.clone_from(flag);
            }
        }
        set(&mut config.cluster_cidrs, self.cluster_cidr.as_ref());
        set(
            &mut config.detect_local_mode,
            self.detect_local_mode.as_ref(),
        );
        let interfaces = &mut config.detect_local;
        set(
            &mut interfaces.bridge_interface,
            self.pod_bridge_interface.as_ref(),
        );
        set(
            &mut interfaces.interface_name_prefix,
            self.pod_interface_name_prefix.as_ref(),
        );
        set(
            &mut config.node_port_addresses,
            self.nodeport_addresses.as_ref(),
        );
        set(&mut config.masquerade_all, self.masquerade_all.as_ref());
        set(
            &mut config.reset_gone_endpoints,
            self.reset_gone_endpoints.as_ref(),
        );
        for (range, flag) in [
            (
                &mut config.external_ip_ranges,
                &self.service_external_ip_range,
            ),
            (
                &mut config.load_balancer_ip_ranges,
                &self.loadbalancer_ip_range,
            ),
        ] {
            if flag.is_some() {
                range.clone_from(flag);
            }
        }
        set(&mut config.sync_period, self.sync_period.as_ref());
        set(&mut config.min_sync_period, self.min_sync_period.as_ref());
        let conntrack = &mut config.conntrack;
        set(
            &mut conntrack.max_per_core,
            self.conntrack_max_per_core.as_ref(),
        );
        set(&mut conntrack.min, self.conntrack_min.as_ref());
        set(
            &mut conntrack.tcp_established_timeout,
            self.conntrack_tcp_timeout_established.as_ref(),
        );
        set(
            &mut conntrack.tcp_close_wait_timeout,
            self.conntrack_tcp_timeout_close_wait.as_ref(),
        );
        set(
            &mut conntrack.tcp_be_liberal,
            self.conntrack_tcp_be_liberal.as_ref(),
        );
        for (address, flag) in [
            (&mut config.healthz_bind_address, self.healthz_bind_address),
            (&mut config.metrics_bind_address, self.metrics_bind_address),
        ] {
            *address = flag.or(*address);
        }
        config
    }
}
