use super::*;

fn everybody() -> Value {
    json!({})
}

/// Ingress to every pod of x from these peers.
fn from(peers: Value) -> Value {
    json!({"podSelector": {}, "ingress": [{"from": peers}]})
}

/// Ingress to every pod of x on these ports.
fn on(ports: Value) -> Value {
    json!({"podSelector": {}, "ingress": [{"ports": ports}]})
}

fn matching(operator: &str, key: &str, values: &[&str]) -> Value {
    let expression = json!({"key": key, "operator": operator, "values": values});
    json!({"matchExpressions": [expression]})
}

/// netpol.md 6.
#[test]
fn a_section_whose_type_is_not_listed_is_ignored() {
    let mut world = World::new();
    world.policy(
        "p",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": []}),
    );
    assert!(world.tcp(YA, XA, 80), "no ingress isolation");
    assert!(!world.tcp(XA, YA, 80), "egress isolation");
}

/// netpol.md 5.
#[test]
fn an_empty_egress_section_without_policy_types_does_not_isolate_egress() {
    let mut world = World::new();
    world.policy("p", json!({"podSelector": {}, "egress": []}));
    assert!(world.tcp(XA, YA, 80));
    assert!(!world.tcp(YA, XA, 80));
}

/// netpol.md 7.
#[test]
fn an_empty_rule_allows_every_protocol_and_no_rule_nothing() {
    let mut world = World::new();
    world.policy("p", json!({"podSelector": {}, "ingress": [{}]}));
    assert!(world.passes(YA, XA, Transport::Other(1)));
    assert!(world.passes(YA, XA, Transport::Port(Protocol::Sctp, 9)));
    assert!(world.tcp(OUTSIDE, XA, 80));
    world.policies.clear();
    world.policy("p", json!({"podSelector": {}, "ingress": []}));
    assert!(!world.passes(YA, XA, Transport::Other(1)));
    assert!(!world.tcp(OUTSIDE, XA, 80));
}

/// netpol.md 8, 9.
#[test]
fn an_empty_port_means_tcp_and_protocols_keep_apart() {
    let mut world = World::new();
    world.policy("p", on(json!([{}])));
    assert!(world.tcp(YA, XA, 1) && world.tcp(YA, XA, 65535));
    assert!(!world.passes(YA, XA, Transport::Port(Protocol::Udp, 80)));
    assert!(!world.passes(YA, XA, Transport::Other(1)));
    world.policies.clear();
    world.policy("p", on(json!([{"protocol": "SCTP"}])));
    assert!(world.passes(YA, XA, Transport::Port(Protocol::Sctp, 7)));
    assert!(!world.tcp(YA, XA, 7));
}

/// netpol.md 10.
#[test]
fn port_ranges_include_both_ends() {
    let mut world = World::new();
    world.policy(
        "p",
        on(json!([{"port": 80, "endPort": 82}, {"port": 443, "endPort": 443}])),
    );
    let open: Vec<u16> = [79, 80, 81, 82, 83, 442, 443, 444]
        .into_iter()
        .filter(|port| world.tcp(YA, XA, *port))
        .collect();
    assert_eq!(open, [80, 81, 82, 443]);
}

fn named(pod: &mut Pod, name: &str, protocol: Protocol, port: u16) {
    let name = name.to_owned();
    pod.ports.push(crate::model::ContainerPort {
        name,
        protocol,
        port,
    });
}

/// netpol.md 11, 12, 13.
#[test]
fn a_named_port_is_the_destination_pods_own() {
    let mut world = World::new();
    named(world.get("x", "a"), "web", Protocol::Tcp, 80);
    named(world.get("x", "b"), "web", Protocol::Tcp, 8080);
    named(world.get("x", "b"), "web", Protocol::Tcp, 8081);
    named(world.get("x", "b"), "web", Protocol::Udp, 53);
    // c has no such port, and the caller's own ports do not count.
    named(world.get("y", "a"), "web", Protocol::Tcp, 99);
    world.policy("p", on(json!([{"port": "web"}])));
    assert!(world.tcp(YA, XA, 80) && !world.tcp(YA, XA, 8080) && !world.tcp(YA, XA, 99));
    assert!(world.tcp(YA, XB, 8080) && world.tcp(YA, XB, 8081) && !world.tcp(YA, XB, 80));
    assert!(!world.tcp(YA, XC, 80) && !world.tcp(YA, XC, 99));
    assert!(!world.passes(YA, XB, Transport::Port(Protocol::Udp, 53)));
    assert!(
        !world.tcp(YA, XB, 53),
        "the number of the UDP port of that name"
    );

    world.policies.clear();
    world.policy("p", on(json!([{"port": "web", "protocol": "UDP"}])));
    assert!(world.passes(YA, XB, Transport::Port(Protocol::Udp, 53)));
    assert!(!world.tcp(YA, XB, 8080));
}

/// netpol.md 15.
#[test]
fn a_named_port_in_egress_is_looked_up_on_the_peer_even_behind_an_ip_block() {
    let mut world = World::new();
    named(world.get("y", "a"), "web", Protocol::Tcp, 8080);
    world.policy(
        "p",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "web"}]},
        ]}),
    );
    assert!(world.tcp(XA, YA, 8080));
    assert!(!world.tcp(XA, YB, 8080), "no such port on that pod");
    assert!(!world.tcp(XA, OUTSIDE, 8080), "no pod, no port names");
    assert!(!world.tcp(XA, NODE, 8080));
}

/// netpol.md 16, 17.
#[test]
fn selector_operators_on_present_and_absent_keys() {
    // Labels of the source's namespace: team=x or team=y. (operator, key) -> from x, from y
    let table: [(&str, &str, &[&str], [bool; 2]); 7] = [
        ("In", "team", &["y"], [false, true]),
        ("NotIn", "team", &["y"], [true, false]),
        ("NotIn", "absent", &["y"], [true, true]),
        ("In", "absent", &["y"], [false, false]),
        ("Exists", "team", &[], [true, true]),
        ("Exists", "absent", &[], [false, false]),
        ("DoesNotExist", "absent", &[], [true, true]),
    ];
    for (operator, key, values, expected) in table {
        let mut world = World::new();
        world.policy(
            "p",
            from(json!([{"namespaceSelector": matching(operator, key, values)}])),
        );
        let got = [world.tcp(XB, XA, 80), world.tcp(YB, XA, 80)];
        assert_eq!(got, expected, "{operator} {key} {values:?}");
    }
}

/// netpol.md 17.
#[test]
fn a_label_with_an_empty_value_has_to_be_there() {
    let mut world = World::new();
    world
        .get("x", "b")
        .labels
        .insert("blank".into(), String::new());
    world.policy(
        "p",
        from(json!([{"podSelector": {"matchLabels": {"blank": ""}}}])),
    );
    assert!(world.tcp(XB, XA, 80));
    assert!(!world.tcp(XC, XA, 80));
}

/// netpol.md 19.
#[test]
fn both_selectors_in_one_entry_are_and_in_two_entries_or() {
    let namespace = json!({"matchLabels": {"team": "y"}});
    let pod = json!({"matchLabels": {"pod": "b"}});
    let mut world = World::new();
    world.policy(
        "p",
        from(json!([{"namespaceSelector": namespace, "podSelector": pod}])),
    );
    let reach = |w: &World| [XB, XC, YA, YB].map(|source| w.tcp(source, XA, 80));
    assert_eq!(reach(&world), [false, false, false, true]);
    world.policies.clear();
    world.policy(
        "p",
        from(json!([{"namespaceSelector": namespace}, {"podSelector": pod}])),
    );
    assert_eq!(reach(&world), [true, false, true, true]);
}

/// netpol.md 18.
#[test]
fn a_namespace_selector_never_matches_what_is_no_pod() {
    let mut world = World::new();
    world.pod("y", "host", &[("pod", "host")], &["192.0.2.9".into()]);
    world.get("y", "host").host_network = true;
    world.policy("p", from(json!([{"namespaceSelector": everybody()}])));
    assert!(world.tcp(YA, XA, 80));
    assert!(!world.tcp(OUTSIDE, XA, 80));
    assert!(
        !world.tcp("192.0.2.9", XA, 80),
        "a pod on another node's network"
    );
    world.policy("q", from(json!([{"ipBlock": {"cidr": "192.0.2.9/32"}}])));
    assert!(world.tcp("192.0.2.9", XA, 80), "an ipBlock matches it");
}

#[test]
fn an_unknown_namespace_matches_no_selector_but_its_own_policies_hold() {
    let mut world = World::new();
    world.namespaces.clear();
    world.policy(
        "p",
        from(json!([{"namespaceSelector": matching("NotIn", "team", &["z"])}])),
    );
    assert!(!world.tcp(YA, XA, 80));
    world.policy("q", from(json!([{"podSelector": {}}])));
    assert!(
        world.tcp(XB, XA, 80),
        "the policy's own namespace needs no labels"
    );
}

/// netpol.md 20, 21.
#[test]
fn an_except_subtracts_from_its_own_peer_only() {
    let cidr = |cidr: &str, except: &[&str]| json!({"ipBlock": {"cidr": cidr, "except": except}});
    let mut world = World::new();
    world.policy(
        "p",
        from(json!([
            cidr("0.0.0.0/0", &["10.0.0.0/8"]),
            cidr("10.0.2.0/24", &["10.0.2.2/32"]),
        ])),
    );
    assert!(world.tcp(OUTSIDE, XA, 80));
    assert!(
        world.tcp(YA, XA, 80),
        "excepted by the first, allowed by the second"
    );
    assert!(!world.tcp(YB, XA, 80));
    assert!(!world.tcp(XB, XA, 80));
    world.policy("q", from(json!([{"namespaceSelector": everybody()}])));
    assert!(
        world.tcp(YB, XA, 80),
        "another policy is not concerned by the except"
    );
}

/// netpol.md 24, 25.
#[test]
fn ip_blocks_keep_the_families_apart() {
    let mut world = World::new();
    let cidrs = json!([
        {"ipBlock": {"cidr": "::/0", "except": ["fd00:0:0:2::1/128"]}},
        {"ipBlock": {"cidr": "::ffff:198.51.100.0/120"}},
    ]);
    world.policy("p", from(cidrs));
    assert!(!world.tcp("fd00:0:0:2::1", "fd00:0:0:1::1", 80));
    assert!(world.tcp("fd00:0:0:2::2", "fd00:0:0:1::1", 80));
    assert!(world.tcp(OUTSIDE, XA, 80), "v4-mapped cidr means IPv4");
    assert!(!world.tcp(YB, XA, 80), "::/0 is no IPv4");
}

/// netpol.md 26, 27.
#[test]
fn a_policy_with_both_directions_judges_each_alone() {
    let mut world = World::new();
    world.policy(
        "p",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [], "egress": [{}]}),
    );
    assert!(!world.tcp(XA, XB, 80), "egress allowed, ingress denied");
    assert!(world.tcp(XA, YB, 80));
    assert!(!world.tcp(YA, XA, 80));
}

/// netpol.md 27, 29.
#[test]
fn policies_are_a_union_and_stay_in_their_namespace() {
    let mut world = World::new();
    for port in 1000..1050 {
        world.policy(&format!("p{port}"), on(json!([{"port": port}])));
    }
    assert!((1000..1050).all(|port| world.tcp(YA, XA, port)));
    assert!(!world.tcp(YA, XA, 1050));
    assert!(world.tcp(XA, YA, 1050), "policies of x do not isolate y");
}

/// netpol.md 30.
#[test]
fn a_pod_always_reaches_itself_in_both_families() {
    let mut world = World::new();
    world.policy(
        "p",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    assert!(world.tcp(XA, XA, 80));
    assert!(world.tcp("fd00:0:0:1::1", "fd00:0:0:1::1", 80));
    assert!(!world.tcp(XA, XB, 80));
}

/// netpol.md 31, 32.
#[test]
fn the_own_node_reaches_pods_other_nodes_are_judged() {
    let mut world = World::new();
    world.policy(
        "p",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    assert!(world.tcp(NODE, XA, 10250));
    assert!(!world.tcp("192.0.2.2", XA, 10250), "another node");
    assert!(
        !world.tcp(XA, NODE, 10250),
        "a pod's way to its node is egress"
    );
    world.policy("q", from(json!([{"ipBlock": {"cidr": "192.0.2.2/32"}}])));
    assert!(world.tcp("192.0.2.2", XA, 10250));
}

/// netpol.md 51.
#[test]
fn a_finished_pod_leaves_its_address_to_the_next_owner() {
    let mut world = World::new();
    world.policy("p", json!({"podSelector": {"matchLabels": {"job": "yes"}}}));
    world.pod("x", "job", &[("job", "yes")], &["10.0.1.9".into()]);
    assert!(!world.tcp(YA, "10.0.1.9", 80));
    world.get("x", "job").phase = crate::model::PodPhase::Finished;
    assert!(world.tcp(YA, "10.0.1.9", 80), "nobody's address");
    world.pod("y", "next", &[], &["10.0.1.9".into()]);
    let cluster = world.cluster();
    assert_eq!(
        &*cluster.owner("10.0.1.9".parse().unwrap()).unwrap().key.name,
        "next"
    );
}

/// netpol.md 51 to 53.
#[test]
fn the_newest_live_pod_owns_a_contested_address() {
    for newest in ["a", "b"] {
        let mut world = World::new();
        for name in ["a", "b"] {
            let pod = world.get("x", name);
            pod.ips = vec!["10.0.1.99".parse().unwrap()];
            pod.created = if name == newest { 200 } else { 100 };
        }
        let cluster = world.cluster();
        assert_eq!(
            &*cluster
                .owner("10.0.1.99".parse().unwrap())
                .unwrap()
                .key
                .name,
            newest
        );
    }
}

/// netpol.md 66.
#[test]
fn an_unreadable_policy_closes_its_namespace_and_no_other() {
    let mut world = World::new();
    let key = ObjectKey::new("x", "broken");
    world
        .policies
        .push(NetworkPolicy::unreadable(key, "why".into()));
    assert!(!world.tcp(YA, XA, 80) && !world.tcp(XA, YA, 80) && !world.tcp(XA, OUTSIDE, 80));
    assert!(world.tcp(YA, YB, 80));
}

/// netpol.md 66.
#[test]
fn a_wrong_part_of_a_policy_leaves_the_isolation_and_the_right_parts() {
    let mut world = World::new();
    world.policy(
        "p",
        from(json!([
            {"ipBlock": {"cidr": "everywhere"}},
            {"podSelector": {"matchLabels": {"pod": "b"}}},
        ])),
    );
    assert!(world.tcp(XB, XA, 80));
    assert!(!world.tcp(XC, XA, 80));
    world.policies.clear();
    world.policy("p", on(json!([{"port": "80"}])));
    assert!(
        !world.tcp(XB, XA, 80),
        "a port that cannot be read is no port"
    );
}

/// netpol.md 50: it serves until it is gone, and its policies hold.
#[test]
fn a_terminating_pod_keeps_its_address_and_its_policies() {
    let mut world = World::new();
    world.policy(
        "p",
        from(json!([{"podSelector": {"matchLabels": {"pod": "b"}}}])),
    );
    for name in ["a", "b"] {
        let pod = world.get("x", name);
        pod.terminating = true;
        pod.ready = false;
    }
    assert!(world.tcp(XB, XA, 80));
    assert!(!world.tcp(YA, XA, 80));
}

/// netpol.md 28.
#[test]
fn fifty_policies_allow_what_any_of_them_allows() {
    let mut world = World::new();
    for number in 0..50u16 {
        world.policy(
            &format!("p{number}"),
            on(json!([{"port": 1000 + 10 * number, "endPort": 1004 + 10 * number}])),
        );
    }
    for port in 990..1510 {
        let allowed = (1000..1500).contains(&port) && port % 10 < 5;
        assert_eq!(world.tcp(YA, XA, port), allowed, "{port}");
    }
}
