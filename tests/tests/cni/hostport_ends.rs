//! How hostPorts end: with DEL and GC, in the hands of another pod, agent or request, and
//! under kill.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::agent;
use tests::netns::NetNs;
use tests::node::{NODE_IPS, Node};
use tests::plugin::Call;
use tests::pod::Family;
use tests::traffic::{Protocol, SHORT};
use tests::wait::{SOON, eventually};
use tests::{inspect, require_root};

use crate::assert_empty;
use crate::container::{
    Container, ask_from, assert_answered, assert_silent, containerd, elements, start_agent,
    translations,
};

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
            let server_within = |limit| -> Option<String> {
                client.set_read_timeout(Some(limit)).ok()?;
                client.send(b"?").ok()?;
                let mut buffer = [0; 256];
                let length = client.recv(&mut buffer).ok()?;
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                text.split(' ').next().map(str::to_owned)
            };
            let (server, nobody) = (|| server_within(SOON), || server_within(SHORT));
            // Before anybody is there: an entry that leads to the node itself.
            assert_eq!(nobody(), None);
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
            assert_eq!(nobody(), None, "{family}");
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
                    let call = Call::new(&node, verb, &format!("c{n}"), pod)
                        .patient()
                        .keys(keys(n));
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
