//! One thing that the kernel refuses does not keep the rest from it.

use dataplane::datatype::{DataType, Type};
use dataplane::layout::INET;
use dataplane::layout::policy::{self, Direction};
use dataplane::layout::ports::SENDERS;
use dataplane::layout::services::{FRONTENDS, frontend_key};
use dataplane::object::{Chain, IpFamily, Key, Name, Set, SetSpec, Table};
use dataplane::rule::Rule;
use dataplane::transaction::Operation;
use proxy::model::ObjectKey;

use super::harness::{Node, World};
use super::objects::{allow, attachment, deny, ip, namespace, pod, service, slice};
use super::world;
use crate::complaint::Complaint;
use crate::event::Kind;

/// Refuses additions of that key to that set.
fn refuse(node: &mut Node, set: &'static Name, refused: Key) {
    node.kernel().refuses = Some(Box::new(move |operation, key| {
        matches!(operation, Operation::AddElements { set: of, .. } if of == set)
            && key == Some(&refused)
    }));
}

fn frontend(address: &str) -> Key {
    frontend_key(ip(address), 6, 80)
}

fn address_key(address: &str) -> Key {
    dataplane::datatype::Bytes::new().addr(ip(address)).build()
}

/// Two Services and a policy.
fn two_services() -> World {
    let mut world = world();
    world.put(service("x/other", "10.96.0.11", "web"));
    world.put(slice("x/other-1", "other", &["10.99.0.9"]));
    world
}

/// netpol.md 69.
#[test]
fn a_refused_element_is_named_and_the_rest_goes_through() {
    let mut node = Node::new();
    refuse(
        &mut node,
        FRONTENDS.of(IpFamily::V4),
        frontend("10.96.0.10"),
    );
    node.list(&two_services());
    node.settle();
    assert_eq!(node.served("10.96.0.10", 80), Vec::<String>::new());
    assert_eq!(node.served("10.96.0.11", 80), ["10.99.0.9 . 8080"]);
    assert!(!node.passes("10.88.0.3", "10.88.0.2", 80));
    let problems = node.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("Service x/web: "), "{problems:?}");
    for part in ["frontends4", "10.96.0.10", "refused by the test"] {
        assert!(problems[0].contains(part), "{part}: {problems:?}");
    }
    assert_eq!(node.owner.summary().unusable, 1);
    assert!(node.owner.is_synced());
    assert!(!node.owner.check().expect("it can be asked"), "no drift");
}

/// services.md 54: no longer than it lasts.
#[test]
fn a_refused_element_is_an_event_of_its_service() {
    let mut node = Node::new();
    let frontends = FRONTENDS.of(IpFamily::V4);
    refuse(&mut node, frontends, frontend("10.96.0.10"));
    node.list(&two_services());
    node.settle();
    let complaints = node.owner.review().expect("few Services");
    let refused: Vec<_> = complaints
        .iter()
        .filter(|complaint| complaint.reason == "KernelRefused")
        .collect();
    assert_eq!(refused.len(), 1, "{complaints:?}");
    let service = ObjectKey::new("x", "web");
    assert_eq!(refused[0].about, Some((Kind::Service, service)));
    assert_eq!(refused[0].uid.as_deref(), Some("uid-x/web"));
    assert!(refused[0].message.contains("frontends4"), "{refused:?}");
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    let complaints = node.owner.review().expect("few Services");
    let is_refused = |complaint: &Complaint| complaint.reason == "KernelRefused";
    assert!(!complaints.iter().any(is_refused), "{complaints:?}");
}

/// Regression: it was named for ever, and never tried again.
#[test]
fn what_was_refused_is_tried_again_by_the_next_sync() {
    let mut node = Node::new();
    refuse(
        &mut node,
        FRONTENDS.of(IpFamily::V4),
        frontend("10.96.0.10"),
    );
    node.list(&two_services());
    node.settle();
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
    assert_eq!(node.problems(), Vec::<String>::new());
}

#[test]
fn what_was_refused_and_is_gone_is_forgotten() {
    let mut node = Node::new();
    refuse(
        &mut node,
        FRONTENDS.of(IpFamily::V4),
        frontend("10.96.0.10"),
    );
    node.list(&two_services());
    node.settle();
    node.delete(&service("x/web", "10.96.0.10", "web"));
    assert_eq!(node.problems(), Vec::<String>::new());
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(node.served("10.96.0.10", 80), Vec::<String>::new());
    assert!(node.owner.verify().expect("it can be asked").is_empty());
}

#[test]
fn a_refused_change_leaves_the_element_as_it_was() {
    let mut node = Node::new();
    node.list(&two_services());
    node.settle();
    refuse(
        &mut node,
        FRONTENDS.of(IpFamily::V4),
        frontend("10.96.0.10"),
    );
    node.apply(slice("x/web-2", "web", &["10.99.0.4"]));
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(node.served("10.96.0.10", 80).len(), 4);
}

/// netpol.md 69.
#[test]
fn a_refused_policy_group_is_closed() {
    let mut node = Node::new();
    let mut world = two_services();
    world.put(allow("x/deny", "web", "client"));
    world.put(deny("x/client", "client"));
    node.kernel().refuses = Some(Box::new(
        |operation, _| matches!(operation, Operation::AddRule { chain, .. } if policy::is_group(chain)),
    ));
    node.list(&world);
    node.settle();
    assert!(
        !node.passes("10.88.0.3", "10.88.0.2", 80),
        "allowed, but its group is refused"
    );
    assert!(
        node.passes("10.88.0.2", "192.0.2.1", 80),
        "the other direction is not concerned"
    );
    assert_eq!(node.served("10.96.0.11", 80).len(), 1);
    let problems = node.problems();
    assert_eq!(
        problems.len(),
        2,
        "the groups of both policies: {problems:?}"
    );
    for problem in &problems {
        assert!(problem.starts_with("ingress-"), "{problems:?}");
    }
    let told = |node: &mut Node| -> Vec<String> {
        let complaints = node.owner.review().expect("few Services").into_iter();
        let of_policies = complaints.filter(|complaint| complaint.reason == "PolicyNotProgrammed");
        let name =
            |complaint: Complaint| complaint.about.map(|(kind, key)| format!("{kind} {key}"));
        of_policies.filter_map(name).collect()
    };
    let mut policies = told(&mut node);
    policies.sort();
    assert_eq!(policies, ["NetworkPolicy x/client", "NetworkPolicy x/deny"]);

    node.kernel().refuses = None;
    node.apply(namespace("unrelated"));
    assert_eq!(told(&mut node), Vec::<String>::new());
    assert!(node.passes("10.88.0.3", "10.88.0.2", 80));
    assert_eq!(node.problems(), Vec::<String>::new());
}

#[test]
fn a_policy_that_is_deleted_while_refused_leaves_nothing() {
    let mut node = Node::new();
    let mut world = two_services();
    world.put(allow("x/deny", "web", "client"));
    node.kernel().refuses = Some(Box::new(
        |operation, _| matches!(operation, Operation::AddRule { chain, .. } if policy::is_group(chain)),
    ));
    node.list(&world);
    node.settle();
    node.delete(&deny("x/deny", "web"));
    assert!(node.passes("192.0.2.1", "10.88.0.2", 80));
    assert_eq!(node.problems(), Vec::<String>::new());
    assert!(
        !node.ruleset().tables[&*dataplane::layout::INET]
            .chains
            .keys()
            .any(policy::is_group)
    );
}

/// Regression: the plugin was told that the pod's network works.
#[test]
fn an_attachment_whose_elements_are_refused_is_not_programmed() {
    let web = attachment("c1", Some("x/web"), &["10.88.0.2"]);
    let sender = dataplane::layout::ports::senders(&web).remove(0).key;
    for (set, key) in [
        (
            Direction::Egress.map(IpFamily::V4),
            address_key("10.88.0.2"),
        ),
        (
            Direction::Ingress.map(IpFamily::V4),
            address_key("10.88.0.2"),
        ),
        (SENDERS.of(IpFamily::V4), sender),
    ] {
        let mut node = Node::new();
        node.list(&world());
        node.settle();
        refuse(&mut node, set, key);
        // The first sync has bound its address by the status of the pod.
        node.delete(&pod("x/web", "10.88.0.2", "web"));
        node.owner.attach(web.clone());
        node.apply(pod("x/web", "10.88.0.2", "web"));
        assert!(!node.owner.is_programmed(&web.key), "{set}");
        assert!(!node.owner.status().attachments[0].programmed);
        assert_eq!(node.owner.summary().unprogrammed, 1);
        node.kernel().refuses = None;
        node.apply(namespace("unrelated"));
        assert!(node.owner.is_programmed(&web.key), "{set}");
    }
}

#[test]
fn a_detached_port_is_not_put_back_by_a_later_sync() {
    let web = attachment("c1", Some("x/web"), &["10.88.0.2"]);
    let sender = dataplane::layout::ports::senders(&web).remove(0).key;
    let mut node = Node::new();
    node.list(&world());
    node.settle();
    refuse(&mut node, SENDERS.of(IpFamily::V4), sender);
    node.owner.attach(web.clone());
    node.settle();
    assert!(node.owner.detach(&web.key));
    node.kernel().refuses = None;
    node.settle();
    let sets = &node.ruleset().tables[&*dataplane::layout::BRIDGE].sets;
    assert!(sets[SENDERS.of(IpFamily::V4)].elements.is_empty());
}

#[test]
fn static_rules_that_are_refused_are_an_error_with_the_kernels_words() {
    let mut node = Node::new();
    node.kernel().refuses = Some(Box::new(
        |operation, _| matches!(operation, Operation::AddRule { chain, .. } if chain.as_str() == "forward"),
    ));
    node.list(&world());
    let error = node
        .owner
        .sync()
        .expect_err("no part of it can be left out");
    assert!(error.to_string().contains("forward"), "{error}");
    assert!(node.ruleset().tables.is_empty() && node.owner.is_dirty());
    node.kernel().refuses = None;
    node.settle();
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
}

#[test]
fn a_table_of_that_name_with_other_content_is_taken_over() {
    let mut node = Node::new();
    node.kernel().fake.tamper(|ruleset| {
        let mut table = Table::default();
        table.chains.insert("forward".into(), Chain::default());
        let rule = Rule::new().goto("forward");
        let user = Chain::regular("", vec![rule]);
        table.chains.insert("user".into(), user);
        let of_ports = SetSpec::set(Type::of(&[DataType::InetService]), "");
        let set = Set::new(of_ports);
        table.sets.insert(FRONTENDS.of(IpFamily::V4).clone(), set);
        ruleset.tables.insert(INET.clone(), table);
    });
    node.list(&world());
    node.settle();
    assert!(node.owner.verify().expect("it can be asked").is_empty());
    assert_eq!(node.served("10.96.0.10", 80).len(), 3);
}
