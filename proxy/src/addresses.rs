//! The cluster IPs that are in use.

use std::net::IpAddr;

use dataplane::datatype::Bytes;
use dataplane::desired::Desired;
use dataplane::layout::INET;
use dataplane::layout::services::CLUSTER_IPS;
use dataplane::object::{Element, IpFamily};

use crate::hash::HashMap;
use crate::model::Service;

/// Each with the number of Services that have it.
#[derive(Default, Debug)]
pub(crate) struct ClusterIps {
    users: HashMap<IpAddr, u32>,
    /// May hold one several times.
    changed: Vec<IpAddr>,
}

impl ClusterIps {
    /// The Service has its addresses.
    pub(crate) fn add(&mut self, service: &Service) {
        for address in &service.cluster_ips {
            *self.users.entry(*address).or_default() += 1;
            self.changed.push(*address);
        }
    }

    /// The Service has had its addresses.
    pub(crate) fn remove(&mut self, service: &Service) {
        for address in &service.cluster_ips {
            if let Some(users) = self.users.get_mut(address) {
                *users -= 1;
                if *users == 0 {
                    self.users.remove(address);
                }
            }
            self.changed.push(*address);
        }
    }

    /// Wants the set to hold them.
    pub(crate) fn write(&mut self, desired: &mut Desired) {
        for address in std::mem::take(&mut self.changed) {
            let set = CLUSTER_IPS.of(IpFamily::of(address));
            let key = Bytes::new().addr(address).build();
            let is_held = desired.get(&INET, set, &key).is_some();
            match self.users.contains_key(&address) {
                true if !is_held => desired.insert(&INET, set, key, Element::member()),
                false if is_held => desired.remove(&INET, set, &key),
                _ => {}
            }
        }
    }
}
