//! What the HTTP endpoints show: health and metrics, published by the owner's thread.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::owner::Summary;

/// The owner publishes at least every half second; a commit takes less than a second.
const STUCK: Duration = Duration::from_secs(30);
/// Syncs may fail this long before the node counts as unhealthy (kube-proxy: twice its sync
/// period).
const FAILING: Duration = Duration::from_secs(60);

/// Shared by the owner's thread and the HTTP server.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    heartbeat: Instant,
    ready: bool,
    error: Option<String>,
    failing_since: Option<Instant>,
    /// Counters of the owner that were added to the metrics already.
    failures: u64,
    repairs: u64,
}

struct Metrics {
    registry: Registry,
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
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Alive, not ready.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                heartbeat: Instant::now(),
                ready: false,
                error: None,
                failing_since: None,
                failures: 0,
                repairs: 0,
            }),
            metrics: Metrics::new(),
        }))
    }

    /// Takes the owner's state; a sign of life.
    pub(crate) fn publish(&self, summary: &Summary) {
        let mut state = self.state();
        state.heartbeat = Instant::now();
        state.ready = summary.last_sync.is_some();
        state.error.clone_from(&summary.error);
        state.failing_since = match (&summary.error, state.failing_since) {
            (None, _) => None,
            (Some(_), since) => since.or(Some(Instant::now())),
        };
        let metrics = &self.0.metrics;
        metrics
            .sync_failures
            .inc_by(summary.failures - state.failures);
        metrics.repairs.inc_by(summary.repairs - state.repairs);
        state.failures = summary.failures;
        state.repairs = summary.repairs;

        for (gauge, value) in [
            (&metrics.services, summary.services),
            (&metrics.policies, summary.policies),
            (&metrics.pods, summary.pods),
            (&metrics.unprogrammed, summary.unprogrammed),
            (&metrics.bound_addresses, summary.policy.bound_addresses),
            (&metrics.policy_groups, summary.policy.groups),
            (&metrics.policy_generation, summary.policy_generation.into()),
            (&metrics.unusable, summary.unusable),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Counts a successful sync.
    pub(crate) fn synced(&self, summary: &Summary) {
        self.0.metrics.syncs.inc();
        self.0
            .metrics
            .sync_duration
            .observe(summary.last_sync_seconds);
    }

    /// `None`: the owner's thread lives. Else what is wrong.
    pub fn not_alive(&self) -> Option<String> {
        let silent = self.state().heartbeat.elapsed();
        (silent > STUCK).then(|| format!("the owner has been silent for {} s", silent.as_secs()))
    }

    /// `None`: alive, and the kernel holds the desired state or will soon.
    pub fn not_healthy(&self) -> Option<String> {
        let failing = self
            .state()
            .failing_since
            .is_some_and(|at| at.elapsed() > FAILING);
        let error = || self.state().error.clone().unwrap_or_default();
        self.not_alive().or_else(|| failing.then(error))
    }

    /// `None`: healthy, and the first sync is done: pods can start on this node.
    pub fn not_ready(&self) -> Option<String> {
        let ready = self.state().ready;
        let waiting = || "the first sync is not done".to_owned();
        self.not_healthy().or_else(|| (!ready).then(waiting))
    }

    /// The metrics in OpenMetrics text.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.metrics.registry)
            .expect("text is written to memory");
        text
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .expect("no holder of this lock can panic")
    }
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("trammel");
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
            syncs,
            sync_failures,
            repairs,
            sync_duration,
            registry,
        }
    }
}

#[cfg(test)]
mod tests;
