#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals read better without a borrow"
)]

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::*;
use crate::event::Object;
use crate::source::convert::Convert;

fn service(spec: Value) -> Service {
    let manifest = json!({"metadata": {"name": "web", "namespace": "x"}, "spec": spec});
    let service: core::Service = serde_json::from_value(manifest).unwrap();
    match service.convert().unwrap() {
        Some(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

/// A pod of namespace x with label app=web, in both families.
fn mk_pod(name: &str, octet: u8) -> Pod {
    let manifest = json!({
        "metadata": {"name": name, "namespace": "x", "labels": {"app": "web", "extra": name}},
        "spec": {"nodeName": format!("node-{name}"), "containers": []},
        "status": {"podIPs": [{"ip": format!("10.0.0.{octet}")}, {"ip": format!("fd00::{octet}")}]},
    });
    let pod: core::Pod = serde_json::from_value(manifest).unwrap();
    match pod.convert().unwrap() {
        Some(Object::Pod(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

fn named(pod: &mut Pod, name: &str, protocol: Protocol, port: u16) {
    pod.ports.push(crate::model::ContainerPort {
        name: name.into(),
        protocol,
        port,
    });
}

fn slices(service: &Service, pods: &[Pod]) -> Vec<EndpointSlice> {
    slices_for(
        service,
        pods,
        |pod| pod.ips.clone(),
        |node| (node == "node-a").then(|| "z1".to_owned()),
    )
}

/// `address:port` of every endpoint and port, in order.
fn flat(slices: &[EndpointSlice]) -> Vec<String> {
    let mut out = Vec::new();
    for slice in slices {
        for endpoint in &slice.endpoints {
            for port in &slice.ports {
                out.push(format!("{}={} {}", port.name, endpoint.address, port.port));
            }
        }
    }
    out
}

fn simple() -> Service {
    service(
        json!({"clusterIPs": ["10.96.0.1", "fd00:1::1"], "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}]}),
    )
}

#[test]
fn one_slice_per_family_of_the_service() {
    let pods = [mk_pod("b", 2), mk_pod("a", 1)];
    let both = slices(&simple(), &pods);
    assert_eq!(
        flat(&both),
        [
            "=10.0.0.1 8080",
            "=10.0.0.2 8080",
            "=fd00::1 8080",
            "=fd00::2 8080"
        ]
    );
    let names: Vec<_> = both.iter().map(|s| s.key.to_string()).collect();
    assert_eq!(names, ["x/web-ipv4-0", "x/web-ipv6-1"]);
    assert!(both.iter().all(|s| s.service == "web"));
    assert_eq!(both[0].endpoints[0].node.as_deref(), Some("node-a"));
    assert_eq!(both[0].endpoints[0].zone.as_deref(), Some("z1"));
    assert_eq!(both[0].endpoints[1].zone, None);

    let v6 = service(
        json!({"clusterIP": "fd00:1::1", "selector": {"app": "web"}, "ports": [{"port": 80}]}),
    );
    assert_eq!(flat(&slices(&v6, &pods)), ["=fd00::1 80", "=fd00::2 80"]);
}

#[test]
fn only_live_pods_of_the_namespace_with_every_label_are_selected() {
    let mut pods = [
        mk_pod("a", 1),
        mk_pod("b", 2),
        mk_pod("c", 3),
        mk_pod("d", 4),
    ];
    pods[0].key.namespace = "y".into();
    pods[1].labels.insert("app".into(), "db".into());
    pods[2].phase = PodPhase::Finished;
    assert_eq!(slices(&simple(), &pods)[0].endpoints.len(), 1);

    let nobody = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    assert!(slices(&nobody, &pods).is_empty());
    let both = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}],
        "selector": {"app": "web", "extra": "c"}}));
    assert!(slices(&both, &pods).is_empty());
}

#[test]
fn readiness_follows_the_endpoint_slice_controller() {
    // (ready, terminating, publishNotReady) -> (ready, serving, terminating)
    let table = [
        ((true, false, false), (true, true, false)),
        ((false, false, false), (false, false, false)),
        ((true, true, false), (false, true, true)),
        ((false, false, true), (true, false, false)),
        ((true, true, true), (true, true, true)),
    ];
    for ((ready, terminating, publish), expected) in table {
        let mut service = simple();
        service.publish_not_ready = publish;
        let mut pod = mk_pod("a", 1);
        (pod.ready, pod.terminating) = (ready, terminating);
        let slices = slices(&service, &[pod]);
        let endpoint = &slices[0].endpoints[0];
        assert_eq!(
            (endpoint.ready, endpoint.serving, endpoint.terminating),
            expected
        );
    }
}

#[test]
fn a_named_port_is_looked_up_on_each_pod_by_name_and_protocol() {
    let service = service(
        json!({"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [
            {"name": "web", "port": 80, "targetPort": "http"},
            {"name": "admin", "port": 81, "targetPort": 9000},
        ]}),
    );
    let mut pods = [
        mk_pod("a", 1),
        mk_pod("b", 2),
        mk_pod("c", 3),
        mk_pod("d", 4),
    ];
    named(&mut pods[0], "http", Protocol::Udp, 1);
    named(&mut pods[0], "http", Protocol::Tcp, 8080);
    named(&mut pods[1], "http", Protocol::Tcp, 8081);
    named(&mut pods[3], "http", Protocol::Tcp, 8080);
    let slices = slices(&service, &pods);
    let mut endpoints = flat(&slices);
    endpoints.sort();
    assert_eq!(
        endpoints,
        [
            "admin=10.0.0.1 9000",
            "admin=10.0.0.2 9000",
            "admin=10.0.0.3 9000",
            "admin=10.0.0.4 9000",
            "web=10.0.0.1 8080",
            "web=10.0.0.2 8081",
            "web=10.0.0.4 8080",
        ]
    );
    assert_eq!(slices.len(), 3, "pods with equal ports share a slice");
}

#[test]
fn a_pod_without_any_of_the_ports_has_no_endpoint() {
    let service = service(json!({"clusterIP": "10.96.0.1", "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": "http"}]}));
    assert!(slices(&service, &[mk_pod("a", 1)]).is_empty());
}

#[test]
fn addresses_come_from_the_caller() {
    let mut pod = mk_pod("a", 1);
    pod.ips.clear();
    assert!(slices(&simple(), std::slice::from_ref(&pod)).is_empty());
    let attached: IpAddr = "10.0.0.77".parse().unwrap();
    let slices = slices_for(&simple(), [&pod], |_| [attached], |_| None);
    assert_eq!(flat(&slices), ["=10.0.0.77 8080"]);
}
