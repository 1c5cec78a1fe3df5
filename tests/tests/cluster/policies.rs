//! NetworkPolicy between pods of different nodes.

use anyhow::Result;
use serde_json::json;

use crate::cluster::{NODES, require_cluster};
use crate::load::{answers, is_denied};
use crate::objects::{allow, deny_all, from_app, pod, service};
use crate::space::Space;

/// issue 7, 4: policies; netpol.md 4 (two nodes).
#[test]
fn policies_select_pods_of_both_nodes_by_label() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "labels")?;
    let other = Space::create(&cluster, "other")?;
    space.apply(&[
        pod("web", NODES[1]),
        pod("near", NODES[1]),
        pod("far", NODES[0]),
        pod("third", NODES[0]),
        service("web"),
    ])?;
    other.apply(&[pod("stranger", NODES[0])])?;
    let web = space.ready_pod("web")?;
    let (near, far, third) = (
        space.ready_pod("near")?,
        space.ready_pod("far")?,
        space.ready_pod("third")?,
    );
    let stranger = other.ready_pod("stranger")?;
    let (cluster_ips, _) = space.service("web")?;
    let targets: Vec<_> = web.targets().into_iter().chain(cluster_ips).collect();
    for client in [&near, &far, &third, &stranger] {
        for target in &targets {
            answers(&client.netns, *target)?;
        }
    }

    space.apply(&[deny_all(), allow("web", &from_app("far"))])?;
    for target in &targets {
        for client in [&near, &third, &stranger] {
            is_denied(&client.netns, *target)?;
        }
        answers(&far.netns, *target)?;
    }

    // A label decides, also one that comes later, and a namespace's.
    space.kubectl(&["label", "pod", "third", "app=far", "--overwrite"])?;
    cluster.kubectl(&["label", "namespace", other.name(), "trusted=yes"])?;
    space.apply(&[allow(
        "web",
        &json!([
            {"podSelector": {"matchLabels": {"app": "far"}}},
            {"namespaceSelector": {"matchLabels": {"trusted": "yes"}}},
        ]),
    )])?;
    for target in &targets {
        for client in [&far, &third, &stranger] {
            answers(&client.netns, *target)?;
        }
        is_denied(&near.netns, *target)?;
    }

    space.kubectl(&["delete", "networkpolicy", "--all"])?;
    for target in &targets {
        answers(&near.netns, *target)?;
    }
    Ok(())
}

/// netpol.md 4: what the node itself sends reaches its own pods, another node's does not.
#[test]
fn only_its_own_node_passes_the_policies_of_a_pod() -> Result<()> {
    let cluster = require_cluster!();
    let space = Space::create(&cluster, "host")?;
    space.apply(&[pod("web", NODES[1]), deny_all()])?;
    // Its readiness probe already passed through the deny.
    let web = space.ready_pod("web")?;
    for target in web.targets() {
        answers(&cluster.netns(NODES[1])?, target)?;
        is_denied(&cluster.netns(NODES[0])?, target)?;
    }
    Ok(())
}
