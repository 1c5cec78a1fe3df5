//! Endpoints of the scheduler `wrr`.

use std::collections::BTreeMap;

use super::adoption::restart;
use super::harness::*;
use crate::model::{Service, ServiceType, SliceEndpoint, TrafficPolicy};

/// A Service with weights.
fn weighted() -> Service {
    Service {
        annotations: [("trammel.io/scheduler".to_owned(), "wrr".to_owned())].into(),
        ..service("web", &["10.96.0.1"], HTTP)
    }
}

/// Ready endpoints `10.1.0.N` of the pods `pN`.
fn of_pods(numbers: impl IntoIterator<Item = u16>) -> Vec<SliceEndpoint> {
    numbers
        .into_iter()
        .flat_map(|number| {
            let pod = Some(format!("p{number}"));
            many([number])
                .into_iter()
                .map(move |endpoint| SliceEndpoint {
                    pod: pod.clone(),
                    ..endpoint
                })
        })
        .collect()
}

fn node(count: u16) -> Node {
    Node::with(
        [weighted()],
        [slice("web-1", "web", HTTP, of_pods(1..=count))],
    )
}

fn weigh(node: &mut Node, pod: u16, weight: &str) {
    let weight = Some(weight).filter(|weight| !weight.is_empty());
    node.proxy.set_pod_weight(&key(&format!("p{pod}")), weight);
}

/// How many slots the endpoints have, by the last number of their addresses.
fn slots(node: &Node) -> BTreeMap<String, usize> {
    let mut slots = BTreeMap::new();
    for target in &described(node.ruleset())["10.96.0.1 . tcp . 80"] {
        let number = target
            .trim_start_matches("10.1.0.")
            .trim_end_matches(" . 80");
        *slots.entry(number.to_owned()).or_default() += 1;
    }
    slots
}

fn counts(of: &[(&str, usize)]) -> BTreeMap<String, usize> {
    let counts = of.iter();
    counts
        .map(|(number, count)| ((*number).to_owned(), *count))
        .collect()
}

fn problems(node: &Node) -> Vec<String> {
    let mut services = node.proxy.services();
    services.next().expect("one Service").problems
}

#[test]
fn without_weights_each_endpoint_has_one_slot() {
    let node = node(3);
    assert_eq!(slots(&node), counts(&[("1", 1), ("2", 1), ("3", 1)]));
    assert_eq!(problems(&node), [""; 0]);
}

#[test]
fn endpoints_have_slots_by_their_weights_and_rules_do_not_know() {
    let mut node = node(3);
    let before: Vec<_> = node.ruleset().tables[&*dataplane::layout::INET]
        .chains
        .keys()
        .cloned()
        .collect();
    weigh(&mut node, 1, "20");
    weigh(&mut node, 2, "10");
    weigh(&mut node, 3, "10");
    node.settle();
    assert_eq!(slots(&node), counts(&[("1", 2), ("2", 1), ("3", 1)]));
    let chains = node.ruleset().tables[&*dataplane::layout::INET]
        .chains
        .keys();
    let new: Vec<_> = chains.filter(|name| !before.contains(name)).collect();
    assert_eq!(new, [&"random-4".into()], "for its number of slots");
}

/// A slot and the chain of another number of slots; a slot less may move another.
#[test]
fn a_change_of_one_weight_writes_the_slots_by_which_it_differs() {
    let mut node = node(3);
    weigh(&mut node, 1, "5");
    weigh(&mut node, 2, "3");
    node.settle();
    for (weight, at_most) in [("6", 3), ("5", 5), ("4", 5), ("5", 3)] {
        weigh(&mut node, 1, weight);
        assert!(node.operations() <= at_most, "{weight}");
    }
    assert_eq!(slots(&node), counts(&[("1", 5), ("2", 3), ("3", 1)]));
    weigh(&mut node, 1, "5");
    assert_eq!(node.operations(), 0, "as it was");
}

#[test]
fn weight_0_takes_no_new_connections() {
    let mut node = node(2);
    weigh(&mut node, 1, "0");
    node.settle();
    assert_eq!(node.reach("10.96.0.1:80"), set(&["10.1.0.2:80"]));
    weigh(&mut node, 2, "0");
    node.settle();
    assert_eq!(node.reach("10.96.0.1:80"), set(&["refused"]));
    let status = node.proxy.services().next().expect("one").to_string();
    assert!(status.contains("refused: no usable endpoint"), "{status}");
    assert!(status.contains("ready weight 0"), "{status}");
    weigh(&mut node, 1, "");
    node.settle();
    assert_eq!(node.reach("10.96.0.1:80"), set(&["10.1.0.1:80"]));
}

#[test]
fn a_pod_says_more_than_its_slice_and_may_come_first_or_last() {
    let mut slice = slice("web-1", "web", HTTP, of_pods([1, 2]));
    slice.endpoints.extend(many([3]));
    slice.weight = Some("4".to_owned());
    let mut node = Node::new();
    weigh(&mut node, 1, "2");
    node.proxy.apply_slice(slice);
    node.proxy.apply_service(weighted());
    node.settle();
    assert_eq!(slots(&node), counts(&[("1", 1), ("2", 2), ("3", 2)]));
    weigh(&mut node, 2, "8");
    node.settle();
    assert_eq!(slots(&node), counts(&[("1", 1), ("2", 4), ("3", 2)]));
}

#[test]
fn other_schedulers_and_other_namespaces_have_no_weights() {
    let mut node = Node::with(
        [service("web", &["10.96.0.1"], HTTP)],
        [slice("web-1", "web", HTTP, of_pods([1, 2]))],
    );
    weigh(&mut node, 1, "5");
    node.proxy
        .set_pod_weight(&crate::model::ObjectKey::new("other", "p2"), Some("7"));
    assert_eq!(node.operations(), 0);
    node.proxy.apply_service(weighted());
    node.settle();
    assert_eq!(slots(&node), counts(&[("1", 5), ("2", 1)]));
}

#[test]
fn what_cannot_be_read_weighs_1_and_what_does_not_fit_is_rounded() {
    let mut node = node(3);
    weigh(&mut node, 1, "many");
    weigh(&mut node, 2, "3");
    node.settle();
    assert_eq!(slots(&node), counts(&[("1", 1), ("2", 3), ("3", 1)]));
    let found = problems(&node);
    assert_eq!(found.len(), 1, "{found:?}");
    for part in [
        "10.1.0.1:80",
        "trammel.io/weight",
        "\"many\"",
        "0 to 65535",
        "weighs 1",
    ] {
        assert!(found[0].contains(part), "{part}: {found:?}");
    }
    weigh(&mut node, 1, "65535");
    node.settle();
    assert_eq!(slots(&node), counts(&[("1", 998), ("2", 1), ("3", 1)]));
    let found = problems(&node);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("add up to 65539"), "{found:?}");
    assert!(found[0].contains("use smaller weights"), "{found:?}");
    // A review finds it as well, for its Event.
    let reviewed = node.proxy.review(10);
    assert_eq!(reviewed[0].1.problems, found);
}

/// A drained endpoint does not keep a load balancer sending to its node.
#[test]
fn weight_0_counts_neither_for_a_local_policy_nor_for_its_health_check() {
    let mut service = weighted();
    service.kind = ServiceType::LoadBalancer;
    service.load_balancer_ips = vec![address("203.0.113.1")];
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(31_000);
    let endpoints = of_pods([1, 2]);
    let [ours, theirs] = [here(endpoints[0].clone()), endpoints[1].clone()];
    let mut node = Node::with([service], [slice("web-1", "web", HTTP, [ours, theirs])]);
    let local = |node: &Node| {
        node.proxy
            .health_checks()
            .next()
            .expect("one")
            .local_endpoints
    };
    assert_eq!(local(&node), 1);
    weigh(&mut node, 1, "0");
    node.settle();
    assert_eq!(local(&node), 0);
    let outside = node.walk(From::Outside, "203.0.113.1:80");
    assert_eq!(outside, set(&["dropped"]));
    let own = node.walk(From::Node, "203.0.113.1:80");
    assert_eq!(own.len(), 1, "{own:?}");
    assert!(
        own.iter().all(|end| end.starts_with("10.1.0.2:80")),
        "{own:?}"
    );
}

#[test]
fn a_restart_finds_the_slots_of_weights_as_they_were() {
    let mut node = node(3);
    weigh(&mut node, 1, "3");
    node.settle();
    let mut next = restart(&node);
    weigh(&mut next, 1, "3");
    next.proxy.apply_service(weighted());
    next.proxy
        .apply_slice(slice("web-1", "web", HTTP, of_pods(1..=3)));
    assert_eq!(next.operations(), 0);
    assert_eq!(slots(&next), counts(&[("1", 3), ("2", 1), ("3", 1)]));
}
