//! Connections to endpoints that are gone, where they are to be reset.

use std::collections::BTreeSet;

use proxy::model::ServiceType;

use super::harness::{Node, World};
use super::objects::{attachment, ip, model_pod, model_service, namespace, pod, service, slice};
use crate::addresses::HostAddresses;
use crate::config::services::ServiceConfig;
use crate::event::Object;
use crate::model::PodPhase;

const PORTS: [&str; 3] = ["10.96.0.10:80", "192.0.2.2:30080", "192.0.2.3:30080"];

/// A Service with a node port, of endpoints that are no pods.
fn web() -> Object {
    let mut service = model_service("x/web", "10.96.0.10", "web");
    service.kind = ServiceType::NodePort;
    service.ports[0].node_port = Some(30_080);
    Object::Service(service)
}

fn node(objects: impl IntoIterator<Item = Object>) -> Node {
    let mut node = Node::new();
    node.owner.configure_services(&ServiceConfig {
        reset_gone_endpoints: true,
        ..ServiceConfig::default()
    });
    let all: BTreeSet<_> = ["192.0.2.2", "192.0.2.3"].map(ip).into();
    node.owner.set_host_addresses(HostAddresses {
        of_default_routes: all.clone(),
        all,
    });
    node.list(&World::of(objects));
    node.settle();
    node
}

/// The connections that were ended so far, sorted: from where to where.
fn ended(node: &mut Node) -> Vec<(String, String)> {
    let flows = node.kernel().fake.forgotten().iter();
    let texts: BTreeSet<_> = flows
        .map(|flow| (flow.frontend.to_string(), flow.endpoint.to_string()))
        .collect();
    texts.into_iter().collect()
}

fn of_web(endpoint: &str) -> Vec<(String, String)> {
    PORTS
        .map(|frontend| (frontend.to_owned(), endpoint.to_owned()))
        .into()
}

#[test]
fn connections_end_with_their_endpoint_by_every_frontend() {
    let mut node = node([web(), slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"])]);
    assert_eq!(ended(&mut node), []);
    node.apply(slice("x/web-1", "web", &["10.99.0.3"]));
    assert_eq!(ended(&mut node), of_web("10.99.0.2:8080"));
    let count = node.owner.take_observations().reset;
    assert_eq!(count, 3, "the fake has one of each");
    // The last goes, too.
    node.apply(slice("x/web-1", "web", &[]));
    let mut both = of_web("10.99.0.2:8080");
    both.extend(of_web("10.99.0.3:8080"));
    both.sort();
    assert_eq!(ended(&mut node), both);
}

#[test]
fn an_endpoint_that_is_not_chosen_any_more_keeps_its_connections() {
    let mut node = node([web(), slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"])]);
    for (ready, serving, terminating) in [(false, true, true), (false, false, false)] {
        let Object::EndpointSlice(mut changed) =
            slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"])
        else {
            panic!("a slice");
        };
        let endpoint = &mut changed.endpoints[0];
        endpoint.ready = ready;
        endpoint.serving = serving;
        endpoint.terminating = terminating;
        node.apply(Object::EndpointSlice(changed));
        assert_eq!(node.served("10.96.0.10", 80), ["10.99.0.3 . 8080"]);
        assert_eq!(ended(&mut node), []);
    }
    // It was still there, and now is not: no slot goes with it.
    node.apply(slice("x/web-1", "web", &["10.99.0.3"]));
    assert_eq!(ended(&mut node), of_web("10.99.0.2:8080"));
}

#[test]
fn an_endpoint_that_moves_or_is_another_services_keeps_its_connections() {
    let mut node = node([
        web(),
        service("x/other", "10.96.0.11", "other"),
        slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"]),
        slice("x/other-1", "other", &["10.99.0.2"]),
    ]);
    // Not in the same moment, as the controller writes one slice after the other.
    node.apply(slice("x/web-2", "web", &["10.99.0.3"]));
    node.apply(slice("x/web-1", "web", &["10.99.0.2"]));
    assert_eq!(ended(&mut node), []);
    // It is there as long as anybody has it.
    node.apply(slice("x/web-1", "web", &[]));
    assert_eq!(ended(&mut node), []);
    node.apply(slice("x/web-1", "web", &["10.99.0.2"]));
    node.apply(slice("x/other-1", "other", &[]));
    let other = ("10.96.0.11:80".to_owned(), "10.99.0.2:8080".to_owned());
    assert_eq!(ended(&mut node), [], "web has it");
    node.apply(slice("x/web-1", "web", &[]));
    let mut all = of_web("10.99.0.2:8080");
    all.push(other);
    all.sort();
    assert_eq!(ended(&mut node), all);
}

#[test]
fn an_endpoint_that_came_back_keeps_its_connections() {
    let mut node = node([
        web(),
        pod("x/one", "10.99.0.2", "web"),
        slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"]),
    ]);
    node.apply(slice("x/web-1", "web", &["10.99.0.3"]));
    node.apply(slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"]));
    node.delete(&pod("x/one", "10.99.0.2", "web"));
    assert_eq!(ended(&mut node), []);
}

#[test]
fn a_pod_that_lives_keeps_its_connections_until_it_is_deleted_or_has_finished() {
    let one = || pod("x/one", "10.99.0.2", "web");
    let mut on_host = model_pod("x/host", "192.0.2.9", "web");
    on_host.host_network = true;
    let on_host = Object::Pod(on_host);
    let addresses = ["10.99.0.2", "192.0.2.9", "10.99.0.4"];
    let mut node = node([
        web(),
        one(),
        on_host.clone(),
        slice("x/web-1", "web", &addresses),
    ]);
    // It is not selected any more.
    node.apply(slice("x/web-1", "web", &["10.99.0.4"]));
    node.apply(namespace("unrelated"));
    assert_eq!(ended(&mut node), []);
    let mut finished = model_pod("x/one", "10.99.0.2", "web");
    finished.phase = PodPhase::Finished;
    node.apply(Object::Pod(finished));
    assert_eq!(ended(&mut node), of_web("10.99.0.2:8080"));
    node.delete(&on_host);
    let mut both = of_web("10.99.0.2:8080");
    both.extend(of_web("192.0.2.9:8080"));
    both.sort();
    assert_eq!(ended(&mut node), both);
}

#[test]
fn a_container_that_is_still_attached_keeps_its_connections() {
    let mut node = node([web(), slice("x/web-1", "web", &["10.99.0.2", "10.99.0.3"])]);
    let attached = attachment("one", Some("x/one"), &["10.99.0.2"]);
    node.owner.attach(attached.clone());
    node.apply(slice("x/web-1", "web", &["10.99.0.3"]));
    assert_eq!(ended(&mut node), []);
    node.owner.detach(&attached.key);
    node.settle();
    assert_eq!(ended(&mut node), of_web("10.99.0.2:8080"));
}
