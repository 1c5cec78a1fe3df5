//! NetworkPolicy between pods of different nodes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::cluster::Cluster;
use tests::fabric::{Fabric, Join};
use tests::matrix::LIMIT;
use tests::objects::policy;
use tests::pod::Family;
use tests::require_root;
use tests::traffic::Outcome;
use tests::wait::{SOON, eventually};

use super::{PROBE, WEB, two_pods};

const OTHER: &str = "lab/other";

/// Whether the attempt is denied: nothing comes back.
fn denied(cluster: &Cluster<'_>, from: &str, target: SocketAddr) -> Result<()> {
    let outcome = cluster.ask(from, target, LIMIT)?;
    ensure!(outcome == Outcome::Timeout, "{from} to {target}: {outcome}");
    Ok(())
}

fn across(join: Join, families: &[Family]) -> Result<()> {
    let fabric = Fabric::new(join, families, 2)?;
    let mut cluster = two_pods(&fabric, &["--network", "auto"])?;
    cluster.add_pod(1, OTHER, &json!({"app": "other"}))?;
    for family in Family::ALL {
        for from in [PROBE, OTHER, "n1", "n2"] {
            cluster.reaches(from, WEB, family)?;
        }
    }

    let from_probe = json!({
        "namespaceSelector": {"matchLabels": {"team": "lab"}},
        "podSelector": {"matchLabels": {"app": "probe"}},
    });
    let spec = json!({
        "podSelector": {}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [from_probe], "ports": [{"port": 80}]}],
    });
    cluster.apply(&[policy("shop/from-probe", &spec)])?;
    for family in Family::ALL {
        cluster.reaches(PROBE, WEB, family)?;
        denied(&cluster, PROBE, cluster.pod(WEB).at(family, 81))?;
        denied(&cluster, OTHER, cluster.pod(WEB).at(family, 80))?;
        // Its own node may reach a pod, another may not.
        cluster.reaches("n2", WEB, family)?;
        denied(&cluster, "n1", cluster.pod(WEB).at(family, 80))?;
    }

    let spec = json!({
        "podSelector": {"matchLabels": {"app": "probe"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": "none"}}}]}],
    });
    cluster.apply(&[policy("lab/nowhere", &spec)])?;
    for family in Family::ALL {
        denied(&cluster, PROBE, cluster.pod(WEB).at(family, 80))?;
        cluster.reaches(OTHER, WEB, family)?;
        cluster.reaches(WEB, PROBE, family)?;
    }
    Ok(())
}

/// netpol.md 4: selectors know pods of other nodes by their addresses; of the nodes only the
/// pod's own is exempt.
#[test]
fn policies_hold_between_neighbouring_nodes() -> Result<()> {
    require_root!();
    across(Join::Link, &Family::ALL)
}

/// The same through tunnels.
#[test]
fn policies_hold_between_nodes_behind_tunnels() -> Result<()> {
    require_root!();
    across(Join::Router, &[Family::V4])
}

/// A pod that takes the address of a pod of another node does not get out of its own.
#[test]
fn the_address_of_another_node_s_pod_cannot_be_used() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let mut cluster = two_pods(&fabric, &["--network", "auto"])?;
    cluster.add_pod(2, OTHER, &json!({"app": "other"}))?;
    let probe = &cluster.pod(PROBE).netns;
    for family in Family::ALL {
        let stolen = cluster.pod(OTHER).ip(family);
        let target = cluster.pod(WEB).ip(family);
        let (length, nodad) = match family {
            Family::V4 => (32, ""),
            Family::V6 => (128, "nodad"),
        };
        probe.ip(&format!("address add {stolen}/{length} dev eth0 {nodad}"))?;
        let status = probe
            .command("ping")
            .args(["-n", "-q", "-c2", "-i0.2", "-W1", "-I", &stolen.to_string()])
            .arg(target.to_string())
            .output()?
            .status;
        assert!(!status.success(), "{family}: a reply to a stolen address");
        // Or the pod would choose it for what it sends to its neighbour.
        probe.ip(&format!("address del {stolen}/{length} dev eth0"))?;
        cluster.reaches(PROBE, WEB, family)?;
    }
    let stolen = cluster.pod(OTHER).ips().to_vec();
    let seen = cluster.servers[WEB].seen();
    assert!(
        !seen.iter().any(|seen| stolen.contains(&seen.peer.ip())),
        "{seen:?}"
    );
    Ok(())
}

/// A VXLAN packet with a datagram that says it is from `lab/probe`, to port 80 of `shop/web`.
fn forged(cluster: &Cluster<'_>, vni: u32) -> Vec<u8> {
    let (from, to) = (
        cluster.pod(PROBE).ip(Family::V4),
        cluster.pod(WEB).ip(Family::V4),
    );
    let link = cluster.fabric.nodes[1]
        .netns
        .ip_json("link show type vxlan");
    let mac = link.expect("a tunnel")[0]["address"]
        .as_str()
        .map(mac_bytes);
    let mac = mac.expect("an address");
    let [_, a, b, c] = vni.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, a, b, c, 0];
    packet.extend(mac);
    packet.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    let payload = b"forged";
    let udp_length = u16::try_from(8 + payload.len()).expect("short");
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    for address in [from, to] {
        let std::net::IpAddr::V4(address) = address else {
            unreachable!("asked for IPv4")
        };
        ip.extend(address.octets());
    }
    let words = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(ip);
    // No checksum, which UDP over IPv4 allows.
    packet.extend(4321u16.to_be_bytes());
    packet.extend(80u16.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn mac_bytes(text: &str) -> Vec<u8> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes
        .collect::<Result<_, _>>()
        .expect("an Ethernet address")
}

/// A packet in a tunnel's form reaches a pod from a node alone: not from a pod of another
/// node, masqueraded or not, nor from outside.
#[test]
fn nobody_but_a_node_can_send_into_a_tunnel() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Router, &[Family::V4], 2)?;
    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    let packet = forged(&cluster, 116);
    let target = SocketAddr::new(fabric.node_ip(2, Family::V4), 8472);
    let send = |from: &str| -> Result<()> {
        let packet = packet.clone();
        cluster.netns(from).enter(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&packet, target)
        })??;
        Ok(())
    };
    let forgeries = || {
        let seen = cluster.servers[WEB].seen();
        seen.iter().filter(|seen| seen.peer.port() == 4321).count()
    };
    for from in [PROBE, tests::cluster::OUTSIDE] {
        send(from)?;
        // What is sent after it has come: so would it have.
        cluster.reaches(PROBE, WEB, Family::V4)?;
        assert_eq!(forgeries(), 0, "from {from}");
    }
    // The packet is as it should be.
    send("n1")?;
    eventually(SOON, || {
        ensure!(forgeries() == 1, "from a node");
        Ok(())
    })?;
    Ok(())
}
