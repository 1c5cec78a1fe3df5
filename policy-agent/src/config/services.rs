//! Settings of the Service proxy: those of kube-proxy, under its names where it has them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::detect_local::{DetectLocalConfig, DetectLocalMode};
use super::duration::duration;

/// The section `services` of the file; each key is a flag of `run` as well, and the flag
/// counts where both are given.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// Serve Services; `true` by default. Where another proxy does, its objects are not
    /// even watched.
    pub enabled: bool,
    /// Prefixes of all pods of the cluster: what comes from elsewhere to a cluster IP is
    /// masqueraded, and pods reach all endpoints of `externalTrafficPolicy: Local`. Without
    /// any, only the pods of this node count as pods.
    #[serde(rename = "clusterCIDRs", deserialize_with = "prefixes")]
    pub cluster_cidrs: Vec<IpNet>,
    /// By what pods are told from other senders; by `clusterCIDRs` by default.
    pub detect_local_mode: DetectLocalMode,
    /// The interfaces that pods are known by in some of the modes.
    pub detect_local: DetectLocalConfig,
    /// On which of the node's addresses node ports are served; `[primary]` by default.
    #[serde(deserialize_with = "parsed_list")]
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Masquerade everything that goes through a Service.
    pub masquerade_all: bool,
    /// End connections to endpoints that are gone, of which no EndpointSlice and no pod is
    /// left: the client is reset when it next sends. `false` by default, as they may end by
    /// themselves.
    pub reset_gone_endpoints: bool,
    /// Where external IPs may lie; all may where it is not given, none where it is empty.
    #[serde(rename = "externalIPRanges", deserialize_with = "some_prefixes")]
    pub external_ip_ranges: Option<Vec<IpNet>>,
    /// The same for ingress addresses of load balancers.
    #[serde(rename = "loadBalancerIPRanges", deserialize_with = "some_prefixes")]
    pub load_balancer_ip_ranges: Option<Vec<IpNet>>,
    /// A failed sync is tried again after this long at most, and `/healthz` fails where a
    /// change has waited for twice as long; 30 s by default.
    #[serde(deserialize_with = "period")]
    pub sync_period: Duration,
    /// Shortest time from the end of a sync to the start of the next; 0 by default: changes
    /// are collected for 10 to 50 ms in any case.
    #[serde(deserialize_with = "period")]
    pub min_sync_period: Duration,
    /// Settings of the kernel's connection tracking.
    pub conntrack: ConntrackConfig,
    /// Where `/healthz` and `/livez` are served beside `--listen`, for load balancers;
    /// kube-proxy has 0.0.0.0:10256.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics`, `/proxyMode` and `/healthz` are served beside `--listen`;
    /// kube-proxy has 127.0.0.1:10249.
    pub metrics_bind_address: Option<SocketAddr>,
}

/// Settings of connection tracking. 0 leaves the kernel's value.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConntrackConfig {
    /// Entries for each CPU; 32,768 by default.
    pub max_per_core: u32,
    /// Entries at least, where `max_per_core` is not 0; 131,072 by default.
    pub min: u32,
    /// How long an established TCP connection may be idle; 24 h by default.
    #[serde(deserialize_with = "period")]
    pub tcp_established_timeout: Duration,
    /// How long a TCP connection may wait for its closing half; 1 h by default.
    #[serde(deserialize_with = "period")]
    pub tcp_close_wait_timeout: Duration,
    /// Accept TCP segments outside of the window instead of calling them invalid.
    pub tcp_be_liberal: bool,
}

/// An entry of `nodePortAddresses`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortAddress {
    /// The addresses of the Node object; of the interfaces with a default route where there
    /// is none.
    Primary,
    /// 127.0.0.1 and `::1`, by a listener: TCP only.
    Localhost,
    /// Every address of the node but those of the loopback interface.
    All,
    /// The node's addresses in that prefix.
    Prefix(IpNet),
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            cluster_cidrs: Vec::new(),
            detect_local_mode: DetectLocalMode::default(),
            detect_local: DetectLocalConfig::default(),
            node_port_addresses: vec![NodePortAddress::Primary],
            masquerade_all: false,
            reset_gone_endpoints: false,
            external_ip_ranges: None,
            load_balancer_ip_ranges: None,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            conntrack: ConntrackConfig::default(),
            healthz_bind_address: None,
            metrics_bind_address: None,
        }
    }
}

impl Default for ConntrackConfig {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(86_400),
            tcp_close_wait_timeout: Duration::from_secs(3_600),
            tcp_be_liberal: false,
        }
    }
}

impl ServiceConfig {
    /// What of the values cannot be used together, with the name of the key.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.sync_period.is_zero() {
            return Some("syncPeriod is 0: write 30s, for example".into());
        }
        if self.min_sync_period > self.sync_period {
            return Some(format!(
                "minSyncPeriod is {:?}, longer than syncPeriod, which is {:?}: lower it",
                self.min_sync_period, self.sync_period
            ));
        }
        None
    }

    /// What is missing, once the flags are over the file.
    pub(crate) fn missing(&self) -> Option<String> {
        self.detect_local_mode.missing(&self.detect_local)
    }
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            prefix => prefix_of(prefix).map(Self::Prefix).map_err(|_| {
                format!(
                    "{text:?} is no node port address: write primary, localhost, all or a prefix \
                     such as 192.0.2.0/24"
                )
            }),
        }
    }
}

impl fmt::Display for NodePortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Localhost => f.write_str("localhost"),
            Self::All => f.write_str("all"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

/// A prefix, or an address alone; host bits are cleared.
pub(crate) fn prefix_of(text: &str) -> Result<IpNet, String> {
    let prefix = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    prefix
        .map(|prefix| prefix.trunc())
        .map_err(|_| format!("{text:?} is no prefix: write 10.244.0.0/16, for example"))
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // A bare number is seconds, as on the command line.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    match Written::deserialize(deserializer)? {
        Written::Number(seconds) => Ok(Duration::from_secs(seconds)),
        Written::Text(text) => duration(&text).map_err(serde::de::Error::custom),
    }
}

fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let prefixes = texts.iter().map(|text| prefix_of(text));
    prefixes
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

fn some_prefixes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<IpNet>>, D::Error> {
    prefixes(deserializer).map(Some)
}

fn parsed_list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<NodePortAddress>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let addresses = texts.iter().map(|text| text.parse());
    addresses
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}
