//! NetworkPolicy while things change: a denied cell that is hammered never succeeds, an
//! allowed one never fails.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::node::Node;
use tests::objects::{self, deny_all, policy};
use tests::pod::{Family, Pod};
use tests::random::number;
use tests::require_root;
use tests::scene::Scene;
use tests::shop::{app, pods, web_for_front};
use tests::traffic::{Hammer, PATIENT, Protocol, SHORT, Stream, limit};
use tests::wait::SOON;

const PAUSE: Duration = Duration::from_millis(1);

/// Hammers on the denied and the allowed cells of [`web_for_front`], in both families.
struct Monitor {
    denied: Vec<Hammer>,
    allowed: Vec<Hammer>,
}

impl Monitor {
    fn start(scene: &Scene<'_>) -> Result<Self> {
        let mut monitor = Self {
            denied: Vec::new(),
            allowed: Vec::new(),
        };
        for family in Family::ALL {
            let web = scene.pod("shop/web").at(family, 80);
            let other_port = scene.pod("shop/web").at(family, 81);
            let hammer = |from: &str, target, limit| {
                let netns = &scene.pod(from).netns;
                Hammer::start(netns, Protocol::Tcp, target, limit, PAUSE)
            };
            monitor.denied.push(hammer("lab/probe", web, SHORT)?);
            monitor
                .denied
                .push(hammer("shop/front", other_port, SHORT)?);
            monitor.allowed.push(hammer("shop/front", web, PATIENT)?);
        }
        Ok(monitor)
    }

    /// Ends it: not one success where it is denied, not one failure where it is allowed.
    fn finish(self) -> Result<()> {
        for hammer in self.denied {
            let tally = hammer.stop()?;
            assert_eq!(tally.answered(), 0, "denied: {tally:?}");
            assert!(tally.failed() > 0, "nothing was tried: {tally:?}");
        }
        for hammer in self.allowed {
            let tally = hammer.stop()?;
            assert_eq!(tally.failed(), 0, "allowed: {tally:?}");
            assert!(
                tally.answered() > 10,
                "hardly anything was tried: {tally:?}"
            );
        }
        Ok(())
    }
}

/// netpol.md 49 and the never-open monitor: 1,000 changes that do not concern the two
/// cells, among them some that raise the generation.
#[test]
fn a_thousand_changes_for_others_open_nothing_and_lose_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web_for_front()])?;
    let web = scene.pod("shop/web").at(Family::V4, 80);
    let front = &scene.pod("shop/front").netns;
    let interval = Duration::from_millis(5);
    let tcp = Stream::open(front, Protocol::Tcp, web, interval)?;
    let generation = || -> Result<u64> {
        let status = scene.agent.json(&["status"])?;
        status["policyGeneration"].as_u64().context("a generation")
    };
    let before = generation()?;
    let monitor = Monitor::start(&scene)?;
    let changes = number("TRAMMEL_CHANGES", 1000);
    // Some changes a sync, so that the whole takes seconds: each of them is a write.
    for change in 0..changes {
        let rules = json!([{"ports": [{"port": 1 + change}]}]);
        let spec = json!({"podSelector": {"matchLabels": app("probe")}, "ingress": rules});
        node.manifests
            .write("other", &[policy("lab/probe", &spec)])?;
        if change % 50 == 0 {
            scene.agent.wait()?;
        }
    }
    scene.agent.wait()?;
    monitor.finish()?;
    tcp.flows(SOON).context("a live flow")?;
    assert!(generation()? > before, "the changes were judged to narrow");
    Ok(())
}

/// netpol.md 41 to 45, 54: relabels, updates, deletions in any order, judged by the never-open
/// monitor throughout.
#[test]
fn whatever_changes_the_denied_never_pass_and_the_allowed_never_fail() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web_for_front(), deny_all("void")])?;
    let monitor = Monitor::start(&scene)?;
    let mut relabelled = pods();
    for round in 0..number("TRAMMEL_ROUNDS", 12) {
        // The pods' other labels, the namespaces' labels, other policies on the same pods that
        // only add what does not concern the cells, and the objects' order of arrival.
        relabelled[1].1["round"] = json!(round.to_string());
        relabelled[2].1["round"] = json!(round.to_string());
        scene.apply_pods(&relabelled)?;
        let more = policy(
            "shop/more",
            &json!({"podSelector": {}, "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]},
                {"from": [{"podSelector": {"matchLabels": app("front")}}], "ports": [{"port": 80}]}]}),
        );
        let narrower = policy(
            "shop/web",
            &json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In",
                "values": ["web"]}]}, "policyTypes": ["Ingress"]}),
        );
        scene.apply(&[more.clone(), web_for_front()])?;
        scene.apply(&[more, narrower])?;
        scene.apply(&[web_for_front()])?;
        node.manifests.write(
            "late",
            &[objects::namespace("late", &json!({"team": "lab"}))],
        )?;
        scene.agent.wait()?;
        node.manifests.remove("late")?;
        scene.agent.wait()?;
    }
    monitor.finish()
}

/// netpol.md 62: the agent is killed under load and comes back, again and again.
#[test]
fn an_agent_that_is_killed_opens_nothing_and_cuts_nothing() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut scene = Scene::start(&node, &pods(), &[web_for_front()])?;
    let front = &scene.pod("shop/front").netns;
    let target = scene.pod("shop/web").at(Family::V6, 80);
    let live = Stream::open(front, Protocol::Tcp, target, Duration::from_millis(5))?;
    let monitor = Monitor::start(&scene)?;
    for round in 0..number("TRAMMEL_KILLS", 8) {
        // In the middle of something: it has just been told of a change.
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {}}]}, {"ports": [{"port": 1 + round}]}]});
        node.manifests
            .write("other", &[policy("shop/more", &spec)])?;
        scene.agent.kill()?;
        scene.agent = Agent::start(&node)?;
    }
    monitor.finish()?;
    live.flows(SOON).context("a flow older than the agent")?;
    assert!(scene.agent.verify()?.status.success());
    Ok(())
}

/// netpol.md 48: what matters is who began, not which way the bytes go.
#[test]
fn a_download_is_cut_as_soon_as_its_client_may_not_begin_it() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let target = scene.pod("shop/web").at(Family::V4, 80);
    let probe = &scene.pod("lab/probe").netns;
    let stream = Stream::open(probe, Protocol::Tcp, target, Duration::from_millis(2))?;
    let no_egress = policy(
        "lab/probe",
        &json!({"podSelector": {}, "policyTypes": ["Egress"]}),
    );
    scene.apply(&[no_egress])?;
    stream.wait_for_cut()?;
    Ok(())
}

/// netpol.md 51 to 53: an address has one identity, that of who holds it now.
#[test]
fn a_reused_address_has_the_new_pods_identity_only() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[web_for_front()])?;
    let range = json!({"ipam": {"ranges": [
        [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.200", "rangeEnd": "10.88.0.200"}],
        [{"subnet": "fd88::/64", "rangeStart": "fd88::200", "rangeEnd": "fd88::200"}],
    ]}});
    node.write_conflist(&node.conflist(range))?;
    let web = scene.pod("shop/web");
    let job = |key: &str, labels: &Value, phase: &str, ips: &[String]| {
        let mut pod = objects::pod(key, labels, &[80]);
        pod["status"]["phase"] = phase.into();
        pod["status"]["podIPs"] = ips.iter().map(|ip| json!({"ip": ip})).collect();
        pod
    };
    let reaches = |netns: &tests::netns::NetNs, expected: bool| -> Result<bool> {
        let mut answers = Vec::new();
        for family in Family::ALL {
            let target = web.at(family, 80);
            let ask = move || tests::traffic::ask(Protocol::Tcp, target, limit(expected));
            answers.push(netns.enter(ask)?.is_answered());
        }
        assert_eq!(answers[0], answers[1], "both families alike");
        Ok(answers[0])
    };

    node.manifests
        .write("job", &[job("shop/job-1", &app("front"), "Running", &[])])?;
    scene.agent.wait()?;
    let first = Pod::add(&node, "shop/job-1")?;
    let ips: Vec<_> = first.ips().iter().map(ToString::to_string).collect();
    assert!(
        reaches(&first.netns, true)?,
        "a job with the label of a peer"
    );
    first.del()?;

    // The job is done and keeps its address in its status; another pod gets it.
    let done = job("shop/job-1", &app("front"), "Succeeded", &ips);
    let other = job("shop/other", &app("other"), "Running", &[]);
    node.manifests.write("job", &[done.clone(), other])?;
    scene.agent.wait()?;
    let second = Pod::add(&node, "shop/other")?;
    assert_eq!(second.ips(), first.ips(), "the address is used again");
    assert!(!reaches(&second.netns, false)?, "it is not the job");
    second.del()?;

    // The same name with other labels, and the same address.
    let again = job("shop/other", &app("front"), "Running", &[]);
    node.manifests.write("job", &[done, again])?;
    scene.agent.wait()?;
    let third = Pod::add(&node, "shop/other")?;
    assert!(reaches(&third.netns, true)?, "it has the label now");
    third.del()?;

    // The address turns up on another node, as a pod that is no peer.
    let mut elsewhere = job("shop/far", &app("other"), "Running", &ips);
    elsewhere["spec"]["nodeName"] = "n2".into();
    node.manifests.write("job", &[elsewhere])?;
    scene.agent.wait()?;
    let sets = node
        .netns
        .command("nft")
        .args(["-j", "list", "ruleset"])
        .output()?;
    let listed = String::from_utf8(sets.stdout)?;
    assert!(!listed.contains(&ips[0]), "nothing is left of {}", ips[0]);
    Ok(())
}

/// netpol.md 56, 58: its first packet, and that of an init container, is judged: the pod is
/// closed before anything runs in it.
#[test]
fn new_pods_are_closed_from_their_first_packet_on() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[deny_all("shop")])?;
    let count = number("TRAMMEL_NEW_PODS", 20);
    let names: Vec<_> = (0..count)
        .map(|number| format!("shop/new-{number}"))
        .collect();
    let mut all = pods();
    all.extend(names.iter().map(|name| (name.as_str(), app("new"))));
    scene.apply_pods(&all)?;
    let target = scene.pod("lab/probe").at(Family::V4, 80);
    for name in &names {
        let pod = Pod::add(&node, name)?;
        for protocol in Protocol::ALL {
            let ask = move || tests::traffic::ask(protocol, target, Duration::from_millis(30));
            let outcome = pod.netns.enter(ask)?;
            assert!(!outcome.is_answered(), "{name}: {outcome}");
        }
        pod.del()?;
    }
    assert!(scene.servers["lab/probe"].seen().is_empty());
    Ok(())
}

/// netpol.md 66: one policy that cannot be compiled closes its own pods in its direction, and
/// says so; the others are carried out.
#[test]
fn a_policy_that_is_not_understood_closes_its_own_pods_only() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scene = Scene::start(&node, &pods(), &[])?;
    let bad = [
        json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}]),
        json!([{"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]}]),
        json!([{"ports": [{"port": 90, "endPort": 80}]}]),
    ];
    for (i, ingress) in bad.into_iter().enumerate() {
        let spec = json!({"podSelector": {"matchLabels": app("web")}, "ingress": ingress});
        let lab = policy(
            "lab/open",
            &json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}),
        );
        scene.apply(&[policy("shop/bad", &spec), lab])?;
        let asks = [
            ("lab/probe", "shop/web", 80, false),
            ("shop/web", "lab/probe", 80, true),
            ("shop/web", "lab/probe", 81, false),
            ("lab/probe", "shop/front", 81, true),
        ];
        for (from, to, port, passes) in asks {
            let target = scene.pod(to).at(Family::V4, port);
            let outcome = scene.ask_for(from, Protocol::Tcp, target, limit(passes))?;
            assert_eq!(
                outcome.is_answered(),
                passes,
                "{i}: {from} to {to}: {outcome}"
            );
        }
        let problems = scene.agent.json(&["status"])?["problems"].to_string();
        assert!(problems.contains("NetworkPolicy shop/bad"), "{problems}");
        assert!(problems.contains("spec.ingress[0]"), "{problems}");
    }
    Ok(())
}
