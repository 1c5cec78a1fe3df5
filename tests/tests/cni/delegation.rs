//! IPAM by plugins of others, and our IPAM for main plugins of others.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node};
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::wait::{SOON, eventually};
use tests::{command, inspect, programs, require_root};

use crate::assert_empty;

/// The programs of this tree, and those of Debian.
fn cni_path(node: &Node) -> String {
    let folders = [
        node.dir().join("bin"),
        programs::bin_dir(),
        PathBuf::from(programs::REFERENCE_PLUGINS),
    ];
    let folders: Vec<_> = folders
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    folders.join(":")
}

/// A call with an `ipam` section of its own.
fn call<'n>(node: &'n Node, verb: &str, pod: &NetNs, ipam: &Value, keys: Value) -> Call<'n> {
    let mut conf = node.conf(keys);
    conf["ipam"] = ipam.clone();
    Call::new(node, verb, "c1", pod)
        .conf(&conf)
        .env("CNI_PATH", cni_path(node))
}

/// An IPAM plugin out of a shell script, which notes each verb in `log`. Another program writes
/// it: nothing can be run that a child of this process, forked meanwhile, has open for writing.
fn script(node: &Node, name: &str, body: &str) -> Result<PathBuf> {
    let folder = node.dir().join("bin");
    fs::create_dir_all(&folder)?;
    let (path, log) = (folder.join(name), node.dir().join(format!("{name}.log")));
    let text = format!(
        "#!/bin/sh\nconf=$(cat)\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> {}\n{body}\n",
        log.display()
    );
    let mut install = Command::new("install");
    install.args(["-m755", "/dev/stdin"]).arg(&path);
    let output = command::output(&mut install, text.as_bytes(), command::LIMIT)?;
    ensure!(output.status.success(), "{}", command::complaint(&output));
    Ok(log)
}

fn lines(log: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// cni.md 35: the real host-local, in every mode.
#[test]
fn host_local_gives_the_addresses_checks_them_and_takes_them_back() -> Result<()> {
    require_root!();
    for mode in ["routed-ports", "l2", "routed"] {
        let node = Node::new()?;
        let ipam = json!({
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
        });
        let keys = json!({"cniVersion": "1.0.0", "mode": mode});
        let pod = NetNs::create("pod")?;
        let result = call(&node, "ADD", &pod, &ipam, keys.clone()).result()?;
        let ips = inspect::result_ips(&result)?;
        assert_eq!(ips.len(), 2, "{result}");
        assert_eq!(node.leases()?.len(), 2, "host-local's own files");
        for family in Family::ALL {
            pod.ping(family.pick(GATEWAYS))?;
            node.netns.ping(ips[usize::from(family == Family::V6)])?;
        }
        let mut with_result = keys.clone();
        with_result["prevResult"] = result;
        call(&node, "CHECK", &pod, &ipam, with_result.clone()).silent()?;
        let file = node
            .data_dir()
            .join(node.network())
            .join(ips[0].to_string());
        fs::remove_file(&file)?;
        let other = node
            .data_dir()
            .join(node.network())
            .join(ips[1].to_string());
        fs::remove_file(&other)?;
        let (_, text) = call(&node, "CHECK", &pod, &ipam, with_result).error()?;
        assert!(text.contains("host-local"), "{text}");
        call(&node, "DEL", &pod, &ipam, keys).silent()?;
        assert_empty(&node)?;
    }
    Ok(())
}

/// cni.md 35: the real static plugin, with routes and name resolution of its own.
#[test]
fn the_static_plugin_gives_addresses_routes_and_dns() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ipam = json!({
        "type": "static",
        "addresses": [
            {"address": "10.88.0.77/24", "gateway": "10.88.0.1"},
            {"address": "fd88::77/64", "gateway": "fd88::1"},
        ],
        "routes": [{"dst": "198.51.100.0/24"}, {"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    let keys = json!({"cniVersion": "1.0.0"});
    let pod = NetNs::create("pod")?;
    let result = call(&node, "ADD", &pod, &ipam, keys.clone()).result()?;
    assert_eq!(
        result["dns"]["nameservers"],
        json!(["10.96.0.10"]),
        "{result}"
    );
    assert_eq!(result["ips"][0]["address"], "10.88.0.77/32", "{result}");
    let routes = pod.ip_json("route show 198.51.100.0/24")?;
    assert_eq!(routes[0]["gateway"], GATEWAYS[0], "{routes}");
    assert_eq!(inspect::items(&pod.ip_json("route show default")?).len(), 1);
    node.netns.ping("10.88.0.77".parse()?)?;
    call(&node, "DEL", &pod, &ipam, keys).silent()?;
    assert_empty(&node)
}

#[test]
fn an_address_without_a_gateway_is_for_mode_l2_only() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ipam = json!({"type": "static", "addresses": [{"address": "10.88.0.77/24"}]});
    let pod = NetNs::create("pod")?;
    for mode in ["routed-ports", "routed"] {
        let keys = json!({"cniVersion": "1.0.0", "mode": mode});
        let (code, text) = call(&node, "ADD", &pod, &ipam, keys).error()?;
        assert_eq!(code, 7, "{text}");
        assert!(
            text.contains("10.88.0.77/24") && text.contains("gateway"),
            "{text}"
        );
        assert_empty(&node)?;
    }
    let keys = json!({"cniVersion": "1.0.0", "mode": "l2"});
    call(&node, "ADD", &pod, &ipam, keys.clone()).result()?;
    call(&node, "DEL", &pod, &ipam, keys).silent()?;
    assert_empty(&node)
}

/// cni.md 35.
#[test]
fn a_failing_plugin_is_undone_and_its_code_and_words_come_through() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let log = script(
        &node,
        "broken",
        r#"echo "from the plugin" >&2
[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{"cniVersion": "1.1.0", "code": 111, "msg": "no luck", "details": "today"}'
exit 3"#,
    )?;
    let pod = NetNs::create("pod")?;
    let ipam = json!({"type": "broken"});
    let add = call(&node, "ADD", &pod, &ipam, json!({}));
    let (code, text) = add.error()?;
    assert_eq!(code, 111, "{text}");
    assert!(text.contains("no luck") && text.contains("today"), "{text}");
    assert_eq!(lines(&log), ["ADD c1 eth0", "DEL c1 eth0"]);
    assert!(add.run()?.stderr.contains("from the plugin"));
    assert_empty(&node)?;
    assert!(pod.ip_json("link show eth0").is_err(), "no link is left");

    script(
        &node,
        "mute",
        r#"[ "$CNI_COMMAND" = DEL ] && exit 0; exit 7"#,
    )?;
    let (code, text) = call(&node, "ADD", &pod, &json!({"type": "mute"}), json!({})).error()?;
    assert_eq!(code, 999, "{text}");
    assert!(text.contains("mute"), "{text}");
    script(&node, "babble", "echo no JSON; exit 0")?;
    let (code, text) = call(&node, "ADD", &pod, &json!({"type": "babble"}), json!({})).error()?;
    assert_eq!(code, 999, "{text}");
    assert!(text.contains("babble"), "{text}");
    assert_empty(&node)
}

/// cni.md 35.
#[test]
fn a_plugin_that_is_not_there_is_named_with_the_path() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let ipam = json!({"type": "nowhere"});
    for verb in ["ADD", "DEL", "STATUS"] {
        let (code, text) = call(&node, verb, &pod, &ipam, json!({})).error()?;
        assert_eq!(code, 7, "{verb}: {text}");
        assert!(
            text.contains("nowhere") && text.contains(programs::REFERENCE_PLUGINS),
            "{text}"
        );
    }
    let (code, text) = call(&node, "ADD", &pod, &ipam, json!({}))
        .without("CNI_PATH")
        .error()?;
    assert_eq!(code, 4, "{text}");
    assert_empty(&node)
}

/// cni.md 35, 61: every verb reaches the plugin, with the whole configuration.
#[test]
fn gc_and_status_are_forwarded_and_a_failing_status_is_ours() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let log = script(
        &node,
        "noting",
        r#"echo "$conf" | grep -q '"pool":"gold"' || exit 9
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.9/24", "gateway": "10.88.0.1"}]}' ;;
STATUS) echo '{"cniVersion": "1.1.0", "code": 50, "msg": "pool is dry"}'; exit 1 ;;
esac"#,
    )?;
    let pod = NetNs::create("pod")?;
    let ipam = json!({"type": "noting", "pool": "gold"});
    call(&node, "ADD", &pod, &ipam, json!({})).result()?;
    let (code, text) = call(&node, "STATUS", &pod, &ipam, json!({})).error()?;
    assert_eq!(code, 50, "{text}");
    assert!(text.contains("pool is dry"), "{text}");
    call(
        &node,
        "GC",
        &pod,
        &ipam,
        json!({"cni.dev/valid-attachments": []}),
    )
    .silent()?;
    let noted: Vec<_> = lines(&log)
        .iter()
        .map(|line| line[..3].to_owned())
        .collect();
    assert_eq!(
        noted,
        ["ADD", "STA", "DEL", "GC "],
        "GC undoes the attachment, then forwards"
    );
    assert_eq!(lines(&log)[2], "DEL c1 eth0");
    assert_empty(&node)
}

/// Our own binary as the IPAM plugin of Debian's bridge plugin.
#[test]
fn trammel_ipam_serves_the_reference_bridge_plugin() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let conflist = json!({
        "cniVersion": "1.0.0", "name": node.network(), "plugins": [{
            "type": "bridge", "bridge": "br9", "isDefaultGateway": true,
            "ipam": {
                "type": "trammel-ipam", "dataDir": node.data_dir(),
                "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
            },
        }],
    });
    node.write_conflist(&conflist)?;
    let (one, two) = (
        Pod::add(&node, "default/one")?,
        Pod::add(&node, "default/two")?,
    );
    assert_eq!(node.leases()?.len(), 4);
    for family in Family::ALL {
        // The reference plugin does not wait for the end of duplicate detection.
        for target in [family.pick(GATEWAYS), two.ip(family)] {
            eventually(SOON, || one.netns.ping(target))?;
        }
    }
    one.check()?;
    one.del()?;
    one.del()?;
    assert_eq!(node.leases()?.len(), 2);
    two.del()?;
    assert_empty(&node)
}

/// The verbs of the IPAM plugin by themselves, as any main plugin would run them.
#[test]
fn trammel_ipam_answers_every_verb() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let pod = NetNs::create("pod")?;
    let run = |verb: &str, id: &str, keys: Value| -> Result<(bool, Value)> {
        let mut conf = node.conf(json!({"type": "bridge", "agentSocket": null, "bridge": null}));
        for (key, value) in keys.as_object().expect("made as an object") {
            conf[key] = value.clone();
        }
        let mut command: Command = node.netns.command(programs::ipam_plugin());
        command.envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", "eth0"),
        ]);
        command.env("CNI_NETNS", pod.path());
        let conf = conf.to_string();
        let output = command::output(&mut command, conf.as_bytes(), command::LIMIT)?;
        assert_eq!(output.stderr, "");
        let value = match output.stdout.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| text.to_owned())?,
        };
        Ok((output.status.success(), value))
    };
    let none = || json!({});
    let (ok, version) = run("VERSION", "", none())?;
    assert!(
        ok && version["supportedVersions"]
            .as_array()
            .is_some_and(|v| v.len() == 5)
    );
    assert_eq!(run("STATUS", "", none())?, (true, Value::Null));
    let (ok, result) = run("ADD", "c1", none())?;
    assert!(ok, "{result}");
    assert_eq!(
        result["ips"][0],
        json!({"address": "10.88.0.2/24", "gateway": "10.88.0.1"})
    );
    assert!(
        result.get("interfaces").is_none(),
        "it makes none: {result}"
    );
    let (ok, error) = run("ADD", "c1", none())?;
    assert_eq!((ok, &error["code"]), (false, &json!(102)), "{error}");
    assert_eq!(run("CHECK", "c1", none())?, (true, Value::Null));
    let (ok, error) = run("CHECK", "c2", none())?;
    assert_eq!((ok, &error["code"]), (false, &json!(104)), "{error}");
    assert!(run("ADD", "c2", none())?.0);
    let keep = json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]});
    assert_eq!(run("GC", "", keep)?, (true, Value::Null));
    assert_eq!(node.leases()?.len(), 2, "those of c2");
    let (ok, error) = run("GC", "", none())?;
    assert_eq!((ok, &error["code"]), (false, &json!(7)), "{error}");
    assert_eq!(run("DEL", "c2", none())?, (true, Value::Null));
    assert_eq!(run("DEL", "c2", none())?, (true, Value::Null));
    assert!(node.leases()?.is_empty());
    let (ok, error) = run(
        "STATUS",
        "",
        json!({"ipam": {"dataDir": "/proc/none", "subnet": "10.0.0.0/24"}}),
    )?;
    assert_eq!((ok, &error["code"]), (false, &json!(50)), "{error}");
    Ok(())
}
