//! Denied packets in the kernel's own words: log messages, counters, and what `nft` shows
//! of the rules, in a network namespace of each test's own thread.

mod common;

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, SystemTime};

use dataplane::desired::Desired;
use dataplane::diff::diff;
use dataplane::field::Field;
use dataplane::kernel::Kernel;
use dataplane::layout::denials::{self, Denials, LOG_GROUP};
use dataplane::layout::policy::Direction;
use dataplane::layout::{self, INET};
use dataplane::netlink::{Nftables, PacketLog};
use dataplane::object::{BaseChain, Chain, ChainType, Hook, Name};
use dataplane::rule::{Rule, Statement};

use common::own_namespace;

/// For a message that comes.
const LIMIT: Duration = Duration::from_secs(20);
/// After so long no more of them come: the kernel holds them back for a few milliseconds.
const QUIET: Duration = Duration::from_secs(1);

/// A namespace of its own, whose loopback works.
fn has_loopback() -> bool {
    let is_own = own_namespace();
    if is_own {
        run("ip", &["link", "set", "lo", "up"]);
    }
    is_own
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("the program runs");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A group's chain that denies what this host sends to a port of its own, as `deny` ends it.
fn denying(port: u16, limited: bool) -> Desired {
    let mut desired = Desired::new();
    layout::install(&mut desired, 1);
    let how = Denials {
        log: true,
        reject: false,
    };
    denials::set(&mut desired, how);
    let group = Direction::Egress.group_chain("0123");
    let mut rules = denials::deny(Direction::Egress, &group, how);
    if !limited {
        for rule in &mut rules {
            let is_limit = |statement: &Statement| matches!(statement, Statement::Limit { .. });
            rule.statements.retain(|statement| !is_limit(statement));
        }
    }
    desired.chain(&INET, &group, Chain::regular("", rules));
    let base = BaseChain {
        kind: ChainType::Filter,
        hook: Hook::Output,
        priority: 10,
        drops: false,
    };
    let rule = Rule::new()
        .l4proto(17)
        .eq(Field::Dport, &port.to_be_bytes())
        .jump(group);
    let name = Name::from("sent");
    desired.chain(&INET, &name, Chain::base(base, "", vec![rule]));
    desired
}

fn commit(desired: &Desired) -> Nftables {
    let mut kernel = Nftables::open().expect("nf_tables");
    kernel.commit(&desired.transaction()).expect("committed");
    kernel
}

/// Sends datagrams to a port that denies them: the sender is told so.
fn send(count: u32, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    for number in 0..count {
        let sent = socket.send_to(&number.to_be_bytes(), ("127.0.0.1", port));
        assert!(sent.is_err(), "an output hook tells the sender");
    }
    socket
}

#[test]
fn a_denied_packet_is_logged_counted_and_the_rules_read_back_as_written() {
    if !has_loopback() {
        return;
    }
    let desired = denying(4444, true);
    let mut kernel = commit(&desired);
    let observed = kernel.dump(&layout::tables()).expect("dumped");
    assert!(diff(&observed, desired.ruleset()).is_empty());
    let listed = run("nft", &["list", "chain", "inet", "trammel", "egress-0123"]);
    for part in ["limit rate 10/second", "prefix \"egress-0123\"", "29810"] {
        assert!(listed.contains(part), "{part} is not in\n{listed}");
    }

    let mut log = PacketLog::bind(LOG_GROUP).expect("NFLOG");
    let before = SystemTime::now();
    let socket = send(1, 4444);
    let packets = log.read(LIMIT).expect("read");
    assert_eq!(packets.len(), 1, "{packets:?}");
    let packet = &packets[0];
    assert_eq!(packet.prefix, "egress-0123");
    let port = socket.local_addr().expect("bound").port();
    assert_eq!(packet.payload[9], 17, "an IPv4 header with UDP");
    assert_eq!(packet.payload[20..22], port.to_be_bytes());
    assert_eq!(packet.payload[22..24], 4444u16.to_be_bytes());
    assert_eq!((packet.indev, packet.outdev), (None, Some(1)));
    assert!(packet.time >= before - LIMIT && packet.time <= SystemTime::now());
    let denied = kernel.denied().expect("counted");
    assert_eq!(denied[&Name::from("egress-0123")], 1, "{denied:?}");
    assert_eq!(log.read(Duration::from_millis(10)).expect("read"), []);
    assert_eq!(
        kernel
            .origin("127.0.0.1".parse().expect("an address"), 17, port)
            .expect("asked"),
        None
    );
}

/// netpol.md 72: the rate limit of the rule holds whatever is sent.
#[test]
fn a_flood_is_limited_by_the_rule_and_all_of_it_is_counted() {
    if !has_loopback() {
        return;
    }
    let mut kernel = commit(&denying(4444, true));
    let mut log = PacketLog::bind(LOG_GROUP).expect("NFLOG");
    send(5_000, 4444);
    let mut logged = 0;
    loop {
        let packets = log.read(QUIET).expect("read");
        if packets.is_empty() {
            break;
        }
        logged += packets.len();
    }
    // The burst, and some for the time that sending takes on a busy machine.
    assert!((50..1_000).contains(&logged), "{logged}");
    assert_eq!(
        kernel.denied().expect("counted")[&Name::from("egress-0123")],
        5_000
    );
}

/// netpol.md 71: a reader that does not read loses messages, and knows how many.
#[test]
fn what_a_slow_reader_loses_is_counted() {
    if !has_loopback() {
        return;
    }
    let _kernel = commit(&denying(4444, false));
    let mut log = PacketLog::bind(LOG_GROUP).expect("NFLOG");
    let sent = 150_000;
    send(sent, 4444);
    let drain = |log: &mut PacketLog| {
        let mut read = 0;
        // The error of an overrun comes before what is left to read.
        let mut empty = 0;
        while empty < 2 {
            let packets = log.read(QUIET).expect("read");
            empty = if packets.is_empty() { empty + 1 } else { 0 };
            read += packets.len() as u64;
        }
        read
    };
    let mut read = drain(&mut log);
    assert!(read < u64::from(sent), "the buffer does not hold them all");
    // The next message shows the gap.
    send(1, 4444);
    read += drain(&mut log);
    assert_eq!(read + log.lost(), u64::from(sent) + 1);
}

#[test]
fn a_group_has_one_listener_and_the_probe_leaves_nothing() {
    if !has_loopback() {
        return;
    }
    let _log = PacketLog::bind(LOG_GROUP).expect("NFLOG");
    let second = PacketLog::bind(LOG_GROUP).err().expect("one listener");
    assert!(second.to_string().contains("log group"), "{second}");
    let mut kernel = Nftables::open().expect("nf_tables");
    kernel
        .commit(&denials::probe())
        .expect("this kernel can log");
    assert_eq!(run("nft", &["list", "ruleset"]), "");
}
