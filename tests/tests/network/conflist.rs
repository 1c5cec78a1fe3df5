//! The CNI configuration that the agent writes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::cluster::{Cluster, conflist};
use tests::fabric::{Fabric, Join};
use tests::pod::Family;
use tests::require_root;
use tests::wait::{SOON, eventually};

use super::problems;

/// Reads a file again and again until told to stop; an error if it was ever there and not
/// whole.
fn read_always(path: &Path, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(text) = fs::read_to_string(path) {
            serde_json::from_str::<Value>(&text).with_context(|| format!("{text:?}"))?;
        }
    }
    Ok(())
}

/// cni.md 62: ranges, MTU and masquerading are the node's, and whoever reads sees a whole file.
#[test]
fn the_configuration_has_the_node_s_pod_cidrs_and_follows_them() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    fabric.nodes[0].netns.ip("link set uplink mtu 1400")?;
    let stop = Arc::new(AtomicBool::new(false));
    let path = fabric.nodes[0].conf_dir().join("10-trammel.conflist");
    let reader = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || read_always(&path, &stop)
    });
    let cluster = Cluster::start(&fabric, &["--network", "auto"], &[])?;
    let list = conflist(&fabric.nodes[0])?;
    let plugin = &list["plugins"][0];
    let ranges = json!([[{"subnet": "10.88.1.0/24"}], [{"subnet": "fd88:1::/64"}]]);
    assert_eq!(plugin["ipam"]["ranges"], ranges);
    assert_eq!(
        (&plugin["mtu"], &plugin["ipMasq"]),
        (&json!(1400), &json!(true))
    );
    assert_eq!(plugin["policy"], "required");

    let mut nodes = fabric.node_objects();
    nodes[0]["spec"]["podCIDRs"] = json!(["10.88.77.0/24"]);
    cluster.apply_nodes(&nodes)?;
    eventually(SOON, || {
        let ranges = &conflist(&fabric.nodes[0])?["plugins"][0]["ipam"]["ranges"];
        ensure!(
            *ranges == json!([[{"subnet": "10.88.77.0/24"}]]),
            "{ranges}"
        );
        Ok(())
    })?;
    stop.store(true, Ordering::Relaxed);
    reader.join().expect("it returns its errors")
}

/// cni.md 62: without the file the node is not ready, so it comes with the first PodCIDR and the first
/// sync, and never goes.
#[test]
fn the_configuration_is_written_when_pods_can_start_and_stays() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 1)?;
    let node = &fabric.nodes[0];
    let mut object = fabric.node_object(1);
    object["spec"] = json!({});
    node.manifests.write("nodes", &[object])?;
    let dir = node.conf_dir().display().to_string();
    let arguments = ["--cni-conf-dir", &dir];
    let agent = Agent::start_with(node, &arguments)?;
    eventually(SOON, || {
        let status = agent.json(&["status"])?;
        let problems = status["problems"].to_string();
        ensure!(problems.contains("spec.podCIDRs"), "{problems}");
        Ok(())
    })?;
    assert!(conflist(node).is_err(), "there are no addresses for pods");

    node.manifests.write("nodes", &fabric.node_objects())?;
    let (list, _) = eventually(SOON, || conflist(node))?;
    assert_eq!(list["name"], "trammel");
    let path = node.conf_dir().join("10-trammel.conflist");
    let written = fs::metadata(&path)?;
    agent.stop()?;
    assert_eq!(conflist(node)?, list);
    // One that is right is not written again.
    let agent = Agent::start_with(node, &arguments)?;
    agent.wait()?;
    let found = fs::metadata(&path)?;
    assert_eq!(
        (found.ino(), found.modified()?),
        (written.ino(), written.modified()?)
    );
    agent.stop()?;
    // One that somebody has damaged or removed comes back.
    fs::write(&path, "{")?;
    let agent = Agent::start_with(node, &arguments)?;
    let (repaired, _) = eventually(SOON, || conflist(node))?;
    assert_eq!(repaired, list);
    agent.kill()?;
    assert_eq!(conflist(node)?, list);
    Ok(())
}

#[test]
fn a_configuration_that_runtimes_take_first_is_reported() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 1)?;
    let path = fabric.nodes[0].conf_dir().join("05-other.conflist");
    fs::write(&path, "{}")?;
    let cluster = Cluster::start(&fabric, &[], &[])?;
    eventually(SOON, || {
        let problems = problems(&cluster, 1)?.join("\n");
        ensure!(problems.contains("05-other.conflist"), "{problems}");
        Ok(())
    })?;
    Ok(())
}

/// `none`: routes are somebody else's affair, and none of theirs is touched.
#[test]
fn without_a_mode_there_are_no_routes() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let _cluster = Cluster::start(&fabric, &[], &[])?;
    assert_eq!(super::own_routes(&fabric.nodes[0].netns)?, []);
    Ok(())
}
