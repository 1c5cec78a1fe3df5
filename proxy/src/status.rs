//! What `services` shows: how each Service is served on this node, and what is not.

mod problems;

use std::fmt;
use std::net::IpAddr;

use dataplane::layout::services::Sources;
use serde::{Deserialize, Serialize};

use crate::Proxy;
use crate::endpoints::candidates;
use crate::frontend::{Frontend, FrontendId, FrontendKind};
use crate::index::{Entry, PlannedService};
use crate::model::{ObjectKey, Service, TrafficPolicy};
use crate::topology::{Candidate, Criterion, Selection};

/// A Service as this node serves it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Namespace and name.
    #[serde(flatten)]
    pub key: ObjectKey,
    /// Its frontends, in the order of its ports and addresses.
    pub frontends: Vec<FrontendStatus>,
    /// What of it is not served as it asks, and what to do.
    pub problems: Vec<String>,
}

/// A frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    /// Address, protocol and port.
    #[serde(flatten)]
    pub id: FrontendId,
    /// Name of the port; empty where the only port has none.
    pub port_name: String,
    /// By which of the Service's addresses it is reached.
    pub kind: FrontendKind,
    /// What happens to a new connection.
    #[serde(flatten)]
    pub state: FrontendState,
    /// What happens to one from a pod of the cluster or from this node, where that is
    /// different.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_cluster: Option<FrontendState>,
    /// All endpoints of the port and family, used or not, sorted by address and port.
    pub endpoints: Vec<EndpointStatus>,
}

/// What happens to a new connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum FrontendState {
    /// It goes to one of the endpoints that have a slot.
    Served {
        /// Why just these.
        by: Criterion,
    },
    /// It is refused: there is no usable endpoint.
    Refused,
    /// It is dropped: usable endpoints are on other nodes only, and the traffic policy
    /// is Local.
    Dropped,
    /// Another Service owns the frontend, and its state counts.
    Lost {
        /// The owner, `namespace/name`.
        owner: String,
    },
}

/// An endpoint of a frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Its slot, the first if it has several; `None`: not used, or by sources of the
    /// cluster only.
    pub slot: Option<u32>,
    /// Condition `ready`.
    pub ready: bool,
    /// Condition `serving`.
    pub serving: bool,
    /// Condition `terminating`.
    pub terminating: bool,
    /// Node.
    pub node: Option<String>,
    /// Zone.
    pub zone: Option<String>,
    /// Its weight, where the Service's scheduler has weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl From<Selection> for FrontendState {
    fn from(selection: Selection) -> Self {
        match selection {
            Selection::Chosen { by, .. } => Self::Served { by },
            Selection::NoneLocal => Self::Dropped,
            Selection::None => Self::Refused,
        }
    }
}

impl Proxy {
    /// `None`: slices without a Service.
    pub(crate) fn status(&self, entry: &Entry) -> Option<ServiceStatus> {
        let PlannedService { service, plan } = entry.service.as_ref()?;
        let slices = &entry.slices;
        let mut frontends = Vec::new();
        let mut of_weights = Vec::new();
        for group in plan.groups() {
            let port = &service.ports[group[0].port];
            let candidates = candidates(slices, port, group[0].id.family(), &self.node);
            of_weights.extend(self.weights.problems(service, &candidates));
            for frontend in group {
                let mut status = self.frontend(service, frontend, &candidates);
                status.port_name.clone_from(&port.name);
                frontends.push(status);
            }
        }
        let mut problems = problems::of(service, slices, plan, &frontends);
        of_weights.sort_unstable();
        of_weights.dedup();
        problems.append(&mut of_weights);
        Some(ServiceStatus {
            key: service.key.clone(),
            problems,
            frontends,
        })
    }

    fn frontend(
        &self,
        service: &Service,
        frontend: &Frontend,
        candidates: &[Candidate<'_>],
    ) -> FrontendStatus {
        let owner = self.claims.owner(frontend.id);
        let is_lost = owner != Some(&service.key);
        let select = |policy| {
            let selection = self.weights.select(service, candidates, policy, &self.node);
            FrontendState::from(selection)
        };
        let state = if is_lost {
            FrontendState::Lost {
                owner: owner.map(ToString::to_string).unwrap_or_default(),
            }
        } else {
            select(frontend.policy)
        };
        let has_short_cut = frontend.has_short_cut();
        let from_cluster = has_short_cut.then(|| select(TrafficPolicy::Cluster));
        let from_cluster = from_cluster.filter(|other| !is_lost && *other != state);
        // The slots of a lost frontend are those of its owner's endpoints.
        let used = if is_lost {
            &[]
        } else {
            self.maps.targets(frontend.id, Sources::All)
        };
        let mut slots: Vec<_> = (0..)
            .zip(used)
            .map(|(slot, target)| (*target, slot))
            .collect();
        slots.sort_unstable();
        slots.dedup_by_key(|(target, _)| *target);
        let endpoints = candidates.iter().map(|candidate| {
            let found = slots.binary_search_by_key(&candidate.target, |(target, _)| *target);
            let slot = found.ok().map(|at| slots[at].1);
            let weight = self.weights.shown(service, candidate);
            endpoint(candidate, slot, weight)
        });
        FrontendStatus {
            id: frontend.id,
            port_name: String::new(),
            kind: frontend.kind,
            state,
            from_cluster,
            endpoints: endpoints.collect(),
        }
    }
}

fn endpoint(candidate: &Candidate<'_>, slot: Option<u32>, weight: Option<u32>) -> EndpointStatus {
    EndpointStatus {
        address: candidate.target.address,
        port: candidate.target.port,
        slot,
        ready: candidate.conditions.ready,
        serving: candidate.conditions.serving,
        terminating: candidate.conditions.terminating,
        node: candidate.node.map(str::to_owned),
        zone: candidate.zone.map(str::to_owned),
        weight,
    }
}

impl fmt::Display for ServiceStatus {
    /// One line for the Service and one for each frontend, endpoint and problem, without
    /// a final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        for frontend in &self.frontends {
            write!(f, "\n  {frontend}")?;
        }
        for problem in &self.problems {
            write!(f, "\n  problem: {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for FrontendStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        if !self.port_name.is_empty() {
            write!(f, " {}", self.port_name)?;
        }
        write!(f, " {}", self.state)?;
        if let Some(state) = &self.from_cluster {
            write!(f, "; from the cluster {state}")?;
        }
        for endpoint in &self.endpoints {
            write!(f, "\n    {endpoint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for FrontendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served { by } => f.write_str(describe(*by)),
            Self::Refused => f.write_str("refused: no usable endpoint"),
            Self::Dropped => f.write_str("dropped: no usable endpoint on this node"),
            Self::Lost { owner } => write!(f, "is served for {owner}"),
        }
    }
}

impl fmt::Display for EndpointStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = std::net::SocketAddr::new(self.address, self.port);
        match self.slot {
            Some(slot) => write!(f, "{slot}: {socket}")?,
            None => write!(f, "-: {socket}")?,
        }
        for (holds, word) in [
            (self.ready, "ready"),
            (self.serving && !self.ready, "serving"),
            (self.terminating, "terminating"),
        ] {
            if holds {
                write!(f, " {word}")?;
            }
        }
        if let Some(weight) = self.weight {
            write!(f, " weight {weight}")?;
        }
        match &self.node {
            Some(node) => write!(f, " on {node}"),
            None => Ok(()),
        }
    }
}

const fn describe(by: Criterion) -> &'static str {
    match by {
        Criterion::Ready => "to all ready endpoints",
        Criterion::SameNode => "to endpoints hinted for this node",
        Criterion::SameZone => "to endpoints hinted for this zone",
        Criterion::Local => "to endpoints on this node",
        Criterion::Terminating => "to terminating endpoints: none is ready",
        Criterion::LocalTerminating => "to terminating endpoints on this node: none is ready",
    }
}
