//! What is said of whom, and that the kernel in memory agrees.

use dataplane::fake::Fake;
use dataplane::layout::INET;

use super::*;
use crate::fixture::{ask, attachment, node, snapshot};
use crate::snapshot::About;

const SHOP: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: lab, labels: {team: lab}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {nodeName: n1, containers: [{name: m, ports: [{name: http, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.88.0.2}, {ip: "fd88::2"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: front, labels: {app: front}}, spec: {nodeName: n1, containers: [{name: m}]}, status: {podIPs: [{ip: 10.88.0.3}, {ip: "fd88::3"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: lab, name: probe, labels: {app: probe}}, spec: {nodeName: n1, containers: [{name: m}]}, status: {podIPs: [{ip: 10.88.0.4}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: lab, name: far, labels: {app: front}}, spec: {nodeName: n2, containers: [{name: m}]}, status: {podIPs: [{ip: 10.99.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: lab, name: done}, spec: {nodeName: n1, containers: [{name: m}]}, status: {phase: Succeeded, podIPs: [{ip: 10.88.0.9}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: lab, name: host}, spec: {nodeName: n1, hostNetwork: true, containers: [{name: m}]}, status: {podIPs: [{ip: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: lab, name: new}, spec: {nodeName: n2, containers: [{name: m}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd96::10"], selector: {app: web}, ports: [{name: web, port: 8000, targetPort: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: empty}, spec: {clusterIP: 10.96.0.11, selector: {app: none}, ports: [{port: 8000}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: web}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: front}}}], ports: [{port: http}]}, {from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: deny}, spec: {podSelector: {}}}
"#;

/// The answer, in which the kernel agrees wherever it was asked.
fn said(from: &str, to: &str) -> Explanation {
    let answer = ask(&mut node(SHOP), from, to).expect("an answer");
    for connection in &answer.connections {
        let disagrees = matches!(connection.kernel, KernelCheck::Disagrees { .. });
        assert!(!disagrees, "{answer}");
    }
    answer
}

fn refused(from: &str, to: &str) -> String {
    let answer = ask(&mut node(SHOP), from, to);
    answer.expect_err("no answer").to_string()
}

#[test]
fn an_allowed_connection_names_its_rule_in_both_families() {
    let answer = said("shop/front", "shop/web:80");
    assert_eq!(answer.outcome, Outcome::Allowed);
    assert_eq!(answer.connections.len(), 2, "both families");
    for connection in &answer.connections {
        let ingress = connection.ingress.as_ref().expect("judged");
        assert_eq!(ingress.isolated_by, ["shop/deny", "shop/web"]);
        let by = ingress.by.as_ref().expect("a rule");
        assert_eq!((&*by.policy, &*by.field), ("shop/web", "spec.ingress[0]"));
        assert_eq!(by.text, "from pods app=front in shop; port http/TCP");
        let egress = connection.egress.as_ref().expect("judged");
        assert_eq!(egress.decision, Decision::NotIsolated);
        assert!(
            matches!(connection.kernel, KernelCheck::Agrees { .. }),
            "{answer}"
        );
    }
}

#[test]
fn a_denial_names_all_isolating_policies_and_what_nearly_matched() {
    for (from, to, field, why) in [
        (
            "shop/front",
            "shop/web:81",
            "spec.ingress[0]",
            "port http of shop/web is 80, not 81",
        ),
        (
            "shop/front",
            "shop/web:80/udp",
            "spec.ingress[0]",
            "it allows http/TCP, not UDP",
        ),
        (
            "lab/far",
            "shop/web:80",
            "spec.ingress[0]",
            "without a namespaceSelector it means pods of shop, and lab/far is not",
        ),
        (
            "192.0.2.200",
            "shop/web:80",
            "spec.ingress[1]",
            "192.0.2.200 is in 192.0.2.0/24, but in its except 192.0.2.128/25",
        ),
    ] {
        let answer = said(from, to);
        assert_eq!(answer.outcome, Outcome::Denied, "{answer}");
        let ingress = answer.connections[0].ingress.as_ref().expect("judged");
        assert_eq!(ingress.isolated_by, ["shop/deny", "shop/web"]);
        let near = ingress.nearest.as_ref().expect("a rule");
        assert_eq!(
            (near.rule.field.as_str(), &near.why[..]),
            (field, &[why.to_owned()][..])
        );
        assert!(answer.to_string().contains(why), "{answer}");
    }
    let answer = said("shop/front", "shop/front:80");
    assert_eq!(answer.outcome, Outcome::Allowed, "to itself: {answer}");
    let answer = said("lab/probe", "shop/front:80");
    let ingress = answer.connections[0].ingress.as_ref().expect("judged");
    assert_eq!(
        (&ingress.isolated_by[..], &ingress.nearest),
        (&["shop/deny".to_owned()][..], &None)
    );
}

#[test]
fn a_service_is_followed_to_each_endpoint() {
    for to in [
        "svc/shop/web:8000",
        "svc/shop/web",
        "svc/shop/web:web",
        "10.96.0.10:8000",
    ] {
        let answer = said("shop/front", to);
        assert_eq!(answer.outcome, Outcome::Allowed, "{answer}");
        let connection = &answer.connections[0];
        assert_eq!(connection.to.as_deref(), Some("shop/web"));
        assert_eq!(connection.ports, "80/TCP");
        let service = connection.service.as_ref().expect("a Service");
        assert_eq!(
            (&*service.service, service.slot, service.slots),
            ("shop/web", Some(0), 1)
        );
        let KernelCheck::Agrees { fate, .. } = &connection.kernel else {
            panic!("{answer}");
        };
        assert_eq!(fate, "passes, to 10.88.0.2:80");
    }
    let answer = said("lab/probe", "svc/shop/web:8000");
    assert_eq!(answer.outcome, Outcome::Denied);
    assert_eq!(
        answer.connections.len(),
        1,
        "the client has no IPv6 address"
    );

    let answer = said("shop/front", "svc/shop/empty:8000");
    assert_eq!(answer.outcome, Outcome::Denied);
    let service = answer.connections[0].service.as_ref().expect("a Service");
    assert!(service.how.contains("no usable endpoint"), "{answer}");
    let error = refused("shop/front", "svc/shop/web:81");
    assert_eq!(error, "Service shop/web has no such port: it has 8000/TCP");
}

#[test]
fn without_a_port_ports_are_grouped_by_what_decides() {
    let answer = said("shop/front", "shop/web");
    assert_eq!(answer.outcome, Outcome::Partly);
    let of_v4 = answer.connections.iter().filter(|c| c.source.is_ipv4());
    let groups: Vec<_> = of_v4.map(|c| (c.allowed, c.ports.as_str())).collect();
    let denied = "1-79,81-65535/TCP all UDP all SCTP ICMP and other protocols";
    assert_eq!(groups, [(false, denied), (true, "80/TCP")]);
}

#[test]
fn the_node_is_exempt_and_what_others_decide_is_said() {
    let answer = said("node", "shop/web:80");
    assert_eq!(answer.outcome, Outcome::Allowed, "{answer}");
    assert!(answer.connections[0].path.contains("exempt"));
    let answer = said("lab/host", "shop/web:80");
    assert_eq!(answer.outcome, Outcome::Allowed, "{answer}");
    assert!(answer.notes[0].contains("host network"), "{answer}");

    let answer = said("shop/front", "lab/far:80");
    assert_eq!(answer.outcome, Outcome::Allowed);
    let ingress = answer.connections[0].ingress.as_ref().expect("judged");
    assert_eq!(ingress.decided_on.as_deref(), Some("n2"));
    let answer = said("lab/far", "198.51.100.1:80");
    assert!(matches!(
        answer.connections[0].kernel,
        KernelCheck::Skipped { .. }
    ));
}

#[test]
fn nobody_and_those_without_an_address_are_told_apart() {
    assert_eq!(
        refused("shop/fron", "shop/web:80"),
        "pod shop/fron is not known: did you mean shop/front?"
    );
    let error = refused("shop/front", "svc/shop/webb");
    assert_eq!(
        error,
        "Service shop/webb is not known: did you mean shop/web?"
    );
    assert!(refused("shop/front", "lab/done:80").contains("has finished"));
    assert!(refused("shop/front", "lab/new:80").contains("has no address yet"));
    assert!(refused("shop/front", "shop/web:dns").contains("it has http"));
    assert!(refused("shop/front:80", "shop/web").contains("source port"));
    assert!(refused("svc/shop/web", "shop/web").contains("is a Service"));
}

#[test]
fn a_pod_that_is_attached_and_not_known_is_closed() {
    let mut owner = node(SHOP);
    owner.attach(attachment(
        "shop",
        "late",
        &["10.88.0.7".parse().expect("an address")],
    ));
    owner.sync().expect("synced");
    for (from, to) in [("shop/late", "lab/probe:80"), ("lab/probe", "shop/late:80")] {
        let answer = ask(&mut owner, from, to).expect("an answer");
        assert_eq!(answer.outcome, Outcome::Denied, "{answer}");
        assert!(answer.notes[0].contains("not known yet"), "{answer}");
        assert!(
            matches!(answer.connections[0].kernel, KernelCheck::Agrees { .. }),
            "{answer}"
        );
    }
}

/// The pod `shop/web` has no attachment, and is reached by that interface.
fn unattached_by(interface: &str) -> (crate::owner::Owner<Fake>, Snapshot) {
    let ips = ["10.88.0.2", "fd88::2"].map(|ip| ip.parse().expect("an address"));
    let mut owner = node(SHOP);
    owner.detach(&attachment("shop", "web", &ips).key);
    while owner.is_dirty() {
        owner.sync().expect("synced");
    }
    let mut snapshot = snapshot(&owner, &About::default());
    assert_eq!(snapshot.unattached(), ips);
    snapshot.ways = ips.map(|ip| (ip, interface.to_owned())).into();
    (owner, snapshot)
}

#[test]
fn what_another_plugin_has_attached_is_reached_past_the_policies() {
    let (mut owner, snapshot) = unattached_by("cni0");
    let live = owner.kernel_mut().ruleset();
    let ask = |from: &str, to: &str| {
        let (from, to) = (from.into(), to.into());
        explain(&snapshot, &Query { from, to }, Ok(live)).expect("an answer")
    };
    let agrees =
        |answer: &Explanation| matches!(answer.connections[0].kernel, KernelCheck::Agrees { .. });
    for from in ["lab/probe", "198.51.100.1"] {
        let answer = ask(from, "shop/web:81");
        assert_eq!(answer.outcome, Outcome::Allowed, "{answer}");
        let ingress = answer.connections[0].ingress.as_ref().expect("told");
        assert_eq!(ingress.decision, Decision::NotEnforced);
        assert_eq!(ingress.reached_by.as_deref(), Some("cni0"));
        assert_eq!(ingress.isolated_by, ["shop/deny", "shop/web"]);
        assert!(agrees(&answer), "{answer}");
        let text = answer.to_string();
        assert!(text.contains("no policy is enforced"), "{text}");
    }
    assert_eq!(ask("lab/probe", "shop/web").connections.len(), 1);
    // The other side's policies are, and to them it is what it is.
    let answer = ask("shop/web", "shop/front:80");
    assert_eq!(answer.outcome, Outcome::Denied, "{answer}");
    assert!(agrees(&answer), "{answer}");
    let answer = ask("shop/web", "lab/probe:80");
    assert_eq!(answer.outcome, Outcome::Allowed, "{answer}");
    assert!(agrees(&answer), "{answer}");

    let matrix = crate::matrix::matrix(&snapshot, "shop").expect("a namespace");
    assert_eq!(matrix.not_enforced, ["shop/web: reached by cni0"]);
    let cells: Vec<_> = matrix.cells.iter().map(crate::matrix::Cell::text).collect();
    assert_eq!(cells, ["everything", "nothing"], "front, web");
    assert!(matrix.to_string().contains("no policy is enforced"));
    let found = crate::lint::lint(&snapshot, None);
    let found = found.iter().filter(|f| f.code == "selects-other-plugin");
    let found: Vec<_> = found.map(|f| f.object.as_str()).collect();
    assert_eq!(found, ["NetworkPolicy shop/deny", "NetworkPolicy shop/web"]);
}

#[test]
fn what_another_plugin_has_attached_to_our_bridge_is_under_the_policies() {
    let (mut owner, snapshot) = unattached_by("cbr0");
    let live = owner.kernel_mut().ruleset();
    let query = Query {
        from: "lab/probe".into(),
        to: "shop/web:81".into(),
    };
    let answer = explain(&snapshot, &query, Ok(live)).expect("an answer");
    assert_eq!(answer.outcome, Outcome::Denied, "{answer}");
    let matrix = crate::matrix::matrix(&snapshot, "shop").expect("a namespace");
    assert!(matrix.not_enforced.is_empty());
}

#[test]
fn a_kernel_that_does_otherwise_is_the_answer() {
    let mut owner = node(SHOP);
    owner.kernel_mut().tamper(|ruleset| {
        let table = ruleset.tables.get_mut(&*INET).expect("ours");
        for (name, chain) in &mut table.chains {
            if name.as_str().starts_with("ingress-") {
                chain.rules.clear();
            }
        }
    });
    let answer = ask(&mut owner, "shop/front", "shop/web:80").expect("an answer");
    assert_eq!(answer.outcome, Outcome::Disagreement, "{answer}");
    assert!(answer.to_string().contains("DISAGREES"), "{answer}");
}

/// netpol.md 92: what an audited policy would deny is allowed, and said.
#[test]
fn an_audited_policy_is_named_and_denies_nothing() {
    let audited = SHOP.replace(
        "kind: NetworkPolicy, metadata: {",
        "kind: NetworkPolicy, metadata: {annotations: {trammel.io/audit: \"true\"}, ",
    );
    let tier = r#"
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: try, annotations: {trammel.io/audit: "true"}}, spec: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: lab}}}]}]}}
"#;
    let audited = audited + tier;
    let answer = ask(&mut node(&audited), "lab/probe", "shop/web:80").expect("an answer");
    assert_eq!(answer.outcome, Outcome::Allowed, "{answer}");
    let ingress = answer.connections[0].ingress.as_ref().expect("judged");
    assert_eq!(ingress.decision, Decision::NotIsolated);
    let all = ["shop/deny", "shop/web", "Baseline try"];
    assert_eq!(ingress.audited, all);
    assert_eq!(ingress.would_be_denied_by, all);
    assert!(ingress.audit_would_deny);
    assert!(
        matches!(answer.connections[0].kernel, KernelCheck::Agrees { .. }),
        "{answer}"
    );
}
