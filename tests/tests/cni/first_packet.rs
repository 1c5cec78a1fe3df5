//! The first packet: whoever has the result of an ADD may send at once.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::{inspect, require_root};

use crate::assert_empty;

/// Pods of each kind, one after the other: each is the first port of its bridge.
const PODS: usize = 24;

/// Longer than an answer takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Sends one datagram to a port where nobody listens, as soon as it hears of the address, and
/// returns whether that came back.
fn send_one(addresses: &Receiver<IpAddr>) -> Result<bool> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let sockets = any.map(|any| UdpSocket::bind((any, 0)));
    let to = addresses.recv().context("no address")?;
    let socket = sockets
        .into_iter()
        .nth(usize::from(to.is_ipv6()))
        .context("of two")??;
    socket.connect((to, 9))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(b"first")?;
    match socket.recv(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
        Ok(_) => bail!("somebody listens on port 9 of {to}"),
    }
}

/// Whether the pod had to ask more than once for the gateway's Ethernet address: its first
/// question was lost. The kernel counts from the number of later unicast questions on.
fn asked_again(pod: &NetNs, gateway: IpAddr) -> Result<bool> {
    let family = if gateway.is_ipv6() { "ipv6" } else { "ipv4" };
    let key = format!("net.{family}.neigh.eth0.ucast_solicit");
    let start: u64 = pod.read_sysctl(&key).context("no eth0")?.parse()?;
    let entries = pod.ip_json(&format!("-s neighbour show to {gateway} dev eth0"))?;
    // None for one that was told beforehand, or has made itself known.
    let questions = entries[0]["probes"].as_u64().unwrap_or_default();
    Ok(questions > start + 1)
}

/// How many first packets were lost on a node whose pods have these keys.
fn lost(keys: &Value) -> Result<Vec<String>> {
    let node = Node::new()?;
    let mut lost = Vec::new();
    for round in 0..PODS {
        let pod = NetNs::create("pod")?;
        let family = Family::ALL[round / 2 % 2];
        let is_from_pod = round % 2 == 0;
        let gateway: IpAddr = family.pick(GATEWAYS);
        let (tell, told) = channel();
        let from = if is_from_pod { &pod } else { &node.netns };
        let sender = from.spawn(move || send_one(&told))?;
        let call = |verb| Call::new(&node, verb, "c1", &pod).keys(keys.clone());
        let result = call("ADD").result()?;
        let ips = inspect::result_ips(&result)?;
        let of_pod = ips
            .into_iter()
            .find(|ip| ip.is_ipv6() == (family == Family::V6));
        let to = match is_from_pod {
            true => gateway,
            false => of_pod.context("an address of each family")?,
        };
        tell.send(to)?;
        let came_back = sender.join().expect("it does not panic")??;
        if !came_back || asked_again(&pod, gateway)? {
            lost.push(format!("round {round}, to {to}"));
        }
        call("DEL").silent()?;
    }
    assert_empty(&node)?;
    Ok(lost)
}

fn expect_none_lost(keys: &Value) -> Result<()> {
    let lost = lost(keys)?;
    ensure!(lost.is_empty(), "{keys}: of {PODS}: {lost:?}");
    Ok(())
}

/// cni.md 19.
#[test]
fn the_first_packet_over_a_bridge_port_arrives() -> Result<()> {
    require_root!();
    for mode in ["routed-ports", "l2"] {
        expect_none_lost(&json!({"mode": mode}))?;
    }
    Ok(())
}

/// cni.md 19.
#[test]
fn the_first_packet_over_a_routed_veth_arrives() -> Result<()> {
    require_root!();
    expect_none_lost(&json!({"mode": "routed"}))
}

/// cni.md 19.
#[test]
fn the_first_packet_over_a_limited_port_arrives() -> Result<()> {
    require_root!();
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
        "egressRate": 8_000_000, "egressBurst": 8_000_000});
    expect_none_lost(&json!({"runtimeConfig": {"bandwidth": limits}}))
}
