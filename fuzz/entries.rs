//! What is fuzzed: everything that others hand to the plugins. Each entry takes any bytes
//! and panics where something does not hold.
//!
//! Compiled twice: into the targets of cargo-fuzz, and into `cni-bin/tests/fuzz.rs`, which
//! feeds them with mutations on the stable toolchain.

use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use cni_bin::spec::args::ExtraArgs;
use cni_bin::spec::result::{Addition, Expected, Interface, Ip, convert};
use cni_bin::spec::{Code, Document, Environment, Error, Ipam, Verb, Version, json};
use ipam::{Claim, Owner, Range, RangeSet, RangeSpec, Store};
use serde_json::Value;

/// Any configuration on standard input.
pub(crate) fn conf(input: &[u8]) {
    let document = match Document::parse(input) {
        Ok(document) => document,
        Err(error) => return assert_report(&error),
    };
    assert!(document.data_dir.is_absolute() && document.agent_socket.is_absolute());
    assert!(!document.network.contains('/'), "it becomes a path");
    if let Err(error) = document.valid_attachments() {
        assert_report(&error);
    }
    match document.config(&ExtraArgs::default()) {
        Err(error) => assert_report(&error),
        Ok(config) => {
            assert_eq!(config.pool.is_some(), document.ipam == Ipam::InProcess);
            for set in config.pool.iter().flat_map(|pool| &pool.ranges) {
                for range in set.ranges() {
                    let inside = |ip: &IpAddr| range.subnet().contains(ip);
                    assert!(inside(&range.gateway()) && inside(&range.start()));
                    assert!(inside(&range.end()) && set.find(range.gateway()).is_none());
                }
            }
        }
    }
    // What a plugin that part of the work is delegated to gets is the same configuration.
    let root = Value::Object(document.root().clone()).to_string();
    let again = Document::parse(root.as_bytes()).expect("it was one");
    assert_eq!(again.root(), document.root());
}

/// Any previous result: of ADD, which hands it on, and of CHECK, which compares with it.
pub(crate) fn prev_result(input: &[u8]) {
    let Ok(prev) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    if let Err(error) = Expected::of(&prev, "eth0") {
        assert_report(&error);
    }
    let addition = Addition {
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            mac: "0a:58:0a:58:00:02".to_owned(),
            mtu: Some(1500),
            sandbox: Some("/run/netns/x".to_owned()),
        }],
        ips: vec![Ip {
            address: "10.88.0.2/32".parse().expect("a prefix"),
            gateway: None,
            interface: Some(0),
        }],
        ..Addition::default()
    };
    for version in Version::ALL {
        let result = match addition.render(version, Some(&prev)) {
            Ok(result) => result,
            Err(error) => {
                assert_report(&error);
                continue;
            }
        };
        assert_eq!(result["cniVersion"], version.as_str());
        let count = |key: &str| prev_list(&prev, key).map_or(0, Vec::len);
        let list = |key: &str| result[key].as_array().expect("ours is in it").len();
        assert_eq!(list("interfaces"), count("interfaces") + 1);
        assert_eq!(list("ips"), count("ips") + 1);
        let ours = &result["ips"][list("ips") - 1];
        assert_eq!(
            ours["interface"],
            count("interfaces"),
            "positions count from the first"
        );
        assert_eq!(
            convert(result.clone(), version),
            result,
            "converting twice is converting once"
        );
        let expected = Expected::of(&result, "eth0");
        if let Ok(expected) = expected {
            let own = "10.88.0.2/32".parse().expect("a prefix");
            assert!(expected.addresses.contains(&own), "{result}");
        }
    }
}

/// The list that the result has under this key in any case.
fn prev_list<'a>(prev: &'a Value, key: &str) -> Option<&'a Vec<Value>> {
    json::get(prev.as_object()?, key)?.as_array()
}

/// Any `CNI_*` variables: one a line, the first line's being `CNI_ARGS`.
pub(crate) fn cni_args(input: &[u8]) {
    let names = [
        "CNI_ARGS",
        "CNI_CONTAINERID",
        "CNI_IFNAME",
        "CNI_COMMAND",
        "CNI_NETNS",
    ];
    let values = input
        .split(|byte| *byte == b'\n')
        .filter(|value| !value.contains(&0));
    let variables = names.iter().zip(values);
    let variables =
        variables.map(|(name, value)| (OsString::from(name), OsString::from_vec(value.to_vec())));
    let environment = match Environment::new(variables) {
        Ok(environment) => environment,
        Err(error) => return assert_environment(&error),
    };
    if let Err(error) = environment.extra_args() {
        assert_environment(&error);
    }
    if let Err(error) = environment.verb() {
        assert_environment(&error);
    }
    match environment.target(Verb::Del) {
        Err(error) => assert_environment(&error),
        Ok(target) => {
            let key = target.key("net");
            assert!(!key.container_id.contains('/') && !key.ifname.contains('/'));
            assert!(key.ifname.len() <= 15 && key.host_ifname().len() <= 15);
        }
    }
}

/// Any files in the directory of a network's leases: chunks of the input, divided by 0xff,
/// become the contents of addresses and of what else lies there.
pub(crate) fn leases(input: &[u8]) {
    const FILES: [&str; 6] = [
        "10.0.0.2",
        "10.0.0.3",
        "last_reserved_ip.0",
        ".request",
        "10.0.0.4",
        "not-an-address",
    ];
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("net")).expect("a directory");
    let contents = input.split(|byte| *byte == 0xff);
    for (name, content) in FILES.iter().zip(contents) {
        fs::write(dir.path().join("net").join(name), content).expect("a file");
    }
    let held =
        ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(|ip| dir.path().join("net").join(ip).exists());

    let store = Store::new(dir.path(), "net");
    let locked = store
        .lock(Duration::from_secs(10))
        .expect("nobody else has it");
    let leases = locked.leases().expect("readable");
    assert_eq!(leases.len(), held.iter().filter(|held| **held).count());
    let range = Range::new(&RangeSpec {
        subnet: "10.0.0.0/29".parse().expect("a subnet"),
        start: None,
        end: None,
        gateway: None,
    });
    let sets = [RangeSet::new(vec![range.expect("a range")]).expect("a set")];
    let owner = Owner {
        container_id: "fuzz".to_owned(),
        ifname: Some("eth0".to_owned()),
    };
    let claim = Claim {
        owner: &owner,
        sets: &sets,
        requested: &[],
        in_use: &|_| true,
    };
    let given = claim.run(&locked).expect("10.0.0.5 and 10.0.0.6 are free");
    assert_eq!(given.len(), 1);
    assert!(
        leases.iter().all(|lease| lease.ip != given[0].ip),
        "it was held"
    );
    let freed = locked.free_all_of(&owner).expect("nothing is in the way");
    assert!(freed.contains(&given[0].ip));
    for lease in leases {
        let is_ours = lease.owner.is_ok_and(|holder| owner.holds(&holder));
        assert_eq!(
            locked.is_reserved(lease.ip),
            !is_ours,
            "others keep what is theirs"
        );
    }
}

/// An error has a message of one line, and a code for the runtime.
fn assert_report(error: &Error) {
    assert!(!error.message.is_empty());
    let report = error.to_json("1.1.0");
    assert!(
        report["code"].as_u64().is_some_and(|code| code > 0),
        "{report}"
    );
    let line = serde_json::to_string(&report).expect("it is JSON");
    assert!(!line.contains('\n'));
}

fn assert_environment(error: &Error) {
    assert_report(error);
    assert_eq!(error.code, Code::InvalidEnvironment, "{error}");
}
