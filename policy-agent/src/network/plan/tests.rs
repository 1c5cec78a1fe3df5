use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> NodeNetwork {
    NodeNetwork {
        name: name.to_owned(),
        created: 0,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        pod_cidrs: pod_cidrs.iter().map(|text| net(text)).collect(),
    }
}

fn settings(mode: NetworkMode) -> Settings {
    Settings {
        node: "n1".to_owned(),
        mode,
        vxlan_port: 8472,
        vxlan_vni: 116,
        mtu: None,
    }
}

/// n1 itself, on a link with index 7 and an MTU of 1500.
fn own() -> NodeNetwork {
    let addresses = ["192.0.2.1", "2001:db8::1"];
    node("n1", &addresses, &["10.88.1.0/24", "fd88:1::/64"])
}

fn underlay(hops: &[(&str, Hop)]) -> Underlay {
    Underlay {
        addresses: [(ip("192.0.2.1"), 1500), (ip("2001:db8::1"), 1500)].into(),
        default_mtu: 1400,
        hops: hops.iter().map(|(text, hop)| (ip(text), *hop)).collect(),
        foreign: BTreeMap::new(),
    }
}

fn made(mode: NetworkMode, nodes: &[NodeNetwork], underlay: &Underlay) -> Plan {
    plan(&settings(mode), nodes, underlay).expect("the own Node is among them")
}

fn direct(via: &str, source: &str) -> Way {
    Way::Direct {
        via: ip(via),
        link: 7,
        source: Some(ip(source)),
    }
}

fn tunnel(underlay: IpFamily, via: &str, source: &str) -> Way {
    Way::Tunnel {
        underlay,
        via: ip(via),
        source: Some(ip(source)),
    }
}

fn reasons(plan: &Plan) -> Vec<(&'static str, Option<&str>)> {
    let problems = plan.problems.iter();
    problems
        .map(|problem| {
            let about = problem.about.as_ref().map(|(_, key)| &*key.name);
            (problem.reason, about)
        })
        .collect()
}

const CIDRS: [&str; 2] = ["10.88.2.0/24", "fd88:2::/64"];

#[test]
fn a_node_on_a_common_link_is_reached_directly_and_another_by_a_tunnel() {
    use IpFamily::{V4, V6};
    let both = ["192.0.2.2", "2001:db8::2"];
    let on_link = [(both[0], Hop::OnLink(7)), (both[1], Hop::OnLink(7))];
    let beyond = [(both[0], Hop::Beyond), (both[1], Hop::Beyond)];
    let direct_ways = [
        Some(direct("192.0.2.2", "192.0.2.1")),
        Some(direct("2001:db8::2", "2001:db8::1")),
    ];
    let over = |underlay| {
        [
            Some(tunnel(underlay, "10.88.2.1", "10.88.1.1")),
            Some(tunnel(underlay, "fd88:2::1", "fd88:1::1")),
        ]
    };
    for (what, mode, addresses, hops, expected, mtu) in [
        (
            "auto, a neighbour",
            NetworkMode::Auto,
            &both[..],
            &on_link[..],
            direct_ways,
            1500,
        ),
        (
            "auto, behind a router",
            NetworkMode::Auto,
            &both,
            &beyond,
            over(V4),
            1450,
        ),
        (
            "auto, an IPv6 underlay",
            NetworkMode::Auto,
            &both[1..],
            &beyond,
            over(V6),
            1430,
        ),
        (
            "auto, an IPv4 neighbour without an IPv6 address",
            NetworkMode::Auto,
            &both[..1],
            &on_link,
            [direct_ways[0], over(V4)[1]],
            1450,
        ),
        (
            "auto, an IPv6 neighbour without an IPv4 address",
            NetworkMode::Auto,
            &both[1..],
            &on_link,
            [over(V6)[0], direct_ways[1]],
            1430,
        ),
        ("vxlan", NetworkMode::Vxlan, &both, &on_link, over(V4), 1450),
        (
            "direct",
            NetworkMode::Direct,
            &both,
            &on_link,
            direct_ways,
            1500,
        ),
        (
            "direct, behind a router",
            NetworkMode::Direct,
            &both,
            &beyond,
            [None; 2],
            1500,
        ),
        ("none", NetworkMode::None, &both, &on_link, [None; 2], 1500),
    ] {
        let nodes = [own(), node("n2", addresses, &CIDRS)];
        let plan = made(mode, &nodes, &underlay(hops));
        let ways = CIDRS.map(|cidr| plan.routes.get(&net(cidr)).copied());
        assert_eq!(ways, expected, "{what}");
        assert_eq!(plan.mtu, mtu, "{what}");
        let is_complete = expected.iter().all(Option::is_some) || mode == NetworkMode::None;
        assert_eq!(
            plan.problems.is_empty(),
            is_complete,
            "{what}: {:?}",
            plan.problems
        );
        let own_ways = own()
            .pod_cidrs
            .into_iter()
            .map(|net| plan.routes.get(&net).copied());
        let expected = (mode != NetworkMode::None).then_some(Way::Nowhere);
        assert!(own_ways.into_iter().all(|way| way == expected), "{what}");
        assert!(plan.undecided.is_empty(), "{what}");
    }
}

#[test]
fn a_tunnel_knows_every_node_behind_it() {
    let far = [("198.51.100.2", Hop::Beyond), ("198.51.100.3", Hop::Beyond)];
    let nodes = [
        own(),
        node("n2", &["198.51.100.2"], &CIDRS),
        node("n3", &["198.51.100.3"], &["10.88.3.0/24"]),
    ];
    let plan = made(NetworkMode::Auto, &nodes, &underlay(&far));
    let tunnel = &plan.tunnels[&IpFamily::V4];
    assert_eq!((tunnel.local, tunnel.mtu), (ip("192.0.2.1"), 1450));
    assert_eq!((tunnel.port, tunnel.vni), (8472, 116));
    assert_eq!(tunnel.mac, tunnel_mac("n1"));
    assert_eq!(tunnel.addresses, [ip("10.88.1.1"), ip("fd88:1::1")].into());
    let (second, third) = (tunnel_mac("n2"), tunnel_mac("n3"));
    let neighbours = [
        (ip("10.88.2.1"), second),
        (ip("10.88.3.1"), third),
        (ip("fd88:2::1"), second),
    ];
    assert_eq!(tunnel.neighbours, neighbours.into());
    let remotes = [(second, ip("198.51.100.2")), (third, ip("198.51.100.3"))];
    assert_eq!(tunnel.remotes, remotes.into());
    assert_eq!(plan.tunnels.len(), 1, "no node needs the other");
    let order: [NodeNetwork; 3] = [nodes[2].clone(), nodes[0].clone(), nodes[1].clone()];
    let same = made(NetworkMode::Auto, &order, &underlay(&far));
    assert_eq!(same, plan, "whatever the order of the Nodes");
}

#[test]
fn what_is_for_a_node_without_a_route_to_it_stays_as_it_is() {
    let nodes = [own(), node("n2", &["192.0.2.2"], &["10.88.2.0/24"])];
    let none = underlay(&[]);
    for mode in [NetworkMode::Auto, NetworkMode::Direct] {
        let plan = made(mode, &nodes, &none);
        assert_eq!(plan.undecided, [net("10.88.2.0/24")].into(), "{mode}");
        assert_eq!(reasons(&plan), [("NodeUnreachable", Some("n2"))], "{mode}");
    }
    // A tunnel does not depend on it: the kernel looks when it sends.
    let plan = made(NetworkMode::Vxlan, &nodes, &none);
    assert!(plan.undecided.is_empty() && plan.problems.is_empty());
    assert!(matches!(
        plan.routes[&net("10.88.2.0/24")],
        Way::Tunnel { .. }
    ));
}

#[test]
fn nothing_is_planned_while_the_own_node_is_unknown() {
    let nodes = [node("n2", &["192.0.2.2"], &CIDRS)];
    let settings = settings(NetworkMode::Auto);
    assert_eq!(plan(&settings, &nodes, &underlay(&[])), None);
    assert_eq!(plan(&settings, &[], &underlay(&[])), None);
}

#[test]
fn of_two_claims_to_a_prefix_the_older_node_s_counts() {
    let hops = [("192.0.2.2", Hop::OnLink(7)), ("192.0.2.3", Hop::OnLink(7))];
    let underlay = underlay(&hops);
    for (ages, cidrs, winner) in [
        ([1, 2], ["10.88.2.0/24", "10.88.2.0/24"], "192.0.2.2"),
        ([2, 1], ["10.88.2.0/24", "10.88.2.0/24"], "192.0.2.3"),
        ([1, 1], ["10.88.2.0/24", "10.88.2.0/24"], "192.0.2.2"),
        ([1, 2], ["10.88.2.0/23", "10.88.2.0/24"], "192.0.2.2"),
        ([2, 1], ["10.88.2.0/23", "10.88.3.0/24"], "192.0.2.3"),
        ([1, 2], ["10.88.2.0/24", "10.88.2.0/23"], "192.0.2.2"),
    ] {
        let mut nodes = vec![
            own(),
            node("n2", &["192.0.2.2"], &cidrs[..1]),
            node("n3", &["192.0.2.3"], &cidrs[1..]),
        ];
        (nodes[1].created, nodes[2].created) = (ages[0], ages[1]);
        let plan = made(NetworkMode::Auto, &nodes, &underlay);
        let others = plan.routes.values().filter(|way| **way != Way::Nowhere);
        let others: Vec<_> = others.copied().collect();
        assert_eq!(others, [direct(winner, "192.0.2.1")], "{ages:?} {cidrs:?}");
        let loser = if winner == "192.0.2.2" { "n3" } else { "n2" };
        assert_eq!(
            reasons(&plan),
            [("PodCIDRConflict", Some(loser))],
            "{ages:?} {cidrs:?}"
        );
    }
}

#[test]
fn pods_of_this_node_stay_here_whoever_claims_their_prefix() {
    let hops = [("192.0.2.2", Hop::OnLink(7))];
    for cidr in ["10.88.1.0/24", "10.88.0.0/16", "10.88.1.128/25"] {
        for age in [0, 2] {
            let mut nodes = [own(), node("n2", &["192.0.2.2"], &[cidr])];
            (nodes[0].created, nodes[1].created) = (1, age);
            let plan = made(NetworkMode::Auto, &nodes, &underlay(&hops));
            assert_eq!(
                plan.routes[&net("10.88.1.0/24")],
                Way::Nowhere,
                "{cidr} {age}"
            );
            assert_eq!(plan.routes.len(), 2, "no route to n2: {cidr} {age}");
            assert_eq!(reasons(&plan), [("PodCIDRConflict", None)], "{cidr} {age}");
            let kept = plan.pod_cidrs.contains(&net("10.88.1.0/24"));
            assert_eq!(
                kept,
                age == 2,
                "new pods only where it is the own: {cidr} {age}"
            );
        }
    }
}

#[test]
fn what_cannot_be_a_pod_cidr_is_told_and_not_routed() {
    let hops = [("192.0.2.2", Hop::OnLink(7)), ("192.0.2.3", Hop::OnLink(7))];
    for (cidr, expected) in [
        ("0.0.0.0/0", "192.0.2.1"),
        ("192.0.2.0/28", "192.0.2.1"),
        ("192.0.2.3/32", "too small"),
        ("fd88:2::/127", "too small"),
        ("2001:db8::/32", "2001:db8::1"),
    ] {
        let nodes = [
            own(),
            node("n2", &["192.0.2.2"], &[cidr, "10.88.2.0/24"]),
            node("n3", &["192.0.2.3"], &["10.88.3.0/24"]),
        ];
        let plan = made(NetworkMode::Auto, &nodes, &underlay(&hops));
        let problem = &plan.problems[0];
        assert_eq!(
            (plan.problems.len(), problem.reason),
            (1, "InvalidPodCIDR"),
            "{cidr}"
        );
        let message = &problem.message;
        assert!(
            message.contains(cidr) && message.contains(expected),
            "{message}"
        );
        assert_eq!(
            plan.routes.len(),
            4,
            "the other prefixes are routed: {cidr}"
        );
    }
}

#[test]
fn routes_of_others_are_left_alone() {
    let mut underlay = underlay(&[("192.0.2.2", Hop::OnLink(7))]);
    let foreign = (net("10.88.2.0/24"), "protocol bird".to_owned());
    underlay.foreign.extend([foreign]);
    // The bridge's own.
    let own_bridge = (net("10.88.1.0/24"), "protocol kernel".to_owned());
    underlay.foreign.extend([own_bridge]);
    let nodes = [own(), node("n2", &["192.0.2.2"], &["10.88.2.0/24"])];
    let plan = made(NetworkMode::Auto, &nodes, &underlay);
    assert_eq!(plan.routes.get(&net("10.88.2.0/24")), None);
    assert_eq!(plan.routes[&net("10.88.1.0/24")], Way::Nowhere);
    assert_eq!(reasons(&plan), [("ForeignRoute", None)]);
    assert!(plan.problems[0].message.contains("protocol bird"));
}

#[test]
fn an_address_that_is_this_node_s_is_no_other_node_s() {
    let hops = [("192.0.2.1", Hop::Local)];
    let nodes = [own(), node("n2", &["192.0.2.1"], &["10.88.2.0/24"])];
    for mode in [NetworkMode::Auto, NetworkMode::Direct, NetworkMode::Vxlan] {
        let plan = made(mode, &nodes, &underlay(&hops));
        assert_eq!(plan.routes.get(&net("10.88.2.0/24")), None, "{mode}");
        let message = &plan.problems[0].message;
        assert!(message.contains("192.0.2.1 is this node's"), "{message}");
    }
}

#[test]
fn the_mtu_of_pods_fits_on_every_way() {
    let mut underlay = underlay(&[]);
    let alone = [own()];
    assert_eq!(made(NetworkMode::Auto, &alone, &underlay).mtu, 1500);
    assert_eq!(
        made(NetworkMode::Vxlan, &alone, &underlay).mtu,
        1450,
        "as with others"
    );
    underlay.addresses = [(ip("192.0.2.1"), 9000), (ip("2001:db8::1"), 1400)].into();
    assert_eq!(made(NetworkMode::Direct, &alone, &underlay).mtu, 1400);
    underlay.addresses.clear();
    underlay.default_mtu = 1300;
    assert_eq!(made(NetworkMode::Direct, &alone, &underlay).mtu, 1300);
    let plan = made(NetworkMode::Vxlan, &alone, &underlay);
    assert_eq!((plan.mtu, reasons(&plan)), (1250, vec![("SmallMTU", None)]));
    let mut set = settings(NetworkMode::Vxlan);
    set.mtu = Some(1350);
    let plan = super::plan(&set, &alone, &underlay).expect("the own Node");
    assert_eq!(plan.mtu, 1350, "as it is set");
}

#[test]
fn a_node_without_pod_cidrs_is_told() {
    let nodes = [node("n1", &["192.0.2.1"], &[])];
    let plan = made(NetworkMode::Auto, &nodes, &underlay(&[]));
    assert!(plan.routes.is_empty());
    assert_eq!(reasons(&plan), [("NoPodCIDR", None)]);
}
