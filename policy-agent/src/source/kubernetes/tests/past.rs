//! A server that goes back in time.

use super::*;

fn reset(names: &[&str]) -> (char, Vec<String>) {
    ('=', names.iter().map(ToString::to_string).collect())
}

fn kube_system(uid: &str) -> Value {
    json!({"metadata": {"name": "kube-system", "uid": uid, "resourceVersion": "2"}})
}

fn etcd_error() -> Value {
    json!({"type": "ERROR", "object": {"apiVersion": "v1", "kind": "Status", "metadata": {},
        "status": "Failure", "code": 500, "reason": "InternalError", "message": "no leader"}})
}

/// issue 7, 4: what a backup does not hold is gone, and what was deleted since is back, although
/// the watch goes on without an error of its own.
#[tokio::test]
async fn a_server_that_was_restored_from_a_backup_is_listed_anew() {
    let script = Script::default()
        .list("namespaces", 3, [kube_system("one")])
        .clusters(&["one"])
        .list("pods", 10, [pod("a", 5), pod("b", 9)])
        .watch("pods", [change("ADDED", pod("c", 30))])
        // After the list, and after the watch of that single change has ended.
        .watch("pods", [etcd_error()])
        .versions("pods", &[10, 20])
        .list("pods", 20, [pod("a", 5), pod("d", 15)]);
    let mut running = Running::start(script).await;
    running.until(Kind::Namespace, |state| state.listed).await;
    assert_eq!(names(&running.next(Kind::Pod).await), reset(&["a", "b"]));
    assert_eq!(names(&running.next(Kind::Pod).await).0, '+');
    assert_eq!(names(&running.next(Kind::Pod).await), reset(&["a", "d"]));
    assert_eq!(running.api.lists("/api/v1/pods"), 2);
    running.stop().await;
}

/// A server that knows more than this watch has seen is no other.
#[tokio::test]
async fn an_error_alone_lists_nothing_anew() {
    let script = Script::default()
        .list("pods", 10, [pod("a", 5)])
        .watch("pods", [change("ADDED", pod("b", 30)), etcd_error()])
        .versions("pods", &[10, 31])
        .watch("pods", [change("ADDED", pod("c", 32))]);
    let mut running = Running::start(script).await;
    assert_eq!(names(&running.next(Kind::Pod).await), reset(&["a"]));
    for name in ["b", "c"] {
        let added = ('+', vec![name.to_owned()]);
        assert_eq!(names(&running.next(Kind::Pod).await), added);
    }
    assert_eq!(running.api.lists("/api/v1/pods"), 1);
    assert_eq!(running.api.watches("/api/v1/pods")[..2], ["10", "30"]);
    running.stop().await;
}

/// issue 7, 4: an API server that has lost everything takes nothing from the nodes.
#[tokio::test]
async fn a_server_of_another_cluster_is_not_believed_until_the_known_one_is_back() {
    let script = Script::default()
        .list("namespaces", 3, [kube_system("one")])
        .clusters(&["two", "two", "one"])
        .list("pods", 10, [pod("a", 5)])
        .watch("pods", [change("ADDED", pod("b", 30)), etcd_error()])
        // The third is ahead of all that was seen, and still of the other cluster.
        .versions("pods", &[10, 4, 40, 35])
        .list("pods", 35, [pod("a", 5), pod("b", 30), pod("c", 33)]);
    let mut running = Running::start(script).await;
    running.until(Kind::Namespace, |state| state.listed).await;
    assert_eq!(names(&running.next(Kind::Pod).await), reset(&["a"]));
    assert_eq!(names(&running.next(Kind::Pod).await).0, '+');
    running
        .until(Kind::Pod, |state| state.foreign.as_deref() == Some("two"))
        .await;
    let told = complaints(&running.states.borrow());
    assert!(told[0].message.contains("\"two\""), "{told:?}");
    assert_eq!(
        names(&running.next(Kind::Pod).await),
        reset(&["a", "b", "c"])
    );
    assert_eq!(complaints(&running.states.borrow()), []);
    assert_eq!(running.api.lists("/api/v1/pods"), 2);
    running.stop().await;
}
