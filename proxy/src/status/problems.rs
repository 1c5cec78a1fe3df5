//! What of a Service is not served as it asks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{FrontendState, FrontendStatus};
use crate::frontend::{Plan, is_possible_endpoint};
use crate::index::Slice;
use crate::model::{Service, ServiceType};

/// Everything that is wrong, in a fixed order, each with what to do about it.
pub(super) fn of(
    service: &Service,
    slices: &[Slice],
    plan: &Plan,
    frontends: &[FrontendStatus],
) -> Vec<String> {
    let mut problems = Vec::new();
    for address in &plan.impossible {
        problems.push(format!(
            "clusterIP {address} cannot be served: use a unicast address that is not loopback"
        ));
    }
    for id in &plan.repeated {
        problems.push(format!(
            "{id} is given twice: only the first port of that number and protocol is served"
        ));
    }
    for frontend in frontends {
        if let FrontendState::Lost { owner } = &frontend.state {
            problems.push(format!(
                "{} is served for the older Service {owner}: use another address or port",
                frontend.id
            ));
        }
    }
    for address in impossible_endpoints(slices) {
        problems.push(format!(
            "endpoint {address} is not used: it means another host on every node; use the \
             address of a pod or a host"
        ));
    }
    problems.extend(unsupported(service).map(str::to_owned));
    problems
}

fn impossible_endpoints(slices: &[Slice]) -> BTreeSet<IpAddr> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints
        .map(|endpoint| endpoint.address)
        .filter(|address| !is_possible_endpoint(*address))
        .collect()
}

/// Features that the Service uses and that this proxy does not have.
fn unsupported(service: &Service) -> impl Iterator<Item = &'static str> {
    let has_node_port = service.kind != ServiceType::ClusterIp
        && service.ports.iter().any(|port| port.node_port.is_some());
    [
        (
            has_node_port,
            "node ports are not served: use the cluster IP",
        ),
        (
            !service.external_ips.is_empty(),
            "externalIPs are not served: use the cluster IP",
        ),
        (
            !service.load_balancer_ips.is_empty(),
            "load balancer addresses are not served: use the cluster IP",
        ),
        (
            service.affinity_seconds.is_some(),
            "sessionAffinity ClientIP is not kept: every connection is balanced anew",
        ),
    ]
    .into_iter()
    .filter_map(|(is_used, problem)| is_used.then_some(problem))
}
