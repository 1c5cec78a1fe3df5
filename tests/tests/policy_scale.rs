//! NetworkPolicy where there is much of it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent;
use tests::api_server::ApiServer;
use tests::command::Background;
use tests::inspect::{self, ruleset};
use tests::node::{NODE_NAME, Node};
use tests::objects::{self, policy};
use tests::pod::{Family, Pod};
use tests::random::{Random, number};
use tests::scene::{Scene, ShownLog};
use tests::shop::{app, pods};
use tests::traffic::{Hammer, Outcome, PATIENT, Protocol, Server, Tally, ask, limit};
use tests::wait::eventually;
use tests::{programs, require_root};

/// However busy the machine is.
const LATEST: Duration = Duration::from_secs(60);

/// Web is open to front, wherever it is, on port 80.
fn web_for_front() -> Value {
    policy(
        "shop/web",
        &json!({"podSelector": {"matchLabels": app("web")}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": app("front")}, "namespaceSelector": {}}],
                "ports": [{"port": 80}]}]}),
    )
}

/// Three pods on a node whose agent watches an API server, with a client on a denied and one
/// on an allowed cell. Its parts end in the order of the fields.
struct Cluster<'n> {
    clients: Option<[Hammer; 2]>,
    servers: Vec<Server>,
    pods: Vec<Pod<'n>>,
    _agent: Background,
    _log: ShownLog,
    api: ApiServer,
    node: &'n Node,
}

impl<'n> Cluster<'n> {
    fn start(node: &'n Node) -> Result<Self> {
        let api = ApiServer::start(&node.netns)?;
        let kubeconfig = node.dir().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig())?;
        api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}))?;
        for namespace in ["shop", "lab"] {
            api.put(&objects::namespace(namespace, &json!({})))?;
        }
        for (key, labels) in pods() {
            api.put(&objects::pod(key, &labels, &[80]))?;
        }
        api.put(&web_for_front())?;
        let log = node.dir().join("agent.log");
        let mut command = node.netns.command(programs::agent());
        command
            .args(["run", "--node-name", NODE_NAME, "--verdict-log", "off"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--socket")
            .arg(node.socket());
        let agent = Background::spawn(&command, &log)?;
        let mut cluster = Self {
            clients: None,
            servers: Vec::new(),
            pods: Vec::new(),
            _agent: agent,
            _log: ShownLog::of(&log),
            api,
            node,
        };
        eventually(LATEST, || cluster.wait())?;
        for (key, _) in pods() {
            let pod = Pod::add(node, key)?;
            cluster.servers.push(Server::start(&pod.netns, key, &[80])?);
            cluster.pods.push(pod);
        }
        let pause = Duration::from_millis(5);
        let target = cluster.pods[0].at(Family::V4, 80);
        let hammer =
            |pod: &Pod<'_>, limit| Hammer::start(&pod.netns, Protocol::Tcp, target, limit, pause);
        cluster.clients = Some([
            hammer(&cluster.pods[2], Duration::from_millis(30))?,
            hammer(&cluster.pods[1], PATIENT)?,
        ]);
        Ok(cluster)
    }

    fn wait(&self) -> Result<()> {
        let output = agent::verb(self.node, &["wait", "--timeout", "10s"])?;
        ensure!(output.status.success(), "{}", output.stderr);
        Ok(())
    }

    /// From web to front.
    fn to_front(&self, limit: Duration) -> Result<Outcome> {
        let target = self.pods[1].at(Family::V6, 80);
        self.pods[0]
            .netns
            .enter(move || ask(Protocol::Tcp, target, limit))
    }

    /// The clients end: nothing was open, nothing was cut.
    fn judge(&mut self) -> Result<()> {
        let clients = self.clients.take().context("they end once")?;
        let [denied, allowed]: [Tally; 2] = {
            let [denied, allowed] = clients;
            [denied.stop()?, allowed.stop()?]
        };
        ensure!(denied.answered() == 0 && denied.failed() > 0, "{denied:?}");
        ensure!(
            allowed.failed() == 0 && allowed.answered() > 0,
            "{allowed:?}"
        );
        Ok(())
    }
}

/// A pod of another node.
fn remote(number: usize, is_peer: bool) -> Value {
    let labels = app(if is_peer { "front" } else { "other" });
    let mut pod = objects::pod(&format!("lab/remote-{number}"), &labels, &[80]);
    pod["spec"]["nodeName"] = "n2".into();
    pod["status"]["podIPs"] = json!([{"ip": address(number)}]);
    pod
}

fn address(number: usize) -> String {
    format!("10.99.{}.{}", number / 250, number % 250 + 1)
}

/// The addresses of remote pods in the kernel.
fn peers(node: &Node) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for object in ruleset(&node.netns)? {
        for element in inspect::items(&object["set"]["elem"]) {
            let value = match element.get("elem") {
                Some(element) => &element["val"],
                None => element,
            };
            found.extend(
                value
                    .as_str()
                    .filter(|ip| ip.starts_with("10.99."))
                    .map(str::to_owned),
            );
        }
    }
    Ok(found)
}

/// netpol.md 65: all that has changed while the API server was away comes at once.
#[test]
fn ten_thousand_changes_at_once_leave_no_gap() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    let remotes = 2_500;
    for number in 0..remotes {
        cluster.api.put(&remote(number, number % 2 == 0))?;
    }
    eventually(LATEST, || {
        ensure!(
            peers(&node)?.len() == remotes / 2,
            "{} peers",
            peers(&node)?.len()
        );
        Ok(())
    })?;
    let front_closed = policy(
        "shop/front",
        &json!({"podSelector": {"matchLabels": app("front")}}),
    );
    for is_forgotten in [false, true] {
        cluster.api.go_away();
        for round in 0..4 {
            for number in 0..remotes {
                let is_peer = (number + round + usize::from(is_forgotten)) % 2 == 0;
                cluster.api.put(&remote(number, is_peer))?;
            }
        }
        match is_forgotten {
            false => cluster.api.put(&front_closed)?,
            true => {
                cluster.api.delete(&front_closed)?;
                cluster.api.forget();
            }
        }
        cluster.api.come_back();
        eventually(LATEST, || {
            let outcome = cluster.to_front(limit(is_forgotten))?;
            ensure!(outcome.is_answered() == is_forgotten, "{outcome}");
            Ok(())
        })?;
        let first = 3 + usize::from(is_forgotten);
        let expected: BTreeSet<_> = (0..remotes)
            .filter(|number| (number + first) % 2 == 0)
            .map(address)
            .collect();
        eventually(LATEST, || {
            ensure!(peers(&node)? == expected, "the peers are not those of now");
            Ok(())
        })?;
    }
    cluster.judge()
}

/// netpol.md 79: thousands of pods, a hundred changes a second. `TRAMMEL_CHURN` says for how
/// many seconds.
#[test]
fn under_churn_the_agent_keeps_up() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut cluster = Cluster::start(&node)?;
    let mut random = Random::of_run("TRAMMEL_CHURN_SEED");
    let mut is_peer: Vec<Option<bool>> = vec![Some(true); 2_000];
    for number in 0..is_peer.len() {
        cluster.api.put(&remote(number, true))?;
    }
    let started = Instant::now();
    for second in 0..number("TRAMMEL_CHURN", 6) {
        for _ in 0..100 {
            let number = random.below(is_peer.len());
            let next = [None, Some(false), Some(true)][random.below(3)];
            match (is_peer[number], next) {
                (Some(was), None) => cluster.api.delete(&remote(number, was))?,
                (None, None) => {}
                (_, Some(is)) => cluster.api.put(&remote(number, is))?,
            }
            is_peer[number] = next;
        }
        let due = started + Duration::from_secs(second + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let expected: BTreeSet<_> = (0..is_peer.len())
        .filter(|number| is_peer[*number] == Some(true))
        .map(address)
        .collect();
    eventually(LATEST, || {
        ensure!(peers(&node)? == expected, "the peers are not those of now");
        Ok(())
    })?;
    cluster.judge()?;
    let verified = agent::verb(&node, &["verify"])?;
    ensure!(verified.status.success(), "{}", verified.stdout);
    Ok(())
}

/// Default deny, DNS and the pods of the namespace, in that many namespaces.
fn templates(namespaces: usize) -> Vec<Value> {
    let of_namespace = |number: usize| {
        let name = match number {
            0 => "shop".to_owned(),
            1 => "lab".to_owned(),
            number => format!("team-{number}"),
        };
        let policy = |kind: &str, spec: Value| policy(&format!("{name}/{kind}"), &spec);
        let dns = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {"matchLabels": {"team": "dns"}}}],
                "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}]});
        let own = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {}}]}], "egress": [{"to": [{"podSelector": {}}]}]});
        let mut all = vec![
            objects::deny_all(&name),
            policy("dns", dns),
            policy("own", own),
        ];
        if number > 1 {
            all.insert(0, objects::namespace(&name, &json!({"team": name})));
        }
        all
    };
    (0..namespaces).flat_map(of_namespace).collect()
}

/// netpol.md 81: chains are of the groups of this node's pods, not of policies.
#[test]
fn policies_of_other_namespaces_make_no_chains() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &templates(10))?;
    let chains = || -> Result<usize> {
        let objects = ruleset(&node.netns)?;
        Ok(objects
            .iter()
            .filter(|object| object["chain"].is_object())
            .count())
    };
    let with_ten = chains()?;
    node.manifests.write("objects", &templates(1_000))?;
    eventually(LATEST, || scene.agent.wait())?;
    let status = scene.agent.json(&["status"])?;
    assert_eq!(status["policies"], 3_000);
    // A group for each direction and namespace with pods.
    assert_eq!(status["policy"]["groups"], 4);
    assert_eq!(chains()?, with_ten);
    for (from, to, passes) in [
        ("shop/front", "shop/web", true),
        ("shop/front", "lab/probe", false),
        ("lab/probe", "shop/web", false),
    ] {
        let target = scene.pod(to).at(Family::V6, 80);
        let outcome = scene.ask_for(from, Protocol::Tcp, target, limit(passes))?;
        assert_eq!(outcome.is_answered(), passes, "{from} {to}: {outcome}");
    }
    Ok(())
}

/// netpol.md 83: a hundred thousand addresses, in as many policies as the API's limit makes of
/// them.
#[test]
fn a_hundred_thousand_blocks_are_a_list_like_any_other() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let outside: std::net::Ipv4Addr = tests::node::OUTSIDE_IPS[0].parse()?;
    // No two are neighbours that could become one, and none is the address outside.
    let first = u32::from(std::net::Ipv4Addr::new(11, 0, 0, 1));
    let blocks = |policy: u32, more: Option<std::net::Ipv4Addr>| -> Vec<Value> {
        let addresses =
            (0..2_500).map(|i| std::net::Ipv4Addr::from(first + 4 * (policy * 2_500 + i)));
        let block = |ip| json!({"ipBlock": {"cidr": format!("{ip}/32")}});
        addresses.chain(more).map(block).collect()
    };
    let spec = |policy: u32, more| json!({"podSelector": {"matchLabels": app("web")}, "ingress": [{"from": blocks(policy, more)}]});
    let lists = |more| -> Vec<Value> {
        (0..40)
            .map(|number| {
                let more = if number == 17 { more } else { None };
                policy(&format!("shop/list-{number}"), &spec(number, more))
            })
            .collect()
    };
    let web = scene.pod("shop/web").at(Family::V4, 80);
    for more in [None, Some(outside), None] {
        node.manifests.write("objects", &lists(more))?;
        eventually(LATEST, || scene.agent.wait())?;
        let outcome = scene.ask_for(
            tests::scene::OUTSIDE,
            Protocol::Tcp,
            web,
            limit(more.is_some()),
        )?;
        assert_eq!(outcome.is_answered(), more.is_some(), "{outcome}");
    }
    assert!(scene.agent.verify()?.status.success());
    Ok(())
}

/// netpol.md 84: an agent that nobody tells anything does next to nothing.
#[test]
fn an_idle_agent_needs_hardly_any_time_of_the_processor() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &templates(100))?;
    let spent = || -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", scene.agent.pid()))?;
        let (_, fields) = stat.rsplit_once(')').context("a name in parentheses")?;
        // utime and stime, the 14th and 15th, in ticks of 10 ms.
        let fields: Vec<_> = fields.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    // Not before it has done what is put off until after a sync.
    eventually(LATEST, || {
        let before = spent()?;
        std::thread::sleep(Duration::from_secs(5));
        let ticks = spent()? - before;
        ensure!(ticks < 15, "{ticks} of 500 ticks");
        Ok(())
    })?;
    Ok(())
}
