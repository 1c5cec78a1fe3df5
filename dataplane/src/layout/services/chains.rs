//! The chains and sets that are the same on every node.

use super::affinity;
use super::balancer::{Lane, Sources};
use super::pod_sources::{PodSources, set_pod_sources};
use super::{
    CLUSTER_CIDRS, CLUSTER_IPS, Entry, HAIRPIN, NODE_ADDRESSES, RESTRICTED, SERVICE_CIDRS,
    endpoint_type, original_daddr,
};
use crate::datatype::Type;
use crate::desired::Desired;
use crate::field::{Field, ct_status};
use crate::layout::ports;
use crate::layout::{
    INET, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_RESTRICT, PRIORITY_SRCNAT, PerFamily,
    base_chain, regular_chain,
};
use crate::object::{ChainType, Hook, IpFamily, SetSpec};
use crate::rule::{Reject, Rule, Statement, Verdict};

/// Chain that decides for frontends without endpoints; jumped to by the filter hooks.
pub(in crate::layout) const UNSERVED_CHAIN: &str = "unserved";
/// Chain that ends what is sent to a cluster IP on a port that no Service has.
pub(in crate::layout) const CLUSTER_IPS_CHAIN: &str = "cluster-ips";
pub(super) const SERVICES_CHAIN: &str = "services";
pub(super) const CLUSTER_SERVICES_CHAIN: &str = "cluster-services";
const RESTRICTED_CHAIN: &str = "restricted";
const REFUSE_CHAIN: &str = "refuse";
const SERVED_CHAIN: &str = "served";
pub(super) const FOREIGN_CHAIN: &str = "masquerade-foreign";

/// Verdict for a frontend that is refused: the client learns it at once.
pub fn refused() -> Verdict {
    Verdict::Goto(REFUSE_CHAIN.into())
}

/// Which sources of a frontend from outside the cluster get this node's address, so that
/// answers come back through it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Masquerade {
    /// All: the endpoint may be on another node.
    All,
    /// Only this node itself: the endpoints are on this node and see their clients, and the
    /// pods of the cluster are answered directly.
    OwnTraffic,
}

impl Masquerade {
    const BOTH: [Self; 2] = [Self::All, Self::OwnTraffic];

    /// What the map has for the frontend.
    pub fn verdict(self) -> Verdict {
        Verdict::Goto(self.chain().into())
    }

    const fn chain(self) -> &'static str {
        match self {
            Self::All => "masquerade-all",
            Self::OwnTraffic => "masquerade-own",
        }
    }

    fn rule(self) -> Rule {
        let rule = match self {
            Self::All => Rule::new(),
            Self::OwnTraffic => Rule::new().eq(Field::FibSaddrType, &2u32.to_ne_bytes()),
        };
        rule.with(Statement::Masquerade)
    }
}

pub(in crate::layout) fn install(desired: &mut Desired) {
    install_sets(desired);
    affinity::install(desired);
    install_translation(desired);
    install_filters(desired);
    install_masquerade(desired);
    set_pod_sources(desired, &PodSources::default(), false);
}

fn install_sets(desired: &mut Desired) {
    for family in IpFamily::BOTH {
        for lane in Lane::ALL {
            let slots = lane.entry.slot_type(family);
            desired.set(
                &INET,
                lane.frontends().of(family),
                SetSpec::verdict_map(lane.entry.frontend_type(family), lane_comment(lane)),
            );
            desired.set(
                &INET,
                lane.endpoints().of(family),
                SetSpec::map(slots, endpoint_type(family), "slots to endpoints"),
            );
        }
        for entry in Entry::BOTH {
            let key = entry.frontend_type(family);
            for (map, comment) in [
                (entry.unserved(), "frontends without endpoints"),
                (entry.external(), "frontends from outside the cluster"),
                (entry.sticky(), "frontends with session affinity"),
            ] {
                desired.set(&INET, map.of(family), SetSpec::verdict_map(key, comment));
            }
        }
        let address = Type::of(&[family.addr_type()]);
        let pair = Type::of(&[family.addr_type(), family.addr_type()]);
        let frontend = Entry::Address.frontend_type(family);
        for (set, spec) in [
            (
                &RESTRICTED,
                SetSpec::verdict_map(frontend, "frontends with loadBalancerSourceRanges"),
            ),
            (&CLUSTER_IPS, SetSpec::set(address, "cluster IPs")),
            (
                &SERVICE_CIDRS,
                SetSpec::intervals(address, "ranges of cluster IPs"),
            ),
            (
                &CLUSTER_CIDRS,
                SetSpec::intervals(address, "ranges of pods' addresses"),
            ),
            (
                &NODE_ADDRESSES,
                SetSpec::set(address, "this node's addresses with node ports"),
            ),
            (
                &HAIRPIN,
                SetSpec::set(pair, "this node's pods, each with itself"),
            ),
        ] {
            desired.set(&INET, set.of(family), spec);
        }
    }
}

const fn lane_comment(lane: Lane) -> &'static str {
    match (lane.entry, lane.sources) {
        (Entry::Address, Sources::All) => "frontends to their balancers",
        (Entry::NodePort, Sources::All) => "node ports to their balancers",
        (Entry::Address, Sources::Cluster) => "frontends, for sources of the cluster",
        (Entry::NodePort, Sources::Cluster) => "node ports, for sources of the cluster",
    }
}

/// A rule for each entry and family that asks the map about the destination of a packet.
fn ask(map: impl Fn(Entry) -> &'static PerFamily) -> Vec<Rule> {
    let mut rules = Vec::new();
    for entry in Entry::BOTH {
        rules.extend(IpFamily::BOTH.map(|family| {
            let rule = Rule::new().family(family);
            let rule = match entry {
                Entry::Address => rule,
                Entry::NodePort => {
                    rule.in_set(&[family.daddr()], NODE_ADDRESSES.of(family).clone())
                }
            };
            rule.vmap(&entry.destination(family), map(entry).of(family).clone())
        }));
    }
    rules
}

fn install_translation(desired: &mut Desired) {
    for (chain, comment, sources) in [
        (
            SERVICES_CHAIN,
            "Services: to the balancer of the frontend",
            Sources::All,
        ),
        (
            CLUSTER_SERVICES_CHAIN,
            "what only sources of the cluster reach",
            Sources::Cluster,
        ),
    ] {
        let rules = ask(|entry| Lane::new(entry, sources).frontends());
        regular_chain(desired, chain, comment, rules);
    }
    let jump = |chain: &str| Rule::new().jump(chain);
    base_chain(
        desired,
        &INET,
        "nat-output",
        (ChainType::Nat, Hook::Output, PRIORITY_DSTNAT),
        "Services for this node's own traffic",
        [CLUSTER_SERVICES_CHAIN, SERVICES_CHAIN].map(jump).into(),
    );
}

fn install_filters(desired: &mut Desired) {
    regular_chain(
        desired,
        UNSERVED_CHAIN,
        "Services without endpoints",
        ask(Entry::unserved),
    );
    regular_chain(
        desired,
        REFUSE_CHAIN,
        "tells the client at once",
        vec![
            // A client believes an ICMPv6 error about its first SYN only when it has sent
            // that again, a second later; it believes a reset at once.
            Rule::new()
                .l4proto(6)
                .counter()
                .with(Statement::Reject(Reject::TcpReset)),
            Rule::new()
                .counter()
                .with(Statement::Reject(Reject::PortUnreachable)),
        ],
    );
    let to = |family: IpFamily, set: &PerFamily| {
        Rule::new()
            .family(family)
            .in_set(&[family.daddr()], set.of(family).clone())
    };
    let mut cluster_ips = Vec::new();
    for family in IpFamily::BOTH {
        let unused_port = to(family, &CLUSTER_IPS).goto(REFUSE_CHAIN);
        let unused_address = to(family, &SERVICE_CIDRS).counter().drop();
        cluster_ips.push(unused_port.comment("no such port"));
        cluster_ips.push(unused_address.comment("no such Service"));
    }
    regular_chain(
        desired,
        CLUSTER_IPS_CHAIN,
        "cluster IPs and ports that no Service has",
        cluster_ips,
    );
    base_chain(
        desired,
        &INET,
        "output",
        (ChainType::Filter, Hook::Output, PRIORITY_FILTER),
        "this node's own traffic: no policy",
        vec![
            Rule::new().ct_new().jump(UNSERVED_CHAIN),
            Rule::new().ct_new().jump(CLUSTER_IPS_CHAIN),
            ports::no_redirects(),
        ],
    );

    let restricted = |family: IpFamily| {
        Rule::new().family(family).vmap(
            &Entry::Address.destination(family),
            RESTRICTED.of(family).clone(),
        )
    };
    regular_chain(
        desired,
        RESTRICTED_CHAIN,
        "loadBalancerSourceRanges",
        IpFamily::BOTH.map(restricted).into(),
    );
    for (name, hook) in [
        ("restrict-prerouting", Hook::Prerouting),
        ("restrict-output", Hook::Output),
    ] {
        base_chain(
            desired,
            &INET,
            name,
            (ChainType::Filter, hook, PRIORITY_RESTRICT),
            "who may reach load balancer addresses",
            vec![Rule::new().ct_new().jump(RESTRICTED_CHAIN)],
        );
    }
}

fn install_masquerade(desired: &mut Desired) {
    for masquerade in Masquerade::BOTH {
        regular_chain(desired, masquerade.chain(), "", vec![masquerade.rule()]);
    }

    // The packet's destination is the endpoint by now.
    let was_sent_to = |family: IpFamily, set: &PerFamily| {
        Rule::new()
            .family(family)
            .in_set(&[original_daddr(family)], set.of(family).clone())
    };
    let mut served = Vec::new();
    for entry in Entry::BOTH {
        served.extend(IpFamily::BOTH.map(|family| {
            let rule = match entry {
                Entry::Address => Rule::new().family(family),
                Entry::NodePort => was_sent_to(family, &NODE_ADDRESSES),
            };
            let map = entry.external().of(family).clone();
            rule.vmap(&entry.original_destination(family), map)
        }));
    }
    served
        .extend(IpFamily::BOTH.map(|family| was_sent_to(family, &CLUSTER_IPS).goto(FOREIGN_CHAIN)));
    regular_chain(
        desired,
        SERVED_CHAIN,
        "flows to Services, by what they were sent to",
        served,
    );

    let hairpin = |family: IpFamily| {
        Rule::new()
            .family(family)
            .in_set(
                &[family.saddr(), family.daddr()],
                HAIRPIN.of(family).clone(),
            )
            .with(Statement::Masquerade)
            .comment("a pod reaches itself through a Service")
    };
    let mut masquerade: Vec<_> = IpFamily::BOTH.map(hairpin).into();
    masquerade.push(
        Rule::new()
            .with(Statement::AnyBit {
                field: Field::CtStatus,
                bits: ct_status::DNAT,
            })
            .jump(SERVED_CHAIN),
    );
    base_chain(
        desired,
        &INET,
        "masquerade",
        (ChainType::Nat, Hook::Postrouting, PRIORITY_SRCNAT),
        "what must come back through this node",
        masquerade,
    );
}
