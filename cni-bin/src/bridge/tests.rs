use super::role::{GATEWAY, ROUTED, SWITCHED, VLANS};
use super::*;
use crate::spec::Vlans;

fn wanted(force_address: bool) -> Wanted<'static> {
    let net = |text: &str| text.parse().unwrap();
    Wanted {
        name: "cbr0",
        role: Role::Routed,
        gateways: vec![net("10.88.0.1/24"), net("fd88::1/64")],
        mtu: 1500,
        force_address,
    }
}

fn bridge() -> Link {
    Link {
        index: 7,
        up: true,
        name: "cbr0".into(),
        kind: Some("bridge".into()),
        alias: Some(ROUTED.0.into()),
        ..Link::default()
    }
}

fn on(index: u32, nets: &[&str]) -> Vec<Address> {
    let address = |net: &&str| Address {
        index,
        net: net.parse().unwrap(),
    };
    nets.iter().map(address).collect()
}

#[test]
fn a_bridge_that_is_ready_needs_nothing() {
    let addresses = on(
        7,
        &["10.88.0.1/24", "fd88::1/64", "fe80::1/64", "2001:db8::1/64"],
    );
    assert!(
        wanted(false)
            .compare(bridge(), &addresses)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_is_missing_is_planned() {
    let link = Link {
        up: false,
        alias: None,
        ..bridge()
    };
    // The right address on another link does not count.
    let mut addresses = on(3, &["fd88::1/64"]);
    addresses.extend(on(7, &["10.88.0.1/24"]));
    let plan = wanted(false).compare(link, &addresses).unwrap();
    assert_eq!(plan.add, ["fd88::1/64".parse().unwrap()]);
    assert!(plan.up && plan.adopt && plan.remove.is_empty());
}

#[test]
fn conflicting_addresses_are_refused_or_replaced() {
    for found in [
        "10.99.0.1/24",
        "10.88.0.1/16",
        "10.88.0.9/24",
        "fd88::2/64",
        "fd88::1/48",
    ] {
        let addresses = on(7, &[found]);
        let error = wanted(false).compare(bridge(), &addresses).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
        let plan = wanted(true).compare(bridge(), &addresses).unwrap();
        assert_eq!(plan.remove, [found.parse().unwrap()]);
        assert_eq!(plan.add.len(), 2);
    }
}

#[test]
fn a_bridge_without_an_address_gets_the_derived_one() {
    let mac = |mac| {
        let link = Link { mac, ..bridge() };
        wanted(false)
            .compare(link, &[])
            .unwrap()
            .link
            .mac
            .unwrap()
            .to_string()
    };
    assert_eq!(mac(None), "0a:58:0a:58:00:01");
    assert_eq!(mac(Some(MacAddr([0; 6]))), "0a:58:0a:58:00:01");
    assert_eq!(mac(Some(MacAddr([2; 6]))), "02:02:02:02:02:02");
}

#[test]
fn what_is_no_bridge_is_named() {
    let link = Link {
        kind: Some("dummy".into()),
        ..bridge()
    };
    let error = wanted(true).compare(link, &[]).unwrap_err();
    assert!(
        error.to_string().contains("cbr0 exists and is dummy"),
        "{error}"
    );
}

fn link(name: &str, kind: &str, mark: &str) -> Link {
    Link {
        name: name.into(),
        kind: Some(kind.into()),
        alias: Some(mark.into()),
        ..bridge()
    }
}

/// A bridge whose settings break the ports of another role is refused, by what both are for.
#[test]
fn a_bridge_has_ports_of_one_role() {
    let vlans = Wanted {
        role: Role::Vlans,
        gateways: Vec::new(),
        ..wanted(false)
    };
    for (mark, words) in [(ROUTED.0, "routed-ports"), (SWITCHED.0, "without VLANs")] {
        let error = vlans
            .compare(link("cbr0", "bridge", mark), &[])
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains("with VLANs"),
            "{text}"
        );
    }
    let error = wanted(false).compare(link("cbr0", "bridge", VLANS.0), &[]);
    assert!(matches!(error, Err(BridgeError::OtherRole { .. })));
    // One of somebody else's is taken over.
    let plan = vlans.compare(link("br7", "bridge", "uplink"), &[]).unwrap();
    assert!(plan.adopt);
}

#[test]
fn a_bridge_that_has_stopped_to_keep_vlans_apart_is_set_right() {
    let vlans = Wanted {
        role: Role::Vlans,
        gateways: Vec::new(),
        ..wanted(false)
    };
    let mut found = link("cbr0", "bridge", VLANS.0);
    assert!(vlans.compare(found.clone(), &[]).unwrap().adopt);
    found.filters_vlans = true;
    assert!(vlans.compare(found, &[]).unwrap().is_empty());
}

#[test]
fn the_gateway_of_a_vlan_is_the_end_of_a_pair() {
    let vlans = Vlans {
        access: Some(7),
        tagged: Vec::new(),
        keeps_default: false,
    };
    let gateway = Wanted {
        name: "cbr0.7",
        role: Role::Gateway {
            bridge: 5,
            vlans: &vlans,
        },
        ..wanted(false)
    };
    let addresses = on(7, &["10.88.0.1/24", "fd88::1/64"]);
    let plan = gateway.compare(link("cbr0.7", "veth", GATEWAY.0), &addresses);
    assert!(plan.unwrap().is_empty());
    let error = gateway
        .compare(link("cbr0.7", "vlan", ""), &[])
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("is vlan, not a veth"), "{text}");
}

/// `ip link add br0 type bridge vlan_filtering 1` as `strace` shows it (iproute2 6.1), the
/// sequence number set to 1: header, `struct ifinfomsg`, `IFLA_IFNAME`, `IFLA_LINKINFO` with
/// `IFLA_INFO_KIND` and, in `IFLA_INFO_DATA`, `IFLA_BR_VLAN_FILTERING`.
#[cfg(target_endian = "little")]
#[test]
fn a_bridge_that_keeps_vlans_apart_is_made_as_iproute2_makes_it() {
    let wanted = Wanted {
        name: "br0",
        role: Role::Vlans,
        gateways: Vec::new(),
        ..wanted(false)
    };
    let mut batch = Batch::default();
    let message = RouteNetlinkMessage::NewLink(wanted.new_bridge());
    batch.push("test", NLM_F_CREATE | NLM_F_EXCL, &message);
    let as_ip = "44000000 10000506 01000000 00000000 00000000 00000000 00000000 00000000 \
                 08000300 62723000 1c001200 0a000100 62726964 67650000 0c000200 05000700 01000000";
    // `ip` does not count the byte that ends the kind.
    let expected = as_ip.replace(' ', "").replace("0a000100", "0b000100");
    assert_eq!(batch.printed(), [expected]);
}
