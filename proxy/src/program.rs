//! What each frontend of a Service is to do.

use dataplane::desired::Desired;
use dataplane::layout::services::Masquerade;

use crate::affinity::Audience;
use crate::endpoints::candidates;
use crate::frontend::{self, Frontend, FrontendKind};
use crate::index::PlannedService;
use crate::maps::{Outcome, Program};
use crate::model::{ObjectKey, TrafficPolicy};
use crate::ranges::ParsedRanges;
use crate::scheduler::Scheduler;
use crate::topology::Selection;
use crate::{Proxy, SyncReport};

impl Proxy {
    /// Brings the frontends of a Service up to date.
    pub(crate) fn compile(
        &mut self,
        key: &ObjectKey,
        desired: &mut Desired,
        report: &mut SyncReport,
    ) {
        let Some(entry) = self.index.begin(key) else {
            return;
        };
        let Some(PlannedService { service, plan }) = &entry.service else {
            return;
        };
        report.services += 1;
        let ranges = ParsedRanges::of(service);
        let scheduler = Scheduler::of(service).unwrap_or_default();
        for group in plan.groups() {
            let port = &service.ports[group[0].port];
            let candidates = candidates(&entry.slices, port, group[0].id.family(), &self.node);
            for frontend in group {
                if self.claims.owner(frontend.id) != Some(key) {
                    continue;
                }
                let is_external = frontend.kind.is_external();
                let outcome = |policy| {
                    let weights = &self.weights;
                    let selection = weights.select(service, &candidates, policy, &self.node);
                    outcome(scheduler, is_external, selection)
                };
                let all = outcome(frontend.policy);
                let for_cluster = frontend.has_short_cut();
                let cluster = for_cluster.then(|| outcome(TrafficPolicy::Cluster));
                let affinity = if let Some(seconds) = service.affinity_seconds {
                    let audience = Audience::of(key, port, frontend);
                    Some((seconds, self.affinity.join(frontend.id, audience)))
                } else {
                    self.affinity.leave(frontend.id);
                    None
                };
                let is_restricted = frontend.kind == FrontendKind::LoadBalancer;
                let addresses = &self.surroundings.node_addresses;
                let program = Program {
                    all,
                    cluster: cluster.filter(|outcome| matches!(outcome, Outcome::Served(_))),
                    algorithm: scheduler.algorithm(is_external),
                    masquerade: masquerade(frontend),
                    affinity,
                    ranges: is_restricted
                        .then(|| ranges.for_address(frontend.id.address, addresses))
                        .flatten(),
                    comment: frontend::comment(key, port),
                };
                self.maps.program(desired, frontend.id, &program, report);
            }
        }
    }
}

/// Whose source addresses are replaced. What is sent to a cluster IP is known by that
/// address, without an element of its own.
fn masquerade(frontend: &Frontend) -> Option<Masquerade> {
    match (frontend.kind, frontend.policy) {
        (FrontendKind::ClusterIp, _) => None,
        (_, TrafficPolicy::Cluster) => Some(Masquerade::All),
        (_, TrafficPolicy::Local) => Some(Masquerade::OwnTraffic),
    }
}

fn outcome(scheduler: Scheduler, is_external: bool, selection: Selection) -> Outcome {
    match selection {
        Selection::Chosen { targets, .. } => Outcome::Served(scheduler.place(is_external, targets)),
        Selection::NoneLocal => Outcome::Dropped,
        Selection::None => Outcome::Refused,
    }
}
