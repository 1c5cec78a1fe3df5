//! What the manifests of `conf/` rely on: the agent with the capabilities of its container,
//! beside another Service proxy, and taken off a node again.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::agent::{self, Agent};
use tests::command::{self, Background, LIMIT};
use tests::inspect::{self, nft, ruleset, tables};
use tests::node::Node;
use tests::objects::{self, deny_all};
use tests::pod::{Family, Pod};
use tests::programs;
use tests::require_root;
use tests::scene::Scene;
use tests::traffic::{Protocol, Server, ask, limit};
use tests::wait::eventually;

/// What the DaemonSet adds, as `setpriv` names it; `policy-agent/tests/conf.rs` compares it
/// with the manifest.
const CAPABILITIES: &str = "-all,+net_admin,+sys_admin";
const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// An error unless it is, or is not, answered.
fn expect_answer(client: &Pod<'_>, server: &Pod<'_>, family: Family, expected: bool) -> Result<()> {
    let target = server.at(family, 80);
    let attempt = move || ask(Protocol::Tcp, target, limit(expected));
    let outcome = client.netns.enter(attempt)?;
    ensure!(outcome.is_answered() == expected, "{family}: {outcome}");
    Ok(())
}

#[test]
fn the_agent_needs_no_more_capabilities_than_its_container_has() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let keys = ["shop/web", "shop/client"];
    let pods = keys.map(|key| objects::pod(key, &json!({"app": "any"}), &[80]));
    let namespace = objects::namespace("shop", &json!({}));
    node.manifests
        .write("objects", &[&pods[..], &[namespace]].concat())?;

    let command = agent::run_command(&node);
    let mut confined = Command::new("setpriv");
    confined
        .args(["--bounding-set", CAPABILITIES, "--inh-caps=-all", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .args(["--reap-interval", "200ms"]);
    let log = node.dir().join("agent.log");
    let mut agent = Background::spawn(&confined, &log)?;
    eventually(LIMIT, || {
        ensure!(agent.status()?.is_none(), "the agent has ended");
        let output = agent::verb(&node, &["wait"])?;
        ensure!(output.status.success(), "{}", output.stderr);
        Ok(())
    })?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Bits 12 and 21.
    assert_eq!(effective.map(str::trim), Some("0000000000201000"));

    let [web, client] = keys.map(|key| Pod::add(&node, key));
    let (web, client) = (web?, client?);
    let _server = Server::start(&web.netns, "web", &[80])?;
    for family in Family::ALL {
        expect_answer(&client, &web, family, true)?;
    }
    node.manifests.write("policy", &[deny_all("shop")])?;
    eventually(LIMIT, || {
        for family in Family::ALL {
            expect_answer(&client, &web, family, false)?;
        }
        Ok(())
    })?;
    // What a dead runtime has left is seen in the pod's namespace.
    client.netns.ip("link del eth0")?;
    eventually(LIMIT, || {
        let records = node.records()?;
        ensure!(records.len() == 1, "{records:?}");
        Ok(())
    })?;
    let log = fs::read_to_string(log)?.to_lowercase();
    for word in ["denied\"", "permitted", "permission", "capability"] {
        let line = log
            .lines()
            .find(|line| line.contains(word) && !line.contains("verdict"));
        assert_eq!(line, None, "{log}");
    }
    Ok(())
}

/// `services.enabled: false`: kube-proxy goes on serving Services.
#[test]
fn beside_another_service_proxy_policies_are_enforced_and_services_left_alone() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    nft(
        &node.netns,
        "add table ip kube-proxy\nadd chain ip kube-proxy services",
    )?;
    let config = node.dir().join("config.yaml");
    fs::write(&config, "services: {enabled: false}")?;
    let config = config.to_str().context("a path as text")?;
    let pods = [
        ("shop/web", json!({"app": "web"})),
        ("shop/client", json!({"app": "client"})),
    ];
    let web = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    let scene = Scene::start_with(
        &node,
        &pods,
        std::slice::from_ref(&web),
        &["--config", config],
    )?;
    let (client, server) = (scene.pod("shop/client"), scene.pod("shop/web"));
    for family in Family::ALL {
        expect_answer(client, server, family, true)?;
    }
    let rules = serde_json::to_string(&ruleset(&node.netns)?)?;
    assert!(
        !rules.contains(WEB[0]) && !rules.contains(WEB[1]),
        "{rules}"
    );
    let status = scene.agent.json(&["status"])?;
    assert_eq!(status["services"], 0);
    assert_eq!(
        status["problems"],
        json!([]),
        "kube-proxy is no left-over here"
    );
    assert_eq!(scene.agent.json(&["services"])?, json!([]));
    scene.apply(&[web, deny_all("shop")])?;
    for family in Family::ALL {
        expect_answer(client, server, family, false)?;
    }
    Ok(())
}

/// A copy of the node's configuration, to be removed: cnitool needs the node's own for DEL,
/// a runtime remembers it. Returns its folder and its path.
fn install_conf(node: &Node) -> Result<(PathBuf, PathBuf)> {
    let folder = node.dir().join("installed-conf");
    fs::create_dir(&folder)?;
    let path = folder.join("10-trammel.conflist");
    fs::copy(node.conf_dir().join("10-trammel.conflist"), &path)?;
    Ok((folder, path))
}

#[test]
fn what_was_installed_is_removed_when_the_last_pod_has_left() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let at = |name: &str| node.dir().join(name);
    let text = |name: &str| at(name).display().to_string();
    let (conf_dir, conf) = install_conf(&node)?;
    fs::write(conf_dir.join("20-other.conflist"), "{}")?;
    let mut install = node.netns.command(programs::agent());
    install
        .args(["install", "--to", &text("bin"), "--from"])
        .arg(programs::bin_dir())
        .args(["--sysctl-dir", &text("sysctl.d")]);
    command::run(&mut install)?;

    node.manifests.write(
        "objects",
        &[
            objects::namespace("shop", &json!({})),
            objects::pod("shop/web", &json!({}), &[80]),
        ],
    )?;
    let agent = Agent::start(&node)?;
    let pod = Pod::add(&node, "shop/web")?;
    fs::create_dir(at("state"))?;
    fs::write(at("state/objects"), "")?;
    let uninstall = || {
        let folders = [
            "cleanup".to_owned(),
            format!("--cni-conf-dir={}", conf_dir.display()),
            format!("--cni-bin-dir={}", text("bin")),
            format!("--sysctl-dir={}", text("sysctl.d")),
            format!("--data-dir={}", node.data_dir().display()),
            format!("--state-dir={}", text("state")),
        ];
        agent::verb(&node, &folders.each_ref().map(String::as_str))
    };
    let output = uninstall()?;
    assert!(!output.status.success());
    assert!(
        output.stderr.contains("an agent is running"),
        "{}",
        output.stderr
    );
    assert!(conf.exists());

    agent.stop()?;
    let output = uninstall()?;
    assert!(!output.status.success());
    assert!(output.stderr.contains("shop/web"), "{}", output.stderr);
    for needed in [&conf, &at("bin/trammel")] {
        assert!(
            needed.exists(),
            "the runtime needs {} to end the pod",
            needed.display()
        );
    }
    assert!(at("sysctl.d/95-trammel.conf").exists(), "all or nothing");
    pod.check()?;

    fs::remove_file(node.socket())?;
    pod.del()?;
    let output = uninstall()?;
    assert!(output.status.success(), "{}", output.stderr);
    assert!(!at("bin/trammel").exists() && !at("bin/trammel-ipam").exists());
    assert!(!at("sysctl.d/95-trammel.conf").exists());
    assert!(
        conf_dir.join("20-other.conflist").exists(),
        "it is not ours"
    );
    assert_eq!(tables(&node.netns)?, Vec::<String>::new());
    let links = node.netns.ip_json("link show")?.to_string();
    assert!(!links.contains("cbr0"), "{links}");
    let output = uninstall()?;
    assert!(
        output.stdout.contains("there is nothing of ours"),
        "{}",
        output.stdout
    );
    Ok(())
}

/// issue 7, 6: the uninstall step of a node that is not drained yet.
#[test]
fn an_uninstall_that_waits_goes_on_when_the_last_pod_has_left() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (conf_dir, conf) = install_conf(&node)?;
    let pods = ["shop/one", "shop/two"].map(|key| Pod::add(&node, key));
    let [one, two] = pods;
    let (one, two) = (one?, two?);
    let mut cleanup = node.netns.command(programs::agent());
    cleanup
        .args(["cleanup", "--wait", "--socket"])
        .arg(node.socket())
        .arg(format!("--cni-conf-dir={}", conf_dir.display()))
        .arg(format!("--data-dir={}", node.data_dir().display()));
    let log = node.dir().join("cleanup.log");
    let mut cleanup = Background::spawn(&cleanup, &log)?;
    let says = |text: &str| {
        eventually(LIMIT, || {
            let said = fs::read_to_string(&log)?;
            ensure!(said.contains(text), "{said}");
            Ok(())
        })
    };
    says("waiting for 2 pods of this node to leave the network: shop/one, shop/two")?;
    one.del()?;
    says("waiting for 1 pods of this node to leave the network: shop/two")?;
    assert!(conf.exists() && cleanup.status()?.is_none());
    two.del()?;
    let (status, _) = eventually(LIMIT, || cleanup.status()?.context("it still runs"))?;
    assert!(status.success(), "{}", fs::read_to_string(&log)?);
    assert!(!conf.exists());
    assert!(!node.records_dir().exists());
    assert_eq!(fs::read_dir(node.data_dir())?.count(), 0, "no leases");
    Ok(())
}

/// Who wants it at once gets it, and is not left with half of it.
#[test]
fn a_forced_uninstall_leaves_running_pods_and_takes_all_else() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (conf_dir, conf) = install_conf(&node)?;
    let pod = Pod::add(&node, "shop/web")?;
    let folder = format!("--cni-conf-dir={}", conf_dir.display());
    let refused = agent::verb(&node, &["cleanup", &folder])?;
    assert!(!refused.status.success() && conf.exists());
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    let forced = agent::verb(&node, &["cleanup", "--force", &folder])?;
    assert!(forced.status.success(), "{}", forced.stderr);
    assert!(!conf.exists());
    pod.check()?;
    pod.del()?;
    Ok(())
}

#[test]
fn a_bridge_of_others_and_a_configuration_of_others_stay() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    node.netns.ip("link add cbr0 type bridge")?;
    let output = agent::verb(&node, &["cleanup", "--cni-bin-dir", "/nonexistent"])?;
    assert!(output.status.success(), "{}", output.stderr);
    node.netns.ip("link show cbr0")?;
    let conf = node.conf_dir().join("10-trammel.conflist");
    fs::write(&conf, r#"{"plugins": [{"type": "bridge"}]}"#)?;
    let folder = format!("--cni-conf-dir={}", node.conf_dir().display());
    let output = agent::verb(&node, &["cleanup", &folder])?;
    assert!(!output.status.success());
    assert!(output.stderr.contains("somebody else"), "{}", output.stderr);
    assert!(conf.exists());
    Ok(())
}

/// Bridges of VLANs, as the plugin leaves them: the gateways are ports of their own.
#[test]
fn the_gateways_of_vlans_go_with_their_bridge_unless_it_has_other_ports() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    for (bridge, port) in [("free", "free-7"), ("used", "used-7")] {
        let gateway = format!("{bridge}.7");
        node.netns.ip(&format!("link add {bridge} type bridge"))?;
        node.netns.ip(&format!(
            "link add {port} master {bridge} type veth peer name {gateway}"
        ))?;
        let mut mark = node.netns.command("ip");
        mark.args(["link", "set", bridge, "alias", "trammel vlan"]);
        command::run(&mut mark)?;
        let mut mark = node.netns.command("ip");
        mark.args(["link", "set", &gateway, "alias", "trammel vlan gateway"]);
        command::run(&mut mark)?;
    }
    node.netns
        .ip("link add other master used type veth peer name theirs")?;
    let output = agent::verb(&node, &["cleanup", "--cni-bin-dir", "/nonexistent"])?;
    assert!(output.status.success(), "{}", output.stderr);
    let links = node.netns.ip_json("link show")?;
    let names: Vec<_> = inspect::items(&links)
        .filter_map(|link| link["ifname"].as_str())
        .collect();
    for (name, stays) in [
        ("free", false),
        ("free.7", false),
        ("free-7", false),
        ("used", true),
        ("used.7", true),
        ("other", true),
    ] {
        assert_eq!(names.contains(&name), stays, "{name}: {names:?}");
    }
    Ok(())
}

/// The archive that `make image` writes, read by podman.
#[test]
fn the_image_has_the_programs_and_is_the_same_twice() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let make = |name: &str| -> Result<Vec<u8>> {
        let archive = node.dir().join(name);
        let mut make = Command::new(programs::workspace().join("conf/mkimage.py"));
        make.arg(&archive).arg("localhost/trammel:test");
        for program in [
            programs::plugin(),
            programs::ipam_plugin(),
            programs::agent(),
        ] {
            make.arg(program);
        }
        command::run(&mut make)?;
        fs::read(&archive).context("the archive")
    };
    assert!(make("one.tar")? == make("two.tar")?, "the same bytes");
    let podman = |arguments: &[&str]| {
        let mut podman = Command::new("podman");
        podman
            .args(["--storage-driver", "vfs", "--root"])
            .arg(node.dir().join("images"))
            .arg("--runroot")
            .arg(node.dir().join("images-run"))
            .args(arguments);
        command::run(&mut podman)
    };
    let archive = node.dir().join("one.tar");
    podman(&[
        "load",
        "-q",
        "-i",
        archive.to_str().context("a path as text")?,
    ])?;
    let image = podman(&["image", "inspect", "localhost/trammel:test"])?;
    let image: serde_json::Value = serde_json::from_str(&image)?;
    assert_eq!(
        image[0]["Config"]["Entrypoint"],
        json!(["/usr/bin/trammel-agent"])
    );
    let folder = podman(&["image", "mount", "localhost/trammel:test"])?;
    for program in [
        programs::plugin(),
        programs::ipam_plugin(),
        programs::agent(),
    ] {
        let name = program.file_name().context("a name")?;
        let inside = std::path::Path::new(folder.trim())
            .join("usr/bin")
            .join(name);
        assert!(
            fs::read(&inside)? == fs::read(&program)?,
            "{}",
            inside.display()
        );
    }
    podman(&["image", "unmount", "--all"])?;
    Ok(())
}
