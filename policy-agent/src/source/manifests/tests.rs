use std::fs;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

use super::watch::ManifestWatch;
use super::*;
use crate::event::Object;

mod broken;
mod random;

/// A directory, what it was last told, and files written long enough ago to be settled.
struct Folder {
    dir: TempDir,
    manifests: ManifestDir,
}

impl Folder {
    /// A folder with these files, not scanned yet.
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let manifests = ManifestDir::open(dir.path()).unwrap();
        let folder = Self { dir, manifests };
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    /// A folder after its first scan.
    fn scanned(files: &[(&str, &str)]) -> Self {
        let mut folder = Self::new(files);
        folder.manifests.scan();
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    fn scan(&mut self) -> Vec<String> {
        self.manifests.scan().iter().map(brief).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.manifests
            .problems()
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}

/// An event on one line, without the contents of objects.
fn brief(event: &Event) -> String {
    let name = |kind: Kind, key: &ObjectKey| format!("{kind} {}/{}", key.namespace, key.name);
    match event {
        Event::Apply(object) => format!("+ {}", name(object.kind(), &object.key())),
        Event::Delete(kind, key) => format!("- {}", name(*kind, key)),
        Event::Invalid { kind, key, .. } => format!("! {}", name(*kind, key)),
        Event::Reset(kind, objects) => {
            let keys: Vec<_> = objects.iter().map(|o| o.key().to_string()).collect();
            format!("= {kind} [{}]", keys.join(" "))
        }
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: x}}\nspec: {{podSelector: {{}}}}\n"
    )
}

#[test]
fn the_first_scan_resets_every_kind_even_where_there_is_nothing() {
    let mut folder = Folder::new(&[]);
    assert_eq!(
        folder.scan(),
        [
            "= Namespace []",
            "= Node []",
            "= Pod []",
            "= Service []",
            "= EndpointSlice []",
            "= NetworkPolicy []",
            "= ClusterNetworkPolicy []",
            "= ServiceCIDR []"
        ]
    );
    assert!(folder.scan().is_empty());
    assert!(folder.problems().is_empty());
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let error = ManifestDir::open("/nonexistent/manifests").unwrap_err();
    assert!(error.to_string().contains("/nonexistent/manifests"));
}

#[test]
fn reads_every_document_of_yaml_and_json_and_nested_lists() {
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}},
        {"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "x"}}]},
        {"apiVersion": "v1", "kind": "PodList", "items": [
            {"metadata": {"name": "b", "namespace": "x"}}]}
    ]}
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "second"}}
    {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.0.0.0/16", "fd96::/112"]}}"#;
    let yaml = format!(
        "# a comment\n%YAML 1.2\n---\n{}---\n# nothing\n---\n{}...\n--- # one more\n{}---\n{}",
        service("web", "10.0.0.1"),
        policy("p"),
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, endpoints: [],\n \
         metadata: {name: s, labels: {kubernetes.io/service-name: web}}}\n",
        "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, \
         metadata: {name: guard}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}}\n",
    );
    let mut folder = Folder::new(&[
        ("list.json", list),
        ("all.yml", &yaml),
        ("notes.txt", "not: ["),
    ]);
    assert_eq!(
        folder.scan(),
        [
            "= Namespace [/default /x /second]",
            "= Node [/n1]",
            "= Pod [x/a x/b]",
            "= Service [default/web]",
            "= EndpointSlice [default/s]",
            "= NetworkPolicy [x/p]",
            "= ClusterNetworkPolicy [/guard]",
            "= ServiceCIDR [/kubernetes]"
        ]
    );
    assert!(folder.problems().is_empty(), "{:?}", folder.problems());
}

#[test]
fn later_scans_tell_only_differences() {
    let mut folder = Folder::scanned(&[
        ("a.yaml", &service("a", "10.0.0.1")),
        ("b.yaml", &service("b", "10.0.0.2")),
    ]);
    assert!(folder.scan().is_empty());
    folder.write("a.yaml", &service("a", "10.0.0.9"));
    folder.write("c.yaml", &service("c", "10.0.0.3"));
    folder.remove("b.yaml");
    assert_eq!(
        folder.scan(),
        [
            "+ Service default/a",
            "+ Service default/c",
            "- Service default/b"
        ]
    );
    folder.write(
        "a.yaml",
        &format!("# only a comment\n{}", service("a", "10.0.0.9")),
    );
    assert!(folder.scan().is_empty(), "the object has not changed");
}

#[test]
fn a_change_of_equal_size_within_a_clock_tick_is_seen() {
    let mut folder = Folder::scanned(&[("a.yaml", &service("a", "10.0.0.1"))]);
    let path = folder.dir.path().join("a.yaml");
    let stamp = fs::metadata(&path).unwrap().modified().unwrap();
    folder.write("a.yaml", &service("a", "10.0.0.2"));
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(stamp).unwrap();
    assert_eq!(folder.scan(), ["+ Service default/a"]);
}

#[test]
fn hidden_names_are_left_out_and_directories_are_searched() {
    let mut folder = Folder::new(&[
        (".hidden.yaml", &service("a", "10.0.0.1")),
        (".git/b.yaml", &service("b", "10.0.0.2")),
        ("sub/dir/c.yaml", &service("c", "10.0.0.3")),
    ]);
    symlink("..", folder.dir.path().join("sub/circle")).unwrap();
    assert_eq!(folder.scan()[3], "= Service [default/c]");
    assert!(folder.problems().is_empty());
}

#[test]
fn a_mounted_config_map_is_swapped_as_a_whole() {
    let mut folder = Folder::new(&[
        ("..2026_1/web.yaml", &service("web", "10.0.0.1")),
        ("..2026_2/web.yaml", &service("web", "10.0.0.2")),
    ]);
    let root = folder.dir.path().to_owned();
    symlink("..2026_1", root.join("..data")).unwrap();
    symlink("..data/web.yaml", root.join("web.yaml")).unwrap();
    assert_eq!(folder.scan()[3], "= Service [default/web]");
    symlink("..2026_2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(folder.scan(), ["+ Service default/web"]);
}

#[test]
fn the_first_file_by_name_has_an_object_that_two_have() {
    let mut folder = Folder::new(&[
        ("1.yaml", &service("web", "10.0.0.1")),
        ("2.yaml", &service("web", "10.0.0.2")),
    ]);
    let Some(Event::Reset(Kind::Service, services)) = folder.manifests.scan().into_iter().nth(3)
    else {
        panic!("no services");
    };
    let cluster_ip = |object: &Object| match object {
        Object::Service(service) => service.cluster_ips[0].to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(cluster_ip(&services[0]), "10.0.0.1");
    assert_eq!(
        folder.problems(),
        [
            "2.yaml, document 1 (line 1), Service default/web: is in 1.yaml already, which counts: remove one"
        ]
    );
    // The second one takes over although its file has not changed.
    folder.remove("1.yaml");
    let events = folder.manifests.scan();
    let [Event::Apply(object)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(cluster_ip(object), "10.0.0.2");
    assert!(folder.problems().is_empty());
}

#[test]
fn the_same_object_twice_in_one_file_is_reported() {
    let two = format!(
        "{}---\n{}",
        service("web", "10.0.0.1"),
        service("web", "10.0.0.2")
    );
    let folder = Folder::scanned(&[("a.yaml", &two)]);
    assert!(
        folder.problems()[0].contains("document 2 (line 6), Service default/web: is in document 1")
    );
}

#[test]
fn a_service_that_becomes_somebody_elses_is_gone() {
    let mut folder = Folder::scanned(&[("a.yaml", &service("web", "10.0.0.1"))]);
    folder.write("a.yaml", &service("web", "None"));
    assert_eq!(folder.scan(), ["- Service default/web"]);
    folder.write("a.yaml", &service("web", "10.0.0.1"));
    assert_eq!(folder.scan(), ["+ Service default/web"]);
}

#[test]
fn a_namespace_that_nobody_wrote_down_comes_and_goes_with_what_is_in_it() {
    let written = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {a: b}}\n";
    let mut folder = Folder::scanned(&[("p.yaml", &policy("p")), ("x.yaml", written)]);
    folder.remove("x.yaml");
    let events = folder.manifests.scan();
    let [Event::Apply(Object::Namespace(namespace))] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(*namespace, crate::model::Namespace::implicit("x"));
    folder.remove("p.yaml");
    assert_eq!(folder.scan(), ["- Namespace /x", "- NetworkPolicy x/p"]);
}

#[test]
fn the_watch_calls_back_after_a_change_and_without_one() {
    let folder = Folder::new(&[]);
    let (sender, receiver) = mpsc::channel();
    let changed = move || {
        // The receiver is gone at the end of the test.
        sender.send(()).unwrap_or_default();
    };
    let watch = ManifestWatch::start(
        folder.dir.path(),
        Duration::from_secs(3600),
        changed.clone(),
    );
    folder.write("a.yaml", "a: b\n");
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("notified");
    drop(watch);
    while receiver.try_recv().is_ok() {}

    let watch = ManifestWatch::start(folder.dir.path(), Duration::from_millis(10), changed);
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("polled");
    drop(watch);
    while receiver.try_recv().is_ok() {}
    assert!(
        receiver.recv_timeout(Duration::from_millis(50)).is_err(),
        "stopped"
    );
}

#[test]
fn reading_does_not_wake_the_watch() {
    let mut folder = Folder::new(&[("a.yaml", &service("a", "10.0.0.1"))]);
    let (sender, receiver) = mpsc::channel();
    let changed = move || sender.send(()).unwrap_or_default();
    let _watch = ManifestWatch::start(folder.dir.path(), Duration::from_secs(3600), changed);
    folder.manifests.scan();
    folder.manifests.scan();
    assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
}
