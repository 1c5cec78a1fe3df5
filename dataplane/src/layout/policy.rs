//! NetworkPolicy: two maps from a pod's address to its *policy group*, one for each
//! direction.
//!
//! A group is the set of policies that select a pod; pods of one Deployment share it.
//! Its chain holds the allow rules, and success is always explicit: an egress rule ends
//! with `goto egress-allowed`, an ingress rule with `goto accepted`. The end of a chain,
//! and an address that is in no map, are a denial, see [`super::denials`]. No mark or set
//! carries a verdict from one direction to the other.
//!
//! ```text
//! forward -> from-pod -> egress4/6 -> egress-<group> -> egress-allowed -> to-pod -> ingress4/6 -> ...
//!         -> to-pod   -> ingress4/6 -> ingress-<group> -> accepted
//! ```
//!
//! **Live flows.** A flow that was accepted carries the *generation* of the policies in
//! its mark. While that is the current one, packets of its original direction pass at
//! once; replies always pass. Whatever can narrow a policy raises the generation in the
//! same commit, and each live flow is judged once more by its next packet: a newly
//! forbidden one is cut without a search of the conntrack table.

use crate::datatype::{DataType, Type};
use crate::desired::Desired;
use crate::field::{Field, ct_state};
use crate::layout::denials;
use crate::layout::ports::PORTS_OF_POD;
use crate::layout::services::{CLUSTER_IPS_CHAIN, HAIRPIN, UNSERVED_CHAIN};
use crate::layout::{
    GENERATION_MASK, INET, PRIORITY_FILTER, PerFamily, base_chain, per_family, regular_chain,
};
use crate::object::{ChainType, Hook, IpFamily, Name, Ruleset, SetSpec, Table};
use crate::rule::{Reference, Rule, Statement, Verdict};

/// Source address of a pod on this node to its egress group.
pub static EGRESS: PerFamily = per_family!("egress");
/// Destination address of a pod on this node to its ingress group.
pub static INGRESS: PerFamily = per_family!("ingress");

const ACCEPTED: &str = "accepted";
const EGRESS_ALLOWED: &str = "egress-allowed";
const FROM_POD: &str = "from-pod";
const TO_POD: &str = "to-pod";
const JUDGED: &str = "judged";
/// What names of chains of tiers begin with.
const TIER: &str = "tier-";

/// `IPPROTO_ICMP`, `IPPROTO_ICMPV6`.
const ICMP: [u8; 2] = [1, 58];
/// Neighbour solicitation and advertisement.
const NEIGHBOUR_DISCOVERY: [u8; 2] = [135, 136];

/// Ingress or egress.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// From the pod.
    Egress,
    /// To the pod.
    Ingress,
}

impl Direction {
    /// Both, in the order in which a packet meets them.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// `egress`, `ingress`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// The map from a pod's address to its group.
    pub fn map(self, family: IpFamily) -> &'static Name {
        match self {
            Self::Egress => EGRESS.of(family),
            Self::Ingress => INGRESS.of(family),
        }
    }

    /// The address of the other side of a packet.
    pub const fn peer_field(self, family: IpFamily) -> Field {
        match self {
            Self::Egress => family.daddr(),
            Self::Ingress => family.saddr(),
        }
    }

    /// What a rule that allows ends with, and what the map has for a pod that is not
    /// isolated in this direction.
    pub fn allowed(self) -> Verdict {
        Verdict::Goto(match self {
            Self::Egress => EGRESS_ALLOWED.into(),
            Self::Ingress => ACCEPTED.into(),
        })
    }

    /// Name of the chain with that hash of policies that are asked before or after those
    /// of groups; what it does not decide returns.
    pub fn tier_chain(self, tier: &str, hash: &str) -> Name {
        format!("{TIER}{tier}-{}-{hash}", self.name()).into()
    }

    /// Name of the chain of the group with that hash.
    pub fn group_chain(self, hash: &str) -> Name {
        format!("{}-{hash}", self.name()).into()
    }
}

/// Whether the chain is that of a policy group, or the one by which it audits.
pub fn is_group(chain: &Name) -> bool {
    let name = denials::group_of_audit(chain).unwrap_or(chain.as_str());
    let suffix = Direction::BOTH
        .into_iter()
        .find_map(|direction| name.strip_prefix(direction.name()));
    suffix.is_some_and(|rest| rest.starts_with('-')) && chain.as_str() != EGRESS_ALLOWED
}

/// The direction of a chain of a tier, or of the one that denies for it.
pub(super) fn direction_of_tier(chain: &str) -> Option<Direction> {
    let (_, rest) = chain.strip_prefix(TIER)?.split_once('-')?;
    let is_of = |direction: &Direction| {
        let hash = rest.strip_prefix(direction.name());
        hash.is_some_and(|hash| hash.starts_with('-') && hash.len() > 1)
    };
    Direction::BOTH.into_iter().find(is_of)
}

/// The rules that stand for those of a chain of policies that the kernel refuses: they
/// deny whatever is judged there, or tell of nothing where they only audit. `None` for other
/// chains, which nothing can stand for.
pub fn closed(chain: &Name) -> Option<Vec<Rule>> {
    if denials::is_audit(chain) {
        // What it cannot tell of is let go on, as what it can.
        return Some(Vec::new());
    }
    if let Some(direction) = direction_of_tier(chain.as_str()) {
        return Some(vec![Rule::new().goto(denials::denied_chain(direction))]);
    }
    // What comes back from a group's chain is denied.
    is_group(chain).then(Vec::new)
}

/// The chains of policies that would allow what they must not while an element is missing in
/// the set, with what is to stand for their rules. Where a rule that allows misses an address
/// less passes, and nothing need be done; half an interval is another interval.
pub fn opened_without(table: &Table, set: &Name) -> Vec<(Name, Vec<Rule>)> {
    let is_interval = table.sets.get(set).is_some_and(|set| set.spec.interval);
    let allows = |rule: &Rule| {
        let verdict = rule.statements.last();
        let allowed = Direction::BOTH.map(|direction| Statement::Verdict(direction.allowed()));
        verdict.is_some_and(|verdict| allowed.contains(verdict))
    };
    let opens = |rule: &Rule| reads(rule, set) && (is_interval || !allows(rule));
    let opened = table.chains.iter();
    let opened = opened.filter(|(_, chain)| chain.rules.iter().any(opens));
    opened
        .filter_map(|(name, _)| Some((name.clone(), closed(name)?)))
        .collect()
}

/// Whether policies hang on the set: it binds addresses to them, or their rules read it.
pub fn is_read_by_policies(table: &Table, set: &Name) -> bool {
    let is_of_policies = |name: &Name| closed(name).is_some();
    let mut chains = table.chains.iter().filter(|(name, _)| is_of_policies(name));
    binds(set) || chains.any(|(_, chain)| chain.rules.iter().any(|rule| reads(rule, set)))
}

/// Whether the map binds addresses to policies.
pub fn binds(map: &Name) -> bool {
    let maps = [&EGRESS, &INGRESS];
    maps.iter().any(|of| of.0.contains(map))
}

fn reads(rule: &Rule, set: &Name) -> bool {
    rule.references()
        .any(|reference| reference == Reference::Set(set))
}

/// The rules that let a pod have what it has sent to itself by a Service: no NetworkPolicy
/// can keep it from that.
pub fn to_itself(allowed: &Verdict) -> [Rule; 2] {
    IpFamily::BOTH.map(|family| {
        Rule::new()
            .family(family)
            .in_set(
                &[family.saddr(), family.daddr()],
                HAIRPIN.of(family).clone(),
            )
            .verdict(allowed.clone())
            .comment("a pod cannot be kept from itself")
    })
}

/// The generation that a ruleset has, see [`set_generation`].
pub fn generation(ruleset: &Ruleset) -> Option<u16> {
    let judged = ruleset.tables.get(&*INET)?.chains.get(JUDGED)?;
    let statements = judged.rules.iter().flat_map(|rule| &rule.statements);
    let mut mark = statements.filter_map(|statement| match statement {
        Statement::Masked {
            field: Field::CtMark,
            mask: GENERATION_MASK,
            value,
        } => Some(value >> GENERATION_MASK.trailing_zeros()),
        _ => None,
    });
    mark.next_back()
        .and_then(|generation| u16::try_from(generation).ok())
}

/// What the map has for a pod that is isolated in this direction: its group decides,
/// and what comes back from the chain is denied.
pub fn isolated(group_chain: Name) -> Verdict {
    Verdict::Jump(group_chain)
}

/// The bits of a flow's mark that stand for a generation, within [`GENERATION_MASK`].
pub fn generation_mark(generation: u16) -> u32 {
    u32::from(generation) << GENERATION_MASK.trailing_zeros()
}

/// Wants `generation` as the current one: flows judged under another are judged again.
pub fn set_generation(desired: &mut Desired, generation: u16) {
    let mark = generation_mark(generation);
    regular_chain(
        desired,
        JUDGED,
        "flows that the current policies have allowed",
        vec![
            Rule::new()
                .eq(Field::CtDirection, &[0])
                .with(Statement::Masked {
                    field: Field::CtMark,
                    mask: GENERATION_MASK,
                    value: mark,
                })
                .accept(),
        ],
    );
    regular_chain(
        desired,
        ACCEPTED,
        "allowed: remember it for the rest of the flow",
        vec![
            Rule::new()
                .with(Statement::SetCtMark {
                    mask: !GENERATION_MASK,
                    xor: mark,
                })
                .accept(),
        ],
    );
}

pub(super) fn install(desired: &mut Desired, generation: u16) {
    for family in IpFamily::BOTH {
        let address = Type::of(&[family.addr_type()]);
        for direction in Direction::BOTH {
            let comment = match direction {
                Direction::Egress => "this node's pods: what they may reach",
                Direction::Ingress => "this node's pods: who may reach them",
            };
            let spec = SetSpec::verdict_map(address, comment);
            desired.set(&INET, direction.map(family), spec);
        }
    }
    set_generation(desired, generation);
    install_verdict_chains(desired);
    install_base_chains(desired);
}

fn install_verdict_chains(desired: &mut Desired) {
    let invalid = Rule::new().ct_state(ct_state::INVALID).drop();
    let dispatch = |direction: Direction| {
        IpFamily::BOTH.map(|family| {
            let own = match direction {
                Direction::Egress => family.saddr(),
                Direction::Ingress => family.daddr(),
            };
            Rule::new()
                .family(family)
                .vmap(&[own], direction.map(family).clone())
        })
    };
    let mut from_pod = vec![invalid.clone(), Rule::new().jump(JUDGED)];
    from_pod.extend(dispatch(Direction::Egress));
    from_pod.push(Rule::new().goto(denials::closed_chain(Direction::Egress)));
    regular_chain(desired, FROM_POD, "egress policy of the source", from_pod);

    let mut egress_allowed = to_pods(|rule| rule.goto(TO_POD));
    egress_allowed.push(Rule::new().goto(ACCEPTED));
    regular_chain(
        desired,
        EGRESS_ALLOWED,
        "the source may send it; may the destination get it?",
        egress_allowed,
    );

    let mut to_pod = vec![invalid, Rule::new().jump(JUDGED)];
    to_pod.extend(dispatch(Direction::Ingress));
    to_pod.push(Rule::new().goto(denials::closed_chain(Direction::Ingress)));
    regular_chain(desired, TO_POD, "ingress policy of the destination", to_pod);
}

fn install_base_chains(desired: &mut Desired) {
    let mut common = vec![
        Rule::new()
            .eq(Field::CtDirection, &[1])
            .ct_state(ct_state::ESTABLISHED)
            .accept()
            .comment("replies"),
    ];
    common.extend(ICMP.map(|protocol| {
        Rule::new()
            .ct_state(ct_state::RELATED)
            .l4proto(protocol)
            .accept()
            .comment("errors about a flow, path MTU among them")
    }));
    common.push(Rule::new().ct_new().jump(UNSERVED_CHAIN));

    let mut forward = common.clone();
    forward.push(Rule::new().ct_new().jump(CLUSTER_IPS_CHAIN));
    forward.extend(super::ports::neighbour_discovery());
    forward.extend(from_pods(|rule| rule.goto(FROM_POD)));
    forward.extend(to_pods(|rule| rule.goto(TO_POD)));
    base_chain(
        desired,
        &INET,
        "forward",
        (ChainType::Filter, Hook::Forward, PRIORITY_FILTER),
        "from, to and between pods",
        forward,
    );

    let mut input = common;
    for kind in NEIGHBOUR_DISCOVERY {
        input.push(
            Rule::new()
                .family(IpFamily::V6)
                .l4proto(58)
                .eq(Field::Icmpv6Type, &[kind])
                .accept(),
        );
    }
    input.extend(from_pods(|rule| rule.goto(FROM_POD)));
    base_chain(
        desired,
        &INET,
        "input",
        (ChainType::Filter, Hook::Input, PRIORITY_FILTER),
        "from pods to this node",
        input,
    );
}

/// Rules for what comes in from a pod: by the bridge, or by a routed veth.
fn from_pods(end: impl Fn(Rule) -> Rule) -> Vec<Rule> {
    pod_interfaces(Field::Iifname, end)
}

/// Rules for what goes out to a pod. They do not match at the input hook, where there is
/// no output interface.
fn to_pods(end: impl Fn(Rule) -> Rule) -> Vec<Rule> {
    pod_interfaces(Field::Oifname, end)
}

fn pod_interfaces(field: Field, end: impl Fn(Rule) -> Rule) -> Vec<Rule> {
    vec![
        end(Rule::new().in_set(&[field], PORTS_OF_POD.clone())),
        end(Rule::new().eq(field, crate::attachment::PORT_PREFIX.as_bytes())),
    ]
}

/// Key type of a set of peers' addresses.
pub fn peer_type(family: IpFamily) -> Type {
    Type::of(&[family.addr_type()])
}

/// Key type of a set of `address . protocol . port`, for named ports.
pub fn named_port_type(family: IpFamily) -> Type {
    Type::of(&[
        family.addr_type(),
        DataType::InetProto,
        DataType::InetService,
    ])
}
