//! Addresses and prefixes as the API server reads them.
//!
//! `k8s.io/utils/net` ParseIPSloppy and ParseCIDRSloppy accept decimal parts with
//! leading zeros (`010.0.0.1` is 10.0.0.1), which Rust and today's Go refuse. Objects
//! with such texts exist in clusters, and reading them as octal or not at all would
//! open what they closed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Reads an address; IPv4-mapped IPv6 becomes IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    Some(parse_verbatim(text)?.to_canonical())
}

/// Reads a prefix in CIDR notation: host bits are masked, and a prefix inside
/// `::ffff:0:0/96` becomes the IPv4 prefix it stands for, as Go's `IPNet.Contains`
/// treats it.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    let net = match parse_verbatim(address)? {
        IpAddr::V4(address) => Ipv4Net::new(address, length).ok()?.into(),
        IpAddr::V6(address) => match (address.to_ipv4_mapped(), length.checked_sub(96)) {
            (Some(mapped), Some(length)) => Ipv4Net::new(mapped, length).ok()?.into(),
            _ => IpNet::from(Ipv6Net::new(address, length).ok()?),
        },
    };
    Some(net.trunc())
}

fn parse_verbatim(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_v4(text).map(IpAddr::V4);
    }
    let Some((head, tail)) = text.rsplit_once(':').filter(|(_, t)| t.contains('.')) else {
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    };
    let embedded = parse_v4(tail)?;
    format!("{head}:{embedded}")
        .parse::<Ipv6Addr>()
        .ok()
        .map(IpAddr::V6)
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = match part.trim_start_matches('0') {
            "" => 0,
            digits => digits.parse().ok()?,
        };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Option<String> {
        parse_cidr(text).map(|net| net.to_string())
    }

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_ip("010.000.000.001"), "10.0.0.1".parse().ok());
        assert_eq!(cidr("010.0.0.0/08").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(parse_ip("::ffff:010.0.0.1"), "10.0.0.1".parse().ok());
    }

    #[test]
    fn host_bits_are_masked() {
        assert_eq!(cidr("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(cidr("2001:db8::1/32").as_deref(), Some("2001:db8::/32"));
        assert_eq!(cidr("10.1.2.3/0").as_deref(), Some("0.0.0.0/0"));
    }

    #[test]
    fn v4_mapped_prefixes_are_v4_from_96_bits_on() {
        assert_eq!(cidr("::ffff:10.1.0.0/104").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(cidr("::ffff:0:0/96").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(cidr("::ffff:10.0.0.0/80").as_deref(), Some("::/80"));
        assert_eq!(cidr("::/0").as_deref(), Some("::/0"));
    }

    #[test]
    fn refuses_what_is_no_address_or_prefix() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.0.0",
            "10.0.0.256",
            "10.0.0.0x1",
            "+1.0.0.0",
            "1..0.0",
            "fe80::1%eth0",
            " 10.0.0.1",
            "a.b.c.d",
            ":::",
            "1.2.3.4:5",
            "10.0.0.99999999999999999999",
        ] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
        for text in [
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "/8",
            "10.0.0.0/ 8",
            "::/999",
        ] {
            assert_eq!(cidr(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_every_canonical_text(bits: u128, v4: u32, length in 0u8..=128) {
            let (v6, v4) = (Ipv6Addr::from(bits), Ipv4Addr::from(v4));
            prop_assert_eq!(parse_ip(&v6.to_string()), Some(IpAddr::V6(v6).to_canonical()));
            prop_assert_eq!(parse_ip(&v4.to_string()), Some(IpAddr::V4(v4)));
            if length <= 32 {
                let net = Ipv4Net::new(v4, length).unwrap();
                prop_assert_eq!(parse_cidr(&net.to_string()), Some(net.trunc().into()));
            }
            if v6.to_ipv4_mapped().is_none() {
                let net = Ipv6Net::new(v6, length).unwrap();
                prop_assert_eq!(parse_cidr(&net.to_string()), Some(net.trunc().into()));
            }
        }

        #[test]
        fn never_panics(text in "[0-9a-f:./%]{0,24}") {
            let _ = (parse_ip(&text), parse_cidr(&text));
        }
    }
}
