//! DEL and CHECK: what is left, and what is noticed.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::command::LIMIT;
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::wait::eventually;
use tests::{inspect, require_root};

use crate::assert_empty;

/// cni.md 36.
#[test]
fn del_leaves_nothing_and_may_be_repeated() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let before = (
        node.netns.ip_json("route show")?,
        inspect::tables(&node.netns)?,
    );
    Call::new(&node, "ADD", "c0", &pod)
        .env("CNI_IFNAME", "net0")
        .result()?;
    let with_bridge = node.netns.ip_json("route show")?;
    Call::new(&node, "ADD", "c1", &pod).result()?;
    for _ in 0..3 {
        Call::new(&node, "DEL", "c1", &pod).silent()?;
        assert_eq!(node.netns.ip_json("route show")?, with_bridge);
        assert_eq!(
            (node.ports()?.len(), node.leases()?.len()),
            (1, 2),
            "the other one stays"
        );
    }
    Call::new(&node, "DEL", "c0", &pod)
        .env("CNI_IFNAME", "net0")
        .silent()?;
    assert_eq!(inspect::tables(&node.netns)?, before.1);
    assert_empty(&node)
}

/// cni.md 39.
#[test]
fn del_of_what_was_never_added_succeeds_and_touches_nobody() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (pod, other) = (NetNs::create("pod")?, NetNs::create("other")?);
    Call::new(&node, "DEL", "never", &other).silent()?;
    let result = Call::new(&node, "ADD", "c1", &pod).result()?;
    Call::new(&node, "DEL", "never", &other).silent()?;
    Call::new(&node, "DEL", "never", &pod).silent()?;
    Call::new(&node, "CHECK", "c1", &pod)
        .keys(json!({"prevResult": result}))
        .silent()?;
    Call::new(&node, "DEL", "c1", &pod).silent()?;
    assert_empty(&node)
}

/// cni.md 37, 38.
#[test]
fn del_needs_neither_the_sandbox_nor_a_previous_result() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let garbage = [json!(null), json!({}), json!({"ips": "bad"}), json!("text")];
    for (n, previous) in garbage.into_iter().enumerate() {
        let pod = NetNs::create("pod")?;
        Call::new(&node, "ADD", "c1", &pod).result()?;
        let del = Call::new(&node, "DEL", "c1", &pod).keys(json!({"prevResult": previous}));
        drop(pod);
        match n {
            0 => del.without("CNI_NETNS"),
            1 => del.env("CNI_NETNS", ""),
            _ => del,
        }
        .silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 40.
#[test]
fn del_of_an_old_container_leaves_the_new_owner_of_its_address_alone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let one = json!({"ipam": {"ranges": [
        [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9"}]]}});
    let (old, new) = (NetNs::create("old")?, NetNs::create("new")?);
    Call::new(&node, "ADD", "old", &old)
        .keys(one.clone())
        .result()?;
    Call::new(&node, "DEL", "old", &old)
        .keys(one.clone())
        .silent()?;
    let result = Call::new(&node, "ADD", "new", &new)
        .keys(one.clone())
        .result()?;
    Call::new(&node, "DEL", "old", &old)
        .keys(one.clone())
        .silent()?;
    let mut check = one.clone();
    check["prevResult"] = result;
    Call::new(&node, "CHECK", "new", &new)
        .keys(check)
        .silent()?;
    new.ping(Family::V4.pick(GATEWAYS))?;
    Call::new(&node, "DEL", "new", &new).keys(one).silent()?;
    assert_empty(&node)
}

/// cni.md 41, 42.
#[test]
fn check_is_silent_while_all_is_there_and_names_what_is_not() -> Result<()> {
    require_root!();
    type Damage = fn(&Node, &NetNs, &Value) -> Result<()>;
    let damages: [(&str, &str, Damage); 6] = [
        ("an IPv4 address", "10.88.0.", |_, pod, result| {
            pod.ip(&format!(
                "address del {}/32 dev eth0",
                inspect::result_ips(result)?[0]
            ))?;
            Ok(())
        }),
        ("an IPv6 address", "fd88::", |_, pod, result| {
            pod.ip(&format!(
                "address del {}/128 dev eth0",
                inspect::result_ips(result)?[1]
            ))?;
            Ok(())
        }),
        ("the default route", "0.0.0.0/0", |_, pod, _| {
            pod.ip("-4 route del default")?;
            Ok(())
        }),
        ("the link", "eth0", |_, pod, _| {
            pod.ip("link set eth0 down")?;
            Ok(())
        }),
        ("the port", "cbr0", |node, _, result| {
            node.netns.ip(&format!(
                "link set {} nomaster",
                inspect::host_interface(result)?
            ))?;
            Ok(())
        }),
        ("the lease", "10.88.0.", |node, _, result| {
            let lease = inspect::result_ips(result)?[0].to_string();
            std::fs::remove_file(node.data_dir().join(node.network()).join(lease))?;
            Ok(())
        }),
    ];
    for (what, names, damage) in damages {
        let node = Node::new()?;
        let pod = NetNs::create("pod")?;
        let result = Call::new(&node, "ADD", "c1", &pod).result()?;
        let check =
            Call::new(&node, "CHECK", "c1", &pod).keys(json!({"prevResult": result.clone()}));
        check.silent()?;
        pod.ip("route add 198.51.100.0/24 dev eth0")?;
        check.silent()?;
        damage(&node, &pod, &result)?;
        let (code, text) = check.error()?;
        assert_eq!(code, 104, "{what}: {text}");
        assert!(text.contains(names), "{what}: {text}");
        Call::new(&node, "DEL", "c1", &pod).silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 43.
#[test]
fn check_without_a_previous_result_is_code_7() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    Call::new(&node, "ADD", "c1", &pod).result()?;
    assert_eq!(Call::new(&node, "CHECK", "c1", &pod).error()?.0, 7);
    Call::new(&node, "DEL", "c1", &pod).silent()
}

/// cni.md 55.
#[test]
fn an_add_killed_at_any_moment_is_undone_by_del() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    for round in 0..100u64 {
        let pod = NetNs::create("pod")?;
        let call = Call::new(&node, "ADD", "c1", &pod);
        let mut child = call.spawn()?;
        // nsenter and the plugin live for some milliseconds.
        thread::sleep(Duration::from_micros(round * 100));
        child.kill()?;
        child.wait()?;
        Call::new(&node, "DEL", "c1", &pod).silent()?;
        assert_empty(&node)?;
        Call::new(&node, "ADD", "c1", &pod).result()?;
        Call::new(&node, "DEL", "c1", &pod).silent()?;
    }
    assert_empty(&node)
}

/// DESIGN 3: a runtime whose container has ended does not wait for an agent that hangs. What
/// the agent holds is freed when it goes on.
#[test]
fn del_ends_while_the_agent_hangs_and_the_agent_frees_the_rest() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = Agent::start_with(&node, &["--reap-interval", "50ms"])?;
    let pod = NetNs::create("pod")?;
    let keys = json!({"ipMasq": true, "runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    let call = |verb| Call::new(&node, verb, "c1", &pod).keys(keys.clone());
    let result = call("ADD").result()?;
    let ips = inspect::result_ips(&result)?;
    let is_in_kernel = || -> Result<bool> {
        let rules = node
            .netns
            .command("nft")
            .args(["list", "ruleset"])
            .output()?;
        let rules = String::from_utf8(rules.stdout)?;
        Ok(ips.iter().any(|ip| rules.contains(&ip.to_string())))
    };
    ensure!(is_in_kernel()?, "the agent has bound {ips:?}");
    agent.pause()?;
    let reply = call("DEL").run()?;
    assert_eq!((reply.code, reply.stdout.as_str()), (0, ""), "{reply:?}");
    ensure!(reply.stderr.contains("does not answer"), "{reply:?}");
    assert_eq!((node.ports()?, node.leases()?), (Vec::new(), Vec::new()));
    // Nobody gets the address meanwhile: that takes the agent.
    let (code, text) = call("ADD").error()?;
    assert_eq!(code, 11, "{text}");
    agent.resume()?;
    eventually(LIMIT, || {
        ensure!(!is_in_kernel()?, "still in the kernel");
        ensure!(crate::is_empty(&node)?, "{:?}", node.records()?);
        Ok(())
    })?;
    ensure!(agent.verify()?.status.success(), "{}", agent.log_text());
    call("ADD").result()?;
    call("DEL").silent()?;
    assert_empty(&node)
}
