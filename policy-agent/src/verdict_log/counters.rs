//! Denied packets, counted by the kernel and added up here: a chain that is written anew
//! counts from 0.

use std::collections::BTreeMap;

use dataplane::layout::denials::{Denier, Origin, counts_denials};
use dataplane::layout::policy::Direction;
use dataplane::object::Name;
use prometheus_client::encoding::EncodeLabelSet;

use crate::verdict_log::directory::Directory;

/// Groups with a label of their own in the metrics, at most. The rest count together.
const LABELLED: usize = 200;
/// Their label.
const OTHERS: &str = "(others)";
/// Policies that a label names, at most.
const NAMED: usize = 4;

/// Packets that were denied since the last look.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, EncodeLabelSet)]
pub struct DeniedBy {
    /// `egress`, `ingress`.
    pub direction: &'static str,
    /// `policy`, `unknownAddress`, `forgedSender`.
    pub reason: &'static str,
    /// The policies of the group; empty for unknown addresses and forged senders.
    pub policies: String,
}

/// What was counted so far.
#[derive(Default)]
pub(super) struct Counters {
    last: BTreeMap<Name, u64>,
    labels: BTreeMap<Name, String>,
}

impl Counters {
    /// Whether a group has denied that has no label yet.
    pub(super) fn has_new(&self, denied: &BTreeMap<Name, u64>) -> bool {
        let mut denying = denied.iter().filter(|(_, packets)| **packets > 0);
        denying.any(|(chain, _)| !self.labels.contains_key(chain))
    }

    /// What has come since the last look.
    pub(super) fn add(
        &mut self,
        denied: &BTreeMap<Name, u64>,
        directory: &Directory,
    ) -> BTreeMap<DeniedBy, u64> {
        let mut added = BTreeMap::new();
        for (chain, packets) in denied {
            let Some(denier) = counts_denials(chain) else {
                continue;
            };
            let last = self.last.insert(chain.clone(), *packets).unwrap_or(0);
            let new = packets.checked_sub(last).unwrap_or(*packets);
            if new == 0 {
                continue;
            }
            let (direction, reason, policies) = match denier {
                Denier::Policy(direction) => (direction, "policy", self.label(chain, directory)),
                Denier::Closed(direction) => (direction, "unknownAddress", String::new()),
                Denier::Forged => (Direction::Egress, "forgedSender", String::new()),
            };
            let by = DeniedBy {
                direction: direction.name(),
                reason,
                policies,
            };
            *added.entry(by).or_insert(0) += new;
        }
        self.last.retain(|chain, _| denied.contains_key(chain));
        added
    }

    fn label(&mut self, chain: &Name, directory: &Directory) -> String {
        if let Some(label) = self.labels.get(chain) {
            return label.clone();
        }
        if self.labels.len() >= LABELLED {
            return OTHERS.to_owned();
        }
        // The chain that counts for a tier is named after the one that logs.
        let logs = Origin::parse(chain.as_str()).map_or_else(String::new, |origin| match origin {
            Origin::Tier(_, chain) | Origin::Group(_, chain) => {
                chain.as_str().trim_end_matches("-denied").to_owned()
            }
            Origin::Audit(..) | Origin::Closed(_) | Origin::Forged => String::new(),
        });
        let policies = directory.policies(&logs);
        if policies.is_empty() {
            return OTHERS.to_owned();
        }
        let mut label = policies[..policies.len().min(NAMED)].join(",");
        if policies.len() > NAMED {
            label += &format!(" and {} more", policies.len() - NAMED);
        }
        self.labels.insert(chain.clone(), label.clone());
        label
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_a_rewritten_chain_counts_is_added() {
        let (owner, _mailbox) = channel();
        let directory = Directory::new(owner);
        let mut counters = Counters::default();
        let mut total = 0;
        for (packets, sum) in [(3, 3), (10, 10), (10, 10), (2, 12), (7, 17)] {
            let denied = BTreeMap::from([(Name::from("closed-egress"), packets)]);
            total += counters.add(&denied, &directory).into_values().sum::<u64>();
            assert_eq!(total, sum, "after {packets}");
        }
        let gone = counters.add(&BTreeMap::new(), &directory);
        assert!(gone.is_empty() && counters.last.is_empty());
    }
}
