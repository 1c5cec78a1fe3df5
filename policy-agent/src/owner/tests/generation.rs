//! When live flows are judged again: whenever something may have become narrower.

use dataplane::layout::GENERATION_MASK;

use super::harness::Node;
use super::objects::{allow, attachment, deny, model_pod, namespace, pod, service, slice};
use super::world;
use crate::event::{Event, Object};
use crate::model::PodPhase;

/// Clients may reach the web.
fn node() -> Node {
    let mut world = world();
    world.put(allow("x/deny", "web", "client"));
    let mut node = Node::new();
    node.list(&world);
    node.settle();
    node
}

fn raised_by(node: &mut Node, change: impl FnOnce(&mut Node)) -> u16 {
    let before = node.generation();
    change(node);
    node.settle();
    node.generation() - before
}

#[test]
fn what_only_widens_does_not_raise_it() {
    let mut node = node();
    let widening: [Object; 6] = [
        pod("x/client2", "10.88.0.5", "client"),
        pod("x/client3", "10.99.0.5", "client"),
        pod("x/web2", "10.88.0.6", "web"),
        namespace("y"),
        service("x/other", "10.96.0.11", "web"),
        slice("x/web-1", "web", &["10.99.0.3"]),
    ];
    for object in widening {
        let text = format!("{object:?}");
        let raised = raised_by(&mut node, |node| node.owner.handle(Event::Apply(object)));
        assert_eq!(raised, 0, "{text}");
    }
    let new = attachment("c", Some("x/late"), &["10.88.0.9"]);
    assert_eq!(raised_by(&mut node, |node| node.owner.attach(new)), 0);
    let late = pod("x/late", "", "client");
    assert_eq!(raised_by(&mut node, |node| node.apply(late)), 0);
    assert!(node.passes("10.88.0.9", "10.88.0.2", 80));
}

#[test]
fn what_may_narrow_raises_it() {
    let mut node = node();
    let (client, web) = (
        model_pod("x/client", "10.88.0.3", "client"),
        pod("x/web", "10.88.0.2", "web"),
    );
    let mut finished = client.clone();
    finished.phase = PodPhase::Finished;
    let narrowing: [(&str, Event); 6] = [
        (
            "a peer loses its label",
            Event::Apply(pod("x/client", "10.88.0.3", "former")),
        ),
        ("a policy closes", Event::Apply(deny("x/deny", "web"))),
        ("a pod is selected", Event::Apply(deny("x/more", "former"))),
        ("a peer finishes", Event::Apply(Object::Pod(finished))),
        (
            "a policy goes",
            Event::Delete(
                crate::event::Kind::NetworkPolicy,
                deny("x/deny", "web").key(),
            ),
        ),
        (
            "a pod goes",
            Event::Delete(crate::event::Kind::Pod, web.key()),
        ),
    ];
    for (what, event) in narrowing {
        assert_eq!(
            raised_by(&mut node, |node| node.owner.handle(event)),
            1,
            "{what}"
        );
    }
}

#[test]
fn a_burst_raises_it_once() {
    let mut node = node();
    let raised = raised_by(&mut node, |node| {
        node.owner.handle(Event::Apply(deny("x/a", "client")));
        node.owner.handle(Event::Apply(deny("x/b", "client")));
        node.owner.handle(Event::Apply(deny("x/c", "web")));
    });
    assert_eq!(raised, 1);
}

#[test]
fn it_never_becomes_the_mark_of_flows_that_nobody_has_judged() {
    let mut node = node();
    node.owner.generation = u16::MAX;
    node.apply(deny("x/deny", "web"));
    assert_eq!(node.generation(), 1);
}

#[test]
fn a_failed_commit_does_not_forget_to_raise_it() {
    let mut node = node();
    let raised = raised_by(&mut node, |node| {
        node.kernel()
            .failures
            .push_back(Some(super::harness::Failure::Before));
        node.owner.handle(Event::Apply(deny("x/deny", "web")));
        assert!(node.owner.sync().is_err());
    });
    assert_eq!(raised, 1);
}

/// netpol.md 55. The numbers begin anew: no flow may still carry one that comes again.
#[test]
fn old_marks_are_cleared_before_the_numbers_begin_anew() {
    let mut node = node();
    node.owner.generation = u16::MAX - 1;
    let at_start = node.kernel().fake.unmarked().len();
    node.apply(deny("x/deny", "web"));
    assert_eq!(node.generation(), u16::MAX);
    assert_eq!(node.kernel().fake.unmarked().len(), at_start);

    let commits = node.kernel().commits.len();
    node.kernel().fails_unmark = true;
    node.owner
        .handle(Event::Apply(allow("x/deny", "web", "former")));
    assert!(node.owner.sync().is_err());
    assert_eq!(node.kernel().commits.len(), commits, "nothing is committed");
    assert!(node.owner.is_dirty(), "and it is tried again");

    node.kernel().fails_unmark = false;
    node.settle();
    assert_eq!(node.generation(), 1);
    assert_eq!(
        node.kernel().fake.unmarked()[at_start..],
        [(GENERATION_MASK, GENERATION_MASK)],
        "but for the current"
    );
}

/// Whoever removes the tables leaves the marks of flows.
#[test]
fn tables_that_are_made_anew_trust_no_mark_that_was_there_before() {
    let mut node = node();
    assert_eq!(node.kernel().fake.unmarked(), [(GENERATION_MASK, 0)]);
}
