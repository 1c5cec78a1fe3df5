//! The agent as a program: start, stop, crash, drift, errors, its own verbs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent::{self, Agent};
use tests::command::{self, LIMIT};
use tests::inspect::{self, fingerprint, ruleset};
use tests::netns::NetNs;
use tests::node::Node;
use tests::objects::{self, deny_all};
use tests::plugin::Call;
use tests::pod::{Family, Pod};
use tests::require_root;
use tests::scene::Scene;
use tests::traffic::{Hammer, PATIENT, Protocol, SHORT, Stream, limit};
use tests::wait::{SOON, eventually};

const WEB: [&str; 2] = ["10.96.0.10", "fd96::10"];
const INTERVAL: Duration = Duration::from_millis(5);

fn pods() -> Vec<(&'static str, Value)> {
    vec![
        ("shop/web", json!({"app": "web"})),
        ("shop/client", json!({"app": "client"})),
        ("closed/web", json!({"app": "web"})),
    ]
}

/// A Service, and a namespace that nobody but the node reaches.
fn objects() -> Vec<Value> {
    let service = objects::service("shop/web", WEB, &json!({"app": "web"}), &[(8000, 80)]);
    vec![service, deny_all("closed")]
}

fn service(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(WEB), 8000)
}

/// Whether what should be answered is, and what should not be is not.
fn enforced(scene: &Scene<'_>) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let outcome = scene.ask("shop/client", protocol, service(family))?;
            ensure!(
                outcome.server() == Some("shop/web"),
                "{family} {protocol}: {outcome}"
            );
            let closed = scene.pod("closed/web").at(family, 80);
            let outcome = scene.ask_for("shop/client", protocol, closed, SHORT)?;
            ensure!(!outcome.is_answered(), "{family} {protocol}: {outcome}");
        }
    }
    Ok(())
}

#[test]
fn a_restart_takes_over_the_table_without_a_change_or_a_lost_connection() -> Result<()> {
    require_root!();
    for crash in [false, true] {
        let node = Node::new()?;
        let mut scene = Scene::start(&node, &pods(), &objects())?;
        enforced(&scene)?;
        let client = &scene.pods["shop/client"].netns;
        let stream = Stream::open(client, Protocol::Tcp, service(Family::V6), INTERVAL)?;
        let web = scene.pod("closed/web").at(Family::V4, 80);
        let denied = Hammer::start(client, Protocol::Udp, web, SHORT, INTERVAL)?;
        let allowed = Hammer::start(
            client,
            Protocol::Tcp,
            service(Family::V4),
            PATIENT,
            INTERVAL,
        )?;
        let before = fingerprint(&ruleset(&node.netns)?);
        if crash {
            scene.agent = restart_after(scene.agent, &node, Agent::kill)?;
        } else {
            scene.agent = restart_after(scene.agent, &node, Agent::stop)?;
        }
        let after = fingerprint(&ruleset(&node.netns)?);
        assert_eq!(before, after, "the same objects with the same handles");
        stream.flows(SOON)?;
        let (denied, allowed) = (denied.stop()?, allowed.stop()?);
        assert_eq!(denied.answered(), 0, "{denied:?}");
        assert!(
            allowed.answered() > 0 && allowed.failed() == 0,
            "{allowed:?}"
        );
        enforced(&scene)?;
    }
    Ok(())
}

/// Ends an agent and starts the next.
fn restart_after<'n>(
    agent: Agent<'n>,
    node: &'n Node,
    end: fn(Agent<'n>) -> Result<()>,
) -> Result<Agent<'n>> {
    end(agent)?;
    Agent::start(node)
}

/// netpol.md 59.
#[test]
fn without_an_agent_rules_stay_and_new_pods_are_refused() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    let Scene {
        servers: _servers,
        pods,
        agent,
        ..
    } = scene;
    agent.kill()?;
    let (web, client) = (&pods["closed/web"], &pods["shop/client"]);
    for family in Family::ALL {
        let (closed, open) = (web.at(family, 80), service(family));
        let ask = |target, limit| {
            client
                .netns
                .enter(move || tests::traffic::ask(Protocol::Tcp, target, limit))
        };
        assert!(!ask(closed, SHORT)?.is_answered());
        assert!(ask(open, PATIENT)?.is_answered());
    }
    let late = NetNs::create("late")?;
    let (code, text) = Call::new(&node, "ADD", "late", &late).error()?;
    assert_eq!(code, 11, "{text}");
    assert_eq!(
        (node.ports()?.len(), node.leases()?.len()),
        (3, 6),
        "nothing of it is left"
    );

    let agent = Agent::start(&node)?;
    Call::new(&node, "ADD", "late", &late).result()?;
    Call::new(&node, "DEL", "late", &late).silent()?;
    drop((pods, agent));
    Ok(())
}

#[test]
fn a_del_while_the_agent_is_away_is_noticed_when_it_is_back() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods(), &objects())?;
    let empty = {
        let other = Node::new()?;
        let _agent = Agent::start(&other)?;
        elements(&other)?
    };
    scene.agent.kill()?;
    scene.servers.clear();
    scene.pods.clear();
    node.manifests.write("pods", &[])?;
    node.manifests.write("objects", &[])?;
    let _agent = Agent::start(&node)?;
    assert_eq!(elements(&node)?, empty, "as on a node that never had a pod");
    Ok(())
}

/// The number of elements in each of the agent's sets and maps.
fn elements(node: &Node) -> Result<BTreeMap<String, usize>> {
    let mut counted = BTreeMap::new();
    for object in ruleset(&node.netns)? {
        for kind in ["set", "map"] {
            let Some(name) = object[kind]["name"].as_str() else {
                continue;
            };
            let elements = inspect::items(&object[kind]["elem"]).len();
            if elements > 0 {
                counted.insert(name.to_owned(), elements);
            }
        }
    }
    Ok(counted)
}

/// netpol.md 67.
#[test]
fn what_others_change_in_its_tables_is_repaired_within_a_second() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    let before: Vec<_> = names(&node)?;
    let damages: [(&str, String); 5] = [
        ("a flush of all", "flush ruleset".to_owned()),
        ("a deleted table", "delete table inet trammel".to_owned()),
        ("a deleted element", delete_elements(&node)?),
        (
            "a table put to sleep",
            "add table inet trammel { flags dormant; }".to_owned(),
        ),
        (
            "a policy of drop",
            "chain inet trammel forward { policy drop; }".to_owned(),
        ),
    ];
    for (what, script) in damages {
        inspect::nft(&node.netns, &script).context(what)?;
        eventually(SOON, || {
            let verified = scene.agent.verify()?;
            ensure!(
                verified.status.success(),
                "{}",
                command::complaint(&verified)
            );
            ensure!(names(&node)? == before, "not all objects are back");
            Ok(())
        })
        .context(what)?;
        enforced(&scene).context(what)?;
    }
    Ok(())
}

/// Kind, name and number of elements of every object: what handles and the order
/// of creation do not change.
fn names(node: &Node) -> Result<Vec<String>> {
    let mut names: Vec<_> = ruleset(&node.netns)?
        .iter()
        .filter_map(|object| {
            let (kind, object) = object.as_object()?.iter().next()?;
            let elements = inspect::items(&object["elem"]).len();
            Some(format!(
                "{kind} {} {} {elements}",
                object["family"], object["name"]
            ))
        })
        .collect();
    names.sort();
    Ok(names)
}

/// nft commands that empty every set and map of the agent that nft can flush.
fn delete_elements(node: &Node) -> Result<String> {
    let mut script = String::new();
    for object in ruleset(&node.netns)? {
        for kind in ["set", "map"] {
            let set = &object[kind];
            if set["elem"]
                .as_array()
                .is_some_and(|elements| !elements.is_empty())
            {
                let text = |key: &str| set[key].as_str().unwrap_or_default();
                let (family, table, name) = (text("family"), text("table"), text("name"));
                script += &format!("flush {kind} {family} {table} {name}\n");
            }
        }
    }
    ensure!(!script.is_empty(), "no element in any set of the agent");
    Ok(script)
}

#[test]
fn verify_tells_a_kernel_that_is_as_it_should_be() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    let verified = scene.agent.verify()?;
    assert!(verified.status.success(), "{verified:?}");
    scene.agent.json(&["verify"])?;
    Ok(())
}

#[test]
fn a_bad_manifest_concerns_only_itself() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    node.manifests
        .write_text("broken.yaml", "apiVersion: v1\nkind: [\n")?;
    node.manifests.write_text(
        "half.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\n\
         spec: {clusterIP: text, ports: [{port: 99999}]}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ignored}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: good, namespace: shop}\n\
         spec: {clusterIP: 10.96.0.11, selector: {app: web}, ports: [{port: 8000, targetPort: 80}]}\n",
    )?;
    node.manifests.write(
        "wrong",
        &[objects::policy(
            "shop/wrong",
            &json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": "300.1.2.3/8"}}]}]}),
        )],
    )?;
    scene.agent.wait()?;
    enforced(&scene)?;
    let good: SocketAddr = "10.96.0.11:8000".parse()?;
    let outcome = scene.ask("shop/client", Protocol::Tcp, good)?;
    assert_eq!(
        outcome.server(),
        Some("shop/web"),
        "the rest of its file: {outcome}"
    );
    let client = scene.pod("shop/client").at(Family::V4, 80);
    let outcome = scene.ask_for("shop/web", Protocol::Tcp, client, SHORT)?;
    assert!(
        !outcome.is_answered(),
        "a peer that cannot be read opens nothing: {outcome}"
    );

    let status = scene.agent.json(&["status"])?.to_string();
    for name in ["broken.yaml", "shop/bad", "shop/wrong"] {
        assert!(status.contains(name), "{name} is not in {status}");
    }
    std::fs::remove_file(node.manifests.dir().join("broken.yaml"))?;
    scene.agent.wait()?;
    let status = scene.agent.json(&["status"])?.to_string();
    assert!(!status.contains("broken.yaml"), "{status}");
    Ok(())
}

/// netpol.md 95.
#[test]
fn cleanup_removes_its_own_tables_and_no_others() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    inspect::nft(
        &node.netns,
        "add table inet foreign
        add chain inet foreign f { type filter hook forward priority 0; }
        add rule inet foreign f counter
        add table ip trammel-like",
    )?;
    let foreign = inspect::tables(&node.netns)?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    assert_ne!(inspect::tables(&node.netns)?, foreign);
    let Scene {
        servers: _servers,
        pods,
        agent,
        ..
    } = scene;
    agent.stop()?;
    let cleaned = agent::verb(&node, &["cleanup"])?;
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(inspect::tables(&node.netns)?, foreign);
    for family in Family::ALL {
        let target = pods["closed/web"].at(family, 80);
        let outcome = pods["shop/client"]
            .netns
            .enter(move || tests::traffic::ask(Protocol::Tcp, target, PATIENT))?;
        assert!(outcome.is_answered(), "open again: {outcome}");
    }
    let again = agent::verb(&node, &["cleanup"])?;
    assert!(again.status.success(), "{again:?}");
    Ok(())
}

#[test]
fn two_nodes_beside_each_other_know_nothing_of_each_other() -> Result<()> {
    require_root!();
    let (one, two) = (Node::new()?, Node::new()?);
    let open = Scene::start(&one, &pods(), &[])?;
    let closed = Scene::start(&two, &pods(), &[deny_all("shop"), deny_all("closed")])?;
    for family in Family::ALL {
        for (scene, answered) in [(&open, true), (&closed, false)] {
            let target = scene.pod("shop/web").at(family, 80);
            let outcome = scene.ask_for("shop/client", Protocol::Tcp, target, limit(answered))?;
            assert_eq!(outcome.is_answered(), answered, "{family}: {outcome}");
        }
    }
    Ok(())
}

#[test]
fn its_endpoints_tell_health_and_metrics() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(scene.agent.get(path)?.0, 200, "{path}");
    }
    let (status, mode) = scene.agent.get("/proxyMode")?;
    assert_eq!((status, mode.trim()), (200, "nftables"));
    let (status, metrics) = scene.agent.get("/metrics")?;
    assert_eq!(status, 200);
    assert!(
        metrics.lines().any(|line| line.starts_with("trammel_")),
        "{metrics}"
    );
    assert_eq!(scene.agent.get("/none")?.0, 404);
    Ok(())
}

#[test]
fn its_verbs_print_json_and_text_about_what_there_is() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    for (verb, names) in [
        ("status", vec![]),
        ("services", vec!["shop", "web", WEB[0], WEB[1]]),
        ("policies", vec!["closed", "deny-all"]),
    ] {
        let json = scene.agent.json(&[verb])?.to_string();
        let text = scene.agent.verb(&[verb])?;
        for name in names {
            assert!(json.contains(name), "{verb}: {name} is not in {json}");
            assert!(text.contains(name), "{verb}: {name} is not in\n{text}");
        }
    }
    Ok(())
}

#[test]
fn what_is_missing_at_the_start_is_one_line_that_names_it() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    std::fs::remove_dir(node.manifests.dir())?;
    let missing = command::output(&mut agent::run_command(&node), b"", LIMIT)?;
    assert!(!missing.status.success());
    let path = node.manifests.dir().display().to_string();
    let lines: Vec<_> = missing.stderr.lines().collect();
    assert!(
        lines.last().is_some_and(|line| line.contains(&path)),
        "{missing:?}"
    );
    std::fs::create_dir(node.manifests.dir())?;

    let run = agent::run_command(&node);
    let mut unprivileged = node.netns.command("setpriv");
    unprivileged.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
    // After "--net=... --", which node.netns.command() has already put there.
    unprivileged.args(run.get_args().skip(2));
    let refused = command::output(&mut unprivileged, b"", LIMIT)?;
    assert!(!refused.status.success());
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("NET_ADMIN"), "{refused:?}");

    let nobody = agent::verb(&node, &["status"])?;
    assert!(!nobody.status.success());
    let socket = node.socket().display().to_string();
    assert!(nobody.stderr.contains(&socket), "{nobody:?}");
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &objects())?;
    let second = command::output(&mut agent::run_command(&node), b"", LIMIT)?;
    assert!(!second.status.success());
    let socket = node.socket().display().to_string();
    assert!(second.stderr.contains(&socket), "{second:?}");
    enforced(&scene)
}

#[test]
fn an_agent_that_comes_after_the_pods_finds_them() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let early = Pod::add(&node, "closed/web")?;
    let client = Pod::add(&node, "shop/client")?;
    let _server = tests::traffic::Server::start(&early.netns, "early", &[80])?;
    let target = early.at(Family::V4, 80);
    let ask = |limit| {
        client
            .netns
            .enter(move || tests::traffic::ask(Protocol::Tcp, target, limit))
    };
    assert!(ask(PATIENT)?.is_answered(), "no agent was ever there: open");
    let manifests: Vec<_> = pods()
        .iter()
        .map(|(key, labels)| objects::pod(key, labels, &[80]))
        .collect();
    node.manifests.write("pods", &manifests)?;
    node.manifests.write("objects", &objects())?;
    let _agent = Agent::start(&node)?;
    assert!(!ask(SHORT)?.is_answered());
    Ok(())
}
