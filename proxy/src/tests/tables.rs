//! Tables over whole Services: what kube-proxy makes of traffic policies, hints and
//! conditions (`CategorizeEndpoints`) and of several slices (its slice cache), with other
//! means: packets through the rules, and what `services` shows.

use super::harness::*;
use crate::model::{EndpointSlice, Protocol, Service, ServiceType, SliceEndpoint, TrafficPolicy};

/// The endpoint of that number, in two letters: `r` is ready, `u` is not, `t` terminates and
/// serves, a capital one is on this node; then the zone that it is hinted for.
fn endpoint(number: usize, letters: &str) -> SliceEndpoint {
    let ip = format!("10.1.0.{number}");
    let (condition, zone) = letters.split_at(1);
    let mut endpoint = match condition.to_lowercase().as_str() {
        "r" => ready(&ip),
        "u" => unready(&ip),
        "t" => terminating(&ip),
        other => panic!("no condition {other}"),
    };
    endpoint.hint_zones = zone.chars().map(|zone| format!("zone-{zone}")).collect();
    if condition == condition.to_uppercase() {
        endpoint = here(endpoint);
    }
    endpoint
}

/// What a walk comes to, in a word: the numbers of the endpoints, or what is done instead.
fn short(ends: &std::collections::BTreeSet<String>) -> String {
    let words: Vec<_> = ends
        .iter()
        .map(|end| end.trim_end_matches(" masqueraded"))
        .map(|end| end.trim_start_matches("10.1.0.").trim_end_matches(":80"))
        .collect();
    words.join(" ")
}

const LOCAL: [TrafficPolicy; 2] = [TrafficPolicy::Local; 2];
const CLUSTER: [TrafficPolicy; 2] = [TrafficPolicy::Cluster; 2];
const INTERNAL: [TrafficPolicy; 2] = [TrafficPolicy::Local, TrafficPolicy::Cluster];
const EXTERNAL: [TrafficPolicy; 2] = [TrafficPolicy::Cluster, TrafficPolicy::Local];

/// The node is in zone a. Columns: internal and external policy; endpoints; where a pod comes
/// by the cluster IP, somebody outside by the node port, and a pod by the node port.
type Row<'a> = ([TrafficPolicy; 2], &'a str, [&'a str; 3]);

const ROWS: [Row<'_>; 34] = [
    (CLUSTER, "", ["refused", "refused", "refused"]),
    (INTERNAL, "", ["refused", "refused", "refused"]),
    (EXTERNAL, "", ["refused", "refused", "refused"]),
    (LOCAL, "", ["refused", "refused", "refused"]),
    // Conditions.
    (CLUSTER, "u u", ["refused", "refused", "refused"]),
    (CLUSTER, "u r", ["1", "1", "1"]),
    (CLUSTER, "T t", ["0 1", "0 1", "0 1"]),
    (CLUSTER, "t r T", ["1", "1", "1"]),
    (CLUSTER, "R r", ["0 1", "0 1", "0 1"]),
    (LOCAL, "u U", ["refused", "refused", "refused"]),
    // Traffic policies.
    (INTERNAL, "r r", ["dropped", "0 1", "0 1"]),
    (INTERNAL, "R R", ["0 1", "0 1", "0 1"]),
    (INTERNAL, "R r", ["0", "0 1", "0 1"]),
    (INTERNAL, "r R", ["1", "0 1", "0 1"]),
    (EXTERNAL, "r r", ["0 1", "dropped", "0 1"]),
    (EXTERNAL, "R r", ["0 1", "0", "0 1"]),
    (LOCAL, "R r", ["0", "0", "0 1"]),
    (LOCAL, "r r", ["dropped", "dropped", "0 1"]),
    (LOCAL, "t t", ["dropped", "dropped", "0 1"]),
    (LOCAL, "T t", ["0", "0", "0 1"]),
    (LOCAL, "U r", ["dropped", "dropped", "1"]),
    (EXTERNAL, "r U T t", ["0", "2", "0"]),
    (INTERNAL, "r U T t", ["2", "0", "0"]),
    (EXTERNAL, "r R T t", ["0 1", "1", "0 1"]),
    // Hints.
    (CLUSTER, "ra rb rc ra", ["0 3", "0 3", "0 3"]),
    (CLUSTER, "ra rb rc ua", ["0", "0", "0"]),
    (CLUSTER, "ua rb rc ua", ["1 2", "1 2", "1 2"]),
    (CLUSTER, "ra rb r ra", ["0 1 2 3", "0 1 2 3", "0 1 2 3"]),
    (CLUSTER, "rabc rba rbd ra", ["0 1 3", "0 1 3", "0 1 3"]),
    (CLUSTER, "rb", ["0", "0", "0"]),
    (CLUSTER, "ta tb", ["0 1", "0 1", "0 1"]),
    // Where a policy says which, hints say nothing.
    (EXTERNAL, "Ra Rb rc ra", ["0 3", "0 1", "0 3"]),
    (INTERNAL, "Ra Rb rc ra", ["0 1", "0 3", "0 3"]),
    (EXTERNAL, "Ra Rb ra rb", ["0 2", "0 1", "0 2"]),
];

#[test]
fn endpoints_by_policy_condition_and_hint() {
    for ([internal_policy, external_policy], endpoints, expected) in ROWS {
        let mut service = Service {
            kind: ServiceType::NodePort,
            internal_policy,
            external_policy,
            ..service("web", &["10.96.0.1"], HTTP)
        };
        service.ports[0].node_port = Some(30_080);
        let endpoints_of = endpoints.split_whitespace().enumerate();
        let slice = slice(
            "web-1",
            "web",
            HTTP,
            endpoints_of.map(|(n, e)| endpoint(n, e)),
        );
        let mut node = Node::with([service.clone()], [slice]);
        node.set_zone("zone-a");
        node.settle();
        let walks = [
            (From::Pod, "10.96.0.1:80"),
            (From::Outside, "192.0.2.2:30080"),
            (From::Pod, "192.0.2.2:30080"),
        ];
        let found = walks.map(|(from, to)| short(&node.walk(from, to)));
        assert_eq!(
            found, expected,
            "{internal_policy:?} {external_policy:?} {endpoints}"
        );
        // The external policy is nothing to a Service that is not reached from outside.
        node.proxy.apply_service(Service {
            kind: ServiceType::ClusterIp,
            ..service
        });
        node.settle();
        let [internal, ..] = found;
        let inside = short(&node.walk(From::Pod, "10.96.0.1:80"));
        assert_eq!(inside, internal, "{endpoints}");
        let nobody = short(&node.walk(From::Outside, "192.0.2.2:30080"));
        assert_eq!(nobody, "untouched", "{endpoints}");
    }
}

const WEB: &[Port<'_>] = &[("http", Protocol::Tcp, 80), ("https", Protocol::Tcp, 443)];

/// A slice of the Service `web`, its endpoints `10.1.0.N` as [`endpoint`] has them.
fn web(name: &str, port: u16, endpoints: &[(usize, &str)]) -> EndpointSlice {
    let endpoints = endpoints.iter().map(|(n, letters)| endpoint(*n, letters));
    slice(name, "web", &[("http", Protocol::Tcp, port)], endpoints)
}

/// The endpoints of the port 80 as `services` shows them.
fn shown(node: &Node) -> Vec<String> {
    let status = node.proxy.service(&key("web")).expect("a Service");
    let frontend = status.frontends.first().expect("a frontend");
    let endpoints = frontend.endpoints.iter().map(|endpoint| {
        let text = endpoint.to_string();
        let (_, rest) = text.split_once("10.1.0.").expect("an address");
        rest.trim_end_matches(" on node-2").to_owned()
    });
    endpoints.collect()
}

#[test]
fn slices_of_a_service_are_one_list() {
    let r = |numbers: std::ops::RangeInclusive<usize>| -> Vec<(usize, &str)> {
        numbers.map(|number| (number, "r")).collect()
    };
    let other = |service: &str, namespace: &str| {
        let mut slice = web("other", 80, &[(9, "r")]);
        slice.service = service.into();
        slice.key.namespace = namespace.into();
        slice
    };
    let mut no_port = web("web-2", 80, &[(2, "r")]);
    no_port.ports.clear();
    let rows: [(&str, Vec<EndpointSlice>, &[&str]); 9] = [
        (
            "side by side",
            vec![web("web-1", 80, &r(1..=2)), web("web-2", 80, &r(3..=3))],
            &["1:80 ready", "2:80 ready", "3:80 ready"],
        ),
        (
            "overlapping",
            vec![web("web-1", 80, &r(1..=2)), web("web-2", 80, &r(1..=3))],
            &["1:80 ready", "2:80 ready", "3:80 ready"],
        ),
        (
            "ready in one of them",
            vec![
                web("web-1", 80, &[(1, "u"), (2, "r"), (3, "u")]),
                web("web-2", 80, &[(1, "r"), (2, "u"), (3, "u")]),
            ],
            &["1:80 ready", "2:80 ready", "3:80"],
        ),
        (
            "terminating in one of them",
            vec![
                web("web-1", 80, &[(1, "t"), (2, "u"), (3, "t")]),
                web("web-2", 80, &[(1, "r"), (2, "t"), (3, "t")]),
            ],
            &[
                "1:80 ready",
                "2:80 serving terminating",
                "3:80 serving terminating",
            ],
        ),
        (
            "here in one of them",
            vec![web("web-1", 80, &[(1, "r")]), web("web-2", 80, &[(1, "R")])],
            &["1:80 ready on node-1"],
        ),
        (
            "unready in all",
            vec![web("web-1", 80, &[(1, "u")]), web("web-2", 80, &[(1, "u")])],
            &["1:80"],
        ),
        (
            "one address with two ports",
            vec![
                web("web-1", 80, &[(1, "r")]),
                web("web-2", 8080, &[(1, "r")]),
            ],
            &["1:80 ready", "1:8080 ready"],
        ),
        (
            "of others",
            vec![
                web("web-1", 80, &[(1, "r")]),
                other("api", "default"),
                other("web", "elsewhere"),
            ],
            &["1:80 ready"],
        ),
        (
            "without a number for the port",
            vec![web("web-1", 80, &[(1, "r")]), no_port],
            &["1:80 ready"],
        ),
    ];
    for (name, slices, expected) in rows {
        for slices in [slices.clone(), slices.into_iter().rev().collect()] {
            let node = Node::with([service("web", &["10.96.0.1"], WEB)], slices);
            let found: Vec<_> = shown(&node)
                .iter()
                .map(|text| text.trim().to_owned())
                .collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}

/// What a slice is again, in whatever order, the kernel has already.
#[test]
fn a_slice_costs_what_is_new_in_it() {
    let both = [("http", Protocol::Tcp, 80), ("https", Protocol::Tcp, 443)];
    let of = |ports: &[Port<'_>], numbers: &[usize]| {
        let endpoints = numbers.iter().map(|number| endpoint(*number, "r"));
        slice("web-1", "web", ports, endpoints)
    };
    let before = of(&both, &[1, 2, 3]);
    let rows = [
        ("itself", before.clone(), false),
        (
            "ports in another order",
            of(&[both[1], both[0]], &[1, 2, 3]),
            false,
        ),
        ("endpoints in another order", of(&both, &[3, 1, 2]), false),
        ("a port less", of(&both[..1], &[1, 2, 3]), true),
        ("an endpoint more", of(&both, &[1, 2, 3, 4]), true),
        ("an endpoint less", of(&both, &[1, 3]), true),
        (
            "another port",
            of(&[both[0], ("https", Protocol::Tcp, 8443)], &[1, 2, 3]),
            true,
        ),
    ];
    for (name, after, is_new) in rows {
        let mut node = Node::with([service("web", &["10.96.0.1"], &both)], [before.clone()]);
        let is_same = after == before;
        assert!(node.proxy.apply_slice(after) != is_same, "{name}");
        assert_eq!(node.operations() > 0, is_new, "{name}");
        // And back.
        node.proxy.apply_slice(before.clone());
        assert_eq!(node.operations() > 0, is_new, "{name}");
    }
}
