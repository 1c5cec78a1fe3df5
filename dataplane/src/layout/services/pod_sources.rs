//! Which senders are pods of the cluster: what they send to a cluster IP keeps its source
//! address, and they reach all endpoints of `externalTrafficPolicy: Local`.

use super::chains::{CLUSTER_SERVICES_CHAIN, FOREIGN_CHAIN, SERVICES_CHAIN};
use super::{CLUSTER_CIDRS, HAIRPIN};
use crate::datatype::Bytes;
use crate::desired::Desired;
use crate::field::Field;
use crate::layout::{INET, PRIORITY_DSTNAT, base_chain, regular_chain};
use crate::object::{ChainType, Hook, IpFamily};
use crate::rule::{Rule, Statement, Verdict};

/// How they are told from others, as `detectLocalMode` of kube-proxy has it. This node's own
/// pods count in any case: their addresses are known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PodSources {
    /// By source addresses in [`CLUSTER_CIDRS`].
    #[default]
    Ranges,
    /// By the name of the interface that they come in by.
    Interface(String),
    /// By the beginning of that name.
    InterfacePrefix(String),
}

impl PodSources {
    /// The name as rules compare it: what is shorter than a name's field is a prefix.
    fn interface(&self) -> Option<Vec<u8>> {
        match self {
            Self::Ranges => None,
            Self::Interface(name) => Some(Bytes::new().ifname(name).build().to_vec()),
            Self::InterfacePrefix(prefix) => Some(prefix.as_bytes().to_vec()),
        }
    }

    /// A rule for each thing by which pods are known.
    fn rules(&self, end: impl Fn(Rule) -> Rule) -> Vec<Rule> {
        let mut rules = Vec::new();
        for family in IpFamily::BOTH {
            let source = family.saddr();
            let from = |key: &[Field], set| end(Rule::new().family(family).in_set(key, set));
            // Each is paired with itself.
            rules.push(from(&[source, source], HAIRPIN.of(family).clone()));
            if *self == Self::Ranges {
                rules.push(from(&[source], CLUSTER_CIDRS.of(family).clone()));
            }
        }
        let interface = self.interface();
        rules.extend(interface.map(|name| end(Rule::new().eq(Field::Iifname, &name))));
        rules
    }

    /// At postrouting a packet that br_netfilter translates and keeps in its bridge has no
    /// interface that it came in by. It is the one by which it leaves.
    fn bridged(&self) -> Option<Rule> {
        let rule = Rule::new()
            .eq(Field::Iif, &0u32.to_ne_bytes())
            .eq(Field::Oifname, &self.interface()?)
            .ne(Field::FibSaddrType, &2u32.to_ne_bytes());
        Some(rule.verdict(Verdict::Return).comment("from there as well"))
    }
}

/// Wants pods to be told from others so. With `masquerade_all` everything that goes to a
/// cluster IP gets this node's address, theirs too.
pub fn set_pod_sources(desired: &mut Desired, sources: &PodSources, masquerade_all: bool) {
    let mut prerouting = sources.rules(|rule| rule.jump(CLUSTER_SERVICES_CHAIN));
    prerouting.push(Rule::new().jump(SERVICES_CHAIN));
    base_chain(
        desired,
        &INET,
        "nat-prerouting",
        (ChainType::Nat, Hook::Prerouting, PRIORITY_DSTNAT),
        "Services for what comes in",
        prerouting,
    );
    let mut foreign = Vec::new();
    if !masquerade_all {
        foreign = sources.rules(|rule| rule.verdict(Verdict::Return));
        foreign.extend(sources.bridged());
    }
    foreign.push(Rule::new().with(Statement::Masquerade));
    regular_chain(
        desired,
        FOREIGN_CHAIN,
        "whom answers would pass by",
        foreign,
    );
}
