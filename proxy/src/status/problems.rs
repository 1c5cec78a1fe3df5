//! What of a Service is not served as it asks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::object::IpFamily;

use super::{FrontendState, FrontendStatus};
use crate::frontend::{FrontendKind, Plan, Refused, Why, is_possible_endpoint};
use crate::index::Slice;
use crate::model::Service;
use crate::ranges::ParsedRanges;
use crate::scheduler::Scheduler;

/// Everything that is wrong, in a fixed order, each with what to do about it.
pub(super) fn of(
    service: &Service,
    slices: &[Slice],
    plan: &Plan,
    frontends: &[FrontendStatus],
) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(plan.refused.iter().map(refused));
    for id in &plan.repeated {
        problems.push(format!(
            "{id} is given twice: only the first port of that number and protocol is served"
        ));
    }
    for frontend in frontends {
        if let FrontendState::Lost { owner } = &frontend.state {
            problems.push(format!(
                "{} is served for Service {owner}, which has the better claim: use another \
                 address or port",
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
    problems.extend(source_ranges(service, plan));
    problems.extend(Scheduler::of(service).err());
    problems
}

fn refused(refused: &Refused) -> String {
    let (field, address) = (refused.kind.field(), refused.address);
    match refused.why {
        Why::Impossible => format!(
            "{field} {address} cannot be served: use a unicast address that is not loopback"
        ),
        Why::OtherFamily => format!(
            "{field} {address} is not served: the Service has no cluster IP of that family; set \
             ipFamilies and ipFamilyPolicy, or remove it"
        ),
        Why::NotAllowed => {
            format!("{field} {address} is not served: the settings of the agent do not allow it")
        }
        Why::ServiceRange => format!(
            "{field} {address} is not served: it is in the range of cluster IPs; use an address \
             outside"
        ),
    }
}

fn source_ranges(service: &Service, plan: &Plan) -> Vec<String> {
    let ranges = ParsedRanges::of(service);
    let invalid = ranges.invalid.iter();
    let mut problems: Vec<_> = invalid
        .map(|text| {
            format!(
                "loadBalancerSourceRanges: {text:?} is no network and lets nobody in: use a form \
                 like 192.0.2.0/24"
            )
        })
        .collect();
    let mut addresses: BTreeSet<_> = plan
        .frontends
        .iter()
        .filter(|frontend| frontend.kind == FrontendKind::LoadBalancer)
        .map(|frontend| frontend.id.address)
        .collect();
    addresses.retain(|address| ranges.leave_open(IpFamily::of(*address)));
    problems.extend(addresses.into_iter().map(|address| {
        format!(
            "loadBalancerSourceRanges has no network of the family of {address}, which is open to \
             all: add one"
        )
    }));
    problems
}

fn impossible_endpoints(slices: &[Slice]) -> BTreeSet<IpAddr> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints
        .map(|endpoint| endpoint.address)
        .filter(|address| !is_possible_endpoint(*address))
        .collect()
}
