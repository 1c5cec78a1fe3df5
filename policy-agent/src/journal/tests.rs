use std::fs;

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use proptest::prelude::*;
use proxy::model::ObjectKey;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::*;
use crate::source::convert::{ClusterNetworkPolicy, Convert};

const NODE: &str = "n1";

fn object<T: Convert + DeserializeOwned>(manifest: Value) -> Object {
    let object: T = serde_json::from_value(manifest).expect("an object");
    object.convert().expect("valid").expect("ours")
}

fn pod(name: &str, app: &str) -> Object {
    object::<core::Pod>(
        json!({"metadata": {"namespace": "x", "name": name, "uid": "u",
        "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": app}},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "ports": [
            {"name": "web", "containerPort": 80}]}]},
        "status": {"podIPs": [{"ip": "10.88.0.2"}, {"ip": "fd88::2"}]}}),
    )
}

/// One of every kind, with every form of its parts.
fn everything() -> Vec<Object> {
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
        {"key": "c", "operator": "NotIn", "values": ["d"]}, {"key": "e", "operator": "Exists"},
        {"key": "f", "operator": "DoesNotExist"}]});
    vec![
        object::<core::Namespace>(json!({"metadata": {"name": "x", "labels": {"team": "a"}}})),
        object::<core::Node>(json!({"metadata": {"name": NODE}, "spec": {
            "podCIDRs": ["10.88.0.0/24"], "taints": [{"key": "t", "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}})),
        pod("web", "web"),
        object::<core::Service>(
            json!({"metadata": {"namespace": "x", "name": "web"}, "spec": {
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "web"}]}}),
        ),
        object::<discovery::EndpointSlice>(json!({"metadata": {"namespace": "x", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.88.0.2"]}], "ports": [{"name": "", "port": 80}]})),
        object::<networking::NetworkPolicy>(json!({
            "metadata": {"namespace": "x", "name": "web"},
            "spec": {"podSelector": selector, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{}, {"from": [{"podSelector": {}},
                    {"namespaceSelector": {}, "podSelector": selector},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                    "ports": [{"port": 80}, {"port": 80, "endPort": 90}, {"port": "web"},
                        {"protocol": "UDP"}]}]}})),
        object::<ClusterNetworkPolicy>(json!({"metadata": {"name": "c"}, "spec": {
            "tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
            "ingress": [{"name": "r", "action": "Pass", "from": [{"namespaces": {}}]}],
            "egress": [{"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]},
                {"nodes": {"matchLabels": {"a": "b"}}}]}]}})),
        object::<networking::ServiceCIDR>(json!({"metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16"]}})),
    ]
}

fn lists(objects: &[Object]) -> Vec<Event> {
    let of = |kind| {
        objects
            .iter()
            .filter(move |object| object.kind() == kind)
            .cloned()
    };
    let reset = |kind| Event::Reset(kind, of(kind).collect());
    Kind::ALL.map(reset).into()
}

fn write(folder: &Path, events: &[Event]) {
    let journal = Journal::start(folder, NODE).expect("a thread");
    events.iter().for_each(|event| journal.note(event));
}

fn read(folder: &Path) -> Option<Vec<Event>> {
    restore(folder, NODE)
        .expect("readable")
        .map(|restored| restored.events)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// netpol.md 64.
#[test]
fn what_was_written_is_what_is_read() {
    let folder = folder();
    assert_eq!(read(&folder.path().join("new")), None);
    let mut objects = everything();
    write(&folder.path().join("another/deeper"), &lists(&objects));
    assert!(read(&folder.path().join("another/deeper")).is_some());
    write(folder.path(), &lists(&objects));
    assert_eq!(read(folder.path()), Some(lists(&objects)));

    let changes = [
        Event::Apply(pod("late", "a")),
        Event::Apply(pod("late", "b")),
        Event::Delete(Kind::Pod, ObjectKey::new("x", "web")),
    ];
    write(folder.path(), &[lists(&objects), changes.into()].concat());
    objects.retain(|object| object.kind() != Kind::Pod);
    objects.push(pod("late", "b"));
    assert_eq!(read(folder.path()), Some(lists(&objects)));
}

#[test]
fn what_is_not_complete_takes_nothing_away() {
    let folder = folder();
    let objects = everything();
    write(folder.path(), &lists(&objects));
    // The next agent ends before it has listed the last kind.
    let mut next = lists(&[pod("other", "other")]);
    next.pop();
    write(folder.path(), &next);
    assert_eq!(read(folder.path()), Some(lists(&objects)));
}

#[test]
fn a_torn_end_is_not_counted_and_nothing_else_is_tolerated() {
    let folder = folder();
    let objects = everything();
    let late = [Event::Apply(pod("late", "a"))];
    write(folder.path(), &[lists(&objects), late.into()].concat());
    let path = folder.path().join(NAME);
    let whole = fs::read_to_string(&path).expect("text");
    let last = whole.trim_end().rfind('\n').expect("several lines") + 1;
    for length in [last, last + 1, whole.len() - 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("written");
        assert_eq!(read(folder.path()), Some(lists(&objects)), "{length} bytes");
    }
    // A list that is torn does not count, also where an older one does.
    let relist = format!("{whole}= Pod 2\n+ Pod x/a {{}}\n+ Po");
    fs::write(&path, relist).expect("written");
    let pods = |events: Option<Vec<Event>>| match &events.expect("a state")[2] {
        Event::Reset(Kind::Pod, pods) => pods.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(pods(read(folder.path())), 2);

    let damages = [
        ("trammel-objects 0 n1\n".to_owned(), "line 1"),
        (whole.replacen(NODE, "n2", 1), "line 1"),
        (whole[..last / 2].to_owned(), "without a list of"),
        (whole.replacen("{\"Pod\":{", "{\"Pod\":[", 1), "line"),
        (
            whole.replacen("+ Pod x/web", "+ Pod x/other", 1),
            "is Pod x/web",
        ),
        (whole.replacen("= Pod 1", "= Pod 2", 1), "line"),
        (
            whole.replacen("= Pod 1\n", "\0\0\0\0\n", 1),
            "no line of a journal",
        ),
    ];
    for (text, reason) in damages {
        fs::write(&path, text).expect("written");
        let error = restore(folder.path(), NODE).expect_err(reason).to_string();
        assert!(
            error.contains(reason) && error.contains("objects"),
            "{error}"
        );
    }
}

/// The next file may be half written by then.
#[test]
fn reading_does_not_disturb_the_writer() {
    let folder = folder();
    let mut objects = everything();
    write(folder.path(), &lists(&objects));
    let mut writer = Writer::new(folder.path(), NODE);
    objects.push(pod("late", "late"));
    for event in lists(&objects) {
        writer.take(event);
        writer.write();
        assert!(read(folder.path()).is_some());
    }
    assert_eq!(
        read(folder.path()).map(sorted),
        Some(sorted(lists(&objects)))
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_not_read() {
    let folder = folder();
    write(folder.path(), &lists(&everything()));
    // Not even root writes a file where a folder is.
    fs::remove_file(folder.path().join(NEW)).ok();
    fs::create_dir(folder.path().join(NEW)).expect("a folder");
    assert!(restore(folder.path(), NODE).is_err());
    // What would grow old is taken away.
    write(folder.path(), &lists(&everything()));
    assert!(!folder.path().join(NAME).exists());
}

#[test]
fn a_file_that_has_grown_is_written_anew_with_the_same_contents() {
    let folder = folder();
    let mut writer = Writer::new(folder.path(), NODE);
    let mut objects = everything();
    lists(&objects)
        .into_iter()
        .for_each(|event| writer.take(event));
    writer.write();
    writer.limit = 20_000;
    let mut largest = 0;
    for round in 0..200 {
        writer.take(Event::Apply(pod("busy", &round.to_string())));
        writer.write();
        largest = largest.max(fs::metadata(folder.path().join(NAME)).expect("there").len());
        // SMALL would never be reached.
        writer.limit = 20_000;
    }
    objects.push(pod("busy", "199"));
    assert_eq!(read(folder.path()), Some(sorted(lists(&objects))));
    assert!(largest < 21_000, "{largest} bytes");
}

/// Objects of a kind are read in the order of their names.
fn sorted(events: Vec<Event>) -> Vec<Event> {
    let sort = |event| match event {
        Event::Reset(kind, mut objects) => {
            objects.sort_by_key(Object::key);
            Event::Reset(kind, objects)
        }
        other => other,
    };
    events.into_iter().map(sort).collect()
}

/// Where this fails the types have changed: raise [`FORMAT`] with it, or an older file is
/// taken for what it is not.
#[test]
fn the_format_has_the_number_of_its_types() {
    let text: Vec<_> = everything()
        .iter()
        .map(|object| serde_json::to_string(object).expect("JSON"))
        .collect();
    insta::assert_snapshot!(format!("format-{FORMAT}"), text.join("\n"));
}

fn arb_event() -> impl Strategy<Value = Event> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        4 => (name(), name()).prop_map(|(name, app)| Event::Apply(pod(name, app))),
        2 => name().prop_map(|name| Event::Delete(Kind::Pod, ObjectKey::new("x", name))),
        1 => prop::collection::btree_set(name(), 0..3).prop_map(|names| {
            Event::Reset(Kind::Pod, names.into_iter().map(|name| pod(name, "listed")).collect())
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is told, wherever the file is cut: it is what was known after some of it.
    #[test]
    fn any_cut_is_a_state_that_there_was(
        events in prop::collection::vec(arb_event(), 0..12), cut in 0.0..1.0f64,
    ) {
        let folder = folder();
        write(folder.path(), &lists(&[]));
        let path = folder.path().join(NAME);
        let begin = fs::read(&path).expect("there").len();
        write(folder.path(), &[lists(&[]), events.clone()].concat());
        let whole = fs::read(&path).expect("there");
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss,
            clippy::cast_sign_loss, reason = "a place somewhere in a short file")]
        let length = begin + ((whole.len() - begin) as f64 * cut) as usize;
        fs::write(&path, &whole[..length]).expect("written");

        let mut known = BTreeMap::new();
        let mut states = vec![lists(&[])];
        for event in events {
            match event {
                Event::Apply(object) => drop(known.insert(object.key(), object)),
                Event::Delete(_, key) => drop(known.remove(&key)),
                Event::Reset(_, objects) => {
                    known = objects.into_iter().map(|object| (object.key(), object)).collect();
                }
                Event::Invalid { .. } => {}
            }
            states.push(lists(&known.values().cloned().collect::<Vec<_>>()));
        }
        let read = read(folder.path()).expect("complete");
        prop_assert!(states.contains(&read));
    }
}

/// The last change of a busy time is as safe as those before it.
#[test]
fn what_is_written_waits_for_the_disk_no_longer_because_nothing_follows() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(folder.path(), NODE);
    let write = |writer: &mut Writer, events: Vec<Event>| {
        events.into_iter().for_each(|event| writer.take(event));
        writer.write();
    };
    assert_eq!(writer.until_sync(), None, "nothing is written");
    write(&mut writer, lists(&everything()));
    assert_eq!(writer.until_sync(), None, "a new file is synced");
    // However slow the machine is: the last time is not over, and then it is.
    writer.synced = Instant::now() + 100 * SYNC;
    write(&mut writer, vec![Event::Apply(pod("web", "other"))]);
    assert_eq!(writer.until_sync(), Some(SYNC), "written since");
    writer.synced = Instant::now()
        .checked_sub(SYNC)
        .expect("it runs for longer");
    assert_eq!(writer.until_sync(), Some(Duration::ZERO));
    write(&mut writer, Vec::new());
    assert_eq!(writer.until_sync(), None);
}
