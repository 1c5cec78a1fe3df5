//! Networks as the disjoint intervals of an interval set.
//!
//! The kernel refuses overlapping intervals, or worse takes them in one order and not in
//! the other, and `nft`'s merging loses track of what was merged. So the union of all blocks
//! of a set, each minus its own excepts, is computed here, once and canonical: equal
//! blocks give equal elements, however they were written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

use crate::object::{Element, IpFamily, Key};

/// An inclusive interval of addresses of one family, as numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Interval {
    /// Lowest.
    pub first: u128,
    /// Highest.
    pub last: u128,
}

impl Interval {
    /// First and last address, as a packet has them.
    pub fn bytes(&self, family: IpFamily) -> [Key; 2] {
        [key(family, self.first), key(family, self.last)]
    }
}

/// The union of the networks of the family.
pub fn networks<'a>(family: IpFamily, networks: impl Iterator<Item = &'a IpNet>) -> Vec<Interval> {
    union(family, networks.map(|network| (network, &[][..])))
}

/// The union of the blocks of the family, each a prefix minus its excepts: sorted,
/// disjoint, and no two adjacent.
pub fn union<'a>(
    family: IpFamily,
    blocks: impl Iterator<Item = (&'a IpNet, &'a [IpNet])>,
) -> Vec<Interval> {
    let of_family = |net: &&IpNet| IpFamily::of(net.addr()) == family;
    let mut all = Vec::new();
    for (cidr, except) in blocks.filter(|(cidr, _)| of_family(cidr)) {
        let except = merge(except.iter().filter(of_family).map(interval).collect());
        all.extend(subtract(interval(cidr), &except));
    }
    merge(all)
}

/// The elements of an interval set: each interval opens at its first address and is closed
/// before the one after its last. The interval that reaches the end of the address
/// space is not closed.
pub fn elements(family: IpFamily, intervals: &[Interval]) -> Vec<(Key, Element)> {
    let max = max_of(family);
    let mut elements = Vec::with_capacity(intervals.len() * 2);
    for interval in intervals {
        elements.push((key(family, interval.first), Element::member()));
        if interval.last < max {
            let end = key(family, interval.last + 1);
            elements.push((end, Element::end_of_interval()));
        }
    }
    elements
}

/// The networks whose union the elements of an interval set are, as [`elements`] makes them.
pub fn prefixes(family: IpFamily, elements: &BTreeMap<Key, Element>) -> Vec<IpNet> {
    let mut prefixes = Vec::new();
    let mut open = None;
    for (key, element) in elements {
        let at = number_of(key);
        if !element.interval_end {
            open = Some(at);
        } else if let Some(first) = open.take() {
            prefixes.extend(subnets(family, first, at - 1));
        }
    }
    if let Some(first) = open {
        prefixes.extend(subnets(family, first, max_of(family)));
    }
    prefixes
}

/// The fewest networks that are an inclusive interval.
fn subnets(family: IpFamily, first: u128, last: u128) -> IpSubnets {
    match family {
        IpFamily::V4 => {
            // A number of its family's elements.
            let address = |number| Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX));
            IpSubnets::V4(Ipv4Subnets::new(address(first), address(last), 0))
        }
        IpFamily::V6 => {
            let address = Ipv6Addr::from_bits;
            IpSubnets::V6(Ipv6Subnets::new(address(first), address(last), 0))
        }
    }
}

fn number_of(key: &[u8]) -> u128 {
    key.iter()
        .fold(0, |number, byte| number << 8 | u128::from(*byte))
}

fn interval(net: &IpNet) -> Interval {
    Interval {
        first: number(net.network()),
        last: number(net.broadcast()),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

const fn max_of(family: IpFamily) -> u128 {
    match family {
        IpFamily::V4 => u32::MAX as u128,
        IpFamily::V6 => u128::MAX,
    }
}

fn key(family: IpFamily, number: u128) -> Key {
    let bytes = number.to_be_bytes();
    bytes[bytes.len() - family.addr_len()..].into()
}

/// Sorts and joins what overlaps or touches.
fn merge(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
    for interval in intervals {
        match merged.last_mut() {
            Some(last) if interval.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(interval.last);
            }
            _ => merged.push(interval),
        }
    }
    merged
}

/// What is left of `whole` without `holes`, which are sorted and disjoint.
fn subtract(whole: Interval, holes: &[Interval]) -> Vec<Interval> {
    let mut left = Vec::new();
    let mut first = whole.first;
    for hole in holes {
        if hole.last < first || hole.first > whole.last {
            continue;
        }
        if hole.first > first {
            left.push(Interval {
                first,
                last: hole.first - 1,
            });
        }
        if hole.last >= whole.last {
            return left;
        }
        first = hole.last + 1;
    }
    left.push(Interval {
        first,
        last: whole.last,
    });
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn everything_has_no_end() {
        let all = net("0.0.0.0/0");
        let union = union(IpFamily::V4, [(&all, &[][..])].into_iter());
        let elements = elements(IpFamily::V4, &union);
        assert_eq!(elements, [(vec![0; 4].into(), Element::member())]);
    }

    #[test]
    fn an_except_hits_its_own_block_only() {
        let (all, ten) = (net("0.0.0.0/0"), net("10.0.0.0/8"));
        let inner = net("10.1.0.0/16");
        let except = [ten];
        let blocks = [(&all, &except[..]), (&inner, &[][..])];
        let union = union(IpFamily::V4, blocks.into_iter());
        let ten = u128::from(u32::from_be_bytes([10, 0, 0, 0]));
        assert_eq!(
            union,
            [
                Interval {
                    first: 0,
                    last: ten - 1
                },
                Interval {
                    first: ten + (1 << 16),
                    last: ten + (2 << 16) - 1
                },
                Interval {
                    first: ten + (1 << 24),
                    last: u32::MAX.into()
                },
            ]
        );
    }

    /// Prefixes inside 10.0.0.0/24, so that every address can be asked.
    fn small_net() -> impl Strategy<Value = IpNet> {
        (0u8..=255, 24u8..=32).prop_map(|(host, len)| {
            let net: IpNet = format!("10.0.0.{host}/{len}").parse().expect("a prefix");
            net.trunc()
        })
    }

    proptest! {
        #[test]
        fn the_intervals_hold_what_the_blocks_say(
            blocks in prop::collection::vec((small_net(), prop::collection::vec(small_net(), 0..4)), 0..6),
        ) {
            let borrowed = blocks.iter().map(|(cidr, except)| (cidr, &except[..]));
            let union = union(IpFamily::V4, borrowed);
            for pair in union.windows(2) {
                prop_assert!(pair[0].last + 1 < pair[1].first, "{union:?}");
            }
            for host in 0..=255u8 {
                let address = IpAddr::from([10, 0, 0, host]);
                let wanted = blocks.iter().any(|(cidr, except)| {
                    cidr.contains(&address) && !except.iter().any(|net| net.contains(&address))
                });
                let number = number(address);
                let held = union.iter().any(|i| i.first <= number && number <= i.last);
                prop_assert_eq!(held, wanted, "{}", address);
            }
        }

        /// What was written is read back, in both families and at the ends of the address space.
        #[test]
        fn elements_are_read_as_the_networks_that_they_are(
            nets in prop::collection::vec(
                (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| {
                    IpNet::new(IpAddr::from(bits.to_be_bytes()), len).expect("a length").trunc()
                }), 0..6),
            wide in prop::collection::vec(
                (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| {
                    IpNet::new(IpAddr::from(bits.to_be_bytes()), len).expect("a length").trunc()
                }), 0..6),
        ) {
            for (family, nets) in [(IpFamily::V4, nets), (IpFamily::V6, wide)] {
                let written = networks(family, nets.iter());
                let held = elements(family, &written).into_iter().collect();
                let read = prefixes(family, &held);
                prop_assert_eq!(networks(family, read.iter()), written);
            }
        }
    }
}
