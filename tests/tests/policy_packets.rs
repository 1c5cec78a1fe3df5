//! NetworkPolicy and packets that are no plain connection: ICMP, fragments, SCTP, odd flags.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::node::Node;
use tests::objects::{deny_all, policy};
use tests::pod::Family;
use tests::require_root;
use tests::scene::Scene;
use tests::traffic::sctp::{self, Arrivals};
use tests::traffic::{Protocol, SHORT, Stream, limit, udp_to};
use tests::wait::{SOON, eventually};

/// IP protocol numbers.
const TCP: i32 = 6;
/// Flags of TCP.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn pods() -> Vec<(&'static str, Value)> {
    ["shop/web", "lab/probe"]
        .map(|key| (key, json!({"app": "any"})))
        .into()
}

/// Ingress to the pods of shop by one rule.
fn ingress(rule: &Value) -> Value {
    policy("shop/web", &json!({"podSelector": {}, "ingress": [rule]}))
}

/// netpol.md 37: an echo is allowed by rules without ports only; neighbour discovery always
/// works, as does everything else that IPv6 needs to get to the node.
#[test]
fn an_echo_is_allowed_by_rules_without_ports() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let probe = &scene.pod("lab/probe").netns;
    let cases = [
        (ingress(&json!({"ports": [{"port": 80}]})), false),
        (ingress(&json!({"from": [{"namespaceSelector": {}}]})), true),
        (
            ingress(&json!({"ports": [{}, {"protocol": "UDP"}, {"protocol": "SCTP"}]})),
            false,
        ),
        (deny_all("shop"), false),
        (ingress(&json!({})), true),
    ];
    for (object, passes) in cases {
        scene.apply(std::slice::from_ref(&object))?;
        for family in Family::ALL {
            let web = scene.pod("shop/web").ip(family);
            probe.ip("neigh flush all")?;
            let answered = probe.ping_for(web, limit(passes));
            assert_eq!(answered.is_ok(), passes, "{family}: {object}");
            node.netns.ping(web).context("the node is exempt")?;
        }
    }
    Ok(())
}

/// netpol.md 37: "packet too big" about an allowed flow passes rules for ports.
#[test]
fn path_mtu_discovery_works_through_rules_for_ports() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let rules = json!([{"ports": [{"port": 81, "protocol": "UDP"}]}]);
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": rules, "egress": rules});
    let scene = Scene::start(&node, &pods(), &[policy("shop/web", &spec)])?;
    // Behind the neighbour the path is narrower: the neighbour says so.
    let outside = &node.outside;
    outside.ip("link add far type veth peer name farther")?;
    outside.ip("link set far mtu 1300 up")?;
    outside.ip("link set farther mtu 1300 up")?;
    outside.sysctl("net.ipv4.ip_forward", 1)?;
    outside.sysctl("net.ipv6.conf.all.forwarding", 1)?;
    outside.ip("route add 203.0.113.0/24 dev far")?;
    outside.ip("route add 2001:db8:99::/64 dev far")?;
    for target in ["203.0.113.9", "2001:db8:99::9"] {
        let pod = &scene.pod("shop/web").netns;
        let ip: IpAddr = target.parse()?;
        eventually(SOON, || {
            pod.enter(move || -> Result<()> {
                let socket = udp_to((ip, 81).into())?;
                // Refused from the second on, once the pod knows.
                socket.send(&[7; 1400]).ok();
                Ok(())
            })??;
            let route = pod.ip(&format!("route get {target}"))?;
            anyhow::ensure!(route.contains("mtu 1300"), "{route}");
            Ok(())
        })?;
    }
    Ok(())
}

/// netpol.md 39: all fragments of an allowed datagram arrive, none of a denied one.
#[test]
fn fragments_share_the_verdict_of_their_datagram() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let rule = json!({"ports": [{"port": 80, "protocol": "UDP"}]});
    let scene = Scene::start(&node, &pods(), &[ingress(&rule)])?;
    for family in Family::ALL {
        let web = scene.pod("shop/web");
        let send = |port: u16| {
            let target = web.at(family, port);
            scene.pod("lab/probe").netns.enter(move || -> Result<()> {
                let socket = udp_to(target)?;
                for _ in 0..3 {
                    socket.send(&[b'x'; 5000])?;
                }
                Ok(())
            })?
        };
        let seen_on = |port: u16| {
            let seen = scene.servers["shop/web"].seen();
            let of_family = move |peer: &SocketAddr| Family::of(peer.ip()) == family;
            seen.iter()
                .filter(|s| s.port == port && of_family(&s.peer))
                .count()
        };
        send(81)?;
        send(80)?;
        eventually(SOON, || {
            anyhow::ensure!(seen_on(80) == 3, "{family}: {} of 3 arrived", seen_on(80));
            Ok(())
        })?;
        assert_eq!(seen_on(81), 0, "{family}");
    }
    Ok(())
}

/// A raw socket of an IP protocol.
fn raw(protocol: i32) -> std::io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::RAW, Some(protocol.into()))
}

/// Whether anything arrives; if it is `expected` to, it has time.
fn receives(mut socket: &Socket, expected: bool) -> Result<bool> {
    socket.set_read_timeout(Some(limit(expected)))?;
    Ok(socket.read(&mut [0; 256]).is_ok())
}

/// netpol.md 38, 13: SCTP is judged by itself; a rule for it opens no TCP, nor the other way
/// round. This kernel has no SCTP sockets: the packets are made by hand.
#[test]
fn sctp_is_judged_by_its_own_rules() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let (web, probe) = (scene.pod("shop/web"), scene.pod("lab/probe"));
    let arrivals = Family::ALL.map(|family| Arrivals::listen(&web.netns, family));
    let arrivals = arrivals.into_iter().collect::<Result<Vec<_>>>()?;
    let arrives = |expected: bool| -> Result<()> {
        for (family, arrivals) in Family::ALL.into_iter().zip(&arrivals) {
            sctp::knock(&probe.netns, web.at(family, 9000))?;
            let port = arrivals.next(limit(expected))?;
            ensure!(port.is_some() == expected, "{family}: {port:?}");
        }
        Ok(())
    };
    arrives(true).context("without a policy")?;
    let cases = [
        (
            json!({"ports": [{"protocol": "SCTP", "port": 9000}]}),
            true,
            false,
        ),
        (
            json!({"ports": [{"protocol": "SCTP", "port": 9001}]}),
            false,
            false,
        ),
        (json!({"ports": [{"protocol": "SCTP"}]}), true, false),
        (
            json!({"ports": [{"port": 80}, {"port": 9000}]}),
            false,
            true,
        ),
        (json!({}), true, true),
    ];
    for (rule, sctp, tcp) in cases {
        scene.apply(&[ingress(&rule)])?;
        arrives(sctp).with_context(|| rule.to_string())?;
        let web = scene.pod("shop/web").at(Family::V4, 80);
        let outcome = scene.ask_for("lab/probe", Protocol::Tcp, web, limit(tcp))?;
        assert_eq!(outcome.is_answered(), tcp, "{rule}: {outcome}");
    }
    Ok(())
}

/// netpol.md 77: marks that a pod's packets come with are no verdict: those of the flow count,
/// which only the node gives.
#[test]
fn a_mark_that_a_pod_sets_is_no_verdict() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[deny_all("shop")])?;
    let probe = &scene.pod("lab/probe").netns;
    for table in ["ip", "ip6"] {
        let chain = "type filter hook output priority -300;";
        let rules = format!(
            "add table {table} forge; add chain {table} forge out {{ {chain} }}; \
             add rule {table} forge out meta mark set 0xffffffff ct mark set 0xffffffff"
        );
        let output = probe.command("nft").arg(rules).output()?;
        anyhow::ensure!(output.status.success(), "{output:?}");
    }
    for family in Family::ALL {
        let web = scene.pod("shop/web").at(family, 80);
        for protocol in Protocol::ALL {
            let outcome = scene.ask_for("lab/probe", protocol, web, SHORT)?;
            assert!(!outcome.is_answered(), "{family}: {outcome}");
        }
    }
    Ok(())
}

/// netpol.md 76: packets in the middle of no flow, and flags that make no sense, are no way in;
/// nor is the flow that they may make conntrack believe in.
#[test]
fn odd_tcp_packets_open_no_way_past_the_policy() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[deny_all("shop")])?;
    let (probe, web) = (scene.pod("lab/probe"), scene.pod("shop/web"));
    let (source, target) = (probe.ip(Family::V4), web.ip(Family::V4));
    let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else {
        unreachable!("asked for IPv4")
    };
    let arrivals = web.netns.enter(|| raw(TCP))??;
    for flags in [ACK, SYN | FIN, SYN | ACK, FIN | ACK, RST, 0, 0x3f] {
        let mut packet = Vec::new();
        packet.extend(40_001u16.to_be_bytes());
        packet.extend(80u16.to_be_bytes());
        packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        let sum = tcp_checksum(source.octets(), target.octets(), &packet);
        packet[16..18].copy_from_slice(&sum.to_be_bytes());
        let address = SocketAddr::new(target.into(), 0);
        let send = move || raw(TCP)?.send_to(&packet, &address.into());
        probe.netns.enter(send)??;
        assert!(!receives(&arrivals, false)?, "flags {flags:#x} arrived");
    }
    // A flow that was allowed once and that the policy cuts stays cut for its middle, too.
    scene.apply(&[])?;
    let stream = Stream::open(
        &probe.netns,
        Protocol::Tcp,
        web.at(Family::V4, 80),
        Duration::from_millis(5),
    )?;
    scene.apply(&[deny_all("shop")])?;
    stream.wait_for_cut()?;
    Ok(())
}

/// A raw socket that is given whole IPv4 packets.
fn with_header() -> std::io::Result<Socket> {
    let socket = raw(TCP)?;
    socket.set_header_included_v4(true)?;
    Ok(socket)
}

/// An IPv4 packet; `fragment` is flags and offset. The kernel writes length and checksum.
fn ipv4(ends: [Ipv4Addr; 2], protocol: u8, options: &[u8], fragment: u16, data: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("a short header");
    let mut packet = vec![0x40 | words, 0, 0, 0, 0x12, 0x34];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(ends.into_iter().flat_map(|end| end.octets()));
    packet.extend(options);
    packet.extend(data);
    packet
}

/// netpol.md 76: options in the header do not hide where the ports are, and a first fragment
/// that ends before the flags does not hide that it begins a flow.
#[test]
fn options_and_tiny_fragments_hide_nothing_from_the_policy() -> Result<()> {
    require_root!();
    const MORE: u16 = 0x2000;
    let node = Node::new()?;
    let rule = json!({"ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]});
    let scene = Scene::start(&node, &pods(), &[ingress(&rule)])?;
    let (probe, web) = (scene.pod("lab/probe"), scene.pod("shop/web"));
    let (IpAddr::V4(source), IpAddr::V4(target)) = (probe.ip(Family::V4), web.ip(Family::V4))
    else {
        unreachable!("asked for IPv4")
    };
    let send = |packets: Vec<Vec<u8>>| {
        probe.netns.enter(move || -> Result<()> {
            let socket = with_header()?;
            for packet in packets {
                socket.send_to(&packet, &SocketAddr::new(target.into(), 0).into())?;
            }
            Ok(())
        })?
    };
    let ends = [source, target];

    // No operation four times; a record of the route.
    let options = [&[1, 1, 1, 1][..], &[7, 7, 4, 0, 0, 0, 0, 0]];
    for port in [81u16, 80] {
        let mut datagram = 40_002u16.to_be_bytes().to_vec();
        datagram.extend(port.to_be_bytes());
        datagram.extend([0, 9, 0, 0, b'x']);
        send(options.map(|o| ipv4(ends, 17, o, 0, &datagram)).into())?;
    }
    let seen_on = |port: u16| {
        let seen = scene.servers["shop/web"].seen();
        seen.iter().filter(|seen| seen.port == port).count()
    };
    eventually(SOON, || {
        anyhow::ensure!(seen_on(80) == 2, "{} of 2 arrived", seen_on(80));
        Ok(())
    })?;
    assert_eq!(seen_on(81), 0, "options");

    let arrivals = web.netns.enter(|| raw(TCP))??;
    for (port, arrives) in [(81u16, false), (80, true)] {
        let mut syn = 40_003u16.to_be_bytes().to_vec();
        syn.extend(port.to_be_bytes());
        syn.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        let sum = tcp_checksum(source.octets(), target.octets(), &syn);
        syn[16..18].copy_from_slice(&sum.to_be_bytes());
        let parts = [(&syn[..8], MORE), (&syn[8..16], MORE | 1), (&syn[16..], 2)];
        let parts = parts.map(|(part, fragment)| ipv4(ends, 6, &[], fragment, part));
        send(parts.into())?;
        assert_eq!(
            receives(&arrivals, arrives)?,
            arrives,
            "fragments to {port}"
        );
    }
    Ok(())
}

fn tcp_checksum(source: [u8; 4], target: [u8; 4], segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).expect("a short segment");
    let mut bytes = [source, target].concat();
    bytes.extend([0, 6]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(segment);
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
