//! What health, metrics and the proxy's servers need of the Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::kernel::Kernel;
use k8s_openapi::jiff::Timestamp;
use proxy::model::{EndpointSlice, ObjectKey, Service};
use proxy::{Findings, ProxyConfig};
use serde::{Deserialize, Serialize};

use super::Owner;
use super::news::Served;
use crate::addresses::HostAddresses;
use crate::complaint::Complaint;
use crate::config::detect_local::DetectLocalMode;
use crate::config::services::{NodePortAddress, ServiceConfig};

/// A review looks at so many Services at a time: others want the owner, too.
const REVIEWED_AT_ONCE: usize = 500;

/// The Services in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSummary {
    /// Whether load balancers may choose this node for new connections.
    pub node_eligible: bool,
    /// Changes of Services so far.
    pub service_changes: u64,
    /// Those of them that are not in the kernel yet.
    pub service_changes_pending: u64,
    /// Changes of EndpointSlices so far.
    pub endpoint_changes: u64,
    /// Those of them that are not in the kernel yet.
    pub endpoint_changes_pending: u64,
    /// Frontends that are served for an older Service.
    pub contested: usize,
    /// Services that drop connections for want of an endpoint on this node.
    pub no_local_endpoints: NoLocalEndpoints,
}

/// Services with endpoints on other nodes only, by the traffic policy that is Local.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoLocalEndpoints {
    /// `internalTrafficPolicy`.
    pub internal: usize,
    /// `externalTrafficPolicy`.
    pub external: usize,
}

/// What has been measured since it was last asked for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Observations {
    /// From the change of a pod or Service to the commit that follows it, each.
    pub programming_seconds: Vec<f64>,
    /// Clean-ups of conntrack: how long each took, and how many flows it ended.
    pub reconciled: Vec<(f64, u64)>,
    /// Connections that were ended because their endpoint was gone.
    pub reset: u64,
    /// Times that what a commit had left behind could not be taken out of the tables.
    pub cleanup_failures: u64,
}

/// What has come of the changes so far.
#[derive(Debug)]
pub(super) struct ServiceProgress {
    /// Changes before that are not this agent's doing.
    started: Timestamp,
    service_changes: u64,
    endpoint_changes: u64,
    /// How many of them the last successful sync had.
    synced: (u64, u64),
    /// When what has changed has happened, in milliseconds since the epoch.
    triggered: Vec<i64>,
    observations: Observations,
    /// Of the Services that have any, as of the last review.
    findings: BTreeMap<ObjectKey, Findings>,
    /// See [`ServiceSummary`]: their sums.
    contested: usize,
    no_local_endpoints: NoLocalEndpoints,
    /// On which of the node's addresses node ports are served.
    pub(super) node_port_addresses: Vec<NodePortAddress>,
    /// By what pods are told from others.
    detect_local_mode: DetectLocalMode,
    host: HostAddresses,
    pub(super) served: Served,
}

impl Default for ServiceProgress {
    fn default() -> Self {
        Self {
            started: Timestamp::now(),
            service_changes: 0,
            endpoint_changes: 0,
            synced: (0, 0),
            triggered: Vec::new(),
            observations: Observations::default(),
            findings: BTreeMap::new(),
            contested: 0,
            no_local_endpoints: NoLocalEndpoints::default(),
            node_port_addresses: vec![NodePortAddress::Primary],
            detect_local_mode: DetectLocalMode::default(),
            host: HostAddresses::default(),
            served: Served::default(),
        }
    }
}

impl ServiceProgress {
    /// The Service is new, different, or with `None` gone.
    pub(super) fn service_changed(&mut self, key: &ObjectKey, service: Option<&Service>) {
        self.service_changes += 1;
        self.served.note(key, service);
    }

    /// A slice has changed; `triggered` is [`EndpointSlice::triggered`].
    pub(super) fn endpoints_changed(&mut self, triggered: Option<i64>) {
        self.endpoint_changes += 1;
        // An older change was programmed by an earlier run.
        let is_new = |at: &i64| *at >= self.started.as_millisecond();
        self.triggered.extend(triggered.filter(is_new));
    }

    /// What has changed so far is in the kernel.
    pub(super) fn synced(&mut self) {
        self.synced = (self.service_changes, self.endpoint_changes);
        let now = Timestamp::now().as_millisecond();
        for at in self.triggered.drain(..) {
            // The clock of who wrote it may be ahead.
            let milliseconds = u32::try_from((now - at).max(0)).unwrap_or(u32::MAX);
            let seconds = f64::from(milliseconds) / 1e3;
            self.observations.programming_seconds.push(seconds);
        }
    }

    /// What there is to say of the Service now.
    fn found(&mut self, key: ObjectKey, findings: Findings) {
        let before = self.findings.remove(&key).unwrap_or_default();
        let no_local = &mut self.no_local_endpoints;
        self.contested -= before.contested;
        no_local.internal -= usize::from(before.drops_internal);
        no_local.external -= usize::from(before.drops_external);
        self.contested += findings.contested;
        no_local.internal += usize::from(findings.drops_internal);
        no_local.external += usize::from(findings.drops_external);
        if !findings.is_empty() {
            self.findings.insert(key, findings);
        }
    }

    /// Flows were looked for in conntrack.
    pub(super) fn reconciled(&mut self, took: std::time::Duration, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.observations
            .reconciled
            .push((took.as_secs_f64(), count));
    }

    /// Connections to gone endpoints were ended.
    pub(super) fn reset(&mut self, count: usize) {
        self.observations.reset += u64::try_from(count).unwrap_or(u64::MAX);
    }

    /// Something has stayed in the tables that nothing needs.
    pub(super) const fn cleanup_failed(&mut self) {
        self.observations.cleanup_failures += 1;
    }
}

impl<K: Kernel> Owner<K> {
    pub(super) fn service_cidrs_changed(&mut self) {
        let cidrs = self.index.service_cidrs.values().flatten();
        self.proxy.set_service_cidrs(cidrs.copied());
    }

    /// Settings of the proxy. To be called before the first sync.
    pub fn configure_services(&mut self, config: &ServiceConfig) {
        self.serves = config.enabled;
        self.proxy.set_config(ProxyConfig {
            pod_sources: config.detect_local_mode.pod_sources(&config.detect_local),
            masquerade_all: config.masquerade_all,
            external_ip_ranges: config.external_ip_ranges.clone(),
            load_balancer_ip_ranges: config.load_balancer_ip_ranges.clone(),
        });
        self.service_progress
            .node_port_addresses
            .clone_from(&config.node_port_addresses);
        self.service_progress.detect_local_mode = config.detect_local_mode;
        self.gone.set(config.reset_gone_endpoints);
        self.nat.cluster_cidrs.clone_from(&config.cluster_cidrs);
        self.own_node_changed();
    }

    /// This node's Node has changed. Where it is gone, the ranges of its pods stay.
    pub(super) fn own_node_changed(&mut self) {
        self.node_addresses_changed();
        let mode = self.service_progress.detect_local_mode;
        let own = self.index.nodes.get(&self.settings.node);
        if mode != DetectLocalMode::NodeCidr || own.is_some() {
            let pod_cidrs = own.map(|node| &*node.pod_cidrs).unwrap_or_default();
            let ranges = mode.ranges(&self.nat.cluster_cidrs, pod_cidrs);
            self.proxy.set_cluster_cidrs(ranges);
        }
    }

    /// What is missing for the mode in which pods are told from others.
    pub(super) fn unknown_pods(&self) -> Option<Complaint> {
        let mode = self.service_progress.detect_local_mode;
        let own = self.index.nodes.get(&self.settings.node);
        let knows = own.is_some_and(|node| !node.pod_cidrs.is_empty());
        (mode == DetectLocalMode::NodeCidr && !knows).then(|| Complaint {
            about: None,
            uid: None,
            reason: "PodCIDRsUnknown",
            message: format!(
                "this node has no spec.podCIDRs, by which the detectLocalMode {mode} tells pods \
                 from others: have kube-controller-manager allocate them, or choose another mode"
            ),
        })
    }

    /// The addresses of this node's interfaces.
    pub fn set_host_addresses(&mut self, addresses: HostAddresses) {
        self.service_progress.host = addresses;
        self.node_addresses_changed();
    }

    pub(super) fn node_addresses_changed(&mut self) {
        self.proxy.set_node_addresses(self.served_addresses());
        self.dirty = true;
    }

    /// The addresses that node ports are served on.
    pub(super) fn served_addresses(&self) -> BTreeSet<IpAddr> {
        let own = self.index.nodes.get(&self.settings.node);
        let of_node = own.map(|node| &*node.addresses).unwrap_or_default();
        let progress = &self.service_progress;
        progress
            .host
            .serve_node_ports(&progress.node_port_addresses, of_node)
    }

    pub(super) fn apply_slice(&mut self, slice: EndpointSlice) {
        let triggered = slice.triggered;
        if self.proxy.apply_slice(slice) {
            self.service_progress.endpoints_changed(triggered);
        }
    }

    /// What has been measured since the last call.
    pub fn take_observations(&mut self) -> Observations {
        std::mem::take(&mut self.service_progress.observations)
    }

    /// Looks at Services that have changed since, not at many at once. Returns everything
    /// that is wrong, or `None` while there are others to look at.
    pub fn review(&mut self) -> Option<Vec<Complaint>> {
        let reviewed = self.proxy.review(REVIEWED_AT_ONCE);
        let is_done = reviewed.len() < REVIEWED_AT_ONCE;
        for (key, findings) in reviewed {
            self.service_progress.found(key, findings);
        }
        is_done.then(|| self.complaints())
    }

    fn complaints(&self) -> Vec<Complaint> {
        let mut complaints = self.refusals();
        complaints.extend(self.unknown_pods());
        for (key, findings) in &self.service_progress.findings {
            for problem in &findings.problems {
                let mut complaint = Complaint::of_service(key, "ServiceNotServed", problem.clone());
                complaint.uid = self.proxy.uid(key).map(str::to_owned);
                complaints.push(complaint);
            }
        }
        for (about, reason) in &self.invalid {
            complaints.push(Complaint {
                about: Some(about.clone()),
                uid: None,
                reason: "InvalidObject",
                message: reason.clone(),
            });
        }
        complaints.extend(self.policy_complaints());
        complaints
    }

    pub(super) fn service_summary(&self) -> ServiceSummary {
        let progress = &self.service_progress;
        let own = self.index.nodes.get(&self.settings.node);
        let (services, endpoints) = progress.synced;
        ServiceSummary {
            node_eligible: own.is_none_or(crate::model::Node::is_eligible),
            service_changes: progress.service_changes,
            service_changes_pending: progress.service_changes - services,
            endpoint_changes: progress.endpoint_changes,
            endpoint_changes_pending: progress.endpoint_changes - endpoints,
            contested: progress.contested,
            no_local_endpoints: progress.no_local_endpoints,
        }
    }
}
