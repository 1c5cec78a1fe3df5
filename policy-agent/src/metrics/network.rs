//! The pod network of the cluster; without values where the agent does not see to it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::whole;
use crate::network::NetworkStatus;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PerPath {
    path: &'static str,
}

pub(super) struct Network {
    routes: Family<PerPath, Gauge>,
    problems: Gauge,
    repairs: Counter,
}

impl Network {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let network = Self {
            routes: Family::default(),
            problems: Gauge::default(),
            repairs: Counter::default(),
        };
        registry.register(
            "network_routes",
            "PodCIDRs of other nodes that are reached",
            network.routes.clone(),
        );
        registry.register(
            "network_problems",
            "Problems of other Nodes' addresses and PodCIDRs",
            network.problems.clone(),
        );
        registry.register(
            "network_repairs",
            "Times that others had changed our routes, tunnels or neighbours",
            network.repairs.clone(),
        );
        network
    }

    pub(super) fn set(&self, status: &NetworkStatus) {
        for path in ["direct", "vxlan"] {
            let routes = status.routes.iter().filter(|route| route.path == path);
            let gauge = self.routes.get_or_create(&PerPath { path });
            gauge.set(whole(routes.count()));
        }
        self.problems.set(whole(status.problems.len()));
        let counted = self.repairs.get();
        self.repairs.inc_by(status.repairs.saturating_sub(counted));
    }
}
