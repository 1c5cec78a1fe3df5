//! An API server whose data are not what they were.

use anyhow::{Result, ensure};
use serde_json::json;
use tests::agent;
use tests::api_server::Backup;
use tests::node::Node;
use tests::objects::{self, deny_all};
use tests::require_root;
use tests::wait::{SOON, eventually};

use crate::cluster::{Cluster, READY, kube_system, service};

/// issue 7, 4: etcd restored. What came after the backup is gone, what went is back, and a watch
/// that waits for versions that will never be does not keep either from the kernel.
#[test]
fn a_restored_backup_is_followed_where_it_differs() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    let backup = cluster.api.backup();

    let late = objects::service(
        "shop/late",
        ["10.96.0.99", "fd96::99"],
        &json!({"app": "web"}),
        &[(8000, 80)],
    );
    cluster.api.put(&late)?;
    cluster.api.delete(&service())?;
    cluster.api.delete(&deny_all("closed"))?;
    cluster
        .api
        .put(&objects::policy("shop/late", &json!({"podSelector": {}})))?;
    let services = || Ok::<_, anyhow::Error>(agent::verb(&node, &["services"])?.stdout);
    eventually(SOON, || {
        let services = services()?;
        ensure!(
            services.contains("10.96.0.99") && !services.contains("10.96.0.10:"),
            "{services}"
        );
        cluster.is_closed(false)
    })?;

    cluster.api.go_away();
    cluster.api.restore(&backup);
    cluster.api.come_back();
    eventually(SOON, || cluster.enforced())?;
    eventually(SOON, || {
        let services = services()?;
        ensure!(!services.contains("10.96.0.99"), "{services}");
        Ok(())
    })?;
    // And it is followed from there.
    cluster.api.delete(&deny_all("closed"))?;
    eventually(SOON, || cluster.is_closed(false))?;
    Ok(())
}

/// issue 7, 4: etcd wiped. A server that has forgotten the cluster takes nothing from its nodes,
/// and when its data are restored the agents go on with it.
#[test]
fn a_server_that_has_lost_everything_changes_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cluster = Cluster::start(&node)?;
    cluster.wait(READY)?;
    let before = cluster.rules()?;
    let backup = cluster.api.backup();
    let status = || Ok::<_, anyhow::Error>(agent::verb(&node, &["status"])?.stdout);

    cluster.api.go_away();
    cluster.api.restore(&Backup::default());
    cluster.api.put(&kube_system("two"))?;
    cluster.api.come_back();
    eventually(SOON, || {
        let status = status()?;
        ensure!(
            status.contains("namespace kube-system has UID \"two\""),
            "{status}"
        );
        Ok(())
    })?;
    cluster.enforced()?;
    assert_eq!(cluster.rules()?, before);

    cluster.api.go_away();
    cluster.api.restore(&backup);
    cluster.api.come_back();
    eventually(SOON, || {
        let status = status()?;
        ensure!(!status.contains("kube-system"), "{status}");
        Ok(())
    })?;
    cluster.enforced()?;
    cluster.api.delete(&deny_all("closed"))?;
    eventually(SOON, || cluster.is_closed(false))?;
    Ok(())
}
