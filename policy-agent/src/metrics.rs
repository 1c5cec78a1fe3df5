//! The metrics: our own under `trammel_`, and under `kubeproxy_` those of kube-proxy.

mod kube_proxy;
mod network;

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::network::NetworkStatus;
use crate::owner::{Observations, Summary};
use crate::verdict_log::{DeniedBy, LogNumbers};
pub(crate) use kube_proxy::HealthPath;

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    own: Own,
    network: network::Network,
    kube_proxy: kube_proxy::KubeProxy,
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

impl Counted {
    fn since(self, before: Self) -> Self {
        Self {
            failures: self.failures - before.failures,
            repairs: self.repairs - before.repairs,
            service_changes: self.service_changes - before.service_changes,
            endpoint_changes: self.endpoint_changes - before.endpoint_changes,
        }
    }
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
    watches_broken: Gauge,
    conntrack_entries: Gauge,
    conntrack_limit: Gauge,
    conntrack_drops: Counter,
    affinity_unlearnt: Counter,
    connections_reset: Counter,
    denied: Family<DeniedBy, Counter>,
    records_written: Counter,
    records_lost: Counter,
    records_suppressed: Counter,
    records_failed: Counter,
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
        let kube_proxy = kube_proxy::KubeProxy::new(registry.sub_registry_with_prefix("kubeproxy"));
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
        let now = Counted {
            failures: summary.failures,
            repairs: summary.repairs,
            service_changes: services.service_changes,
            endpoint_changes: services.endpoint_changes,
        };
        let new = now.since(self.counted);
        self.counted = now;
        own.sync_failures.inc_by(new.failures);
        own.repairs.inc_by(new.repairs);
        self.kube_proxy.publish(services, new);
    }

    /// Counts a successful sync. The first writes everything, later ones what has changed.
    pub(crate) fn synced(&self, summary: &Summary, observations: &Observations) {
        let seconds = summary.last_sync_seconds;
        self.own.syncs.inc();
        self.own.sync_duration.observe(seconds);
        self.own.connections_reset.inc_by(observations.reset);
        self.kube_proxy.synced(summary, observations);
    }

    /// A change waits for its sync since then, in seconds since the epoch.
    pub(crate) fn queued(&self, at: f64) {
        self.kube_proxy.queued(at);
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

    /// Takes the number of watches that do not work.
    pub(crate) fn watches_broken(&self, count: usize) {
        self.own.watches_broken.set(whole(count));
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
        self.kube_proxy.answered(path, code);
    }

    /// OpenMetrics text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("text is written to memory");
        text
    }
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
        let connections_reset = counter(
            "connections_reset",
            "Connections that were reset because their endpoint was gone",
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
            watches_broken: gauge(
                "watches_broken",
                "Kinds of objects of which the API server tells no changes now",
            ),
            conntrack_entries: gauge("conntrack_entries", "Flows in connection tracking"),
            conntrack_limit: gauge("conntrack_limit", "Flows that connection tracking may have"),
            conntrack_drops,
            affinity_unlearnt,
            connections_reset,
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
