//! The verdict log and audit mode, with real packets.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::command::Background;
use tests::inspect;
use tests::matrix::{self, Cell, Expect};
use tests::node::{NODE_NAME, Node, OUTSIDE_IPS};
use tests::objects::{self, deny_all, policy};
use tests::pod::Family;
use tests::programs;
use tests::require_root;
use tests::scene::{NODE, OUTSIDE, Scene};
use tests::shop::{app, pods, web_for_front};
use tests::traffic::{Outcome, Protocol, SHORT, send_from};
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// Only front reaches web, on port 80; `audit` tries it out.
fn web_policy(audit: bool) -> Value {
    let mut object = web_for_front();
    object["metadata"]["annotations"] = json!({"trammel.io/audit": audit.to_string()});
    object
}

fn start<'n>(
    node: &'n Node,
    objects: &[Value],
    arguments: &[&str],
) -> Result<(Scene<'n>, PathBuf)> {
    let path = node.dir().join("denied.json");
    let log = path.display().to_string();
    let arguments = [&["--verdict-log", &log], arguments].concat();
    Ok((Scene::start_with(node, &pods(), objects, &arguments)?, path))
}

/// The records so far.
fn records(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Waits for a record of a packet to that address and port after translation.
fn record_of(path: &Path, destination: SocketAddr, protocol: &str) -> Result<Value> {
    let is_it = |record: &Value| {
        let end = &record["destination"];
        end["address"] == destination.ip().to_string()
            && end["port"] == destination.port()
            && record["protocol"] == protocol
    };
    let (record, _) = eventually(SOON, || {
        let records = records(path)?;
        let found = records.iter().find(|record| is_it(record)).cloned();
        found.with_context(|| format!("no record of {destination} {protocol} in {records:#?}"))
    })?;
    Ok(record)
}

/// netpol.md 91: a record resolves to pods, labels, the address before translation and all
/// isolating policies, and says what `explain` says.
#[test]
fn a_denied_packet_of_a_service_is_told_with_pods_policies_and_frontend() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let service = objects::service("shop/web", WEB, &app("web"), &[(8000, 80)]);
    let objects = [
        service,
        web_policy(false),
        policy("shop/deny", &json!({"podSelector": {}})),
    ];
    let (scene, path) = start(&node, &objects, &[])?;
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let frontend = SocketAddr::new(family.pick(WEB), 8000);
            let outcome = scene.ask_for("lab/probe", protocol, frontend, SHORT)?;
            ensure!(outcome == Outcome::Timeout, "{outcome}");
            let endpoint = scene.pod("shop/web").at(family, 80);
            let record = record_of(&path, endpoint, &protocol.to_string())?;
            let source = scene.pod("lab/probe").ip(family).to_string();
            assert_eq!(record["verdict"], "denied");
            assert_eq!(record["direction"], "ingress");
            assert_eq!(record["reason"], "notAllowed");
            assert_eq!(record["policies"], json!(["shop/deny", "shop/web"]));
            assert_eq!(record["source"]["address"], source);
            assert_eq!(record["source"]["pod"], "lab/probe");
            assert_eq!(record["source"]["labels"], app("probe"));
            assert_eq!(record["destination"]["pod"], "shop/web");
            assert_eq!(record["destination"]["node"], NODE_NAME);
            assert_eq!(
                record["frontend"],
                json!({"address": frontend.ip(), "port": 8000, "service": "shop/web"})
            );
            let explained = tests::agent::verb(
                &node,
                &[
                    "explain",
                    &source,
                    &format!("{endpoint}/{protocol}"),
                    "-o",
                    "json",
                ],
            )?;
            let explained: Value = serde_json::from_str(&explained.stdout)?;
            assert_eq!(
                explained["connections"][0]["ingress"]["isolatedBy"],
                record["policies"]
            );
        }
    }
    // Straight to the pod: nothing was translated.
    let direct = scene.pod("shop/web").at(Family::V4, 81);
    scene.ask_for("lab/probe", Protocol::Tcp, direct, SHORT)?;
    let record = record_of(&path, direct, "TCP")?;
    assert_eq!(record["frontend"], Value::Null);
    assert_eq!(record["tcpFlags"], "SYN");
    // From outside, where there is no pod.
    scene.ask_for(OUTSIDE, Protocol::Udp, direct, SHORT)?;
    let record = record_of(&path, direct, "UDP")?;
    assert_eq!(record["source"]["address"], OUTSIDE_IPS[0]);
    assert_eq!(record["source"]["pod"], Value::Null);
    // What is allowed is not told.
    let target = scene.pod("shop/front").at(Family::V4, 80);
    let before = records(&path)?.len();
    ensure!(scene.ask(NODE, Protocol::Tcp, target)?.is_answered());
    assert_eq!(records(&path)?.len(), before);
    Ok(())
}

/// netpol.md 92: a policy on audit denies nothing, and tells exactly what it would deny.
#[test]
fn a_policy_on_audit_tells_exactly_what_enforcing_it_would_deny() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (scene, path) = start(&node, &[web_policy(true)], &[])?;
    let mut cells = Vec::new();
    for from in scene
        .sources()
        .into_keys()
        .filter(|from| from != "shop/web")
    {
        for port in [80, 81] {
            for protocol in Protocol::ALL {
                for family in Family::ALL {
                    let target = scene.pod("shop/web").at(family, port);
                    let expect = Expect::answered(true);
                    let (from, to) = (from.clone(), "shop/web".to_owned());
                    cells.push(Cell {
                        from,
                        to,
                        protocol,
                        target,
                        expect,
                    });
                }
            }
        }
    }
    matrix::verify(&scene.sources(), &cells).context("on audit everything passes")?;
    let would_deny = |cell: &Cell| {
        let is_allowed =
            cell.from == "shop/front" && (cell.target.port(), cell.protocol) == (80, Protocol::Tcp);
        cell.from != NODE && !is_allowed
    };
    let key = |source: &str, target: SocketAddr, protocol: &str| {
        (source.to_owned(), target.to_string(), protocol.to_owned())
    };
    let wanted: BTreeSet<_> = cells
        .iter()
        .filter(|cell| would_deny(cell))
        .map(|cell| {
            let family = Family::of(cell.target.ip());
            let source = match cell.from.as_str() {
                OUTSIDE => family.pick(OUTSIDE_IPS),
                pod => scene.pod(pod).ip(family),
            };
            key(&source.to_string(), cell.target, &cell.protocol.to_string())
        })
        .collect();
    eventually(SOON, || {
        let mut told = BTreeSet::new();
        for record in records(&path)? {
            ensure!(record["verdict"] == "wouldBeDenied", "{record:#}");
            ensure!(record["policies"] == json!(["shop/web"]), "{record:#}");
            let end = &record["destination"];
            let target = SocketAddr::new(
                end["address"].as_str().unwrap_or_default().parse()?,
                u16::try_from(end["port"].as_u64().unwrap_or_default())?,
            );
            let source = record["source"]["address"].as_str().unwrap_or_default();
            told.insert(key(
                source,
                target,
                record["protocol"].as_str().unwrap_or_default(),
            ));
        }
        ensure!(told == wanted, "told {told:#?}, wanted {wanted:#?}");
        Ok(())
    })?;

    // Enforced, it denies just these.
    scene.apply(&[web_policy(false)])?;
    for cell in &mut cells {
        cell.expect = Expect::answered(!would_deny(cell));
    }
    matrix::verify(&scene.sources(), &cells).context("enforced")?;
    // Beside a policy that is enforced, one on audit opens nothing.
    let open = {
        let mut open = policy("shop/open", &json!({"podSelector": {}, "ingress": [{}]}));
        open["metadata"]["annotations"] = json!({"trammel.io/audit": "true"});
        open
    };
    scene.apply(&[web_policy(false), open])?;
    matrix::verify(&scene.sources(), &cells).context("beside one on audit")
}

/// netpol.md 71, 72, 94: a flood and a log that cannot be written change no verdict; all
/// denied packets are counted, the records are bounded, and the metrics say all of it.
#[test]
fn a_flood_and_a_full_disk_change_nothing_and_are_counted() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start_with(
        &node,
        &pods(),
        &[web_policy(false)],
        &["--verdict-log", "/dev/full"],
    )?;
    let sent: u32 = 20_000;
    let probe = scene.pod("lab/probe");
    let (source, target) = (
        probe.ip(Family::V4),
        scene.pod("shop/web").at(Family::V4, 81),
    );
    probe.netns.enter(move || -> Result<()> {
        for _ in 0..sent / 100 {
            let socket = std::net::UdpSocket::bind((source, 0))?;
            for _ in 0..100 {
                socket.send_to(b"flood", target)?;
            }
        }
        send_from(source, target, "last")?;
        Ok(())
    })??;
    let metric = |name: &str, labels: &[&str]| -> Result<u64> {
        let (_, text) = scene.agent.get("/metrics")?;
        let lines = text.lines().filter(|line| line.starts_with(name));
        let mut lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        let line = lines
            .next()
            .with_context(|| format!("no {name} in\n{text}"))?;
        let value = line.rsplit(' ').next().unwrap_or_default();
        Ok(value.parse()?)
    };
    let labels = [
        "direction=\"ingress\"",
        "reason=\"policy\"",
        "policies=\"shop/web\"",
    ];
    eventually(SOON * 2, || {
        let denied = metric("trammel_denied_packets_total", &labels)?;
        ensure!(denied == u64::from(sent) + 1, "{denied}");
        Ok(())
    })?;
    let failed = metric("trammel_verdict_log_failed_total", &[])?;
    assert!(failed > 0 && failed < 2_000, "{failed} records of a flood");
    assert_eq!(metric("trammel_verdict_log_written_total", &[])?, 0);
    let front = scene.ask(
        "shop/front",
        Protocol::Tcp,
        scene.pod("shop/web").at(Family::V4, 80),
    )?;
    assert!(front.is_answered(), "{front}");
    let denied = scene.ask_for("lab/probe", Protocol::Tcp, target, SHORT)?;
    assert_eq!(denied, Outcome::Timeout);
    for name in [
        "trammel_policy_generation",
        "trammel_attachments_unprogrammed",
        "trammel_repairs_total",
        "trammel_sync_duration_seconds_count",
    ] {
        metric(name, &[]).with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_log_that_is_off_leaves_no_log_rule() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start_with(
        &node,
        &pods(),
        &[deny_all("shop")],
        &["--verdict-log", "off"],
    )?;
    let text = inspect::ruleset(&node.netns)?;
    let text = serde_json::to_string(&text)?;
    assert!(!text.contains("\"log\""), "{text}");
    let denied = scene.pod("shop/web").at(Family::V4, 80);
    assert!(
        !scene
            .ask_for("lab/probe", Protocol::Tcp, denied, SHORT)?
            .is_answered()
    );
    Ok(())
}

/// A socket instead of a file: the last records, those to come, and of whom.
#[test]
fn the_log_of_a_running_agent_can_be_followed_and_selected() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let (scene, path) = start(&node, &[deny_all("shop")], &[])?;
    let web = scene.pod("shop/web").at(Family::V4, 80);
    scene.ask_for("lab/probe", Protocol::Tcp, web, SHORT)?;
    record_of(&path, web, "TCP")?;
    let logged = |arguments: &[&str]| -> Result<Vec<Value>> {
        let arguments = [&["log", "-o", "json"], arguments].concat();
        let text = scene.agent.verb(&arguments)?;
        let records = text.lines().map(serde_json::from_str);
        Ok(records.collect::<Result<_, _>>()?)
    };
    let is_of_web = |record: &Value| record["destination"]["address"] == web.ip().to_string();
    for (arguments, is_there) in [
        (&[][..], true),
        (&["--pod", "lab/probe"], true),
        (&["--pod", "shop/web", "--namespace", "lab"], true),
        (&["--pod", "shop/front"], false),
        (&["--namespace", "none"], false),
    ] {
        let found = logged(arguments)?.iter().any(is_of_web);
        assert_eq!(found, is_there, "{arguments:?}");
    }
    let text = scene.agent.verb(&["log", "--pod", "lab/probe"])?;
    assert!(
        text.contains("-> shop/web") && text.contains("not allowed by shop/deny-all"),
        "{text}"
    );

    let followed = node.dir().join("followed.json");
    let mut command = node.netns.command(programs::agent());
    command
        .args([
            "log",
            "--follow",
            "--pod",
            "shop/front",
            "-o",
            "json",
            "--socket",
        ])
        .arg(node.socket());
    let _follower = Background::spawn(&command, &followed)?;
    let front = scene.pod("shop/front").at(Family::V4, 81);
    eventually(SOON, || {
        scene.ask_for("lab/probe", Protocol::Tcp, front, Duration::from_millis(50))?;
        let records = records(&followed)?;
        let of_front = |record: &Value| record["destination"]["pod"] == "shop/front";
        ensure!(!records.is_empty(), "nothing yet");
        ensure!(records.iter().all(of_front), "{records:#?}");
        Ok(())
    })?;
    let bad = tests::agent::verb(&node, &["log", "--pod", "front"])?;
    assert!(bad.stderr.contains("NAMESPACE/NAME"), "{}", bad.stderr);
    Ok(())
}

#[test]
fn an_agent_without_a_log_says_so() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start_with(&node, &pods(), &[], &["--verdict-log", "off"])?;
    let answer = tests::agent::verb(&node, &["log", "--follow"])?;
    assert!(!answer.status.success());
    assert!(answer.stderr.contains("--verdict-log"), "{}", answer.stderr);
    drop(scene);
    Ok(())
}
