//! The endpoints of a service port: its slices merged into one list.

use std::cmp::Reverse;

use dataplane::object::IpFamily;

use crate::frontend::is_possible_endpoint;
use crate::index::Slice;
use crate::model::ServicePort;
use crate::slots::Target;
use crate::topology::{Candidate, NodeIdentity};

/// The endpoints of the port in one family, sorted by address and port, each once.
///
/// An endpoint that moves from one slice to another is in both for a moment. Then the
/// entry that says it is on this node counts, then the one that says it is the more
/// usable, then the one in the slice whose name comes first.
pub(crate) fn candidates<'a>(
    slices: &'a [Slice],
    port: &ServicePort,
    family: IpFamily,
    node: &NodeIdentity,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices {
        let mut ports = slice.ports.iter();
        let Some(number) = ports
            .find(|entry| entry.protocol == port.protocol && entry.name == port.name)
            .map(|entry| entry.port)
            .filter(|number| *number != 0)
        else {
            continue;
        };
        for (endpoint, pod) in slice.endpoints() {
            if IpFamily::of(endpoint.address) != family || !is_possible_endpoint(endpoint.address) {
                continue;
            }
            candidates.push(Candidate {
                target: Target {
                    address: endpoint.address,
                    port: number,
                },
                is_local: endpoint.node.as_deref() == Some(&*node.name),
                conditions: endpoint.conditions,
                hints: endpoint.hints.as_deref(),
                node: endpoint.node.as_deref(),
                zone: endpoint.zone.as_deref(),
                pod,
                slice_weight: slice.weight.as_deref(),
            });
        }
    }
    candidates.sort_by_key(|candidate| {
        let usable = candidate.conditions.usability();
        (candidate.target, Reverse((candidate.is_local, usable)))
    });
    candidates.dedup_by_key(|candidate| candidate.target);
    candidates
}
