//! What policies cost: to program them, to add a pod, and to a packet that they do not
//! concern (netpol.md 78, 80 to 82).
//!
//! The cluster has namespaces of 50 pods, 110 pods are on this node, and every namespace has
//! the same templates: default deny, DNS, its own pods, another team's pods at ports and
//! by name, blocks of addresses. Each measurement runs in a process and network
//! namespace of its own, against the kernel.
//!
//! Run by `make bench`; needs root. `cargo test --benches` runs it once at a small size.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, exit};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dataplane::attachment::{Attachment, AttachmentKey, MacAddr, Mode, PodRef};
use dataplane::netlink::Nftables;
use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use nix::sched::{CloneFlags, unshare};
use policy_agent::event::{Event, Kind, Object};
use policy_agent::owner::{Owner, Settings};
use policy_agent::source::convert::Convert;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Pods of a namespace, and of this node.
const PODS: u32 = 50;
const LOCAL: u32 = 110;
/// Changes that are timed; the median counts.
const CHANGES: u32 = 51;
/// New flows that are timed; the median counts.
const FLOWS: usize = 2_001;
/// Links of the pods that packets are timed between: the rules know a pod's by how its name
/// begins.
const CLIENT: &str = "trm-c";
const SERVER: &str = "trm-s";
/// With this argument and two numbers the program measures one size and prints its row.
const SIZE: &str = "--size";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, policies, pods] = &arguments[..]
        && flag == SIZE
    {
        let number = |text: &String| text.parse().expect("a number");
        return measure(number(policies), number(pods));
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("this benchmark makes network namespaces: run it as root");
        exit(1);
    }
    // `cargo bench` says so; `cargo test --benches` does not.
    let full = arguments.iter().any(|argument| argument == "--bench");
    let sizes: &[(u32, u32)] = if full {
        &[(10, 5_000), (1_000, 5_000), (10_000, 5_000)]
    } else {
        &[(10, 100)]
    };
    println!(
        "| policies | pods | first program | one pod added | one policy changed | a namespace \
         relabelled | groups | sets | RSS | new flow | packet of a flow |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for (policies, pods) in sizes {
        // A process each: the memory of one size is not that of the next.
        let program = std::env::current_exe().expect("the path of this program");
        let status = Command::new(program)
            .args([SIZE, &policies.to_string(), &pods.to_string()])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{policies} policies failed");
            exit(1);
        }
    }
}

fn measure(policies: u32, pods: u32) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
    let settings = Settings {
        node: "n1".into(),
        compute_endpoints: false,
        bridges: vec!["cbr0".into()],
    };
    let mut owner = Owner::new(settings, Nftables::open().expect("nf_tables"));
    for number in 0..LOCAL.min(pods) {
        owner.attach(attachment(number));
    }
    let lists = everything(policies, pods);
    let started = Instant::now();
    run(&mut owner, lists);
    let first = started.elapsed();

    let added = (0..CHANGES).map(|i| {
        let number = pods + i;
        let object = pod(number, true);
        let started = Instant::now();
        owner.handle(Event::Apply(object));
        owner.attach(attachment(number));
        run(&mut owner, Vec::new());
        started.elapsed()
    });
    let added = median(added.collect());
    let changed = (0..CHANGES).map(|i| timed(&mut owner, Event::Apply(changed_policy(i))));
    let changed = median(changed.collect());
    let relabelled = (0..CHANGES).map(|i| timed(&mut owner, Event::Apply(namespace(1, i))));
    let relabelled = median(relabelled.collect());
    let summary = owner.summary().policy;
    let rss = resident();
    let (new_flow, packet) = packet_cost(&mut owner, pods);

    println!(
        "| {policies} | {pods} | {:.0} ms | {:.2} ms | {:.2} ms | {:.2} ms | {} | {} | {} MiB \
         | {:.1} us | {:.1} us |",
        millis(first),
        millis(added),
        millis(changed),
        millis(relabelled),
        summary.groups,
        summary.sets,
        rss >> 20,
        millis(new_flow) * 1e3,
        millis(packet) * 1e3,
    );
}

fn timed(owner: &mut Owner<Nftables>, event: Event) -> Duration {
    let started = Instant::now();
    run(owner, vec![event]);
    started.elapsed()
}

/// Hands the events over and syncs until nothing is left to do.
fn run(owner: &mut Owner<Nftables>, events: Vec<Event>) {
    events.into_iter().for_each(|event| owner.handle(event));
    while owner.is_dirty() {
        owner.sync().expect("the kernel takes it");
    }
}

fn everything(policies: u32, pods: u32) -> Vec<Event> {
    let namespaces = pods.div_ceil(PODS);
    let objects = (0..namespaces)
        .map(|number| namespace(number, 0))
        .chain((0..pods).map(|number| pod(number, number < LOCAL)))
        .chain((0..policies).map(|number| policy(number % namespaces, number / namespaces)));
    let mut lists: Vec<_> = Kind::ALL.map(|kind| (kind, Vec::new())).into();
    for object in objects {
        let list = lists.iter_mut().find(|(kind, _)| *kind == object.kind());
        list.expect("every kind has a list").1.push(object);
    }
    let reset = |(kind, objects)| Event::Reset(kind, objects);
    lists.into_iter().map(reset).collect()
}

fn convert<K: Convert + DeserializeOwned>(manifest: Value) -> Object {
    let object: K = serde_json::from_value(manifest).expect("of that kind");
    object.convert().expect("usable").expect("of ours")
}

/// Every relabelling gives another value.
fn namespace(number: u32, value: u32) -> Object {
    convert::<core::Namespace>(json!({"metadata": {"name": format!("ns{number}"),
        "labels": {"team": format!("t{}", (number + value) % 10)}}}))
}

fn namespace_of(pod: u32) -> u32 {
    // The pods of this node are of many namespaces.
    if pod < LOCAL { pod % 10 } else { pod / PODS }
}

fn ip(pod: u32) -> IpAddr {
    Ipv4Addr::from((10 << 24) + (88 << 16) + 10 + pod).into()
}

fn pod(number: u32, is_here: bool) -> Object {
    let node = if is_here { "n1" } else { "n2" };
    convert::<core::Pod>(json!({
        "metadata": {"namespace": format!("ns{}", namespace_of(number)),
            "name": format!("p{number}"), "uid": format!("u{number}"),
            "labels": {"app": format!("a{}", number % 7)}},
        "spec": {"nodeName": node, "containers": [{"name": "c",
            "ports": [{"name": "web", "containerPort": 8000 + number % 3}]}]},
        "status": {"podIPs": [{"ip": ip(number)}]},
    }))
}

fn policy(namespace: u32, number: u32) -> Object {
    let app = json!({"matchLabels": {"app": format!("a{}", number % 7)}});
    let peer_app = json!({"matchLabels": {"app": format!("a{}", (number + 1) % 7)}});
    let team = json!({"matchLabels": {"team": format!("t{}", number % 10)}});
    let spec = match number % 6 {
        0 => json!({"podSelector": app}),
        1 => json!({"podSelector": app, "policyTypes": ["Egress"], "egress": [{"ports": [
            {"port": 53}, {"port": 53, "protocol": "UDP"}]}]}),
        2 => json!({"podSelector": app, "ingress": [{"from": [{"podSelector": peer_app}]}]}),
        3 => json!({"podSelector": app, "ingress": [{
            "from": [{"namespaceSelector": team, "podSelector": peer_app}],
            "ports": [{"port": 8000, "endPort": 8010}]}]}),
        4 => json!({"podSelector": app, "ingress": [{
            "from": [{"namespaceSelector": team}], "ports": [{"port": "web"}]}]}),
        _ => json!({"podSelector": app, "policyTypes": ["Egress"], "egress": [{"to": [
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", number % 64)]}}
        ]}]}),
    };
    convert::<networking::NetworkPolicy>(json!({
        "metadata": {"namespace": format!("ns{namespace}"), "name": format!("np{number}")},
        "spec": spec,
    }))
}

/// The first policy of the first namespace, with another port every time.
fn changed_policy(change: u32) -> Object {
    convert::<networking::NetworkPolicy>(json!({
        "metadata": {"namespace": "ns0", "name": "np0"},
        "spec": {"podSelector": {"matchLabels": {"app": "a0"}},
            "ingress": [{"ports": [{"port": 9000 + change}]}]},
    }))
}

fn attachment(number: u32) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    };
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: Mode::RoutedPorts,
        bridge: Some("cbr0".into()),
        mac: MacAddr([0; 6]),
        ips: vec![ip(number)],
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
        undo: Default::default(),
        pod: Some(PodRef {
            namespace: format!("ns{}", namespace_of(number)),
            name: format!("p{number}"),
            uid: None,
        }),
    }
}

/// Between two pods of this node that three policies of their own isolate: the round trip
/// that begins a flow, and one within it.
fn packet_cost(owner: &mut Owner<Nftables>, pods: u32) -> (Duration, Duration) {
    let (client, server) = (pods + 1_000, pods + 1_001);
    for (number, port) in [(client, CLIENT), (server, SERVER)] {
        let mut object = json!({
            "metadata": {"namespace": "bench", "name": format!("p{number}")},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"podIPs": [{"ip": ip(number)}]},
        });
        object["metadata"]["labels"] = json!({"app": "bench"});
        owner.handle(Event::Apply(convert::<core::Pod>(object)));
        // A link of its own, from which its address may send.
        owner.attach(Attachment {
            host_ifname: port.into(),
            mode: Mode::Routed,
            bridge: None,
            pod: Some(PodRef {
                namespace: "bench".into(),
                name: format!("p{number}"),
                uid: None,
            }),
            ..attachment(number)
        });
    }
    owner.handle(Event::Apply(convert::<core::Namespace>(
        json!({"metadata": {"name": "bench"}}),
    )));
    let open = json!([{"ports": [{"protocol": "UDP", "port": 9}]}]);
    for (name, spec) in [
        (
            "deny",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        ),
        ("in", json!({"podSelector": {}, "ingress": open})),
        (
            "out",
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": open}),
        ),
    ] {
        owner.handle(Event::Apply(convert::<networking::NetworkPolicy>(
            json!({"metadata": {"namespace": "bench", "name": name}, "spec": spec}),
        )));
    }
    run(owner, Vec::new());
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a sysctl");

    let in_pod = |number: u32, port: &'static str| {
        let (tell, told) = channel();
        let (go, gone) = channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid()).expect("somebody waits");
            gone.recv().expect("the link is made");
            ip_command(&format!("address add {}/32 dev eth0", ip(number)));
            ip_command("link set eth0 up");
            ip_command("route add default dev eth0");
            if number == server {
                serve()
            } else {
                ask(ip(server))
            }
        });
        let thread_id = told.recv().expect("the thread runs");
        ip_command(&format!(
            "link add {port} type veth peer name eth0 netns {thread_id}"
        ));
        ip_command(&format!("link set {port} up"));
        ip_command(&format!("route add {} dev {port}", ip(number)));
        let proxy_arp = format!("/proc/sys/net/ipv4/conf/{port}/proxy_arp");
        std::fs::write(proxy_arp, "1").expect("a sysctl");
        (go, thread)
    };
    let (go, _server) = in_pod(server, SERVER);
    go.send(()).expect("the thread waits");
    let (go, client) = in_pod(client, CLIENT);
    go.send(()).expect("the thread waits");
    client.join().expect("the client ends")
}

fn ip_command(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments}"
    );
}

/// Echoes until the process ends.
fn serve() -> (Duration, Duration) {
    let socket = UdpSocket::bind("0.0.0.0:9").expect("a port");
    let mut buffer = [0; 64];
    loop {
        if let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..len], peer));
        }
    }
}

fn ask(server: IpAddr) -> (Duration, Duration) {
    let round_trip = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        let started = Instant::now();
        socket.send_to(b"x", (server, 9)).expect("it can be sent");
        let answer = socket.recv(&mut buffer);
        (answer.is_ok(), started.elapsed())
    };
    let socket = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        let limit = Some(Duration::from_secs(1));
        socket.set_read_timeout(limit).expect("a limit");
        socket
    };
    // Until the server is there and addresses are resolved.
    let first = socket();
    let mut tries = 0;
    while !round_trip(&first).0 {
        tries += 1;
        assert!(tries < 10, "the server does not answer");
    }
    let new = (0..FLOWS).map(|_| round_trip(&socket()).1).collect();
    let old = (0..FLOWS).map(|_| round_trip(&first).1).collect();
    (median(new), median(old))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .expect("a size in kB");
    kib.trim().parse::<u64>().expect("a number") << 10
}
