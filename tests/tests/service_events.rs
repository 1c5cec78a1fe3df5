//! Services and policies on a Kubernetes API: what is wrong with them as Events, and ranges of
//! cluster IPs.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::agent;
use tests::api_server::ApiServer;
use tests::command::Background;
use tests::inspect::ruleset;
use tests::node::{NODE_NAME, Node};
use tests::objects;
use tests::programs;
use tests::require_root;
use tests::wait::{SOON, eventually};

/// A node whose agent watches an API server.
struct Cluster<'n> {
    _agent: Background,
    api: ApiServer,
    node: &'n Node,
}

impl<'n> Cluster<'n> {
    fn start(node: &'n Node, objects: &[Value]) -> Result<Self> {
        let api = ApiServer::start(&node.netns)?;
        let kubeconfig = node.dir().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig())?;
        for object in objects {
            api.put(object)?;
        }
        let mut command = node.netns.command(programs::agent());
        command
            .args(["run", "--node-name", NODE_NAME, "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--socket")
            .arg(node.socket());
        let agent = Background::spawn(&command, &node.dir().join("agent.log"))?;
        let cluster = Self {
            _agent: agent,
            api,
            node,
        };
        eventually(SOON, || {
            let output = agent::verb(node, &["wait", "--timeout", "10s"])?;
            ensure!(output.status.success(), "{}", output.stderr);
            Ok(())
        })?;
        Ok(cluster)
    }

    /// The Events about an object of that name.
    fn events(&self, name: &str) -> Vec<Value> {
        let mut events = self.api.events();
        events.retain(|event| event["regarding"]["name"] == name);
        events
    }

    fn event(&self, name: &str) -> Result<Value> {
        let (event, _) = eventually(SOON, || {
            self.events(name).pop().with_context(|| {
                let log = fs::read_to_string(self.node.dir().join("agent.log"));
                format!("no Event of {name}\n{}", log.unwrap_or_default())
            })
        })?;
        Ok(event)
    }
}

fn service(name: &str, created: &str) -> Value {
    let ips = ["10.96.0.10", "fd96::10"];
    let mut service = objects::service(&format!("shop/{name}"), ips, &json!({}), &[(80, 80)]);
    service["metadata"]["creationTimestamp"] = created.into();
    service
}

/// services.md 65.
#[test]
fn the_loser_of_a_contested_address_gets_an_event_and_a_bad_object_too() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let mut bad = service("bad", "2026-01-03T00:00:00Z");
    bad["spec"]["sessionAffinity"] = "Sometimes".into();
    let older = service("older", "2026-01-01T00:00:00Z");
    let younger = service("younger", "2026-01-02T00:00:00Z");
    let cluster = Cluster::start(&node, &[older.clone(), younger, bad])?;
    let event = cluster.event("younger")?;
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "ServiceNotServed");
    assert_eq!(event["reportingInstance"], NODE_NAME);
    assert_eq!(event["regarding"]["kind"], "Service");
    assert_eq!(event["regarding"]["namespace"], "shop");
    assert_eq!(event["regarding"]["uid"], tests::pod::uid("shop/younger"));
    let note = event["note"].as_str().unwrap_or_default();
    assert!(
        note.contains("shop/older") && note.contains("10.96.0.10:80/TCP"),
        "{note}"
    );
    let note = cluster.event("bad")?["note"].to_string();
    assert!(
        note.contains("sessionAffinity") && note.contains("Sometimes"),
        "{note}"
    );
    assert_eq!(cluster.events("older"), Vec::<Value>::new());

    // It is told when it comes up, not at each sync.
    for number in 0..3 {
        let name = format!("news-{number}");
        cluster.api.put(&objects::namespace(&name, &json!({})))?;
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(
        cluster.events("younger").len(),
        1,
        "{:#?}",
        cluster.events("younger")
    );
    // The heir complains no more; one that loses again does.
    cluster.api.delete(&older)?;
    eventually(SOON, || {
        let status = agent::verb(&node, &["status"])?.stdout;
        ensure!(!status.contains("shop/younger"), "{status}");
        Ok(())
    })?;
    Ok(())
}

/// A scheduler that no rule can be, and a weight that is none: of the Service, as its endpoint
/// has no weight but for its scheduler.
#[test]
fn schedulers_and_weights_that_cannot_be_served_get_events() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let scheduled = |name: &str, ip: &str, scheduler: &str| {
        let mut service = service(name, "2026-01-01T00:00:00Z");
        service["metadata"]["annotations"] = json!({"trammel.io/scheduler": scheduler});
        service["spec"]["clusterIP"] = ip.into();
        service["spec"]["clusterIPs"] = json!([ip]);
        service["spec"]["ipFamilies"] = json!(["IPv4"]);
        service["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        service
    };
    let weighing = |weight: &str| {
        let mut pod = objects::pod("shop/web-0", &json!({"app": "web"}), &[80]);
        pod["metadata"]["annotations"] = json!({"trammel.io/weight": weight});
        pod
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": "weighted-1",
            "labels": {"kubernetes.io/service-name": "weighted"}},
        "endpoints": [{"addresses": ["10.99.0.1"], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0"}}],
        "ports": [{"name": "tcp-80", "port": 80, "protocol": "TCP"}],
    });
    let cluster = Cluster::start(
        &node,
        &[
            objects::namespace("shop", &json!({})),
            scheduled("least", "10.96.0.11", "lc"),
            scheduled("weighted", "10.96.0.12", "wrr"),
            slice,
            weighing("heavy"),
        ],
    )?;
    for (name, texts) in [
        ("least", ["\"lc\"", "use random, rr, wrr, sh or mh"]),
        ("weighted", ["10.99.0.1:80", "trammel.io/weight: \"heavy\""]),
    ] {
        let event = cluster.event(name)?;
        assert_eq!(event["reason"], "ServiceNotServed", "{event:#}");
        let note = event["note"].as_str().unwrap_or_default();
        for text in texts {
            ensure!(note.contains(text), "{text}: {note}");
        }
    }
    cluster.api.put(&weighing("7"))?;
    eventually(SOON, || {
        let status = agent::verb(&node, &["status"])?.stdout;
        ensure!(!status.contains("shop/weighted"), "{status}");
        let services = agent::verb(&node, &["services"])?.stdout;
        ensure!(services.contains("ready weight 7"), "{services}");
        Ok(())
    })?;
    Ok(())
}

/// What is wrong with a policy is told as an Event of it, whatever is wrong.
#[test]
fn policies_that_are_not_carried_out_as_written_get_events() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let ingress = |from: Value| json!({"podSelector": {}, "ingress": [{"from": [from]}]});
    let domain = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "egress": [{"action": "Accept", "to": [{"domainNames": ["example.com"]}]}]});
    let cluster = Cluster::start(
        &node,
        &[
            objects::namespace("shop", &json!({})),
            objects::policy(
                "shop/bad",
                &ingress(json!({"ipBlock": {"cidr": "10.0.0.0/40"}})),
            ),
            objects::policy(
                "shop/host",
                &ingress(json!({"ipBlock": {"cidr": "10.1.2.3/8"}})),
            ),
            objects::policy("shop/fine", &ingress(json!({"podSelector": {}}))),
            objects::cluster_policy("domain", &domain),
        ],
    )?;
    for (name, kind, reason, text) in [
        ("bad", "NetworkPolicy", "PolicyPartlyIgnored", "10.0.0.0/40"),
        (
            "host",
            "NetworkPolicy",
            "PolicyProbablyMistaken",
            "10.1.2.3/8",
        ),
        (
            "domain",
            "ClusterNetworkPolicy",
            "PolicyFailsClosed",
            "domainNames",
        ),
    ] {
        let event = cluster.event(name)?;
        assert_eq!(event["regarding"]["kind"], kind, "{event:#}");
        assert_eq!(event["reason"], reason, "{event:#}");
        let note = event["note"].as_str().unwrap_or_default();
        assert!(note.contains(text), "{note}");
    }
    assert_eq!(cluster.events("fine"), Vec::<Value>::new());
    Ok(())
}

/// services.md 10.
#[test]
fn ranges_of_cluster_ips_follow_the_service_cidrs() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let cidr = |name: &str, cidrs: &[&str]| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": name}, "spec": {"cidrs": cidrs}})
    };
    let first = cidr("kubernetes", &["10.96.0.0/16", "fd96::/112"]);
    let cluster = Cluster::start(&node, &[first])?;
    let ranges = |expected: &[&str]| -> Result<()> {
        let objects = ruleset(&node.netns)?;
        let text = |set: &str| -> Result<String> {
            let object = objects.iter().find(|object| object["set"]["name"] == set);
            Ok(object.with_context(|| format!("no {set}"))?["set"]["elem"].to_string())
        };
        let found = format!("{}{}", text("service-cidrs4")?, text("service-cidrs6")?);
        for range in expected {
            ensure!(
                found.contains(&format!("\"addr\":\"{range}\"")),
                "{range}: {found}"
            );
        }
        let count = found.matches("\"prefix\"").count();
        ensure!(count == expected.len(), "{found}");
        Ok(())
    };
    ranges(&["10.96.0.0", "fd96::"])?;
    let second = cidr("more", &["10.112.0.0/24"]);
    cluster.api.put(&second)?;
    eventually(SOON, || ranges(&["10.96.0.0", "fd96::", "10.112.0.0"]))?;
    cluster.api.delete(&second)?;
    eventually(SOON, || ranges(&["10.96.0.0", "fd96::"]))?;
    Ok(())
}
