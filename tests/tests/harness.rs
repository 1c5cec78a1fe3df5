//! The harness against the reference plugins and hand-made rules: what it says
//! about others can only be trusted if it tells these apart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tests::matrix::{self, Cell, Expect};
use tests::netns::NetNs;
use tests::node::{Node, OUTSIDE_IPS, PODS_V4, PODS_V6};
use tests::pod::{Family, Pod};
use tests::traffic::{Hammer, Outcome, PATIENT, Protocol, SHORT, Server, Stream, ask};
use tests::wait::{SOON, eventually};
use tests::{command, inspect, name, require_root};

/// A node whose pods are attached by the reference `bridge` plugin.
fn reference_node() -> Result<Node> {
    let node = Node::with_bridge_nf(true)?;
    node.write_conflist(&json!({
        "cniVersion": "1.0.0",
        "name": node.network(),
        "plugins": [{
            "type": "bridge", "bridge": "cbr0", "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": node.data_dir(),
                "ranges": [[{"subnet": PODS_V4}], [{"subnet": PODS_V6}]],
            },
        }],
    }))?;
    Ok(node)
}

#[test]
fn a_namespace_and_its_directory_are_gone_with_their_values() -> Result<()> {
    require_root!();
    let (netns, dir) = {
        let node = Node::new()?;
        let pod = NetNs::create("pod")?;
        assert!(pod.path().exists() && node.dir().exists());
        (pod.path().to_owned(), node.dir().to_owned())
    };
    assert!(!netns.exists() && !dir.exists());
    Ok(())
}

#[test]
fn a_sweep_removes_what_a_killed_run_left_and_nothing_else() -> Result<()> {
    require_root!();
    let alive = NetNs::create("alive")?;
    // No process has pid 0.
    let dead = format!("{}-0-{}-0-dead", name::PREFIX, std::process::id());
    command::run(Command::new("ip").args(["netns", "add", &dead]))?;
    name::sweep()?;
    assert!(alive.path().exists());
    assert!(!std::path::Path::new("/run/netns").join(dead).exists());
    Ok(())
}

#[test]
fn answers_refusals_silence_and_rejections_are_told_apart() -> Result<()> {
    require_root!();
    let node = reference_node()?;
    let server = Pod::add(&node, "default/server")?;
    let client = &node.outside;
    let serving = Server::start(&server.netns, "default/server", &[80, 81, 82])?;
    inspect::nft(
        &node.netns,
        "add table inet hand
        add chain inet hand f { type filter hook forward priority 0; }
        add rule inet hand f meta l4proto { tcp, udp } th dport 81 drop
        add rule inet hand f meta l4proto { tcp, udp } th dport 82 reject with icmpx admin-prohibited",
    )?;
    for family in Family::ALL {
        // The reference plugin does not wait for the bridge's IPv6 address.
        eventually(SOON, || client.ping(server.ip(family)))?;
        for protocol in Protocol::ALL {
            let try_for = |port, limit| {
                let target = server.at(family, port);
                client.enter(move || ask(protocol, target, limit))
            };
            match try_for(80, PATIENT)? {
                Outcome::Answered { server, peer } => {
                    assert_eq!(
                        (server.as_str(), peer.ip()),
                        ("default/server", family.pick(OUTSIDE_IPS))
                    );
                }
                other => panic!("{family} {protocol}: {other}"),
            }
            assert_eq!(
                try_for(79, PATIENT)?,
                Outcome::Refused,
                "{family} {protocol}"
            );
            assert_eq!(try_for(81, SHORT)?, Outcome::Timeout, "{family} {protocol}");
            // On one machine the ICMPv6 error comes while connect(2) still holds the
            // socket, and only the one for the repeated SYN ends the call.
            let rejected = try_for(82, PATIENT)?;
            assert!(
                matches!(rejected, Outcome::Unreachable { .. }),
                "{family} {protocol}: {rejected}"
            );
        }
    }
    assert!(serving.seen().iter().all(|seen| seen.port == 80));
    Ok(())
}

#[test]
fn a_matrix_names_the_cells_that_differ_and_no_others() -> Result<()> {
    require_root!();
    let node = reference_node()?;
    let (a, b) = (Pod::add(&node, "x/a")?, Pod::add(&node, "x/b")?);
    let _servers = (
        Server::start(&a.netns, "x/a", &[80])?,
        Server::start(&b.netns, "x/b", &[80])?,
    );
    let sources = BTreeMap::from([("x/a".to_owned(), &a.netns), ("x/b".to_owned(), &b.netns)]);
    let cell = |from: &str, to: &str, target: SocketAddr, expect: Expect| Cell {
        from: from.to_owned(),
        to: to.to_owned(),
        protocol: Protocol::Tcp,
        target,
        expect,
    };
    let right = Expect::Answer(vec!["x/b".to_owned()]);
    let good = vec![
        cell("x/a", "x/b", b.at(Family::V6, 80), right.clone()),
        cell("x/b", "x/a", a.at(Family::V4, 80), Expect::answered(true)),
        cell("x/b", "x/a", a.at(Family::V4, 9), Expect::Refusal),
    ];
    matrix::verify(&sources, &good)?;
    let mut bad = good;
    bad.push(cell("x/b", "wrong server", a.at(Family::V4, 80), right));
    bad.push(cell("x/b", "open", a.at(Family::V4, 80), Expect::Silence));
    let error = matrix::verify(&sources, &bad).unwrap_err().to_string();
    assert!(error.starts_with("2 of 5 cells differ"), "{error}");
    assert!(
        error.contains("wrong server") && error.contains("open"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_stream_notes_when_it_was_cut_and_a_hammer_sees_both_sides_of_it() -> Result<()> {
    require_root!();
    let node = reference_node()?;
    let (a, b) = (Pod::add(&node, "x/a")?, Pod::add(&node, "x/b")?);
    let _server = Server::start(&b.netns, "x/b", &[80])?;
    for (family, protocol) in [(Family::V4, Protocol::Tcp), (Family::V6, Protocol::Udp)] {
        let target = b.at(family, 80);
        let interval = Duration::from_millis(5);
        let stream = Stream::open(&a.netns, protocol, target, interval)?;
        let hammer = Hammer::start(&a.netns, protocol, target, SHORT, interval)?;
        stream.flows(SOON)?;
        inspect::nft(
            &node.netns,
            "add table inet cut
            add chain inet cut f { type filter hook forward priority 0; policy drop; }",
        )?;
        let cut = Instant::now();
        let noticed = stream.wait_for_cut()?;
        let next = stream.first_since(cut);
        assert!(
            next.is_none_or(|next| noticed <= next),
            "{:?} after a line that was cut",
            next.map(|next| noticed - next)
        );
        assert!(stream.flows(SHORT).is_err());
        let tally = hammer.stop()?;
        assert!(tally.answered() > 0 && tally.failed() > 0, "{tally:?}");
        inspect::nft(&node.netns, "delete table inet cut")?;
    }
    Ok(())
}
