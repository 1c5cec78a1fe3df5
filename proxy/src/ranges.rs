//! `loadBalancerSourceRanges` of a Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::layout::services::SourceRanges;
use dataplane::object::IpFamily;
use ipnet::IpNet;

use crate::model::Service;

/// The ranges, parsed. White space around them does not count.
#[derive(Default, Debug)]
pub(crate) struct ParsedRanges<'a> {
    networks: Vec<IpNet>,
    /// Those that are no networks.
    pub(crate) invalid: Vec<&'a str>,
}

impl<'a> ParsedRanges<'a> {
    pub(crate) fn of(service: &'a Service) -> Self {
        let mut parsed = Self::default();
        for text in &service.source_ranges {
            match text.trim().parse() {
                Ok(network) => parsed.networks.push(network),
                Err(_) => parsed.invalid.push(text),
            }
        }
        parsed
    }

    /// From where a frontend with the address may be reached; `None`: from everywhere.
    ///
    /// As kube-proxy has it, the list is one for each family: a family without ranges is
    /// open, and so is one with a range of everything. A list in which no range can be
    /// understood closes both.
    pub(crate) fn for_address(
        &self,
        address: IpAddr,
        node_addresses: &BTreeSet<IpAddr>,
    ) -> Option<SourceRanges> {
        let networks = self.of_family(IpFamily::of(address));
        let is_everything = networks.iter().any(|network| network.prefix_len() == 0);
        let is_open = if networks.is_empty() {
            !self.networks.is_empty() || self.invalid.is_empty()
        } else {
            is_everything
        };
        if is_open {
            return None;
        }
        // A node that has the address on an interface sends from it to itself.
        let is_node_in = || {
            let mut addresses = node_addresses.iter();
            addresses.any(|node| networks.iter().any(|network| network.contains(node)))
        };
        let itself = is_node_in().then_some(address);
        Some(SourceRanges::new(networks, itself))
    }

    /// Whether only the other family has ranges.
    pub(crate) fn leave_open(&self, family: IpFamily) -> bool {
        !self.networks.is_empty() && self.of_family(family).is_empty()
    }

    fn of_family(&self, family: IpFamily) -> Vec<IpNet> {
        let networks = self.networks.iter().copied();
        networks
            .filter(|network| IpFamily::of(network.addr()) == family)
            .collect()
    }
}
