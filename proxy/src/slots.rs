//! Which endpoint is in which slot of a frontend.
//!
//! The balancing chain of a frontend with K endpoints chooses one of the slots 0 to K-1.
//! Slots are assigned such that a change touches few elements: an endpoint keeps its
//! slot, a new one takes the slot of one that goes, and where more go than come the
//! last ones move down into the gaps.
//!
//! **Orphans.** When K shrinks, a packet that has read the old K just before the commit
//! may still ask for a slot above the new one. So these slots stay until the commit that
//! made K smaller is in, and go with the next: [`SlotTable::update`] never removes,
//! [`SlotTable::prune`] does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Where an endpoint listens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// The slots of one frontend.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotTable {
    /// The endpoints, by slot.
    targets: Vec<Target>,
    /// Packets may ask for the slots below this one: the largest number of endpoints
    /// since the last commit, and at it.
    in_use: u32,
    /// The slots below this one are in the map.
    written: u32,
}

impl SlotTable {
    /// The slots that are in the map already.
    pub fn adopted(targets: Vec<Target>) -> Self {
        let len = as_slot(targets.len());
        Self {
            targets,
            in_use: len,
            written: len,
        }
    }

    /// The endpoints, by slot.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Assigns slots to `wanted`, which is sorted; an endpoint that is there several times
    /// gets as many. Returns the slots that have got another endpoint.
    pub fn update(&mut self, wanted: &[Target]) -> Vec<u32> {
        debug_assert!(wanted.is_sorted(), "sorted");
        let (before, after) = (self.targets.len(), wanted.len());
        let mut is_kept = vec![false; wanted.len()];
        let mut is_gap = vec![false; before];
        // Where a run of equal ones begins: how many of it are kept.
        let mut kept = vec![0; wanted.len()];
        for (slot, target) in self.targets.iter().enumerate() {
            let first = wanted.partition_point(|other| other < target);
            let at = first + kept.get(first).copied().unwrap_or(0);
            if wanted.get(at) == Some(target) {
                is_kept[at] = true;
                kept[first] += 1;
            } else {
                is_gap[slot] = true;
            }
        }
        // Below the new end: slots whose endpoint goes, and slots that are new. There are
        // as many as endpoints that come, and ones that stay but were above the end.
        let gaps = (0..after).filter(|slot| is_gap.get(*slot).copied().unwrap_or(true));
        let new = wanted.iter().zip(&is_kept).filter(|(_, kept)| !**kept);
        let from_above = (after..before).rev().filter(|slot| !is_gap[*slot]);
        let moved: Vec<Target> = from_above.map(|slot| self.targets[slot]).collect();
        let fillers = new.map(|(target, _)| *target).chain(moved);
        let writes: Vec<(usize, Target)> = gaps.zip(fillers).collect();

        self.targets.truncate(after);
        self.targets.reserve_exact(after - self.targets.len());
        for (slot, target) in &writes {
            match self.targets.get_mut(*slot) {
                Some(place) => *place = *target,
                // Gaps ascend: the next new slot is the one after the last.
                None => self.targets.push(*target),
            }
        }
        self.in_use = self.in_use.max(as_slot(after));
        self.written = self.written.max(as_slot(after));
        writes.into_iter().map(|(slot, _)| as_slot(slot)).collect()
    }

    /// Puts the endpoints into just these slots; one may have several. Returns the slots
    /// that have got another endpoint.
    pub fn place(&mut self, wanted: &[Target]) -> Vec<u32> {
        let differs = |slot: &usize| self.targets.get(*slot) != wanted.get(*slot);
        let written = (0..wanted.len()).filter(differs).map(as_slot).collect();
        self.targets.clear();
        self.targets.extend_from_slice(wanted);
        self.in_use = self.in_use.max(as_slot(wanted.len()));
        self.written = self.written.max(as_slot(wanted.len()));
        written
    }

    /// The slots that nothing can lead to any more. They count as removed from the map.
    pub fn prune(&mut self) -> Range<u32> {
        let orphans = self.in_use..self.written;
        self.written = self.in_use;
        self.targets.shrink_to_fit();
        orphans
    }

    /// The last update is in the kernel.
    pub fn committed(&mut self) {
        self.in_use = as_slot(self.targets.len());
    }

    /// Whether there is nothing left to [prune](Self::prune), now or after a commit.
    pub fn is_settled(&self) -> bool {
        self.written as usize == self.targets.len()
    }
}

/// # Panics
/// With more than 2^32 endpoints, for which no memory suffices.
fn as_slot(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2^32 endpoints")
}

#[cfg(test)]
mod tests;
