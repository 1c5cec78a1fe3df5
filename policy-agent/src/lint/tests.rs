use super::*;
use crate::fixture::{node, snapshot};
use crate::snapshot::About;

const PODS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: lab, labels: {team: lab}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {nodeName: n1, containers: [{name: m, ports: [{name: http, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.88.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: db, labels: {app: db}}, spec: {nodeName: n1, containers: [{name: m}]}, status: {podIPs: [{ip: 10.88.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: lab, name: probe, labels: {app: probe}}, spec: {nodeName: n1, containers: [{name: m}]}, status: {podIPs: [{ip: 10.88.0.4}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: agent, labels: {app: agent}}, spec: {nodeName: n1, hostNetwork: true, containers: [{name: m}]}, status: {podIPs: [{ip: 192.0.2.2}]}}
"#;

/// Code and field of what is found in policies of these specs, named p0, p1, ... in shop.
fn found(specs: &[&str]) -> Vec<(String, String)> {
    let mut yaml = PODS.to_owned();
    for (number, spec) in specs.iter().enumerate() {
        yaml += &format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
             metadata: {{namespace: shop, name: p{number}}}, spec: {spec}}}\n"
        );
    }
    let findings = lint(&snapshot(&node(&yaml), &About::default()), Some("shop"));
    for finding in &findings {
        assert!(
            !finding.message.is_empty() && !finding.action.is_empty(),
            "{finding}"
        );
    }
    findings.into_iter().map(|f| (f.code, f.field)).collect()
}

#[test]
fn each_smell_is_found_at_its_field_and_nothing_else_is() {
    let table = [
        (
            "{podSelector: {matchLabels: {app: wep}}}",
            vec![("selects-nothing", "spec.podSelector")],
        ),
        (
            "{podSelector: {matchLabels: {app: agent}}}",
            vec![
                ("selects-host-network", "spec.podSelector"),
                ("selects-nothing", "spec.podSelector"),
            ],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}}",
            vec![("nothing-allowed", "spec.ingress")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: probe}}}]}]}",
            vec![(
                "pod-selector-matches-nothing",
                "spec.ingress[0].from[0].podSelector",
            )],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: la}}}]}]}",
            vec![(
                "namespace-selector-matches-nothing",
                "spec.ingress[0].from[0].namespaceSelector",
            )],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: agent}}}]}]}",
            vec![("peer-on-host-network", "spec.ingress[0].from[0]")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: lab}}}, {podSelector: {matchLabels: {app: db}}}]}]}",
            vec![("or-instead-of-and", "spec.ingress[0].from")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: https}]}]}",
            vec![("named-port-absent", "spec.ingress[0].ports[0].port")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.1.2.0/24]}}]}]}",
            vec![(
                "useless-except",
                "spec.ingress[0].from[0].ipBlock.except[1]",
            )],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 10.1.0.0/16}}]}]}",
            vec![(
                "useless-except",
                "spec.ingress[0].from[0].ipBlock.except[0]",
            )],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]}",
            vec![("host-bits", "spec.ingress[0].from[0].ipBlock.cidr")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 300.1.2.3/8}}]}]}",
            vec![(
                "not-understood",
                "spec.ingress[0].from[0].ipBlock.cidr is \"300.1.2.3/8\"",
            )],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 80}]}]}",
            vec![("duplicate-rule", "spec.ingress[1]")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{}, {ports: [{port: 80}]}]}",
            vec![("shadowed-rule", "spec.ingress[1]")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}",
            vec![("no-dns", "spec.egress")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}",
            vec![("dns-without-tcp", "spec.egress")],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 53}, {port: 53, protocol: UDP}]}]}",
            vec![],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: http}]}]}",
            vec![],
        ),
    ];
    for (spec, wanted) in table {
        let found = found(&[spec]);
        let found: Vec<_> = found
            .iter()
            .map(|(c, f)| (c.as_str(), f.as_str()))
            .collect();
        assert_eq!(found, wanted, "{spec}");
    }
}

#[test]
fn policies_are_seen_together() {
    let web = "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}";
    assert_eq!(
        found(&[web, web]),
        [("duplicate-policy".into(), "spec".into())]
    );
    let deny_all = "{podSelector: {matchLabels: {app: web}}}";
    assert_eq!(
        found(&[deny_all, web]),
        [],
        "another policy opens what it closes"
    );
    let https = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}";
    let dns = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53}, {port: 53, protocol: UDP}]}]}";
    assert_eq!(
        found(&[https, dns])
            .into_iter()
            .filter(|(code, _)| code == "no-dns")
            .count(),
        0,
        "another policy allows DNS"
    );
}

#[test]
fn a_selector_that_matches_nothing_is_told_what_there_is() {
    let yaml = format!(
        "{PODS}---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: \
         {{namespace: shop, name: p}}, spec: {{podSelector: {{matchLabels: {{app: wep}}}}}}}}\n"
    );
    let findings = lint(&snapshot(&node(&yaml), &About::default()), None);
    let text = findings[0].to_string();
    assert_eq!(
        text,
        "warning selects-nothing NetworkPolicy shop/p spec.podSelector: app=wep selects no pod\n  \
         its pods have app=web, app=agent, app=db"
    );
}

/// netpol.md 87.
#[test]
fn cluster_policies_of_one_priority_that_meet_are_found() {
    let policy = |name: &str, priority: u16, team: &str, more: &str| {
        format!(
            "---\n{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, \
             metadata: {{name: {name}}}, spec: {{tier: Admin, priority: {priority}, subject: \
             {{namespaces: {{matchLabels: {{team: {team}}}}}}}, {more}}}}}\n"
        )
    };
    let deny = "[{action: Deny, from: [{namespaces: {}}]}]";
    let ingress = format!("ingress: {deny}");
    let egress = format!("egress: {}", deny.replace("from", "to"));
    let yaml = [
        policy("a", 1, "shop", &ingress),
        policy("b-meets-a", 1, "shop", &ingress),
        policy("c-other-direction", 1, "shop", &egress),
        policy("d-other-pods", 1, "lab", &ingress),
        policy("e-other-priority", 2, "shop", &ingress),
        policy("f-nobody", 2, "none", &ingress),
        policy(
            "g-unknown",
            3,
            "lab",
            "ingress: [{action: Reject, from: [{namespaces: {}}]}]",
        ),
    ];
    let snapshot = snapshot(
        &node(&(PODS.to_owned() + &yaml.concat())),
        &About::default(),
    );
    let findings = lint(&snapshot, None);
    let found = findings
        .iter()
        .map(|f| format!("{} {}: {}", f.object, f.field, f.code));
    let found: Vec<_> = found.collect();
    let expected = [
        "ClusterNetworkPolicy b-meets-a spec.priority: equal-priority",
        "ClusterNetworkPolicy f-nobody spec.subject: selects-nothing",
        "ClusterNetworkPolicy g-unknown spec.ingress[0].action: not-understood",
    ];
    // The message of the last begins with its field and value.
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    assert_eq!(found[..2], expected[..2]);
    assert!(found[2].ends_with("not-understood"), "{found:?}");
    assert!(
        findings[0].message.starts_with("a of the tier Admin"),
        "{}",
        findings[0]
    );
    assert!(lint(&snapshot, Some("shop")).is_empty());
}
