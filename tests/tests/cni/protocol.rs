//! Environment, standard input and the form of answers.

use std::io::Read as _;
use std::process::Stdio;

use anyhow::Result;
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::Node;
use tests::plugin::Call;
use tests::require_root;
use tests::wait::{SOON, eventually};

use crate::assert_empty;

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// cni.md 1, 2.
#[test]
fn version_names_every_release_it_speaks_and_echoes_the_callers() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let answer = Call::bare(&node, "VERSION")
            .conf(&json!({"cniVersion": version}))
            .result()?;
        assert_eq!(answer["cniVersion"], version);
        let supported = answer["supportedVersions"].as_array().expect("a list");
        assert!(
            VERSIONS
                .iter()
                .all(|version| supported.contains(&json!(version))),
            "{answer}"
        );
    }
    let answer = Call::bare(&node, "VERSION").input("").result()?;
    assert_eq!(answer["supportedVersions"], json!(VERSIONS));
    assert_eq!(
        answer["cniVersion"], "1.1.0",
        "its newest where the caller names none"
    );
    Ok(())
}

/// cni.md 1.
#[test]
fn version_does_not_wait_for_the_end_of_standard_input() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut child = Call::bare(&node, "VERSION")
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let held_open = child.stdin.take();
    let ended = eventually(SOON, || {
        child
            .try_wait()?
            .ok_or_else(|| anyhow::anyhow!("VERSION still runs"))
    });
    child.kill()?;
    child.wait()?;
    let (status, _) = ended?;
    drop(held_open);
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text)?;
    assert!(
        status.success() && text.contains("supportedVersions"),
        "{status}: {text}"
    );
    Ok(())
}

/// cni.md 3.
#[test]
fn without_a_command_it_says_what_it_is_and_succeeds() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let reply = Call::bare(&node, "").without("CNI_COMMAND").run()?;
    assert_eq!((reply.code, reply.stdout.as_str()), (0, ""), "{reply:?}");
    assert!(reply.stderr.contains("CNI"), "{reply:?}");
    Ok(())
}

/// cni.md 4, 5, 10, 11, 12.
#[test]
fn a_wrong_environment_is_code_4_and_names_what_is_wrong() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let complete = |verb| Call::new(&node, verb, "c1", &pod);

    let (code, text) = Call::bare(&node, "ADD").error()?;
    assert_eq!(code, 4, "{text}");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert!(text.contains(name), "{name} is missing too: {text}");
    }
    let (code, text) = complete("FOO").error()?;
    assert_eq!(code, 4);
    assert!(text.contains("FOO"), "{text}");

    for id in ["_x", "a/b", "Ünï", "-"] {
        let (code, text) = complete("ADD").env("CNI_CONTAINERID", id).error()?;
        assert_eq!(code, 4, "container {id:?}: {text}");
    }
    for name in ["a234567890123456", ".", "..", "a/b", "a:b", "a b"] {
        let (code, text) = complete("ADD").env("CNI_IFNAME", name).error()?;
        assert_eq!(code, 4, "interface {name:?}: {text}");
    }
    for args in ["A=B=C", "FOREIGN=1", "IgnoreUnknown=0;FOREIGN=1"] {
        let (code, text) = complete("ADD").env("CNI_ARGS", args).error()?;
        assert_eq!(code, 4, "args {args:?}: {text}");
    }
    assert_empty(&node)
}

/// cni.md 10, 12.
#[test]
fn names_and_arguments_within_the_rules_are_taken() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let call = |verb| {
        Call::new(&node, verb, "ABC.def-1_2", &pod)
            .env("CNI_IFNAME", "a23456789012345")
            .env(
                "CNI_ARGS",
                "FOREIGN=1;K8S_POD_NAME=p;IgnoreUnknown=true;K8S_POD_NAMESPACE=n",
            )
    };
    call("ADD").result()?;
    pod.ip("link show a23456789012345")?;
    call("DEL").silent()?;
    assert_empty(&node)
}

/// cni.md 6.
#[test]
fn input_that_is_no_configuration_is_code_6() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let conf = node.conf(json!({})).to_string();
    let inputs: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("no JSON", b"garbage".to_vec()),
        ("a list", b"[]".to_vec()),
        ("truncated", conf.as_bytes()[..conf.len() / 2].to_vec()),
        ("no UTF-8", [conf.as_bytes(), &[0xff, 0xfe]].concat()),
        ("10 MB of junk", vec![b'x'; 10 << 20]),
    ];
    for (what, input) in inputs {
        let (code, text) = Call::new(&node, "ADD", "c1", &pod).input(input).error()?;
        assert_eq!(code, 6, "{what}: {text}");
    }
    assert_empty(&node)
}

/// cni.md 6, 7, 8, 9.
#[test]
fn versions_and_names_it_cannot_take_are_refused_with_their_codes() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let cases: [(&str, Value, u64); 8] = [
        ("ADD", json!({"cniVersion": "9.9.9"}), 1),
        ("ADD", json!({"cniVersion": null}), 1),
        ("CHECK", json!({"cniVersion": "0.3.1"}), 1),
        ("GC", json!({"cniVersion": "1.0.0"}), 1),
        ("STATUS", json!({"cniVersion": "1.0.0"}), 1),
        ("ADD", json!({"name": null}), 7),
        ("ADD", json!({"name": "../x"}), 7),
        ("ADD", json!({"name": "a/b"}), 7),
    ];
    let (code, text) = Call::new(&node, "ADD", "c1", &pod).input("null").error()?;
    assert_eq!(
        code, 7,
        "as Go, to which it is an empty configuration: {text}"
    );
    for (verb, keys, expected) in cases {
        let (code, text) = Call::new(&node, verb, "c1", &pod)
            .keys(keys.clone())
            .error()?;
        assert_eq!(code, expected, "{verb} with {keys}: {text}");
    }
    assert_empty(&node)
}

/// cni.md 26, 27.
#[test]
fn a_sandbox_that_is_none_is_code_8_and_nothing_is_allocated() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let file = node.dir().join("file");
    std::fs::write(&file, "")?;
    let own = node.netns.path().display().to_string();
    for path in ["/run/netns/none", &file.display().to_string(), &own] {
        let (code, text) = Call::new(&node, "ADD", "c1", &pod)
            .env("CNI_NETNS", path)
            .error()?;
        assert_eq!(code, 8, "{path}: {text}");
    }
    assert_empty(&node)
}

/// cni.md 13.
#[test]
fn keys_are_taken_in_the_case_in_which_containerd_sends_them() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let call = |verb| {
        Call::new(&node, verb, "c1", &pod).keys(json!({
            "MTU": 1400,
            "hairpinMode": null,
            "RuntimeConfig": {"Mac": "02:00:00:00:00:09", "DNS": {"Servers": ["10.96.0.10"]}},
            "Capabilities": {"Mac": true, "DNS": true},
        }))
    };
    let result = call("ADD").result()?;
    assert_eq!(
        result["dns"]["nameservers"],
        json!(["10.96.0.10"]),
        "{result}"
    );
    let link = pod.ip_json("link show eth0")?[0].take();
    assert_eq!(
        (&link["mtu"], &link["address"]),
        (&json!(1400), &json!("02:00:00:00:00:09"))
    );
    call("DEL").silent()?;
    assert_empty(&node)
}
