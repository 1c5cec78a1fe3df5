//! The oracle against a second reading of the API that works on sets: for every policy
//! the set of (source, destination, port) triples it allows, united and intersected.
//! It shares only the model types with the oracle.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::policy::{Peer, Peers, PortMatch, Ports, Rule};

type Triple = (IpAddr, IpAddr, u16);

const PORTS: [u16; 3] = [80, 81, 8080];

fn arb_selector() -> impl Strategy<Value = Value> {
    let one = prop_oneof![
        Just(json!({})),
        "[abc]".prop_map(|v| json!({"matchLabels": {"pod": v}})),
        "[xy]".prop_map(|v| json!({"matchLabels": {"team": v}})),
        Just(json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["x"]}]})),
        Just(json!({"matchExpressions": [{"key": "pod", "operator": "Exists"}]})),
        Just(json!({"matchExpressions": [{"key": "pod", "operator": "DoesNotExist"}]})),
    ];
    one.boxed()
}

fn arb_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        arb_selector().prop_map(|s| json!({"podSelector": s})),
        arb_selector().prop_map(|s| json!({"namespaceSelector": s})),
        (arb_selector(), arb_selector())
            .prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        (8u8..=32, 0u8..4).prop_map(|(length, last)| {
            let cidr = format!("10.0.1.{last}/{length}");
            json!({"ipBlock": {"cidr": cidr}})
        }),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.2.0/24", "10.0.1.2/31"]}})),
    ]
}

fn arb_port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"port": 80})),
        Just(json!({"port": 80, "endPort": 81})),
        Just(json!({"port": "web"})),
        Just(json!({"protocol": "UDP"})),
    ]
}

fn arb_rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (
        proptest::collection::vec(arb_peer(), 0..3),
        proptest::collection::vec(arb_port(), 0..3),
    )
        .prop_map(move |(p, ports)| json!({peers: p, "ports": ports}));
    proptest::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn arb_policy() -> impl Strategy<Value = (String, Value)> {
    let types = prop_oneof![
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
        Just(json!([])),
    ];
    (
        "[xy]",
        arb_selector(),
        types,
        arb_rules("from"),
        arb_rules("to"),
    )
        .prop_map(|(namespace, selector, types, ingress, egress)| {
            let spec = json!({"podSelector": selector, "policyTypes": types,
                "ingress": ingress, "egress": egress});
            (namespace, spec)
        })
}

impl World {
    fn universe(&self) -> (Vec<IpAddr>, BTreeSet<Triple>) {
        let pods = self.pods.iter().map(|pod| pod.ips[0]);
        let addresses: Vec<IpAddr> = pods.chain([OUTSIDE.parse().unwrap()]).collect();
        let mut all = BTreeSet::new();
        for source in &addresses {
            for destination in &addresses {
                all.extend(PORTS.map(|port| (*source, *destination, port)));
            }
        }
        (addresses, all)
    }

    fn at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.ips[0] == address)
    }

    /// Addresses that a rule's peers stand for.
    fn peers(&self, rule: &Rule, namespace: &str, addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
        let Peers::Of(peers) = &rule.peers else {
            return addresses.iter().copied().collect();
        };
        let mut set = BTreeSet::new();
        for peer in peers {
            match peer {
                Peer::IpBlock { cidr, except } => {
                    let mut block: BTreeSet<IpAddr> = addresses
                        .iter()
                        .copied()
                        .filter(|a| cidr.contains(a))
                        .collect();
                    block.retain(|a| except.iter().all(|e| !e.contains(a)));
                    set.append(&mut block);
                }
                Peer::Nodes(_) => unreachable!("no NetworkPolicy has such a peer"),
                Peer::Pods { namespaces, pods } => {
                    let of: BTreeSet<&str> = match namespaces {
                        None => [namespace].into(),
                        Some(s) => self
                            .namespaces
                            .iter()
                            .filter(|n| s.matches(&n.labels))
                            .map(|n| n.name.as_str())
                            .collect(),
                    };
                    let chosen = self.pods.iter().filter(|pod| {
                        of.contains(&*pod.key.namespace) && pods.matches(&pod.labels)
                    });
                    set.extend(chosen.map(|pod| pod.ips[0]));
                }
            }
        }
        set
    }

    fn port_matches(&self, rule: &Rule, destination: IpAddr, port: u16) -> bool {
        let Ports::Of(ports) = &rule.ports else {
            return true;
        };
        ports.iter().any(|p| match p {
            PortMatch::All(protocol) => *protocol == Protocol::Tcp,
            PortMatch::Range(protocol, first, last) => {
                *protocol == Protocol::Tcp && port >= *first && port <= *last
            }
            PortMatch::Named(protocol, name) => self.at(destination).is_some_and(|pod| {
                *protocol == Protocol::Tcp
                    && pod.ports.iter().any(|c| c.name == *name && c.port == port)
            }),
        })
    }

    /// What passes one direction.
    fn passing(&self, direction: Direction) -> BTreeSet<Triple> {
        let (addresses, all) = self.universe();
        let subject_of = |t: &Triple| match direction {
            Direction::Ingress => t.1,
            Direction::Egress => t.0,
        };
        let mut isolated = BTreeSet::new();
        let mut allowed = BTreeSet::new();
        for policy in &self.policies {
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(rules) = rules else { continue };
            let subjects: BTreeSet<IpAddr> = self
                .pods
                .iter()
                .filter(|p| p.key.namespace == policy.key.namespace)
                .filter(|p| policy.pod_selector.matches(&p.labels))
                .map(|p| p.ips[0])
                .collect();
            for rule in rules {
                let peers = self.peers(rule, &policy.key.namespace, &addresses);
                allowed.extend(all.iter().copied().filter(|t| {
                    let peer = if direction == Direction::Ingress {
                        t.0
                    } else {
                        t.1
                    };
                    subjects.contains(&subject_of(t))
                        && peers.contains(&peer)
                        && self.port_matches(rule, t.1, t.2)
                }));
            }
            isolated.extend(subjects);
        }
        all.into_iter()
            .filter(|t| !isolated.contains(&subject_of(t)) || allowed.contains(t))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn agrees_with_the_reading_by_sets(policies in proptest::collection::vec(arb_policy(), 0..5)) {
        let mut world = World::new();
        for (i, (namespace, spec)) in policies.into_iter().enumerate() {
            world.policy_in(&namespace, &format!("p{i}"), spec);
        }
        for (i, port) in [(0, 80), (1, 8080), (3, 81)] {
            world.pods[i].ports.push(crate::model::ContainerPort {
                name: "web".into(), protocol: Protocol::Tcp, port,
            });
        }
        prop_assert!(world.policies.iter().all(|p| p.problems.is_empty()));
        let (ingress, egress) = (world.passing(Direction::Ingress), world.passing(Direction::Egress));
        let cluster = world.cluster();
        for triple in world.universe().1 {
            let (source, destination, port) = triple;
            let transport = Transport::Port(Protocol::Tcp, port);
            let verdict = cluster.judge(&Flow { source, destination, transport });
            let expected = source == destination
                || (ingress.contains(&triple) && egress.contains(&triple));
            prop_assert_eq!(verdict.is_allowed(), expected, "{:?}: {}", triple, verdict);
        }
    }
}
