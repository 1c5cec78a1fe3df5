//! Ten thousand Services.

use super::harness::*;
use crate::model::{EndpointSlice, Service};

const SERVICES: u32 = 10_000;

fn name(number: u32) -> String {
    format!("svc-{number}")
}

fn nth_service(number: u32) -> Service {
    let [_, a, b, c] = number.to_be_bytes();
    service(&name(number), &[&format!("10.{}.{b}.{c}", 96 + a)], HTTP)
}

/// `count` endpoints of their own, the first in place `shift`.
fn nth_slice(number: u32, count: u32, shift: u32) -> EndpointSlice {
    let endpoint = |i: u32| {
        let [a, b, c, d] = (number * 8 + (i + shift) % 8).to_be_bytes();
        let mut endpoint = ready(&format!("10.{}.{c}.{d}", 128 + b + a));
        endpoint.node = Some(format!("node-{}", (number + i) % 500));
        endpoint
    };
    slice(
        &format!("{}-abcde", name(number)),
        &name(number),
        HTTP,
        (0..count).map(endpoint),
    )
}

fn fill(node: &mut Node, services: u32, endpoints: u32) {
    for number in 0..services {
        node.proxy.apply_service(nth_service(number));
        node.proxy.apply_slice(nth_slice(number, endpoints, 0));
    }
}

#[test]
fn rules_do_not_grow_with_services_or_endpoints() {
    let sizes = [1, 100, SERVICES].map(|services| {
        let mut node = Node::new();
        fill(&mut node, services, 3);
        let (report, transaction, again) = node.sync();
        assert_eq!(report.services, services as usize);
        assert_eq!(transaction.element_operations(), services as usize * 5);
        assert!(!again);
        size_of_rules(node.ruleset())
    });
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
}

#[test]
fn one_change_among_ten_thousand_touches_its_service_only() {
    let mut node = Node::new();
    fill(&mut node, SERVICES, 3);
    node.settle();
    let size = size_of_rules(node.ruleset());

    node.proxy.apply_slice(nth_slice(4321, 3, 1));
    let (report, transaction, again) = node.sync();
    assert_eq!((report.services, report.slots_written), (1, 1));
    assert_eq!((transaction.element_operations(), again), (2, false));

    // One more, and back: one chain for the new number of endpoints, which stays.
    node.proxy.apply_slice(nth_slice(4321, 4, 1));
    assert_eq!(node.operations(), 3);
    node.proxy.apply_slice(nth_slice(4321, 3, 1));
    assert_eq!(node.operations(), 3);
    let (chains, rules, sets) = size_of_rules(node.ruleset());
    assert_eq!((chains, rules, sets), (size.0 + 1, size.1 + 4, size.2));
    assert_eq!(described(node.ruleset()).len(), SERVICES as usize);
}
