//! Which senders count as pods of the cluster.

use dataplane::field::ct_status;
use dataplane::layout::services::PodSources;
use dataplane::object::{Family, Hook};
use dataplane::trace::{Packet, Tracer};

use super::harness::*;
use crate::ProxyConfig;
use crate::model::{Service, ServiceType, TrafficPolicy};

const FRONTENDS: [(&str, &str); 2] = [
    ("10.96.0.1:80", "203.0.113.1:80"),
    ("[fd96::1]:80", "[2001:db8:113::1]:80"),
];

/// A node with an endpoint elsewhere alone, by which those are told apart who reach all.
fn node(sources: PodSources, masquerade_all: bool) -> Node {
    let service = Service {
        kind: ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        load_balancer_ips: FRONTENDS
            .map(|(_, vip)| vip.parse::<std::net::SocketAddr>().expect("one").ip())
            .into(),
        ..service("web", &["10.96.0.1", "fd96::1"], HTTP)
    };
    let mut node = Node::with(
        [service],
        [
            slice("web-4", "web", HTTP, [ready("10.1.0.1")]),
            slice("web-6", "web", HTTP, [ready("fd01::1")]),
        ],
    );
    node.proxy.set_config(ProxyConfig {
        pod_sources: sources,
        masquerade_all,
        ..ProxyConfig::default()
    });
    node.settle();
    node
}

/// Whether what comes so is a pod's in both families: it keeps its address and reaches all.
fn is_pod(node: &Node, from: From) -> bool {
    let of_family = |(cluster_ip, vip): (&str, &str)| {
        let kept = node.walk(from, cluster_ip);
        let kept = kept.iter().all(|end| !end.ends_with("masqueraded"));
        let served = node.walk(from, vip) != set(&["dropped"]);
        assert!(kept == served || from == From::Node, "{from:?} {vip}");
        kept
    };
    let [v4, v6] = FRONTENDS.map(of_family);
    assert_eq!(v4, v6, "{from:?}");
    v4
}

#[test]
fn pods_are_known_by_their_ranges_or_by_their_interface() {
    let interface = |name: &str| PodSources::Interface(name.into());
    let prefix = |name: &str| PodSources::InterfacePrefix(name.into());
    // Of the uplink: all that comes from other hosts.
    for (sources, outside, other_pod) in [
        (PodSources::Ranges, false, true),
        (interface("uplink"), true, true),
        (interface("upl"), false, false),
        (interface("uplink0"), false, false),
        (prefix("upl"), true, true),
        (prefix("uplink"), true, true),
        (prefix("uplink0"), false, false),
    ] {
        let node = node(sources.clone(), false);
        assert_eq!(is_pod(&node, From::Outside), outside, "{sources:?}");
        assert_eq!(is_pod(&node, From::OtherPod), other_pod, "{sources:?}");
        assert!(is_pod(&node, From::Pod), "{sources:?}: its own are known");
        assert!(!is_pod(&node, From::Node), "{sources:?}: it is no pod");
    }
}

#[test]
fn everything_is_masqueraded_however_pods_are_known() {
    for sources in [PodSources::Ranges, PodSources::Interface("uplink".into())] {
        let node = node(sources, true);
        for (from, (cluster_ip, _)) in From::ALL
            .into_iter()
            .flat_map(|f| FRONTENDS.map(|w| (f, w)))
        {
            let ends = node.walk(from, cluster_ip);
            assert!(ends.iter().all(|end| end.ends_with(" masqueraded")));
        }
    }
}

/// With br_netfilter a packet that is translated and goes back into its bridge has no
/// interface any more that it came in by when its source is chosen.
#[test]
fn a_packet_that_stays_in_its_bridge_is_known_by_the_way_out() {
    let node = node(PodSources::Interface("cni0".into()), false);
    let choose = |slots: u32| slots - 1;
    let tracer = Tracer::new(node.ruleset(), &choose);
    for (iifname, oifname, from_local, masqueraded) in [
        ("", "cni0", false, false),
        ("", "cni0", true, true),
        ("", "cni1", false, true),
        ("eth0", "cni0", false, true),
        ("cni0", "eth0", false, false),
    ] {
        let mut packet = Packet::first(address("198.51.100.7"), address("10.1.0.1"), 6, 8080);
        packet.flow.status |= ct_status::DNAT;
        packet.flow.original_daddr = address("10.96.0.1");
        packet.flow.original_dport = 80;
        packet.iifname = iifname.to_owned();
        packet.oifname = Some(oifname.to_owned());
        packet.from_local = from_local;
        let trace = tracer.hook(Family::Inet, Hook::Postrouting, &mut packet);
        assert_eq!(
            trace.masquerade, masqueraded,
            "{iifname:?} {oifname} {from_local}"
        );
    }
}
