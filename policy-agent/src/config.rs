//! The file of `--config`.

pub mod detect_local;
pub(crate) mod duration;
pub mod network;
pub mod services;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;

use network::NetworkConfig;
use services::ServiceConfig;

/// Settings that few need to change. All have defaults.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Bridges behind which unknown addresses are closed even before the first attachment;
    /// `[cbr0]` by default.
    pub bridges: Vec<String>,
    /// Format of the log on standard error.
    pub log_format: LogFormat,
    /// How what policy denies is answered.
    pub deny_with: DenyWith,
    /// The Service proxy.
    pub services: ServiceConfig,
    /// The pod network of the cluster.
    pub network: NetworkConfig,
}

/// What becomes of packets that policies deny. Those of unknown addresses and forged senders
/// are always dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DenyWith {
    /// Nobody answers: a client waits for its time-out.
    #[default]
    Drop,
    /// A client is refused at once, by a TCP reset or by ICMP.
    Reject,
}

/// Format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON document a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bridges: vec!["cbr0".into()],
            log_format: LogFormat::Text,
            deny_with: DenyWith::Drop,
            services: ServiceConfig::default(),
            network: NetworkConfig::default(),
        }
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("config file {}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// Where it cannot be read or has an unknown key or a wrong value; the reason names it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |reason: String| ConfigError {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let config: Self =
            serde_saphyr::from_str(&text).map_err(|source| error(source.to_string()))?;
        for bridge in &config.bridges {
            detect_local::interface_name(bridge)
                .map_err(|problem| error(format!("bridges: {problem}")))?;
        }
        if let Some(problem) = config.services.problem() {
            return Err(error(format!("services.{problem}")));
        }
        if let Some(problem) = config.network.problem() {
            return Err(error(format!("network.{problem}")));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        Config::read(file.path())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(read("").expect("fine"), Config::default());
        assert_eq!(read("bridges: [br7]").expect("fine").bridges, ["br7"]);
        let rejects = read("denyWith: reject").expect("fine");
        assert_eq!(rejects.deny_with, DenyWith::Reject);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = read("bridge: cbr0").expect_err("misspelt").to_string();
        assert!(error.contains("bridge"), "{error}");
        let error = read("denyWith: refuse").expect_err("misspelt").to_string();
        assert!(error.contains("refuse"), "{error}");
        for name in [
            "a-name-that-is-too-long",
            "",
            ".",
            "..",
            "br/0",
            "br 0",
            "br:0",
            "br*",
            "br\\0",
        ] {
            let error = read(&format!("bridges: [cbr0, \"{name}\"]")).expect_err(name);
            let named = format!("bridges: \"{name}\" is no interface name");
            assert!(error.to_string().contains(&named), "{error}");
            assert!(error.to_string().contains("`ip link`"), "{error}");
        }
    }

    #[test]
    fn services_are_set_as_kube_proxy_is() {
        let config = read(
            "services:
              clusterCIDRs: [10.244.1.2/16, 'fd00:244::/48']
              nodePortAddresses: [primary, localhost, 192.0.2.7]
              masqueradeAll: true
              externalIPRanges: []
              syncPeriod: 10s
              minSyncPeriod: 1
              conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 2h}
              healthzBindAddress: '[::]:10256'",
        );
        let services = config.expect("fine").services;
        let texts: Vec<_> = services
            .cluster_cidrs
            .iter()
            .map(|n| n.to_string())
            .collect();
        assert_eq!(texts, ["10.244.0.0/16", "fd00:244::/48"]);
        let addresses = services.node_port_addresses.iter();
        let addresses: Vec<_> = addresses.map(ToString::to_string).collect();
        assert_eq!(addresses, ["primary", "localhost", "192.0.2.7/32"]);
        assert_eq!(services.external_ip_ranges, Some(Vec::new()));
        assert_eq!(services.load_balancer_ip_ranges, None);
        assert_eq!(services.min_sync_period.as_secs(), 1);
        assert_eq!(services.conntrack.max_per_core, 0);
        assert_eq!(services.conntrack.min, 131_072);
        assert_eq!(services.conntrack.tcp_close_wait_timeout.as_secs(), 7200);
        assert!(services.masquerade_all && services.healthz_bind_address.is_some());
    }

    #[test]
    fn a_setting_of_services_that_cannot_be_is_named() {
        for (text, parts) in [
            ("services: {clusterCIDR: []}", ["clusterCIDR", "unknown"]),
            (
                "services: {clusterCIDRs: [10.0.0.0/33]}",
                ["10.0.0.0/33", "prefix"],
            ),
            ("services: {nodePortAddresses: [eth0]}", ["eth0", "primary"]),
            ("services: {syncPeriod: 3w}", ["3w", "use ms, s, m or h"]),
            ("services: {syncPeriod: 0s}", ["services.syncPeriod", "0"]),
            (
                "services: {minSyncPeriod: 1m}",
                ["services.minSyncPeriod", "60s"],
            ),
            (
                "services: {conntrack: {maxPerCPU: 1}}",
                ["maxPerCPU", "unknown"],
            ),
            (
                "services: {healthzBindAddress: 10256}",
                ["healthzBindAddress", ""],
            ),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{text}: {error}"
            );
        }
    }
}
