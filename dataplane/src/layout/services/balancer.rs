//! Balancers: one chain for each number of endpoints K that occurs.
//!
//! `frontends` maps `address . protocol . port` to `goto random-K`, whose rule translates to
//! what `endpoints` has for `address . protocol . port . numgen random mod K`: the slots of a
//! frontend are numbered 0 to K-1, and a change of one endpoint is a change of one element.
//!
//! A packet that reads `goto random-3` just before a commit takes slot 2 away finds no
//! endpoint; a second rule then takes slot 0 (`mod 1`), which exists as long as the
//! frontend does.
//!
//! The chains are kept once made: kernels before 6.2 cannot delete a chain in the batch
//! that removes the last element leading to it.

use super::affinity;
use super::{
    CLUSTER_ENDPOINTS, CLUSTER_FRONTENDS, CLUSTER_NODE_ENDPOINTS, CLUSTER_NODE_FRONTENDS,
    ENDPOINTS, Entry, FRONTENDS, NODE_ENDPOINTS, NODE_FRONTENDS,
};
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::{INET, PerFamily};
use crate::object::{Chain, IpFamily, Name};
use crate::rule::{Rule, Statement};

/// Two nodes with the same endpoints in the same slots send a client to the same one.
const SEED: u32 = 0x7472_616d;

const STICKY_PREFIX: &str = "sticky-";

/// For whom a map is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Sources {
    /// For all sources.
    All,
    /// For this node and the cluster's pods only: with `externalTrafficPolicy: Local` they
    /// reach all endpoints of the cluster, others those of this node.
    Cluster,
}

/// Frontends that are looked up together: a pair of maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lane {
    /// How they are found.
    pub entry: Entry,
    /// For whom.
    pub sources: Sources,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::new(Entry::Address, Sources::All),
        Self::new(Entry::NodePort, Sources::All),
        Self::new(Entry::Address, Sources::Cluster),
        Self::new(Entry::NodePort, Sources::Cluster),
    ];

    /// The lane of frontends of the entry for the sources.
    pub const fn new(entry: Entry, sources: Sources) -> Self {
        Self { entry, sources }
    }

    /// The map to balancers: [`FRONTENDS`] or its like.
    pub fn frontends(self) -> &'static PerFamily {
        match self.sources {
            Sources::All => self.entry.pick(&FRONTENDS, &NODE_FRONTENDS),
            Sources::Cluster => self.entry.pick(&CLUSTER_FRONTENDS, &CLUSTER_NODE_FRONTENDS),
        }
    }

    /// The map from slots: [`ENDPOINTS`] or its like.
    pub fn endpoints(self) -> &'static PerFamily {
        match self.sources {
            Sources::All => self.entry.pick(&ENDPOINTS, &NODE_ENDPOINTS),
            Sources::Cluster => self.entry.pick(&CLUSTER_ENDPOINTS, &CLUSTER_NODE_ENDPOINTS),
        }
    }

    /// What the names of its balancers begin with.
    const fn prefix(self) -> &'static str {
        match (self.sources, self.entry) {
            (Sources::All, Entry::Address) => "",
            (Sources::All, Entry::NodePort) => "node-",
            (Sources::Cluster, Entry::Address) => "cluster-",
            (Sources::Cluster, Entry::NodePort) => "cluster-node-",
        }
    }
}

/// How a balancer chooses a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Algorithm {
    /// At random.
    #[default]
    Random,
    /// One after the other. The counter belongs to the chain: Services with the same number
    /// of endpoints share it.
    RoundRobin,
    /// By a hash of the source address.
    SourceHash,
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Random, Self::RoundRobin, Self::SourceHash];

    const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::SourceHash => "source-hash",
        }
    }

    const fn slot(self, family: IpFamily, slots: u32) -> Field {
        match self {
            Self::Random => Field::Random(slots),
            Self::RoundRobin => Field::RoundRobin(slots),
            Self::SourceHash => Field::SourceHash {
                family,
                modulus: slots,
                seed: SEED,
            },
        }
    }
}

/// A chain that chooses among a number of slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Balancer {
    /// Whose slots.
    pub lane: Lane,
    /// How.
    pub algorithm: Algorithm,
    /// Whether a client goes where it went last.
    pub sticky: bool,
    /// Among how many, at least one.
    pub slots: u32,
}

impl Balancer {
    /// The balancer of ordinary frontends.
    pub const fn random(slots: u32) -> Self {
        Self {
            lane: Lane::new(Entry::Address, Sources::All),
            algorithm: Algorithm::Random,
            sticky: false,
            slots,
        }
    }

    /// The name of its chain: `random-3`, `cluster-node-sticky-source-hash-2`.
    pub fn chain(self) -> Name {
        let (lane, algorithm) = (self.lane.prefix(), self.algorithm.name());
        let sticky = if self.sticky { STICKY_PREFIX } else { "" };
        format!("{lane}{sticky}{algorithm}-{}", self.slots).into()
    }

    /// The balancer whose chain has the name.
    pub fn of_chain(name: &Name) -> Option<Self> {
        let (prefix, slots) = name.as_str().rsplit_once('-')?;
        let slots = slots.parse().ok().filter(|slots| *slots > 0)?;
        let lanes = Lane::ALL.into_iter();
        let mut all = lanes.flat_map(|lane| Algorithm::ALL.map(|algorithm| (lane, algorithm)));
        all.find_map(|(lane, algorithm)| {
            let middle = prefix.strip_prefix(lane.prefix())?;
            let middle = middle.strip_suffix(algorithm.name())?;
            let sticky = middle == STICKY_PREFIX;
            (sticky || middle.is_empty()).then_some(Self {
                lane,
                algorithm,
                sticky,
                slots,
            })
        })
    }

    /// Wants the chain.
    pub fn want(self, desired: &mut Desired) {
        let name = self.chain();
        if desired.has_chain(&INET, &name) {
            return;
        }
        let mut rules = Vec::new();
        for family in IpFamily::BOTH {
            if self.sticky {
                rules.extend(affinity::find(self.lane.entry, family));
            }
            rules.push(self.translate(family, self.algorithm.slot(family, self.slots)));
            if self.slots > 1 {
                rules.push(self.translate(family, Field::Random(1)));
            }
        }
        desired.chain(&INET, &name, Chain::regular("", rules));
    }

    fn translate(self, family: IpFamily, slot: Field) -> Rule {
        let mut key = self.lane.entry.destination(family);
        key.push(slot);
        Rule::new().family(family).with(Statement::Dnat {
            family,
            key,
            map: self.lane.endpoints().of(family).clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_which_balancer_it_is() {
        for lane in Lane::ALL {
            for algorithm in Algorithm::ALL {
                for (slots, sticky) in [(1, false), (3, true), (251, false)] {
                    let balancer = Balancer {
                        lane,
                        algorithm,
                        sticky,
                        slots,
                    };
                    assert_eq!(Balancer::of_chain(&balancer.chain()), Some(balancer));
                }
            }
        }
        assert_eq!(Balancer::random(3).chain().as_str(), "random-3");
        for other in [
            "random",
            "random-",
            "random-0",
            "random-x",
            "services",
            "learn-3",
            "x-random-3",
        ] {
            assert_eq!(Balancer::of_chain(&other.into()), None, "{other}");
        }
    }
}
