//! Short ways to write objects.

use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey, MacAddr, Mode, PodRef};
use proxy::model::{
    EndpointSlice, ObjectKey, Protocol, Service, ServicePort, ServiceType, SliceEndpoint,
    SlicePort, TargetPort, TrafficDistribution, TrafficPolicy,
};

use crate::event::Object;
use crate::model::cluster_policy::{Action, ClusterNetworkPolicy, ClusterRule, PodSelection, Tier};
use crate::model::policy::{Peer, Peers, Ports, Rule};
use crate::model::selector::Requirement;
use crate::model::{LabelSelector, Labels, Namespace, NetworkPolicy, Node, Pod, PodPhase};

pub(super) const NODE: &str = "n1";

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `namespace/name`.
pub(super) fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ObjectKey::new(namespace, name)
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub(super) fn app(value: &str) -> LabelSelector {
    let requirement = Requirement::parse("app", "In", vec![value]);
    LabelSelector::new([requirement.expect("a requirement")])
}

pub(super) fn namespace(name: &str) -> Object {
    Object::Namespace(Namespace {
        name: name.into(),
        labels: labels(&[("kubernetes.io/metadata.name", name)]),
    })
}

pub(super) fn node(name: &str, zone: Option<&str>) -> Object {
    let zone = zone.map(|zone| ("topology.kubernetes.io/zone", zone));
    Object::Node(Node {
        name: name.into(),
        labels: labels(zone.as_slice()),
        addresses: Vec::new(),
        internal_addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        taints: Vec::new(),
        terminating: false,
        created: 0,
    })
}

/// A ready pod of this node.
pub(super) fn model_pod(name: &str, address: &str, app: &str) -> Pod {
    Pod {
        key: key(name),
        uid: format!("uid-{name}"),
        labels: labels(&[("app", app)]),
        node: Some(NODE.into()),
        host_network: false,
        ips: (!address.is_empty())
            .then(|| ip(address))
            .into_iter()
            .collect(),
        ports: Vec::new(),
        phase: PodPhase::Live,
        ready: true,
        terminating: false,
        created: 0,
        weight: None,
    }
}

pub(super) fn pod(name: &str, address: &str, app: &str) -> Object {
    Object::Pod(model_pod(name, address, app))
}

pub(super) fn model_service(name: &str, address: &str, app: &str) -> Service {
    Service {
        key: key(name),
        uid: format!("uid-{name}"),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![ip(address)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            target_port: TargetPort::Number(8080),
        }],
        selector: labels(&[("app", app)]),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        publish_not_ready: false,
        traffic_distribution: TrafficDistribution::None,
        health_check_node_port: None,
        annotations: Labels::new(),
    }
}

/// Port 80 to 8080 of the pods with that label.
pub(super) fn service(name: &str, address: &str, app: &str) -> Object {
    Object::Service(model_service(name, address, app))
}

pub(super) fn endpoint(address: IpAddr) -> SliceEndpoint {
    SliceEndpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
        pod: None,
    }
}

/// Ready endpoints at port 8080.
pub(super) fn slice(name: &str, service: &str, addresses: &[&str]) -> Object {
    Object::EndpointSlice(EndpointSlice {
        key: key(name),
        service: service.into(),
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: addresses.iter().map(|text| endpoint(ip(text))).collect(),
        triggered: None,
        weight: None,
    })
}

fn ingress(name: &str, selected: &str, rules: Vec<Rule>) -> Object {
    Object::NetworkPolicy(NetworkPolicy {
        key: key(name),
        uid: String::new(),
        pod_selector: app(selected),
        ingress: Some(rules),
        egress: None,
        audit: false,
        problems: Vec::new(),
        notes: Vec::new(),
    })
}

/// Isolates the pods with that label against ingress.
pub(super) fn deny(name: &str, selected: &str) -> Object {
    ingress(name, selected, Vec::new())
}

/// Allows ingress from the pods with the label `from` alone.
pub(super) fn allow(name: &str, selected: &str, from: &str) -> Object {
    let peer = Peer::Pods {
        namespaces: None,
        pods: app(from),
    };
    let rule = Rule {
        peers: Peers::Of(vec![peer]),
        ports: Ports::Any,
    };
    ingress(name, selected, vec![rule])
}

/// Denies pods with the label `selected` ingress from those with the label `from`, of any
/// namespace.
pub(super) fn quarantine(name: &str, selected: &str, from: &str) -> Object {
    let peer = Peer::Pods {
        namespaces: Some(LabelSelector::everything()),
        pods: app(from),
    };
    Object::ClusterNetworkPolicy(ClusterNetworkPolicy {
        name: name.into(),
        uid: String::new(),
        tier: Tier::Admin,
        priority: 0,
        subject: PodSelection {
            namespaces: LabelSelector::everything(),
            pods: app(selected),
        },
        ingress: vec![ClusterRule {
            name: String::new(),
            action: Action::Deny,
            matches: Rule {
                peers: Peers::Of(vec![peer]),
                ports: Ports::Any,
            },
        }],
        egress: Vec::new(),
        audit: false,
        problems: Vec::new(),
    })
}

/// An attachment of the container, of a pod with the UID that [`pod`] gives it.
pub(super) fn attachment(container: &str, pod: Option<&str>, addresses: &[&str]) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    };
    let ips: Vec<_> = addresses.iter().map(|text| ip(text)).collect();
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: Mode::RoutedPorts,
        bridge: Some("cbr0".into()),
        mac: MacAddr::of_pod(&ips).expect("an address"),
        ips,
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
        undo: Default::default(),
        pod: pod.map(|name| PodRef {
            namespace: self::key(name).namespace.to_string(),
            name: self::key(name).name.to_string(),
            uid: Some(format!("uid-{name}")),
        }),
    }
}
