#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals read better without a borrow"
)]

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use proxy::model::{
    EndpointSlice, Service, ServiceType, TargetPort, TrafficDistribution, TrafficPolicy,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::model::{Namespace, Node, Pod, PodPhase};
use crate::source::narrow::cut;

mod network_policy;

fn convert<K: Convert + DeserializeOwned>(manifest: Value) -> Result<Option<Object>, String> {
    // As it comes from the API server: what is not read cannot be used.
    let object: K = serde_json::from_value(cut::<K>(&manifest)).unwrap();
    object.convert().map_err(|e| e.to_string())
}

fn namespace(manifest: Value) -> Namespace {
    match convert::<core::Namespace>(manifest) {
        Ok(Some(Object::Namespace(namespace))) => namespace,
        other => panic!("{other:?}"),
    }
}

fn pod(manifest: Value) -> Pod {
    match convert::<core::Pod>(manifest) {
        Ok(Some(Object::Pod(pod))) => pod,
        other => panic!("{other:?}"),
    }
}

fn node(manifest: Value) -> Node {
    match convert::<core::Node>(manifest) {
        Ok(Some(Object::Node(node))) => node,
        other => panic!("{other:?}"),
    }
}

fn service(spec: Value) -> Result<Option<Service>, String> {
    let manifest = json!({"metadata": {"name": "web"}, "spec": spec});
    convert::<core::Service>(manifest).map(|object| match object {
        None => None,
        Some(Object::Service(service)) => Some(service),
        other => panic!("{other:?}"),
    })
}

fn slice(manifest: Value) -> Result<Option<EndpointSlice>, String> {
    convert::<discovery::EndpointSlice>(manifest).map(|object| match object {
        None => None,
        Some(Object::EndpointSlice(slice)) => Some(slice),
        other => panic!("{other:?}"),
    })
}

#[test]
fn an_object_without_a_name_is_refused() {
    let error = convert::<core::Pod>(json!({"metadata": {}})).unwrap_err();
    assert_eq!(error, "metadata.name is missing: name the object");
}

#[test]
fn a_namespaced_object_without_a_namespace_is_in_default() {
    let key = pod(json!({"metadata": {"name": "a"}})).key;
    assert_eq!(key, ObjectKey::new("default", "a"));
}

#[test]
fn a_namespace_has_its_name_as_label_whatever_it_says() {
    let labels = json!({"a": "b", "kubernetes.io/metadata.name": "other"});
    let namespace = namespace(json!({"metadata": {"name": "x", "labels": labels}}));
    assert_eq!(namespace.labels["kubernetes.io/metadata.name"], "x");
    assert_eq!(namespace.labels["a"], "b");
    assert_eq!(Namespace::implicit("x").labels.len(), 1);
}

#[test]
fn a_node_has_its_ip_addresses_and_pod_ranges() {
    let node = node(json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
        ]},
    }));
    assert_eq!(node.addresses.len(), 2);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.zone(), Some("z1"));
}

/// netpol.md 14.
#[test]
fn a_pod_has_the_named_ports_of_containers_and_native_sidecars() {
    let pod = pod(json!({
        "metadata": {"name": "a", "namespace": "x", "creationTimestamp": "1970-01-01T00:01:40Z",
            "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 80},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"containerPort": 99},
            ]}],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always",
                 "ports": [{"name": "side", "containerPort": 15001}]},
                {"name": "setup", "ports": [{"name": "never", "containerPort": 1}]},
            ],
        },
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "False"}]},
    }));
    let ports: Vec<_> = pod
        .ports
        .iter()
        .map(|p| (p.name.as_str(), p.protocol, p.port))
        .collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 80),
            ("dns", Protocol::Udp, 53),
            ("side", Protocol::Tcp, 15001)
        ]
    );
    assert_eq!(pod.ips.len(), 2);
    assert_eq!(pod.created, 100);
    assert!(pod.terminating && !pod.ready && !pod.host_network);
    assert_eq!(pod.node.as_deref(), Some("n1"));
}

#[test]
fn a_pod_without_conditions_is_ready_and_has_its_single_address() {
    let pod = pod(json!({"metadata": {"name": "a"}, "status": {"podIP": "10.0.0.1"}}));
    assert!(pod.ready);
    assert_eq!(pod.ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn finished_pods_and_host_network_pods_own_no_address() {
    for (phase, expected) in [
        ("Pending", PodPhase::Live),
        ("Running", PodPhase::Live),
        ("Unknown", PodPhase::Live),
        ("Succeeded", PodPhase::Finished),
        ("Failed", PodPhase::Finished),
    ] {
        let pod = pod(json!({"metadata": {"name": "a"}, "status": {"phase": phase}}));
        assert_eq!(pod.phase, expected, "{phase}");
        assert_eq!(pod.owns_addresses(), expected == PodPhase::Live);
    }
    let host =
        pod(json!({"metadata": {"name": "a"}, "spec": {"hostNetwork": true, "containers": []}}));
    assert!(!host.owns_addresses());
}

#[test]
fn a_service_has_the_defaults_of_the_api_server() {
    let service = service(json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}));
    let service = service.unwrap().unwrap();
    assert_eq!(service.kind, ServiceType::ClusterIp);
    assert_eq!(
        service.cluster_ips,
        ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(service.external_policy, TrafficPolicy::Cluster);
    assert_eq!(service.affinity_seconds, None);
    let port = &service.ports[0];
    assert_eq!(
        (port.protocol, port.port, port.node_port),
        (Protocol::Tcp, 80, None)
    );
    assert_eq!(port.target_port, TargetPort::Number(80));
    assert!(port.name.is_empty());
}

#[test]
fn a_service_keeps_what_it_says() {
    let manifest = json!({
        "metadata": {"name": "web", "namespace": "x", "uid": "u",
            "annotations": {"a": "b", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.10", "fd00::10"],
            "externalIPs": ["192.0.2.7"], "loadBalancerSourceRanges": [" 10.0.0.0/8"],
            "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "publishNotReadyAddresses": true, "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
                {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"}, {"hostname": "lb.example"},
        ]}},
    });
    let Ok(Some(Object::Service(service))) = convert::<core::Service>(manifest) else {
        panic!("not converted");
    };
    assert_eq!(service.load_balancer_ips.len(), 2);
    assert_eq!(service.affinity_seconds, Some(10_800));
    assert_eq!(service.internal_policy, TrafficPolicy::Local);
    assert_eq!(service.external_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port, Some(32000));
    assert_eq!(service.source_ranges, [" 10.0.0.0/8"]);
    assert_eq!(
        service.ports[0].target_port,
        TargetPort::Name("http".into())
    );
    assert_eq!(service.ports[0].node_port, Some(30080));
    assert_eq!(service.ports[1].target_port, TargetPort::Number(5353));
    assert_eq!(service.annotations.keys().collect::<Vec<_>>(), ["a"]);
    assert!(service.publish_not_ready);
}

/// The address of a load balancer that has none yet is no reason not to serve the others.
#[test]
fn addresses_that_nobody_can_serve_concern_themselves_alone() {
    let manifest = json!({
        "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80}],
            "externalIPs": ["192.0.2.7", "239.0.0.1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "0.0.0.0"}, {"ip": "192.0.2.1"}]}},
    });
    let Ok(Some(Object::Service(service))) = convert::<core::Service>(manifest) else {
        panic!("not converted");
    };
    let cidrs = ["10.96.0.0/16".parse().expect("a range")];
    let mut proxy = proxy::Proxy::new(proxy::NodeIdentity {
        name: "n1".into(),
        zone: None,
    });
    proxy.set_service_cidrs(cidrs);
    proxy.apply_service(service);
    let status = proxy.services().next().expect("a Service");
    let served: Vec<_> = status.frontends.iter().map(|f| f.id.to_string()).collect();
    assert_eq!(
        served,
        ["10.96.0.10:80/TCP", "192.0.2.1:80/TCP", "192.0.2.7:80/TCP"]
    );
    let problems = status.problems.join("\n");
    for named in ["load balancer address 0.0.0.0", "externalIP 239.0.0.1"] {
        assert!(problems.contains(named), "{problems}");
    }
}

/// An API server of a later version may know more of them.
#[test]
fn a_traffic_distribution_that_is_not_known_is_no_reason_not_to_serve() {
    for (text, expected) in [
        (json!(null), TrafficDistribution::None),
        (json!("PreferClose"), TrafficDistribution::SameZone),
        (json!("PreferSameZone"), TrafficDistribution::SameZone),
        (json!("PreferSameNode"), TrafficDistribution::SameNode),
        (json!("PreferSameRack"), TrafficDistribution::Unknown),
    ] {
        let read = service(json!({"clusterIP": "10.96.0.10", "trafficDistribution": text}));
        let Ok(Some(read)) = read else {
            panic!("{text}: {read:?}");
        };
        assert_eq!(read.traffic_distribution, expected, "{text}");
    }
}

#[test]
fn services_that_nobody_serves_here_are_left_out() {
    assert_eq!(
        service(json!({"type": "ExternalName", "externalName": "a.example"})),
        Ok(None)
    );
    assert_eq!(service(json!({"clusterIP": "None"})), Ok(None));
    assert_eq!(
        service(json!({"clusterIPs": ["None"], "clusterIP": "None"})),
        Ok(None)
    );
    for label in [service::PROXY_NAME, service::HEADLESS] {
        let manifest = json!({"metadata": {"name": "a", "labels": {label: ""}},
            "spec": {"clusterIP": "10.0.0.1"}});
        assert_eq!(convert::<core::Service>(manifest), Ok(None));
    }
}

#[test]
fn a_service_that_is_wrong_says_where_and_what_to_do() {
    let table = [
        (
            json!({"ports": [{"port": 80}]}),
            "spec.clusterIP is missing: set spec.clusterIP",
        ),
        (json!({"clusterIP": ""}), "spec.clusterIP is missing"),
        (
            json!({"clusterIP": "10.0.0.300"}),
            "spec.clusterIPs[0] is \"10.0.0.300\"",
        ),
        (json!({"clusterIP": "0.0.0.0"}), "spec.clusterIPs[0]"),
        (
            json!({"clusterIPs": ["10.0.0.1", "ff02::1"]}),
            "spec.clusterIPs[1] is \"ff02::1\"",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "externalIPs": ["10.0.0"]}),
            "spec.externalIPs[0] is \"10.0.0\"",
        ),
        (
            json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
            "two addresses of one family",
        ),
        (
            json!({"type": "Cluster", "clusterIP": "10.0.0.1"}),
            "spec.type is \"Cluster\"",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "sessionAffinity": "Client"}),
            "spec.sessionAffinity",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            "use 1 to 86400",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "externalTrafficPolicy": "local"}),
            "use Cluster or Local",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 0}]}),
            "spec.ports[0].port is \"0\"",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 65536}]}),
            "use a port from 1",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 1, "protocol": "tcp"}]}),
            "in capitals",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 1, "targetPort": "80"}]}),
            "without quotes",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 1}, {"port": 2}]}),
            "ports[0].name is missing",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}),
            "spec.ports[1].name is \"a\"",
        ),
        (
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}),
            "spec.ports[1].port is \"1\"",
        ),
    ];
    for (spec, expected) in table {
        let error = service(spec.clone()).unwrap_err();
        assert!(error.contains(expected), "{spec}: {error}");
    }
}

#[test]
fn a_slice_has_the_condition_defaults_of_the_api() {
    let slice = slice(json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}, {"name": "all"}, {"name": "zero", "port": 0}],
        "endpoints": [
            {"addresses": ["10.0.0.1", "10.0.0.9"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "nodeName": "n1", "zone": "z1",
             "conditions": {"ready": false, "serving": true, "terminating": true},
             "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}},
        ],
    }));
    let slice = slice.unwrap().unwrap();
    assert_eq!(slice.service, "web");
    assert_eq!(slice.ports.len(), 1);
    let conditions: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| (e.ready, e.serving, e.terminating))
        .collect();
    assert_eq!(
        conditions,
        [
            (true, true, false),
            (false, false, false),
            (false, true, true)
        ]
    );
    assert_eq!(
        slice.endpoints[0].address,
        "10.0.0.1".parse::<std::net::IpAddr>().unwrap()
    );
    assert_eq!(slice.endpoints[2].hint_zones, ["z1"]);
    assert_eq!(slice.endpoints[2].hint_nodes, ["n1"]);
}

#[test]
fn weights_and_the_pods_of_endpoints_are_read_as_they_are() {
    let weight = json!({"trammel.io/weight": " 3"});
    let read = pod(json!({"metadata": {"name": "web", "annotations": weight}}));
    assert_eq!(read.weight.as_deref(), Some(" 3"));
    assert_eq!(pod(json!({"metadata": {"name": "web"}})).weight, None);
    let slice = slice(json!({
        "metadata": {"name": "web-1", "annotations": weight,
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-0"}},
            {"addresses": ["10.0.0.2"], "targetRef": {"kind": "Node", "name": "n1"}},
            {"addresses": ["10.0.0.3"]},
        ],
    }))
    .unwrap()
    .unwrap();
    assert_eq!(slice.weight.as_deref(), Some(" 3"));
    let pods = slice
        .endpoints
        .iter()
        .map(|endpoint| endpoint.pod.as_deref());
    assert_eq!(pods.collect::<Vec<_>>(), [Some("web-0"), None, None]);
}

#[test]
fn slices_of_nobodys_service_are_left_out_and_wrong_ones_refused() {
    let labels = json!({"kubernetes.io/service-name": "web"});
    let with = |labels: &Value, address_type: &str, address: &str| {
        slice(
            json!({"metadata": {"name": "s", "labels": labels}, "addressType": address_type,
            "endpoints": [{"addresses": [address]}]}),
        )
    };
    assert_eq!(with(&json!({}), "IPv4", "10.0.0.1"), Ok(None));
    assert_eq!(with(&labels, "FQDN", "a.example"), Ok(None));
    let headless = json!({"kubernetes.io/service-name": "web", service::HEADLESS: ""});
    assert_eq!(with(&headless, "IPv4", "10.0.0.1"), Ok(None));
    assert!(
        with(&labels, "IPv4", "fd00::1")
            .unwrap_err()
            .contains("endpoints[0].addresses[0]")
    );
    assert!(
        with(&labels, "ipv4", "10.0.0.1")
            .unwrap_err()
            .contains("addressType")
    );
}
