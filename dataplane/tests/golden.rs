//! The layout as text: whoever changes the rules sees in the review what becomes of them.

use dataplane::desired::Desired;
use dataplane::layout;
use dataplane::layout::services;
use dataplane::object::Element;

fn installed() -> Desired {
    let mut desired = Desired::new();
    layout::install(&mut desired, 1);
    desired
}

#[test]
fn the_static_layout() {
    let mut desired = installed();
    services::Balancer::random(1).want(&mut desired);
    services::Balancer::random(3).want(&mut desired);
    services::Balancer {
        lane: services::Lane::new(services::Entry::NodePort, services::Sources::Cluster),
        algorithm: services::Algorithm::SourceHash,
        sticky: true,
        slots: 2,
    }
    .want(&mut desired);
    for entry in services::Entry::BOTH {
        services::want_learn_chain(&mut desired, entry, 10_800);
    }
    let ranges = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
    services::SourceRanges::new(ranges, None).want(&mut desired);
    insta::assert_snapshot!(desired.ruleset().to_string());
}

#[test]
fn pods_are_known_by_their_interface() {
    let mut desired = installed();
    desired.committed();
    let mut changes = Vec::new();
    for sources in [
        services::PodSources::Interface("cni0".into()),
        services::PodSources::InterfacePrefix("veth".into()),
        services::PodSources::Ranges,
    ] {
        services::set_pod_sources(&mut desired, &sources, false);
        changes.push(desired.transaction().to_string());
        desired.committed();
    }
    insta::assert_snapshot!(changes.join("\n"));
    assert_eq!(desired.ruleset(), installed().ruleset(), "as it was");
}

#[test]
fn a_service_comes_and_goes_in_the_right_order() {
    let mut desired = installed();
    desired.committed();
    let vip = "10.96.0.1".parse().expect("an address");
    let endpoint = "10.88.0.2".parse().expect("an address");
    let family = dataplane::object::IpFamily::V4;
    let frontend = services::frontend_key(vip, 6, 80);
    let slot = services::slot_key(vip, 6, 80, 0);

    services::Balancer::random(1).want(&mut desired);
    let verdict = dataplane::rule::Verdict::Goto(services::Balancer::random(1).chain());
    desired.insert(
        &layout::INET,
        services::FRONTENDS.of(family),
        frontend.clone(),
        Element::verdict(verdict),
    );
    desired.insert(
        &layout::INET,
        services::ENDPOINTS.of(family),
        slot.clone(),
        Element::data(services::endpoint_data(endpoint, 8080)),
    );
    let comes = desired.transaction();
    desired.committed();
    desired.remove(&layout::INET, services::ENDPOINTS.of(family), &slot);
    desired.remove(&layout::INET, services::FRONTENDS.of(family), &frontend);
    let goes = desired.transaction();
    insta::assert_snapshot!(format!("{comes}---\n{goes}"));
}
