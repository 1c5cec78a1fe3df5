//! Peers: selectors that match nobody, blocks whose excepts do nothing, lists that read as
//! "and" and mean "or".

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Linter, Severity, field};
use crate::explain::describe::describe_peer;
use crate::model::LabelSelector;
use crate::model::policy::{Peer, Peers, Rule};
use crate::verdict::Direction;

/// Labels that are offered instead of one that nobody has.
const OFFERED: usize = 4;

impl Linter<'_> {
    pub(super) fn peers(&mut self) {
        for (direction, number, rule) in self.rules() {
            let Peers::Of(peers) = &rule.peers else {
                continue;
            };
            let list = match direction {
                Direction::Ingress => "from",
                Direction::Egress => "to",
            };
            for (i, peer) in peers.iter().enumerate() {
                let path = format!("{}.{list}[{i}]", field(direction, number));
                match peer {
                    Peer::Pods { namespaces, pods } => {
                        self.matches_somebody(&path, namespaces.as_ref(), pods);
                    }
                    // Of ClusterNetworkPolicies alone.
                    Peer::Nodes(_) => {}
                    Peer::IpBlock { cidr, except } => {
                        self.excepts(&path, (*cidr, except), rule, i);
                    }
                }
            }
            self.or_instead_of_and(&format!("{}.{list}", field(direction, number)), peers);
        }
    }

    fn matches_somebody(
        &mut self,
        path: &str,
        namespaces: Option<&LabelSelector>,
        pods: &LabelSelector,
    ) {
        let index = &self.snapshot.index;
        let own = &self.policy.key.namespace;
        let named: Vec<&str> = match namespaces {
            None => vec![own],
            Some(selector) => {
                let all = index.namespaces.values();
                let matching = all.filter(|namespace| selector.matches(&namespace.labels));
                matching.map(|namespace| namespace.name.as_str()).collect()
            }
        };
        if let (Some(selector), true) = (namespaces, named.is_empty()) {
            let labels = index
                .namespaces
                .values()
                .flat_map(|namespace| &namespace.labels);
            let labels = labels
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            self.find(
                (Severity::Warning, "namespace-selector-matches-nothing"),
                format!("{path}.namespaceSelector"),
                format!("{selector} matches no namespace"),
                format!("namespaces have {}", near(selector, labels).join(", ")),
            );
            return;
        }
        let candidates = || named.iter().flat_map(|name| index.pods_in(name));
        let matching: Vec<_> = candidates()
            .filter(|pod| pods.matches(&pod.labels))
            .collect();
        if matching.is_empty() && !pods.is_everything() {
            let labels: BTreeSet<_> = candidates()
                .flat_map(|pod| &pod.labels)
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let elsewhere = index.pods.values().find(|pod| pods.matches(&pod.labels));
            let action = match elsewhere {
                Some(pod) if namespaces.is_none() => format!(
                    "{} matches: without a namespaceSelector only pods of {own} count, add one",
                    pod.key
                ),
                _ if labels.is_empty() => "there are no pods with labels".to_owned(),
                _ => format!("pods there have {}", near(pods, labels).join(", ")),
            };
            self.find(
                (Severity::Warning, "pod-selector-matches-nothing"),
                format!("{path}.podSelector"),
                format!("{pods} matches no pod"),
                action,
            );
        } else if !matching.is_empty() && matching.iter().all(|pod| pod.host_network) {
            self.find(
                (Severity::Warning, "peer-on-host-network"),
                path,
                "all pods that it matches are on the host network, where selectors match nobody",
                "allow the addresses of their nodes with an ipBlock",
            );
        }
    }

    fn excepts(&mut self, path: &str, (cidr, except): (IpNet, &[IpNet]), rule: &Rule, own: usize) {
        let Peers::Of(peers) = &rule.peers else {
            return;
        };
        for (i, net) in except.iter().enumerate() {
            let path = format!("{path}.ipBlock.except[{i}]");
            let outer = except
                .iter()
                .enumerate()
                .find(|(k, other)| other.contains(net) && (*other != net || *k < i));
            if let Some((_, outer)) = outer {
                self.find(
                    (Severity::Hint, "useless-except"),
                    path,
                    format!("{net} is in the except {outer} already"),
                    "remove it",
                );
                continue;
            }
            let opened = peers.iter().enumerate().find(|(k, peer)| match peer {
                Peer::IpBlock { cidr, except } => {
                    *k != own && cidr.contains(net) && !except.iter().any(|e| overlaps(e, net))
                }
                Peer::Pods { .. } | Peer::Nodes(_) => false,
            });
            if let Some((k, peer)) = opened {
                let other = describe_peer(peer, &self.policy.key.namespace);
                self.find(
                    (Severity::Warning, "useless-except"),
                    path,
                    format!("peer [{k}] of the same list, {other}, allows {net} again"),
                    format!("peers are alternatives: except {net} there, too, or remove it here"),
                );
            }
        }
        let covers_all = except.iter().any(|net| net.contains(&cidr));
        if covers_all {
            self.find(
                (Severity::Warning, "empty-block"),
                format!("{path}.ipBlock"),
                "its excepts leave nothing of it",
                "remove the peer, or the except",
            );
        }
    }

    /// The classic trap: two list entries where one with both selectors was meant.
    fn or_instead_of_and(&mut self, path: &str, peers: &[Peer]) {
        let is_pods_only = |peer: &Peer| matches!(peer, Peer::Pods { namespaces: None, pods } if !pods.is_everything());
        let is_namespaces_only = |peer: &Peer| {
            matches!(peer, Peer::Pods { namespaces: Some(of), pods }
                if pods.is_everything() && !of.is_everything())
        };
        if peers.len() == 2
            && peers.iter().any(is_pods_only)
            && peers.iter().any(is_namespaces_only)
        {
            let texts: Vec<_> = peers
                .iter()
                .map(|peer| describe_peer(peer, &self.policy.key.namespace))
                .collect();
            self.find(
                (Severity::Warning, "or-instead-of-and"),
                path,
                format!("it allows {}", texts.join(", and also ")),
                "if pods with these labels in these namespaces were meant, put both selectors into one entry",
            );
        }
    }
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The labels that are most like what the selector wants.
pub(super) fn near(selector: &LabelSelector, labels: BTreeSet<String>) -> Vec<String> {
    let wanted: Vec<_> = selector.requirements().map(ToString::to_string).collect();
    let score = |label: &String| {
        let scores = wanted
            .iter()
            .map(|wanted| strsim::jaro_winkler(wanted, label));
        scores.fold(0.0, f64::max)
    };
    let mut scored: Vec<_> = labels
        .into_iter()
        .map(|label| (score(&label), label))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let nearest = scored.into_iter().take(OFFERED);
    nearest.map(|(_, label)| label).collect()
}
