//! The bookkeeping between the watcher and the index, without a server.

use kube::runtime::watcher::Event as Change;

use super::super::relist::Relist;
use super::*;

type Policy = networking::NetworkPolicy;

fn policy(name: &str, spec: Value) -> Narrow<Policy> {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "x"}, "spec": spec}))
        .unwrap()
}

fn good(name: &str) -> Narrow<Policy> {
    policy(name, json!({"podSelector": {}}))
}

fn bad(name: &str) -> Narrow<Policy> {
    policy(name, json!("no object"))
}

fn list(relist: &mut Relist, objects: impl IntoIterator<Item = Narrow<Policy>>) -> Vec<String> {
    assert!(relist.handle(Change::<Narrow<Policy>>::Init).is_empty());
    for object in objects {
        assert!(relist.handle(Change::InitApply(object)).is_empty());
    }
    brief(&relist.handle(Change::<Narrow<Policy>>::InitDone))
}

fn brief(events: &[Event]) -> Vec<String> {
    let line = |event| {
        let (sign, names) = names(event);
        format!("{sign} {}", names.join(" "))
    };
    events.iter().map(line).collect()
}

#[test]
fn a_clean_relist_is_a_reset() {
    let mut relist = Relist::default();
    assert_eq!(list(&mut relist, []), ["= "]);
    assert_eq!(list(&mut relist, [good("a"), good("b")]), ["= a b"]);
    assert_eq!(list(&mut relist, [good("b")]), ["= b"]);
}

#[test]
fn a_list_that_breaks_off_is_forgotten() {
    let mut relist = Relist::default();
    relist.handle(Change::<Narrow<Policy>>::Init);
    relist.handle(Change::InitApply(good("a")));
    assert_eq!(list(&mut relist, [good("b")]), ["= b"]);
}

#[test]
fn a_policy_that_was_never_readable_isolates_its_namespace() {
    let mut relist = Relist::default();
    relist.handle(Change::<Narrow<Policy>>::Init);
    relist.handle(Change::InitApply(bad("p")));
    let events = relist.handle(Change::<Narrow<Policy>>::InitDone);
    assert_eq!(brief(&events), ["= p", "! p"]);
    let Event::Reset(_, objects) = &events[0] else {
        panic!()
    };
    let Object::NetworkPolicy(policy) = &objects[0] else {
        panic!()
    };
    assert_eq!(
        (policy.ingress.as_deref(), policy.egress.as_deref()),
        (Some(&[][..]), Some(&[][..]))
    );
    assert_eq!(
        brief(&relist.handle(Change::Apply(bad("q")))),
        ["+ q", "! q"]
    );
}

#[test]
fn an_invalid_object_in_a_relist_keeps_its_last_good_state() {
    let mut relist = Relist::default();
    list(&mut relist, [good("a"), good("b"), good("c")]);
    assert_eq!(
        list(&mut relist, [good("a"), bad("b"), good("d")]),
        ["+ a", "+ d", "! b", "- c"]
    );
    assert_eq!(brief(&relist.handle(Change::Apply(bad("a")))), ["! a"]);
    assert_eq!(brief(&relist.handle(Change::Delete(bad("b")))), ["- b"]);
    assert!(
        relist.handle(Change::Delete(good("b"))).is_empty(),
        "gone already"
    );
}

#[test]
fn an_object_that_becomes_somebody_elses_is_gone() {
    let service = |ip: &str| -> Narrow<core::Service> {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "x"},
            "spec": {"clusterIP": ip}}))
        .unwrap()
    };
    let mut relist = Relist::default();
    assert_eq!(
        brief(&relist.handle(Change::Apply(service("10.0.0.1")))),
        ["+ s"]
    );
    assert_eq!(
        brief(&relist.handle(Change::Apply(service("None")))),
        ["- s"]
    );
    assert!(relist.handle(Change::Apply(service("None"))).is_empty());
    assert_eq!(
        brief(&relist.handle(Change::Apply(service("10.0.0.999")))),
        ["! s"]
    );
}

#[test]
fn what_was_told_of_an_invalid_object_is_taken_back() {
    let service = |name: &str, ip: &str| -> Narrow<core::Service> {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "x"},
            "spec": {"clusterIP": ip}}))
        .unwrap()
    };
    let (wrong, headless) = ("10.0.0.999", "None");
    let mut relist = Relist::default();
    let mut told = |change| brief(&relist.handle(change));
    assert!(told(Change::Init).is_empty());
    assert_eq!(told(Change::InitDone), ["= "]);
    for name in ["a", "b", "c"] {
        let told = told(Change::Apply(service(name, wrong)));
        assert_eq!(told, [format!("! {name}")]);
    }
    assert_eq!(told(Change::Delete(service("a", wrong))), ["- a"]);
    assert_eq!(told(Change::Apply(service("b", headless))), ["- b"]);
    assert_eq!(told(Change::Apply(service("c", "10.0.0.1"))), ["+ c"]);
    assert_eq!(told(Change::Apply(service("d", wrong))), ["! d"]);
    // A list without one of them, once as single changes and once as a reset.
    for (listed, expected) in [
        (service("e", wrong), &["! e", "- c", "- d"][..]),
        (service("f", "10.0.0.2"), &["= f"]),
    ] {
        assert!(told(Change::Init).is_empty());
        assert!(told(Change::InitApply(listed)).is_empty());
        assert_eq!(told(Change::InitDone), expected);
    }
    for name in ["d", "e"] {
        assert!(told(Change::Delete(service(name, wrong))).is_empty());
    }
}

#[test]
fn an_object_without_a_name_is_left_out() {
    let nameless: Narrow<Policy> = serde_json::from_value(json!({"metadata": {}})).unwrap();
    let mut relist = Relist::default();
    assert!(relist.handle(Change::Apply(nameless.clone())).is_empty());
    assert_eq!(list(&mut relist, [nameless, good("a")]), ["= a"]);
}
