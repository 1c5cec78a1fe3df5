//! The agent on a Kubernetes API: `run --kubeconfig`, real pods, real traffic.

mod cluster;
mod restore;
mod silence;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::agent;
use tests::api_server::ApiServer;
use tests::inspect::tables;
use tests::node::Node;
use tests::objects::{self, deny_all};
use tests::pod::{Family, Pod};
use tests::require_root;
use tests::traffic::{Protocol, SHORT, Server};
use tests::wait::{SOON, eventually};

use cluster::{Cluster, READY, ShownLog, kubeconfig, log, service, spawn, state_dir};

#[test]
fn what_changes_in_the_api_is_enforced_also_after_a_disconnect() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    for disconnects in [false, true] {
        if disconnects {
            cluster.api.bookmark();
            cluster.api.disconnect();
        }
        cluster.api.put(&deny_all("shop"))?;
        eventually(SOON, || cluster.served_by(None))?;
        cluster.api.delete(&deny_all("shop"))?;
        eventually(SOON, || cluster.enforced())?;

        cluster.api.delete(&deny_all("closed"))?;
        eventually(SOON, || cluster.is_closed(false))?;
        cluster.serve_by("closed/web")?;
        eventually(SOON, || cluster.served_by(Some("closed/web")))?;
        cluster.api.put(&deny_all("closed"))?;
        cluster.serve_by("shop/web")?;
        eventually(SOON, || cluster.enforced())?;
    }
    assert_eq!(
        cluster.api.lists("Pod"),
        1,
        "a disconnected watch goes on where it was"
    );
    Ok(())
}

#[test]
fn a_pod_is_closed_until_the_api_knows_it() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let late = Pod::add(&node, "shop/late")?;
    let _server = Server::start(&late.netns, "late", &[80])?;
    let target = late.at(Family::V6, 80);
    let answered =
        |limit| Ok::<_, anyhow::Error>(cluster.ask(Protocol::Tcp, target, limit)?.is_answered());
    assert!(!answered(SHORT)?);
    let object = objects::pod("shop/late", &json!({"app": "late"}), &[80]);
    cluster.api.put(&object)?;
    eventually(SOON, || {
        ensure!(answered(SHORT)?, "still closed");
        Ok(())
    })?;
    cluster.api.delete(&object)?;
    eventually(SOON, || {
        ensure!(!answered(SHORT)?, "still open");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn an_api_that_goes_away_and_comes_back_changes_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let before = cluster.rules()?;
    cluster.api.go_away();
    eventually(SOON, || {
        let status = agent::verb(&node, &["status"])?.stdout;
        ensure!(
            status.contains("API server: watching Namespace, "),
            "{status}"
        );
        Ok(())
    })?;
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);
    cluster
        .wait("1s")
        .context("what was visible is in the kernel")?;

    cluster.api.come_back();
    cluster.api.put(&objects::namespace("news", &json!({})))?;
    // It is watched again when this comes through.
    cluster.api.put(&deny_all("shop"))?;
    eventually(SOON, || cluster.served_by(None))?;
    cluster.api.delete(&deny_all("shop"))?;
    eventually(SOON, || cluster.enforced())?;
    Ok(())
}

#[test]
fn what_was_deleted_unseen_is_gone_after_410() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let lists = cluster.api.lists("Service");
    cluster.api.go_away();
    cluster.api.delete(&service())?;
    cluster.api.delete(&deny_all("closed"))?;
    cluster.api.forget();
    cluster.api.come_back();
    eventually(SOON, || cluster.is_closed(false))?;
    eventually(SOON, || cluster.served_by(None))?;
    eventually(SOON, || {
        ensure!(cluster.api.lists("Service") > lists, "not listed again");
        let services = agent::verb(&node, &["services", "-o", "json"])?.stdout;
        ensure!(!services.contains("shop"), "{services}");
        Ok(())
    })?;

    // The watch goes on from the new list.
    cluster.api.put(&service())?;
    cluster.api.put(&deny_all("closed"))?;
    eventually(SOON, || cluster.enforced())?;
    Ok(())
}

#[test]
fn a_restart_while_the_api_is_away_leaves_the_rules_as_they_are() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    let before = cluster.rules()?;
    cluster.api.go_away();
    cluster.restart()?;
    let error = cluster
        .wait("1s")
        .expect_err("nothing is listed")
        .to_string();
    assert!(
        error.contains("first list of Namespace, Node, Pod"),
        "{error}"
    );
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);

    // All but one kind: the pods would be open without their policies.
    cluster.come_back_without_policies()?;
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);

    cluster.api.set_failing("NetworkPolicy", false);
    cluster.wait(READY)?;
    assert_eq!(
        cluster.rules()?,
        before,
        "the same objects with the same handles"
    );
    cluster.enforced()
}

#[test]
fn an_agent_that_never_reached_the_api_writes_no_table() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let api = ApiServer::start(&node.netns)?;
    fs::write(kubeconfig(&node), api.kubeconfig())?;
    api.go_away();
    let _agent = spawn(&node)?;
    let _log = ShownLog(log(&node));
    let output = agent::verb(&node, &["wait", "--timeout", "500ms"])?;
    assert!(!output.status.success());
    assert_eq!(tables(&node.netns)?, Vec::<String>::new());
    api.come_back();
    let output = agent::verb(&node, &["wait", "--timeout", READY])?;
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(tables(&node.netns)?.len(), 2);
    Ok(())
}

/// netpol.md 64: a node that boots without the API server enforces what it knew, is closed to
/// what it did not, and takes all that is new at once.
#[test]
fn a_boot_without_the_api_server_enforces_the_last_known_state() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    eventually(SOON, || {
        let text = fs::read_to_string(state_dir(&node).join("objects"))?;
        ensure!(text.contains("NetworkPolicy closed/deny-all"), "{text}");
        Ok(())
    })?;
    cluster.power_off()?;
    cluster.api.go_away();
    cluster.agent = spawn(&node)?;
    let refused = Pod::add(&node, "shop/client").expect_err("nothing is known yet");
    assert!(
        format!("{refused:#}").contains("waiting for the first list of"),
        "{refused:#}"
    );
    cluster.start_pods(&["shop/client", "shop/web", "closed/web", "shop/late"])?;
    cluster.reaches("shop/web", true)?;
    cluster
        .reaches("closed/web", false)
        .context("a policy that was known")?;
    cluster
        .reaches("shop/late", false)
        .context("a pod that nobody has described")?;
    let status = agent::verb(&node, &["status"])?.stdout;
    assert!(
        status.contains("are enforced, waiting for the first list of"),
        "{status}"
    );
    let services = agent::verb(&node, &["services", "-o", "json"])?.stdout;
    assert!(services.contains("10.96.0.10"), "{services}");
    cluster
        .wait("100ms")
        .expect_err("what is there now was not seen");

    // Yesterday's policies are never enforced on today's pods.
    cluster.api.delete(&deny_all("closed"))?;
    cluster
        .api
        .put(&objects::pod("shop/late", &json!({"app": "late"}), &[80]))?;
    cluster.api.put(&objects::policy(
        "shop/late",
        &json!({"podSelector": {"matchLabels": {"app": "late"}}}),
    ))?;
    cluster.come_back_without_policies()?;
    cluster.reaches("shop/late", false)?;
    cluster.reaches("closed/web", false)?;
    cluster.api.set_failing("NetworkPolicy", false);
    cluster.wait(READY)?;
    cluster.reaches("closed/web", true)?;
    cluster.reaches("shop/late", false)?;
    let status = agent::verb(&node, &["status"])?.stdout;
    assert!(!status.contains("are enforced"), "{status}");
    Ok(())
}

/// netpol.md 64: a file that is not what it was is worth nothing.
#[test]
fn a_damaged_state_on_disk_leaves_pods_closed_and_says_so() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    let path = state_dir(&node).join("objects");
    let known = "+ NetworkPolicy";
    let (text, _) = eventually(SOON, || {
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(known), "{text}");
        Ok(text)
    })?;
    cluster.power_off()?;
    cluster.api.go_away();
    fs::write(&path, text.replacen(known, "? NetworkPolicy", 1))?;
    cluster.agent = spawn(&node)?;
    eventually(SOON, || {
        let log = fs::read_to_string(log(&node))?;
        for text in [
            "no use can be made of the objects of an earlier run",
            "it is no line of a journal",
        ] {
            ensure!(log.contains(text), "{log}");
        }
        Ok(())
    })?;
    Pod::add(&node, "shop/client").expect_err("nothing is known");
    assert_eq!(tables(&node.netns)?, Vec::<String>::new());
    cluster.api.come_back();
    cluster.wait(READY)?;
    cluster.start_pods(&["shop/client", "shop/web", "closed/web"])?;
    cluster.reaches("shop/web", true)?;
    cluster.reaches("closed/web", false)
}
