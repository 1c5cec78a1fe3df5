//! Whatever happened to the files, the sum of what was told is what a first scan of the
//! directory as it is now would tell.

use proptest::prelude::*;

use super::*;

type State = BTreeMap<Id, Object>;

/// A change of one of the files.
#[derive(Clone, Debug)]
enum Step {
    /// The file holds these objects now: (name, variant).
    Write(usize, Vec<(u8, u8)>),
    Remove(usize),
    Rename(usize, usize),
}

const FILES: [&str; 3] = ["a.yaml", "b.json", "sub/c.yml"];

fn arb_step() -> impl Strategy<Value = Step> {
    let objects = proptest::collection::vec((0u8..4, 0u8..4), 0..5);
    prop_oneof![
        4 => (0..FILES.len(), objects).prop_map(|(file, objects)| Step::Write(file, objects)),
        1 => (0..FILES.len()).prop_map(Step::Remove),
        1 => Just(Step::Rename(0, 2)),
    ]
}

/// Services, policies and pods in three namespaces; variant 3 of a Service is headless.
fn object((name, variant): (u8, u8)) -> String {
    let metadata = format!(
        r#""metadata": {{"name": "o{name}", "namespace": "n{}"}}"#,
        name % 3
    );
    match name % 3 {
        0 => {
            let ip = if variant == 3 {
                "None".to_owned()
            } else {
                format!("10.0.0.{}", variant + 1)
            };
            format!(
                r#"{{"apiVersion": "v1", "kind": "Service", {metadata}, "spec": {{"clusterIP": "{ip}"}}}}"#
            )
        }
        1 => format!(
            r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", {metadata},
                "spec": {{"podSelector": {{"matchLabels": {{"v": "{variant}"}}}}}}}}"#
        ),
        _ => format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", {metadata}, "status": {{"podIP": "10.1.0.{variant}"}}}}"#
        ),
    }
}

fn apply(state: &mut State, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Apply(object) => {
                let before = state.insert((object.kind(), object.key()), object.clone());
                assert_ne!(before, Some(object), "told although it had not changed");
            }
            Event::Delete(kind, key) => {
                assert!(state.remove(&(kind, key)).is_some(), "told twice");
            }
            Event::Reset(kind, objects) => {
                state.retain(|id, _| id.0 != kind);
                state.extend(objects.into_iter().map(|o| ((o.kind(), o.key()), o)));
            }
            Event::Invalid { .. } => panic!("{event:?}"),
        }
    }
}

fn perform(folder: &Folder, step: &Step) {
    let path = |file: usize| folder.dir.path().join(FILES[file]);
    match step {
        Step::Write(file, objects) => {
            let objects: Vec<String> = objects.iter().copied().map(object).collect();
            let text = match FILES[*file].ends_with("json") {
                true => format!("{}\n", objects.join("\n")),
                false => format!("# objects\n---\n{}\n", objects.join("\n---\n")),
            };
            folder.write(FILES[*file], &text);
        }
        Step::Remove(file) if path(*file).exists() => fs::remove_file(path(*file)).unwrap(),
        Step::Rename(from, to) if path(*from).exists() => {
            fs::create_dir_all(path(*to).parent().unwrap()).unwrap();
            fs::rename(path(*from), path(*to)).unwrap();
        }
        Step::Remove(_) | Step::Rename(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_was_told_adds_up_to_what_is_there(
        rounds in proptest::collection::vec(proptest::collection::vec(arb_step(), 0..3), 1..8),
    ) {
        let mut folder = Folder::new(&[]);
        let mut told = State::new();
        for steps in rounds {
            for step in &steps {
                perform(&folder, step);
            }
            apply(&mut told, folder.manifests.scan());
            let mut fresh = State::new();
            let mut again = ManifestDir::open(folder.dir.path()).unwrap();
            apply(&mut fresh, again.scan());
            prop_assert_eq!(&told, &fresh, "after {:?}", steps);
            prop_assert_eq!(folder.manifests.problems(), again.problems());
        }
    }
}
