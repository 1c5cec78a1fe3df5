//! The metrics: our own under `trammel_`, and under `kubeproxy_` those of kube-proxy that
//! dashboards and alerts are made of (`pkg/proxy/metrics/metrics.go`).
//!
//! kube-proxy has a proxier for each IP family, this agent one for both: what has the label
//! `ip_family` has the same value for either.

mod network;

use std::collections::BTreeMap;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::network::NetworkStatus;
use crate::owner::{Observations, Summary};
use crate::verdict_log::{DeniedBy, LogNumbers};

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

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    own: Own,
    network: network::Network,
    kube_proxy: KubeProxy,
    /// Counters of the owner that were added already.
    counted: Counted,
}

/// What the owner has counted.
#[derive(Clone, Copy, Default)]
struct Counted {
    failures: u64,
    repairs: u64,
    service_changes: u64,
    endpoint_changes: u64,
}

struct Own {
    sync_duration: Histogram,
    syncs: Counter,
    sync_failures: Counter,
    repairs: Counter,
    services: Gauge,
    policies: Gauge,
    pods: Gauge,
    unprogrammed: Gauge,
    bound_addresses: Gauge,
    policy_groups: Gauge,
    policy_generation: Gauge,
    unusable: Gauge,
    contested: Gauge,
    conntrack_entries: Gauge,
    conntrack_limit: Gauge,
    conntrack_drops: Counter,
    affinity_unlearnt: Counter,
    denied: Family<DeniedBy, Counter>,
    records_written: Counter,
    records_lost: Counter,
    records_suppressed: Counter,
    records_failed: Counter,
}

struct KubeProxy {
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
    no_local_endpoints: Family<PerPolicy, Gauge>,
    reconciler_duration: Family<PerFamily, Histogram>,
    reconciler_deleted: Family<PerFamily, Counter>,
    healthz: Family<PerCode, Counter>,
    livez: Family<PerCode, Counter>,
}

/// The state of the kernel's connection tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConntrackUse {
    /// Entries now.
    pub entries: u64,
    /// Entries at most.
    pub limit: u64,
    /// Packets that were dropped because there was no room for their flow, so far.
    pub drops: u64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let trammel = registry.sub_registry_with_prefix("trammel");
        let (own, network) = (Own::new(trammel), network::Network::new(trammel));
        let kube_proxy = KubeProxy::new(registry.sub_registry_with_prefix("kubeproxy"));
        Self {
            registry,
            own,
            network,
            kube_proxy,
            counted: Counted::default(),
        }
    }

    /// Takes the owner's numbers.
    pub(crate) fn publish(&mut self, summary: &Summary) {
        let own = &self.own;
        let services = &summary.service_proxy;
        for (gauge, value) in [
            (&own.services, summary.services),
            (&own.policies, summary.policies),
            (&own.pods, summary.pods),
            (&own.unprogrammed, summary.unprogrammed),
            (&own.bound_addresses, summary.policy.bound_addresses),
            (&own.policy_groups, summary.policy.groups),
            (&own.policy_generation, summary.policy_generation.into()),
            (&own.unusable, summary.unusable),
            (&own.contested, services.contested),
        ] {
            gauge.set(whole(value));
        }
        let (before, now) = (
            self.counted,
            Counted {
                failures: summary.failures,
                repairs: summary.repairs,
                service_changes: services.service_changes,
                endpoint_changes: services.endpoint_changes,
            },
        );
        self.counted = now;
        own.sync_failures.inc_by(now.failures - before.failures);
        own.repairs.inc_by(now.repairs - before.repairs);
        let of = &self.kube_proxy;
        for family in &FAMILIES {
            for (counter, new) in [
                (&of.sync_failures, now.failures - before.failures),
                (
                    &of.service_changes,
                    now.service_changes - before.service_changes,
                ),
                (
                    &of.endpoint_changes,
                    now.endpoint_changes - before.endpoint_changes,
                ),
            ] {
                counter.get_or_create(family).inc_by(new);
            }
            for (gauge, value) in [
                (
                    &of.service_changes_pending,
                    services.service_changes_pending,
                ),
                (
                    &of.endpoint_changes_pending,
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
                of.no_local_endpoints
                    .get_or_create(&labels)
                    .set(whole(value));
            }
        }
    }

    /// Counts a successful sync. The first writes everything, later ones what has changed.
    pub(crate) fn synced(&self, summary: &Summary, observations: &Observations) {
        let seconds = summary.last_sync_seconds;
        self.own.syncs.inc();
        self.own.sync_duration.observe(seconds);
        let of = &self.kube_proxy;
        let by_extent = match summary.syncs {
            0 | 1 => &of.full_sync_duration,
            _ => &of.partial_sync_duration,
        };
        for family in &FAMILIES {
            of.sync_duration.get_or_create(family).observe(seconds);
            by_extent.get_or_create(family).observe(seconds);
            if let Some(at) = summary.last_sync {
                of.last_sync.get_or_create(family).set(at);
            }
            let programming = of.programming_duration.get_or_create(family);
            for seconds in &observations.programming_seconds {
                programming.observe(*seconds);
            }
            let reconciler = of.reconciler_duration.get_or_create(family);
            let deleted = of.reconciler_deleted.get_or_create(family);
            for (seconds, count) in &observations.reconciled {
                reconciler.observe(*seconds);
                deleted.inc_by(*count);
            }
        }
    }

    /// A change waits for its sync since then, in seconds since the epoch.
    pub(crate) fn queued(&self, at: f64) {
        for family in &FAMILIES {
            self.kube_proxy.last_queued.get_or_create(family).set(at);
        }
    }

    /// Takes what connection tracking says, and what it has dropped since it last did.
    pub(crate) fn conntrack(&self, now: ConntrackUse) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.own.conntrack_entries.set(gauge(now.entries));
        self.own.conntrack_limit.set(gauge(now.limit));
        let counted = self.own.conntrack_drops.get();
        let drops = &self.own.conntrack_drops;
        drops.inc_by(now.drops.saturating_sub(counted));
    }

    /// Takes the state of the pod network.
    pub(crate) fn network(&self, status: &NetworkStatus) {
        self.network.set(status);
    }

    /// Adds flows whose client could not be remembered.
    pub(crate) fn unlearnt(&self, added: u64) {
        self.own.affinity_unlearnt.inc_by(added);
    }

    /// Adds packets that were denied.
    pub(crate) fn denied(&self, added: &BTreeMap<DeniedBy, u64>) {
        for (by, packets) in added {
            self.own.denied.get_or_create(by).inc_by(*packets);
        }
    }

    /// Takes the numbers of the verdict log.
    pub(crate) fn verdict_log(&self, now: LogNumbers) {
        for (counter, now) in [
            (&self.own.records_written, now.written),
            (&self.own.records_lost, now.lost),
            (&self.own.records_suppressed, now.suppressed),
            (&self.own.records_failed, now.failed),
        ] {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// Counts an answer to a health check of that path.
    pub(crate) fn answered(&self, path: HealthPath, code: u16) {
        let family = match path {
            HealthPath::Healthz => &self.kube_proxy.healthz,
            HealthPath::Livez => &self.kube_proxy.livez,
        };
        family.get_or_create(&PerCode { code }).inc();
    }

    /// OpenMetrics text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("text is written to memory");
        text
    }
}

/// The paths that kube-proxy counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HealthPath {
    Healthz,
    Livez,
}

fn whole(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Own {
    fn new(registry: &mut Registry) -> Self {
        // 0.1 ms to 3.3 s.
        let sync_duration = Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        registry.register_with_unit(
            "sync_duration",
            "Time from the start of a sync to its commit",
            Unit::Seconds,
            sync_duration.clone(),
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let syncs = counter("syncs", "Successful syncs");
        let sync_failures = counter("sync_failures", "Failed syncs");
        let repairs = counter("repairs", "Times that others had changed our tables");
        let records_written = counter("verdict_log_written", "Records of the verdict log");
        let records_lost = counter(
            "verdict_log_lost",
            "Messages about denied packets that the kernel had no room for",
        );
        let records_suppressed = counter(
            "verdict_log_suppressed",
            "Denied packets without a record because there were too many",
        );
        let records_failed = counter(
            "verdict_log_failed",
            "Records of the verdict log that could not be written",
        );
        let conntrack_drops = counter(
            "conntrack_drops",
            "Packets that the kernel dropped because connection tracking was full",
        );
        let affinity_unlearnt = counter(
            "affinity_unlearnt",
            "Flows of Services with session affinity whose client could not be remembered",
        );
        let denied = Family::default();
        registry.register(
            "denied_packets",
            "Packets that policy has denied, of unknown addresses, or with a forged sender",
            denied.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Self {
            services: gauge("services", "Services known"),
            policies: gauge("policies", "NetworkPolicies known"),
            pods: gauge("pods", "Pods known, of all nodes"),
            unprogrammed: gauge(
                "attachments_unprogrammed",
                "Attachments that are closed because their pod is not known yet",
            ),
            bound_addresses: gauge("bound_addresses", "Addresses bound to their policies"),
            policy_groups: gauge("policy_groups", "Chains of policy groups"),
            policy_generation: gauge("policy_generation", "Generation of the policies"),
            unusable: gauge(
                "unusable_objects",
                "Objects that cannot be used or that the kernel refuses",
            ),
            contested: gauge(
                "contested_frontends",
                "Addresses and ports of a Service that are served for an older Service",
            ),
            conntrack_entries: gauge("conntrack_entries", "Flows in connection tracking"),
            conntrack_limit: gauge("conntrack_limit", "Flows that connection tracking may have"),
            conntrack_drops,
            affinity_unlearnt,
            denied,
            records_written,
            records_lost,
            records_suppressed,
            records_failed,
            syncs,
            sync_failures,
            repairs,
            sync_duration,
        }
    }
}

impl KubeProxy {
    fn new(registry: &mut Registry) -> Self {
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
            no_local_endpoints,
            reconciler_duration,
            reconciler_deleted,
        }
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
