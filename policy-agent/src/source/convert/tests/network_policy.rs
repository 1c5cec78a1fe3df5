use k8s_openapi::api::networking::v1 as networking;
use serde_json::{Value, json};

use super::super::ClusterNetworkPolicy;
use super::convert;
use crate::event::Object;
use crate::model::policy::{NetworkPolicy, Peer, Peers, PortMatch, Ports, Rule};
use proxy::model::Protocol;

fn policy(spec: Value) -> NetworkPolicy {
    let manifest = json!({"metadata": {"name": "p", "namespace": "x"}, "spec": spec});
    match convert::<networking::NetworkPolicy>(manifest) {
        Ok(Some(Object::NetworkPolicy(policy))) => policy,
        other => panic!("{other:?}"),
    }
}

/// The only rule of a policy with that `from`, and the problems.
fn with_peer(peer: Value) -> (Peers, Vec<String>) {
    let policy = policy(json!({"podSelector": {}, "ingress": [{"from": [peer]}]}));
    let mut rules = policy.ingress.unwrap();
    (rules.remove(0).peers, policy.problems)
}

fn with_port(port: Value) -> (Ports, Vec<String>) {
    let policy = policy(json!({"podSelector": {}, "ingress": [{"ports": [port]}]}));
    let mut rules = policy.ingress.unwrap();
    (rules.remove(0).ports, policy.problems)
}

fn block(peers: &Peers) -> (String, Vec<String>) {
    match peers {
        Peers::Of(peers) => match peers.as_slice() {
            [Peer::IpBlock { cidr, except }] => (
                cidr.to_string(),
                except.iter().map(ToString::to_string).collect(),
            ),
            other => panic!("{other:?}"),
        },
        Peers::Any => panic!("any"),
    }
}

/// netpol.md 5, 6.
#[test]
fn policy_types_follow_the_api_servers_default() {
    let rule = json!([{}]);
    let table = [
        (json!({}), (true, false)),
        (json!({"egress": []}), (true, false)),
        (json!({"egress": null}), (true, false)),
        (json!({"egress": rule}), (true, true)),
        (json!({"policyTypes": [], "egress": rule}), (true, true)),
        (
            json!({"policyTypes": ["Ingress"], "egress": rule}),
            (true, false),
        ),
        (
            json!({"policyTypes": ["Egress"], "ingress": rule}),
            (false, true),
        ),
        (json!({"policyTypes": ["Egress", "Egress"]}), (false, true)),
        (json!({"policyTypes": ["Ingress", "Egress"]}), (true, true)),
    ];
    for (spec, expected) in table {
        let policy = policy(spec.clone());
        let isolates = (policy.ingress.is_some(), policy.egress.is_some());
        assert_eq!(isolates, expected, "{spec}");
        assert!(policy.problems.is_empty());
        assert!(policy.pod_selector.is_everything());
    }
}

#[test]
fn an_unknown_policy_type_isolates_in_both_directions() {
    let policy = policy(json!({"policyTypes": ["egress"], "ingress": [{}]}));
    assert_eq!(
        policy.ingress.as_deref(),
        Some(
            &[Rule {
                peers: Peers::Any,
                ports: Ports::Any
            }][..]
        )
    );
    assert_eq!(policy.egress.as_deref(), Some(&[][..]));
    assert!(policy.problems[0].contains("spec.policyTypes[0] is \"egress\""));
}

/// netpol.md 7.
#[test]
fn no_rules_and_an_empty_rule_are_opposites() {
    for none in [json!({"ingress": []}), json!({"ingress": null}), json!({})] {
        assert_eq!(policy(none).ingress.as_deref(), Some(&[][..]));
    }
    let everything = Rule {
        peers: Peers::Any,
        ports: Ports::Any,
    };
    for spec in [
        json!({"ingress": [{}]}),
        json!({"ingress": [{"from": [], "ports": []}]}),
    ] {
        assert_eq!(policy(spec).ingress, Some(vec![everything.clone()]));
    }
}

#[test]
fn peers_keep_absent_and_empty_selectors_apart() {
    let (peers, _) = with_peer(json!({"podSelector": {}}));
    let Peers::Of(peers) = peers else { panic!() };
    assert!(matches!(&peers[..], [Peer::Pods { namespaces: None, pods }] if pods.is_everything()));
    let (peers, _) = with_peer(json!({"namespaceSelector": {}}));
    let Peers::Of(peers) = peers else { panic!() };
    let [
        Peer::Pods {
            namespaces: Some(namespaces),
            pods,
        },
    ] = &peers[..]
    else {
        panic!()
    };
    assert!(namespaces.is_everything() && pods.is_everything());
}

/// netpol.md 66.
#[test]
fn a_peer_that_is_wrong_matches_nothing_and_is_listed() {
    let table = [
        (json!({}), "spec.ingress[0].from[0]: has no podSelector"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
            "beside a selector",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0"}}),
            "spec.ingress[0].from[0].ipBlock.cidr is \"10.0.0.0\"",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0/9"]}}),
            "ipBlock.except[0]",
        ),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
            "spec.ingress[0].from[0].podSelector: operator \"Is\" of key \"a\" is unknown",
        ),
        (
            json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            "namespaceSelector: operator In of key \"a\" needs at least one value",
        ),
    ];
    for (peer, expected) in table {
        let (peers, problems) = with_peer(peer.clone());
        assert_eq!(peers, Peers::Of(Vec::new()), "{peer}");
        assert!(
            problems.len() == 1 && problems[0].contains(expected),
            "{peer}: {problems:?}"
        );
    }
}

#[test]
fn one_wrong_peer_leaves_the_others() {
    let policy = policy(json!({"egress": [
        {"to": [{}, {"podSelector": {}}]},
        {"to": [{"ipBlock": {"cidr": "nonsense"}}]},
    ]}));
    let rules = policy.egress.unwrap();
    assert!(matches!(&rules[0].peers, Peers::Of(peers) if peers.len() == 1));
    assert_eq!(rules[1].peers, Peers::Of(Vec::new()));
    assert_eq!(policy.problems.len(), 2);
    assert!(policy.problems[1].starts_with("spec.egress[1].to[0].ipBlock.cidr"));
}

/// netpol.md 24.
#[test]
fn ip_blocks_are_read_as_the_api_server_reads_them() {
    let table = [
        (json!({"cidr": "010.1.2.3/8"}), "10.0.0.0/8"),
        (json!({"cidr": "::ffff:10.1.0.0/112"}), "10.1.0.0/16"),
        (json!({"cidr": "::/0"}), "::/0"),
    ];
    for (written, expected) in table {
        let (peers, problems) = with_peer(json!({"ipBlock": written}));
        assert_eq!(block(&peers), (expected.to_owned(), vec![]));
        assert!(problems.is_empty());
    }
}

#[test]
fn excepts_that_take_nothing_away_are_listed_and_left_out() {
    let except = json!(["10.1.0.0/16", "11.0.0.0/8", "fd00::/8", "::/0"]);
    let (peers, problems) = with_peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": except}}));
    assert_eq!(
        block(&peers),
        ("10.0.0.0/8".into(), vec!["10.1.0.0/16".into()])
    );
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn excepts_that_take_all_away_are_listed_and_do_so() {
    for except in ["10.0.0.0/8", "10.0.0.0/7", "0.0.0.0/0"] {
        let (peers, problems) =
            with_peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": [except]}}));
        assert_eq!(block(&peers).1, ["10.0.0.0/8"]);
        assert_eq!(problems.len(), 1);
    }
}

/// netpol.md 8, 9, 10.
#[test]
fn ports_in_every_form() {
    use Protocol::{Sctp, Tcp, Udp};
    let table = [
        (json!({}), PortMatch::All(Tcp)),
        (json!({"protocol": "UDP"}), PortMatch::All(Udp)),
        (json!({"port": 80}), PortMatch::Range(Tcp, 80, 80)),
        (
            json!({"port": 80, "endPort": 80}),
            PortMatch::Range(Tcp, 80, 80),
        ),
        (
            json!({"port": 1, "endPort": 65535, "protocol": "SCTP"}),
            PortMatch::Range(Sctp, 1, 65535),
        ),
        (
            json!({"port": "http"}),
            PortMatch::Named(Tcp, "http".into()),
        ),
    ];
    for (port, expected) in table {
        let (ports, problems) = with_port(port.clone());
        assert_eq!(ports, Ports::Of(vec![expected]), "{port}");
        assert!(problems.is_empty());
    }
}

/// netpol.md 66.
#[test]
fn a_port_that_is_wrong_matches_nothing_and_is_listed() {
    let table = [
        (json!({"port": 0}), "spec.ingress[0].ports[0].port is \"0\""),
        (json!({"port": 65536}), "use a port from 1 to 65535"),
        (json!({"port": -1}), "use a port from 1 to 65535"),
        (json!({"port": "80"}), "write the number without quotes"),
        (json!({"port": "HTTP"}), "ports[0].port is \"HTTP\""),
        (json!({"port": "a--b"}), "ports[0].port"),
        (json!({"port": "sixteen-letters-"}), "ports[0].port"),
        (json!({"protocol": "ICMP"}), "ports[0].protocol is \"ICMP\""),
        (json!({"port": 80, "endPort": 79}), "endPort is \"79\""),
        (
            json!({"port": 80, "endPort": 65536}),
            "endPort is \"65536\"",
        ),
        (json!({"endPort": 80}), "endPort: needs port"),
        (
            json!({"port": "http", "endPort": 80}),
            "endPort: does not go with a port name",
        ),
    ];
    for (port, expected) in table {
        let (ports, problems) = with_port(port.clone());
        assert_eq!(ports, Ports::Of(Vec::new()), "{port}");
        assert!(
            problems.len() == 1 && problems[0].contains(expected),
            "{port}: {problems:?}"
        );
    }
}

#[test]
fn a_pod_selector_that_is_wrong_selects_the_whole_namespace() {
    let selector = json!({"matchLabels": {"a": "not a value"}});
    let policy = policy(json!({"podSelector": selector}));
    assert!(policy.pod_selector.is_everything());
    assert!(policy.problems[0].starts_with("spec.podSelector: value \"not a value\""));
}

#[test]
fn the_audit_annotation_is_true_or_false_and_a_mistake_enforces() {
    let of_cluster = |annotations: &Value| {
        let manifest = json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
        });
        match convert::<ClusterNetworkPolicy>(manifest) {
            Ok(Some(Object::ClusterNetworkPolicy(policy))) => (policy.audit, policy.problems),
            other => panic!("{other:?}"),
        }
    };
    let audited = |annotations: Value| {
        let of_cluster = of_cluster(&annotations);
        let manifest = json!({
            "metadata": {"name": "p", "namespace": "x", "annotations": annotations},
            "spec": {"podSelector": {}},
        });
        match convert::<networking::NetworkPolicy>(manifest) {
            Ok(Some(Object::NetworkPolicy(policy))) => {
                assert_eq!((policy.audit, policy.problems.clone()), of_cluster);
                (policy.audit, policy.problems)
            }
            other => panic!("{other:?}"),
        }
    };
    for (annotations, audit) in [
        (json!({}), false),
        (json!({"trammel.io/audit": "true"}), true),
        (json!({"trammel.io/audit": "false"}), false),
        (json!({"other": "true"}), false),
    ] {
        assert_eq!(audited(annotations), (audit, Vec::new()));
    }
    let (audit, problems) = audited(json!({"trammel.io/audit": "yes"}));
    assert!(!audit);
    assert_eq!(
        problems,
        ["metadata.annotations[trammel.io/audit] is \"yes\": use \"true\" or \"false\""]
    );
}
