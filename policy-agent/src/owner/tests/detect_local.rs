//! Which ranges are pods', as the Node and the mode say.

use dataplane::layout::INET;
use dataplane::layout::services::CLUSTER_CIDRS;
use dataplane::object::IpFamily;

use super::harness::{Node, World};
use super::objects;
use crate::config::detect_local::DetectLocalMode;
use crate::config::services::ServiceConfig;
use crate::event::{Event, Kind, Object};

fn own_node(pod_cidrs: &[&str]) -> Object {
    let Object::Node(mut node) = objects::node("n1", None) else {
        panic!("a Node");
    };
    let networks = pod_cidrs.iter().map(|text| text.parse().expect("a prefix"));
    node.pod_cidrs = networks.collect();
    Object::Node(node)
}

fn ranges(node: &mut Node) -> Vec<String> {
    let ruleset = node.ruleset();
    let of_family = |family: IpFamily| {
        let set = &ruleset.tables[&*INET].sets[CLUSTER_CIDRS.of(family)];
        let keys = set.elements.keys();
        keys.map(|key| set.spec.key.print(key)).collect::<Vec<_>>()
    };
    IpFamily::BOTH.map(of_family).concat()
}

fn node(mode: DetectLocalMode, own: Object) -> Node {
    let mut node = Node::new();
    node.owner.configure_services(&ServiceConfig {
        detect_local_mode: mode,
        cluster_cidrs: vec!["10.200.0.0/16".parse().expect("a prefix")],
        ..ServiceConfig::default()
    });
    node.list(&World::of([own]));
    node.settle();
    node
}

#[test]
fn the_ranges_of_pods_follow_the_node() {
    let mut node = node(DetectLocalMode::NodeCidr, own_node(&[]));
    assert!(ranges(&mut node).is_empty());
    let problems = node.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("NodeCIDR"), "{problems:?}");
    let complaints = node.owner.review().expect("few Services");
    assert_eq!(complaints[0].reason, "PodCIDRsUnknown");

    node.apply(own_node(&["10.201.1.0/24", "fd01::/64"]));
    let of_both = ["10.201.1.0", "10.201.2.0", "fd01::", "fd01:0:0:1::"];
    assert_eq!(ranges(&mut node), of_both);
    assert_eq!(node.problems(), Vec::<String>::new());
    node.apply(own_node(&["10.201.7.0/24"]));
    assert_eq!(ranges(&mut node), ["10.201.7.0", "10.201.8.0"]);
    let key = proxy::model::ObjectKey::new("", "n1");
    node.owner.handle(Event::Delete(Kind::Node, key));
    node.settle();
    assert_eq!(ranges(&mut node), ["10.201.7.0", "10.201.8.0"], "they stay");
}

#[test]
fn in_the_other_modes_the_node_has_no_say() {
    for (mode, expected) in [
        (
            DetectLocalMode::ClusterCidr,
            &["10.200.0.0", "10.201.0.0"][..],
        ),
        (DetectLocalMode::BridgeInterface, &[]),
        (DetectLocalMode::InterfaceNamePrefix, &[]),
    ] {
        let mut node = node(mode, own_node(&["10.201.1.0/24"]));
        assert_eq!(ranges(&mut node), expected, "{mode}");
        assert_eq!(node.problems(), Vec::<String>::new());
    }
}
