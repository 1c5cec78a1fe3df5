//! Policies as a whole: whom they select, whether they allow anything, whether they say
//! things twice.

use std::collections::BTreeSet;

use proxy::model::Protocol;

use super::{Linter, Severity, field};
use crate::model::policy::{Peers, PortMatch, Ports, Rule};
use crate::verdict::Direction;

/// Port of DNS.
const DNS: u16 = 53;

impl Linter<'_> {
    pub(super) fn policy(&mut self) {
        self.understood();
        self.selects();
        self.host_network();
        self.other_plugins();
        self.says_it_once();
        for direction in [Direction::Ingress, Direction::Egress] {
            self.allows_something(direction);
        }
        self.allows_dns();
    }

    fn understood(&mut self) {
        for problem in self.policy.problems.clone() {
            let (field, message) = problem.split_once(": ").unwrap_or(("spec", &problem));
            self.find(
                (Severity::Error, "not-understood"),
                field,
                message,
                "until it is corrected this part matches nothing",
            );
        }
        for note in self.policy.notes.clone() {
            let (field, message) = note.split_once(": ").unwrap_or(("spec", &note));
            self.find(
                (Severity::Warning, "host-bits"),
                field,
                message,
                "write the prefix that is meant",
            );
        }
    }

    fn selects(&mut self) {
        if self.selected().next().is_some() {
            return;
        }
        let policy = self.policy;
        let labels: BTreeSet<String> = self
            .snapshot
            .index
            .pods_in(&policy.key.namespace)
            .flat_map(|pod| &pod.labels)
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let action = match labels.is_empty() {
            true => format!("namespace {} has no pods with labels", policy.key.namespace),
            false => {
                let labels = super::peers::near(&policy.pod_selector, labels);
                format!("its pods have {}", labels.join(", "))
            }
        };
        self.find(
            (Severity::Warning, "selects-nothing"),
            "spec.podSelector",
            format!("{} selects no pod", policy.pod_selector),
            action,
        );
    }

    fn host_network(&mut self) {
        let policy = self.policy;
        let pods = self.snapshot.index.pods_in(&policy.key.namespace);
        let on_host: Vec<_> = pods
            .filter(|pod| pod.host_network && policy.pod_selector.matches(&pod.labels))
            .map(|pod| pod.key.to_string())
            .collect();
        if !on_host.is_empty() {
            self.find(
                (Severity::Warning, "selects-host-network"),
                "spec.podSelector",
                format!("it matches pods on the host network: {}", on_host.join(", ")),
                "no NetworkPolicy applies to them: leave them out of the selector, or off the host network",
            );
        }
    }

    fn other_plugins(&mut self) {
        let snapshot = self.snapshot;
        let unguarded = self.selected().filter_map(|pod| {
            let addresses = snapshot.index.addresses(pod);
            let interface = addresses.iter().find_map(|ip| snapshot.unguarded(*ip))?;
            Some(format!("{} (by {interface})", pod.key))
        });
        let unguarded: Vec<_> = unguarded.collect();
        if !unguarded.is_empty() {
            let pods = unguarded.join(", ");
            self.find(
                (Severity::Error, "selects-other-plugin"),
                "spec.podSelector",
                format!("it matches pods of this node that another plugin has attached: {pods}"),
                "no NetworkPolicy is enforced on them: have them made anew with trammel",
            );
        }
    }

    fn says_it_once(&mut self) {
        let mut seen: Vec<(Direction, usize, &Rule)> = Vec::new();
        for (direction, number, rule) in self.rules() {
            let same = seen
                .iter()
                .find(|(of, _, known)| *of == direction && *known == rule);
            if let Some((_, first, _)) = same {
                self.find(
                    (Severity::Hint, "duplicate-rule"),
                    field(direction, number),
                    format!("it is the same as {}", field(direction, *first)),
                    "remove one",
                );
            }
            let all = self.rules().into_iter().find(|(of, at, other)| {
                *of == direction && *at != number && is_everything(other) && !is_everything(rule)
            });
            if let Some((_, at, _)) = all {
                self.find(
                    (Severity::Warning, "shadowed-rule"),
                    field(direction, number),
                    format!("{} allows everything already", field(direction, at)),
                    "remove that rule if this one is what was meant",
                );
            }
            seen.push((direction, number, rule));
        }
        let policy = self.policy;
        let twin = self
            .snapshot
            .index
            .policies_in(&policy.key.namespace)
            .take_while(|other| other.key != policy.key)
            .find(|other| {
                (
                    &other.pod_selector,
                    &other.ingress,
                    &other.egress,
                    other.audit,
                ) == (
                    &policy.pod_selector,
                    &policy.ingress,
                    &policy.egress,
                    policy.audit,
                )
            });
        if let Some(twin) = twin {
            self.find(
                (Severity::Hint, "duplicate-policy"),
                "spec",
                format!("it is the same as that of {}", twin.key),
                "remove one",
            );
        }
    }

    /// A default deny alone is common; that nothing at all opens what it closes is not.
    fn allows_something(&mut self, direction: Direction) {
        let rules = match direction {
            Direction::Ingress => &self.policy.ingress,
            Direction::Egress => &self.policy.egress,
        };
        if rules.as_ref().is_none_or(|rules| !rules.is_empty()) {
            return;
        }
        let cluster = self.snapshot.cluster();
        let closed: Vec<_> = self
            .selected()
            .filter(|pod| {
                let mut isolating = cluster.isolating(pod, direction);
                isolating.all(|(_, rules)| rules.is_empty())
            })
            .map(|pod| pod.key.to_string())
            .collect();
        if !closed.is_empty() {
            self.find(
                (Severity::Hint, "nothing-allowed"),
                format!("spec.{direction}"),
                format!("no policy allows any {direction} of {}", closed.join(", ")),
                "add a policy that allows what they need, if they need anything",
            );
        }
    }

    fn allows_dns(&mut self) {
        let rules = match &self.policy.egress {
            Some(rules) if !rules.is_empty() => rules,
            _ => return,
        };
        let cluster = self.snapshot.cluster();
        let allows = |rules: &[Rule], protocol| rules.iter().any(|rule| opens(rule, protocol, DNS));
        let mut without = Vec::new();
        let mut udp_only = Vec::new();
        for pod in self.selected() {
            let isolating: Vec<_> = cluster.isolating(pod, Direction::Egress).collect();
            if isolating.is_empty() {
                continue;
            }
            let any = |protocol| isolating.iter().any(|(_, rules)| allows(rules, protocol));
            match (any(Protocol::Udp), any(Protocol::Tcp)) {
                (false, _) => without.push(pod.key.to_string()),
                (true, false) => udp_only.push(pod.key.to_string()),
                (true, true) => {}
            }
        }
        if self.selected().next().is_none() && !allows(rules, Protocol::Udp) {
            without.push("what it selects".into());
        }
        if !without.is_empty() {
            self.find(
                (Severity::Warning, "no-dns"),
                "spec.egress",
                format!(
                    "{} cannot resolve names: no rule allows port 53/UDP",
                    without.join(", ")
                ),
                "allow ports 53/UDP and 53/TCP to the cluster's DNS",
            );
        }
        if !udp_only.is_empty() {
            self.find(
                (Severity::Hint, "dns-without-tcp"),
                "spec.egress",
                format!("{} may ask DNS over UDP only", udp_only.join(", ")),
                "allow port 53/TCP too: long answers come over TCP",
            );
        }
    }
}

fn is_everything(rule: &Rule) -> bool {
    rule.peers == Peers::Any && rule.ports == Ports::Any
}

/// Whether the rule allows the port to anybody. A named port may be any number.
fn opens(rule: &Rule, protocol: Protocol, number: u16) -> bool {
    let has_peer = match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => !peers.is_empty(),
    };
    has_peer
        && match &rule.ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| match port {
                PortMatch::All(of) | PortMatch::Named(of, _) => *of == protocol,
                PortMatch::Range(of, first, last) => {
                    *of == protocol && (*first..=*last).contains(&number)
                }
            }),
        }
}
