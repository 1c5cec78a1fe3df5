//! What `services` shows.

use super::harness::*;
use crate::ProxyConfig;
use crate::model::Protocol::Tcp;
use crate::model::{Service, ServiceType, TrafficPolicy};
use crate::{FrontendState, ServiceStatus};

#[test]
fn services_are_sorted_and_show_all_their_endpoints() {
    let ports = [("http", Tcp, 80)];
    let node = Node::with(
        [
            service("web", &["10.96.0.1"], &ports),
            service("db", &["10.96.0.2"], HTTP),
        ],
        [slice(
            "web-1",
            "web",
            &[("http", Tcp, 8080)],
            [
                here(ready("10.1.0.2")),
                unready("10.1.0.1"),
                ready("10.1.0.3"),
            ],
        )],
    );
    let text: Vec<_> = node.proxy.services().map(|s| s.to_string()).collect();
    assert_eq!(
        text,
        [
            "default/db\n  \
             10.96.0.2:80/TCP refused: no usable endpoint",
            "default/web\n  \
             10.96.0.1:80/TCP http to all ready endpoints\n    \
             -: 10.1.0.1:8080 on node-2\n    \
             0: 10.1.0.2:8080 ready on node-1\n    \
             1: 10.1.0.3:8080 ready on node-2",
        ]
    );
}

#[test]
fn the_json_form_is_flat_and_reads_back() {
    let mut local = service("web", &["10.96.0.1", "fd96::1"], HTTP);
    local.internal_policy = TrafficPolicy::Local;
    let node = Node::with(
        [local],
        [slice(
            "web-1",
            "web",
            HTTP,
            [here(ready("10.1.0.1")), ready("fd10::1")],
        )],
    );
    let statuses: Vec<ServiceStatus> = node.proxy.services().collect();
    let json = serde_json::to_value(&statuses).expect("JSON");
    let web = &json[0];
    assert_eq!(
        (&web["namespace"], &web["name"]),
        (&"default".into(), &"web".into())
    );
    let [v4, v6] = [&web["frontends"][0], &web["frontends"][1]];
    assert_eq!(v4["address"], "10.96.0.1");
    assert_eq!(v4["protocol"], "TCP");
    assert_eq!(v4["kind"], "clusterIp");
    assert_eq!(
        (&v4["state"], &v4["by"]),
        (&"served".into(), &"local".into())
    );
    assert_eq!(v4["endpoints"][0]["slot"], 0);
    assert_eq!(v4["endpoints"][0]["node"], NODE);
    assert_eq!(v6["state"], "dropped");
    assert!(v6["endpoints"][0]["slot"].is_null());
    let back: Vec<ServiceStatus> = serde_json::from_value(json).expect("the same");
    assert_eq!(back, statuses);
}

#[test]
fn a_lost_frontend_names_its_owner_and_uses_no_slot() {
    let node = Node::with(
        [
            service("a", &["10.96.0.1"], HTTP),
            service("b", &["10.96.0.1"], HTTP),
        ],
        [
            slice("a", "a", HTTP, many(1..2)),
            slice("b", "b", HTTP, many(1..2)),
        ],
    );
    let statuses: Vec<_> = node.proxy.services().collect();
    let owner = "default/a".to_owned();
    assert_eq!(
        statuses[1].frontends[0].state,
        FrontendState::Lost { owner }
    );
    assert_eq!(statuses[1].frontends[0].endpoints[0].slot, None);
    assert_eq!(statuses[0].frontends[0].endpoints[0].slot, Some(0));
}

#[test]
fn what_is_asked_for_and_not_served_is_a_problem() {
    let all = Service {
        kind: ServiceType::LoadBalancer,
        external_ips: vec![
            address("192.0.2.9"),
            address("2001:db8::9"),
            address("192.0.2.8"),
        ],
        load_balancer_ips: vec![address("192.0.2.10"), address("198.51.100.1")],
        source_ranges: vec!["10.0.0.0/33".to_owned(), "2001:db8::/32".to_owned()],
        annotations: [("trammel.io/scheduler".to_owned(), "lc".to_owned())].into(),
        ..service(
            "web",
            &["10.96.0.1", "127.0.0.1"],
            &[("a", Tcp, 80), ("b", Tcp, 80)],
        )
    };
    let mut node = Node::with([all], [slice("web-1", "web", HTTP, [ready("169.254.0.1")])]);
    node.proxy.set_config(ProxyConfig {
        external_ip_ranges: Some(vec!["192.0.2.8/31".parse().expect("a network")]),
        load_balancer_ip_ranges: Some(vec!["192.0.2.0/24".parse().expect("a network")]),
        ..ProxyConfig::default()
    });
    let status = node.proxy.services().next().expect("one");
    let mut expected = vec![
        "clusterIP 127.0.0.1 cannot be served: use a unicast address that is not loopback",
        "load balancer address 198.51.100.1 is not served: the settings",
        "externalIP 2001:db8::9 is not served: the Service has no cluster IP of that family",
        "10.96.0.1:80/TCP is given twice",
        "192.0.2.10:80/TCP is given twice",
        "192.0.2.9:80/TCP is given twice",
        "192.0.2.8:80/TCP is given twice",
        "endpoint 169.254.0.1 is not used",
        "loadBalancerSourceRanges: \"10.0.0.0/33\" is no network",
        "loadBalancerSourceRanges has no network of the family of 192.0.2.10, which is open",
        "annotation trammel.io/scheduler: \"lc\" needs the number of connections",
    ];
    for problem in &status.problems {
        let at = expected.iter().position(|start| problem.starts_with(start));
        expected.remove(at.unwrap_or_else(|| panic!("{problem}")));
    }
    assert_eq!(expected, [""; 0], "{:?}", status.problems);
}

#[test]
fn what_is_served_as_asked_has_no_problems() {
    let node = Node::with(
        [service("web", &["10.96.0.1"], HTTP)],
        [slice("web-1", "web", HTTP, many(1..3))],
    );
    let status = node.proxy.services().next().expect("one");
    assert_eq!(status.problems, [""; 0]);
}
