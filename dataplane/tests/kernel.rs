//! The encoder and the decoder against the kernel, in a network namespace of each
//! test's own thread; `nft` is the independent observer.

mod common;

use std::net::IpAddr;
use std::process::Command;

use dataplane::attachment::{Attachment, AttachmentKey, MacAddr, Mode};
use dataplane::desired::Desired;
use dataplane::diff::diff;
use dataplane::fake::Fake;
use dataplane::kernel::{CommitError, Kernel, StaleFlow};
use dataplane::layout::{self, INET, policy, ports, services};
use dataplane::netlink::Nftables;
use dataplane::object::{Element, IpFamily, Ruleset};

use common::own_namespace;

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft")
        .args(arguments)
        .output()
        .expect("nft runs");
    assert!(
        output.status.success(),
        "nft {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A node with a pod, a Service and the static layout.
fn sample() -> Desired {
    let mut desired = Desired::new();
    layout::install(&mut desired, 7);
    let attachment = Attachment {
        key: AttachmentKey {
            network: "net".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        },
        netns: "/run/netns/x".into(),
        host_ifname: "trm0123456789ab".into(),
        mode: Mode::RoutedPorts,
        bridge: Some("cbr0".into()),
        mac: MacAddr([0x0a, 0x58, 10, 88, 0, 2]),
        ips: vec![address("10.88.0.2"), address("fd88::2")],
        undo: Default::default(),
        pod: None,
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
    };
    desired.insert(
        &INET,
        &ports::PORTS_OF_POD,
        ports::interface_key("cbr0"),
        Element::member(),
    );
    let routed = Attachment {
        mode: Mode::Routed,
        bridge: None,
        ..attachment.clone()
    };
    for sender in [&attachment, &routed].into_iter().flat_map(ports::senders) {
        let element = Element::member().with_comment("default/web");
        desired.insert(sender.table, sender.set, sender.key, element);
    }
    everything_of_services(&mut desired);
    for (vip, endpoint) in [("10.96.0.1", "10.88.0.2"), ("fd96::1", "fd88::2")] {
        let (vip, endpoint) = (address(vip), address(endpoint));
        let family = IpFamily::of(vip);
        services::Balancer::random(2).want(&mut desired);
        for slot in 0..2 {
            desired.insert(
                &INET,
                services::ENDPOINTS.of(family),
                services::slot_key(vip, 6, 80, slot),
                Element::data(services::endpoint_data(endpoint, 8080)),
            );
        }
        let verdict = dataplane::rule::Verdict::Goto(services::Balancer::random(2).chain());
        desired.insert(
            &INET,
            services::FRONTENDS.of(family),
            services::frontend_key(vip, 6, 80),
            Element::verdict(verdict).with_comment("default/web:http"),
        );
        desired.insert(
            &INET,
            services::UNSERVED.of(family),
            services::frontend_key(vip, 17, 53),
            Element::verdict(services::refused()),
        );
        for direction in policy::Direction::BOTH {
            desired.insert(
                &INET,
                direction.map(family),
                dataplane::datatype::Bytes::new().addr(endpoint).build(),
                Element::verdict(direction.allowed()),
            );
        }
    }
    desired
}

/// One of each chain and element that a Service can need.
fn everything_of_services(desired: &mut Desired) {
    let lanes = services::Lane::ALL.into_iter();
    let algorithms = [
        services::Algorithm::Random,
        services::Algorithm::RoundRobin,
        services::Algorithm::SourceHash,
    ];
    for (lane, algorithm) in lanes.flat_map(|lane| algorithms.map(|a| (lane, a))) {
        let balancer = services::Balancer {
            lane,
            algorithm,
            sticky: algorithm == services::Algorithm::RoundRobin,
            slots: 3,
        };
        balancer.want(desired);
    }
    for entry in services::Entry::BOTH {
        services::want_learn_chain(desired, entry, 10_800);
    }
    let bridge = services::PodSources::Interface("cni0".into());
    services::set_pod_sources(desired, &bridge, false);
    let net = |text: &str| text.parse::<ipnet::IpNet>().expect("a network");
    let ranges = services::SourceRanges::new(
        [net("192.0.2.0/24"), net("2001:db8::/32")],
        Some(address("203.0.113.1")),
    );
    ranges.want(desired);
    for (vip, endpoint) in [("203.0.113.1", "10.88.0.2"), ("2001:db8:1::1", "fd88::2")] {
        let (vip, endpoint) = (address(vip), address(endpoint));
        let family = IpFamily::of(vip);
        for (at, entry) in [
            (vip, services::Entry::Address),
            (family.unspecified(), services::Entry::NodePort),
        ] {
            for sources in [services::Sources::All, services::Sources::Cluster] {
                let lane = services::Lane::new(entry, sources);
                let balancer = services::Balancer {
                    lane,
                    algorithm: services::Algorithm::RoundRobin,
                    sticky: true,
                    slots: 3,
                };
                let frontend = services::frontend_key(at, 6, 30_080);
                let verdict = dataplane::rule::Verdict::Goto(balancer.chain());
                let element = Element::verdict(verdict);
                desired.insert(&INET, lane.frontends().of(family), frontend, element);
                for slot in 0..3 {
                    let data = services::endpoint_data(endpoint, 8080);
                    let key = services::slot_key(at, 6, 30_080, slot);
                    desired.insert(&INET, lane.endpoints().of(family), key, Element::data(data));
                }
            }
            let key = services::frontend_key(at, 6, 30_080);
            let learn = dataplane::rule::Verdict::Goto(services::learn_chain(entry, 10_800));
            let group = services::AffinityGroup::new(7).element(family);
            let groups = entry.affinity_groups().of(family);
            desired.insert(&INET, groups, key.clone(), group);
            let source = services::Masquerade::OwnTraffic.verdict();
            for (map, verdict) in [
                (entry.sticky(), learn),
                (entry.external(), source),
                (entry.unserved(), services::refused()),
            ] {
                let element = Element::verdict(verdict);
                desired.insert(&INET, map.of(family), key.clone(), element);
            }
        }
        let restricted = Element::verdict(dataplane::rule::Verdict::Goto(ranges.chain()));
        let key = services::frontend_key(vip, 6, 30_080);
        desired.insert(&INET, services::RESTRICTED.of(family), key, restricted);
    }
}

#[test]
fn what_is_dumped_is_what_was_written() {
    if !own_namespace() {
        return;
    }
    let mut kernel = Nftables::open().expect("nf_tables");
    let desired = sample();
    kernel
        .commit(&desired.transaction())
        .expect("the kernel takes it");
    let dumped = kernel.dump(&layout::tables()).expect("a dump");
    if dumped != *desired.ruleset() {
        println!("{dumped}\n=====\n{}", desired.ruleset());
        panic!("{}", diff(&dumped, desired.ruleset()));
    }
}

#[test]
fn nft_lists_the_whole_table() {
    if !own_namespace() {
        return;
    }
    let mut kernel = Nftables::open().expect("nf_tables");
    let desired = sample();
    kernel
        .commit(&desired.transaction())
        .expect("the kernel takes it");
    let text = nft(&["list", "ruleset"]);
    println!("{text}");
    for expected in [
        "ip daddr . meta l4proto . th dport vmap @frontends4",
        "10.96.0.1 . tcp . 80 comment \"default/web:http\" : goto random-2",
        "ct direction reply ct state established accept",
        "ip daddr @node-addresses4 meta l4proto . th dport vmap @node-frontends4",
        "ip daddr set ip daddr . meta l4proto . th dport map @affinity-groups4",
        "ip6 daddr set meta l4proto . th dport map @node-affinity-groups6",
        "dnat ip to ip saddr . ip daddr map @affinity4",
        "ip6 daddr set ct original ip6 daddr",
        "ip saddr set meta l4proto . ct original proto-dst map @node-affinity-groups4",
        "update @affinity4 { ct original ip saddr . ip saddr timeout 3h : ip daddr . th dport } ip saddr set ct original ip saddr accept",
        "update @affinity6 { ct original ip6 saddr . ip6 saddr timeout 3h : ip6 daddr . th dport } ip6 saddr set ct original ip6 saddr accept",
        "203.0.113.1 . tcp . 30080 : 240.0.0.7",
        "tcp . 30080 : goto cluster-node-sticky-round-robin-3",
        "fib saddr type local masquerade fully-random",
        "ip saddr 192.0.2.0-192.0.2.255 return",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&nft(&["-j", "list", "ruleset"])).expect("JSON");
    let count = |kind: &str| {
        let objects = json["nftables"].as_array().expect("objects").iter();
        objects.filter(|object| object.get(kind).is_some()).count()
    };
    let tables = &desired.ruleset().tables;
    let chains: usize = tables.values().map(|table| table.chains.len()).sum();
    let sets: usize = tables.values().map(|table| table.sets.len()).sum();
    let rules = tables.values().flat_map(|table| table.chains.values());
    let rules: usize = rules.map(|chain| chain.rules.len()).sum();
    assert_eq!(count("chain"), chains);
    assert_eq!(count("set") + count("map"), sets);
    assert_eq!(count("rule"), rules);
}

#[test]
fn an_impossible_element_is_named_and_nothing_is_done() {
    if !own_namespace() {
        return;
    }
    let mut kernel = Nftables::open().expect("nf_tables");
    let mut desired = sample();
    kernel
        .commit(&desired.transaction())
        .expect("the kernel takes it");
    desired.committed();
    let before: Ruleset = kernel.dump(&layout::tables()).expect("a dump");

    let key = |port| services::frontend_key(address("10.96.0.9"), 6, port);
    for port in 1..=20 {
        // Port 13 leads to a chain that does not exist.
        let slots = if port == 13 { 99 } else { 2 };
        let verdict = dataplane::rule::Verdict::Goto(services::Balancer::random(slots).chain());
        let frontends = services::FRONTENDS.of(IpFamily::V4);
        desired.insert(&INET, frontends, key(port), Element::verdict(verdict));
    }
    let transaction = desired.transaction();
    let mut fake = Fake::new();
    fake.tamper(|ruleset| *ruleset = before.clone());
    for kernel in [&mut kernel as &mut dyn Kernel, &mut fake] {
        let error = kernel.commit(&transaction).expect_err("no chain random-99");
        let CommitError::Rejected(rejections) = error else {
            panic!("{error}");
        };
        assert_eq!(rejections.len(), 1, "{rejections:?}");
        let rejection = &rejections[0];
        let operation = &transaction.operations[rejection.operation.expect("blamed")];
        let blamed = &operation.elements()[rejection.elements.clone()];
        assert_eq!(blamed.len(), 1);
        assert_eq!(blamed[0].0, key(13));
        assert_eq!(rejection.object, "set inet trammel frontends4");
        assert_eq!(kernel.dump(&layout::tables()).expect("a dump"), before);
    }
}

/// A table that grows is rebuilt by the kernel meanwhile, and a dump at that time lacks some.
#[test]
fn a_dump_right_after_large_commits_lacks_nothing() {
    if !own_namespace() {
        return;
    }
    let mut kernel = Nftables::open().expect("a socket");
    let mut desired = Desired::new();
    layout::install(&mut desired, 1);
    let map = services::ENDPOINTS.of(IpFamily::V4);
    for slot in 0..60_000 {
        let key = services::slot_key(address("10.96.0.1"), 6, 80, slot);
        let data = services::endpoint_data(address("10.0.0.1"), 80);
        desired.insert(&INET, map, key, Element::data(data));
    }
    for part in desired.transaction().chunks(15_000, desired.ruleset()) {
        kernel.commit(&part).expect("the kernel takes it");
    }
    let dumped = kernel.dump(&layout::tables()).expect("a dump");
    let lacking = diff(&dumped, desired.ruleset());
    assert!(lacking.is_empty(), "{lacking}");
}

/// services.md 51: what is changed of a table or a chain beside its content.
#[test]
fn a_table_put_to_sleep_and_a_policy_of_drop_are_seen_and_put_right() {
    if !own_namespace() {
        return;
    }
    let mut kernel = Nftables::open().expect("a socket");
    let desired = sample();
    kernel
        .commit(&desired.transaction())
        .expect("the kernel takes it");
    let before = nft(&["list", "table", "inet", "trammel"]);
    for (change, sign) in [
        ("add table inet trammel { flags dormant; }", "flags dormant"),
        ("chain inet trammel forward { policy drop; }", "policy drop"),
    ] {
        nft(&[change]);
        assert!(nft(&["list", "table", "inet", "trammel"]).contains(sign));
        let observed = kernel.dump(&layout::tables()).expect("a dump");
        assert!(format!("{observed}").contains(sign), "{observed}");
        let repair = diff(&observed, desired.ruleset());
        kernel.commit(&repair).expect("the kernel takes it");
        let now = kernel.dump(&layout::tables()).expect("a dump");
        assert_eq!(&now, desired.ruleset());
        assert!(!nft(&["list", "table", "inet", "trammel"]).contains(sign));
    }
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let after = nft(&["list", "table", "inet", "trammel"]);
    assert_eq!(sorted(&after), sorted(&before));
}

/// services.md 40.
#[test]
fn stale_flows_are_forgotten_in_every_zone() {
    if !own_namespace() {
        return;
    }
    let flows = [
        ("10.0.0.1", "10.96.0.10", "10.0.0.7"),
        ("fd00::1", "fd96::10", "fd00::7"),
    ];
    for (client, frontend, endpoint) in flows {
        for zone in ["0", "7"] {
            for (port, endpoint) in [("1000", endpoint), ("1001", frontend)] {
                conntrack(&[
                    "-I",
                    "-p",
                    "udp",
                    "-t",
                    "600",
                    "-s",
                    client,
                    "-d",
                    frontend,
                    "--reply-src",
                    endpoint,
                    "--reply-dst",
                    client,
                    "--sport",
                    port,
                    "--dport",
                    "53",
                    "--reply-port-src",
                    "53",
                    "--reply-port-dst",
                    port,
                    "-w",
                    zone,
                ]);
            }
        }
    }
    let stale = flows.map(|(_, frontend, endpoint)| StaleFlow {
        protocol: 17,
        frontend: (address(frontend), 53).into(),
        endpoint: (address(endpoint), 53).into(),
    });
    let mut kernel = Nftables::open().expect("a socket");
    let forgotten = kernel.forget_flows(&stale).expect("the kernel takes it");
    assert_eq!(forgotten, 4);
    for family in ["ipv4", "ipv6"] {
        let listed = conntrack(&["-L", "-f", family]);
        assert_eq!(listed.matches("sport=1000 ").count(), 0, "{listed}");
        assert_eq!(listed.matches("sport=1001 ").count(), 2, "{listed}");
    }
}

/// netpol.md 55: of all flows, whatever their family, and nothing but these bits.
#[test]
fn marks_of_flows_are_cleared_but_for_the_spared() {
    if !own_namespace() {
        return;
    }
    let insert = |source: &str, destination: &str, port: usize, mark: u32| {
        let (port, mark) = (port.to_string(), mark.to_string());
        conntrack(&[
            "-I",
            "-p",
            "udp",
            "-t",
            "600",
            "-s",
            source,
            "-d",
            destination,
            "--sport",
            &port,
            "--dport",
            "53",
            "-m",
            &mark,
        ]);
    };
    let marks = [0x0001_0005, 0x0002_0000, 0xffff_4000, 7, 0];
    for (port, mark) in marks.into_iter().enumerate() {
        insert("10.0.0.1", "10.0.0.2", 1000 + port, mark);
        insert("fd00::1", "fd00::2", 1000 + port, mark);
    }
    for i in 0..200 {
        insert("10.0.1.1", "10.0.1.2", 2000 + i, 0x0003_0000);
    }
    let mut kernel = Nftables::open().expect("a socket");
    let changed = kernel.unmark_flows(layout::GENERATION_MASK, 0x0002_0000);
    assert_eq!(changed.expect("the kernel takes it"), 2 * 2 + 200);
    for family in ["ipv4", "ipv6"] {
        let listed = conntrack(&["-L", "-f", family]);
        let mark_of = |port: usize| {
            let line = listed
                .lines()
                .find(|l| l.contains(&format!("sport={port} ")));
            let mark = line.and_then(|line| line.split("mark=").nth(1));
            let digits = mark.and_then(|mark| mark.split(' ').next());
            digits.and_then(|digits| digits.parse::<u32>().ok())
        };
        let left: Vec<_> = (1000..1005).map(mark_of).collect();
        let wanted = [5, 0x0002_0000, 0x4000, 7, 0].map(Some);
        assert_eq!(left, wanted, "{listed}");
    }
    let listed = conntrack(&["-L", "-s", "10.0.1.1"]);
    assert_eq!(listed.matches("mark=0 ").count(), 200, "{listed}");
    let none = kernel.unmark_flows(layout::GENERATION_MASK, 0x0002_0000);
    assert_eq!(none.expect("the kernel takes it"), 0);
}

fn conntrack(arguments: &[&str]) -> String {
    let output = Command::new("conntrack").args(arguments).output();
    let output = output.expect("conntrack runs");
    assert!(
        output.status.success(),
        "conntrack {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}
