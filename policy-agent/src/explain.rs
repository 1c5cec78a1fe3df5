//! `explain`: whether a connection comes about, and why.
//!
//! Three voices, compared: what the API's text says ([`crate::verdict`]), how the Service
//! is served ([`proxy::ServiceStatus`]), and what the kernel holds at this moment: its
//! dumped tables are walked with exactly this packet ([`kernel`]). Where they disagree, that is
//! the answer.

pub mod answer;
mod audit;
pub mod describe;
pub mod kernel;
mod nearest;
pub mod query;
mod resolve;
mod text;

use std::net::{IpAddr, SocketAddr};

use dataplane::object::Ruleset;
use proxy::{EndpointStatus, FrontendState, FrontendStatus};

use crate::explain::describe::Described;
use crate::explain::query::{Query, QueryError};
use crate::explain::resolve::{Aim, Resolved};
use crate::index::Owner;
use crate::model::cluster_policy::Tier;
use crate::model::{NetworkPolicy, Pod};
use crate::snapshot::Snapshot;
use crate::verdict::{Cluster, ClusterRuleRef, Direction, Flow, Judgement, RuleRef};

pub use crate::explain::answer::{
    Connection, Decision, Explanation, NearMiss, Outcome, RuleText, ServiceStep, Side,
};
pub use crate::explain::kernel::KernelCheck;
pub use crate::explain::resolve::about;
pub(crate) use crate::explain::resolve::whose;

/// Explains what becomes of a connection. `live` is what the kernel holds, or why that is
/// not known.
///
/// # Errors
/// Where it is not clear who or what is meant, see [`QueryError`].
pub fn explain(
    snapshot: &Snapshot,
    query: &Query,
    live: Result<&Ruleset, &str>,
) -> Result<Explanation, QueryError> {
    let resolved = resolve::resolve(snapshot, query)?;
    let enforced = snapshot.enforced();
    let explainer = Explainer {
        snapshot,
        cluster: snapshot.cluster(),
        audited: enforced
            .as_ref()
            .map(|policies| snapshot.cluster_with(policies)),
        live,
    };
    let Resolved {
        from,
        to,
        mut notes,
        aims,
    } = resolved;
    if !snapshot.is_synced {
        notes.push("the kernel does not hold the last changes yet: ask again".into());
    }
    let connections: Vec<_> = aims.iter().flat_map(|aim| explainer.aim(aim)).collect();
    Ok(Explanation {
        from,
        to,
        outcome: outcome(&connections),
        notes,
        connections,
    })
}

fn outcome(connections: &[Connection]) -> Outcome {
    let disagrees = |c: &Connection| matches!(c.kernel, KernelCheck::Disagrees { .. });
    if connections.iter().any(disagrees) {
        Outcome::Disagreement
    } else if connections.iter().all(|c| c.allowed) {
        Outcome::Allowed
    } else if connections.iter().any(|c| c.allowed) {
        Outcome::Partly
    } else {
        Outcome::Denied
    }
}

struct Explainer<'a> {
    snapshot: &'a Snapshot,
    cluster: Cluster<'a>,
    /// With all NetworkPolicies enforced, where some are audited.
    audited: Option<Cluster<'a>>,
    live: Result<&'a Ruleset, &'a str>,
}

impl Explainer<'_> {
    fn aim(&self, aim: &Aim) -> Vec<Connection> {
        match aim {
            Aim::Address {
                source,
                destination,
                transport,
                ports,
            } => {
                let flow = Flow {
                    source: *source,
                    destination: *destination,
                    transport: *transport,
                };
                vec![self.connection(&flow, ports, None)]
            }
            Aim::Frontend {
                source,
                service,
                frontend,
            } => self.frontend(*source, service, frontend),
        }
    }

    fn frontend(
        &self,
        source: IpAddr,
        service: &str,
        frontend: &FrontendStatus,
    ) -> Vec<Connection> {
        let used = || frontend.endpoints.iter().filter(|e| e.slot.is_some());
        let slots = used().count();
        let step = |how: String, slot: Option<u32>| ServiceStep {
            service: service.to_owned(),
            frontend: frontend.id.to_string(),
            how,
            slot,
            slots,
        };
        let none = match &frontend.state {
            FrontendState::Served { .. } if slots > 0 => {
                let how = frontend.to_string();
                let how = how.lines().next().unwrap_or_default().to_owned();
                let target = |endpoint: &EndpointStatus| {
                    let flow = Flow {
                        source,
                        destination: endpoint.address,
                        transport: crate::verdict::Transport::Port(
                            frontend.id.protocol,
                            endpoint.port,
                        ),
                    };
                    let ports = format!("{}/{}", endpoint.port, frontend.id.protocol);
                    let at = SocketAddr::new(frontend.id.address, frontend.id.port);
                    self.connection(&flow, &ports, Some((step(how.clone(), endpoint.slot), at)))
                };
                return used().map(target).collect();
            }
            FrontendState::Served { .. } | FrontendState::Refused => {
                "refused: it has no usable endpoint"
            }
            FrontendState::Dropped => {
                "dropped: its usable endpoints are on other nodes, and its traffic policy is Local"
            }
            FrontendState::Lost { owner } => {
                let how = format!("the address belongs to Service {owner}");
                return vec![self.unserved(source, frontend, step(how, None))];
            }
        };
        vec![self.unserved(source, frontend, step(none.into(), None))]
    }

    fn unserved(&self, source: IpAddr, frontend: &FrontendStatus, step: ServiceStep) -> Connection {
        let id = frontend.id;
        let is_lost = matches!(frontend.state, FrontendState::Lost { .. });
        let kernel = if is_lost {
            KernelCheck::skipped("another Service has the address")
        } else {
            let walk = kernel::Walk {
                snapshot: self.snapshot,
                source,
                destination: SocketAddr::new(id.address, id.port),
                transport: crate::verdict::Transport::Port(id.protocol, id.port),
                slot: 0,
            };
            kernel::check(self.live, &walk, None)
        };
        Connection {
            source,
            service: Some(step),
            destination: None,
            to: None,
            ports: format!("{}/{}", id.port, id.protocol),
            path: "to a Service that nothing serves".into(),
            allowed: false,
            egress: None,
            ingress: None,
            kernel,
        }
    }

    fn connection(
        &self,
        flow: &Flow,
        ports: &str,
        service: Option<(ServiceStep, SocketAddr)>,
    ) -> Connection {
        let verdict = self.cluster.judge(flow);
        let audited = self.audited.as_ref().map(|cluster| cluster.judge(flow));
        let egress = self.side(
            Direction::Egress,
            flow,
            &verdict.egress,
            audited.as_ref().map(|verdict| &verdict.egress),
        );
        let ingress = self.side(
            Direction::Ingress,
            flow,
            &verdict.ingress,
            audited.as_ref().map(|verdict| &verdict.ingress),
        );
        let sides = || [&egress, &ingress].into_iter().flatten();
        let allowed = sides().all(Side::is_allowed);
        // What is decided elsewhere passes here.
        let passes_here = sides()
            .filter(|side| side.decided_on.is_none())
            .all(Side::is_allowed);
        let sent_to = match &service {
            // Another node translates what its own pods send.
            Some((_, frontend)) if !self.is_elsewhere(flow.source) => *frontend,
            _ => SocketAddr::new(flow.destination, kernel::port(flow.transport)),
        };
        let walk = kernel::Walk {
            snapshot: self.snapshot,
            source: flow.source,
            destination: sent_to,
            transport: flow.transport,
            slot: service
                .as_ref()
                .and_then(|(step, _)| step.slot)
                .unwrap_or(0),
        };
        let expected = kernel::Expected {
            destination: SocketAddr::new(flow.destination, kernel::port(flow.transport)),
            passes: passes_here,
        };
        Connection {
            source: flow.source,
            service: service.map(|(step, _)| step),
            destination: Some(flow.destination),
            to: Some(resolve::whose(self.snapshot, flow.destination)),
            ports: ports.to_owned(),
            path: verdict.path.to_string(),
            allowed,
            egress,
            ingress,
            kernel: kernel::check(self.live, &walk, Some(&expected)),
        }
    }

    /// Whether the address is that of a pod on another node.
    fn is_elsewhere(&self, address: IpAddr) -> bool {
        self.cluster.owner(address).is_some() && !self.snapshot.is_here(address)
    }

    fn side(
        &self,
        direction: Direction,
        flow: &Flow,
        judgement: &Judgement<'_>,
        audited: Option<&Judgement<'_>>,
    ) -> Option<Side> {
        let (own, other) = match direction {
            Direction::Ingress => (flow.destination, flow.source),
            Direction::Egress => (flow.source, flow.destination),
        };
        let index = &self.snapshot.index;
        let pod = match index.owner(own) {
            Owner::UnknownPod => {
                let pod = index.holder(own).and_then(crate::index::pod_key);
                let name = pod.map_or_else(|| own.to_string(), |pod| pod.to_string());
                return Some(Side::new(name, Decision::Closed));
            }
            Owner::Container => {
                return Some(Side::new(own.to_string(), Decision::NotIsolated));
            }
            Owner::Nobody => return None,
            Owner::Pod(pod) => pod,
        };
        if let Some(interface) = self.snapshot.unguarded(own) {
            return Some(self.unguarded(direction, pod, interface));
        }
        let mut side = match judgement {
            Judgement::Exempt => return None,
            Judgement::NotIsolated { .. } => Side::new(pod.key.to_string(), Decision::NotIsolated),
            Judgement::Allowed { isolating, by, .. } => Side {
                by: Some(rule_text(by)),
                isolated_by: keys(isolating),
                ..Side::new(pod.key.to_string(), Decision::Allowed)
            },
            Judgement::Accepted { by, .. } => Side {
                by: Some(cluster_rule_text(by)),
                ..Side::new(pod.key.to_string(), Decision::Allowed)
            },
            Judgement::Refused { by, .. } => Side {
                by: Some(cluster_rule_text(by)),
                ..Side::new(pod.key.to_string(), Decision::Denied)
            },
            Judgement::Unknown { .. } => Side::new(pod.key.to_string(), Decision::NoNamespace),
            Judgement::Denied { isolating, .. } => Side {
                isolated_by: keys(isolating),
                nearest: self.nearest(direction, flow, self.cluster.owner(other), isolating),
                ..Side::new(pod.key.to_string(), Decision::Denied)
            },
        };
        if !self.snapshot.is_here(own) {
            let node = pod.node.as_deref().unwrap_or("(not scheduled yet)");
            side.decided_on = Some(node.to_owned());
        }
        self.audit(&mut side, (direction, flow, pod), audited);
        Some(side)
    }

    /// The side of a pod that another plugin has attached, with what selects it in vain.
    fn unguarded(&self, direction: Direction, pod: &Pod, interface: &str) -> Side {
        let tiers = [Tier::Admin, Tier::Baseline].into_iter().flat_map(|tier| {
            let selecting = self.cluster.selecting(tier, pod, direction);
            selecting.map(move |(policy, _)| format!("{tier} {}", policy.name))
        });
        let isolating = self.cluster.isolating(pod, direction);
        let isolating = isolating.map(|(policy, _)| policy.key.to_string());
        Side {
            isolated_by: tiers.chain(isolating).collect(),
            reached_by: Some(interface.to_owned()),
            ..Side::new(pod.key.to_string(), Decision::NotEnforced)
        }
    }

    fn nearest(
        &self,
        direction: Direction,
        flow: &Flow,
        peer: Option<&Pod>,
        isolating: &[&NetworkPolicy],
    ) -> Option<NearMiss> {
        let side = nearest::Side {
            index: &self.snapshot.index,
            flow,
            direction,
            peer,
            destination: self.cluster.owner(flow.destination),
        };
        let (policy, number, near) = side.nearest(isolating.iter().copied())?;
        Some(NearMiss {
            rule: RuleText {
                policy: policy.key.to_string(),
                field: format!("spec.{direction}[{number}]"),
                text: near.rule,
            },
            why: near.why,
        })
    }
}

fn keys(policies: &[&NetworkPolicy]) -> Vec<String> {
    policies
        .iter()
        .map(|policy| policy.key.to_string())
        .collect()
}

fn rule_text(by: &RuleRef<'_>) -> RuleText {
    let rules = match by.direction {
        Direction::Ingress => &by.policy.ingress,
        Direction::Egress => &by.policy.egress,
    };
    let rule = rules.iter().flatten().nth(by.rule);
    let described = rule.map(|rule| Described {
        rule,
        direction: by.direction,
        namespace: &by.policy.key.namespace,
    });
    RuleText {
        policy: by.policy.key.to_string(),
        field: format!("spec.{}[{}]", by.direction, by.rule),
        text: described.map(|rule| rule.to_string()).unwrap_or_default(),
    }
}

fn cluster_rule_text(by: &ClusterRuleRef<'_>) -> RuleText {
    let described = Described {
        rule: &by.rule.matches,
        direction: by.direction,
        namespace: "",
    };
    RuleText {
        policy: format!("{} {}", by.policy.tier, by.policy.name),
        field: format!("spec.{}[{}]", by.direction, by.index),
        text: format!("{} {described}", by.rule.action),
    }
}

#[cfg(test)]
mod tests;
