//! `trammel-agent check` and `install` on nodes where one thing at a time is broken.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::api_server::ApiServer;
use tests::command::{self, LIMIT, Output};
use tests::inspect::{self, nft, tables};
use tests::node::{NODE_NAME, Node};
use tests::programs;
use tests::require_root;

/// What a run found: severity, code and text of each finding.
struct Report {
    findings: Vec<Value>,
    succeeded: bool,
}

impl Report {
    fn parse(output: &Output) -> Result<Self> {
        let findings: Value =
            serde_json::from_str(&output.stdout).with_context(|| command::complaint(output))?;
        Ok(Self {
            findings: inspect::items(&findings).cloned().collect(),
            succeeded: output.status.success(),
        })
    }

    fn of(&self, severity: &str) -> Vec<&str> {
        let findings = self.findings.iter().filter(|f| f["severity"] == severity);
        findings.filter_map(|f| f["code"].as_str()).collect()
    }

    /// The finding of that code, which has to be of that severity, with why and what to do.
    fn has(&self, severity: &str, code: &str, part: &str) -> Result<()> {
        let found = self
            .findings
            .iter()
            .find(|f| f["code"] == code && f["what"].as_str().is_some_and(|w| w.contains(part)))
            .with_context(|| format!("no {code} with {part:?} in {:#?}", self.findings))?;
        ensure!(found["severity"] == severity, "{found:#}");
        let said = |key: &str| found[key].as_str().is_some_and(|text| !text.is_empty());
        ensure!(
            severity == "ok" || said("why") && said("action"),
            "{found:#}"
        );
        ensure!(
            severity != "error" || !self.succeeded,
            "exit status 0: {found:#}"
        );
        Ok(())
    }

    fn lacks(&self, code: &str) -> Result<()> {
        let found = self
            .findings
            .iter()
            .find(|f| f["code"] == code && f["severity"] != "ok");
        ensure!(found.is_none(), "{found:#?}");
        Ok(())
    }
}

/// The folder that the runtime has its plugins in.
fn bin_dir(node: &Node) -> PathBuf {
    node.dir().join("bin")
}

fn check(node: &Node, arguments: &[&str]) -> Result<Report> {
    let mut command = node.netns.command(programs::agent());
    command
        .args(["check", "-o", "json", "--cni-conf-dir"])
        .arg(node.conf_dir())
        .arg("--cni-bin-dir")
        .arg(bin_dir(node))
        .arg("--socket")
        .arg(node.socket())
        .args(arguments);
    Report::parse(&command::output(&mut command, b"", LIMIT)?)
}

fn install(node: &Node, arguments: &[&str]) -> Result<Output> {
    let mut command = node.netns.command(programs::agent());
    command.arg("install").args(arguments);
    command::output(&mut command, b"", LIMIT)
}

/// A node with the plugins in place.
fn ready_node() -> Result<Node> {
    let node = Node::new()?;
    fs::create_dir(bin_dir(&node))?;
    for name in ["trammel", "trammel-ipam"] {
        symlink(programs::bin_dir().join(name), bin_dir(&node).join(name))?;
    }
    Ok(node)
}

#[test]
fn a_node_that_is_ready_has_no_error_and_nothing_is_changed_on_it() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    let links = || node.netns.ip_json("link show");
    let before = links()?;
    let report = check(&node, &[])?;
    assert_eq!(
        report.of("error"),
        Vec::<&str>::new(),
        "{:#?}",
        report.findings
    );
    // There is no agent yet, and this namespace has the kernel's limit of connections.
    let warnings = report.of("warning");
    assert!(
        warnings
            .iter()
            .all(|code| ["agent-away", "conntrack-limit"].contains(code)),
        "{:#?}",
        report.findings
    );
    for code in ["nf-tables", "links", "ip-forward", "plugin", "network-conf"] {
        report.has("ok", code, "")?;
    }
    assert_eq!(links()?, before);
    assert_eq!(tables(&node.netns)?, Vec::<String>::new());

    let agent = Agent::start(&node)?;
    let report = check(&node, &[])?;
    report.has("ok", "agent", NODE_NAME)?;
    report.has("ok", "agent-sync", "")?;
    agent.stop()?;
    check(&node, &[])?.has("warning", "agent-away", "")
}

#[test]
fn forwarding_that_is_off_is_found_and_set() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    node.netns.sysctl("net.ipv4.ip_forward", 0)?;
    node.netns.sysctl("net.ipv6.conf.all.forwarding", 0)?;
    let report = check(&node, &[])?;
    report.has("error", "ip-forward", "net.ipv4.ip_forward is 0")?;
    report.has("error", "ipv6-forward", "forwarding is 0")?;

    let folder = node.dir().join("sysctl.d");
    let folder = folder.to_str().context("a path as text")?;
    check(&node, &["--sysctl-dir", folder])?.has("ok", "sysctl-file", "95-trammel.conf")?;
    let text = fs::read_to_string(node.dir().join("sysctl.d/95-trammel.conf"))?;
    assert!(text.contains("net.ipv4.ip_forward = 1"), "{text}");
    let read = |key: &str| node.netns.read_sysctl(key);
    assert_eq!(
        read("net.ipv4.ip_forward").as_deref(),
        Some("0"),
        "only written"
    );

    let output = install(&node, &["--sysctls", "--family", "ipv4"])?;
    // That the limit of connections is not this namespace's to set is no failure.
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(read("net.ipv4.ip_forward").as_deref(), Some("1"));
    assert_eq!(read("net.ipv6.conf.all.forwarding").as_deref(), Some("0"));
    install(&node, &["--sysctls"])?;
    let report = check(&node, &[])?;
    report.lacks("ip-forward")?;
    report.lacks("ipv6-forward")
}

#[test]
fn rules_of_others_and_left_overs_of_kube_proxy_are_found() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    nft(
        &node.netns,
        "add table inet hardened
         add chain inet hardened closed { type filter hook forward priority 0; policy drop; }
         add table ip kube-proxy
         add chain ip kube-proxy services
         add table ip nat
         add chain ip nat KUBE-SERVICES",
    )?;
    node.netns.ip("link add kube-ipvs0 type bridge")?;
    let report = check(&node, &[])?;
    report.has(
        "error",
        "foreign-drop-policy",
        "chain closed of table inet hardened",
    )?;
    for part in ["table ip kube-proxy", "table ip nat", "kube-ipvs0"] {
        report.has("warning", "kube-proxy-left-overs", part)?;
    }
    nft(&node.netns, "flush ruleset")?;
    node.netns.ip("link del kube-ipvs0")?;
    let report = check(&node, &[])?;
    report.lacks("foreign-drop-policy")?;
    report.lacks("kube-proxy-left-overs")
}

#[test]
fn a_strict_reverse_path_is_found_where_there_are_two_links() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    node.netns.sysctl("net.ipv4.conf.all.rp_filter", 1)?;
    check(&node, &[])?.lacks("rp-filter")?;
    node.netns.ip("link add second type bridge")?;
    for link in ["second", "uplink"] {
        node.netns
            .sysctl(&format!("net.ipv4.conf.{link}.rp_filter"), 0)?;
    }
    node.netns.ip("address add 198.51.100.7/24 dev second")?;
    check(&node, &[])?.has("warning", "rp-filter", "second")
}

#[test]
fn a_bridge_larger_than_the_way_out_is_found() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    node.netns.ip("link add cbr0 type bridge")?;
    check(&node, &[])?.has("ok", "mtu", "1500 on uplink")?;
    node.netns.ip("link set uplink mtu 1400")?;
    check(&node, &[])?.has("warning", "mtu", "cbr0 has MTU 1500")?;
    node.netns.ip("link set uplink mtu 1279")?;
    check(&node, &[])?.has("error", "mtu", "uplink has MTU 1279")?;
    node.netns.ip("route del default")?;
    // That of IPv6 went with the MTU.
    check(&node, &[])?.has("warning", "default-route", "no default route")
}

#[test]
fn configurations_and_plugins_of_the_runtime_are_looked_at() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    let first = node.conf_dir().join("05-bridge.conf");
    fs::write(
        &first,
        json!({"cniVersion": "1.0.0", "name": "o", "type": "bridge"}).to_string(),
    )?;
    check(&node, &[])?.has(
        "error",
        "network-conf-shadowed",
        "05-bridge.conf sorts before",
    )?;
    fs::remove_file(first)?;

    node.write_conflist(&node.conflist(json!({"mtu": 7})))?;
    check(&node, &[])?.has("error", "network-conf-invalid", "mtu: 7")?;
    node.write_conflist(&node.conflist(json!({"agentSocket": "/run/other.sock"})))?;
    check(&node, &[])?.has("error", "agent-socket", "/run/other.sock")?;
    node.write_conflist(&node.conflist(json!({})))?;

    fs::remove_file(bin_dir(&node).join("trammel"))?;
    check(&node, &[])?.has("error", "plugin-missing", "trammel")?;
    let to = bin_dir(&node);
    let from = programs::bin_dir();
    let [to, from] = [&to, &from].map(|path| path.to_str().unwrap_or_default());
    let output = install(&node, &["--to", to, "--from", from])?;
    ensure!(output.status.success(), "{}", output.stderr);
    let installed = bin_dir(&node).join("trammel");
    assert!(!installed.is_symlink());
    assert_eq!(
        fs::metadata(&installed)?.permissions().mode() & 0o777,
        0o755
    );
    check(&node, &[])?.has("ok", "plugin", "trammel")
}

#[test]
fn the_api_server_its_clock_and_the_rights_are_asked_for() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    let api = ApiServer::start(&node.netns)?;
    let kubeconfig = node.dir().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig())?;
    let kubeconfig = kubeconfig.to_str().context("a path as text")?;
    let ask = || {
        check(
            &node,
            &["--kubeconfig", kubeconfig, "--node-name", NODE_NAME],
        )
    };
    let report = ask()?;
    report.has("ok", "api", "200")?;
    report.has("ok", "clock", "")?;
    // All kinds twice, and Events twice.
    report.has("ok", "api-rights", "18 rights")?;
    report.has("error", "node", "no Node n1")?;

    api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}))?;
    ask()?.has("warning", "node", "no spec.podCIDRs")?;
    api.put(
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME},
        "spec": {"podCIDRs": ["10.88.0.0/24", "fd88::/64"]}}),
    )?;
    ask()?.has("ok", "node", "10.88.0.0/24, fd88::/64")?;

    api.set_clock_ahead(20);
    ask()?.has("warning", "clock", "s behind the API server's")?;
    api.set_clock_ahead(-3600);
    ask()?.has("error", "clock", "s ahead of the API server's")?;
    api.set_clock_ahead(0);

    api.set_denied("watch", "pods", true);
    api.set_denied("create", "events", true);
    let report = ask()?;
    report.has("error", "api-rights", "watch of pods is not granted")?;
    report.has("warning", "api-rights", "create of events.events.k8s.io")?;
    api.go_away();
    ask()?.has("error", "api", "cannot be reached")
}

#[test]
fn without_capabilities_it_says_which_are_missing() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    let mut command = node.netns.command("setpriv");
    command
        .args(["--bounding-set=-sys_admin", "--"])
        .arg(programs::agent())
        .args(["check", "-o", "json"]);
    let report = Report::parse(&command::output(&mut command, b"", LIMIT)?)?;
    report.has("error", "capabilities", "no CAP_SYS_ADMIN")?;
    report.lacks("network-namespace")
}

#[test]
fn the_text_says_what_why_and_what_to_do() -> Result<()> {
    require_root!();
    let node = ready_node()?;
    node.netns.sysctl("net.ipv4.ip_forward", 0)?;
    let mut command = node.netns.command(programs::agent());
    let output = command::output(command.arg("check"), b"", LIMIT)?;
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<_> = output.stdout.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.starts_with("error   ip-forward: "))
        .with_context(|| output.stdout.clone())?;
    assert!(
        lines[at + 1].starts_with("        why: "),
        "{}",
        output.stdout
    );
    assert!(
        lines[at + 2].starts_with("        do:  "),
        "{}",
        output.stdout
    );
    // Errors come first.
    assert!(lines[0].starts_with("error"), "{}", output.stdout);
    Ok(())
}
