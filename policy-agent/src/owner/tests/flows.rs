//! What conntrack and the affinity map must forget.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use dataplane::kernel::StaleFlow;
use dataplane::layout::INET;
use dataplane::layout::services::{
    AFFINITY, AFFINITY_GROUPS, AffinityGroup, AffinityKey, endpoint_data, frontend_key,
};
use dataplane::object::{Element, IpFamily};
use proxy::model::{Protocol, ServiceType};

use super::harness::{Failure, Node, World};
use super::objects::{ip, model_service, service, slice};
use crate::addresses::HostAddresses;
use crate::config::services::ServiceConfig;
use crate::event::Object;

const NODE_IPS: [&str; 2] = ["192.0.2.2", "192.0.2.3"];

/// A Service with a node port, its one port over that protocol.
fn of(protocol: Protocol) -> Object {
    let mut service = model_service("x/web", "10.96.0.10", "web");
    service.kind = ServiceType::NodePort;
    service.ports[0].protocol = protocol;
    service.ports[0].port = 80;
    service.ports[0].node_port = Some(30_080);
    Object::Service(service)
}

fn endpoints(protocol: Protocol, addresses: &[&str]) -> Object {
    let Object::EndpointSlice(mut slice) = slice("x/web-1", "web", addresses) else {
        panic!("a slice");
    };
    slice.ports[0].protocol = protocol;
    Object::EndpointSlice(slice)
}

fn node(objects: impl IntoIterator<Item = Object>) -> Node {
    let mut node = Node::new();
    node.owner.configure_services(&ServiceConfig::default());
    let addresses: BTreeSet<_> = NODE_IPS.map(ip).into();
    node.owner.set_host_addresses(HostAddresses {
        all: addresses.clone(),
        of_default_routes: addresses,
    });
    node.list(&World::of(objects));
    node.settle();
    node
}

/// The flows that were forgotten since the last call, sorted: from where to where.
fn forgotten(node: &mut Node, seen: &mut usize) -> Vec<(u8, String, String)> {
    let all = node.kernel().fake.forgotten();
    let new: BTreeSet<&StaleFlow> = all[*seen..].iter().collect();
    let texts = new.into_iter().map(|flow| {
        let (frontend, endpoint) = (flow.frontend.to_string(), flow.endpoint.to_string());
        (flow.protocol, frontend, endpoint)
    });
    let texts = texts.collect();
    *seen = all.len();
    texts
}

/// services.md 46: what thousands of slots lead to is looked through once, not for each of them.
#[test]
fn flows_to_half_of_thousands_of_endpoints_are_forgotten() {
    let all: Vec<_> = (0..5_000u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            format!("10.1.{high}.{low}")
        })
        .collect();
    let all: Vec<_> = all.iter().map(|text| &**text).collect();
    let (gone, kept) = all.split_at(2_500);
    let mut node = node([of(Protocol::Udp), endpoints(Protocol::Udp, &all)]);
    let mut seen = node.kernel().fake.forgotten().len();
    node.apply(endpoints(Protocol::Udp, kept));
    let of_vip = forgotten(&mut node, &mut seen).into_iter();
    let of_vip = of_vip.filter(|(_, frontend, _)| frontend == "10.96.0.10:80");
    let expected = gone.iter().map(|endpoint| format!("{endpoint}:8080"));
    let found: BTreeSet<_> = of_vip.map(|(.., endpoint)| endpoint).collect();
    assert_eq!(found, expected.collect());
}

/// services.md 40 to 43: by every frontend, and node ports on the node's addresses only.
#[test]
fn flows_over_udp_and_sctp_are_forgotten_with_their_endpoint() {
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let mut node = node([of(protocol)]);
        let mut seen = 0;
        assert_eq!(forgotten(&mut node, &mut seen), []);
        let frontends = ["10.96.0.10:80", "192.0.2.2:30080", "192.0.2.3:30080"];
        let to = |endpoint: Option<&str>| -> Vec<_> {
            let flow = |frontend: &str| {
                let endpoint = endpoint.unwrap_or(frontend);
                (protocol.number(), frontend.to_owned(), endpoint.to_owned())
            };
            frontends.map(flow).into()
        };
        // Those that were there before the first endpoint are not translated.
        node.apply(endpoints(protocol, &["10.99.0.2", "10.99.0.3"]));
        assert_eq!(forgotten(&mut node, &mut seen), to(None));
        // The other endpoint moves to another slot: its flows stay.
        node.apply(endpoints(protocol, &["10.99.0.3"]));
        assert_eq!(forgotten(&mut node, &mut seen), to(Some("10.99.0.2:8080")));
        node.apply(endpoints(protocol, &["10.99.0.3", "10.99.0.4"]));
        assert_eq!(forgotten(&mut node, &mut seen), []);
        node.delete(&of(protocol));
        let mut both = to(Some("10.99.0.3:8080"));
        both.extend(to(Some("10.99.0.4:8080")));
        both.sort();
        assert_eq!(forgotten(&mut node, &mut seen), both);
    }
}

#[test]
fn connections_over_tcp_end_by_themselves() {
    let mut node = node([of(Protocol::Tcp), endpoints(Protocol::Tcp, &["10.99.0.2"])]);
    node.apply(endpoints(Protocol::Tcp, &["10.99.0.3"]));
    node.delete(&of(Protocol::Tcp));
    assert_eq!(node.kernel().fake.forgotten(), []);
}

/// Regression for a restart: what is right in the kernel is no reason to look for flows.
#[test]
fn an_adoption_forgets_no_flow_that_is_right() {
    let objects = || [of(Protocol::Udp), endpoints(Protocol::Udp, &["10.99.0.2"])];
    let mut node = node(objects());
    let before = node.kernel().fake.forgotten().len();
    node.restart();
    node.owner.configure_services(&ServiceConfig::default());
    let addresses: BTreeSet<_> = NODE_IPS.map(ip).into();
    node.owner.set_host_addresses(HostAddresses {
        all: addresses.clone(),
        of_default_routes: addresses,
    });
    node.list(&World::of(objects()));
    node.settle();
    assert_eq!(node.kernel().fake.forgotten().len(), before);
}

fn sticky(seconds: Option<u32>) -> Object {
    let Object::Service(mut service) = of(Protocol::Tcp) else {
        panic!("a Service");
    };
    service.affinity_seconds = seconds;
    Object::Service(service)
}

/// The group of the Service.
fn group(node: &mut Node) -> AffinityGroup {
    let ruleset = node.ruleset();
    let groups = &ruleset.tables[&*INET].sets[AFFINITY_GROUPS.of(IpFamily::V4)];
    let element = &groups.elements[&frontend_key(ip("10.96.0.10"), 6, 80)];
    AffinityGroup::of_element(IpFamily::V4, element).expect("a group")
}

/// As the rules would: the client went by a frontend of the group to the endpoint.
fn learn(node: &mut Node, client: &str, group: AffinityGroup, endpoint: &str) {
    let endpoint = endpoint.parse::<SocketAddr>().expect("ip:port");
    let client = ip(client);
    let key = AffinityKey { client, group }.build();
    let element = Element::data(endpoint_data(endpoint.ip(), endpoint.port()));
    node.kernel().fake.tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&*INET).expect("the table");
        let map = table.sets.get_mut(AFFINITY.of(IpFamily::V4));
        map.expect("the map").elements.insert(key, element);
    });
}

fn learnt(node: &mut Node) -> usize {
    let ruleset = node.ruleset();
    let map = &ruleset.tables[&*INET].sets[AFFINITY.of(IpFamily::V4)];
    map.elements.len()
}

/// Two clients at one endpoint, one at the other, one of another Service.
fn learn_all(node: &mut Node) {
    let group = group(node);
    learn(node, "10.88.0.2", group, "10.99.0.2:8080");
    learn(node, "10.88.0.3", group, "10.99.0.2:8080");
    learn(node, "10.88.0.4", group, "10.99.0.3:8080");
    let other = AffinityGroup::new(77);
    learn(node, "10.88.0.2", other, "10.99.0.2:8080");
}

/// The same by its cluster IP alone.
fn without_node_port() -> Object {
    let Object::Service(mut service) = sticky(Some(10_800)) else {
        panic!("a Service");
    };
    service.kind = ServiceType::ClusterIp;
    Object::Service(service)
}

type Change = fn(&mut Node);

/// services.md 36, 37.
#[test]
fn clients_are_forgotten_with_what_they_went_to() {
    let two = || endpoints(Protocol::Tcp, &["10.99.0.2", "10.99.0.3"]);
    let cases: [(Change, usize); 5] = [
        (
            |node| node.apply(endpoints(Protocol::Tcp, &["10.99.0.3"])),
            2,
        ),
        (|node| node.apply(sticky(Some(60))), 1),
        (|node| node.apply(sticky(None)), 1),
        (|node| node.delete(&sticky(None)), 1),
        // The clients of a frontend that goes may come by another.
        (|node| node.apply(without_node_port()), 4),
    ];
    for (change, left) in cases {
        let mut node = node([sticky(Some(10_800)), two()]);
        learn_all(&mut node);
        // Others leave it alone.
        node.apply(service("x/other", "10.96.0.11", "other"));
        assert_eq!(learnt(&mut node), 4);
        change(&mut node);
        assert_eq!(learnt(&mut node), left);
        assert!(node.owner.is_synced());
        assert!(!node.owner.check().expect("a look"), "no drift");
    }
}

#[test]
fn a_clean_up_that_fails_is_counted_and_done_by_the_next_sync() {
    let two = endpoints(Protocol::Tcp, &["10.99.0.2", "10.99.0.3"]);
    let mut node = node([sticky(Some(10_800)), two]);
    learn_all(&mut node);
    // The endpoint goes; its clients do not.
    node.kernel().failures = [None, Some(Failure::Before)].into();
    node.apply(endpoints(Protocol::Tcp, &["10.99.0.3"]));
    assert_eq!(node.owner.take_observations().cleanup_failures, 1);
    assert_eq!(learnt(&mut node), 2);
}

/// A packet may be past the balancer when its endpoint goes, and learn it a moment later.
#[test]
fn what_is_learnt_during_the_commit_is_forgotten_by_the_next_sync() {
    let two = endpoints(Protocol::Tcp, &["10.99.0.2", "10.99.0.3"]);
    let mut node = node([sticky(Some(10_800)), two]);
    let group = group(&mut node);
    let one = endpoints(Protocol::Tcp, &["10.99.0.3"]);
    node.owner.handle(crate::event::Event::Apply(one));
    node.owner.sync().expect("the kernel takes it");
    learn(&mut node, "10.88.0.2", group, "10.99.0.2:8080");
    assert!(node.owner.is_dirty(), "there is a second look");
    node.settle();
    assert_eq!(learnt(&mut node), 0);
}
