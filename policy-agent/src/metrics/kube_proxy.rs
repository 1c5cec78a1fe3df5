//! Those metrics of kube-proxy that dashboards and alerts are made of
//! (`pkg/proxy/metrics/metrics.go`).
//!
//! kube-proxy has a proxier for each IP family, this agent one for both: what has the label
//! `ip_family` has the same value for either.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::{Counted, whole};
use crate::owner::{Observations, ServiceSummary, Summary};

/// A gauge of seconds since the epoch.
type Timestamp = Gauge<f64, std::sync::atomic::AtomicU64>;

/// `ip_family` of kube-proxy's metrics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PerFamily {
    ip_family: IpFamily,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelValue)]
enum IpFamily {
    IPv4,
    IPv6,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PerCode {
    code: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PerPolicy {
    ip_family: IpFamily,
    traffic_policy: &'static str,
}

const FAMILIES: [PerFamily; 2] = [
    PerFamily {
        ip_family: IpFamily::IPv4,
    },
    PerFamily {
        ip_family: IpFamily::IPv6,
    },
];

/// The paths that kube-proxy counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HealthPath {
    Healthz,
    Livez,
}

pub(super) struct KubeProxy {
    sync_duration: Family<PerFamily, Histogram>,
    full_sync_duration: Family<PerFamily, Histogram>,
    partial_sync_duration: Family<PerFamily, Histogram>,
    last_sync: Family<PerFamily, Timestamp>,
    last_queued: Family<PerFamily, Timestamp>,
    programming_duration: Family<PerFamily, Histogram>,
    service_changes: Family<PerFamily, Counter>,
    service_changes_pending: Family<PerFamily, Gauge>,
    endpoint_changes: Family<PerFamily, Counter>,
    endpoint_changes_pending: Family<PerFamily, Gauge>,
    sync_failures: Family<PerFamily, Counter>,
    cleanup_failures: Family<PerFamily, Counter>,
    no_local_endpoints: Family<PerPolicy, Gauge>,
    reconciler_duration: Family<PerFamily, Histogram>,
    reconciler_deleted: Family<PerFamily, Counter>,
    healthz: Family<PerCode, Counter>,
    livez: Family<PerCode, Counter>,
}

impl KubeProxy {
    pub(super) fn new(registry: &mut Registry) -> Self {
        // 1 ms to 16 s.
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let mut durations = |name: &str, help: &str, new: fn() -> Histogram| {
            let family = Family::<PerFamily, Histogram>::new_with_constructor(new);
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let sync_duration = durations(
            "sync_proxy_rules_duration",
            "SyncProxyRules latency in seconds",
            histogram,
        );
        let full_sync_duration = durations(
            "sync_full_proxy_rules_duration",
            "SyncProxyRules latency in seconds for full resyncs",
            histogram,
        );
        let partial_sync_duration = durations(
            "sync_partial_proxy_rules_duration",
            "SyncProxyRules latency in seconds for partial resyncs",
            histogram,
        );
        let programming_duration = durations(
            "network_programming_duration",
            "In Cluster Network Programming Latency in seconds",
            || Histogram::new(programming_buckets()),
        );
        let reconciler_duration = durations(
            "conntrack_reconciler_sync_duration",
            "ReconcileConntrackFlowsLatency in seconds",
            histogram,
        );
        let mut timestamp = |name: &str, help: &str| {
            let family = Family::<PerFamily, Timestamp>::default();
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let last_sync = timestamp(
            "sync_proxy_rules_last_timestamp",
            "The last time proxy rules were successfully synced",
        );
        let last_queued = timestamp(
            "sync_proxy_rules_last_queued_timestamp",
            "The last time a sync of proxy rules was queued",
        );
        let mut counter = |name: &str, help: &str| {
            let family = Family::<PerFamily, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let service_changes = counter(
            "sync_proxy_rules_service_changes",
            "Cumulative proxy rules Service changes",
        );
        let endpoint_changes = counter(
            "sync_proxy_rules_endpoint_changes",
            "Cumulative proxy rules Endpoint changes",
        );
        let sync_failures = counter(
            "sync_proxy_rules_nftables_sync_failures",
            "Cumulative proxy nftables sync failures",
        );
        let cleanup_failures = counter(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Cumulative proxy nftables cleanup failures: what a commit had left behind has stayed",
        );
        let reconciler_deleted = counter(
            "conntrack_reconciler_deleted_entries",
            "Cumulative conntrack flows deleted by conntrack reconciler",
        );
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<PerFamily, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let service_changes_pending = gauge(
            "sync_proxy_rules_service_changes_pending",
            "Pending proxy rules Service changes",
        );
        let endpoint_changes_pending = gauge(
            "sync_proxy_rules_endpoint_changes_pending",
            "Pending proxy rules Endpoint changes",
        );
        let no_local_endpoints = Family::<PerPolicy, Gauge>::default();
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            no_local_endpoints.clone(),
        );
        let mut answers = |name: &str, help: &str| {
            let family = Family::<PerCode, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        Self {
            healthz: answers("proxy_healthz", "Cumulative proxy healthz HTTP status"),
            livez: answers("proxy_livez", "Cumulative proxy livez HTTP status"),
            sync_duration,
            full_sync_duration,
            partial_sync_duration,
            last_sync,
            last_queued,
            programming_duration,
            service_changes,
            service_changes_pending,
            endpoint_changes,
            endpoint_changes_pending,
            sync_failures,
            cleanup_failures,
            no_local_endpoints,
            reconciler_duration,
            reconciler_deleted,
        }
    }

    /// Takes the owner's numbers, of its counters what is new.
    pub(super) fn publish(&self, services: &ServiceSummary, new: Counted) {
        for family in &FAMILIES {
            for (counter, added) in [
                (&self.sync_failures, new.failures),
                (&self.service_changes, new.service_changes),
                (&self.endpoint_changes, new.endpoint_changes),
            ] {
                counter.get_or_create(family).inc_by(added);
            }
            for (gauge, value) in [
                (
                    &self.service_changes_pending,
                    services.service_changes_pending,
                ),
                (
                    &self.endpoint_changes_pending,
                    services.endpoint_changes_pending,
                ),
            ] {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                gauge.get_or_create(family).set(value);
            }
            for (traffic_policy, value) in [
                ("internal", services.no_local_endpoints.internal),
                ("external", services.no_local_endpoints.external),
            ] {
                let labels = PerPolicy {
                    ip_family: family.ip_family,
                    traffic_policy,
                };
                self.no_local_endpoints
                    .get_or_create(&labels)
                    .set(whole(value));
            }
        }
    }

    /// Counts a successful sync. The first writes everything, later ones what has changed.
    pub(super) fn synced(&self, summary: &Summary, observations: &Observations) {
        let seconds = summary.last_sync_seconds;
        let by_extent = match summary.syncs {
            0 | 1 => &self.full_sync_duration,
            _ => &self.partial_sync_duration,
        };
        for family in &FAMILIES {
            self.sync_duration.get_or_create(family).observe(seconds);
            by_extent.get_or_create(family).observe(seconds);
            if let Some(at) = summary.last_sync {
                self.last_sync.get_or_create(family).set(at);
            }
            let failures = self.cleanup_failures.get_or_create(family);
            failures.inc_by(observations.cleanup_failures);
            let programming = self.programming_duration.get_or_create(family);
            for seconds in &observations.programming_seconds {
                programming.observe(*seconds);
            }
            let reconciler = self.reconciler_duration.get_or_create(family);
            let deleted = self.reconciler_deleted.get_or_create(family);
            for (seconds, count) in &observations.reconciled {
                reconciler.observe(*seconds);
                deleted.inc_by(*count);
            }
        }
    }

    /// A change waits for its sync since then, in seconds since the epoch.
    pub(super) fn queued(&self, at: f64) {
        for family in &FAMILIES {
            self.last_queued.get_or_create(family).set(at);
        }
    }

    /// Counts an answer to a health check of that path.
    pub(super) fn answered(&self, path: HealthPath, code: u16) {
        let family = match path {
            HealthPath::Healthz => &self.healthz,
            HealthPath::Livez => &self.livez,
        };
        family.get_or_create(&PerCode { code }).inc();
    }
}

/// Those of the service level objective: 0.25 and 0.5 s, each second to 60, then by 5 s to
/// 2 min and by 30 s to 5 min.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let steps = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(f64::from);
    [0.25, 0.5]
        .into_iter()
        .chain(steps(1, 59, 1))
        .chain(steps(60, 115, 5))
        .chain(steps(120, 300, 30))
}
