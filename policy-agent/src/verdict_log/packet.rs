//! The headers of a logged packet (RFC 791, RFC 8200, RFC 9293, RFC 792, RFC 4443, RFC 4861,
//! RFC 826).

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use dataplane::attachment::MacAddr;

/// Extension headers of IPv6 that are passed over: hop-by-hop, routing, destination.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;
/// A packet with more of them is not looked into.
const MAX_EXTENSIONS: usize = 8;
/// ICMPv6 types of neighbour discovery, from router solicitation to redirect.
const NEIGHBOUR_DISCOVERY: RangeInclusive<u8> = 133..=137;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
/// ARP for IPv4 on Ethernet: types and lengths of its addresses.
const ARP_FOR_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What the first bytes of a packet say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Headers {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// IP protocol; `None` for ARP.
    pub(super) protocol: Option<u8>,
    /// Of TCP, UDP and SCTP, in a first fragment.
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
    /// Flags of TCP.
    pub(super) tcp_flags: Option<u8>,
    /// Type and code of ICMP and ICMPv6.
    pub(super) icmp: Option<(u8, u8)>,
    /// Whom neighbour solicitation and advertisement are about.
    pub(super) nd_target: Option<Ipv6Addr>,
    /// Sender hardware address of ARP.
    pub(super) arp_mac: Option<MacAddr>,
}

impl Headers {
    /// `None` for what is no IP packet, or too little of one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    /// An ARP packet: its sender and whom it asks about or answers.
    pub(super) fn parse_arp(bytes: &[u8]) -> Option<Self> {
        let packet = bytes.first_chunk::<28>()?;
        if !packet.starts_with(&ARP_FOR_IPV4) {
            return None;
        }
        let address = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).ok();
        Some(Self {
            protocol: None,
            arp_mac: packet[8..14].try_into().ok().map(MacAddr),
            ..Self::new(address(14)?.into(), address(24)?.into(), 0)
        })
    }

    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let length = usize::from(header[0] & 0xf) * 4;
        let address = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok();
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let payload = bytes.get(length..).filter(|_| offset == 0);
        let headers = Self::new(address(12)?.into(), address(16)?.into(), header[9]);
        Some(headers.with_payload(payload.unwrap_or_default()))
    }

    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<40>()?;
        let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok();
        let (source, destination) = (address(8)?, address(24)?);
        let mut protocol = header[6];
        let mut rest = &bytes[40..];
        for _ in 0..MAX_EXTENSIONS {
            let length = match protocol {
                FRAGMENT => 8,
                next if EXTENSIONS.contains(&next) => {
                    let Some(length) = rest.get(1) else { break };
                    (usize::from(*length) + 1) * 8
                }
                _ => break,
            };
            let (Some(next), Some(after)) = (rest.first(), rest.get(length..)) else {
                break;
            };
            let is_later_fragment =
                protocol == FRAGMENT && u16::from_be_bytes([rest[2], rest[3]]) & 0xfff8 != 0;
            protocol = *next;
            rest = if is_later_fragment { &[] } else { after };
        }
        let headers = Self::new(source.into(), destination.into(), protocol);
        Some(headers.with_payload(rest))
    }

    const fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol: Some(protocol),
            source_port: None,
            destination_port: None,
            tcp_flags: None,
            icmp: None,
            nd_target: None,
            arp_mac: None,
        }
    }

    fn with_payload(mut self, payload: &[u8]) -> Self {
        match (self.protocol, payload) {
            (Some(6 | 17 | 132), [a, b, c, d, ..]) => {
                self.source_port = Some(u16::from_be_bytes([*a, *b]));
                self.destination_port = Some(u16::from_be_bytes([*c, *d]));
                let flags = payload.get(13).filter(|_| self.protocol == Some(6));
                self.tcp_flags = flags.copied();
            }
            (Some(1), [kind, code, ..]) => self.icmp = Some((*kind, *code)),
            (Some(58), [kind, code, rest @ ..]) => {
                self.icmp = Some((*kind, *code));
                let has_target = matches!(*kind, NEIGHBOUR_SOLICIT | NEIGHBOUR_ADVERT);
                let target = rest.get(6..).and_then(|rest| rest.first_chunk::<16>());
                let target = target.filter(|_| has_target);
                self.nd_target = target.map(|target| Ipv6Addr::from(*target));
            }
            _ => {}
        }
        self
    }

    /// Whether it never leaves the link: from a link-local address or from none, or to
    /// neighbours by multicast.
    pub(super) fn is_of_the_link(&self) -> bool {
        let is_local_source = match self.source {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
        };
        is_local_source
            || match self.destination {
                // 224.0.0.0/24 and multicast of scope 2.
                IpAddr::V4(v4) => v4.octets().starts_with(&[224, 0, 0]),
                IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
            }
    }

    /// Whether it is what a link with IPv6 and without an address of ours says of itself: that
    /// it takes a link-local address, and who is there. Nobody else's address is claimed.
    pub(super) fn is_chatter(&self) -> bool {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (self.source, self.destination) else {
            return false;
        };
        let is_discovery = |(kind, _): (u8, u8)| NEIGHBOUR_DISCOVERY.contains(&kind);
        match self.nd_target {
            Some(target) => source.is_unspecified() && target.is_unicast_link_local(),
            None => {
                source.is_unicast_link_local()
                    && destination.segments()[0] & 0xff0f == 0xff02
                    && !self.icmp.is_some_and(is_discovery)
            }
        }
    }

    /// `TCP`, `UDP`, `ICMP`, `ARP`, or the number.
    pub(super) fn protocol_name(&self) -> String {
        match self.protocol {
            None => "ARP".into(),
            Some(1) => "ICMP".into(),
            Some(6) => "TCP".into(),
            Some(17) => "UDP".into(),
            Some(58) => "ICMPv6".into(),
            Some(132) => "SCTP".into(),
            Some(other) => other.to_string(),
        }
    }

    /// `SYN`, `FIN ACK`.
    pub(super) fn flag_names(&self) -> Option<String> {
        const NAMES: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
        let flags = self.tcp_flags?;
        let set = NAMES.iter().enumerate();
        let set = set.filter(|(bit, _)| flags & (1 << bit) != 0);
        let names: Vec<_> = set.map(|(_, name)| *name).collect();
        Some(names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 88, 0, 2, 10, 88, 0, 3]);
        bytes.extend(payload);
        bytes
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        bytes.extend(payload);
        bytes
    }

    const SYN: [u8; 14] = [0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2];

    #[test]
    fn ports_flags_and_types_are_found_behind_every_header() {
        let hop_by_hop = [&[6, 0, 0, 0, 0, 0, 0, 0][..], &SYN].concat();
        let fragment = [&[6, 0, 0, 1, 0, 0, 0, 0][..], &SYN].concat();
        for bytes in [
            v4(6, 0, &SYN),
            v6(6, &SYN),
            v6(0, &hop_by_hop),
            v6(44, &fragment),
        ] {
            let headers = Headers::parse(&bytes).expect("a packet");
            assert_eq!(headers.protocol_name(), "TCP");
            assert_eq!(
                (headers.source_port, headers.destination_port),
                (Some(40_000), Some(80))
            );
            assert_eq!(headers.flag_names().as_deref(), Some("SYN"));
        }
        let echo = Headers::parse(&v4(1, 0, &[8, 0, 1, 2])).expect("a packet");
        assert_eq!((echo.icmp, echo.source_port), (Some((8, 0)), None));
        assert_eq!(echo.source, IpAddr::from([10, 88, 0, 2]));
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let later = [&[6, 0, 0, 8, 0, 0, 0, 0][..], &SYN].concat();
        for bytes in [v4(6, 100, &SYN), v6(44, &later)] {
            let headers = Headers::parse(&bytes).expect("a packet");
            assert_eq!((headers.protocol, headers.source_port), (Some(6), None));
        }
    }

    #[test]
    fn arp_and_neighbour_discovery_say_whom_they_are_about() {
        let mut arp = ARP_FOR_IPV4.to_vec();
        arp.extend([0, 2, 0x0a, 0x58, 0, 0, 0, 1, 10, 88, 0, 2]);
        arp.extend([0xff; 6]);
        arp.extend([10, 88, 0, 1]);
        let headers = Headers::parse_arp(&arp).expect("ARP");
        assert_eq!(headers.protocol_name(), "ARP");
        assert_eq!(headers.source, IpAddr::from([10, 88, 0, 2]));
        assert_eq!(headers.destination, IpAddr::from([10, 88, 0, 1]));
        assert_eq!(headers.arp_mac, Some(MacAddr([0x0a, 0x58, 0, 0, 0, 1])));
        assert_eq!(Headers::parse_arp(&arp[..27]), None);
        arp[4] = 8;
        assert_eq!(Headers::parse_arp(&arp), None, "not of Ethernet");

        let solicits = |kind| {
            let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            message.extend([0xfd; 16]);
            Headers::parse(&v6(58, &message)).expect("a packet")
        };
        assert_eq!(solicits(135).nd_target, Some(Ipv6Addr::from([0xfd; 16])));
        assert_eq!(solicits(128).nd_target, None, "an echo has none");
    }

    #[test]
    fn what_a_link_says_of_itself_claims_nothing() {
        let headers = |source: &str, destination: &str, icmp, target: Option<&str>| Headers {
            icmp,
            nd_target: target.map(|target| target.parse().expect("an address")),
            ..Headers::new(
                source.parse().expect("an address"),
                destination.parse().expect("an address"),
                58,
            )
        };
        let solicit = Some((135, 0));
        for (headers, is_chatter) in [
            (
                headers("::", "ff02::1:ff00:1", solicit, Some("fe80::1")),
                true,
            ),
            (
                headers("::", "ff02::1:ff00:1", solicit, Some("fd88::1")),
                false,
            ),
            (headers("fe80::1", "ff02::fb", None, None), true),
            (headers("fe80::1", "ff02::1", Some((134, 0)), None), false),
            (
                headers("fe80::1", "ff02::1:ff00:1", solicit, Some("fd88::1")),
                false,
            ),
            (headers("fe80::1", "fd88::2", None, None), false),
            (headers("10.88.0.2", "224.0.0.251", None, None), false),
        ] {
            assert_eq!(headers.is_chatter(), is_chatter, "{headers:?}");
        }
    }

    #[test]
    fn what_stays_on_the_link_is_told_apart() {
        let headers = |source: &str, destination: &str| {
            let address = |text: &str| text.parse().expect("an address");
            Headers::new(address(source), address(destination), 17)
        };
        for (source, destination, stays) in [
            ("fe80::1", "ff02::16", true),
            ("fd88::4", "ff02::1:ff00:1", true),
            ("::", "ff02::16", true),
            ("10.88.0.2", "224.0.0.22", true),
            ("fd88::4", "ff05::2", false),
            ("10.88.0.2", "10.88.0.3", false),
        ] {
            let found = headers(source, destination).is_of_the_link();
            assert_eq!(found, stays, "{source} {destination}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..160), version in 0u8..16) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0xf | version << 4;
            }
            let _ = Headers::parse(&bytes);
            let _ = Headers::parse_arp(&bytes);
        }
    }
}
