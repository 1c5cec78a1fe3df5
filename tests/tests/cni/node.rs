//! STATUS and GC: what a runtime asks about the node as a whole.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::{command, require_root};

use crate::assert_empty;

fn status(node: &Node, keys: Value) -> Call<'_> {
    Call::bare(node, "STATUS").keys(keys)
}

/// cni.md 61.
#[test]
fn a_healthy_node_is_silent_and_an_unhealthy_one_says_what_is_wrong() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    status(&node, json!({})).silent()?;
    for (keys, code, names) in [
        (json!({"policy": "required"}), 50, "agent"),
        (json!({"ipam": {"dataDir": "/proc/none"}}), 50, "/proc/none"),
        (json!({"ipam": {"ranges": []}}), 7, "ipam.ranges"),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/31"}]]}}),
            7,
            "10.0.0.0/31",
        ),
    ] {
        let (found, text) = status(&node, keys.clone()).error()?;
        assert_eq!(found, code, "{keys}: {text}");
        assert!(text.contains(names), "{keys}: {text}");
    }
    let agent = Agent::start(&node)?;
    status(&node, json!({"policy": "required"})).silent()?;
    agent.kill()?;
    let (code, text) = status(&node, json!({})).error()?;
    assert_eq!(code, 50, "an agent was there and is not any more: {text}");
    Ok(())
}

/// cni.md 61: the socket of an agent that died, and of one that hangs.
#[test]
fn an_agent_that_does_not_answer_is_code_50_and_a_dead_one_does_not_keep_del() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pods = [NetNs::create("one")?, NetNs::create("two")?];
    let agent = Agent::start(&node)?;
    for (id, pod) in ["c1", "c2"].into_iter().zip(&pods) {
        Call::new(&node, "ADD", id, pod).result()?;
    }
    agent.pause()?;
    let (code, text) = status(&node, json!({})).error()?;
    assert_eq!(code, 50, "{text}");
    assert!(text.contains("does not answer"), "{text}");
    agent.resume()?;
    status(&node, json!({})).silent()?;

    agent.kill()?;
    assert!(node.socket().exists(), "nobody listens there");
    for keys in [json!({}), json!({"policy": "required"})] {
        let (code, text) = status(&node, keys.clone()).error()?;
        assert_eq!(code, 50, "{text}");
        assert!(text.contains("is not there"), "{text}");
        let add = Call::new(&node, "ADD", "c3", &pods[0]).env("CNI_IFNAME", "net1");
        assert_eq!(add.keys(keys).error()?.0, 11);
    }
    Call::new(&node, "DEL", "c1", &pods[0]).silent()?;
    Call::new(&node, "DEL", "c2", &pods[1])
        .keys(json!({"policy": "required"}))
        .silent()?;
    Call::new(&node, "DEL", "never", &pods[1]).silent()?;
    assert_empty(&node)?;
    // The next one learns of it.
    let agent = Agent::start(&node)?;
    assert!(agent.verify()?.status.success(), "{}", agent.log_text());
    let ruleset = format!("{:?}", tests::inspect::ruleset(&node.netns)?);
    assert!(!ruleset.contains("10.88.0."), "{ruleset}");
    Ok(())
}

/// cni.md 61: it never stands in the way of DEL.
#[test]
fn a_lost_bridge_is_code_51_while_there_are_pods_and_del_works_all_the_same() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    status(&node, json!({})).silent()?;
    Call::new(&node, "ADD", "c1", &pod).result()?;
    status(&node, json!({})).silent()?;
    node.netns.ip("link del cbr0")?;
    let (code, text) = status(&node, json!({})).error()?;
    assert_eq!(code, 51, "{text}");
    assert!(text.contains("cbr0") && text.contains('1'), "{text}");
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    status(&node, json!({})).silent()?;
    assert_empty(&node)
}

/// cni.md 61: containerd would report the node not ready, and its pods would be evicted.
#[test]
fn exhaustion_is_reported_only_where_that_is_asked_for() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let range =
        json!([[{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9"}]]);
    let keys = json!({"ipam": {"ranges": range}});
    let mut asking = keys.clone();
    asking["statusExhausted"] = json!(true);
    status(&node, asking.clone()).silent()?;
    let pod = NetNs::create("pod")?;
    Call::new(&node, "ADD", "c1", &pod)
        .keys(keys.clone())
        .result()?;
    status(&node, keys).silent()?;
    let (code, text) = status(&node, asking.clone()).error()?;
    assert_eq!(code, 50, "{text}");
    assert!(text.contains("10.88.0.9"), "{text}");
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    status(&node, asking).silent()
}

/// Adds `c0` to `c4`.
fn five(node: &Node) -> Result<Vec<NetNs>> {
    let mut pods = Vec::new();
    for n in 0..5 {
        let pod = NetNs::create(&format!("p{n}"))?;
        Call::new(node, "ADD", &format!("c{n}"), &pod).result()?;
        pods.push(pod);
    }
    Ok(pods)
}

/// cni.md 61: mode `l2` hands frames to the packet filter, unless there are VLANs.
#[test]
fn a_kernel_without_br_netfilter_is_code_50_where_that_is_needed() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    // The plugin sees an empty folder in its place.
    let script = node.dir().join("without");
    let plugin = tests::programs::plugin();
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c \
         'mount -t tmpfs none /proc/sys/net/bridge && exec {}'\n",
        plugin.display()
    );
    std::fs::write(&script, text)?;
    command::run(Command::new("chmod").arg("+x").arg(&script))?;
    let status = |keys| status(&node, keys).program(&script);
    status(json!({})).silent()?;
    let (code, text) = status(json!({"mode": "l2"})).error()?;
    assert_eq!(code, 50, "{text}");
    assert!(text.contains("br_netfilter"), "{text}");
    status(json!({"mode": "l2", "vlan": 7})).silent()?;
    Ok(())
}

fn listed(ids: &[&str]) -> Value {
    ids.iter()
        .map(|id| json!({"containerID": id, "ifname": "eth0"}))
        .collect()
}

/// cni.md 59.
#[test]
fn gc_frees_exactly_what_is_not_listed() -> Result<()> {
    require_root!();
    let (new, old) = ("cni.dev/valid-attachments", "cni.dev/attachments");
    for keys in [
        json!({new: listed(&["c1", "c3"])}),
        json!({old: listed(&["c1", "c3"])}),
        json!({new: listed(&["c1", "c3"]), old: listed(&["c0"])}),
    ] {
        let node = Node::new()?;
        let _pods = five(&node)?;
        let foreign = NetNs::create("foreign")?;
        let other = format!("{}x", node.network());
        let of_other = json!({"name": other, "bridge": "cbr1", "ipam": {
            "ranges": [[{"subnet": "10.87.0.0/24"}]]}});
        Call::new(&node, "ADD", "c4", &foreign)
            .keys(of_other.clone())
            .result()?;
        let gc = |keys: &Value| Call::bare(&node, "GC").keys(keys.clone());

        let (code, text) = gc(&json!({})).error()?;
        assert_eq!(code, 7, "{text}");
        assert_eq!(
            (node.ports()?.len(), node.leases()?.len()),
            (6, 10),
            "nothing freed"
        );
        gc(&keys).silent()?;
        assert_eq!(
            (node.ports()?.len(), node.leases()?.len()),
            (3, 4),
            "{keys}"
        );
        gc(&keys).silent()?;
        gc(&json!({new: []})).silent()?;
        assert_eq!(
            (node.ports()?.len(), node.leases()?.len()),
            (1, 0),
            "all of this network"
        );
        foreign.ping("10.87.0.1".parse()?)?;
        Call::new(&node, "DEL", "c4", &foreign)
            .keys(of_other)
            .silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 60.
#[test]
fn one_attachment_that_cannot_be_removed_does_not_keep_the_others() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let _pods = five(&node)?;
    // A file that is a mount point cannot be unlinked.
    let stuck = node.data_dir().join(node.network()).join("10.88.0.3");
    let mount = |arguments: &[&str]| -> Result<()> {
        command::run(Command::new("mount").args(arguments).arg(&stuck)).map(drop)
    };
    let path = stuck.display().to_string();
    mount(&["--bind", &path])?;
    let gc = Call::bare(&node, "GC").keys(json!({"cni.dev/valid-attachments": []}));
    let outcome = gc.error();
    command::run(Command::new("umount").arg(&stuck))?;
    let (code, text) = outcome?;
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("10.88.0.3"), "{text}");
    assert_eq!(node.leases()?, ["10.88.0.3".parse::<std::net::IpAddr>()?]);
    assert!(node.ports()?.is_empty());
    gc.silent()?;
    assert_empty(&node)
}
