//! A restart: a new proxy finds what an earlier one has written.

use dataplane::kernel::Kernel;
use dataplane::layout::{self, INET, services::ENDPOINTS};
use dataplane::object::{Element, IpFamily, Value};

use super::harness::*;
use crate::model::Service;

fn web() -> Service {
    service("web", &["10.96.0.1", "fd96::1"], HTTP)
}

/// A node whose slots are in the order of a history.
fn node_with_history() -> Node {
    let mut node = Node::with([web()], [slice("web-1", "web", HTTP, many(0..300))]);
    for endpoints in [
        many((0..300).filter(|n| n % 7 != 0)),
        many((0..280).filter(|n| n % 5 != 0)),
    ] {
        node.proxy
            .apply_slice(slice("web-1", "web", HTTP, endpoints));
        node.settle();
    }
    node.proxy
        .apply_slice(slice("web-6", "web", HTTP, [ready("fd10::2")]));
    node.settle();
    node.proxy.apply_slice(slice(
        "web-6",
        "web",
        HTTP,
        [ready("fd10::2"), ready("fd10::1")],
    ));
    node.settle();
    node
}

/// A new agent on what the old one has left in the kernel.
pub(super) fn restart(old: &Node) -> Node {
    let mut node = Node::not_installed();
    node.kernel = old.kernel.clone();
    let observed = node.kernel.dump(&layout::tables()).expect("a dump");
    node.install();
    layout::services::keep_chains(&mut node.desired, &observed);
    node.proxy.adopt(&observed);
    node.desired.observe(observed);
    node
}

fn apply(node: &mut Node, endpoints: Vec<crate::model::SliceEndpoint>) {
    node.proxy.apply_service(web());
    node.proxy
        .apply_slice(slice("web-1", "web", HTTP, endpoints));
    node.proxy.apply_slice(slice(
        "web-6",
        "web",
        HTTP,
        [ready("fd10::1"), ready("fd10::2")],
    ));
}

#[test]
fn a_restart_touches_nothing_that_is_right() {
    let old = node_with_history();
    let mut new = restart(&old);
    apply(&mut new, many((0..280).filter(|n| n % 5 != 0)));
    let (_, transaction, again) = new.sync();
    assert!(transaction.is_empty(), "{transaction}");
    assert!(!again);
}

#[test]
fn what_has_changed_meanwhile_costs_what_it_is() {
    let old = node_with_history();
    let mut new = restart(&old);
    apply(&mut new, many((0..280).filter(|n| n % 5 != 0 && *n != 3)));
    assert_eq!(new.operations(), 5);
    described(new.ruleset());
}

#[test]
fn what_is_gone_meanwhile_goes() {
    let old = node_with_history();
    let mut new = restart(&old);
    new.settle();
    assert!(described(new.ruleset()).is_empty());
}

#[test]
fn slots_that_make_no_sense_are_made_right() {
    let mut old = node_with_history();
    old.kernel.tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&*INET).expect("the table");
        let endpoints = table.sets.get_mut(ENDPOINTS.of(IpFamily::V4)).expect("set");
        let key = |slot| layout::services::slot_key(address("10.96.0.1"), 6, 80, slot);
        // One missing, one doubled, one astray, one of a protocol that nobody has.
        endpoints.elements.remove(&key(100));
        let double = endpoints.elements[&key(5)].clone();
        endpoints.elements.insert(key(6), double.clone());
        endpoints.elements.insert(key(100_000), double.clone());
        let foreign = layout::services::slot_key(address("10.96.0.1"), 200, 80, 0);
        let Value::Data(data) = double.value else {
            panic!("no data");
        };
        endpoints.elements.insert(foreign, Element::data(data));
    });
    let mut new = restart(&old);
    let wanted = many((0..280).filter(|n| n % 5 != 0));
    apply(&mut new, wanted.clone());
    new.settle();
    let mut served = described(new.ruleset())["10.96.0.1 . tcp . 80"].clone();
    served.sort_unstable();
    let mut wanted: Vec<_> = wanted
        .iter()
        .map(|e| format!("{} . 80", e.address))
        .collect();
    wanted.sort_unstable();
    assert_eq!(served, wanted);
}
