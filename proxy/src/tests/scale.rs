//! Ten thousand Services.

use std::time::Instant;

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

/// Prints what a cold sync and one change take, from objects in memory to a
/// transaction: `cargo test --release -p proxy cold -- --ignored --nocapture`.
#[test]
#[ignore = "prints times, asserts none"]
fn cold_compile_times() {
    for (services, endpoints) in [(10_000, 3), (50_000, 3)] {
        let objects: Vec<_> = (0..services)
            .map(|n| (nth_service(n), nth_slice(n, endpoints, 0)))
            .collect();
        let mut node = Node::not_installed();
        dataplane::layout::install(&mut node.desired, 1);
        let before = resident();
        let started = Instant::now();
        for (service, slice) in objects {
            node.proxy.apply_service(service);
            node.proxy.apply_slice(slice);
        }
        let applied = started.elapsed();
        let indexed = resident();
        let started = Instant::now();
        node.proxy.sync(&mut node.desired);
        let synced = started.elapsed();
        let compiled = resident();
        let started = Instant::now();
        let transaction = node.desired.transaction();
        let diffed = started.elapsed();
        let elements = transaction.element_operations();
        drop(transaction);
        node.desired.committed();
        node.proxy.committed();

        let started = Instant::now();
        node.proxy.apply_slice(nth_slice(77, endpoints, 1));
        node.proxy.sync(&mut node.desired);
        let one = node.desired.transaction().element_operations();
        let changed = started.elapsed();
        println!(
            "{services} services x {endpoints}: apply {applied:.1?}, sync {synced:.1?}, \
             transaction {diffed:.1?} ({elements} elements); one endpoint {changed:.1?} ({one}); \
             resident {before} MB with the objects, {indexed} MB applied, {compiled} MB compiled"
        );
    }
}

/// Megabytes that the process has in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.expect("VmRSS").trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().expect("a number") / 1024
}
