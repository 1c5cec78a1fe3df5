//! `loadBalancerSourceRanges`: a chain for each list of ranges that occurs.
//!
//! Before the translation, where the address is still the load balancer's. Services with
//! equal lists share the chain; its name is made of what it holds.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::desired::Desired;
use crate::interval;
use crate::layout::INET;
use crate::object::{Chain, IpFamily, Name};
use crate::rule::{Rule, Statement};

const PREFIX: &str = "ranges-";

/// From where a frontend may be reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SourceRanges(BTreeSet<IpNet>);

impl SourceRanges {
    /// These networks, and with `itself` the frontend's own address: a node that has it on an
    /// interface sends from it.
    pub fn new(networks: impl IntoIterator<Item = IpNet>, itself: Option<IpAddr>) -> Self {
        let itself = itself.map(IpNet::from);
        Self(
            networks
                .into_iter()
                .map(|net| net.trunc())
                .chain(itself)
                .collect(),
        )
    }

    /// Name of the chain that drops what comes from elsewhere.
    pub fn chain(&self) -> Name {
        let mut hash = Sha256::new();
        for network in &self.0 {
            hash.update(network.to_string());
            hash.update(b"\n");
        }
        let digest: String = hash.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{PREFIX}{digest}").into()
    }

    /// Wants the chain.
    pub fn want(&self, desired: &mut Desired) {
        let name = self.chain();
        if desired.has_chain(&INET, &name) {
            return;
        }
        let mut rules = Vec::new();
        for family in IpFamily::BOTH {
            for interval in interval::networks(family, self.0.iter()) {
                let [from, to] = interval.bytes(family);
                let inside = Statement::Range {
                    field: family.saddr(),
                    from: (*from).into(),
                    to: (*to).into(),
                };
                let rule = Rule::new().family(family).with(inside);
                rules.push(rule.verdict(crate::rule::Verdict::Return));
            }
        }
        rules.push(Rule::new().counter().drop());
        desired.chain(
            &INET,
            &name,
            Chain::regular("loadBalancerSourceRanges", rules),
        );
    }
}

/// Whether the chain is one of [`SourceRanges::chain`].
pub fn is_source_ranges(chain: &Name) -> bool {
    chain.as_str().starts_with(PREFIX)
}
