//! Walks a packet through the rules, as the kernel does.
//!
//! The tracer interprets the same syntax tree that is written to the kernel. Tests use
//! it to ask what a ruleset *means* instead of how it is spelt; `explain` uses it to show
//! which rule decided.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::attachment::MacAddr;
use crate::datatype::Bytes;
use crate::field::{Field, ct_state};
use crate::object::{
    ChainType, Family, Hook, IpFamily, Key, Name, Ruleset, Set, SetKind, Table, TableId, Value,
};
use crate::rule::{Comparison, NewAddress, Reject, Rule, Statement, Verdict};

/// Jumps nest at most so deep (`NFT_JUMP_STACK_SIZE`).
const JUMP_STACK: usize = 16;

/// A packet with what the host knows of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Interface it came in by; empty for one that this host sends, and at postrouting for
    /// one that br_netfilter keeps in its bridge.
    pub iifname: String,
    /// Interface it goes out by, once routed.
    pub oifname: Option<String>,
    /// Sender on the link.
    pub ether_saddr: MacAddr,
    /// Source.
    pub saddr: IpAddr,
    /// Destination.
    pub daddr: IpAddr,
    /// IP protocol.
    pub l4proto: u8,
    /// Source port; for ICMPv6 the high byte is the type.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Whether the source is an address of this host (`fib saddr type local`).
    pub from_local: bool,
    /// Whether the destination is an address of this host (`fib daddr type local`).
    pub to_local: bool,
    /// The flow that it belongs to.
    pub flow: Flow,
}

/// What conntrack knows of a packet's flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// One of the [`ct_state`] bits.
    pub state: u32,
    /// Whether the packet goes against the flow's first.
    pub reply: bool,
    /// Mark of the flow.
    pub mark: u32,
    /// Status bits, see [`crate::field::ct_status`].
    pub status: u32,
    /// Source before translation.
    pub original_saddr: IpAddr,
    /// Destination before translation.
    pub original_daddr: IpAddr,
    /// Destination port before translation.
    pub original_dport: u16,
}

impl Packet {
    /// The first packet of a flow.
    pub fn first(saddr: IpAddr, daddr: IpAddr, l4proto: u8, dport: u16) -> Self {
        Self {
            iifname: String::new(),
            oifname: None,
            ether_saddr: MacAddr([0; 6]),
            saddr,
            daddr,
            l4proto,
            sport: 40_000,
            dport,
            from_local: false,
            to_local: false,
            flow: Flow {
                state: ct_state::NEW,
                reply: false,
                mark: 0,
                status: 0,
                original_saddr: saddr,
                original_daddr: daddr,
                original_dport: dport,
            },
        }
    }
}

/// What became of the packet at a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It goes on.
    Accepted,
    /// It is gone.
    Dropped,
    /// It is gone and the sender was told.
    Rejected(Reject),
}

/// A rule that matched all the way to its verdict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Table.
    pub table: TableId,
    /// Chain.
    pub chain: Name,
    /// The rule, in `nft` syntax.
    pub rule: String,
    /// What it decided.
    pub verdict: String,
}

/// `inet trammel forward: oifname @pod-interfaces goto to-pod`
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.table, self.chain, self.rule)
    }
}

/// A walk through one hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// What became of it.
    pub fate: Fate,
    /// Whether the source address is to be that of the outgoing interface.
    pub masquerade: bool,
    /// The rules that decided something, in order.
    pub steps: Vec<Step>,
    /// The prefixes under which it was logged, rate limits aside.
    pub logged: Vec<Arc<str>>,
    /// What was put into dynamic maps. The tracer does not write it there.
    pub learnt: Vec<Learnt>,
}

/// An entry of a dynamic map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Learnt {
    /// Table.
    pub table: TableId,
    /// Map.
    pub map: Name,
    /// Key.
    pub key: Key,
    /// Data.
    pub data: Key,
}

/// Walks packets through a ruleset.
pub struct Tracer<'a> {
    ruleset: &'a Ruleset,
    /// Chooses a slot, given their number: random for the kernel.
    choose: &'a dyn Fn(u32) -> u32,
}

/// How a chain ended.
enum End {
    Fate(Fate),
    /// Accepted by this base chain, or translated by it: the next one decides.
    NextBase,
    Fallthrough,
}

impl<'a> Tracer<'a> {
    /// A tracer whose random slots are what `choose` makes of their number.
    pub const fn new(ruleset: &'a Ruleset, choose: &'a dyn Fn(u32) -> u32) -> Self {
        Self { ruleset, choose }
    }

    /// Walks the base chains of a hook by priority, and changes the packet as they do.
    pub fn hook(&self, family: Family, hook: Hook, packet: &mut Packet) -> Trace {
        let mut base_chains: Vec<_> = self
            .ruleset
            .tables
            .iter()
            .filter(|(id, _)| id.family == family)
            .flat_map(|(id, table)| {
                table
                    .chains
                    .iter()
                    .map(move |(name, chain)| (id, table, name, chain))
            })
            .filter_map(|(id, table, name, chain)| Some((chain.base?, id, table, name)))
            .filter(|(base, ..)| base.hook == hook)
            // Only the first packet of a flow meets the nat chains.
            .filter(|(base, ..)| base.kind != ChainType::Nat || packet.flow.state == ct_state::NEW)
            .collect();
        base_chains.sort_by_key(|(base, ..)| base.priority);

        let mut trace = Trace {
            fate: Fate::Accepted,
            masquerade: false,
            steps: Vec::new(),
            logged: Vec::new(),
            learnt: Vec::new(),
        };
        for (_, id, table, name) in base_chains {
            let mut walk = Walk {
                id,
                table,
                choose: self.choose,
                packet: &mut *packet,
                trace: &mut trace,
            };
            if let End::Fate(fate) = walk.chain(name, 0) {
                trace.fate = fate;
                break;
            }
        }
        trace
    }
}

struct Walk<'a, 'w> {
    id: &'a TableId,
    table: &'a Table,
    choose: &'a dyn Fn(u32) -> u32,
    packet: &'w mut Packet,
    trace: &'w mut Trace,
}

/// What a statement did.
enum Outcome {
    Continue,
    NoMatch,
    Verdict(Verdict),
    End(End),
}

impl Walk<'_, '_> {
    fn chain(&mut self, name: &Name, depth: usize) -> End {
        assert!(depth <= JUMP_STACK, "jumps nest too deep at chain {name}");
        let Some(chain) = self.table.chains.get(name) else {
            panic!("no chain {name} in table {}", self.id);
        };
        for rule in &chain.rules {
            let (verdict, shown) = match self.rule(rule) {
                Outcome::Continue | Outcome::NoMatch => continue,
                Outcome::End(end) => {
                    let shown = rule.statements.last().map(ToString::to_string);
                    self.step(name, rule, shown.unwrap_or_default());
                    return end;
                }
                Outcome::Verdict(verdict) => {
                    let shown = verdict.to_string();
                    (verdict, shown)
                }
            };
            self.step(name, rule, shown);
            match verdict {
                Verdict::Accept => return End::NextBase,
                Verdict::Drop => return End::Fate(Fate::Dropped),
                Verdict::Return => return End::Fallthrough,
                Verdict::Goto(target) => return self.chain(&target, depth),
                Verdict::Jump(target) => match self.chain(&target, depth + 1) {
                    End::Fallthrough => {}
                    end => return end,
                },
            }
        }
        End::Fallthrough
    }

    fn step(&mut self, chain: &Name, rule: &Rule, verdict: String) {
        self.trace.steps.push(Step {
            table: self.id.clone(),
            chain: chain.clone(),
            rule: rule.to_string(),
            verdict,
        });
    }

    fn rule(&mut self, rule: &Rule) -> Outcome {
        for statement in &rule.statements {
            match self.statement(statement) {
                Outcome::Continue => {}
                other => return other,
            }
        }
        Outcome::Continue
    }

    fn statement(&mut self, statement: &Statement) -> Outcome {
        let matched = match statement {
            Statement::Match { field, op, value } => self.load(*field).is_some_and(|loaded| {
                let equal = loaded.get(..value.len()) == Some(&**value);
                equal == (*op == Comparison::Eq)
            }),
            Statement::AnyBit { field, bits } => self.word(*field) & bits != 0,
            Statement::Masked { field, mask, value } => self.word(*field) & mask == *value,
            Statement::Range { field, from, to } => self
                .load(*field)
                .is_some_and(|loaded| *loaded >= **from && *loaded <= **to),
            Statement::InSet { key, set, negate } => match self.key(key) {
                Some(key) => contains(self.set(set), &key) != *negate,
                None => false,
            },
            Statement::VerdictMap { key, map } => {
                return match self.find(key, map) {
                    Some(Value::Verdict(verdict)) => Outcome::Verdict(verdict),
                    _ => Outcome::NoMatch,
                };
            }
            Statement::Dnat { family, key, map } => {
                return match self.find(key, map) {
                    Some(Value::Data(data)) => self.translate(*family, &data),
                    _ => Outcome::NoMatch,
                };
            }
            Statement::SetAddress { field, to } => {
                let address = match to {
                    NewAddress::Of(source) => self.load(*source),
                    NewAddress::Mapped { key, map } => match self.find(key, map) {
                        Some(Value::Data(data)) => Some(data),
                        _ => None,
                    },
                };
                address.is_some_and(|address| self.set_address(*field, &address))
            }
            Statement::SetCtMark { mask, xor } => {
                self.packet.flow.mark = self.packet.flow.mark & mask ^ xor;
                true
            }
            Statement::Masquerade => {
                self.trace.masquerade = true;
                return Outcome::End(End::NextBase);
            }
            Statement::Reject(how) => {
                return Outcome::End(End::Fate(Fate::Rejected(*how)));
            }
            Statement::Verdict(verdict) => return Outcome::Verdict(verdict.clone()),
            Statement::Log { prefix, .. } => {
                self.trace.logged.push(Arc::clone(prefix));
                true
            }
            Statement::Update { map, key, data, .. } => self.learn(map, key, data),
            // Counting does not decide.
            Statement::Notrack
            | Statement::Limit { .. }
            | Statement::LimitEach { .. }
            | Statement::Counter => true,
            Statement::Foreign(name) => panic!("cannot trace the foreign expression {name}"),
        };
        if matched {
            Outcome::Continue
        } else {
            Outcome::NoMatch
        }
    }

    /// Whether the packet has what is learnt. The map has room.
    fn learn(&mut self, map: &Name, key: &[Field], data: &[Field]) -> bool {
        let Some((key, data)) = self.key(key).zip(self.key(data)) else {
            return false;
        };
        self.trace.learnt.push(Learnt {
            table: self.id.clone(),
            map: map.clone(),
            key,
            data,
        });
        true
    }

    /// Whether the packet has such an address.
    fn set_address(&mut self, field: Field, bytes: &[u8]) -> bool {
        let family = IpFamily::of(self.packet.daddr);
        let place = match field {
            field if field == family.saddr() => &mut self.packet.saddr,
            field if field == family.daddr() => &mut self.packet.daddr,
            _ => return false,
        };
        *place = address(family, bytes);
        true
    }

    fn translate(&mut self, family: IpFamily, data: &[u8]) -> Outcome {
        let (addr, port) = data.split_at(family.addr_len());
        self.packet.daddr = address(family, addr);
        self.packet.dport = u16::from_be_bytes([port[0], port[1]]);
        self.packet.flow.status |= crate::field::ct_status::DNAT;
        Outcome::End(End::NextBase)
    }

    fn set(&self, name: &Name) -> &Set {
        let set = self.table.sets.get(name);
        set.unwrap_or_else(|| panic!("no set {name} in table {}", self.id))
    }

    fn find(&self, key: &[Field], map: &Name) -> Option<Value> {
        let key = self.key(key)?;
        let element = self.set(map).elements.get(&key)?;
        Some(element.value.clone())
    }

    fn key(&self, fields: &[Field]) -> Option<Key> {
        if let [single] = fields {
            return self.load(*single);
        }
        let mut bytes = Bytes::new();
        for field in fields {
            bytes = bytes.raw(&self.load(*field)?);
        }
        Some(bytes.build())
    }

    fn word(&self, field: Field) -> u32 {
        let loaded = self.load(field);
        loaded.map_or(0, |bytes| {
            u32::from_ne_bytes((*bytes).try_into().expect("a word"))
        })
    }

    /// The field's bytes; `None` where the packet has none, and the rule does not match.
    fn load(&self, field: Field) -> Option<Key> {
        let packet = &*self.packet;
        let flow = &packet.flow;
        let bytes = Bytes::new();
        let family = IpFamily::of(packet.daddr);
        let of_family = |wanted: IpFamily, addr: IpAddr| {
            (wanted == family).then(|| Bytes::new().addr(addr).build())
        };
        let has_ports = matches!(packet.l4proto, 6 | 17 | 132);
        let exact = |bytes: &[u8]| -> Option<Key> { Some(bytes.into()) };
        match field {
            Field::NfProto => exact(&[family.nfproto()]),
            Field::EtherType => exact(match family {
                IpFamily::V4 => &[0x08, 0x00],
                IpFamily::V6 => &[0x86, 0xdd],
            }),
            Field::L4Proto => exact(&[packet.l4proto]),
            // Rules ask only whether there is one.
            Field::Iif => Some(bytes.word(u32::from(!packet.iifname.is_empty())).build()),
            Field::Iifname => Some(bytes.ifname(&packet.iifname).build()),
            Field::Oifname => Some(bytes.ifname(packet.oifname.as_ref()?).build()),
            Field::EtherSaddr => exact(&packet.ether_saddr.0),
            // The packets of the tracer are IP, and routed.
            Field::ArpSaddrEther | Field::ArpSaddrIp | Field::Ip6HopLimit | Field::NdTarget => None,
            Field::IpSaddr => of_family(IpFamily::V4, packet.saddr),
            Field::IpDaddr => of_family(IpFamily::V4, packet.daddr),
            Field::Ip6Saddr => of_family(IpFamily::V6, packet.saddr),
            Field::Ip6Daddr => of_family(IpFamily::V6, packet.daddr),
            Field::Sport => has_ports.then(|| packet.sport.to_be_bytes().into()),
            Field::Dport => has_ports.then(|| packet.dport.to_be_bytes().into()),
            Field::Icmpv6Type => exact(&packet.sport.to_be_bytes()[..1]),
            Field::CtState => Some(bytes.word(flow.state).build()),
            Field::CtDirection => exact(&[u8::from(flow.reply)]),
            Field::CtMark => Some(bytes.word(flow.mark).build()),
            Field::CtStatus => Some(bytes.word(flow.status).build()),
            Field::CtOrigIpSaddr => of_family(IpFamily::V4, flow.original_saddr),
            Field::CtOrigIp6Saddr => of_family(IpFamily::V6, flow.original_saddr),
            Field::CtOrigIpDaddr => of_family(IpFamily::V4, flow.original_daddr),
            Field::CtOrigIp6Daddr => of_family(IpFamily::V6, flow.original_daddr),
            Field::CtOrigProtoDst => exact(&flow.original_dport.to_be_bytes()),
            Field::FibSaddrType => Some(bytes.word(if packet.from_local { 2 } else { 1 }).build()),
            Field::FibDaddrType => Some(bytes.word(if packet.to_local { 2 } else { 1 }).build()),
            Field::Random(modulus)
            | Field::RoundRobin(modulus)
            | Field::SourceHash { modulus, .. } => {
                Some(bytes.word((self.choose)(modulus) % modulus).build())
            }
        }
    }
}

/// # Panics
/// Where there are not as many bytes as an address has.
fn address(family: IpFamily, bytes: &[u8]) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::from(<[u8; 4]>::try_from(bytes).expect("4 bytes")),
        IpFamily::V6 => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("16 bytes")),
    }
}

fn contains(set: &Set, key: &Key) -> bool {
    if !set.spec.interval {
        return set.elements.contains_key(key);
    }
    debug_assert!(matches!(set.spec.kind, SetKind::Set));
    let below = set.elements.range(..=key.clone()).next_back();
    below.is_some_and(|(_, element)| !element.interval_end)
}
