//! Connection tracking as a node with Services needs it, and how full it is.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::services::ConntrackConfig;
use crate::metrics::ConntrackUse;

/// The sysctls of the network namespace that this process is in.
const SYSCTLS: &str = "/proc/sys/net/netfilter";
/// Buckets of the hash table; of the whole machine.
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Counters by CPU.
const COUNTERS: &str = "/proc/self/net/stat/nf_conntrack";

/// A table of four entries a bucket is what the kernel itself aims at.
const ENTRIES_PER_BUCKET: u64 = 4;

/// Sets what the configuration asks for, as kube-proxy does. What cannot be set, as the
/// limit in a network namespace other than the first, is a warning: Services work without.
pub fn configure(config: &ConntrackConfig) {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for problem in set_all(config, cpus, Path::new(SYSCTLS), Path::new(BUCKETS)) {
        tracing::warn!("{problem}");
    }
}

/// Says where connections to endpoints that are gone will hang instead of being reset: their
/// next segment is led to nobody.
pub fn warn_unless_loose() {
    const NAME: &str = "nf_conntrack_tcp_loose";
    let value = fs::read_to_string(Path::new(SYSCTLS).join(NAME));
    if value.is_ok_and(|value| value.trim() == "0") {
        tracing::warn!("net.netfilter.{NAME} is 0: resetGoneEndpoints resets nothing; set it to 1");
    }
}

/// Returns what could not be set.
fn set_all(config: &ConntrackConfig, cpus: usize, sysctls: &Path, buckets: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut set = |path: &Path, value: u64, is_minimum: bool| {
        let result = set(path, value, is_minimum);
        let is_set = result.is_ok();
        problems.extend(result.err());
        is_set
    };
    let cpus = u64::try_from(cpus).unwrap_or(u64::MAX);
    let limit = u64::from(config.max_per_core).saturating_mul(cpus);
    if limit > 0 {
        let limit = limit.max(config.min.into());
        // A higher limit that somebody has set stays.
        if set(&sysctls.join("nf_conntrack_max"), limit, true) {
            set(buckets, limit / ENTRIES_PER_BUCKET, true);
        }
    }
    for (name, seconds) in [
        (
            "nf_conntrack_tcp_timeout_established",
            config.tcp_established_timeout.as_secs(),
        ),
        (
            "nf_conntrack_tcp_timeout_close_wait",
            config.tcp_close_wait_timeout.as_secs(),
        ),
    ] {
        if seconds > 0 {
            set(&sysctls.join(name), seconds, false);
        }
    }
    if config.tcp_be_liberal {
        set(&sysctls.join("nf_conntrack_tcp_be_liberal"), 1, false);
    }
    problems
}

/// Sets a value that is another, or with `is_minimum` a lower one.
fn set(path: &Path, value: u64, is_minimum: bool) -> Result<(), String> {
    let explain = |error: io::Error| {
        format!(
            "cannot set {} to {value}: {error}; set it on the host if it is needed",
            path.display()
        )
    };
    let text = fs::read_to_string(path).map_err(explain)?;
    let is_fine = |now: u64| now == value || is_minimum && now > value;
    if text.trim().parse().is_ok_and(is_fine) {
        return Ok(());
    }
    fs::write(path, value.to_string()).map_err(explain)?;
    tracing::info!(sysctl = %path.display(), value, was = text.trim(), "set");
    Ok(())
}

/// How full connection tracking is; `None` where the kernel does not say.
pub fn usage() -> Option<ConntrackUse> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(Path::new(SYSCTLS).join(name)).ok()?;
        text.trim().parse().ok()
    };
    let counters = fs::read_to_string(COUNTERS).ok()?;
    Some(ConntrackUse {
        entries: number("nf_conntrack_count")?,
        limit: number("nf_conntrack_max")?,
        drops: drops(&counters),
    })
}

/// The sum of the column `drop`: packets whose flow found no room. Numbers are hexadecimal.
fn drops(counters: &str) -> u64 {
    let mut lines = counters.lines();
    let column = lines
        .next()
        .and_then(|names| names.split_whitespace().position(|name| name == "drop"));
    let Some(column) = column else { return 0 };
    lines
        .filter_map(|line| line.split_whitespace().nth(column))
        .filter_map(|number| u64::from_str_radix(number, 16).ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NAMES: [&str; 4] = [
        "nf_conntrack_max",
        "nf_conntrack_tcp_timeout_established",
        "nf_conntrack_tcp_timeout_close_wait",
        "nf_conntrack_tcp_be_liberal",
    ];

    /// The values after setting them where they were 60, but for the limit.
    fn values(config: &ConntrackConfig, cpus: usize, limit: &str) -> (Vec<String>, Vec<String>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in NAMES {
            fs::write(path(name), "60\n").expect("written");
        }
        fs::write(path(NAMES[0]), limit).expect("written");
        fs::write(path("hashsize"), "1024\n").expect("written");
        let problems = set_all(config, cpus, folder.path(), &path("hashsize"));
        let read = |name: &&str| {
            let text = fs::read_to_string(path(name)).expect("readable");
            text.trim().to_owned()
        };
        let values = NAMES.iter().chain(&["hashsize"]).map(read).collect();
        (values, problems)
    }

    #[test]
    fn the_defaults_are_those_of_kube_proxy() {
        let config = ConntrackConfig::default();
        let (set, problems) = values(&config, 2, "65536");
        assert_eq!(set, ["131072", "86400", "3600", "60", "32768"]);
        assert_eq!(problems, Vec::<String>::new());
        let (set, _) = values(&config, 64, "65536");
        assert_eq!(set[0], "2097152", "by CPU");
        let (set, _) = values(&config, 2, "500000");
        assert_eq!(set[0], "500000", "a higher limit stays");
    }

    #[test]
    fn zero_leaves_the_kernels_value() {
        let config = ConntrackConfig {
            max_per_core: 0,
            min: 7,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
            tcp_be_liberal: true,
        };
        let (set, _) = values(&config, 2, "65536");
        assert_eq!(set, ["65536", "60", "60", "1", "1024"]);
    }

    #[test]
    fn what_cannot_be_set_is_named_and_the_rest_is_set() {
        let folder = tempfile::tempdir().expect("a folder");
        let close_wait = folder.path().join(NAMES[2]);
        fs::write(&close_wait, "60\n").expect("written");
        let missing = folder.path().join("hashsize");
        let problems = set_all(&ConntrackConfig::default(), 2, folder.path(), &missing);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("nf_conntrack_max to 131072"),
            "{problems:?}"
        );
        assert_eq!(fs::read_to_string(&close_wait).expect("readable"), "3600");
    }

    #[test]
    fn drops_are_summed_over_the_cpus() {
        let text = "entries  searched found new invalid ignore delete delete_list insert \
                    insert_failed drop early_drop icmp_error\n\
                    00000011 00000000 0 0 0 0 0 0 0 00000003 0000000a 00000000 0\n\
                    00000011 00000000 0 0 0 0 0 0 0 00000000 00000001 00000000 0\n";
        assert_eq!(drops(text), 11);
        assert_eq!(drops(""), 0);
    }
}
