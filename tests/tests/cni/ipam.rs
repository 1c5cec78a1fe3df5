//! Leases: what is given out, what is not, and what happens at the end of a range.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::{inspect, require_root};

use crate::assert_empty;

/// Adds container `id` in a namespace of its own.
fn add(node: &Node, id: &str, keys: &Value) -> Result<(NetNs, Vec<IpAddr>)> {
    let pod = NetNs::create(id)?;
    let result = Call::new(node, "ADD", id, &pod)
        .keys(keys.clone())
        .result()?;
    Ok((pod, inspect::result_ips(&result)?))
}

fn del(node: &Node, id: &str, pod: &NetNs, keys: &Value) -> Result<()> {
    Call::new(node, "DEL", id, pod).keys(keys.clone()).silent()
}

/// cni.md 44.
#[test]
fn a_full_range_is_code_101_and_opens_with_the_next_del() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys =
        json!({"ipam": {"ranges": [[{"subnet": "10.88.0.0/29"}], [{"subnet": "fd88::/64"}]]}});
    let mut pods = Vec::new();
    for n in 0..5 {
        let (pod, ips) = add(&node, &format!("c{n}"), &keys)?;
        let IpAddr::V4(v4) = ips[0] else {
            panic!("{ips:?}")
        };
        assert!(
            (2..=6).contains(&v4.octets()[3]),
            "no network, gateway or broadcast: {v4}"
        );
        pods.push(pod);
    }
    let extra = NetNs::create("extra")?;
    let (code, text) = Call::new(&node, "ADD", "extra", &extra)
        .keys(keys.clone())
        .error()?;
    assert_eq!(code, 101, "{text}");
    assert!(
        text.contains("10.88.0.0/29") || text.contains("10.88.0.6"),
        "the range: {text}"
    );
    assert_eq!(
        (node.ports()?.len(), node.leases()?.len()),
        (5, 10),
        "nothing of the sixth"
    );

    del(&node, "c2", &pods[2], &keys)?;
    Call::new(&node, "ADD", "extra", &extra)
        .keys(keys.clone())
        .result()?;
    del(&node, "extra", &extra, &keys)?;
    for (n, pod) in pods.iter().enumerate() {
        del(&node, &format!("c{n}"), pod, &keys)?;
    }
    assert_empty(&node)
}

/// cni.md 45.
#[test]
fn an_address_of_one_family_is_given_back_if_the_other_has_none() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys = json!({"ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}],
        [{"subnet": "fd88::/64", "rangeStart": "fd88::5", "rangeEnd": "fd88::5"}]]}});
    let (pod, _) = add(&node, "c1", &keys)?;
    let extra = NetNs::create("extra")?;
    assert_eq!(
        Call::new(&node, "ADD", "extra", &extra)
            .keys(keys.clone())
            .error()?
            .0,
        101
    );
    assert_eq!((node.ports()?.len(), node.leases()?.len()), (1, 2));
    del(&node, "c1", &pod, &keys)?;
    assert_empty(&node)
}

/// cni.md 46.
#[test]
fn a_freed_address_is_not_the_next_to_be_given_out() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys = json!({});
    let mut seen = Vec::new();
    for n in 0..4 {
        let id = format!("c{n}");
        let (pod, ips) = add(&node, &id, &keys)?;
        assert!(!seen.contains(&ips), "{ips:?} after {seen:?}");
        seen.push(ips);
        del(&node, &id, &pod, &keys)?;
    }
    assert_empty(&node)
}

/// cni.md 47.
#[test]
fn ranges_that_make_no_sense_are_code_7() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    for ranges in [
        json!([[{"subnet": "10.88.0.0/31"}]]),
        json!([[{"subnet": "10.88.0.5/24"}]]),
        json!([[{"subnet": "10.88.0.0/24"}], [{"subnet": "10.88.0.128/25"}]]),
        json!([[{"subnet": "10.88.0.0/24", "rangeStart": "10.89.0.1"}]]),
        json!([[{"subnet": "text"}]]),
    ] {
        let keys = json!({"ipam": {"ranges": ranges}});
        let (code, text) = Call::new(&node, "ADD", "c1", &pod)
            .keys(keys.clone())
            .error()?;
        assert_eq!(code, 7, "{keys}: {text}");
    }
    assert_empty(&node)
}

/// cni.md 52.
#[test]
fn the_leases_of_host_local_are_read_and_its_directory_is_kept() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let dir = node.data_dir().join(node.network());
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("10.88.0.2"), "other\r\neth0")?;
    std::fs::write(dir.join("10.88.0.3"), "legacy")?;
    let keys = json!({});
    let (pod, ips) = add(&node, "c1", &keys)?;
    assert_eq!(ips[0].to_string(), "10.88.0.4");
    let lease = std::fs::read_to_string(dir.join("10.88.0.4"))?;
    assert_eq!(lease, "c1\r\neth0", "host-local can go on with it");
    del(&node, "c1", &pod, &keys)?;
    let none = NetNs::create("none")?;
    del(&node, "other", &none, &keys)?;
    del(&node, "legacy", &none, &keys)?;
    assert_empty(&node)
}
