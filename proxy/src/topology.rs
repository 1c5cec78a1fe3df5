//! Which endpoints of a Service this node uses.
//!
//! The rules are those of every Kubernetes proxy: readiness, with terminating endpoints
//! as a last resort (KEP-1669), traffic policies (KEP-2086), topology hints per zone
//! (KEP-2433) and per node (KEP-3015).

use serde::{Deserialize, Serialize};

use crate::model::TrafficPolicy;
use crate::slots::Target;

/// What this node is to the rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeIdentity {
    /// Name of the Node object.
    pub name: String,
    /// Its label `topology.kubernetes.io/zone`; empty counts as none.
    pub zone: Option<String>,
}

/// Conditions of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conditions {
    /// Serving and not terminating, or published regardless.
    pub ready: bool,
    /// Answers, terminating or not.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
}

/// How usable an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Usability {
    /// Not to be used.
    None,
    /// Still answers: to be used where none is ready.
    Terminating,
    /// To be used.
    Ready,
}

impl Conditions {
    /// How usable the endpoint is.
    pub const fn usability(self) -> Usability {
        match self {
            Self { ready: true, .. } => Usability::Ready,
            Self {
                serving: true,
                terminating: true,
                ..
            } => Usability::Terminating,
            _ => Usability::None,
        }
    }
}

/// For whom an endpoint is, in the eyes of the EndpointSlice controller.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Hints {
    /// `forNodes`.
    pub nodes: Vec<String>,
    /// `forZones`.
    pub zones: Vec<String>,
}

/// An endpoint to choose from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate<'a> {
    /// Where it listens.
    pub target: Target,
    /// Whether it is on this node.
    pub is_local: bool,
    /// Conditions.
    pub conditions: Conditions,
    /// For whom it is; `None`: nothing is said.
    pub hints: Option<&'a Hints>,
    /// Its node.
    pub node: Option<&'a str>,
    /// Its zone.
    pub zone: Option<&'a str>,
    /// Name of its pod.
    pub pod: Option<&'a str>,
    /// What its slice says of its weight.
    pub slice_weight: Option<&'a str>,
}

impl Candidate<'_> {
    fn hinted_nodes(&self) -> &[String] {
        self.hints.map_or(&[], |hints| &hints.nodes)
    }

    fn hinted_zones(&self) -> &[String] {
        self.hints.map_or(&[], |hints| &hints.zones)
    }
}

/// Why just these endpoints are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Criterion {
    /// All that are ready.
    Ready,
    /// Those that are ready and hinted for this node.
    SameNode,
    /// Those that are ready and hinted for this node's zone.
    SameZone,
    /// Those that are ready on this node.
    Local,
    /// None is ready: those that terminate and still answer.
    Terminating,
    /// None is ready on this node: those on it that terminate and still answer.
    LocalTerminating,
}

/// The endpoints that a frontend leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// These, at least one, in the order of the candidates.
    Chosen {
        /// Why these.
        by: Criterion,
        /// Where they listen; with weights, each as often as it asks.
        targets: Vec<Target>,
    },
    /// Only endpoints on other nodes could be used, and the traffic policy forbids it.
    NoneLocal,
    /// No endpoint can be used.
    None,
}

/// The endpoints that a frontend with the traffic policy leads to on the node.
///
/// `Local` knows no hints: it says already which endpoints are meant.
pub fn select(
    candidates: &[Candidate<'_>],
    policy: TrafficPolicy,
    node: &NodeIdentity,
) -> Selection {
    match policy {
        TrafficPolicy::Cluster => cluster(candidates, node),
        TrafficPolicy::Local => local(candidates),
    }
}

fn cluster(candidates: &[Candidate<'_>], node: &NodeIdentity) -> Selection {
    let zone = node.zone.as_deref().filter(|zone| !zone.is_empty());
    let for_node = |c: &Candidate<'_>| c.hinted_nodes().contains(&node.name);
    let for_zone = |c: &Candidate<'_>| c.hinted_zones().iter().any(|z| Some(&**z) == zone);

    let ready = || with(candidates, Usability::Ready);
    // A hint that one endpoint lacks, or that leaves this node without any, is from a
    // controller that does not know the whole: then none counts.
    let by = if ready().all(|c| !c.hinted_nodes().is_empty()) && ready().any(for_node) {
        Criterion::SameNode
    } else if ready().all(|c| !c.hinted_zones().is_empty()) && ready().any(for_zone) {
        Criterion::SameZone
    } else {
        Criterion::Ready
    };
    let chosen = ready().filter(|candidate| match by {
        Criterion::SameNode => for_node(candidate),
        Criterion::SameZone => for_zone(candidate),
        _ => true,
    });
    chosen_or(by, chosen, || {
        let terminating = with(candidates, Usability::Terminating);
        chosen_or(Criterion::Terminating, terminating, || Selection::None)
    })
}

fn local(candidates: &[Candidate<'_>]) -> Selection {
    let here = |usability| with(candidates, usability).filter(|c| c.is_local);
    chosen_or(Criterion::Local, here(Usability::Ready), || {
        let terminating = here(Usability::Terminating);
        chosen_or(Criterion::LocalTerminating, terminating, || {
            let is_usable = |c: &Candidate<'_>| c.conditions.usability() > Usability::None;
            if candidates.iter().any(is_usable) {
                Selection::NoneLocal
            } else {
                Selection::None
            }
        })
    })
}

fn with<'c, 'a>(
    candidates: &'c [Candidate<'a>],
    usability: Usability,
) -> impl Iterator<Item = &'c Candidate<'a>> {
    let has = move |c: &&Candidate<'a>| c.conditions.usability() == usability;
    candidates.iter().filter(has)
}

fn chosen_or<'c, 'a: 'c>(
    by: Criterion,
    chosen: impl Iterator<Item = &'c Candidate<'a>>,
    otherwise: impl FnOnce() -> Selection,
) -> Selection {
    let targets: Vec<_> = chosen.map(|candidate| candidate.target).collect();
    if targets.is_empty() {
        otherwise()
    } else {
        Selection::Chosen { by, targets }
    }
}

#[cfg(test)]
mod tests;
