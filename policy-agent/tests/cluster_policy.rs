//! ClusterNetworkPolicy: the behaviours of the API's 24 conformance tests, and its corners
//! (netpol.md 85 to 90). Every expectation is put to the oracle and to the compiled rules.
//!
//! The cluster has namespaces `red`, `blue`, `green` and `gold` with pods `0` and `1` each,
//! all on this node, and a second node. Policies select `red`.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals read better without a borrow"
)]

#[path = "common/cluster.rs"]
mod cluster;

use cluster::{NODE_2, OUTSIDE, World};
use proxy::model::Protocol::{self, Sctp, Tcp, Udp};
use serde_json::{Value, json};

/// The side of red that a test is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Ingress,
    Egress,
}
use Side::{Egress, Ingress};

/// Two ports of each protocol that the pods serve.
fn ports_of(protocol: Protocol) -> [u16; 2] {
    match protocol {
        Tcp => [80, 8080],
        Udp => [53, 5353],
        Sctp => [9003, 9005],
    }
}

fn namespace(name: &str) -> Value {
    json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": name}}})
}

fn number(protocol: Protocol, port: u16) -> Value {
    let field = protocol.to_string().to_lowercase();
    json!({field: {"destinationPort": {"number": port}}})
}

impl Side {
    fn fields(self) -> [&'static str; 2] {
        match self {
            Ingress => ["ingress", "from"],
            Egress => ["egress", "to"],
        }
    }

    fn rule(self, action: &str, peer: Value) -> Value {
        json!({"name": format!("{action} it"), "action": action, self.fields()[1]: [peer]})
    }

    fn rule_at(self, action: &str, peer: Value, protocols: Value) -> Value {
        let mut rule = self.rule(action, peer);
        rule["protocols"] = protocols;
        rule
    }

    /// A policy on red.
    fn policy(self, name: &str, tier: &str, priority: u16, rules: &[&Value]) -> Value {
        json!({"metadata": {"name": name}, "spec": {
            "tier": tier, "priority": priority, "subject": namespace("red"),
            self.fields()[0]: rules,
        }})
    }
}

impl World {
    /// Whether a flow between red and the other namespace passes, on that side of red.
    fn expect_side(&self, side: Side, other: &str, protocol: Protocol, port: u16, passes: bool) {
        for pods in [("0", "1"), ("1", "0")] {
            let (red, other) = (format!("red/{}", pods.0), format!("{other}/{}", pods.1));
            match side {
                Ingress => self.expect(&other, &red, protocol, port, passes),
                Egress => self.expect(&red, &other, protocol, port, passes),
            }
        }
    }
}

/// Rules are asked in their order, with and without ports.
fn rules_are_asked_in_order(tier: &str, side: Side, protocol: Protocol) {
    let [first, second] = ports_of(protocol);
    let other = if protocol == Tcp { Udp } else { Tcp };
    let at = |port| json!([number(protocol, port)]);
    let accept_blue = side.rule("Accept", namespace("blue"));
    let deny_blue = side.rule("Deny", namespace("blue"));
    let pass_blue = side.rule("Pass", namespace("blue"));
    let deny_gold = side.rule_at("Deny", namespace("gold"), at(first));
    let pass_gold = side.rule_at("Pass", namespace("gold"), at(first));
    let accept_green = side.rule_at("Accept", namespace("green"), at(second));
    let deny_green = side.rule("Deny", namespace("green"));

    let mut world = World::new();
    let rules = [
        &accept_blue,
        &deny_blue,
        &pass_blue,
        &deny_gold,
        &pass_gold,
        &accept_green,
        &deny_green,
    ];
    world.cluster_policy(side.policy("rules", tier, 15, &rules));
    world.expect_side(side, "blue", protocol, first, true);
    world.expect_side(side, "blue", other, 80, true);
    world.expect_side(side, "gold", protocol, first, false);
    world.expect_side(side, "gold", protocol, second, true);
    world.expect_side(side, "gold", other, first, true);
    world.expect_side(side, "green", protocol, second, true);
    world.expect_side(side, "green", protocol, first, false);
    world.expect_side(side, "green", other, second, false);
    // Other pods are not concerned, nor is red's other direction.
    world.expect("blue/0", "gold/0", protocol, first, true);
    let opposite = if side == Ingress { Egress } else { Ingress };
    world.expect_side(opposite, "green", protocol, first, true);

    let rules = [
        &deny_blue,
        &accept_blue,
        &pass_gold,
        &deny_gold,
        &deny_green,
        &accept_green,
    ];
    world.cluster_policy(side.policy("rules", tier, 15, &rules));
    world.expect_side(side, "blue", protocol, first, false);
    world.expect_side(side, "gold", protocol, first, true);
    world.expect_side(side, "green", protocol, second, false);

    world.cluster_policy(side.policy("rules", tier, 15, &[&pass_blue, &deny_blue]));
    world.expect_side(side, "blue", protocol, first, true);
}

macro_rules! ordered {
    ($($name:ident: $tier:literal $side:ident $protocol:ident;)*) => {$(
        #[test]
        fn $name() {
            rules_are_asked_in_order($tier, $side, $protocol);
        }
    )*};
}

ordered! {
    admin_tier_egress_tcp: "Admin" Egress Tcp;
    admin_tier_egress_udp: "Admin" Egress Udp;
    admin_tier_egress_sctp: "Admin" Egress Sctp;
    admin_tier_ingress_tcp: "Admin" Ingress Tcp;
    admin_tier_ingress_udp: "Admin" Ingress Udp;
    admin_tier_ingress_sctp: "Admin" Ingress Sctp;
    baseline_tier_egress_tcp: "Baseline" Egress Tcp;
    baseline_tier_egress_udp: "Baseline" Egress Udp;
    baseline_tier_egress_sctp: "Baseline" Egress Sctp;
    baseline_tier_ingress_tcp: "Baseline" Ingress Tcp;
    baseline_tier_ingress_udp: "Baseline" Ingress Udp;
    baseline_tier_ingress_sctp: "Baseline" Ingress Sctp;
}

/// One policy with rules of both directions.
fn both_directions(tier: &str) {
    let mut world = World::new();
    let mut policy = Ingress.policy(
        "gress",
        tier,
        15,
        &[
            &Ingress.rule("Accept", namespace("blue")),
            &Ingress.rule_at(
                "Deny",
                namespace("gold"),
                json!([number(Tcp, 80), number(Udp, 53), number(Sctp, 9003)]),
            ),
            &Ingress.rule("Deny", namespace("green")),
        ],
    );
    policy["spec"]["egress"] = json!([
        Egress.rule("Deny", namespace("blue")),
        Egress.rule_at("Accept", namespace("green"), json!([number(Tcp, 8080)])),
        Egress.rule("Deny", namespace("green")),
    ]);
    world.cluster_policy(policy);
    world.expect_side(Ingress, "blue", Tcp, 80, true);
    world.expect_side(Egress, "blue", Tcp, 80, false);
    for (protocol, port) in [(Tcp, 80), (Udp, 53), (Sctp, 9003)] {
        world.expect_side(Ingress, "gold", protocol, port, false);
        world.expect_side(Egress, "gold", protocol, port, true);
        world.expect_side(Ingress, "gold", protocol, port + 1, true);
    }
    world.expect_side(Ingress, "green", Tcp, 8080, false);
    world.expect_side(Egress, "green", Tcp, 8080, true);
    world.expect_side(Egress, "green", Tcp, 80, false);
}

#[test]
fn admin_tier_gress() {
    both_directions("Admin");
}

#[test]
fn baseline_tier_gress() {
    both_directions("Baseline");
}

#[test]
fn admin_tier_priority_field() {
    let mut world = World::new();
    let deny = Egress.rule("Deny", namespace("blue"));
    let accept = Egress.rule("Accept", namespace("blue"));
    let pass = Egress.rule("Pass", namespace("blue"));
    world.cluster_policy(Egress.policy("old", "Admin", 50, &[&deny]));
    world.expect_side(Egress, "blue", Tcp, 80, false);
    world.cluster_policy(Egress.policy("new", "Admin", 40, &[&accept]));
    world.expect_side(Egress, "blue", Tcp, 80, true);
    world.cluster_policy(Egress.policy("old", "Admin", 30, &[&deny]));
    world.expect_side(Egress, "blue", Tcp, 80, false);
    world.cluster_policy(Egress.policy("new", "Admin", 20, &[&pass]));
    world.expect_side(Egress, "blue", Tcp, 80, true);
    world.no_cluster_policy("new");
    world.expect_side(Egress, "blue", Tcp, 80, false);
}

/// netpol.md 86, 89: all three tiers.
#[test]
fn admin_tier_integration() {
    let mut world = World::new();
    for side in [Ingress, Egress] {
        let name = side.fields()[0];
        let all = json!({"namespaces": {}});
        let deny = side.rule("Deny", all.clone());
        world.cluster_policy(side.policy(&format!("base-{name}"), "Baseline", 0, &[&deny]));
        world.expect_side(side, "blue", Tcp, 80, false);

        // NetworkPolicy wins over Baseline, in its direction.
        let types = if side == Ingress { "Ingress" } else { "Egress" };
        let mut spec = json!({"podSelector": {}, "policyTypes": [types]});
        spec[name] = json!([{side.fields()[1]: [{"namespaceSelector": {}}]}]);
        world.policy("red", "open", spec);
        world.expect_side(side, "blue", Tcp, 80, true);
        world.policy(
            "red",
            "open",
            json!({"podSelector": {}, "policyTypes": [types]}),
        );
        world.expect_side(side, "blue", Tcp, 80, false);

        // Admin Accept wins over NetworkPolicy, Admin Pass leaves it to it.
        let accept = side.rule("Accept", namespace("blue"));
        let pass = side.rule("Pass", namespace("blue"));
        let admin = format!("admin-{name}");
        world.cluster_policy(side.policy(&admin, "Admin", 10, &[&accept]));
        world.expect_side(side, "blue", Tcp, 80, true);
        world.expect_side(side, "gold", Tcp, 80, false);
        world.cluster_policy(side.policy(&admin, "Admin", 10, &[&pass, &accept]));
        world.expect_side(side, "blue", Tcp, 80, false);

        // Without NetworkPolicy it is the Baseline tier's again, and then nobody's.
        world.no_policy("red", "open");
        world.expect_side(side, "blue", Tcp, 80, false);
        let base_pass = side.rule("Pass", namespace("blue"));
        world.cluster_policy(side.policy(
            &format!("base-{name}"),
            "Baseline",
            0,
            &[&base_pass, &deny],
        ));
        world.expect_side(side, "blue", Tcp, 80, true);
        world.expect_side(side, "gold", Tcp, 80, false);
        world.no_cluster_policy(&format!("base-{name}"));
        world.no_cluster_policy(&admin);
        world.expect_side(side, "gold", Tcp, 80, true);
    }
}

/// Blocks of addresses, those of pods among them.
fn networks(tier: &str) {
    let mut world = World::new();
    let [pod, pod6] = world.addresses("blue/0").map(|ip| ip.to_string());
    let pods = json!({"networks": [format!("{pod}/32"), format!("{pod6}/128")]});
    let everything = json!({"networks": ["0.0.0.0/0", "::/0"]});
    let deny = Egress.rule("Deny", everything);
    let accept = Egress.rule("Accept", pods.clone());
    world.cluster_policy(Egress.policy("nets", tier, 5, &[&deny]));
    world.expect("red/0", "blue/0", Tcp, 80, false);
    world.expect("red/0", OUTSIDE, Tcp, 80, false);
    world.cluster_policy(Egress.policy("nets", tier, 5, &[&accept, &deny]));
    world.expect("red/0", "blue/0", Tcp, 80, true);
    world.expect("red/0", "blue/1", Tcp, 80, false);
    world.expect("red/0", OUTSIDE, Udp, 53, false);
    let only_80 = Egress.rule_at("Deny", pods, json!([number(Tcp, 80)]));
    world.cluster_policy(Egress.policy("nets", tier, 5, &[&only_80]));
    world.expect("red/0", "blue/0", Tcp, 80, false);
    world.expect("red/0", "blue/0", Tcp, 8080, true);
    world.expect("red/0", OUTSIDE, Tcp, 80, true);
}

#[test]
fn admin_tier_egress_inline_cidr_peers() {
    networks("Admin");
}

#[test]
fn baseline_tier_egress_inline_cidr_peers() {
    networks("Baseline");
}

/// The pods' ports `web` (TCP 80, on `blue/1` 8080) and `dns` (UDP 53).
fn named_ports(tier: &str, side: Side) {
    let mut world = World::new();
    let named = |name: &str| json!([{"destinationNamedPort": name}]);
    let deny_web = side.rule_at("Deny", namespace("blue"), named("web"));
    world.cluster_policy(side.policy("named", tier, 5, &[&deny_web]));
    let (zero, one) = ("blue/0", "blue/1");
    match side {
        Egress => {
            world.expect("red/0", zero, Tcp, 80, false);
            world.expect("red/0", zero, Tcp, 8080, true);
            world.expect("red/0", one, Tcp, 80, true);
            world.expect("red/0", one, Tcp, 8080, false);
        }
        Ingress => {
            world.expect(zero, "red/0", Tcp, 80, false);
            world.expect(one, "red/0", Tcp, 80, false);
            world.expect(one, "red/0", Tcp, 8080, true);
        }
    }
    let other = |world: &World, port, passes| match side {
        Egress => world.expect("red/0", zero, Udp, port, passes),
        Ingress => world.expect(zero, "red/0", Udp, port, passes),
    };
    other(&world, 53, true);
    let accept_dns = side.rule_at("Accept", namespace("blue"), named("dns"));
    let deny = side.rule("Deny", namespace("blue"));
    world.cluster_policy(side.policy("named", tier, 5, &[&accept_dns, &deny]));
    other(&world, 53, true);
    other(&world, 80, false);
}

#[test]
fn admin_tier_egress_named_port() {
    named_ports("Admin", Egress);
}

#[test]
fn admin_tier_ingress_named_port() {
    named_ports("Admin", Ingress);
}

#[test]
fn baseline_tier_egress_named_port() {
    named_ports("Baseline", Egress);
}

#[test]
fn baseline_tier_ingress_named_port() {
    named_ports("Baseline", Ingress);
}

/// netpol.md 90: nodes come, go, and change.
fn nodes(tier: &str) {
    let mut world = World::new();
    let nodes = json!({"nodes": {"matchExpressions": [{"key": "control", "operator": "Exists"}]}});
    let deny = Egress.rule("Deny", nodes.clone());
    world.cluster_policy(Egress.policy("nodes", tier, 5, &[&deny]));
    world.expect("red/0", NODE_2, Tcp, 6443, true);
    world.node("n2", json!({"control": ""}), NODE_2);
    world.expect("red/0", NODE_2, Tcp, 6443, false);
    world.expect("red/0", "blue/0", Tcp, 6443, true);
    world.expect("red/0", OUTSIDE, Tcp, 6443, true);
    world.node("n2", json!({}), NODE_2);
    world.expect("red/0", NODE_2, Tcp, 6443, true);
    world.node("n2", json!({"control": ""}), OUTSIDE);
    world.expect("red/0", OUTSIDE, Tcp, 6443, false);
    world.expect("red/0", NODE_2, Tcp, 6443, true);
    world.no_node("n2");
    world.expect("red/0", OUTSIDE, Tcp, 6443, true);

    world.node("n2", json!({"control": ""}), NODE_2);
    let accept = Egress.rule_at("Accept", nodes, json!([number(Tcp, 6443)]));
    let deny = Egress.rule("Deny", json!({"networks": ["0.0.0.0/0", "::/0"]}));
    world.cluster_policy(Egress.policy("nodes", tier, 5, &[&accept, &deny]));
    world.expect("red/0", NODE_2, Tcp, 6443, true);
    world.expect("red/0", NODE_2, Tcp, 22, false);
    world.expect("red/0", OUTSIDE, Tcp, 6443, false);
}

#[test]
fn admin_tier_egress_node_peers() {
    nodes("Admin");
}

#[test]
fn baseline_tier_egress_node_peers() {
    nodes("Baseline");
}

/// netpol.md 87.
#[test]
fn equal_priorities_are_asked_in_the_order_of_names() {
    for names in [["a", "b"], ["b", "a"]] {
        let mut world = World::new();
        let accept = Egress.rule("Accept", namespace("blue"));
        let deny = Egress.rule("Deny", namespace("blue"));
        world.cluster_policy(Egress.policy(names[0], "Admin", 5, &[&accept]));
        world.cluster_policy(Egress.policy(names[1], "Admin", 5, &[&deny]));
        world.expect_side(Egress, "blue", Tcp, 80, names[0] == "a");
    }
}

/// netpol.md 88: what stands for rules that this version does not understand.
#[test]
fn what_is_not_understood_fails_closed() {
    let unknown_peers = [
        json!({"tenants": {"matchLabels": {"a": "b"}}}),
        json!({}),
        json!({"domainNames": ["*.example.org"]}),
        json!({"networks": ["10.0.0.0/33"]}),
        json!({"namespaces": {"matchExpressions": [{"key": "a", "operator": "Maybe"}]}}),
    ];
    for peer in unknown_peers {
        for (action, blue, gold) in [
            // The rule is as if it were not there: blue is the next rule's.
            ("Accept", false, true),
            ("Deny", false, false),
            ("Pass", false, false),
        ] {
            let mut world = World::new();
            // The peer beside it is understood, which does not help the rule.
            let mut rule = Egress.rule(action, namespace("blue"));
            rule["to"] = json!([namespace("blue"), peer]);
            let deny = Egress.rule("Deny", namespace("blue"));
            let problems = world.cluster_policy(Egress.policy("p", "Admin", 5, &[&rule, &deny]));
            assert_eq!(problems.len(), 1, "{peer}: {problems:?}");
            assert!(problems[0].contains("spec.egress[0].to[1]"), "{problems:?}");
            world.expect_side(Egress, "blue", Tcp, 80, blue);
            world.expect_side(Egress, "gold", Tcp, 80, gold);
            world.expect_side(Ingress, "gold", Tcp, 80, true);
        }
    }
}

/// A policy of which it is not known for whom it is can take away, and not give.
#[test]
fn a_subject_that_is_not_understood_is_everybody_for_denials_and_nobody_else() {
    let mut world = World::new();
    let accept = Egress.rule("Accept", namespace("blue"));
    let deny = Egress.rule("Deny", namespace("gold"));
    let mut policy = Egress.policy("p", "Baseline", 900, &[&accept, &deny]);
    policy["spec"]["subject"] = json!({"workloads": {}});
    let problems = world.cluster_policy(policy);
    assert_eq!(problems.len(), 1, "{problems:?}");
    world.policy(
        "red",
        "closed",
        json!({"podSelector": {}, "policyTypes": ["Egress"]}),
    );
    world.expect("red/0", "blue/0", Tcp, 80, false);
    world.expect("green/0", "gold/0", Tcp, 80, false);
    world.expect("green/0", "blue/0", Tcp, 80, true);
}

/// netpol.md 89: the destination's ingress is asked all the same.
#[test]
fn an_accepted_egress_still_meets_the_ingress_of_its_destination() {
    let mut world = World::new();
    let accept = Egress.rule("Accept", namespace("blue"));
    world.cluster_policy(Egress.policy("out", "Admin", 0, &[&accept]));
    world.policy("blue", "closed", json!({"podSelector": {}}));
    world.expect_side(Egress, "blue", Tcp, 80, false);
    let mut open = Ingress.policy(
        "in",
        "Admin",
        1,
        &[&Ingress.rule("Accept", namespace("red"))],
    );
    open["spec"]["subject"] = namespace("blue");
    world.cluster_policy(open);
    world.expect_side(Egress, "blue", Tcp, 80, true);
    world.expect("gold/0", "blue/0", Tcp, 80, false);
}

/// netpol.md 30: what comes back by a Service is subject to tiers, not to NetworkPolicy.
#[test]
fn a_pod_that_reaches_itself_by_a_service_meets_the_tiers_alone() {
    let mut world = World::new();
    world.policy(
        "red",
        "closed",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    );
    world.expect("red/0", "red/0", Tcp, 80, true);
    for side in [Ingress, Egress] {
        let deny = side.rule("Deny", namespace("red"));
        world.cluster_policy(side.policy("self", "Admin", 1, &[&deny]));
        world.expect("red/0", "red/0", Tcp, 80, false);
        world.cluster_policy(side.policy("self", "Baseline", 1, &[&deny]));
        world.expect("red/0", "red/0", Tcp, 80, true);
    }
    world.no_policy("red", "closed");
    world.expect("red/0", "red/0", Tcp, 80, false);
}

/// A pod whose namespace is not known yet may be anybody's subject.
#[test]
fn a_pod_of_an_unknown_namespace_is_closed_while_a_subject_hangs_on_it() {
    let mut world = World::new();
    world.no_namespace("gold");
    world.expect("gold/0", "blue/0", Tcp, 80, true);
    let deny = Egress.rule("Deny", namespace("blue"));
    world.cluster_policy(Egress.policy("p", "Admin", 5, &[&deny]));
    world.expect("gold/0", "blue/0", Tcp, 80, false);
    world.expect("green/0", "gold/0", Tcp, 80, false);
    world.namespace("gold");
    world.expect("gold/0", "blue/0", Tcp, 80, true);
    world.expect("green/0", "gold/0", Tcp, 80, true);
}

/// Ranges are inclusive, and protocols without ports are matched by rules without them.
#[test]
fn ranges_and_protocols_without_ports() {
    let mut world = World::new();
    let range = json!([{"tcp": {"destinationPort": {"range": {"start": 80, "end": 82}}}}]);
    let deny = Egress.rule_at("Deny", namespace("blue"), range);
    world.cluster_policy(Egress.policy("p", "Admin", 5, &[&deny]));
    for (port, passes) in [(79, true), (80, false), (82, false), (83, true)] {
        world.expect_side(Egress, "blue", Tcp, port, passes);
    }
    world.expect_icmp("red/0", "blue/0", true);
    let deny = Egress.rule("Deny", namespace("blue"));
    world.cluster_policy(Egress.policy("p", "Admin", 5, &[&deny]));
    world.expect_icmp("red/0", "blue/0", false);
    world.expect_icmp("red/0", OUTSIDE, true);
}
