//! What the owner knows at one moment, for questions that take longer than it may wait:
//! explanations, matrices, findings, plans and records of denied packets are made from a
//! snapshot, away from the owner's thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::attachment::PORT_PREFIX;
use proxy::ServiceStatus;
use proxy::model::ObjectKey;

use crate::compile::PolicyGroup;
use crate::index::{Index, Owner as AddressOwner};
use crate::model::{NetworkPolicy, Pod};
use crate::verdict::Cluster;

/// Which Services a snapshot is to hold; all the rest is in each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct About {
    /// These.
    pub services: Vec<ObjectKey>,
    /// Those that are reached at these addresses.
    pub addresses: Vec<IpAddr>,
}

/// The state of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name of this node.
    pub node: String,
    /// The objects and attachments.
    pub index: Index,
    /// All Services.
    pub service_keys: Vec<ObjectKey>,
    /// The Services that were asked for.
    pub services: Vec<ServiceStatus>,
    /// The policy groups of this node by the names of their chains.
    pub groups: BTreeMap<String, PolicyGroup>,
    /// Interfaces behind which policies hold, beside those of this plugin's own ports.
    pub pod_interfaces: BTreeSet<String>,
    /// Addresses of this node itself.
    pub node_addresses: BTreeSet<IpAddr>,
    /// By which interface addresses are reached that are of [`Self::unattached`].
    pub ways: BTreeMap<IpAddr, String>,
    /// Whether the kernel holds all of it.
    pub is_synced: bool,
    /// Grows with every change.
    pub revision: u64,
}

impl Snapshot {
    /// With the addresses that the interfaces of this network namespace have.
    #[must_use]
    pub fn with_node_addresses(mut self) -> Self {
        self.node_addresses = local_addresses();
        self
    }

    /// What flows are judged against.
    pub fn cluster(&self) -> Cluster<'_> {
        self.cluster_with(self.index.policies.values())
    }

    /// The same with other NetworkPolicies.
    pub fn cluster_with<'a>(
        &'a self,
        policies: impl IntoIterator<Item = &'a NetworkPolicy>,
    ) -> Cluster<'a> {
        Cluster::new(
            self.index.namespaces.values(),
            self.index
                .pods
                .values()
                .map(|pod| (pod, self.index.addresses(pod))),
            policies,
            self.node_addresses.iter().copied(),
        )
        .with_cluster_policies(
            self.index.cluster_policies.values(),
            self.index.nodes.values(),
        )
        .without_policies_for(
            self.ways
                .keys()
                .copied()
                .filter(|address| self.unguarded(*address).is_some()),
        )
    }

    /// The NetworkPolicies as they would be if none were only audited; `None` where none is.
    pub fn enforced(&self) -> Option<Vec<NetworkPolicy>> {
        let policies = || self.index.policies.values();
        policies().any(|policy| policy.audit).then(|| {
            let enforce = |policy: &NetworkPolicy| NetworkPolicy {
                audit: false,
                ..policy.clone()
            };
            policies().map(enforce).collect()
        })
    }

    /// Whether this node judges what comes from and to the address.
    pub fn is_here(&self, address: IpAddr) -> bool {
        match self.index.owner(address) {
            AddressOwner::Pod(pod) => {
                pod.node.as_ref() == Some(&self.node) || self.index.holder(address).is_some()
            }
            AddressOwner::Container | AddressOwner::UnknownPod => true,
            AddressOwner::Nobody => false,
        }
    }

    /// Addresses of this node's pods that no attachment vouches for: another plugin has made
    /// their links, or they are ended and their objects still there.
    pub fn unattached(&self) -> Vec<IpAddr> {
        let pods = self.index.pods.values();
        let here = pods.filter(|pod| pod.node.as_ref() == Some(&self.node));
        here.flat_map(|pod| self.index.addresses(pod))
            .filter(|address| self.index.holder(*address).is_none())
            .collect()
    }

    /// The interface by which a pod of this node is reached past the policies: it is another
    /// plugin's.
    pub fn unguarded(&self, address: IpAddr) -> Option<&str> {
        let interface = self.ways.get(&address)?;
        let is_ours = interface.starts_with(PORT_PREFIX) || self.pod_interfaces.contains(interface);
        (!is_ours).then_some(interface)
    }

    /// The pod with the addresses that are its own.
    pub fn pod(&self, key: &ObjectKey) -> Option<(&Pod, BTreeSet<IpAddr>)> {
        let pod = self.index.pods.get(key)?;
        Some((pod, self.index.addresses(pod)))
    }
}

/// The addresses of this network namespace. None where they cannot be read: what is this
/// node's then counts as outside.
fn local_addresses() -> BTreeSet<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the addresses of this node cannot be read");
            return BTreeSet::new();
        }
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect()
}
