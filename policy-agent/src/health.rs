//! What the HTTP endpoints show: health and metrics, published by the owner's thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::metrics::{ConntrackUse, HealthPath, Metrics};
use crate::network::NetworkStatus;
use crate::owner::{Observations, Summary};
use crate::verdict_log::{DeniedBy, LogNumbers};

/// The owner publishes at least every half second; a commit takes less than a second.
const STUCK: Duration = Duration::from_secs(30);
/// `syncPeriod` where nobody has set another.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// Shared by the owner's thread and the HTTP server.
#[derive(Clone)]
pub struct Health(Arc<Mutex<State>>);

struct State {
    heartbeat: Instant,
    ready: bool,
    error: Option<String>,
    /// Since when something has not been in the kernel that should be.
    pending_since: Option<Instant>,
    /// How long that may take.
    patience: Duration,
    last_sync: Option<Timestamp>,
    eligible: bool,
    metrics: Metrics,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Alive, not ready.
    pub fn new() -> Self {
        Self::with_sync_period(SYNC_PERIOD)
    }

    /// Alive, not ready. A change that has waited for twice the period is unhealthy, as
    /// kube-proxy has it.
    pub fn with_sync_period(period: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            heartbeat: Instant::now(),
            ready: false,
            error: None,
            pending_since: None,
            patience: period.saturating_mul(2),
            last_sync: None,
            eligible: true,
            metrics: Metrics::new(),
        })))
    }

    /// Takes the owner's state; a sign of life.
    pub(crate) fn publish(&self, summary: &Summary) {
        let mut state = self.state();
        state.heartbeat = Instant::now();
        state.ready = summary.last_sync.is_some();
        state.error.clone_from(&summary.error);
        state.pending_since = match (summary.synced, state.pending_since) {
            (true, _) => None,
            (false, since) => since.or(Some(Instant::now())),
        };
        state.eligible = summary.service_proxy.node_eligible;
        state.metrics.publish(summary);
    }

    /// Counts a successful sync. What waits from now on has come since.
    pub(crate) fn synced(&self, summary: &Summary, observations: &Observations) {
        let mut state = self.state();
        state.pending_since = None;
        state.last_sync = Some(Timestamp::now());
        state.metrics.synced(summary, observations);
    }

    /// A change has come that a sync will write.
    pub(crate) fn queued(&self) {
        let now = Timestamp::now().as_millisecond();
        #[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
        self.state().metrics.queued(now as f64 / 1e3);
    }

    /// Takes the state of connection tracking.
    pub(crate) fn conntrack(&self, now: ConntrackUse) {
        self.state().metrics.conntrack(now);
    }

    /// Takes the number of watches that do not work.
    pub(crate) fn watches_broken(&self, count: usize) {
        self.state().metrics.watches_broken(count);
    }

    /// Takes the state of the pod network.
    pub(crate) fn network(&self, status: &NetworkStatus) {
        self.state().metrics.network(status);
    }

    /// Takes flows whose client could not be remembered.
    pub(crate) fn unlearnt(&self, added: u64) {
        self.state().metrics.unlearnt(added);
    }

    /// Takes the numbers of the verdict log.
    pub(crate) fn publish_log(&self, numbers: LogNumbers) {
        self.state().metrics.verdict_log(numbers);
    }

    /// Adds packets that were denied.
    pub(crate) fn publish_denied(&self, added: &BTreeMap<DeniedBy, u64>) {
        self.state().metrics.denied(added);
    }

    /// `None`: the owner's thread lives. Else what is wrong.
    pub fn not_alive(&self) -> Option<String> {
        self.state().not_alive()
    }

    /// `None`: alive, and the kernel holds the desired state or will soon.
    pub fn not_healthy(&self) -> Option<String> {
        self.state().not_healthy()
    }

    /// `None`: healthy, and the first sync is done: pods can start on this node.
    pub fn not_ready(&self) -> Option<String> {
        let state = self.state();
        let waiting = || "the first sync is not done".to_owned();
        state.not_healthy().or_else(|| (!state.ready).then(waiting))
    }

    /// The answer to `/healthz`: whether load balancers may send new connections to this
    /// node. They may not while it is being removed (KEP-3836).
    pub(crate) fn healthz(&self) -> (bool, Value) {
        let state = self.state();
        let wrong = state.not_healthy();
        let leaving = || "the node is being removed".to_owned();
        let wrong = wrong.or_else(|| (!state.eligible).then(leaving));
        state.answer(HealthPath::Healthz, wrong)
    }

    /// The answer to `/livez`: whether a restart would not help.
    pub(crate) fn livez(&self) -> (bool, Value) {
        let state = self.state();
        let wrong = state.not_alive();
        state.answer(HealthPath::Livez, wrong)
    }

    /// The metrics in OpenMetrics text.
    pub fn metrics(&self) -> String {
        self.state().metrics.text()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock can panic")
    }
}

impl State {
    fn not_alive(&self) -> Option<String> {
        let silent = self.heartbeat.elapsed();
        (silent > STUCK).then(|| format!("the owner has been silent for {} s", silent.as_secs()))
    }

    fn not_healthy(&self) -> Option<String> {
        self.not_alive().or_else(|| {
            let waiting = self.pending_since?.elapsed();
            let reason = || format!("a change has been waiting for {} s", waiting.as_secs());
            (waiting > self.patience).then(|| self.error.clone().unwrap_or_else(reason))
        })
    }

    /// The body is that of kube-proxy (`pkg/proxy/healthcheck/proxy_health.go`), with a
    /// reason where something is wrong.
    fn answer(&self, path: HealthPath, wrong: Option<String>) -> (bool, Value) {
        let now = Timestamp::now();
        let is_fine = wrong.is_none();
        // While nothing waits everything is up to date now.
        let last_updated = match self.pending_since {
            None => Some(now),
            Some(_) => self.last_sync,
        };
        let last_updated = last_updated.unwrap_or(Timestamp::UNIX_EPOCH).to_string();
        let of_family =
            json!({"lastUpdated": last_updated, "healthy": self.not_healthy().is_none()});
        let mut body = json!({
            "lastUpdated": last_updated,
            "currentTime": now.to_string(),
            "nodeEligible": self.eligible,
            "healthy": is_fine,
            "status": {"IPv4": of_family, "IPv6": of_family},
        });
        if let Some(reason) = wrong {
            body["reason"] = reason.into();
        }
        self.metrics.answered(path, if is_fine { 200 } else { 503 });
        (is_fine, body)
    }
}

#[cfg(test)]
mod tests;
