//! What the servers beside the owner are told: which health checks to answer, and on which
//! ports to listen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::kernel::Kernel;
use dataplane::object::IpFamily;
use proxy::model::{ObjectKey, Protocol, Service, ServiceType};
use proxy::{HealthCheck, NodePortEndpoints};

use super::Owner;
use crate::config::services::NodePortAddress;

/// What the servers do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceNews {
    /// The health checks, sorted by Service.
    pub health_checks: Vec<HealthCheck>,
    /// On which addresses; the unspecified ones stand for all.
    pub health_check_addresses: BTreeSet<IpAddr>,
    /// The TCP node ports to serve on loopback addresses.
    pub loopback_node_ports: BTreeSet<u16>,
}

/// The Services that the servers have to do with: looking for them at each change would
/// cost what there is, not what has changed.
#[derive(Default, Debug)]
pub(super) struct Served {
    health_checked: BTreeSet<ObjectKey>,
    /// Claimants of each TCP node port.
    node_ports: BTreeMap<u16, BTreeSet<ObjectKey>>,
    /// The node ports of each Service.
    ports_of: BTreeMap<ObjectKey, BTreeSet<u16>>,
}

impl Served {
    /// The Service is new, different, or with `None` gone.
    pub(super) fn note(&mut self, key: &ObjectKey, service: Option<&Service>) {
        self.health_checked.remove(key);
        for port in self.ports_of.remove(key).unwrap_or_default() {
            if let Some(claimants) = self.node_ports.get_mut(&port) {
                claimants.remove(key);
                if claimants.is_empty() {
                    self.node_ports.remove(&port);
                }
            }
        }
        let Some(service) = service else { return };
        if service.health_check_node_port.is_some() {
            self.health_checked.insert(key.clone());
        }
        if service.kind == ServiceType::ClusterIp {
            return;
        }
        let tcp = service
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp);
        let ports: BTreeSet<_> = tcp.filter_map(|port| port.node_port).collect();
        for port in &ports {
            let claimants = self.node_ports.entry(*port).or_default();
            claimants.insert(key.clone());
        }
        if !ports.is_empty() {
            self.ports_of.insert(key.clone(), ports);
        }
    }
}

impl<K: Kernel> Owner<K> {
    /// What the servers are to do now.
    pub fn service_news(&self) -> ServiceNews {
        let progress = &self.service_progress;
        let keys = progress.served.health_checked.iter();
        let on_loopback = progress
            .node_port_addresses
            .contains(&NodePortAddress::Localhost);
        let mut addresses = self.served_addresses();
        if progress.node_port_addresses.contains(&NodePortAddress::All) {
            addresses = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].into();
        } else if on_loopback {
            let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            addresses.extend(loopback);
        }
        ServiceNews {
            health_checks: keys
                .filter_map(|key| self.proxy.health_check(key))
                .collect(),
            health_check_addresses: addresses,
            loopback_node_ports: match on_loopback {
                true => progress.served.node_ports.keys().copied().collect(),
                false => BTreeSet::new(),
            },
        }
    }

    /// Where this node's own connections to the TCP node port lead; `None`: it is nobody's.
    pub fn node_port_endpoints(&self, port: u16, family: IpFamily) -> Option<NodePortEndpoints> {
        let claimants = self.service_progress.served.node_ports.get(&port)?;
        self.proxy.node_port_endpoints(claimants, port, family)
    }
}
