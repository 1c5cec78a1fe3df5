use super::*;
use crate::fixture::{node, snapshot};
use crate::snapshot::About;

const WORLD: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: a, labels: {app: a}}, spec: {nodeName: n1, containers: [{name: m, ports: [{name: web, containerPort: 8080}, {name: web2, containerPort: 65535}, {name: dns, containerPort: 53, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.88.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: x, name: b, labels: {app: b}}, spec: {nodeName: n1, containers: [{name: m}]}, status: {podIPs: [{ip: 10.88.0.3}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: a}, spec: {podSelector: {matchLabels: {app: a}}, ingress: [{ports: [{port: web}, {port: web2}, {port: 80, endPort: 90}, {port: 85, endPort: 100}, {port: dns, protocol: UDP}, {port: 1, protocol: SCTP}]}, {ports: [{port: 91}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: b}, spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Egress], egress: [{ports: [{port: 70, endPort: 95}, {protocol: UDP}, {port: web}]}]}}
"#;

#[test]
fn reach_is_what_the_verdict_says_of_every_single_port() {
    let owner = node(WORLD);
    let snapshot = snapshot(&owner, &About::default());
    let cluster = snapshot.cluster();
    let addresses = ["10.88.0.2", "10.88.0.3", "198.51.100.1"]
        .map(|text| text.parse::<IpAddr>().expect("an address"));
    for source in addresses {
        for destination in addresses {
            let reach = reach(&cluster, source, destination);
            let ports = PROTOCOLS
                .into_iter()
                .flat_map(|of| (1..=u16::MAX).map(move |port| Transport::Port(of, port)));
            for transport in ports.chain([Transport::Other(1)]) {
                let flow = Flow {
                    source,
                    destination,
                    transport,
                };
                let wanted = cluster.judge(&flow).is_allowed();
                assert_eq!(reach.contains(transport), wanted, "{flow:?}: {reach}");
            }
        }
    }
}

#[test]
fn ranges_are_joined_and_read_well() {
    let owner = node(WORLD);
    let snapshot = snapshot(&owner, &About::default());
    let cluster = snapshot.cluster();
    let text = |source: &str, destination: &str| {
        let [source, destination] =
            [source, destination].map(|text| text.parse().expect("an address"));
        reach(&cluster, source, destination).to_string()
    };
    assert_eq!(
        text("198.51.100.1", "10.88.0.2"),
        "80-100,8080,65535/TCP 53/UDP 1/SCTP"
    );
    assert_eq!(text("10.88.0.3", "10.88.0.2"), "80-95,8080/TCP 53/UDP");
    assert_eq!(text("10.88.0.3", "198.51.100.1"), "70-95/TCP all UDP");
    assert_eq!(text("10.88.0.2", "10.88.0.3"), "everything");
    assert_eq!(Reach::default().to_string(), "nothing");
}
