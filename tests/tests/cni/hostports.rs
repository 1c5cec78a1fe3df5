//! hostPorts with real traffic: from outside, from the node and from pods, with an agent and
//! without.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::agent;
use tests::netns::NetNs;
use tests::node::{GATEWAYS, NODE_IPS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::traffic::{Outcome, Protocol};
use tests::wait::{SOON, eventually};
use tests::{inspect, require_root};

use crate::assert_empty;
use crate::container::{
    Container, SHORT, ask_from, assert_answered, assert_silent, containerd, elements, start_agent,
    translations,
};

/// cni.md 13, 64: from outside, from the node at 127.0.0.1 and at its own addresses, from
/// another pod, and from the pod itself.
fn is_reached_from_everywhere(node: &Node) -> Result<()> {
    let mappings = containerd(&[(8080, 80, "tcp"), (8053, 53, "UDP")]);
    let (one, two) = (
        Container::add(node, "one", mappings)?,
        Container::add(node, "two", json!({}))?,
    );
    for family in Family::ALL {
        for (protocol, port) in [(Protocol::Tcp, 8080), (Protocol::Udp, 8053)] {
            let target = |ip: IpAddr| SocketAddr::new(ip, port);
            let at_node = target(family.pick(NODE_IPS));
            for from in [&node.outside, &node.netns, &two.netns, &one.netns] {
                assert_answered(from, protocol, at_node, "one")?;
            }
            let at_gateway = target(family.pick(GATEWAYS));
            for from in [&node.netns, &two.netns, &one.netns] {
                assert_answered(from, protocol, at_gateway, "one")?;
            }
            // The other protocol is not mapped.
            let other = if protocol == Protocol::Tcp {
                Protocol::Udp
            } else {
                Protocol::Tcp
            };
            assert_silent(&node.outside, other, at_node)?;
        }
    }
    for (protocol, port) in [(Protocol::Tcp, 8080), (Protocol::Udp, 8053)] {
        for loopback in ["127.0.0.1", "127.0.0.53"] {
            let target = SocketAddr::new(loopback.parse()?, port);
            assert_answered(&node.netns, protocol, target, "one")?;
        }
    }
    one.check()?;
    one.del()?;
    let at_node = SocketAddr::new(Family::V4.pick(NODE_IPS), 8080);
    assert_silent(&node.outside, Protocol::Tcp, at_node)?;
    two.del()
}

#[test]
fn a_host_port_is_reached_from_everywhere_without_an_agent() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let before = inspect::tables(&node.netns)?;
        is_reached_from_everywhere(&node)?;
        assert_eq!(inspect::tables(&node.netns)?, before);
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn a_host_port_is_reached_from_everywhere_with_an_agent() -> Result<()> {
    require_root!();
    for bridge_nf in [false, true] {
        let node = Node::with_bridge_nf(bridge_nf)?;
        let agent = start_agent(&node, &["one", "two"])?;
        is_reached_from_everywhere(&node)?;
        assert!(agent.verify()?.status.success());
        assert_eq!(elements(&node, "host-ports4")?, Vec::<Value>::new());
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn a_pod_sees_who_asks_for_its_host_port() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
    for family in Family::ALL {
        let target = SocketAddr::new(family.pick(NODE_IPS), 8080);
        let outcome = ask_from(&node.outside, Protocol::Tcp, target)?;
        let Outcome::Answered { peer, .. } = outcome else {
            panic!("{outcome}")
        };
        assert_eq!(peer.ip(), family.pick(tests::node::OUTSIDE_IPS));
    }
    one.del()
}

/// CVE-2020-8558: the setting that makes 127.0.0.1 work must not open the node's own
/// services to pods and neighbours.
#[test]
fn what_listens_on_the_nodes_loopback_stays_its_own() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
    let setting = || node.netns.read_sysctl("net.ipv4.conf.cbr0.route_localnet");
    assert_eq!(setting().as_deref(), Some("1"), "127.0.0.1 needs it");
    let private = node.netns.enter(|| UdpSocket::bind("127.0.0.1:9999"))??;
    private.set_read_timeout(Some(SHORT))?;
    one.netns.ip("route add 127.0.0.1/32 via 10.88.0.1")?;
    one.netns
        .ip("route del local 127.0.0.0/8 dev lo table local")?;
    one.netns
        .ip("route del local 127.0.0.1 dev lo table local")?;
    let own = one.ip(Family::V4);
    let sent = one.netns.enter(move || -> std::io::Result<()> {
        let socket = UdpSocket::bind((own, 0))?;
        socket.send_to(b"?", "127.0.0.1:9999")?;
        Ok(())
    })?;
    sent.context("the datagram leaves the pod")?;
    let mut buffer = [0; 16];
    let received = private.recv_from(&mut buffer);
    assert!(
        received.is_err(),
        "a pod reached the node's loopback: {received:?}"
    );
    node.netns.enter(|| -> std::io::Result<()> {
        UdpSocket::bind("127.0.0.1:0")?.send_to(b"own", "127.0.0.1:9999")?;
        Ok(())
    })??;
    assert_eq!(
        private.recv_from(&mut buffer)?.0,
        3,
        "the node itself reaches it"
    );
    one.del()?;
    assert_eq!(
        setting().as_deref(),
        Some("0"),
        "closed with the last of them"
    );
    Ok(())
}

#[test]
fn a_host_ip_limits_a_host_port_to_one_address_or_family() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    node.netns.ip("address add 192.0.2.3/24 dev uplink")?;
    let mapping = |ip: &str, port: u16| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": ip});
    let keys = json!({"runtimeConfig": {"portMappings": [
        mapping(NODE_IPS[0], 8001), mapping("0.0.0.0", 8002), mapping("::", 8003),
        mapping("127.0.0.1", 8004), mapping(NODE_IPS[1], 8005),
    ]}});
    let one = Container::add(&node, "one", keys)?;
    let (v4, v6) = (NODE_IPS[0].parse()?, NODE_IPS[1].parse()?);
    let second: IpAddr = "192.0.2.3".parse()?;
    for (ip, answering) in [
        (v4, &[8001, 8002][..]),
        (second, &[8002]),
        (v6, &[8003, 8005]),
    ] {
        for port in 8001..=8005 {
            let target = SocketAddr::new(ip, port);
            if answering.contains(&port) {
                assert_answered(&node.outside, Protocol::Tcp, target, "one")?;
            } else {
                assert_silent(&node.outside, Protocol::Tcp, target)?;
            }
        }
    }
    let loopback = SocketAddr::new("127.0.0.1".parse()?, 8004);
    assert_answered(&node.netns, Protocol::Tcp, loopback, "one")?;
    one.check()?;
    one.del()?;
    assert_empty(&node)
}

#[test]
fn a_taken_host_port_is_refused_with_the_name_of_who_has_it() -> Result<()> {
    require_root!();
    for with_agent in [false, true] {
        let node = Node::new()?;
        let _agent = with_agent
            .then(|| start_agent(&node, &["one", "two"]))
            .transpose()?;
        let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
        let two = NetNs::create("two")?;
        let wanted = json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 53, "hostIP": NODE_IPS[0]}]}});
        let call = Call::new(&node, "ADD", "two", &two).keys(wanted.clone());
        let (code, text) = call.error()?;
        assert_eq!(code, 103, "{text}");
        for named in ["default/one", "8080/tcp"] {
            assert!(text.contains(named), "{text}");
        }
        assert_eq!((node.ports()?.len(), node.records()?.len()), (1, 1));
        one.check()?;

        // UDP is another port, and a container whose namespace is gone has none.
        let udp = containerd(&[(8080, 80, "udp")]);
        Call::new(&node, "ADD", "two", &two).keys(udp).result()?;
        Call::new(&node, "DEL", "two", &two).silent()?;
        let old = one.call("DEL");
        drop(one);
        eventually(SOON, || {
            anyhow::ensure!(node.ports()?.is_empty(), "the port goes with the namespace");
            Ok(())
        })?;
        let two = Container::add(&node, "two", wanted)?;
        old.silent()?;
        two.check().context("the DEL of who had it takes nothing")?;
        two.del()?;
        assert_empty(&node)?;
    }
    Ok(())
}

#[test]
fn a_host_port_that_cannot_lead_anywhere_is_refused() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let keys = json!({
        "ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}]]},
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "hostIP": NODE_IPS[1]}]},
    });
    let (code, text) = Call::new(&node, "ADD", "c1", &pod).keys(keys).error()?;
    assert_eq!(code, 7, "{text}");
    assert!(text.contains(NODE_IPS[1]), "{text}");
    assert_empty(&node)
}

/// cni.md 37: whatever of the container is gone, its DEL leaves no element.
#[test]
fn del_leaves_no_element_however_little_is_known() -> Result<()> {
    require_root!();
    for with_agent in [false, true] {
        let node = Node::new()?;
        let _agent = with_agent
            .then(|| start_agent(&node, &["one", "two"]))
            .transpose()?;
        let mut keys = containerd(&[(8081, 80, "tcp"), (8082, 80, "udp")]);
        keys["ipMasq"] = json!(true);
        let staying = Container::add(&node, "two", keys)?;
        let before = translations(&node)?;
        for (n, netns) in [None, Some(""), Some("/run/netns/never")]
            .into_iter()
            .enumerate()
        {
            let pod = NetNs::create("pod")?;
            let mut keys = containerd(&[(8080, 80, "tcp"), (8053, 53, "udp")]);
            keys["ipMasq"] = json!(true);
            Call::new(&node, "ADD", "one", &pod).keys(keys).result()?;
            assert_eq!(elements(&node, "host-ports4")?.len(), 4);
            assert_eq!(elements(&node, "masqueraded6")?.len(), 2);
            let del = Call::new(&node, "DEL", "one", &pod);
            drop(pod);
            let del = match netns {
                None => del.without("CNI_NETNS"),
                Some(path) => del.env("CNI_NETNS", path),
            };
            del.silent()?;
            assert_eq!(translations(&node)?, before, "round {n}");
        }
        staying.check()?;
        staying.del()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 59.
#[test]
fn gc_frees_the_host_ports_of_what_is_not_listed() -> Result<()> {
    require_root!();
    for with_agent in [false, true] {
        let node = Node::new()?;
        let ids = ["c0", "c1", "c2", "c3", "c4"];
        let _agent = with_agent.then(|| start_agent(&node, &ids)).transpose()?;
        let mut containers = Vec::new();
        for (n, id) in (0..).zip(ids) {
            containers.push(Container::add(
                &node,
                id,
                containerd(&[(8000 + n, 80, "tcp")]),
            )?);
        }
        let listed = json!({"cni.dev/valid-attachments": [
            {"containerID": "c1", "ifname": "eth0"}, {"containerID": "c3", "ifname": "eth0"}]});
        Call::bare(&node, "GC").keys(listed).silent()?;
        assert_eq!(elements(&node, "host-ports4")?.len(), 2);
        assert_eq!((node.ports()?.len(), node.leases()?.len()), (2, 4));
        for (n, container) in (0u16..).zip(&containers) {
            let target = SocketAddr::new(Family::V4.pick(NODE_IPS), 8000 + n);
            if [1, 3].contains(&n) {
                assert_answered(&node.outside, Protocol::Tcp, target, container.id)?;
                container.check()?;
            } else {
                assert_silent(&node.outside, Protocol::Tcp, target)?;
            }
        }
        Call::bare(&node, "GC")
            .keys(json!({"cni.dev/valid-attachments": []}))
            .silent()?;
        assert_eq!(elements(&node, "host-ports4")?.len(), 0);
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 42.
#[test]
fn check_names_a_missing_host_port() -> Result<()> {
    require_root!();
    for (what, named, script) in [
        (
            "an element",
            "host-ports6",
            "delete element inet trammel host-ports6 { tcp . 8080 }",
        ),
        (
            "a wrong target",
            "host-ports4",
            "delete element inet trammel host-ports4 { tcp . 8080 }
             add element inet trammel host-ports4 { tcp . 8080 : 10.88.0.99 . 80 }",
        ),
        (
            "the rules",
            "host-ports-prerouting",
            "flush chain inet trammel host-ports-prerouting",
        ),
        ("the table", "trammel", "delete table inet trammel"),
    ] {
        let node = Node::new()?;
        let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
        one.check()?;
        inspect::nft(&node.netns, script)?;
        let (code, text) = one.call("CHECK").error()?;
        assert_eq!(code, 104, "{what}: {text}");
        assert!(text.contains(named), "{what}: {text}");
        // Any request that has to do with hostPorts mends what is there.
        let two = Container::add(&node, "two", containerd(&[(8081, 80, "tcp")]))?;
        one.check()?;
        two.del()?;
        one.del()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 64: conntrack must not lead a client that goes on sending to the pod that was.
#[test]
fn udp_follows_a_host_port_to_its_new_pod() -> Result<()> {
    require_root!();
    for with_agent in [false, true] {
        let node = Node::new()?;
        let _agent = with_agent
            .then(|| start_agent(&node, &["old", "new"]))
            .transpose()?;
        for family in Family::ALL {
            let target = SocketAddr::new(family.pick(NODE_IPS), 8053);
            let any: IpAddr = if target.is_ipv4() {
                [0; 4].into()
            } else {
                [0u16; 8].into()
            };
            let client = node.outside.enter(move || UdpSocket::bind((any, 0)))??;
            client.connect(target)?;
            client.set_read_timeout(Some(SHORT))?;
            let server = || -> Option<String> {
                client.send(b"?").ok()?;
                let mut buffer = [0; 256];
                let length = client.recv(&mut buffer).ok()?;
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                text.split(' ').next().map(str::to_owned)
            };
            // Before anybody is there: an entry that leads to the node itself.
            assert_eq!(server(), None);
            let keys = containerd(&[(8053, 53, "udp")]);
            let old = Container::add(&node, "old", keys.clone())?;
            assert_eq!(server().as_deref(), Some("old"), "{family}");
            old.del()?;
            let mine = "dport=8053";
            let left: Vec<_> = inspect::conntrack(&node.netns)?
                .into_iter()
                .filter(|line| line.contains(mine))
                .collect();
            assert_eq!(left, Vec::<String>::new());
            assert_eq!(server(), None, "{family}");
            let new = Container::add(&node, "new", keys)?;
            assert_eq!(server().as_deref(), Some("new"), "{family}");
            new.del()?;
        }
        assert_empty(&node)?;
    }
    Ok(())
}

/// An agent that starts after pods with hostPorts takes over what the plugin wrote, its end
/// leaves it, and `cleanup` takes away everything but that.
#[test]
fn agents_come_and_go_without_a_lost_host_port() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut keys = containerd(&[(8080, 80, "tcp")]);
    keys["policy"] = json!("optional");
    let one = Container::add(&node, "one", keys.clone())?;
    let alone = inspect::tables(&node.netns)?;
    let target = SocketAddr::new(Family::V4.pick(NODE_IPS), 8080);
    let second = SocketAddr::new(target.ip(), 8081);
    assert_answered(&node.outside, Protocol::Tcp, target, "one")?;

    let agent = start_agent(&node, &["one", "two"])?;
    assert_answered(&node.outside, Protocol::Tcp, target, "one")?;
    assert!(agent.verify()?.status.success());
    agent.stop()?;
    assert_answered(&node.outside, Protocol::Tcp, target, "one")?;
    one.check()?;

    // While the agent is away its tables take the plugin's elements, too.
    let mut more = containerd(&[(8081, 80, "tcp")]);
    more["policy"] = json!("optional");
    let two = Container::add(&node, "two", more.clone())?;
    two.check()?;
    assert_silent(&node.outside, Protocol::Tcp, second).context("no policy is bound yet")?;
    let agent = start_agent(&node, &["one", "two"])?;
    assert_answered(&node.outside, Protocol::Tcp, second, "two")?;
    agent.stop()?;
    two.del()?;
    assert_eq!(elements(&node, "host-ports4")?.len(), 1);

    let cleaned = agent::verb(&node, &["cleanup"])?;
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(inspect::tables(&node.netns)?, alone, "that of hostPorts");
    assert_answered(&node.outside, Protocol::Tcp, target, "one")?;
    one.check()?;
    one.del()?;
    assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    assert_empty(&node)
}

#[test]
fn an_agent_mends_a_host_port_that_somebody_else_has_taken() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let agent = start_agent(&node, &["one"])?;
    let one = Container::add(&node, "one", containerd(&[(8080, 80, "tcp")]))?;
    inspect::nft(
        &node.netns,
        "delete element inet trammel host-ports4 { tcp . 8080 }",
    )?;
    let target = SocketAddr::new(Family::V4.pick(NODE_IPS), 8080);
    eventually(SOON, || {
        let outcome = ask_from(&node.outside, Protocol::Tcp, target)?;
        anyhow::ensure!(outcome.server() == Some("one"), "{outcome}");
        Ok(())
    })?;
    one.check()?;
    assert!(agent.verify()?.status.success());
    one.del()?;
    assert_empty(&node)
}

/// cni.md 28, 54: requests beside each other end with exactly what is there.
#[test]
fn parallel_requests_leave_exactly_what_they_say() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    const COUNT: u16 = 16;
    let keys = |n: u16| {
        let mut keys = containerd(&[(8000 + n, 80, "tcp"), (8000 + n, 80, "udp")]);
        keys["ipMasq"] = json!(true);
        keys
    };
    let pods = (0..COUNT)
        .map(|n| NetNs::create(&format!("p{n}")))
        .collect::<Result<Vec<_>>>()?;
    let all = |verb: &'static str, numbers: &[u16]| -> Result<()> {
        std::thread::scope(|scope| {
            let requests: Vec<_> = numbers
                .iter()
                .map(|&n| {
                    let pod = &pods[usize::from(n)];
                    let call = Call::new(&node, verb, &format!("c{n}"), pod).keys(keys(n));
                    scope.spawn(move || call.run())
                })
                .collect();
            for request in requests {
                let reply = request.join().expect("no panic")?;
                assert_eq!(reply.code, 0, "{reply:?}");
            }
            Ok(())
        })
    };
    let everyone: Vec<u16> = (0..COUNT).collect();
    let (even, odd): (Vec<u16>, Vec<u16>) = everyone.iter().partition(|n| *n % 2 == 0);
    all("ADD", &everyone)?;
    assert_eq!(
        elements(&node, "host-ports4")?.len(),
        2 * usize::from(COUNT)
    );
    assert_eq!(elements(&node, "masqueraded6")?.len(), usize::from(COUNT));
    all("DEL", &even)?;
    assert_eq!(elements(&node, "host-ports6")?.len(), usize::from(COUNT));
    assert_eq!(
        elements(&node, "masqueraded4")?.len(),
        usize::from(COUNT / 2)
    );
    all("DEL", &odd)?;
    assert_eq!(inspect::tables(&node.netns)?, Vec::<String>::new());
    assert_empty(&node)
}

/// cni.md 28: no step leaves anything behind that the next request finds.
#[test]
fn an_add_killed_at_any_moment_leaves_no_host_port() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    for round in 0..25u64 {
        let pod = NetNs::create("pod")?;
        let mut keys = containerd(&[(8080, 80, "tcp"), (8053, 53, "udp")]);
        keys["ipMasq"] = json!(true);
        keys["runtimeConfig"] = json!({"bandwidth": {"egressRate": 8_000_000, "egressBurst": 800_000},
            "portMappings": keys["RuntimeConfig"]["PortMappings"]});
        let call = Call::new(&node, "ADD", "c1", &pod).keys(keys.clone());
        let mut child = call
            .command()
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, call.input_bytes())?;
        drop(stdin);
        std::thread::sleep(Duration::from_micros(round * 600));
        child.kill()?;
        child.wait()?;
        if round % 2 == 0 {
            Call::new(&node, "DEL", "c1", &pod).silent()?;
            assert_eq!(
                inspect::tables(&node.netns)?,
                Vec::<String>::new(),
                "{round}"
            );
        }
        let again = Call::new(&node, "ADD", "c2", &pod).keys(keys);
        // The namespace keeps what a killed request made in it until its DEL.
        if round % 2 == 1 {
            Call::new(&node, "DEL", "c1", &pod).silent()?;
        }
        again.result()?;
        Call::new(&node, "DEL", "c2", &pod).silent()?;
        let links = node.netns.ip_json("link show type ifb")?;
        assert_eq!(inspect::items(&links).len(), 0, "{links}");
        assert_eq!(
            inspect::tables(&node.netns)?,
            Vec::<String>::new(),
            "{round}"
        );
        assert_empty(&node)?;
    }
    Ok(())
}
