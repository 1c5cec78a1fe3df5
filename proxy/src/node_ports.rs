//! Node ports on loopback addresses, which no rule can translate: a listener serves them
//! and asks here where to connect to.

use std::net::SocketAddr;

use dataplane::object::IpFamily;

use crate::Proxy;
use crate::endpoints::candidates;
use crate::model::{ObjectKey, Protocol, TrafficPolicy};
use crate::topology::Selection;

/// The endpoints of a node port for what this node itself sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePortEndpoints {
    /// Sorted, with weights each as often as it asks; empty where there is none to be used.
    pub endpoints: Vec<SocketAddr>,
    /// Whether a client is to get the same one each time (`sessionAffinity`).
    pub is_sticky: bool,
}

impl Proxy {
    /// Where TCP connections of this node itself to the node port lead: to all endpoints,
    /// whatever the traffic policy (it is about what comes from outside). `claimants` are
    /// Services that have the port; the oldest counts. `None`: none of them has it.
    pub fn node_port_endpoints<'a>(
        &self,
        claimants: impl IntoIterator<Item = &'a ObjectKey>,
        port: u16,
        family: IpFamily,
    ) -> Option<NodePortEndpoints> {
        let entries = claimants.into_iter().filter_map(|key| {
            let entry = self.index.get(key)?;
            let service = entry.service()?;
            let port = service.ports.iter().find(|candidate| {
                candidate.protocol == Protocol::Tcp && candidate.node_port == Some(port)
            })?;
            Some((service, port, &entry.slices))
        });
        let oldest =
            entries.min_by_key(|(service, ..)| (service.created, &service.uid, &service.key));
        let (service, port, slices) = oldest?;
        let candidates = candidates(slices, port, family, &self.node);
        let policy = TrafficPolicy::Cluster;
        let selection = self
            .weights
            .select(service, &candidates, policy, &self.node);
        let targets = match selection {
            Selection::Chosen { targets, .. } => targets,
            Selection::NoneLocal | Selection::None => Vec::new(),
        };
        let mut endpoints: Vec<_> = targets
            .iter()
            .map(|target| SocketAddr::new(target.address, target.port))
            .collect();
        endpoints.sort_unstable();
        Some(NodePortEndpoints {
            endpoints,
            is_sticky: service.affinity_seconds.is_some(),
        })
    }
}
