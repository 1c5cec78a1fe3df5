//! The rules of a chain of policies.

use std::collections::BTreeMap;

use dataplane::desired::Desired;
use dataplane::field::Field;
use dataplane::layout::policy::Direction;
use dataplane::object::{IpFamily, Name};
use dataplane::rule::{Rule, Statement, Verdict};
use proxy::model::Protocol;

use super::sets::{Content, NamespacePeer, PodPeer, Sets};
use crate::index::Index;
use crate::model::cluster_policy::Action;
use crate::model::policy::{self, Peer, Peers, PortMatch, Ports};
use crate::model::{ClusterNetworkPolicy, NetworkPolicy};

/// A chain of policies while it is written: acquires the sets that its rules read.
pub(super) struct Writer<'a> {
    index: &'a Index,
    sets: &'a mut Sets,
    desired: &'a mut Desired,
    direction: Direction,
    /// What a rule that allows ends with.
    pub(super) allowed: Verdict,
    /// What a rule that denies ends with, if there can be one.
    pub(super) denied: Verdict,
    /// Whether the rule that is written denies or passes.
    takes_away: bool,
    /// The rules so far.
    pub(super) rules: Vec<Rule>,
    /// The sets that they read, acquired once for each time they are listed.
    pub(super) used: Vec<Content>,
}

/// What a rule asks of the other side's address: `None`, nothing.
type PeerSet = Option<[Name; 2]>;

/// What a rule asks of protocol and port.
enum PortTest {
    Any,
    Protocol(Protocol),
    /// Inclusive.
    Range(Protocol, u16, u16),
    Named([Name; 2]),
}

impl<'a> Writer<'a> {
    /// A chain without rules.
    pub(super) fn new(
        direction: Direction,
        index: &'a Index,
        sets: &'a mut Sets,
        desired: &'a mut Desired,
    ) -> Self {
        Self {
            index,
            sets,
            desired,
            direction,
            allowed: direction.allowed(),
            denied: Verdict::Drop,
            takes_away: false,
            rules: Vec::new(),
            used: Vec::new(),
        }
    }

    /// Appends the rules of the policy in this direction.
    pub(super) fn policy(&mut self, policy: &NetworkPolicy) {
        let rules = match self.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let allowed = self.allowed.clone();
        for (i, rule) in rules.iter().flatten().enumerate() {
            let comment = format!("{} {}[{i}]", policy.key, self.direction.name());
            self.rule(&policy.key.namespace, rule, &allowed, &comment);
        }
    }

    /// Appends the rules of the policy in this direction. What they pass goes back to the
    /// chain that asks.
    pub(super) fn cluster_policy(&mut self, policy: &ClusterNetworkPolicy) {
        let rules = match self.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for (i, rule) in rules.iter().enumerate() {
            let verdict = match rule.action {
                Action::Accept => self.allowed.clone(),
                Action::Deny => self.denied.clone(),
                Action::Pass => Verdict::Return,
            };
            let comment = format!("{} {}[{i}]", policy.name, self.direction.name());
            self.takes_away = rule.action != Action::Accept && !policy.audit;
            // Its peers name their namespaces themselves.
            self.rule("", &rule.matches, &verdict, &comment);
        }
        self.takes_away = false;
    }

    /// A rule of a policy in that namespace.
    fn rule(&mut self, namespace: &str, rule: &policy::Rule, verdict: &Verdict, comment: &str) {
        let peers = self.peers(namespace, &rule.peers);
        let ports = self.ports(&rule.ports);
        for peer in &peers {
            for port in &ports {
                self.combination(peer, port, verdict, comment);
            }
        }
    }

    /// One rule, or one for each family where a family's set is read.
    fn combination(&mut self, peer: &PeerSet, port: &PortTest, verdict: &Verdict, comment: &str) {
        if peer.is_none() && !matches!(port, PortTest::Named(_)) {
            let rule = port_test(Rule::new(), port, IpFamily::V4);
            self.rules
                .push(rule.verdict(verdict.clone()).comment(comment));
            return;
        }
        for family in IpFamily::BOTH {
            let mut rule = Rule::new().family(family);
            if let Some(names) = peer {
                let field = self.direction.peer_field(family);
                rule = rule.in_set(&[field], of_family(names, family).clone());
            }
            let rule = port_test(rule, port, family).verdict(verdict.clone());
            self.rules.push(rule.comment(comment));
        }
    }

    /// The sets of which the other side must be in one: pods, nodes and blocks apart, as blocks
    /// are intervals. Empty: nobody matches.
    fn peers(&mut self, namespace: &str, peers: &Peers) -> Vec<PeerSet> {
        let Peers::Of(peers) = peers else {
            return vec![None];
        };
        let mut pods = Vec::new();
        let mut blocks = Vec::new();
        let mut nodes = Vec::new();
        for peer in peers {
            match peer {
                Peer::Pods {
                    namespaces,
                    pods: selector,
                } => pods.push(PodPeer {
                    namespaces: match namespaces {
                        Some(selector) => NamespacePeer::Selected(selector.clone()),
                        None => NamespacePeer::Own(namespace.to_owned()),
                    },
                    pods: selector.clone(),
                }),
                Peer::IpBlock { cidr, except } => {
                    let mut except = except.clone();
                    except.sort_unstable();
                    blocks.push((*cidr, except));
                }
                Peer::Nodes(selector) => nodes.push(selector.clone()),
            }
        }
        pods.sort_unstable();
        pods.dedup();
        blocks.sort_unstable();
        blocks.dedup();
        let mut contents: Vec<_> = nodes.into_iter().map(Content::Nodes).collect();
        if !pods.is_empty() {
            contents.push(Content::Pods(pods));
        }
        if !blocks.is_empty() {
            contents.push(Content::Blocks(blocks));
        }
        let acquire = |content| Some(self.acquire(content));
        contents.into_iter().map(acquire).collect()
    }

    /// Numbered ports are joined per protocol, so that many single ports do not become as
    /// many rules where they touch.
    fn ports(&mut self, ports: &Ports) -> Vec<PortTest> {
        let Ports::Of(ports) = ports else {
            return vec![PortTest::Any];
        };
        let mut tests = Vec::new();
        let mut ranges: BTreeMap<Protocol, Vec<(u16, u16)>> = BTreeMap::new();
        for port in ports {
            match port {
                PortMatch::All(protocol) => tests.push(PortTest::Protocol(*protocol)),
                PortMatch::Range(protocol, first, last) => {
                    ranges.entry(*protocol).or_default().push((*first, *last));
                }
                PortMatch::Named(protocol, name) => {
                    let content = Content::Named(*protocol, name.clone());
                    tests.push(PortTest::Named(self.acquire(content)));
                }
            }
        }
        for (protocol, ranges) in ranges {
            let joined = join(ranges).into_iter();
            tests.extend(joined.map(|(first, last)| PortTest::Range(protocol, first, last)));
        }
        tests
    }

    fn acquire(&mut self, content: Content) -> [Name; 2] {
        let (index, desired) = (self.index, &mut *self.desired);
        let names = self.sets.acquire(&content, self.takes_away, index, desired);
        self.used.push(content);
        names
    }
}

fn port_test(rule: Rule, port: &PortTest, family: IpFamily) -> Rule {
    match port {
        PortTest::Any => rule,
        PortTest::Protocol(protocol) => rule.l4proto(protocol.number()),
        PortTest::Range(protocol, first, last) if first == last => rule
            .l4proto(protocol.number())
            .eq(Field::Dport, &first.to_be_bytes()),
        PortTest::Range(protocol, first, last) => {
            rule.l4proto(protocol.number()).with(Statement::Range {
                field: Field::Dport,
                from: first.to_be_bytes().into(),
                to: last.to_be_bytes().into(),
            })
        }
        PortTest::Named(names) => rule.in_set(
            &[family.daddr(), Field::L4Proto, Field::Dport],
            of_family(names, family).clone(),
        ),
    }
}

const fn of_family(names: &[Name; 2], family: IpFamily) -> &Name {
    match family {
        IpFamily::V4 => &names[0],
        IpFamily::V6 => &names[1],
    }
}

fn join(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(range) if first <= range.1.saturating_add(1) => range.1 = range.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}
