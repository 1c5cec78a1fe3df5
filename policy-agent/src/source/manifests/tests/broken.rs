use super::*;

fn reason(events: &[Event]) -> String {
    let reasons = events.iter().filter_map(|event| match event {
        Event::Invalid { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    reasons.collect::<Vec<_>>().join("; ")
}

#[test]
fn an_object_that_becomes_wrong_keeps_its_last_good_state() {
    let two = format!(
        "{}---\n{}",
        service("web", "10.0.0.1"),
        service("other", "10.0.0.2")
    );
    let mut folder = Folder::scanned(&[("a.yaml", &two)]);
    folder.write(
        "a.yaml",
        &two.replace("10.0.0.1", "10.0.0.1000")
            .replace("10.0.0.2", "10.0.0.3"),
    );
    let events = folder.manifests.scan();
    let lines: Vec<_> = events.iter().map(brief).collect();
    assert_eq!(lines, ["+ Service default/other", "! Service default/web"]);
    assert_eq!(
        reason(&events),
        "spec.clusterIPs[0] is \"10.0.0.1000\": use a unicast IP address"
    );
    assert_eq!(
        folder.problems(),
        ["a.yaml, document 1 (line 1), Service default/web: \
          spec.clusterIPs[0] is \"10.0.0.1000\": use a unicast IP address"]
    );
    assert!(folder.scan().is_empty(), "told once");
    folder.write("a.yaml", &two.replace("10.0.0.2", "10.0.0.3"));
    assert_eq!(
        folder.scan(),
        ["+ Service default/web"],
        "good again, as it was kept"
    );
    assert!(folder.problems().is_empty());
    assert!(folder.scan().is_empty(), "told once");
}

#[test]
fn what_was_told_of_an_invalid_object_is_taken_back() {
    let wrong = |name| service(name, "10.0.0.1000");
    let files = ["a", "b", "c"].map(|name| (format!("{name}.yaml"), wrong(name)));
    let files = files.each_ref().map(|(name, text)| (&**name, &**text));
    let mut folder = Folder::scanned(&files);
    assert_eq!(folder.problems().len(), 3);
    folder.remove("a.yaml");
    folder.write("b.yaml", &service("b", "None"));
    folder.write("c.yaml", &service("c", "10.0.0.1"));
    assert_eq!(
        folder.scan(),
        [
            "+ Service default/c",
            "- Service default/a",
            "- Service default/b",
        ]
    );
    assert!(folder.scan().is_empty(), "told once");
}

#[test]
fn a_type_error_names_the_field() {
    let text = "\n---\n".to_owned() + &service("web", "10.0.0.1").replace("80", "eighty");
    let mut folder = Folder::new(&[("a.yaml", &text)]);
    let events = folder.manifests.scan();
    assert!(
        reason(&events).starts_with("spec.ports[0].port: invalid type"),
        "{}",
        reason(&events)
    );
    assert!(folder.problems()[0].starts_with("a.yaml, document 1 (line 3), Service default/web: "));

    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"a": 1.0}}}]}"#;
    folder.write("a.yaml", list);
    let events = folder.manifests.scan();
    assert!(
        reason(&events).starts_with("items[0].metadata.labels.a: "),
        "{}",
        reason(&events)
    );
}

#[test]
fn a_document_that_does_not_parse_leaves_the_others_and_what_it_held() {
    let good = format!(
        "{}---\n{}",
        service("a", "10.0.0.1"),
        service("b", "10.0.0.2")
    );
    let mut folder = Folder::scanned(&[("a.yaml", &good)]);
    let bad = format!(
        "{}---\nkind: Service\n  metadata: [\n---\n{}",
        service("a", "10.0.0.9"),
        service("c", "10.0.0.3")
    );
    folder.write("a.yaml", &bad);
    assert_eq!(
        folder.scan(),
        ["+ Service default/a", "+ Service default/c"],
        "b stays"
    );
    let problems = folder.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("a.yaml, document 2 (line 7): is no YAML, correct it: "),
        "{problems:?}"
    );
    folder.write("a.yaml", &service("a", "10.0.0.9"));
    assert_eq!(
        folder.scan(),
        ["- Service default/b", "- Service default/c"]
    );
}

#[test]
fn documents_that_do_not_say_what_they_are_are_problems() {
    let table = [
        ("just text", "is no object"),
        ("a: b", "has no kind"),
        (
            "apiVersion: v1\nkind: Service\nspec: {clusterIP: 10.0.0.1}",
            "Service: metadata.name is missing: name the object",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {}",
            "Service: metadata.name is missing",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: 1}",
            "Service: metadata.name: invalid type",
        ),
        ("a: 1\na: 2", "is no YAML"),
        ("a: [", "is no YAML"),
        ("a: *unknown", "is no YAML"),
    ];
    for (text, expected) in table {
        let mut folder = Folder::scanned(&[("a.yaml", &service("web", "10.0.0.1"))]);
        folder.write("a.yaml", text);
        assert!(folder.scan().is_empty(), "{text}: what the file held stays");
        let problems = folder.problems();
        assert_eq!(problems.len(), 1, "{text}");
        assert!(problems[0].contains(expected), "{text}: {problems:?}");
        assert_eq!(problems[0].lines().count(), 1, "{problems:?}");
        assert!(
            !problems[0].contains("at line"),
            "one line number only: {problems:?}"
        );
    }
}

#[test]
fn json_that_breaks_off_keeps_what_came_before_and_what_was_held() {
    let object = |name: &str| {
        format!(r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "{name}"}}}}"#)
    };
    let mut folder = Folder::scanned(&[("a.json", &(object("a") + &object("b")))]);
    folder.write("a.json", &format!("{}\n{{\"kind\": \"No", object("c")));
    assert_eq!(folder.scan(), ["+ Node /c"]);
    assert!(folder.problems()[0].starts_with("a.json, document 2 (line 2): is no JSON"));
}

#[test]
fn a_file_that_is_not_text_or_cannot_be_read_keeps_what_it_held() {
    let mut folder = Folder::scanned(&[("a.yaml", &service("web", "10.0.0.1"))]);
    let path = folder.dir.path().join("a.yaml");
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(folder.scan().is_empty());
    assert!(folder.problems()[0].contains("is not UTF-8"));
    fs::remove_file(&path).unwrap();
    symlink("nowhere", &path).unwrap();
    assert!(folder.scan().is_empty(), "a link that leads nowhere");
    assert!(
        folder.problems()[0].contains("cannot be read"),
        "{:?}",
        folder.problems()
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(
        folder.scan(),
        ["- Namespace /default", "- Service default/web"]
    );
}

#[test]
fn a_directory_that_vanishes_keeps_everything() {
    let mut folder = Folder::scanned(&[("a.yaml", &service("web", "10.0.0.1"))]);
    let moved = folder.dir.path().with_extension("moved");
    fs::rename(folder.dir.path(), &moved).unwrap();
    assert!(folder.scan().is_empty());
    assert!(folder.problems()[0].starts_with("the directory: cannot list"));
    fs::rename(&moved, folder.dir.path()).unwrap();
    assert!(folder.scan().is_empty());
    assert!(folder.problems().is_empty());
}

#[test]
fn a_file_that_was_just_emptied_is_being_written() {
    let mut folder = Folder::scanned(&[("a.yaml", &service("web", "10.0.0.1"))]);
    let start = Instant::now();
    folder.write("a.yaml", "");
    loop {
        let events = folder.scan();
        if !events.is_empty() {
            assert_eq!(events, ["- Namespace /default", "- Service default/web"]);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(start.elapsed() > Duration::from_millis(500), "not at once");
}

#[test]
fn a_policy_that_was_never_readable_isolates_its_namespace() {
    let bad = policy("p").replace("podSelector: {}", "podSelector: 7");
    let mut folder = Folder::new(&[("p.yaml", &bad)]);
    let events = folder.manifests.scan();
    let Event::Reset(Kind::NetworkPolicy, policies) = &events[5] else {
        panic!()
    };
    let [Object::NetworkPolicy(policy_told)] = &policies[..] else {
        panic!()
    };
    assert_eq!(policy_told.ingress.as_deref(), Some(&[][..]));
    assert_eq!(policy_told.egress.as_deref(), Some(&[][..]));
    assert!(policy_told.problems[0].starts_with("spec.podSelector: invalid type"));
    assert_eq!(brief(&events[Kind::ALL.len()]), "! NetworkPolicy x/p");
    folder.write("p.yaml", &policy("p"));
    assert_eq!(folder.scan(), ["+ NetworkPolicy x/p"]);
    folder.write("p.yaml", &bad);
    assert_eq!(
        folder.scan(),
        ["! NetworkPolicy x/p"],
        "the last good state stays now"
    );
}

#[test]
fn a_misspelt_field_of_a_policy_is_an_error() {
    let table = [
        ("ingress: [{form: []}]", "spec.ingress[0].form"),
        ("ingres: []", "spec.ingres"),
        (
            "egress: [{to: [{podselector: {}}]}]",
            "spec.egress[0].to[0].podselector",
        ),
    ];
    for (section, expected) in table {
        let text = policy("p").replace("podSelector: {}", &format!("podSelector: {{}}, {section}"));
        let mut folder = Folder::new(&[("p.yaml", &text)]);
        let events = folder.manifests.scan();
        let expected = format!("{expected} is no field of NetworkPolicy");
        assert!(
            reason(&events).starts_with(&expected),
            "{}",
            reason(&events)
        );
    }
    let status = policy("p") + "status: null\n";
    let mut folder = Folder::new(&[("p.yaml", &status)]);
    assert_eq!(reason(&folder.manifests.scan()), "", "null is nothing");
}

#[test]
fn other_kinds_are_left_alone_and_other_versions_refused() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n\
                apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: s}\n---\n\
                apiVersion: v1\nkind: ConfigMapList\nitems: [{metadata: {name: c}}]\n---\n\
                apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    let mut folder = Folder::new(&[("a.yaml", text)]);
    let events = folder.scan();
    assert_eq!(events[3], "= Service []");
    assert_eq!(
        events[5], "= NetworkPolicy [default/p]",
        "closed, because nothing is known of it"
    );
    assert_eq!(folder.problems().len(), 1);
    assert!(folder.problems()[0].contains("write networking.k8s.io/v1"));
    let kinds: Vec<_> = folder.manifests.named_kinds.iter().cloned().collect();
    assert_eq!(
        kinds,
        [
            "apps/v1/Deployment",
            "serving.knative.dev/v1/Service",
            "v1/ConfigMap"
        ]
    );
}

#[test]
fn a_file_that_reverts_its_clock_is_read_again() {
    let mut folder = Folder::scanned(&[("a.yaml", &service("a", "10.0.0.1"))]);
    folder.write("a.yaml", &service("a", "10.0.0.2"));
    let file = fs::File::options()
        .write(true)
        .open(folder.dir.path().join("a.yaml"))
        .unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(folder.scan(), ["+ Service default/a"]);
}
