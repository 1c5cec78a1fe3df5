//! The order in which the addresses of a set are tried.
//!
//! Round robin: the search starts after the address handed out last and ends
//! with it, so that a freed address rests as long as possible before someone
//! else has it. Addresses are produced one by one: an IPv6 /64 is no different
//! from a /29.

use std::net::IpAddr;

use crate::range::{RangeSet, bits, from_bits};

/// Addresses of `set` in the order in which to try them, each once, gateways
/// left out. `last` is the address handed out last; one that is in no range of
/// the set (the configuration has changed) starts over.
pub fn candidates(set: &RangeSet, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
    let ipv4 = set.is_ipv4();
    let spans = rotate(set, last.filter(|ip| ip.is_ipv4() == ipv4).map(bits));
    spans
        .into_iter()
        .flat_map(|(first, last)| first..=last)
        .map(move |bits| from_bits(bits, ipv4))
        .filter(|ip| !set.is_gateway(*ip))
}

/// The spans of the set, rotated to begin after `last`: the span that holds it
/// is cut in two, its second half first and its first half at the end.
fn rotate(set: &RangeSet, last: Option<u128>) -> Vec<(u128, u128)> {
    let mut spans: Vec<_> = set.bounds().collect();
    let holder = last.and_then(|last| {
        let holds = |&(first, end): &(u128, u128)| (first..=end).contains(&last);
        Some((spans.iter().position(holds)?, last))
    });
    let Some((position, last)) = holder else {
        return spans;
    };
    spans.rotate_left(position);
    let (first, end) = spans[0];
    spans.push((first, last));
    if last == end {
        spans.remove(0);
    } else {
        spans[0] = (last + 1, end);
    }
    spans
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::range::{Range, RangeSpec};

    fn set(subnets: &[&str]) -> RangeSet {
        let range = |subnet: &&str| {
            Range::new(&RangeSpec {
                subnet: subnet.parse().unwrap(),
                start: None,
                end: None,
                gateway: None,
            })
            .unwrap()
        };
        RangeSet::new(subnets.iter().map(range).collect()).unwrap()
    }

    fn list(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        let last = last.map(|ip| ip.parse().unwrap());
        candidates(set, last).map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn a_fresh_set_starts_after_its_gateway() {
        assert_eq!(
            list(&set(&["10.0.0.0/29"]), None),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
    }

    #[test]
    fn the_search_goes_on_after_the_last_and_ends_with_it() {
        assert_eq!(
            list(&set(&["10.0.0.0/29"]), Some("10.0.0.4")),
            ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        );
        assert_eq!(
            list(&set(&["10.0.0.0/30", "10.0.1.0/29"]), Some("10.0.1.3")),
            [
                "10.0.1.4", "10.0.1.5", "10.0.1.6", "10.0.0.2", "10.0.1.2", "10.0.1.3"
            ]
        );
    }

    #[test]
    fn a_last_address_of_another_set_or_family_starts_over() {
        let set = set(&["10.0.0.0/30"]);
        assert_eq!(list(&set, Some("10.9.9.9")), ["10.0.0.2"]);
        assert_eq!(list(&set, Some("fd00::2")), ["10.0.0.2"]);
    }

    #[test]
    fn a_large_ipv6_range_is_not_expanded() {
        let set = set(&["fd00::/64"]);
        let last = Some("fd00::ffff:ffff:ffff:fffe".parse().unwrap());
        let next: Vec<_> = candidates(&set, last)
            .take(2)
            .map(|ip| ip.to_string())
            .collect();
        assert_eq!(next, ["fd00::ffff:ffff:ffff:ffff", "fd00::2"]);
    }

    /// Independent oracle: all addresses in a plain list, gateways struck out,
    /// read from the one after `last` around to it.
    fn naive(specs: &[(u8, u8, u8)], last: Option<u32>) -> Vec<u32> {
        let mut all: Vec<u32> = Vec::new();
        for &(net, low, high) in specs {
            let base = u32::from(Ipv4Addr::new(10, 0, net, 0));
            all.extend((base + u32::from(low))..=(base + u32::from(high)));
        }
        let gateways: BTreeSet<u32> = specs
            .iter()
            .map(|&(net, ..)| u32::from(Ipv4Addr::new(10, 0, net, 1)))
            .collect();
        let turn = last.and_then(|last| all.iter().position(|ip| *ip == last));
        if let Some(position) = turn {
            all.rotate_left(position + 1);
        }
        all.retain(|ip| !gateways.contains(ip));
        all
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(
            nets in proptest::collection::btree_map(0u8..4, (1u8..=254, 1u8..=254), 1..4),
            last in proptest::option::of((0u8..4, 0u8..=255)),
        ) {
            let specs: Vec<(u8, u8, u8)> = nets
                .into_iter()
                .map(|(net, (a, b))| (net, a.min(b), a.max(b)))
                .collect();
            let ranges = specs.iter().map(|&(net, low, high)| {
                Range::new(&RangeSpec {
                    subnet: format!("10.0.{net}.0/24").parse().unwrap(),
                    start: Some(IpAddr::from([10, 0, net, low])),
                    end: Some(IpAddr::from([10, 0, net, high])),
                    gateway: None,
                }).unwrap()
            });
            let set = RangeSet::new(ranges.collect()).unwrap();
            let last = last.map(|(net, host)| Ipv4Addr::new(10, 0, net, host));
            let got: Vec<u32> = candidates(&set, last.map(IpAddr::V4))
                .map(|ip| u32::try_from(bits(ip)).unwrap())
                .collect();
            prop_assert_eq!(got, naive(&specs, last.map(u32::from)));
        }
    }
}
