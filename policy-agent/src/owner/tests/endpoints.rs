//! Endpoints computed from selectors.

use proxy::model::{ObjectKey, TrafficDistribution};

use super::harness::{Node, World};
use super::objects::{
    attachment, model_pod, model_service, node as node_object, pod, service, slice,
};
use crate::event::{Event, Kind, Object};
use crate::model::PodPhase;

fn node() -> Node {
    let mut node = Node::of_manifests();
    node.list(&World::of([
        service("x/web", "10.96.0.10", "web"),
        pod("x/a", "10.88.0.2", "web"),
        pod("x/b", "10.99.0.3", "web"),
        pod("x/c", "10.88.0.4", "other"),
        pod("y/d", "10.88.0.5", "web"),
    ]));
    node.settle();
    node
}

fn hosts(node: &mut Node) -> Vec<String> {
    let mut served = node.served("10.96.0.10", 80);
    served.sort();
    let host = |target: &String| target.trim_end_matches(" . 8080").to_owned();
    served.iter().map(host).collect()
}

#[test]
fn they_follow_labels_readiness_and_life() {
    let mut node = node();
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.99.0.3"]);
    node.apply(pod("x/c", "10.88.0.4", "web"));
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.88.0.4", "10.99.0.3"]);
    node.apply(pod("x/a", "10.88.0.2", "former"));
    assert_eq!(hosts(&mut node), ["10.88.0.4", "10.99.0.3"]);

    let mut unready = model_pod("x/b", "10.99.0.3", "web");
    unready.ready = false;
    node.apply(Object::Pod(unready));
    assert_eq!(hosts(&mut node), ["10.88.0.4"]);
    let mut finished = model_pod("x/c", "10.88.0.4", "web");
    finished.phase = PodPhase::Finished;
    node.apply(Object::Pod(finished));
    assert_eq!(hosts(&mut node), Vec::<String>::new());

    node.apply(pod("x/b", "10.99.0.3", "web"));
    assert_eq!(hosts(&mut node), ["10.99.0.3"]);
    node.delete(&pod("x/b", "", "web"));
    assert_eq!(hosts(&mut node), Vec::<String>::new());
}

#[test]
fn the_selector_is_that_of_now() {
    let mut node = node();
    node.apply(service("x/web", "10.96.0.10", "other"));
    assert_eq!(hosts(&mut node), ["10.88.0.4"]);
    node.delete(&service("x/web", "10.96.0.10", "other"));
    assert_eq!(hosts(&mut node), Vec::<String>::new());
    node.apply(service("x/web", "10.96.0.10", "web"));
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.99.0.3"]);
}

#[test]
fn an_attachment_gives_the_address_before_any_status() {
    let mut node = node();
    node.apply(pod("x/late", "", "web"));
    assert_eq!(hosts(&mut node).len(), 2);
    let late = attachment("c1", Some("x/late"), &["10.88.0.9"]);
    node.owner.attach(late.clone());
    node.settle();
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.88.0.9", "10.99.0.3"]);
    node.owner.detach(&late.key);
    node.settle();
    assert_eq!(hosts(&mut node).len(), 2);
}

#[test]
fn slices_that_are_given_take_their_place_and_leave_it() {
    let mut node = node();
    let given = slice("x/given", "web", &["10.99.0.77"]);
    node.apply(given.clone());
    assert_eq!(hosts(&mut node), ["10.99.0.77"]);
    node.apply(pod("x/c", "10.88.0.4", "web"));
    assert_eq!(hosts(&mut node), ["10.99.0.77"]);
    node.delete(&given);
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.88.0.4", "10.99.0.3"]);
}

/// Regression: the slice that was given went with the computed one of the same name.
#[test]
fn a_slice_may_have_any_name() {
    let mut node = node();
    for name in ["x/web-ipv4-0", "x/web-0", "x/web"] {
        let given = slice(name, "web", &["10.99.0.77"]);
        node.apply(given.clone());
        assert_eq!(hosts(&mut node), ["10.99.0.77"], "{name}");
        node.delete(&given);
        assert_eq!(hosts(&mut node), ["10.88.0.2", "10.99.0.3"], "{name}");
    }
    // Of another Service.
    node.apply(service("x/other", "10.96.0.11", "none"));
    node.apply(slice("x/web-ipv4-0", "other", &["10.99.0.77"]));
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.99.0.3"]);
    assert_eq!(node.served("10.96.0.11", 80), ["10.99.0.77 . 8080"]);
}

/// Regression: the Service that it had been of was left without endpoints.
#[test]
fn a_slice_that_changes_its_service_leaves_the_first_to_its_selector() {
    let mut node = node();
    node.apply(service("x/other", "10.96.0.11", "none"));
    node.apply(slice("x/given", "web", &["10.99.0.77"]));
    node.apply(slice("x/given", "other", &["10.99.0.77"]));
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.99.0.3"]);
    assert_eq!(node.served("10.96.0.11", 80), ["10.99.0.77 . 8080"]);
}

/// Regression: the pod that had it stayed an endpoint, and did not become one again.
#[test]
fn an_address_that_another_pod_claims_serves_for_that_one_alone() {
    let mut node = node();
    let mut newer = model_pod("x/newer", "10.88.0.2", "other");
    newer.created = 5;
    node.apply(Object::Pod(newer.clone()));
    assert_eq!(hosts(&mut node), ["10.99.0.3"]);
    node.delete(&Object::Pod(newer));
    assert_eq!(hosts(&mut node), ["10.88.0.2", "10.99.0.3"]);
}

#[test]
fn without_manifests_nothing_is_computed() {
    let mut node = Node::new();
    node.list(&World::of([
        service("x/web", "10.96.0.10", "web"),
        pod("x/a", "10.88.0.2", "web"),
    ]));
    node.settle();
    assert_eq!(hosts(&mut node), Vec::<String>::new());
}

/// services.md 30, without a controller that writes hints.
#[test]
fn endpoints_are_computed_with_the_traffic_distribution() {
    let mut node = Node::of_manifests();
    let on = |name: &str, address: &str, at: &str| {
        let mut pod = model_pod(name, address, "web");
        pod.node = Some(at.into());
        Object::Pod(pod)
    };
    let with = |distribution: TrafficDistribution| {
        let mut service = model_service("x/web", "10.96.0.10", "web");
        service.traffic_distribution = distribution;
        Object::Service(service)
    };
    let [here, near, far] = ["10.88.0.2", "10.99.0.3", "10.99.0.4"];
    node.list(&World::of([
        node_object("n1", Some("a")),
        node_object("n2", Some("a")),
        node_object("n3", Some("b")),
        on("x/here", here, "n1"),
        on("x/near", near, "n2"),
        on("x/far", far, "n3"),
        with(TrafficDistribution::None),
    ]));
    node.settle();
    assert_eq!(hosts(&mut node), [here, near, far]);
    for (distribution, expected) in [
        (TrafficDistribution::SameZone, vec![here, near]),
        (TrafficDistribution::SameNode, vec![here]),
        (TrafficDistribution::Unknown, vec![here, near, far]),
        (TrafficDistribution::SameNode, vec![here]),
    ] {
        node.apply(with(distribution));
        assert_eq!(hosts(&mut node), expected, "{distribution:?}");
    }
    // The nearest that there are.
    let mut unready = model_pod("x/here", here, "web");
    unready.ready = false;
    node.apply(Object::Pod(unready));
    assert_eq!(hosts(&mut node), [near]);
    node.apply(node_object("n2", Some("b")));
    assert_eq!(hosts(&mut node), [near, far]);
    node.apply(node_object("n3", Some("a")));
    assert_eq!(hosts(&mut node), [far]);
    node.apply(with(TrafficDistribution::None));
    assert_eq!(hosts(&mut node), [near, far]);
}

/// Regression: a node that was gone kept its zone.
#[test]
fn hints_count_as_long_as_the_node_has_a_zone() {
    let mut node = Node::new();
    let hinted = |text: &str, zone: &str| {
        let mut endpoint = super::objects::endpoint(super::objects::ip(text));
        endpoint.hint_zones = vec![zone.into()];
        endpoint
    };
    let Object::EndpointSlice(mut slice) = slice("x/web-1", "web", &[]) else {
        panic!("a slice");
    };
    slice.endpoints = vec![hinted("10.99.0.2", "a"), hinted("10.99.0.3", "b")];
    node.list(&World::of([
        node_object("n1", Some("a")),
        service("x/web", "10.96.0.10", "web"),
        Object::EndpointSlice(slice),
    ]));
    node.settle();
    assert_eq!(hosts(&mut node), ["10.99.0.2"]);
    node.apply(node_object("n1", Some("b")));
    assert_eq!(hosts(&mut node), ["10.99.0.3"]);
    node.owner
        .handle(Event::Delete(Kind::Node, ObjectKey::new("", "n1")));
    node.settle();
    assert_eq!(hosts(&mut node), ["10.99.0.2", "10.99.0.3"]);
}
