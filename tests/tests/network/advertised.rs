//! A node that has its IPv6 default route from router advertisements.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};
use tests::fabric::{Fabric, Join};
use tests::inspect::items;
use tests::netns::NetNs;
use tests::pod::Family;
use tests::require_root;
use tests::wait::{SOON, eventually};

use super::{PROBE, WEB, two_pods};

const UPLINK: &str = "uplink";
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Sends a Router Advertisement (RFC 4861, section 4.2): for so many seconds the sender is a
/// default router, with 0 no longer.
fn advertise(router: &NetNs, lifetime: u16) -> Result<()> {
    let sent = router.enter(move || -> io::Result<usize> {
        let link = if_nametoindex(UPLINK)?;
        // The kernel adds the checksum.
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_multicast_if_v6(link)?;
        socket.set_multicast_hops_v6(255)?;
        let mut message = [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message[6..8].copy_from_slice(&lifetime.to_be_bytes());
        socket.send_to(&message, &SocketAddrV6::new(ALL_NODES, 0, 0, link).into())
    })?;
    sent.context("cannot advertise")?;
    Ok(())
}

/// Advertises until the node has, or with 0 no longer has, a default route by it.
fn is_default_router(router: &NetNs, node: &NetNs, lifetime: u16) -> Result<()> {
    eventually(SOON, || {
        advertise(router, lifetime)?;
        ensure!(has_default_route(node)? == (lifetime > 0), "not yet");
        Ok(())
    })?;
    Ok(())
}

fn has_default_route(node: &NetNs) -> Result<bool> {
    let routes = node.ip_json("-6 route show default")?;
    let mut routes = items(&routes);
    Ok(routes.any(|route| route["protocol"] == "ra" && route["dev"] == UPLINK))
}

/// issue 7, 2: forwarding is switched on, and a node that forwards takes no advertisements unless
/// it is told to: its own way out stays, and goes on being the router's to tell.
#[test]
fn a_node_that_is_made_to_forward_keeps_the_default_route_of_its_router() -> Result<()> {
    require_root!();
    let fabric = Fabric::new(Join::Link, &Family::ALL, 2)?;
    let (node, router) = (&fabric.nodes[0].netns, &fabric.outside);
    node.sysctl("net.ipv6.conf.all.forwarding", 0)?;
    node.sysctl("net.ipv6.conf.uplink.accept_ra", 1)?;
    node.ip("-6 route del default")?;
    is_default_router(router, node, 1800)?;

    let cluster = two_pods(&fabric, &["--network", "auto"])?;
    for (name, expected) in [("all.forwarding", "1"), ("uplink.accept_ra", "2")] {
        let value = node.read_sysctl(&format!("net.ipv6.conf.{name}"));
        assert_eq!(value.as_deref().map(str::trim), Some(expected), "{name}");
    }
    assert!(has_default_route(node)?, "it went with forwarding");
    cluster.all_reach(&[PROBE, WEB])?;

    is_default_router(router, node, 0)?;
    is_default_router(router, node, 1800)?;
    Ok(())
}
