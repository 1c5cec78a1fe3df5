//! No error path accepts: what the kernel refuses, or takes in parts, opens nothing and
//! leaves no flow alone that is forbidden.

use dataplane::datatype::Bytes;
use dataplane::field::ct_state;
use dataplane::layout::policy;
use dataplane::object::{Family, Hook, Ruleset};
use dataplane::trace::{Fate, Packet, Tracer};
use dataplane::transaction::Operation;
use proxy::model::ServiceType;

use super::harness::{Node, World};
use super::objects::{allow, deny, ip, model_pod, model_service, namespace, pod, quarantine};
use super::world;
use crate::event::{Event, Kind, Object};
use crate::model::policy::{Peer, Peers, Ports, Rule};

const WEB: &str = "10.88.0.2";
const CLIENT: &str = "10.88.0.3";

/// Whether the set is one of those that rules of policies read.
fn is_of_rules(set: &str) -> bool {
    ["pods", "blocks", "nodes", "named"]
        .iter()
        .any(|kind| set.starts_with(kind))
}

fn refuse_additions(node: &mut Node, is_meant: fn(&str) -> bool) {
    node.kernel().refuses = Some(Box::new(move |operation, key| {
        let is_addition =
            matches!(operation, Operation::AddElements { set, .. } if is_meant(set.as_str()));
        is_addition && key.is_some()
    }));
}

fn listed(world: &World) -> Node {
    let mut node = Node::new();
    node.list(world);
    node.settle();
    node
}

/// netpol.md 69. Regression: the address kept what it was bound to before.
#[test]
fn an_address_whose_new_binding_is_refused_is_closed() {
    let mut world = world();
    world
        .objects
        .retain(|(kind, _), _| *kind != Kind::NetworkPolicy);
    let mut node = listed(&world);
    assert!(node.passes(CLIENT, WEB, 80));
    refuse_additions(&mut node, |set| set == "ingress4");
    node.apply(deny("x/deny", "web"));
    assert!(!node.passes(CLIENT, WEB, 80));
    assert!(
        node.passes(WEB, "192.0.2.1", 80),
        "the other direction is not concerned"
    );
    node.kernel().refuses = None;
    node.apply(allow("x/deny", "web", "client"));
    assert!(node.passes(CLIENT, WEB, 80));
    assert_eq!(node.problems(), Vec::<String>::new());
}

/// netpol.md 69. Regression: a start without its end is everything above it.
#[test]
fn half_an_interval_closes_whoever_asks_for_it() {
    let block = |cidr: &str| {
        let Object::NetworkPolicy(mut policy) = deny("x/deny", "web") else {
            unreachable!("a policy");
        };
        policy.ingress = Some(vec![Rule {
            peers: Peers::Of(vec![Peer::IpBlock {
                cidr: cidr.parse().expect("a prefix"),
                except: Vec::new(),
            }]),
            ports: Ports::Any,
        }]);
        Object::NetworkPolicy(policy)
    };
    for refused in ["192.0.2.0", "192.0.2.16"] {
        let mut node = listed(&world());
        let end = Bytes::new().addr(ip(refused)).build();
        node.kernel().refuses = Some(Box::new(move |operation, key| {
            matches!(operation, Operation::AddElements { .. }) && key == Some(&end)
        }));
        node.apply(block("192.0.2.0/28"));
        for source in ["192.0.2.1", "192.0.2.200", "203.0.113.1"] {
            assert!(!node.passes(source, WEB, 80), "without {refused}: {source}");
        }
        node.kernel().refuses = None;
        node.apply(namespace("unrelated"));
        assert!(node.passes("192.0.2.1", WEB, 80));
        assert!(!node.passes("192.0.2.200", WEB, 80));
    }
}

/// netpol.md 69, 88. Regression: who could not be put into the set of the denied was not
/// denied.
#[test]
fn a_tier_that_cannot_name_whom_it_denies_denies_all() {
    let mut world = world();
    world
        .objects
        .retain(|(kind, _), _| *kind != Kind::NetworkPolicy);
    world.put(pod("x/other", "10.88.0.4", "other"));
    world.put(quarantine("quarantine", "web", "ill"));
    let mut node = listed(&world);
    assert!(node.passes(CLIENT, WEB, 80));
    refuse_additions(&mut node, is_of_rules);
    node.apply(pod("x/client", CLIENT, "ill"));
    assert!(!node.passes(CLIENT, WEB, 80));
    assert!(
        !node.passes("10.88.0.4", WEB, 80),
        "closed until the set is whole"
    );
    assert!(
        node.passes(CLIENT, "10.88.0.4", 80),
        "others are not concerned"
    );
    let problems = node.problems();
    assert!(
        problems
            .iter()
            .any(|problem| problem.starts_with("tier-admin-")),
        "{problems:?}"
    );
    node.kernel().refuses = None;
    node.owner.try_refused_again();
    node.settle();
    assert!(!node.passes(CLIENT, WEB, 80));
    assert!(node.passes("10.88.0.4", WEB, 80));
    assert!(!node.owner.has_refused());
}

/// netpol.md 69. Regression: whoever could not be taken out of a set stayed allowed, and the
/// sync was said to have succeeded.
#[test]
fn what_cannot_be_taken_away_fails_the_sync() {
    let mut world = world();
    world.put(allow("x/deny", "web", "client"));
    let mut node = listed(&world);
    node.kernel().refuses = Some(Box::new(
        |operation, key| matches!(operation, Operation::DeleteElements { set, .. } if is_of_rules(set.as_str()) && key.is_some()),
    ));
    node.owner
        .handle(Event::Apply(pod("x/client", CLIENT, "former")));
    assert!(node.owner.sync().is_err());
    assert!(!node.owner.is_synced() && node.owner.is_dirty());
    node.kernel().refuses = None;
    let generation = node.generation();
    node.settle();
    assert!(!node.passes(CLIENT, WEB, 80));
    assert!(
        node.generation() > generation,
        "live flows are judged again"
    );
}

/// netpol.md 69. Regression: behind a bridge that is not known to have pods nobody is judged.
#[test]
fn a_bridge_that_cannot_be_watched_fails_the_sync() {
    let mut node = Node::new();
    refuse_additions(&mut node, |set| set == "pod-interfaces");
    node.list(&world());
    assert!(node.owner.sync().is_err());
    assert!(node.ruleset().tables.is_empty());
    node.kernel().refuses = None;
    node.settle();
    assert!(!node.passes(CLIENT, WEB, 80));
}

/// Regression: a frontend whose source ranges were refused was open to all.
#[test]
fn a_frontend_without_its_source_ranges_is_not_served() {
    let mut restricted = model_service("x/web", "10.96.0.10", "web");
    restricted.kind = ServiceType::LoadBalancer;
    restricted.load_balancer_ips = vec![ip("203.0.113.9")];
    restricted.source_ranges = vec!["192.0.2.0/24".into()];
    let mut world = world();
    world.put(Object::Service(restricted));
    let mut node = Node::new();
    refuse_additions(&mut node, |set| set == "restricted4");
    node.list(&world);
    node.settle();
    assert_eq!(node.served("203.0.113.9", 80), Vec::<String>::new());
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
    node.kernel().refuses = None;
    node.owner.try_refused_again();
    node.settle();
    assert_eq!(node.served("203.0.113.9", 80).len(), 3);
}

/// Regression: live flows had the generation already under which they were to be cut.
#[test]
fn a_narrowing_that_was_refused_cuts_flows_when_it_goes_through() {
    let mut node = listed(&world());
    node.kernel().refuses = Some(Box::new(
        |operation, _| matches!(operation, Operation::AddRule { chain, .. } if policy::is_group(chain)),
    ));
    node.apply(allow("x/deny", "web", "client"));
    let generation = node.generation();
    node.kernel().refuses = None;
    node.owner.try_refused_again();
    node.settle();
    assert_eq!(node.generation(), generation + 1);
    assert!(!node.owner.has_refused());
    node.owner.try_refused_again();
    assert!(!node.owner.is_dirty(), "nothing is left to try");
}

/// What becomes of a packet of a live flow; its mark is kept.
fn goes_on(ruleset: &Ruleset, mark: &mut u32, source: &str) -> bool {
    let mut packet = Packet::first(ip(source), ip(WEB), 6, 80);
    packet.iifname = "uplink".into();
    packet.oifname = Some("cbr0".into());
    packet.flow.state = ct_state::ESTABLISHED;
    packet.flow.mark = *mark;
    let tracer = Tracer::new(ruleset, &|_| 0);
    let fate = tracer.hook(Family::Inet, Hook::Forward, &mut packet).fate;
    *mark = packet.flow.mark;
    fate == Fate::Accepted
}

/// netpol.md 46, 80. Regression: a packet between the parts of a large change got the new
/// generation from the old rules, and its flow stayed open.
#[test]
fn a_large_change_leaves_no_flow_open_that_sends_between_its_parts() {
    const PEERS: usize = 16_000;
    let peers = |label: &'static str| {
        (0..PEERS).map(move |number| {
            let [high, low] = u16::try_from(number).expect("a small number").to_be_bytes();
            let mut pod = model_pod(
                &format!("x/c{number}"),
                &format!("10.99.{high}.{low}"),
                label,
            );
            pod.node = Some("n2".into());
            Object::Pod(pod)
        })
    };
    let mut world = world();
    world.put(allow("x/deny", "web", "client"));
    peers("client").for_each(|pod| world.put(pod));
    let mut node = listed(&world);
    let mut marks = ["10.99.0.0", "10.99.62.127"].map(|source| (source, 0));
    let before = node.ruleset();
    for (source, mark) in &mut marks {
        assert!(goes_on(&before, mark, source));
    }
    node.kernel().keeps_states = true;
    for pod in peers("former") {
        node.owner.handle(Event::Apply(pod));
    }
    node.settle();
    let states = std::mem::take(&mut node.kernel().states);
    assert!(states.len() > 2, "{} commits", states.len());
    for (source, mark) in &mut marks {
        let went_on: Vec<_> = states.iter().map(|s| goes_on(s, mark, source)).collect();
        assert_eq!(went_on.last(), Some(&false), "{source}: {went_on:?}");
    }
}
