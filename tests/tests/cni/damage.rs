//! Files that say nonsense, and files that killed requests left.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::{inspect, programs, require_root};

use crate::assert_empty;
use crate::container::containerd;

/// What becomes of a file's content.
type Damage = fn(&[u8]) -> Vec<u8>;

/// What is left of a file: nothing, other bytes, the first half of it.
const DAMAGES: [Damage; 3] = [
    |_| Vec::new(),
    |whole| (0..whole.len()).map(|n| (n * 151 + 128) as u8).collect(),
    |whole| whole[..whole.len() / 2].to_vec(),
];

fn damage(path: &Path, how: Damage) -> Result<()> {
    let whole = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(fs::write(path, how(&whole))?)
}

/// Five addresses, so that the sixth pod looks for what may be taken from others.
fn keys() -> Value {
    json!({"ipam": {"ranges": [[{"subnet": "10.88.0.0/29"}]]}})
}

fn call<'n>(node: &'n Node, verb: &str, id: &str, pod: &NetNs) -> Call<'n> {
    Call::new(node, verb, id, pod).keys(keys())
}

fn check(node: &Node, id: &str, pod: &NetNs, result: &Value) -> Result<()> {
    let mut keys = keys();
    keys["prevResult"] = result.clone();
    Call::new(node, "CHECK", id, pod).keys(keys).silent()
}

fn only_ip(result: &Value) -> Result<String> {
    Ok(inspect::result_ips(result)?[0].to_string())
}

/// Pods in every address but one.
fn four(node: &Node) -> Result<Vec<(NetNs, Value)>> {
    let pod = |n| {
        let pod = NetNs::create(&format!("p{n}"))?;
        let result = call(node, "ADD", &format!("c{n}"), &pod).result()?;
        Ok((pod, result))
    };
    (0..4).map(pod).collect()
}

/// cni.md 50: leases. The pods of three have their addresses still.
#[test]
fn the_address_of_a_damaged_lease_is_not_given_out_while_its_pod_runs() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pods = four(&node)?;
    let dir = node.data_dir().join(node.network());
    for ((_, result), how) in pods.iter().zip(DAMAGES) {
        damage(&dir.join(only_ip(result)?), how)?;
    }
    let taken: Vec<_> = pods.iter().map(|(_, result)| only_ip(result)).collect();
    let taken = taken.into_iter().collect::<Result<Vec<_>>>()?;

    let (fifth, sixth) = (NetNs::create("fifth")?, NetNs::create("sixth")?);
    let result = call(&node, "ADD", "fifth", &fifth).result()?;
    ensure!(!taken.contains(&only_ip(&result)?), "{result}");
    let (code, text) = call(&node, "ADD", "sixth", &sixth).error()?;
    assert_eq!(code, 101, "{text}");
    check(&node, "c3", &pods[3].0, &pods[3].1)?;
    check(&node, "fifth", &fifth, &result)?;
    let mut with_result = keys();
    with_result["prevResult"] = pods[0].1.clone();
    let damaged = Call::new(&node, "CHECK", "c0", &pods[0].0).keys(with_result);
    let (code, text) = damaged.error()?;
    assert_eq!(code, 104);
    ensure!(text.contains(&taken[0]), "{text}");

    // Its pod gone, the address is given out, and what lay there is kept to be looked at.
    call(&node, "DEL", "c0", &pods[0].0).silent()?;
    let result = call(&node, "ADD", "sixth", &sixth).result()?;
    assert_eq!(only_ip(&result)?, taken[0]);
    let aside = |ip: &str| dir.join(format!(".damaged-{ip}"));
    ensure!(aside(&taken[0]).exists() && !aside(&taken[1]).exists());

    for (n, (pod, _)) in pods.iter().enumerate() {
        call(&node, "DEL", &format!("c{n}"), pod).silent()?;
    }
    call(&node, "DEL", "fifth", &fifth).silent()?;
    call(&node, "DEL", "sixth", &sixth).silent()?;
    let gc = keys_with(&json!({"cni.dev/valid-attachments": []}));
    Call::bare(&node, "GC").keys(gc).silent()?;
    ensure!(aside(&taken[1]).exists());
    assert_empty(&node)
}

fn keys_with(more: &Value) -> Value {
    let mut keys = keys();
    for (key, value) in more.as_object().into_iter().flatten() {
        keys[key] = value.clone();
    }
    keys
}

fn record_of(node: &Node, result: &Value) -> Result<std::path::PathBuf> {
    let port = inspect::host_interface(result)?;
    let hash = port.strip_prefix("trm").context("a port of ours")?;
    Ok(node.records_dir().join(format!("{hash}.json")))
}

/// cni.md 50: with the record, too, nobody knows whose the address is.
#[test]
fn the_address_of_a_damaged_lease_and_record_is_not_given_out_while_a_pod_runs() -> Result<()> {
    require_root!();
    for how in DAMAGES {
        let node = Node::new()?;
        let pods = four(&node)?;
        let (pod, result) = &pods[1];
        let lease = node.data_dir().join(node.network()).join(only_ip(result)?);
        fs::write(&lease, "")?;
        damage(&record_of(&node, result)?, how)?;

        let (fifth, sixth) = (NetNs::create("fifth")?, NetNs::create("sixth")?);
        call(&node, "ADD", "fifth", &fifth).result()?;
        let listed = json!([{"containerID": "c1", "ifname": "eth0"},
            {"containerID": "c2", "ifname": "eth0"}, {"containerID": "fifth", "ifname": "eth0"}]);
        let gc = keys_with(&json!({"cni.dev/valid-attachments": listed}));
        let (code, text) = call(&node, "ADD", "sixth", &sixth).error()?;
        assert_eq!(code, 101, "{text}");
        Call::bare(&node, "GC").keys(gc).silent()?;
        ensure!(lease.exists(), "GC frees no address of a pod that it keeps");
        assert_eq!(node.ports()?.len(), 3);
        check(&node, "c2", &pods[2].0, &pods[2].1)?;

        call(&node, "DEL", "c1", pod).silent()?;
        call(&node, "DEL", "c2", &pods[2].0).silent()?;
        call(&node, "DEL", "fifth", &fifth).silent()?;
        let gc = keys_with(&json!({"cni.dev/valid-attachments": []}));
        Call::bare(&node, "GC").keys(gc).silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 50, 59: its address must not be given out while its port is there.
#[test]
fn gc_removes_all_of_an_attachment_whose_record_is_damaged() -> Result<()> {
    require_root!();
    for how in DAMAGES {
        let node = Node::new()?;
        let (kept, lost) = (NetNs::create("kept")?, NetNs::create("lost")?);
        let result = call(&node, "ADD", "kept", &kept).result()?;
        damage(
            &record_of(&node, &call(&node, "ADD", "lost", &lost).result()?)?,
            how,
        )?;
        let listed = json!([{"containerID": "kept", "ifname": "eth0"}]);
        let gc = keys_with(&json!({"cni.dev/valid-attachments": listed}));
        Call::bare(&node, "GC").keys(gc).silent()?;
        let left = (
            node.ports()?.len(),
            node.leases()?.len(),
            node.records()?.len(),
        );
        assert_eq!(left, (1, 1, 1), "ports, leases, records");
        check(&node, "kept", &kept, &result)?;
        call(&node, "DEL", "kept", &kept).silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 50: a record. What DEL cannot read there it finds by the attachment's name.
#[test]
fn a_damaged_record_is_named_by_check_and_del_leaves_nothing() -> Result<()> {
    require_root!();
    for how in DAMAGES {
        let node = Node::new()?;
        let (pod, other) = (NetNs::create("pod")?, NetNs::create("other")?);
        let mut keys = containerd(&[(8080, 80, "tcp")]);
        keys["ipMasq"] = json!(true);
        let call = |verb| Call::new(&node, verb, "c1", &pod).keys(keys.clone());
        let result = call("ADD").result()?;
        let untouched = Call::new(&node, "ADD", "c2", &other).result()?;
        damage(&record_of(&node, &result)?, how)?;

        let mut with_result = keys.clone();
        with_result["prevResult"] = result;
        let (code, text) = call("CHECK").keys(with_result).error()?;
        assert_eq!(code, 104);
        ensure!(text.contains("record"), "{text}");
        let (code, text) = call("ADD").error()?;
        assert_eq!(code, 102, "its port is there: {text}");
        Call::bare(&node, "STATUS").silent()?;

        call("DEL").silent()?;
        assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
        assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 2));
        let check = json!({"prevResult": untouched});
        Call::new(&node, "CHECK", "c2", &other)
            .keys(check)
            .silent()?;
        call("ADD").result()?;
        call("DEL").silent()?;
        Call::new(&node, "DEL", "c2", &other).silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 50: what is no lease and no record.
#[test]
fn damaged_marks_of_the_store_cost_nobody_an_address() -> Result<()> {
    require_root!();
    for how in DAMAGES {
        let node = Node::new()?;
        let dir = node.data_dir().join(node.network());
        let mut pods = four(&node)?;
        // A name that stays is that of a request which was killed.
        fs::write(dir.join(".request"), "c9\r\neth0")?;
        for name in [".boot", ".request", "last_reserved_ip.0"] {
            damage(&dir.join(name), how)?;
        }
        let pod = NetNs::create("p4")?;
        let result = call(&node, "ADD", "c4", &pod).result()?;
        pods.push((pod, result));
        ensure!(!dir.join(".request").exists());
        for (n, (pod, result)) in pods.iter().enumerate() {
            check(&node, &format!("c{n}"), pod, result)?;
            call(&node, "DEL", &format!("c{n}"), pod).silent()?;
        }
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 51: with addresses from this process, and from a plugin, where the record is
/// written twice.
#[test]
fn files_of_killed_requests_are_no_obstacle_and_go() -> Result<()> {
    require_root!();
    for keys in [
        json!({}),
        json!({"cniVersion": "1.0.0", "ipam": {"type": "host-local"}}),
    ] {
        let node = Node::new()?;
        let pod = NetNs::create("pod")?;
        let call = |verb| {
            Call::new(&node, verb, "c1", &pod)
                .keys(keys.clone())
                .env("CNI_PATH", programs::REFERENCE_PLUGINS)
        };
        let record = record_of(&node, &call("ADD").result()?)?;
        call("DEL").silent()?;
        let request = node.data_dir().join(node.network()).join(".request");
        let left = [
            record.with_extension("tmp"),
            record.with_extension("new.tmp"),
            request.clone(),
        ];
        let leave = || left.iter().try_for_each(|path| fs::write(path, "{\"net"));
        for verbs in [&["ADD", "DEL"][..], &["DEL"]] {
            leave()?;
            for verb in verbs {
                let reply = call(verb).run()?;
                assert_eq!(reply.code, 0, "{verb}: {reply:?}");
            }
            assert_empty(&node)?;
        }
        // Of leases nothing but an ADD of ours knows.
        Call::new(&node, "ADD", "c2", &pod).result()?;
        Call::new(&node, "DEL", "c2", &pod).silent()?;
        ensure!(!request.exists());
        assert_empty(&node)?;
    }
    Ok(())
}
