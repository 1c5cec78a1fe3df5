//! The objects of a ruleset: tables, chains, sets and maps with their elements.
//!
//! They carry what identifies and defines them and nothing that the kernel makes
//! up (handles, use counts), so that what is written can be compared with what is
//! dumped.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::datatype::{DataType, Type};
use crate::field::Field;
use crate::rule::{Rule, Verdict};

/// Name of a table, chain, set or map: at most [`Name::MAX`] bytes. Cheap to clone,
/// since elements of a verdict map each hold one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// `NFT_NAME_MAXLEN` without the final zero.
    pub const MAX: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    /// # Panics
    /// Where the name is longer than [`Name::MAX`]: names are made by this project,
    /// of bounded parts.
    fn from(name: &str) -> Self {
        assert!(name.len() <= Self::MAX, "name of {} bytes", name.len());
        Self(name.into())
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Address family of a table, `NFPROTO_*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames on a bridge.
    Bridge,
    /// IPv4 alone: tables of others.
    Ip,
    /// IPv6 alone: tables of others.
    Ip6,
}

impl Family {
    /// The kernel's number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Bridge => 7,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// Name in `nft` syntax.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// IPv4 or IPv6, where a set, a rule or a translation is of one of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both, for tables that are written per family.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    pub const fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Length of an address in bytes.
    pub const fn addr_len(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// `0.0.0.0`, `::`.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        }
    }

    /// Type of an address.
    pub const fn addr_type(self) -> DataType {
        match self {
            Self::V4 => DataType::Ipv4Addr,
            Self::V6 => DataType::Ipv6Addr,
        }
    }

    /// Source address of a packet.
    pub const fn saddr(self) -> Field {
        match self {
            Self::V4 => Field::IpSaddr,
            Self::V6 => Field::Ip6Saddr,
        }
    }

    /// Destination address of a packet.
    pub const fn daddr(self) -> Field {
        match self {
            Self::V4 => Field::IpDaddr,
            Self::V6 => Field::Ip6Daddr,
        }
    }

    /// Suffix of the names of sets: `4` or `6`.
    pub const fn suffix(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

/// What names a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableId {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: Name,
}

impl TableId {
    /// The table `name` of `family`.
    pub fn new(family: Family, name: &str) -> Self {
        Self {
            family,
            name: name.into(),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.name(), self.name)
    }
}

/// Where a base chain is hooked in, `NF_INET_*` (the bridge family has the same
/// numbers for the hooks that it shares).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// The kernel's number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ]
        .into_iter()
        .find(|hook| hook.number() == number)
    }

    /// Name in `nft` syntax.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// Type of a base chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainType {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a flow; may translate addresses.
    Nat,
}

impl ChainType {
    /// The kernel's name, `NFTA_CHAIN_TYPE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// What makes a chain a base chain. The policy of ours is always accept: what is to be
/// dropped is dropped by a rule that can be read and counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseChain {
    /// Type.
    pub kind: ChainType,
    /// Hook.
    pub hook: Hook,
    /// Priority among the base chains of the hook; lower sees a packet first.
    pub priority: i32,
    /// Whether somebody else has made drop the policy.
    pub drops: bool,
}

/// A chain with its rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chain {
    /// Hook, for a base chain.
    pub base: Option<BaseChain>,
    /// Shown by `nft list`, kernel 5.10.
    pub comment: Option<Arc<str>>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A regular chain.
    pub fn regular(comment: &str, rules: Vec<Rule>) -> Self {
        Self {
            base: None,
            comment: (!comment.is_empty()).then(|| comment.into()),
            rules,
        }
    }

    /// A base chain.
    pub fn base(base: BaseChain, comment: &str, rules: Vec<Rule>) -> Self {
        Self {
            base: Some(base),
            ..Self::regular(comment, rules)
        }
    }
}

/// What a set's elements carry besides their key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetKind {
    /// Nothing: a set.
    Set,
    /// Data: a map.
    Map(Type),
    /// A verdict: a verdict map.
    VerdictMap,
}

/// Declaration of a set or map. A declaration cannot be changed in place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetSpec {
    /// Type of the key.
    pub key: Type,
    /// What the elements carry.
    pub kind: SetKind,
    /// Keys are the ends of intervals: an element opens one and the next, marked
    /// [`Element::interval_end`], closes it before its key. Only for keys of one field.
    pub interval: bool,
    /// Elements are added by rules and time out (`flags dynamic,timeout`); they are no part
    /// of the desired state.
    pub dynamic: Option<Dynamic>,
    /// Shown by `nft list`, kernel 5.10 with nft 1.0.0.
    pub comment: Option<Arc<str>>,
}

/// Bounds of a set that rules add to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dynamic {
    /// Milliseconds until an element that was not updated goes; 0: the rule says it.
    pub timeout_ms: u64,
    /// At most so many elements; further ones are not learnt.
    pub size: u32,
}

impl SetSpec {
    /// A plain set.
    pub fn set(key: Type, comment: &str) -> Self {
        Self {
            key,
            kind: SetKind::Set,
            interval: false,
            dynamic: None,
            comment: (!comment.is_empty()).then(|| comment.into()),
        }
    }

    /// A map from `key` to `data`.
    pub fn map(key: Type, data: Type, comment: &str) -> Self {
        Self {
            kind: SetKind::Map(data),
            ..Self::set(key, comment)
        }
    }

    /// A map from `key` to verdicts.
    pub fn verdict_map(key: Type, comment: &str) -> Self {
        Self {
            kind: SetKind::VerdictMap,
            ..Self::set(key, comment)
        }
    }

    /// A map from `key` to `data` that rules add to.
    pub fn learnt(key: Type, data: Type, bounds: Dynamic, comment: &str) -> Self {
        Self {
            dynamic: Some(bounds),
            ..Self::map(key, data, comment)
        }
    }

    /// A set of intervals.
    pub fn intervals(key: Type, comment: &str) -> Self {
        Self {
            interval: true,
            ..Self::set(key, comment)
        }
    }
}

/// As much of a comment as the kernel keeps, cut at a character boundary: 127 bytes.
pub(crate) fn shortened(comment: &str) -> &str {
    let mut end = comment.len().min(127);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    &comment[..end]
}

/// Bytes of a key, of the length that the set's key type has. Shared: the desired state, its
/// record of changes and transactions hold the same ones.
pub type Key = Arc<[u8]>;

/// What an element carries besides its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Nothing.
    None,
    /// Bytes of the map's data type.
    Data(Arc<[u8]>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map, without its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element {
    /// What it maps to.
    pub value: Value,
    /// Closes the interval that the element before opens.
    pub interval_end: bool,
    /// Shown by `nft list`; at most 127 bytes are kept.
    pub comment: Option<Arc<str>>,
}

impl Element {
    /// A member of a plain set.
    pub const fn member() -> Self {
        Self::of(Value::None)
    }

    /// An element with data.
    pub fn data(data: Arc<[u8]>) -> Self {
        Self::of(Value::Data(data))
    }

    /// An element with a verdict.
    pub const fn verdict(verdict: Verdict) -> Self {
        Self::of(Value::Verdict(verdict))
    }

    const fn of(value: Value) -> Self {
        Self {
            value,
            interval_end: false,
            comment: None,
        }
    }

    /// The same with a comment, cut at a character boundary to what fits.
    #[must_use]
    pub fn with_comment(mut self, comment: &str) -> Self {
        let comment = shortened(comment);
        self.comment = (!comment.is_empty()).then(|| comment.into());
        self
    }

    /// The element that closes an interval.
    pub const fn end_of_interval() -> Self {
        Self {
            interval_end: true,
            value: Value::None,
            comment: None,
        }
    }
}

/// A set or map with its elements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Declaration.
    pub spec: SetSpec,
    /// Elements by key; empty for a dynamic set.
    pub elements: BTreeMap<Key, Element>,
}

impl Set {
    /// An empty set.
    pub const fn new(spec: SetSpec) -> Self {
        Self {
            spec,
            elements: BTreeMap::new(),
        }
    }
}

/// A table with all that is in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// Whether somebody else has put it to sleep: no packet sees its rules.
    pub is_dormant: bool,
    /// Chains by name.
    pub chains: BTreeMap<Name, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<Name, Set>,
}

/// All tables of one owner: what is desired, what was applied, or what the kernel
/// lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ruleset {
    /// Tables.
    pub tables: BTreeMap<TableId, Table>,
}
