//! One request for addresses: one per range set, all or none.

use std::fmt;
use std::net::IpAddr;

use crate::allocator::candidates;
use crate::range::{Range, RangeSet};
use crate::store::{Locked, Owner, StoreError};

/// What an attachment asks for.
pub struct Claim<'a> {
    /// Who asks.
    pub owner: &'a Owner,
    /// One address of each.
    pub sets: &'a [RangeSet],
    /// Addresses that it must be, each of another set; sets of which none is
    /// named choose.
    pub requested: &'a [IpAddr],
    /// Whether a running pod is known to have the address. Asked only for
    /// damaged leases, and only when all other addresses are gone: damage then
    /// costs an address, never two pods the same one.
    pub in_use: &'a dyn Fn(IpAddr) -> bool,
}

/// An address that now belongs to the attachment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// The address.
    pub ip: IpAddr,
    /// The range that it is from.
    pub range: Range,
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Every address of a set is taken.
    #[error("no address left in {set}: remove pods, or extend the range")]
    Exhausted {
        /// The ranges, for people.
        set: String,
    },
    /// A requested address cannot be had.
    #[error("requested address {ip} {reason}")]
    Unavailable {
        /// The address.
        ip: IpAddr,
        /// Why not.
        reason: Unavailable,
    },
    /// The files failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a requested address cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// Someone has it.
    Taken,
    /// It is the gateway.
    Gateway,
    /// No range hands it out.
    OutOfRange,
    /// Its set already gives another requested address.
    SecondOfSet,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Taken => "is taken",
            Self::Gateway => "is the gateway",
            Self::OutOfRange => "is in none of the configured ranges",
            Self::SecondOfSet => {
                "is the second of its range set, which gives one address per interface"
            }
        })
    }
}

impl Claim<'_> {
    /// Reserves the addresses. On an error nothing stays reserved.
    pub fn run(&self, store: &Locked) -> Result<Vec<Allocation>, ClaimError> {
        let wishes = self.assign_requested()?;
        let mut done: Vec<Allocation> = Vec::with_capacity(self.sets.len());
        for (number, wish) in wishes.into_iter().enumerate() {
            let one = match wish {
                Some(ip) => self.take(store, number, ip),
                None => self.choose(store, number),
            };
            match one {
                Ok(allocation) => done.push(allocation),
                Err(error) => {
                    for allocation in done {
                        // The claim's own error is the one to report; what this
                        // leaves, DEL finds by its owner.
                        drop(store.free(allocation.ip));
                    }
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// The requested address of each set.
    fn assign_requested(&self) -> Result<Vec<Option<IpAddr>>, ClaimError> {
        let mut wishes = vec![None; self.sets.len()];
        for &ip in self.requested {
            let refuse = |reason| ClaimError::Unavailable { ip, reason };
            let set = self.sets.iter().position(|set| set.find(ip).is_some());
            let Some(set) = set else {
                let gateway = self.sets.iter().any(|set| set.is_gateway(ip));
                return Err(refuse(if gateway {
                    Unavailable::Gateway
                } else {
                    Unavailable::OutOfRange
                }));
            };
            match &mut wishes[set] {
                free @ None => *free = Some(ip),
                Some(same) if *same == ip => {}
                Some(_) => return Err(refuse(Unavailable::SecondOfSet)),
            }
        }
        Ok(wishes)
    }

    fn take(&self, store: &Locked, set: usize, ip: IpAddr) -> Result<Allocation, ClaimError> {
        if store.reserve(ip, self.owner)? {
            Ok(self.allocation(set, ip))
        } else {
            Err(ClaimError::Unavailable {
                ip,
                reason: Unavailable::Taken,
            })
        }
    }

    fn choose(&self, store: &Locked, set: usize) -> Result<Allocation, ClaimError> {
        if let Some(found) = self.search(store, set)? {
            return Ok(found);
        }
        if self.reclaim_damaged(store, set)?
            && let Some(found) = self.search(store, set)?
        {
            return Ok(found);
        }
        Err(ClaimError::Exhausted {
            set: self.sets[set].to_string(),
        })
    }

    fn search(&self, store: &Locked, set: usize) -> Result<Option<Allocation>, ClaimError> {
        let last = store.last_reserved(set);
        for ip in candidates(&self.sets[set], last) {
            // A look before the attempt: one cheap system call for an address that
            // is taken, where a reservation writes a file first.
            if store.is_reserved(ip) || !store.reserve(ip, self.owner)? {
                continue;
            }
            if let Err(error) = store.set_last_reserved(set, ip) {
                store.free(ip)?;
                return Err(error.into());
            }
            return Ok(Some(self.allocation(set, ip)));
        }
        Ok(None)
    }

    /// Puts damaged leases of the set aside whose address no pod is known to
    /// have; returns whether there were any.
    fn reclaim_damaged(&self, store: &Locked, set: usize) -> Result<bool, ClaimError> {
        let mut any = false;
        for lease in store.leases()? {
            if lease.owner.is_err()
                && self.sets[set].find(lease.ip).is_some()
                && !(self.in_use)(lease.ip)
            {
                store.quarantine(lease.ip)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn allocation(&self, set: usize, ip: IpAddr) -> Allocation {
        let range = self.sets[set]
            .find(ip)
            .expect("an address of the set is in one of its ranges");
        Allocation {
            ip,
            range: range.clone(),
        }
    }
}

impl Locked {
    /// Whether an address of the set is free.
    pub fn has_free(&self, set: &RangeSet) -> bool {
        candidates(set, None).any(|ip| !self.is_reserved(ip))
    }
}

#[cfg(test)]
mod tests;
