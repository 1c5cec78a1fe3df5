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
    /// Whether a group has denied since the last look that has no label yet and is to get one.
    /// For that the directory is asked, which costs the owner time.
    pub(super) fn has_new(&self, denied: &BTreeMap<Name, u64>) -> bool {
        let is_new = |(chain, packets): (&Name, &u64)| {
            matches!(counts_denials(chain), Some(Denier::Policy(_)))
                && !self.labels.contains_key(chain)
                && self.last.get(chain).copied().unwrap_or(0) != *packets
        };
        self.labels.len() < LABELLED && denied.iter().any(is_new)
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

    /// netpol.md 84: what was denied once does not keep the agent busy for ever.
    #[test]
    fn the_directory_is_asked_for_groups_that_deny_and_have_no_label() {
        let (owner, _mailbox) = channel();
        let directory = Directory::new(owner);
        let mut counters = Counters::default();
        let group = Name::from("egress-0123456789abcdef");
        let none = ["closed-egress", "closed-ingress", "forged"].map(|name| (Name::from(name), 3));
        let mut denied = BTreeMap::from(none);
        denied.insert(group.clone(), 0);
        assert!(!counters.has_new(&denied), "nobody has policies there");
        for packets in [1, 5, 2] {
            denied.insert(group.clone(), packets);
            assert!(counters.has_new(&denied), "{packets}");
            counters.add(&denied, &directory);
            assert!(!counters.has_new(&denied), "none since: {packets}");
        }
        denied.insert(group.clone(), 9);
        counters.labels.insert(group, "shop/deny".into());
        assert!(!counters.has_new(&denied), "it has a label");
        let label = |number| (Name::from(format!("egress-{number}")), String::new());
        counters.labels = (0..LABELLED).map(label).collect();
        assert!(!counters.has_new(&denied), "there are labels enough");
    }

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
