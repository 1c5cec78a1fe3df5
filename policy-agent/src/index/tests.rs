use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey, MacAddr, Mode, PodRef};
use proxy::model::ObjectKey;

use super::{Index, Owner};
use crate::model::{Labels, Pod, PodPhase};

const IP: &str = "10.88.0.2";

fn ip() -> IpAddr {
    IP.parse().expect("an address")
}

fn mk_pod(name: &str, uid: &str, created: i64) -> Pod {
    Pod {
        key: ObjectKey::new("x", name),
        uid: uid.into(),
        labels: Labels::new(),
        node: Some("n1".into()),
        host_network: false,
        ips: vec![ip()],
        ports: Vec::new(),
        phase: PodPhase::Live,
        ready: true,
        terminating: false,
        created,
        weight: None,
    }
}

fn mk_attachment(container: &str, pod: Option<(&str, Option<&str>)>) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    };
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: Mode::RoutedPorts,
        bridge: Some("cbr0".into()),
        mac: MacAddr([0; 6]),
        ips: vec![ip()],
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
        undo: Default::default(),
        pod: pod.map(|(name, uid)| PodRef {
            namespace: "x".into(),
            name: name.into(),
            uid: uid.map(str::to_owned),
        }),
    }
}

fn put(index: &mut Index, pod: Pod) {
    index.set_pod(&pod.key.clone(), Some(pod));
}

fn owner_name(index: &Index) -> Option<String> {
    match index.owner(ip()) {
        Owner::Pod(pod) => Some(pod.key.name.to_string()),
        _ => None,
    }
}

#[test]
fn the_newest_live_pod_owns_a_contested_address() {
    let mut index = Index::new();
    put(&mut index, mk_pod("old", "1", 10));
    put(&mut index, mk_pod("new", "2", 20));
    assert_eq!(owner_name(&index).as_deref(), Some("new"));
    // A Job that is done keeps its address in its status.
    let mut finished = mk_pod("new", "2", 20);
    finished.phase = PodPhase::Finished;
    put(&mut index, finished);
    assert_eq!(owner_name(&index).as_deref(), Some("old"));
}

#[test]
fn an_address_that_moves_affects_both_pods() {
    let mut index = Index::new();
    put(&mut index, mk_pod("old", "1", 10));
    let affected = index.set_pod(&ObjectKey::new("x", "new"), Some(mk_pod("new", "2", 20)));
    let names: Vec<_> = affected.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["new", "old"]);
    let affected = index.set_pod(&ObjectKey::new("x", "new"), None);
    let names: Vec<_> = affected.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["new", "old"]);
}

#[test]
fn the_attachment_decides_over_every_status() {
    let mut index = Index::new();
    put(&mut index, mk_pod("old", "1", 10));
    put(&mut index, mk_pod("mine", "2", 5));
    index.attach(mk_attachment("c1", Some(("mine", Some("2")))));
    assert_eq!(owner_name(&index).as_deref(), Some("mine"));
}

#[test]
fn a_recreated_pod_of_the_same_name_is_another_pod() {
    let mut index = Index::new();
    put(&mut index, mk_pod("web", "1", 10));
    index.attach(mk_attachment("c2", Some(("web", Some("2")))));
    assert_eq!(index.owner(ip()), Owner::UnknownPod);
    put(&mut index, mk_pod("web", "2", 20));
    assert_eq!(owner_name(&index).as_deref(), Some("web"));
}

#[test]
fn a_container_without_pod_is_nobodys_subject() {
    let mut index = Index::new();
    index.attach(mk_attachment("c1", None));
    assert_eq!(index.owner(ip()), Owner::Container);
}

#[test]
fn a_late_detach_does_not_take_a_reused_address_away() {
    let mut index = Index::new();
    put(&mut index, mk_pod("b", "2", 0));
    let first = mk_attachment("c1", Some(("a", None)));
    index.attach(first.clone());
    index.attach(mk_attachment("c2", Some(("b", None))));
    index.detach(&first.key);
    assert_eq!(owner_name(&index).as_deref(), Some("b"));
}

/// Regression: nobody held the address until the agent started anew.
#[test]
fn an_address_goes_back_to_the_attachment_that_it_was_taken_over_from() {
    let mut index = Index::new();
    put(&mut index, mk_pod("a", "1", 0));
    put(&mut index, mk_pod("b", "2", 5));
    index.attach(mk_attachment("c1", Some(("a", None))));
    let second = mk_attachment("c2", Some(("b", None)));
    index.attach(second.clone());
    assert_eq!(owner_name(&index).as_deref(), Some("b"));
    let affected = index.detach(&second.key);
    assert_eq!(owner_name(&index).as_deref(), Some("a"));
    assert!(affected.contains(&ObjectKey::new("x", "a")), "{affected:?}");
}

#[test]
fn host_network_pods_own_no_address() {
    let mut index = Index::new();
    let mut pod = mk_pod("host", "1", 0);
    pod.host_network = true;
    put(&mut index, pod.clone());
    assert_eq!(index.owner(ip()), Owner::Nobody);
    assert!(index.addresses(&pod).is_empty());
}
