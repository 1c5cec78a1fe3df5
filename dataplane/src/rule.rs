//! Rules: a small typed syntax tree in the shape of an `nft` rule.
//!
//! It is the one description of a rule: [`crate::netlink`] turns it into the
//! kernel's register expressions and back, [`crate::print`] into text, and
//! [`crate::trace`] walks packets through it. It holds what the data plane needs and
//! what `nft` 1.0.6 can list; other expressions of a foreign rule become
//! [`Statement::Foreign`].

use std::sync::Arc;

use crate::field::{Field, ct_state};
use crate::object::{IpFamily, Name};

/// A rule: statements evaluated left to right until one does not match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
    /// Shown by `nft list`; at most 127 bytes.
    pub comment: Option<Arc<str>>,
}

/// How a field is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
}

/// What a packet's fate becomes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No further rule of this hook's chain; other tables still decide.
    Accept,
    /// Gone.
    Drop,
    /// Back to the caller; from a base chain: accept.
    Return,
    /// Continue in the chain and come back at its end.
    Jump(Name),
    /// Continue in the chain; at its end back to this chain's caller.
    Goto(Name),
}

impl Verdict {
    /// The chain that it leads to.
    pub const fn target(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

/// How a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// ICMP or ICMPv6 port unreachable; a TCP client sees "connection refused".
    PortUnreachable,
    /// ICMP or ICMPv6 administratively prohibited.
    AdminProhibited,
    /// TCP reset; only in a rule that has matched TCP.
    TcpReset,
}

/// What an address of the packet becomes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewAddress {
    /// What the field has.
    Of(Field),
    /// What the map has for the concatenation.
    Mapped {
        /// Concatenated key.
        key: Vec<Field>,
        /// Map to an address.
        map: Name,
    },
}

/// One statement of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// The field equals the value, or not. A value shorter than an interface name is a
    /// prefix.
    Match {
        /// What is compared.
        field: Field,
        /// How.
        op: Comparison,
        /// With what, in the field's byte order.
        value: Box<[u8]>,
    },
    /// Some of the bits are set in a field of 4 bytes (`ct state new`).
    AnyBit {
        /// What is tested.
        field: Field,
        /// The bits, host order.
        bits: u32,
    },
    /// The field, cut to the mask, equals the value. 4 bytes, host order.
    Masked {
        /// What is compared.
        field: Field,
        /// Bits that count.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// The field is between two values of its own length, both inclusive, in network
    /// order.
    Range {
        /// What is compared.
        field: Field,
        /// Lowest.
        from: Box<[u8]>,
        /// Highest.
        to: Box<[u8]>,
    },
    /// The concatenation is in the set, or not.
    InSet {
        /// Concatenated key.
        key: Vec<Field>,
        /// Name of the set.
        set: Name,
        /// Match where it is not.
        negate: bool,
    },
    /// The verdict that the map has for the concatenation; without one the rule does
    /// not match.
    VerdictMap {
        /// Concatenated key.
        key: Vec<Field>,
        /// Name of the map.
        map: Name,
    },
    /// Destination address and port become what the map has for the concatenation;
    /// without an entry the rule does not match. Ends the evaluation.
    Dnat {
        /// Family of the new address.
        family: IpFamily,
        /// Concatenated key.
        key: Vec<Field>,
        /// Map to `addr . port`.
        map: Name,
    },
    /// An address of this packet becomes another, its checksums with it; conntrack is not
    /// told. Where the map has none the rule does not match.
    SetAddress {
        /// Source or destination of the IP header.
        field: Field,
        /// The new one.
        to: NewAddress,
    },
    /// The source address becomes that of the outgoing interface, with a random port.
    Masquerade,
    /// The flow's mark becomes `mark & mask ^ xor`.
    SetCtMark {
        /// Bits that are kept.
        mask: u32,
        /// Bits that are flipped after that.
        xor: u32,
    },
    /// Adds or refreshes an element of a dynamic map. Does not match where the map is full.
    Update {
        /// The map.
        map: Name,
        /// Concatenated key.
        key: Vec<Field>,
        /// Concatenated data.
        data: Vec<Field>,
        /// Milliseconds until the element goes, from now on; 0: as the map says.
        timeout_ms: u64,
    },
    /// The packet starts no flow and belongs to none. Only at raw priority, before
    /// conntrack.
    Notrack,
    /// Refuse.
    Reject(Reject),
    /// At most so many packets a second pass this statement, after a burst.
    Limit {
        /// Packets a second.
        rate: u64,
        /// Packets at once.
        burst: u32,
    },
    /// The same for each key by itself: its element of a dynamic set counts. Does not match
    /// where the set is full.
    LimitEach {
        /// The set.
        set: Name,
        /// Concatenated key.
        key: Vec<Field>,
        /// Packets a second.
        rate: u64,
        /// Packets at once.
        burst: u32,
    },
    /// Hand the packet to whoever listens to the NFLOG group.
    Log {
        /// NFLOG group.
        group: u16,
        /// Handed over with it; at most 127 bytes.
        prefix: Arc<str>,
        /// At most so many bytes of the packet.
        snaplen: u32,
    },
    /// Count packets and bytes.
    Counter,
    /// The verdict.
    Verdict(Verdict),
    /// An expression of a foreign rule, by its kernel name. Never written.
    Foreign(Arc<str>),
}

impl Rule {
    /// A rule without statements, to which the methods below append: they read like
    /// the `nft` rule that they make.
    pub const fn new() -> Self {
        Self {
            statements: Vec::new(),
            comment: None,
        }
    }

    /// Appends a statement.
    #[must_use]
    pub fn with(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    /// Sets the comment; what the kernel would not keep of it is cut off.
    #[must_use]
    pub fn comment(mut self, comment: &str) -> Self {
        self.comment = Some(crate::object::shortened(comment).into());
        self
    }

    /// The field equals the value.
    #[must_use]
    pub fn eq(self, field: Field, value: &[u8]) -> Self {
        self.compare(field, Comparison::Eq, value)
    }

    /// The field does not equal the value.
    #[must_use]
    pub fn ne(self, field: Field, value: &[u8]) -> Self {
        self.compare(field, Comparison::Ne, value)
    }

    fn compare(self, field: Field, op: Comparison, value: &[u8]) -> Self {
        self.with(Statement::Match {
            field,
            op,
            value: value.into(),
        })
    }

    /// `meta nfproto`: the packet is of the family.
    #[must_use]
    pub fn family(self, family: IpFamily) -> Self {
        self.eq(Field::NfProto, &[family.nfproto()])
    }

    /// `meta l4proto`.
    #[must_use]
    pub fn l4proto(self, proto: u8) -> Self {
        self.eq(Field::L4Proto, &[proto])
    }

    /// `ct state` is one of the [`ct_state`] bits.
    #[must_use]
    pub fn ct_state(self, bits: u32) -> Self {
        self.with(Statement::AnyBit {
            field: Field::CtState,
            bits,
        })
    }

    /// `ct state new`.
    #[must_use]
    pub fn ct_new(self) -> Self {
        self.ct_state(ct_state::NEW)
    }

    /// The concatenation is in the set.
    #[must_use]
    pub fn in_set(self, key: &[Field], set: impl Into<Name>) -> Self {
        self.with(Statement::InSet {
            key: key.to_vec(),
            set: set.into(),
            negate: false,
        })
    }

    /// The map's verdict for the concatenation.
    #[must_use]
    pub fn vmap(self, key: &[Field], map: impl Into<Name>) -> Self {
        self.with(Statement::VerdictMap {
            key: key.to_vec(),
            map: map.into(),
        })
    }

    /// Count.
    #[must_use]
    pub fn counter(self) -> Self {
        self.with(Statement::Counter)
    }

    /// Ends with the verdict.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.with(Statement::Verdict(verdict))
    }

    /// Ends with accept.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// Ends with drop.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// Ends with goto.
    #[must_use]
    pub fn goto(self, chain: impl Into<Name>) -> Self {
        self.verdict(Verdict::Goto(chain.into()))
    }

    /// Ends with jump.
    #[must_use]
    pub fn jump(self, chain: impl Into<Name>) -> Self {
        self.verdict(Verdict::Jump(chain.into()))
    }

    /// The sets that the rule reads and the chains that it leads to.
    pub fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        self.statements
            .iter()
            .filter_map(|statement| match statement {
                Statement::InSet { set, .. } | Statement::LimitEach { set, .. } => {
                    Some(Reference::Set(set))
                }
                Statement::VerdictMap { map, .. }
                | Statement::Dnat { map, .. }
                | Statement::SetAddress {
                    to: NewAddress::Mapped { map, .. },
                    ..
                }
                | Statement::Update { map, .. } => Some(Reference::Set(map)),
                Statement::Verdict(verdict) => verdict.target().map(Reference::Chain),
                _ => None,
            })
    }
}

/// What a rule refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reference<'a> {
    /// A set or map.
    Set(&'a Name),
    /// A chain.
    Chain(&'a Name),
}
