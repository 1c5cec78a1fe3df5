use std::net::SocketAddr;

use proptest::prelude::*;

use super::pods as pods_of;
use super::*;
use crate::fixture::{node, snapshot};
use crate::snapshot::About;

fn pods() -> String {
    let mut yaml = String::new();
    let mut host = 2;
    for namespace in ["x", "z"] {
        yaml += &format!(
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{team: {namespace}}}}}}}\n"
        );
        for app in ["a", "b", "c"] {
            yaml += &format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: {app}, labels: {{app: {app}}}}}, \
                 spec: {{nodeName: n1, containers: [{{name: m}}]}}, status: {{podIPs: [{{ip: 10.88.0.{host}}}, {{ip: \"fd88::{host}\"}}]}}}}\n"
            );
            host += 1;
        }
    }
    yaml
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {{namespace: {namespace}, name: {name}}}, spec: {spec}}}\n"
    )
}

fn propose(before: &str, text: &str, delete: bool, flows: &[TrackedFlow]) -> Plan {
    let proposal = Proposal {
        file: "new.yaml".into(),
        text: text.into(),
        delete,
    };
    plan(
        &snapshot(&node(before), &About::default()),
        &proposal,
        Some(flows),
    )
}

/// All cells of a state, by its own matrices.
fn cells(yaml: &str) -> BTreeMap<(String, String), Cell> {
    let snapshot = snapshot(&node(yaml), &About::default());
    let (pods, cluster) = (pods_of(&snapshot), snapshot.cluster());
    let pairs = pods
        .iter()
        .flat_map(|from| pods.iter().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from.0 != to.0)
        .map(|(from, to)| {
            let cell = cell(&cluster, from, to);
            ((cell.from.clone(), cell.to.clone()), cell)
        })
        .collect()
}

fn spec() -> impl Strategy<Value = String> {
    let selector = prop::sample::select(vec![
        "{}",
        "{matchLabels: {app: a}}",
        "{matchLabels: {app: b}}",
    ]);
    let peer = prop::sample::select(vec![
        "{podSelector: {matchLabels: {app: b}}}",
        "{namespaceSelector: {matchLabels: {team: z}}}",
        "{ipBlock: {cidr: 10.88.0.0/29}}",
        "{namespaceSelector: {}, podSelector: {matchLabels: {app: c}}}",
    ]);
    let ports = prop::sample::select(vec![
        "",
        ", ports: [{port: 80, endPort: 90}]",
        ", ports: [{protocol: UDP}]",
    ]);
    let rule = (prop::option::of(peer), ports).prop_map(|(peer, ports)| (peer, ports));
    (selector, prop::bool::ANY, prop::collection::vec(rule, 0..3)).prop_map(
        |(selector, is_ingress, rules)| {
            let (kind, list, peers) = match is_ingress {
                true => ("Ingress", "ingress", "from"),
                false => ("Egress", "egress", "to"),
            };
            let rules: Vec<_> = rules
                .into_iter()
                .map(|(peer, ports)| {
                    let peer = peer.map_or_else(String::new, |peer| peer.to_owned());
                    format!("{{{peers}: [{peer}]{ports}}}")
                })
                .collect();
            format!(
                "{{podSelector: {selector}, policyTypes: [{kind}], {list}: [{}]}}",
                rules.join(", ")
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// netpol.md 93: the plan is exactly the difference between the matrices before and after.
    #[test]
    fn a_plan_is_the_difference_of_the_matrices(
        old in prop::collection::vec(spec(), 0..3),
        new in spec(),
        replaces in prop::bool::ANY,
        delete in prop::bool::ANY,
    ) {
        let numbered = |specs: &[String]| -> String {
            let all = specs.iter().enumerate();
            all.map(|(i, spec)| policy("x", &format!("p{i}"), spec)).collect()
        };
        let before = pods() + &numbered(&old);
        let (after, text) = if delete && !old.is_empty() {
            (pods() + &numbered(&old[..old.len() - 1]), policy("x", &format!("p{}", old.len() - 1), "{podSelector: {}}"))
        } else {
            let mut all = old.clone();
            if replaces { all.pop(); }
            all.push(new);
            let number = all.len() - 1;
            (pods() + &numbered(&all), policy("x", &format!("p{number}"), &all[number]))
        };
        let delete = delete && !old.is_empty();
        let plan = propose(&before, &text, delete, &[]);
        prop_assert!(plan.problems.is_empty(), "{:?}", plan.problems);
        let (was, is) = (cells(&before), cells(&after));
        let wanted: Vec<_> = was
            .iter()
            .filter(|(pair, cell)| is[*pair] != **cell)
            .map(|(pair, cell)| PairChange { before: cell.clone(), after: is[pair].clone() })
            .collect();
        prop_assert_eq!(plan.changes, wanted);
    }
}

#[test]
fn open_connections_that_would_be_cut_are_named() {
    let flow = |source: &str, frontend: &str, destination: &str| {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        TrackedFlow {
            protocol: 6,
            source: at(source),
            frontend: at(frontend),
            destination: at(destination),
        }
    };
    let flows = [
        flow("10.88.0.3:40000", "10.96.0.1:80", "10.88.0.2:8080"),
        flow("10.88.0.4:40000", "10.88.0.2:8080", "10.88.0.2:8080"),
        flow("10.88.0.2:40000", "198.51.100.1:443", "198.51.100.1:443"),
    ];
    let text = policy(
        "x",
        "web",
        "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}]}]}",
    );
    let plan = propose(&pods(), &text, false, &flows);
    assert_eq!(plan.flows, Some(3));
    assert_eq!(plan.cut.len(), 1, "{plan}");
    let cut = &plan.cut[0];
    assert_eq!((cut.from.as_str(), cut.to.as_str()), ("x/b", "x/a"));
    assert_eq!(cut.via.as_deref(), Some("10.96.0.1:80/TCP"));
    assert!(cut.because.contains("isolated by x/web"), "{plan}");
}

#[test]
fn what_cannot_be_used_is_said_and_the_rest_is_planned() {
    let text = [
        policy("x", "good", "{podSelector: {}}"),
        policy(
            "x",
            "half",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 300.0.0.0/8}}]}]}",
        ),
        "---\nkind: [\n".to_owned(),
        "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n".to_owned(),
        "---\n{apiVersion: v1, kind: Node, metadata: {name: n9}}\n".to_owned(),
    ]
    .concat();
    let plan = propose(&pods(), &text, false, &[]);
    assert_eq!(
        plan.objects,
        ["NetworkPolicy x/good", "NetworkPolicy x/half"]
    );
    assert_eq!(plan.problems.len(), 4, "{plan}");
    assert!(!plan.changes.is_empty());
}

#[test]
fn a_pods_manifest_keeps_its_addresses() {
    let before = pods() + &policy("x", "p", "{podSelector: {matchLabels: {app: z}}}");
    let text = "{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a, labels: {app: z}}, spec: {containers: [{name: m}]}}";
    let plan = propose(&before, text, false, &[]);
    assert_eq!(plan.changes.len(), 5, "all that reached x/a: {plan}");
}
