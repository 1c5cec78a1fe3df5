//! Subnets, and the part of each that may be handed out.
//!
//! The rules are those of `host-local`: a subnet has its host bits zero and is
//! at least a /30 (/126); the first address after the network address is the
//! gateway unless another is named, and is never handed out, nor are the network
//! address and IPv4's broadcast address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range as configured, unchecked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeSpec {
    /// `subnet`.
    pub subnet: IpNet,
    /// `rangeStart`: first address to hand out.
    pub start: Option<IpAddr>,
    /// `rangeEnd`: last address to hand out.
    pub end: Option<IpAddr>,
    /// `gateway`.
    pub gateway: Option<IpAddr>,
}

/// A checked range: all addresses are of one family and lie in `subnet`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    subnet: IpNet,
    first: u128,
    last: u128,
    gateway: IpAddr,
}

/// Pools of which a pod gets *one* address: tried in order, all of one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeSet(Vec<Range>);

/// Why ranges cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RangeError {
    /// The subnet is not a network address.
    #[error("subnet {subnet} has host bits set: write {trunc}")]
    HostBits {
        /// As configured.
        subnet: IpNet,
        /// The network that contains it.
        trunc: IpNet,
    },
    /// No room for a gateway and a pod.
    #[error("subnet {subnet} is too small: /30 (IPv6: /126) is the smallest")]
    TooSmall {
        /// As configured.
        subnet: IpNet,
    },
    /// An address that must lie in the subnet does not.
    #[error("{key} {address} is not in subnet {subnet}")]
    Outside {
        /// `rangeStart`, `rangeEnd` or `gateway`.
        key: &'static str,
        /// As configured.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The network address or IPv4's broadcast address as gateway.
    #[error("gateway {gateway} is the network or broadcast address of subnet {subnet}")]
    UnusableGateway {
        /// As configured.
        gateway: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// `rangeStart` is after `rangeEnd`.
    #[error("rangeStart {start} is after rangeEnd {end}")]
    Backwards {
        /// First address after the adjustment to usable ones.
        start: IpAddr,
        /// Last address after the adjustment to usable ones.
        end: IpAddr,
    },
    /// A set without ranges.
    #[error("a range set is empty: give it at least one range, or leave it out")]
    Empty,
    /// IPv4 and IPv6 pools in one set.
    #[error("ranges {a} and {b} of one set are of different families: use one set per family")]
    MixedFamilies {
        /// The first range.
        a: Box<Range>,
        /// One of the other family.
        b: Box<Range>,
    },
    /// Two ranges could hand out the same address.
    #[error("ranges {a} and {b} overlap")]
    Overlap {
        /// One range.
        a: Box<Range>,
        /// The other.
        b: Box<Range>,
    },
}

impl Range {
    /// Checks a configured range and fills in its defaults.
    pub fn new(spec: &RangeSpec) -> Result<Self, RangeError> {
        let subnet = spec.subnet;
        if subnet.trunc() != subnet {
            return Err(RangeError::HostBits {
                subnet,
                trunc: subnet.trunc(),
            });
        }
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(RangeError::TooSmall { subnet });
        }
        let (low, high) = usable(subnet);
        let inside = |key, address: Option<IpAddr>| match address {
            Some(address) if !subnet.contains(&address) => Err(RangeError::Outside {
                key,
                address,
                subnet,
            }),
            address => Ok(address.map(bits)),
        };
        let first = inside("rangeStart", spec.start)?.map_or(low, |start| start.max(low));
        let last = inside("rangeEnd", spec.end)?.map_or(high, |end| end.min(high));
        let gateway = inside("gateway", spec.gateway)?.unwrap_or(low);
        if gateway < low || gateway > high {
            return Err(RangeError::UnusableGateway {
                gateway: address(gateway, subnet),
                subnet,
            });
        }
        if first > last {
            return Err(RangeError::Backwards {
                start: address(first, subnet),
                end: address(last, subnet),
            });
        }
        Ok(Self {
            subnet,
            first,
            last,
            gateway: address(gateway, subnet),
        })
    }

    /// The subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The gateway, which is never handed out.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The gateway with the length of the subnet's prefix, as a bridge carries it.
    pub fn gateway_net(&self) -> IpNet {
        IpNet::new(self.gateway, self.subnet.prefix_len())
            .expect("the gateway is of the subnet's family, whose prefix length is valid")
    }

    /// The first address that may be handed out, if it is not the gateway.
    pub fn start(&self) -> IpAddr {
        address(self.first, self.subnet)
    }

    /// The last address that may be handed out, if it is not the gateway.
    pub fn end(&self) -> IpAddr {
        address(self.last, self.subnet)
    }

    /// Whether the address lies between start and end.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.is_ipv4() == ip.is_ipv4() && (self.first..=self.last).contains(&bits(ip))
    }

    fn is_ipv4(&self) -> bool {
        matches!(self.subnet, IpNet::V4(_))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} of {}", self.start(), self.end(), self.subnet)
    }
}

impl RangeSet {
    /// Checks that the ranges are of one family and disjoint.
    pub fn new(ranges: Vec<Range>) -> Result<Self, RangeError> {
        let Some(first) = ranges.first() else {
            return Err(RangeError::Empty);
        };
        if let Some(other) = ranges.iter().find(|r| r.is_ipv4() != first.is_ipv4()) {
            return Err(RangeError::MixedFamilies {
                a: Box::new(first.clone()),
                b: Box::new(other.clone()),
            });
        }
        let set = Self(ranges);
        for (n, a) in set.0.iter().enumerate() {
            disjoint(a, &set.0[n + 1..])?;
        }
        Ok(set)
    }

    /// Checks that no address is in two of the sets.
    pub fn check_disjoint(sets: &[Self]) -> Result<(), RangeError> {
        for (n, set) in sets.iter().enumerate() {
            for other in &sets[n + 1..] {
                for range in &set.0 {
                    disjoint(range, &other.0)?;
                }
            }
        }
        Ok(())
    }

    /// The ranges, in the order in which they are tried.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that may hand out the address; `None` if none does, or if it is
    /// a gateway.
    pub fn find(&self, ip: IpAddr) -> Option<&Range> {
        if self.is_gateway(ip) {
            return None;
        }
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Whether the address is the gateway of any range of the set.
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == ip)
    }

    /// Whether the set hands out IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.0.iter().any(Range::is_ipv4)
    }

    pub(crate) fn bounds(&self) -> impl DoubleEndedIterator<Item = (u128, u128)> + '_ {
        self.0.iter().map(|range| (range.first, range.last))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

fn disjoint(range: &Range, others: &[Range]) -> Result<(), RangeError> {
    match others.iter().find(|other| range.overlaps(other)) {
        None => Ok(()),
        Some(other) => Err(RangeError::Overlap {
            a: Box::new(range.clone()),
            b: Box::new(other.clone()),
        }),
    }
}

/// First and last address of a subnet that a host may have: not the network
/// address (IPv6: the subnet-router anycast address, RFC 4291 section 2.6.1),
/// nor IPv4's broadcast address.
fn usable(subnet: IpNet) -> (u128, u128) {
    let (network, broadcast) = (bits(subnet.network()), bits(subnet.broadcast()));
    match subnet {
        IpNet::V4(_) => (network + 1, broadcast - 1),
        IpNet::V6(_) => (network + 1, broadcast),
    }
}

pub(crate) fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with these bits, in the subnet's family.
fn address(bits: u128, subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(_) => v4(bits),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

fn v4(bits: u128) -> IpAddr {
    let bits = u32::try_from(bits).expect("bounds of an IPv4 range fit in 32 bits");
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}

pub(crate) fn from_bits(bits: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        v4(bits)
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subnet: &str) -> RangeSpec {
        RangeSpec {
            subnet: subnet.parse().unwrap(),
            start: None,
            end: None,
            gateway: None,
        }
    }

    fn range(subnet: &str) -> Range {
        Range::new(&spec(subnet)).unwrap()
    }

    #[test]
    fn defaults_are_those_of_host_local() {
        let v4 = range("10.88.0.0/24");
        assert_eq!(v4.to_string(), "10.88.0.1-10.88.0.254 of 10.88.0.0/24");
        assert_eq!(v4.gateway().to_string(), "10.88.0.1");
        assert_eq!(v4.gateway_net().to_string(), "10.88.0.1/24");
        let v6 = range("fd88::/126");
        assert_eq!(v6.to_string(), "fd88::1-fd88::3 of fd88::/126");
        assert_eq!(v6.gateway().to_string(), "fd88::1");
    }

    #[test]
    fn bad_ranges_are_refused_with_their_values() {
        let refuse = |change: fn(&mut RangeSpec), subnet: &str| {
            let mut spec = spec(subnet);
            change(&mut spec);
            Range::new(&spec).unwrap_err().to_string()
        };
        let ip = |text: &str| -> Option<IpAddr> { Some(text.parse().unwrap()) };
        assert_eq!(
            refuse(|_| (), "10.0.0.5/24"),
            "subnet 10.0.0.5/24 has host bits set: write 10.0.0.0/24"
        );
        for small in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
            assert!(refuse(|_| (), small).contains("too small"), "{small}");
        }
        assert_eq!(
            refuse(|s| s.start = "10.1.0.0".parse().ok(), "10.0.0.0/24"),
            "rangeStart 10.1.0.0 is not in subnet 10.0.0.0/24"
        );
        assert_eq!(
            refuse(|s| s.gateway = "fd00::1".parse().ok(), "10.0.0.0/24"),
            "gateway fd00::1 is not in subnet 10.0.0.0/24"
        );
        assert!(
            refuse(|s| s.gateway = "10.0.0.255".parse().ok(), "10.0.0.0/24").contains("broadcast")
        );
        let backwards = RangeSpec {
            start: ip("10.0.0.9"),
            end: ip("10.0.0.8"),
            ..spec("10.0.0.0/24")
        };
        assert_eq!(
            Range::new(&backwards).unwrap_err().to_string(),
            "rangeStart 10.0.0.9 is after rangeEnd 10.0.0.8"
        );
    }

    #[test]
    fn start_and_end_never_include_network_and_broadcast() {
        let wide = Range::new(&RangeSpec {
            start: Some("10.0.0.0".parse().unwrap()),
            end: Some("10.0.0.255".parse().unwrap()),
            ..spec("10.0.0.0/24")
        })
        .unwrap();
        assert_eq!(wide.to_string(), "10.0.0.1-10.0.0.254 of 10.0.0.0/24");
    }

    #[test]
    fn sets_are_of_one_family_and_disjoint() {
        assert_eq!(RangeSet::new(vec![]), Err(RangeError::Empty));
        let mixed = RangeSet::new(vec![range("10.0.0.0/24"), range("fd00::/64")]);
        assert!(matches!(mixed, Err(RangeError::MixedFamilies { .. })));
        let twice = RangeSet::new(vec![range("10.0.0.0/16"), range("10.0.7.0/24")]);
        assert!(matches!(twice, Err(RangeError::Overlap { .. })));
        let a = RangeSet::new(vec![range("10.0.0.0/24"), range("10.0.1.0/24")]).unwrap();
        let b = RangeSet::new(vec![range("10.0.1.0/24")]).unwrap();
        let c = RangeSet::new(vec![range("fd00::/64")]).unwrap();
        assert!(RangeSet::check_disjoint(&[a.clone(), c.clone()]).is_ok());
        assert!(RangeSet::check_disjoint(&[a, c, b]).is_err());
    }

    #[test]
    fn a_gateway_of_any_range_is_not_found() {
        let set = RangeSet::new(vec![range("10.0.0.0/24"), range("10.0.1.0/24")]).unwrap();
        assert!(set.find("10.0.1.1".parse().unwrap()).is_none());
        assert!(set.find("10.0.2.2".parse().unwrap()).is_none());
        assert!(set.find("fd00::2".parse().unwrap()).is_none());
        let found = set.find("10.0.1.2".parse().unwrap()).unwrap();
        assert_eq!(found.subnet().to_string(), "10.0.1.0/24");
    }
}
