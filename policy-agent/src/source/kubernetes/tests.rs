//! The watches against an API server in this process.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json! literals read better without a borrow"
)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::event::Object;
use fake::{FakeApi, Script};

mod fake;
mod past;
mod relist;

/// Longer than the watcher's first delays after an error (0.8 s and 1.6 s, with jitter).
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    api: FakeApi,
    events: mpsc::Receiver<Event>,
    states: watch::Receiver<WatchStates>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    async fn start(script: Script) -> Self {
        let api = FakeApi::start(script).await;
        let config = kube::Config::new(api.url().parse().unwrap());
        let client = connection::connect(config).unwrap();
        let (sender, events) = mpsc::channel(64);
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let states = Watches::start(client, sender, &tasks, cancel.clone(), &[]);
        tasks.close();
        Self {
            api,
            events,
            states,
            cancel,
            tasks,
        }
    }

    /// The next event of that kind; those of others are passed over.
    async fn next(&mut self, kind: Kind) -> Event {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the watches run");
                if kind_of(&event) == kind {
                    return event;
                }
            }
        };
        timeout(PATIENCE, next).await.expect("an event in time")
    }

    /// Waits until the state of a kind's watch is such.
    async fn until(&mut self, kind: Kind, holds: impl Fn(&WatchState) -> bool) {
        let wait = self.states.wait_for(|states| holds(&states[&kind]));
        timeout(PATIENCE, wait)
            .await
            .expect("in time")
            .expect("the watches run");
    }

    async fn stop(self) {
        self.cancel.cancel();
        timeout(PATIENCE, self.tasks.wait())
            .await
            .expect("every task ends");
        self.api.stop().await;
    }
}

fn kind_of(event: &Event) -> Kind {
    match event {
        Event::Apply(object) => object.kind(),
        Event::Delete(kind, _) | Event::Reset(kind, _) | Event::Invalid { kind, .. } => *kind,
    }
}

fn names(event: &Event) -> (char, Vec<String>) {
    match event {
        Event::Apply(object) => ('+', vec![object.key().name.to_string()]),
        Event::Delete(_, key) => ('-', vec![key.name.to_string()]),
        Event::Invalid { key, .. } => ('!', vec![key.name.to_string()]),
        Event::Reset(_, objects) => (
            '=',
            objects.iter().map(|o| o.key().name.to_string()).collect(),
        ),
    }
}

fn pod(name: &str, version: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "x", "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubelet", "operation": "Update"}]},
        "spec": {"containers": []}, "status": {"podIP": "10.0.0.1"},
    })
}

fn change(what: &str, object: Value) -> Value {
    let mut object = object;
    object["apiVersion"] = "v1".into();
    object["kind"] = "Pod".into();
    json!({"type": what, "object": object})
}

fn bookmark(version: u32) -> Value {
    json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Pod",
        "metadata": {"resourceVersion": version.to_string()}}})
}

#[tokio::test]
async fn every_kind_is_listed_before_anything_else_and_tasks_end_on_demand() {
    let mut running = Running::start(Script::default()).await;
    let mut kinds = Vec::new();
    for _ in Kind::ALL {
        match timeout(PATIENCE, running.events.recv())
            .await
            .unwrap()
            .unwrap()
        {
            Event::Reset(kind, objects) if objects.is_empty() => kinds.push(kind),
            other => panic!("{other:?}"),
        }
    }
    kinds.sort();
    assert_eq!(kinds, Kind::ALL);
    for kind in Kind::ALL {
        running
            .until(kind, |state| state.listed && state.error.is_none())
            .await;
    }
    let queries = running.api.queries();
    let of = |path: &str| queries.iter().find(|q| q.path == path).unwrap();
    let served = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
    assert_eq!(
        of("/api/v1/services").parameter("labelSelector").as_deref(),
        Some(served)
    );
    assert_eq!(
        of("/apis/discovery.k8s.io/v1/endpointslices")
            .parameter("labelSelector")
            .as_deref(),
        Some(served)
    );
    assert_eq!(of("/api/v1/pods").parameter("labelSelector"), None);
    running.stop().await;
}

#[tokio::test]
async fn changes_bookmarks_and_a_disconnect_lose_nothing_and_repeat_nothing() {
    let script = Script::default()
        .list("pods", 10, [pod("a", 5), pod("b", 6)])
        .watch("pods", [change("ADDED", pod("c", 11)), bookmark(20)])
        .watch(
            "pods",
            [
                change("DELETED", pod("a", 21)),
                change("MODIFIED", pod("b", 22)),
            ],
        );
    let mut running = Running::start(script).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(names(&running.next(Kind::Pod).await));
    }
    let expected = [
        ('=', vec!["a", "b"]),
        ('+', vec!["c"]),
        ('-', vec!["a"]),
        ('+', vec!["b"]),
    ];
    assert_eq!(
        seen,
        expected.map(|(c, n)| (c, n.into_iter().map(str::to_owned).collect()))
    );
    // The second watch goes on from the bookmark, and there was one list only.
    let watches = running.api.watches("/api/v1/pods");
    assert_eq!(watches[..2], ["10", "20"]);
    assert_eq!(running.api.lists("/api/v1/pods"), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_expired_version_lists_again_without_a_complaint() {
    let gone = json!({"type": "ERROR", "object": {"apiVersion": "v1", "kind": "Status",
        "status": "Failure", "code": 410, "reason": "Expired", "message": "too old", "metadata": {}}});
    let script = Script::default()
        .list("pods", 10, [pod("a", 5)])
        .watch("pods", [gone])
        .list("pods", 30, [pod("b", 29)]);
    let mut running = Running::start(script).await;
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        ('=', vec!["a".into()])
    );
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        ('=', vec!["b".into()])
    );
    assert_eq!(running.states.borrow()[&Kind::Pod].error, None);
    running.stop().await;
}

/// What a load balancer without a server says, and a server that is starting. A client that
/// repeats requests by itself hides it for minutes.
#[tokio::test]
async fn a_server_that_is_unavailable_is_told_at_once() {
    let script = (0..20).fold(Script::default(), |script, _| script.fail("pods", 503));
    let mut running = Running::start(script).await;
    running
        .until(Kind::Pod, |state| state.error.is_some())
        .await;
    running.stop().await;
}

#[test]
fn watches_that_fail_alike_are_one_problem() {
    let broken = |error: &str| WatchState {
        error: Some(error.to_owned()),
        ..WatchState::default()
    };
    let mut states: WatchStates = Kind::ALL.map(|kind| (kind, WatchState::default())).into();
    assert_eq!((problems(&states).len(), super::broken(&states)), (0, 0));
    states.insert(Kind::Pod, broken("no route to host"));
    states.insert(Kind::Node, broken("no route to host"));
    states.insert(Kind::Service, broken("forbidden"));
    let told = problems(&states);
    let told: Vec<_> = told.iter().map(|problem| problem.reason.as_str()).collect();
    let known = "and what is known of them is enforced on";
    assert_eq!(
        told,
        [
            format!("watching Service fails, {known}: forbidden"),
            format!("watching Node, Pod fails, {known}: no route to host"),
        ]
    );
    assert_eq!(super::broken(&states), 3);
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_it() {
    let script = Script::default()
        .later("pods", 3)
        .list("pods", 10, [pod("a", 5)]);
    let started = std::time::Instant::now();
    let mut running = Running::start(script).await;
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        ('=', vec!["a".into()])
    );
    assert!(started.elapsed() >= Duration::from_secs(3));
    assert_eq!(running.api.lists("/api/v1/pods"), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_fails_is_told_once_and_tried_again() {
    let script =
        Script::default()
            .fail("pods", 500)
            .fail("pods", 503)
            .list("pods", 10, [pod("a", 5)]);
    let mut running = Running::start(script).await;
    let mut states = running.states.clone();
    let history = tokio::spawn(async move {
        let mut history = Vec::new();
        loop {
            states.changed().await.unwrap();
            let state = states.borrow_and_update()[&Kind::Pod].clone();
            if history.last() != Some(&state) {
                history.push(state.clone());
            }
            if state.listed {
                return history;
            }
        }
    });
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        ('=', vec!["a".into()])
    );
    let history = timeout(PATIENCE, history).await.unwrap().unwrap();
    let broken: Vec<bool> = history.iter().map(|state| state.error.is_some()).collect();
    let mut changes = broken.clone();
    changes.dedup();
    // It may be seen before the first error; it is never seen to recover between the two.
    let changes = changes.strip_prefix(&[false]).unwrap_or(&changes);
    assert_eq!(changes, [true, false], "{history:?}");
    let error = history
        .iter()
        .find_map(|state| state.error.clone())
        .unwrap();
    assert!(error.contains("scripted failure"), "{error}");
    assert_eq!(running.api.lists("/api/v1/pods"), 3);
    running.stop().await;
}

#[tokio::test]
async fn a_malformed_object_stops_nothing() {
    let mut bad = pod("bad", 6);
    bad["spec"]["containers"] = "none".into();
    let script = Script::default()
        .list("pods", 10, [pod("a", 5), bad.clone()])
        .watch(
            "pods",
            [change("MODIFIED", bad), change("ADDED", pod("c", 12))],
        );
    let mut running = Running::start(script).await;
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        ('=', vec!["a".into()])
    );
    let invalid = running.next(Kind::Pod).await;
    assert!(
        matches!(&invalid, Event::Invalid { key, reason, .. }
            if key.to_string() == "x/bad" && reason.contains("cannot be read: spec.containers: invalid type")),
        "{invalid:?}"
    );
    assert_eq!(names(&running.next(Kind::Pod).await).0, '!');
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        ('+', vec!["c".into()])
    );
    running.stop().await;
}

#[tokio::test]
async fn the_watches_end_when_nobody_listens() {
    let script = Script::default().list("pods", 10, [pod("a", 5)]);
    let Running {
        api,
        events,
        tasks,
        cancel,
        ..
    } = Running::start(script).await;
    drop(events);
    timeout(PATIENCE, tasks.wait())
        .await
        .expect("every task ends");
    assert!(!cancel.is_cancelled());
    api.stop().await;
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named() {
    let access = Access::Kubeconfig("/nonexistent/kubeconfig".into());
    let Err(error) = client(&access).await else {
        panic!("a client")
    };
    assert!(error.to_string().contains("/nonexistent/kubeconfig"));
}

/// netpol.md 85: the kind is a custom resource that a cluster need not have.
#[tokio::test]
async fn a_kind_that_is_not_installed_holds_nothing_up_and_is_watched_once_it_is() {
    let resource = "clusternetworkpolicies";
    let policy = json!({
        "metadata": {"name": "guard", "resourceVersion": "4"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    });
    let script = Script::default()
        .fail(resource, 404)
        .fail(resource, 404)
        .list(resource, 5, [policy]);
    let mut running = Running::start(script).await;
    let kind = Kind::ClusterNetworkPolicy;
    assert_eq!(names(&running.next(kind).await), ('=', vec![]));
    running
        .until(kind, |state| state.listed && state.error.is_none())
        .await;
    // Told once, and then what comes.
    let guard = vec!["guard".to_owned()];
    assert_eq!(names(&running.next(kind).await), ('=', guard));
    running.stop().await;
}

/// An API server that has just been started knows no rights for a moment.
#[tokio::test]
async fn ranges_of_services_are_not_forgotten_while_the_right_to_read_them_is_refused() {
    let resource = "servicecidrs";
    let ranges = |name: &str, version: u32| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": name, "resourceVersion": version.to_string()},
            "spec": {"cidrs": ["10.96.0.0/16"]},
        })
    };
    let added = json!({"type": "ADDED", "object": ranges("more", 7)});
    let script = Script::default()
        .fail(resource, 403)
        .list(resource, 5, [ranges("kubernetes", 4)])
        .fail_watch(resource, 403)
        .watch(resource, [added]);
    let mut running = Running::start(script).await;
    let kind = Kind::ServiceCidr;
    // Without the right from the start nothing is held up.
    assert_eq!(names(&running.next(kind).await), ('=', vec![]));
    let first = vec!["kubernetes".to_owned()];
    assert_eq!(names(&running.next(kind).await), ('=', first));
    assert_eq!(
        names(&running.next(kind).await),
        ('+', vec!["more".to_owned()])
    );
    running.stop().await;
}

/// A kind that every cluster has is not taken for empty by an answer that is wrong.
#[tokio::test]
async fn a_kind_of_every_cluster_is_waited_for_however_the_server_answers() {
    let script = Script::default().fail("networkpolicies", 404);
    let mut running = Running::start(script).await;
    let kind = Kind::NetworkPolicy;
    running.until(kind, |state| state.error.is_some()).await;
    assert!(!running.states.borrow()[&kind].listed);
    assert_eq!(names(&running.next(kind).await), ('=', vec![]));
    running.stop().await;
}

/// netpol.md 65: however long the API server was away, it is asked again within 5 s.
#[tokio::test]
async fn a_long_outage_makes_no_long_pauses() {
    let pauses: Vec<_> = Impatient::default().take(50).collect();
    assert_eq!(pauses.len(), 50, "it never gives up");
    assert!(pauses[0] < Duration::from_secs(2), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
    assert!(pauses[49] > Duration::from_secs(2), "{pauses:?}");
}
