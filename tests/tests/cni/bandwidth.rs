//! Bandwidth limits: what `tc` shows, and how long real bytes take.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::command;
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::wait::SOON;
use tests::{inspect, require_root};

use crate::assert_empty;
use crate::container::Container;

/// What containerd sends, word for word: there is no annotation for a burst, so it says the
/// largest number.
fn containerd(ingress: u64, egress: u64) -> Value {
    json!({"RuntimeConfig": {"bandwidth": {
        "IngressRate": ingress, "IngressBurst": u32::MAX,
        "EgressRate": egress, "EgressBurst": u32::MAX}}})
}

fn tc(netns: &NetNs, arguments: &str) -> Result<Value> {
    let mut command = netns.command("tc");
    let text = command::run(command.arg("-j").arg("-s").args(arguments.split(' ')))?;
    Ok(serde_json::from_str(&text)?)
}

fn run_tc(netns: &NetNs, arguments: &str) -> Result<()> {
    command::run(netns.command("tc").args(arguments.split(' '))).map(drop)
}

/// The token bucket on an interface.
fn tbf(netns: &NetNs, interface: &str) -> Result<Option<Value>> {
    let all = tc(netns, &format!("qdisc show dev {interface}"))?;
    Ok(inspect::items(&all)
        .find(|one| one["kind"] == "tbf")
        .cloned())
}

/// The devices that packets of pods wait on.
fn devices(node: &Node) -> Result<Vec<String>> {
    let links = node.netns.ip_json("link show type ifb")?;
    let names = inspect::items(&links).filter_map(|link| link["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Sends so many bytes over TCP and returns how long it was until all were read.
pub(crate) fn transfer(from: &NetNs, to: &NetNs, target: IpAddr, bytes: usize) -> Result<Duration> {
    let listener = to.enter(move || TcpListener::bind(SocketAddr::new(target, 0)))??;
    let target = listener.local_addr()?;
    let sink = to.spawn(move || -> std::io::Result<usize> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(SOON))?;
        let (mut buffer, mut read) = (vec![0; 64 << 10], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                length => read += length,
            }
        }
        stream.write_all(b".")?;
        Ok(read)
    })?;
    let started = Instant::now();
    from.enter(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&target, SOON)?;
        stream.set_write_timeout(Some(SOON))?;
        stream.write_all(&vec![7; bytes])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.read_exact(&mut [0])
    })??;
    let took = started.elapsed();
    let read = sink.join().expect("no panic")??;
    assert_eq!(read, bytes);
    Ok(took)
}

#[test]
fn what_a_pod_receives_and_what_it_sends_is_limited() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    // 1 MB/s to the pod, 2 MB/s from it.
    let pod = Container::add(&node, "one", containerd(8_000_000, 16_000_000))?;
    let port = inspect::host_interface(&pod.result)?;
    let device = devices(&node)?
        .pop()
        .context("a device for what it sends")?;
    assert_eq!(device.len(), 15);
    for (interface, rate) in [(&port, 1_000_000), (&device, 2_000_000)] {
        let found = tbf(&node.netns, interface)?.context("a token bucket")?;
        assert_eq!(found["options"]["rate"], rate, "{found}");
        assert_eq!(found["options"]["lat"], 25_000, "microseconds: {found}");
    }
    // A limit can be missed in one direction only: load makes it slower, nothing faster.
    // What is in the bucket, 25 ms of the rate, passes at once.
    const BYTES: usize = 1_000_000;
    for family in Family::ALL {
        let at_pod = pod.ip(family);
        let took = transfer(&node.netns, &pod.netns, at_pod, BYTES)?;
        assert!(took > Duration::from_millis(900), "to the pod: {took:?}");
        let at_node = family.pick(GATEWAYS);
        let took = transfer(&pod.netns, &node.netns, at_node, BYTES)?;
        assert!(took > Duration::from_millis(450), "from the pod: {took:?}");
    }
    for interface in [&port, &device] {
        let found = tbf(&node.netns, interface)?.context("a token bucket")?;
        assert!(found["bytes"].as_u64() > Some(BYTES as u64), "{found}");
        assert!(found["overlimits"].as_u64() > Some(0), "{found}");
    }
    pod.check()?;
    pod.del()?;
    assert_eq!(devices(&node)?, Vec::<String>::new());
    assert_empty(&node)
}

#[test]
fn one_direction_alone_is_limited_alone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let burst = 80_000;
    for (keys, ingress, egress) in [
        (
            json!({"ingressRate": 8_000_000, "ingressBurst": burst}),
            true,
            false,
        ),
        (
            json!({"egressRate": 8_000_000, "egressBurst": burst}),
            false,
            true,
        ),
        (json!({"ingressRate": 0, "ingressBurst": 0}), false, false),
        (json!({}), false, false),
    ] {
        for conf in [json!({"runtimeConfig": {"bandwidth": keys}}), keys.clone()] {
            let pod = Container::add(&node, "one", conf.clone())?;
            let port = inspect::host_interface(&pod.result)?;
            let found = tbf(&node.netns, &port)?;
            assert_eq!(found.is_some(), ingress, "{conf}");
            assert_eq!(devices(&node)?.len(), usize::from(egress), "{conf}");
            if let Some(found) = found {
                assert_eq!(found["options"]["burst"], burst / 8, "{found}");
            }
            pod.check()?;
            pod.del()?;
            assert_eq!(devices(&node)?.len(), 0);
        }
    }
    assert_empty(&node)
}

#[test]
fn a_bucket_that_holds_no_packet_is_made_to_hold_one() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys = json!({"runtimeConfig": {"bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 8, "egressRate": 8_000_000, "egressBurst": 8}}});
    let pod = Container::add(&node, "one", keys)?;
    let at_pod = pod.ip(Family::V4);
    transfer(&node.netns, &pod.netns, at_pod, 100_000)?;
    let at_node = Family::V4.pick(GATEWAYS);
    transfer(&pod.netns, &node.netns, at_node, 100_000)?;
    pod.del()?;
    assert_empty(&node)
}

/// cni.md 42.
#[test]
fn check_names_a_limit_that_is_gone() -> Result<()> {
    require_root!();
    type Damage = fn(&NetNs, &str, &str) -> Result<()>;
    let damages: [(&str, Damage); 5] = [
        ("the bucket of the port", |netns, port, _| {
            run_tc(netns, &format!("qdisc del dev {port} root"))
        }),
        ("another rate", |netns, port, _| {
            run_tc(
                netns,
                &format!("qdisc change dev {port} root tbf rate 1gbit burst 1mb latency 25ms"),
            )
        }),
        ("the redirection", |netns, port, _| {
            run_tc(netns, &format!("qdisc del dev {port} ingress"))
        }),
        ("the bucket of the device", |netns, _, device| {
            run_tc(netns, &format!("qdisc del dev {device} root"))
        }),
        ("the device", |netns, _, device| {
            netns.ip(&format!("link del {device}")).map(drop)
        }),
    ];
    for (what, damage) in damages {
        let node = Node::new()?;
        let pod = Container::add(&node, "one", containerd(8_000_000, 8_000_000))?;
        let port = inspect::host_interface(&pod.result)?;
        let device = devices(&node)?.pop().context("a device")?;
        pod.check()?;
        damage(&node.netns, &port, &device)?;
        let (code, text) = pod.call("CHECK").error()?;
        assert_eq!(code, 104, "{what}: {text}");
        let named = text.contains(&port) || text.contains(&device);
        assert!(named, "{what}: {text}");
        pod.del()?;
        assert_eq!(devices(&node)?.len(), 0, "{what}");
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 37: the device is not the pod's and does not go with its namespace.
#[test]
fn del_and_gc_remove_the_device_of_a_pod_that_is_gone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    for by_gc in [false, true] {
        let pod = NetNs::create("pod")?;
        Call::new(&node, "ADD", "c1", &pod)
            .keys(containerd(8_000_000, 8_000_000))
            .result()?;
        assert_eq!(devices(&node)?.len(), 1);
        let del = Call::new(&node, "DEL", "c1", &pod).without("CNI_NETNS");
        drop(pod);
        if by_gc {
            let none = json!({"cni.dev/valid-attachments": []});
            Call::bare(&node, "GC").keys(none).silent()?;
        } else {
            del.silent()?;
        }
        assert_eq!(devices(&node)?, Vec::<String>::new());
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn limits_that_make_no_sense_are_refused() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    for (keys, code, named) in [
        (json!({"ingressRate": 1000}), 7, "ingressBurst"),
        (
            json!({"egressRate": 1, "egressBurst": 1000}),
            7,
            "egressRate",
        ),
        (
            json!({"unshapedSubnets": ["10.0.0.0/8"]}),
            2,
            "unshapedSubnets",
        ),
    ] {
        let (found, text) = Call::new(&node, "ADD", "c1", &pod).keys(keys).error()?;
        assert_eq!(found, code, "{text}");
        assert!(text.contains(named), "{text}");
    }
    assert_eq!(devices(&node)?.len(), 0);
    assert_empty(&node)
}
