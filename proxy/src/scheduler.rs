//! How a Service's connections are spread: by default at random, or as its annotation says.
//!
//! The values are the names that IPVS has for its schedulers, and what they mean. Those that
//! look at connections are not possible: no rule counts them.

use std::fmt::Write as _;

use dataplane::layout::services::Algorithm;
use sha2::{Digest as _, Sha256};

use crate::model::Service;
use crate::slots::Target;

/// The annotation of a Service.
pub const ANNOTATION: &str = "trammel.io/scheduler";

/// Sizes of Maglev tables: primes, for every step through a table to reach every slot.
const PRIMES: [usize; 4] = [251, 1021, 4093, 16381];
/// A table has so many slots for an endpoint: shares then differ by 10 % at most.
const SLOTS_PER_ENDPOINT: usize = 10;

/// How connections are spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scheduler {
    /// Each at random.
    #[default]
    Random,
    /// `rr`: one after the other.
    RoundRobin,
    /// `wrr`: each at random, to an endpoint as often as its weight says
    /// ([`weights`](crate::weights)). Not in turns: a turn would be that of all Services
    /// with as many slots.
    Weighted,
    /// `sh`: by a hash of the client's address, on each node in its own way. When the number
    /// of endpoints changes most clients move.
    SourceHash,
    /// `mh`, Maglev: the same, but few clients move, and all nodes send a client to the same
    /// endpoint. For frontends from outside the cluster, where a router may send the packets
    /// of a client to any node; a cluster IP is used on the client's node only, and keeps to
    /// random.
    Maglev,
}

/// The endpoints of a frontend, and in which slots they are to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Slots {
    /// Each in any one slot; one that is there several times, in as many. Sorted.
    Each(Vec<Target>),
    /// Just so, by slot.
    Fixed(Vec<Target>),
}

impl Scheduler {
    /// The scheduler that the Service wants.
    ///
    /// # Errors
    /// What is wrong with the annotation, and what to use.
    pub fn of(service: &Service) -> Result<Self, String> {
        let Some(name) = service.annotations.get(ANNOTATION) else {
            return Ok(Self::Random);
        };
        let why = match name.trim().to_ascii_lowercase().as_str() {
            "" | "random" => return Ok(Self::Random),
            "rr" => return Ok(Self::RoundRobin),
            "wrr" => return Ok(Self::Weighted),
            "sh" => return Ok(Self::SourceHash),
            "mh" => return Ok(Self::Maglev),
            "lc" | "wlc" | "sed" | "nq" | "lblc" | "lblcr" | "fo" | "ovf" => {
                "needs the number of connections, which no rule knows"
            }
            "dh" => "is the same endpoint for everybody, as a Service has one address",
            _ => "is not known",
        };
        let mut problem = format!("annotation {ANNOTATION}: {name:?} {why}; ");
        let _infallible = write!(
            problem,
            "connections are spread at random: use random, rr, wrr, sh or mh"
        );
        Err(problem)
    }

    /// How a frontend's slots are chosen.
    pub(crate) const fn algorithm(self, is_external: bool) -> Algorithm {
        match self {
            Self::RoundRobin => Algorithm::RoundRobin,
            Self::SourceHash => Algorithm::SourceHash,
            Self::Maglev if is_external => Algorithm::SourceHash,
            Self::Random | Self::Weighted | Self::Maglev => Algorithm::Random,
        }
    }

    /// How they are filled.
    pub(crate) fn place(self, is_external: bool, targets: Vec<Target>) -> Slots {
        match self {
            Self::Maglev if is_external => Slots::Fixed(maglev(&targets)),
            _ => Slots::Each(targets),
        }
    }
}

/// The table of "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016),
/// section 3.4: in turn each endpoint takes the next free slot of its own permutation.
fn maglev(targets: &[Target]) -> Vec<Target> {
    let fits = |size: &&usize| **size >= targets.len() * SLOTS_PER_ENDPOINT;
    let size = PRIMES
        .iter()
        .find(fits)
        .unwrap_or(&PRIMES[PRIMES.len() - 1]);
    // More endpoints than slots: those that come last would get none anyway.
    let targets = &targets[..targets.len().min(*size)];
    let mut table = vec![None; *size];
    let mut walks: Vec<_> = targets.iter().map(|target| walk(target, *size)).collect();
    let mut left = *size;
    'full: while left > 0 && !targets.is_empty() {
        for (target, (next, step)) in targets.iter().zip(&mut walks) {
            while table[*next].is_some() {
                *next = (*next + *step) % size;
            }
            table[*next] = Some(*target);
            left -= 1;
            if left == 0 {
                break 'full;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// Where the permutation of a target begins, and its step.
fn walk(target: &Target, size: usize) -> (usize, usize) {
    let digest = Sha256::digest(target.to_string());
    let number = |bytes: &[u8]| {
        let number = u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        usize::try_from(number % (size as u64 - 1)).expect("less than size")
    };
    (number(&digest[..8]), number(&digest[8..16]) + 1)
}

#[cfg(test)]
mod tests;
