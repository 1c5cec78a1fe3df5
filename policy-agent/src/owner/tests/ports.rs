//! Attachments: who may send, where pods are, and what their addresses are bound to.

use dataplane::attachment::{Attachment, Mode};
use dataplane::layout::INET;
use dataplane::layout::policy::Direction;
use dataplane::layout::ports::{PORTS_OF_POD, interface_key, senders};
use dataplane::object::IpFamily;

use super::harness::{Node, World};
use super::objects::{attachment, deny, ip, model_pod, pod};
use super::world;
use crate::event::{Event, Object};

const OUTSIDE: &str = "192.0.2.1";

fn node() -> Node {
    let mut node = Node::new();
    node.list(&World::default());
    node.settle();
    node
}

fn attach(node: &mut Node, attachment: &Attachment) {
    node.owner.attach(attachment.clone());
    node.settle();
}

/// Whether all, or none, of the elements of its port are in the kernel.
fn may_send(node: &mut Node, attachment: &Attachment) -> bool {
    let ruleset = node.ruleset();
    let mut present = senders(attachment).into_iter().map(|sender| {
        let set = &ruleset.tables[sender.table].sets[sender.set];
        set.elements.contains_key(&sender.key)
    });
    let first = present.next().expect("an address");
    assert!(present.all(|other| other == first), "all or none");
    first
}

fn has_interface(node: &mut Node, name: &str) -> bool {
    let ruleset = node.ruleset();
    let interfaces = &ruleset.tables[&*INET].sets[&*PORTS_OF_POD].elements;
    interfaces.contains_key(&interface_key(name))
}

/// Whether the address is bound in both directions, or in none.
fn is_bound(node: &mut Node, address: &str) -> bool {
    let ruleset = node.ruleset();
    let key = dataplane::datatype::Bytes::new().addr(ip(address)).build();
    let sets = &ruleset.tables[&*INET].sets;
    let bound = Direction::BOTH.map(|direction| {
        let map = direction.map(IpFamily::of(ip(address)));
        sets[map].elements.contains_key(&key)
    });
    assert_eq!(bound[0], bound[1], "both directions or none");
    bound[0]
}

#[test]
fn a_pod_is_closed_until_its_object_is_known_and_when_it_is_gone() {
    let mut node = node();
    let web = attachment("c1", Some("x/web"), &["10.88.0.2", "fd88::2"]);
    attach(&mut node, &web);
    assert!(may_send(&mut node, &web));
    assert!(!node.owner.is_programmed(&web.key));
    for ip in ["10.88.0.2", "fd88::2"] {
        assert!(!is_bound(&mut node, ip));
    }
    assert!(!node.passes("10.88.0.2", OUTSIDE, 80) && !node.passes(OUTSIDE, "10.88.0.2", 80));

    // No status says its address yet.
    node.apply(pod("x/web", "", "web"));
    assert!(node.owner.is_programmed(&web.key));
    for ip in ["10.88.0.2", "fd88::2"] {
        assert!(is_bound(&mut node, ip));
    }
    assert!(node.passes("10.88.0.2", OUTSIDE, 80));

    node.delete(&pod("x/web", "", "web"));
    assert!(!node.owner.is_programmed(&web.key));
    assert!(!node.passes("10.88.0.2", OUTSIDE, 80));
}

#[test]
fn a_pod_that_was_recreated_is_another_pod() {
    let mut node = node();
    let first = attachment("c1", Some("x/web"), &["10.88.0.2"]);
    node.apply(pod("x/web", "", "web"));
    attach(&mut node, &first);
    assert!(node.owner.is_programmed(&first.key));

    let mut recreated = model_pod("x/web", "", "web");
    recreated.uid = "another".into();
    node.apply(Object::Pod(recreated.clone()));
    assert!(
        !node.owner.is_programmed(&first.key),
        "its object is not that of the sandbox"
    );
    assert!(!is_bound(&mut node, "10.88.0.2"));

    let mut second = attachment("c2", Some("x/web"), &["10.88.0.3"]);
    second.pod.as_mut().expect("a pod").uid = Some("another".into());
    attach(&mut node, &second);
    assert!(node.owner.is_programmed(&second.key));
    assert!(is_bound(&mut node, "10.88.0.3") && !is_bound(&mut node, "10.88.0.2"));
}

/// A veth that is no port of a bridge has no bridge to be known by, and its own guard.
#[test]
fn a_pod_without_a_bridge_is_admitted_by_its_own_link() {
    let mut node = node();
    let mut web = attachment("c1", Some("x/web"), &["10.88.0.2", "fd88::2"]);
    (web.mode, web.bridge) = (Mode::Routed, None);
    node.apply(pod("x/web", "", "web"));
    attach(&mut node, &web);
    assert!(may_send(&mut node, &web) && node.owner.is_programmed(&web.key));
    let tables = senders(&web).into_iter().map(|sender| sender.table);
    assert!(tables.into_iter().all(|table| *table == *INET));
    assert!(node.owner.detach(&web.key));
    node.settle();
    assert!(!may_send(&mut node, &web));
}

#[test]
fn a_detached_port_is_closed_and_forgotten() {
    let mut node = node();
    let empty = node.ruleset();
    let web = attachment("c1", Some("x/web"), &["10.88.0.2", "fd88::2"]);
    node.apply(pod("x/web", "", "web"));
    attach(&mut node, &web);
    assert!(node.owner.detach(&web.key));
    node.settle();
    assert!(!may_send(&mut node, &web));
    assert!(!node.owner.detach(&web.key), "there is none any more");
    node.delete(&pod("x/web", "", "web"));
    let generation = node.generation();
    assert_eq!(super::harness::canonical(empty), node.canonical());
    assert!(generation > 1, "live flows of the pod were judged again");
}

#[test]
fn an_address_goes_from_one_pod_to_the_next() {
    let mut node = node();
    node.list(&World::of([deny("x/deny", "old")]));
    node.apply(pod("x/old", "10.88.0.2", "old"));
    let old = attachment("c1", Some("x/old"), &["10.88.0.2"]);
    attach(&mut node, &old);
    assert!(!node.passes(OUTSIDE, "10.88.0.2", 80));

    // ADD of the next comes before DEL of the last is told, and before its object.
    let new = attachment("c2", Some("x/new"), &["10.88.0.2"]);
    attach(&mut node, &new);
    assert!(
        !is_bound(&mut node, "10.88.0.2"),
        "closed until its pod is known"
    );
    node.apply(pod("x/new", "", "new"));
    assert!(
        node.passes(OUTSIDE, "10.88.0.2", 80),
        "nothing isolates the new one"
    );
    node.owner.detach(&old.key);
    node.settle();
    assert!(node.passes(OUTSIDE, "10.88.0.2", 80));
    assert!(may_send(&mut node, &new) && !may_send(&mut node, &old));
    assert!(node.owner.is_programmed(&new.key));
}

#[test]
fn a_container_that_is_no_pod_is_open() {
    let mut node = node();
    let plain = attachment("c1", None, &["10.88.0.2"]);
    attach(&mut node, &plain);
    assert!(node.owner.is_programmed(&plain.key));
    assert!(node.passes("10.88.0.2", OUTSIDE, 80));
}

/// Regression: the address that it has given up stayed open.
#[test]
fn an_attachment_that_changes_gives_up_its_old_address() {
    let mut node = node();
    attach(&mut node, &attachment("c1", None, &["10.88.0.2"]));
    let moved = attachment("c1", None, &["10.88.0.3"]);
    attach(&mut node, &moved);
    assert!(!is_bound(&mut node, "10.88.0.2") && is_bound(&mut node, "10.88.0.3"));
    assert!(may_send(&mut node, &moved));
    assert!(!may_send(
        &mut node,
        &attachment("c1", None, &["10.88.0.2"])
    ));
}

#[test]
fn a_bridge_counts_as_long_as_it_has_pods_or_is_configured() {
    let mut node = node();
    assert!(has_interface(&mut node, "cbr0"), "without any attachment");
    let on = |container: &str, bridge: &str| {
        let mut attachment =
            attachment(container, None, &[&format!("10.88.0.{}", container.len())]);
        attachment.bridge = Some(bridge.into());
        attachment
    };
    let (one, two, other) = (on("c1", "br7"), on("c-2", "br7"), on("c--3", "cbr0"));
    for attachment in [&one, &two, &other] {
        attach(&mut node, attachment);
    }
    assert!(has_interface(&mut node, "br7"));
    for (gone, remains) in [(&one, true), (&two, false), (&other, false)] {
        node.owner.detach(&gone.key);
        node.settle();
        assert_eq!(has_interface(&mut node, "br7"), remains);
    }
    assert!(has_interface(&mut node, "cbr0"));
}

#[test]
fn attachments_from_before_the_first_sync_come_with_it() {
    let mut node = Node::new();
    let web = attachment("c1", Some("x/web"), &["10.88.0.2"]);
    let gone = attachment("c2", None, &["10.88.0.9"]);
    node.owner.attach(web.clone());
    node.owner.attach(gone.clone());
    assert!(node.owner.detach(&gone.key));
    assert!(!node.owner.is_programmed(&web.key));
    node.list(&world());
    node.settle();
    assert!(may_send(&mut node, &web) && !may_send(&mut node, &gone));
    assert!(node.owner.is_programmed(&web.key));
    assert_eq!(node.owner.summary().unprogrammed, 0);
}

#[test]
fn a_pod_of_this_node_needs_no_attachment_and_one_elsewhere_has_no_binding() {
    let mut node = node();
    node.apply(pod("x/here", "10.88.0.2", "web"));
    let mut away = model_pod("x/away", "10.99.0.2", "web");
    away.node = Some("n2".into());
    node.owner.handle(Event::Apply(Object::Pod(away)));
    node.settle();
    assert!(is_bound(&mut node, "10.88.0.2") && !is_bound(&mut node, "10.99.0.2"));
}
