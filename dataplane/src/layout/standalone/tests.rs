use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::attachment::{AttachmentKey, MacAddr, PortMapping, Transport};
use crate::fake::Fake;
use crate::kernel::Kernel;
use crate::layout;
use crate::object::{Family, Hook, IpFamily};
use crate::trace::{Fate, Packet, Tracer};

const HOST: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8:1::7"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn attachment(number: u8) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    };
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: crate::attachment::Mode::default(),
        bridge: Some("cbr0".into()),
        mac: MacAddr([2; 6]),
        ips: vec![
            ip(&format!("10.88.0.{number}")),
            ip(&format!("fd88::{number}")),
        ],
        pod: None,
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
        undo: crate::attachment::Undo::default(),
    }
}

fn mapping(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        host_ip: (!host_ip.is_empty()).then(|| ip(host_ip)),
        host_port,
        container_port,
        protocol: Transport::Tcp,
    }
}

fn with_ports(number: u8, mappings: &[PortMapping]) -> Attachment {
    Attachment {
        port_mappings: mappings.to_vec(),
        ..attachment(number)
    }
}

fn masqueraded(number: u8, networks: &[&str]) -> Attachment {
    let networks = networks.iter().map(|net| net.parse().expect("a network"));
    Attachment {
        masquerade_beyond: networks.collect(),
        ..attachment(number)
    }
}

/// Where a packet to this host, from outside or from the host itself, is translated to.
fn translated(ruleset: &Ruleset, hook: Hook, to: &str, protocol: u8) -> Option<SocketAddr> {
    let to: SocketAddr = to.parse().expect("an address and a port");
    let from = ip(OUTSIDE[usize::from(to.is_ipv6())]);
    let mut packet = Packet::first(from, to.ip(), protocol, to.port());
    packet.iifname = "uplink".into();
    let host = HOST.map(ip);
    packet.to_local = host.contains(&to.ip()) || to.ip().is_loopback();
    let tracer = Tracer::new(ruleset, &|_| 0);
    let trace = tracer.hook(Family::Inet, hook, &mut packet);
    assert!(matches!(trace.fate, Fate::Accepted));
    let now = SocketAddr::new(packet.daddr, packet.dport);
    (now != to).then_some(now)
}

#[test]
fn a_host_port_leads_to_its_pod_from_wherever_it_is_asked_for() {
    let pods = [
        with_ports(
            2,
            &[
                mapping("", 8080, 80),
                mapping("192.0.2.2", 9090, 90),
                mapping("0.0.0.0", 7070, 70),
            ],
        ),
        with_ports(3, &[mapping("::", 9090, 93)]),
    ];
    let ruleset = ruleset(&pods);
    for (to, pod) in [
        ("192.0.2.2:8080", Some("10.88.0.2:80")),
        ("[2001:db8::2]:8080", Some("[fd88::2]:80")),
        ("192.0.2.2:9090", Some("10.88.0.2:90")),
        ("[2001:db8::2]:9090", Some("[fd88::3]:93")),
        ("192.0.2.2:7070", Some("10.88.0.2:70")),
        ("[2001:db8::2]:7070", None),
        ("192.0.2.2:80", None),
        // Not an address of this host: it only passes.
        ("203.0.113.9:8080", None),
        ("203.0.113.9:9090", None),
    ] {
        for hook in [Hook::Prerouting, Hook::Output] {
            let pod = pod.map(|pod| pod.parse().expect("an address and a port"));
            assert_eq!(translated(&ruleset, hook, to, 6), pod, "{to} {hook:?}");
            assert_eq!(translated(&ruleset, hook, to, 17), None, "{to} over UDP");
        }
    }
    let own = translated(&ruleset, Hook::Output, "127.0.0.1:8080", 6);
    assert_eq!(own, "10.88.0.2:80".parse().ok());
}

#[test]
fn a_host_port_of_one_address_goes_before_one_of_all() {
    let pods = [
        with_ports(2, &[mapping("", 80, 1)]),
        with_ports(3, &[mapping("192.0.2.2", 80, 2)]),
    ];
    let ruleset = ruleset(&pods);
    let to = |address| translated(&ruleset, Hook::Prerouting, address, 6);
    assert_eq!(to("192.0.2.2:80"), "10.88.0.3:2".parse().ok());
    assert_eq!(to("[2001:db8::2]:80"), "[fd88::2]:1".parse().ok());
}

/// CVE-2020-8558: `route_localnet` must not open the node's own loopback services.
#[test]
fn nobody_but_the_node_reaches_127() {
    let pods = [with_ports(2, &[mapping("", 8080, 80)])];
    let ruleset = ruleset(&pods);
    let tracer = Tracer::new(&ruleset, &|_| 0);
    for (interface, port, fate) in [
        ("cbr0", 8080, Fate::Dropped),
        ("cbr0", 22, Fate::Dropped),
        ("uplink", 8080, Fate::Dropped),
        ("lo", 22, Fate::Accepted),
    ] {
        let mut packet = Packet::first(ip("10.88.0.9"), ip("127.0.0.1"), 6, port);
        packet.iifname = interface.into();
        packet.to_local = true;
        let trace = tracer.hook(Family::Inet, Hook::Prerouting, &mut packet);
        assert_eq!(trace.fate, fate, "{interface} {port}");
    }
}

fn masquerades(ruleset: &Ruleset, from: &str, to: &str, status: u32) -> bool {
    let mut packet = Packet::first(ip(from), ip(to), 6, 80);
    packet.oifname = Some("uplink".into());
    packet.flow.status = status;
    let tracer = Tracer::new(ruleset, &|_| 0);
    tracer
        .hook(Family::Inet, Hook::Postrouting, &mut packet)
        .masquerade
}

#[test]
fn pods_are_masqueraded_outside_of_all_pod_networks() {
    let pods = [
        masqueraded(2, &["10.88.0.0/24", "fd88::/64"]),
        masqueraded(3, &["10.99.0.0/16", "10.88.0.0/25"]),
        attachment(4),
    ];
    let ruleset = ruleset(&pods);
    for (from, to, wanted) in [
        ("10.88.0.2", "198.51.100.7", true),
        ("fd88::2", "2001:db8:1::7", true),
        ("10.88.0.3", "198.51.100.7", true),
        ("10.88.0.2", "10.88.0.200", false),
        ("10.88.0.2", "10.99.7.7", false),
        ("10.88.0.2", "10.89.0.1", true),
        ("fd88::2", "fd88::ffff:1", false),
        ("fd88::2", "fd88:0:0:1::1", true),
        ("10.88.0.2", "224.0.0.251", false),
        ("10.88.0.2", "239.255.255.255", false),
        ("10.88.0.2", "240.0.0.1", true),
        ("fd88::2", "ff02::fb", false),
        ("10.88.0.4", "198.51.100.7", false),
        ("192.0.2.2", "198.51.100.7", false),
    ] {
        assert_eq!(masquerades(&ruleset, from, to, 0), wanted, "{from} to {to}");
    }
}

#[test]
fn what_would_not_come_back_through_the_node_is_masqueraded() {
    use crate::field::ct_status::DNAT;
    let pods = [with_ports(2, &[mapping("", 8080, 80)])];
    let ruleset = ruleset(&pods);
    for (from, to, status, wanted) in [
        ("10.88.0.2", "10.88.0.2", DNAT, true),
        ("fd88::2", "fd88::2", DNAT, true),
        ("127.0.0.1", "10.88.0.2", DNAT, true),
        ("127.0.0.1", "127.0.0.1", 0, false),
        ("10.88.0.9", "10.88.0.2", DNAT, false),
        ("198.51.100.7", "10.88.0.2", DNAT, false),
    ] {
        let found = masquerades(&ruleset, from, to, status);
        assert_eq!(found, wanted, "{from} to {to}");
    }
}

/// What `dump_part` says of the fake.
fn observe(fake: &Fake) -> (Option<Table>, bool) {
    let Some(table) = fake.ruleset().tables.get(&*INET) else {
        return (None, false);
    };
    let part = part();
    let mut found = table.clone();
    found
        .chains
        .retain(|name, _| part.chains.contains_key(name));
    found.sets.retain(|name, _| part.sets.contains_key(name));
    let is_shared = found != *table;
    (Some(found), is_shared)
}

fn write(fake: &mut Fake, pods: &[Attachment]) -> usize {
    let (observed, is_shared) = observe(fake);
    let transaction = update(observed, is_shared, pods);
    fake.commit(&transaction).expect("sound");
    transaction.operations.len()
}

#[test]
fn there_is_what_is_wanted_and_nothing_after_the_last() {
    let mut fake = Fake::new();
    assert_eq!(write(&mut fake, &[attachment(2)]), 0);
    let ports = with_ports(2, &[mapping("", 8080, 80)]);
    let masq = masqueraded(3, &["10.88.0.0/24"]);
    for pods in [
        vec![ports.clone()],
        vec![ports.clone(), masq.clone()],
        vec![masq],
    ] {
        assert_ne!(write(&mut fake, &pods), 0);
        assert_eq!(*fake.ruleset(), ruleset(&pods));
        assert_eq!(write(&mut fake, &pods), 0, "nothing to do twice");
        let chains = &fake.ruleset().tables[&*INET].chains;
        assert!(!chains.keys().any(|name| name.as_str() == "forward"));
    }
    write(&mut fake, &[]);
    assert!(fake.ruleset().tables.is_empty());
}

#[test]
fn the_tables_of_a_stopped_agent_stay_and_an_agent_finds_its_own_part_done() {
    let mut desired = Desired::new();
    layout::install(&mut desired, 1);
    let others = "10.200.0.0/16".parse().expect("a network");
    masquerade::want_inside(&mut desired, &[others].into());
    let mut fake = Fake::new();
    fake.commit(&desired.transaction()).expect("sound");
    let before = fake.ruleset().clone();

    let pods = [
        with_ports(2, &[mapping("", 8080, 80)]),
        masqueraded(3, &["10.88.0.0/24"]),
    ];
    write(&mut fake, &pods);
    let with_pods = fake.ruleset().clone();
    assert_ne!(before, with_pods);
    let inside = |ruleset: &Ruleset| masquerade::inside_of(ruleset);
    let kept = inside(&with_pods);
    assert!(kept.is_superset(&inside(&before)) && kept != inside(&before));
    write(&mut fake, &[]);
    // Which networks are others' as well only an agent can say.
    assert_eq!(inside(fake.ruleset()), kept);
    let mut rest = fake.ruleset().clone();
    for family in IpFamily::BOTH {
        let name = masquerade::INSIDE.of(family);
        let set = before.tables[&*INET].sets[name].clone();
        let table = rest.tables.get_mut(&*INET).expect("it stays");
        table.sets.insert(name.clone(), set);
    }
    assert_eq!(rest, before);

    // The other way round: what the plugin wrote is a part of what an agent writes.
    let mut alone = Fake::new();
    write(&mut alone, &pods);
    let adoption = diff(alone.ruleset(), &with_pods);
    let own = part();
    let rewritten = adoption.operations.iter().filter(|operation| {
        use crate::transaction::Operation::{AddRule, DeleteChain, FlushChain};
        match operation {
            AddRule { chain, .. } | DeleteChain { chain, .. } | FlushChain { chain, .. } => {
                own.chains.contains_key(chain)
            }
            _ => false,
        }
    });
    assert_eq!(rewritten.count(), 0, "{adoption}");
}
