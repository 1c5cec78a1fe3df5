//! The kernel's register expressions back to statements.
//!
//! The decoder executes a rule symbolically: it remembers which field each register
//! holds, so that a comparison or a lookup can name what it reads. It understands
//! what [`super::encode`] writes; everything else becomes [`Statement::Foreign`], which
//! equals nothing that is desired, so that a changed rule is found and replaced.

use std::collections::BTreeMap;

use crate::datatype::Type;
use crate::field::Field;
use crate::netlink::attr::{Attr, Attrs};
use crate::netlink::encode::{PLAIN_FIELDS, Source, registers};
use crate::netlink::uapi::{
    LIST_ELEM, bitwise, cmp, ct, data, dynset, expr, fib, hash, immediate, limit, log, lookup,
    masq, meta, nat, numgen, payload, reg, reject, verdict,
};
use crate::object::{IpFamily, Name, SetKind, SetSpec};
use crate::rule::{Comparison, NewAddress, Reject, Statement, Verdict};

/// Declarations of the table's sets: a lookup does not say how long its key is.
pub(crate) type SetSpecs = BTreeMap<Name, SetSpec>;

/// The statements of `NFTA_RULE_EXPRESSIONS`.
pub(crate) fn statements(list: Attrs<'_>, sets: &SetSpecs) -> Vec<Statement> {
    let mut decoder = Decoder {
        sets,
        registers: BTreeMap::new(),
        statements: Vec::new(),
    };
    for element in list.filter(|attr| attr.ty == LIST_ELEM) {
        let expression = element.nested();
        let name = expression.string(expr::NAME).unwrap_or("?");
        let data = expression.get(expr::DATA).map_or(Attrs(&[]), Attr::nested);
        if decoder.expression(name, data).is_none() {
            decoder.statements.push(Statement::Foreign(name.into()));
        }
    }
    decoder.statements
}

/// `NFTA_DATA_VERDICT`'s content.
pub(crate) fn decode_verdict(attrs: Attrs<'_>) -> Option<Verdict> {
    let chain = || attrs.string(data::VERDICT_CHAIN).map(Name::from);
    match attrs.u32(data::VERDICT_CODE)?.cast_signed() {
        verdict::ACCEPT => Some(Verdict::Accept),
        verdict::DROP => Some(Verdict::Drop),
        verdict::RETURN => Some(Verdict::Return),
        verdict::JUMP => Some(Verdict::Jump(chain()?)),
        verdict::GOTO => Some(Verdict::Goto(chain()?)),
        _ => None,
    }
}

/// What a register, and those behind it, hold.
#[derive(Clone, PartialEq, Debug)]
enum Content {
    Field(Field),
    Bits {
        field: Field,
        mask: u32,
        xor: u32,
    },
    /// Compared `>=` already.
    AtLeast {
        field: Field,
        from: Box<[u8]>,
    },
    Mapped {
        key: Vec<Field>,
        map: Name,
    },
}

struct Decoder<'a> {
    sets: &'a SetSpecs,
    registers: BTreeMap<u32, Content>,
    statements: Vec<Statement>,
}

impl Decoder<'_> {
    /// `None`: not one of ours.
    fn expression(&mut self, name: &str, attrs: Attrs<'_>) -> Option<()> {
        match name {
            "meta" => self.load(attrs, meta::DREG, Source::Meta(attrs.u32(meta::KEY)?), None),
            "payload" if attrs.get(payload::SREG).is_some() => self.set_address(attrs),
            "payload" => {
                let source = Source::Payload {
                    base: attrs.u32(payload::BASE)?,
                    offset: attrs.u32(payload::OFFSET)?,
                };
                self.load(attrs, payload::DREG, source, attrs.u32(payload::LEN))
            }
            "ct" if attrs.get(ct::SREG).is_some() => self.ct_set(attrs),
            "ct" => {
                let direction = attrs.get(ct::DIRECTION).map(|attr| attr.u8());
                let source = Source::Ct {
                    key: attrs.u32(ct::KEY)?,
                    original: direction == Some(Some(ct::ORIGINAL)),
                };
                self.load(attrs, ct::DREG, source, None)
            }
            "fib" => {
                (attrs.u32(fib::RESULT)? == fib::ADDRTYPE).then_some(())?;
                let flags = attrs.u32(fib::FLAGS)?;
                self.load(attrs, fib::DREG, Source::FibType { flags }, None)
            }
            "numgen" => self.numgen(attrs),
            "hash" => self.hash(attrs),
            "bitwise" => self.bitwise(attrs),
            "cmp" => self.cmp(attrs),
            "lookup" => self.lookup(attrs),
            "nat" => self.nat(attrs),
            "dynset" => self.dynset(attrs),
            "immediate" => self.immediate(attrs),
            _ => {
                let statement = action(name, attrs)?;
                self.statements.push(statement);
                Some(())
            }
        }
    }

    fn load(
        &mut self,
        attrs: Attrs<'_>,
        dreg: u16,
        source: Source,
        len: Option<u32>,
    ) -> Option<()> {
        let field = PLAIN_FIELDS.into_iter().find(|field| {
            Source::of(*field) == source
                && len.is_none_or(|len| usize::try_from(len) == Ok(field.size()))
        })?;
        self.hold(attrs.u32(dreg)?, Content::Field(field))
    }

    fn hold(&mut self, reg: u32, content: Content) -> Option<()> {
        self.registers.insert(register(reg)?, content);
        Some(())
    }

    fn held(&self, reg: u32) -> Option<&Content> {
        self.registers.get(&register(reg)?)
    }

    fn field(&self, reg: u32) -> Option<Field> {
        match self.held(reg)? {
            Content::Field(field) => Some(*field),
            _ => None,
        }
    }

    /// The fields of a concatenation of the type, from the register on.
    fn fields(&self, first: u32, ty: Type) -> Option<Vec<Field>> {
        let mut reg = register(first)?;
        ty.fields()
            .map(|part| {
                let Some(Content::Field(field)) = self.registers.get(&reg) else {
                    return None;
                };
                reg += registers(part.size());
                (field.size() == part.size()).then_some(*field)
            })
            .collect()
    }

    fn numgen(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let modulus = attrs.u32(numgen::MODULUS)?;
        (attrs.u32(numgen::OFFSET).unwrap_or(0) == 0).then_some(())?;
        let field = match attrs.u32(numgen::TYPE)? {
            numgen::RANDOM => Field::Random(modulus),
            numgen::INCREMENTAL => Field::RoundRobin(modulus),
            _ => return None,
        };
        self.hold(attrs.u32(numgen::DREG)?, Content::Field(field))
    }

    fn hash(&mut self, attrs: Attrs<'_>) -> Option<()> {
        (attrs.u32(hash::TYPE).unwrap_or(hash::JENKINS) == hash::JENKINS).then_some(())?;
        let source = self.field(attrs.u32(hash::SREG)?)?;
        let family = IpFamily::BOTH
            .into_iter()
            .find(|family| family.saddr() == source)?;
        let field = Field::SourceHash {
            family,
            modulus: attrs.u32(hash::MODULUS)?,
            seed: attrs.u32(hash::SEED).unwrap_or(0),
        };
        self.hold(attrs.u32(hash::DREG)?, Content::Field(field))
    }

    fn bitwise(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let sreg = attrs.u32(bitwise::SREG)?;
        (attrs.u32(bitwise::DREG)? == sreg && attrs.u32(bitwise::LEN)? == 4).then_some(())?;
        let content = Content::Bits {
            field: self.field(sreg)?,
            mask: word(attrs.get(bitwise::MASK)?)?,
            xor: word(attrs.get(bitwise::XOR)?)?,
        };
        self.hold(sreg, content)
    }

    fn cmp(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let sreg = attrs.u32(cmp::SREG)?;
        let op = attrs.u32(cmp::OP)?;
        let value: Box<[u8]> = value(attrs.get(cmp::DATA)?)?.into();
        let statement = match (self.held(sreg)?.clone(), op) {
            (Content::Field(field), cmp::EQ | cmp::NEQ) => Statement::Match {
                field,
                op: if op == cmp::EQ {
                    Comparison::Eq
                } else {
                    Comparison::Ne
                },
                value,
            },
            (
                Content::Bits {
                    field,
                    mask,
                    xor: 0,
                },
                cmp::NEQ,
            ) if *value == [0; 4] => Statement::AnyBit { field, bits: mask },
            (
                Content::Bits {
                    field,
                    mask,
                    xor: 0,
                },
                cmp::EQ,
            ) => Statement::Masked {
                field,
                mask,
                value: u32::from_ne_bytes((*value).try_into().ok()?),
            },
            (Content::Field(field), cmp::GTE) => {
                return self.hold(sreg, Content::AtLeast { field, from: value });
            }
            (Content::AtLeast { field, from }, cmp::LTE) => Statement::Range {
                field,
                from,
                to: value,
            },
            _ => return None,
        };
        self.statements.push(statement);
        Some(())
    }

    fn lookup(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let set = Name::from(attrs.string(lookup::SET)?);
        let spec = self.sets.get(&set)?;
        let key = self.fields(attrs.u32(lookup::SREG)?, spec.key)?;
        let statement = match attrs.u32(lookup::DREG) {
            None => Statement::InSet {
                key,
                set,
                negate: attrs.u32(lookup::FLAGS).unwrap_or(0) & lookup::INV != 0,
            },
            Some(reg::VERDICT) => Statement::VerdictMap { key, map: set },
            Some(dreg) => return self.hold(dreg, Content::Mapped { key, map: set }),
        };
        self.statements.push(statement);
        Some(())
    }

    fn nat(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let family = match attrs.u32(nat::FAMILY)? {
            2 => IpFamily::V4,
            10 => IpFamily::V6,
            _ => return None,
        };
        let addr = register(attrs.u32(nat::REG_ADDR_MIN)?)?;
        let port = register(attrs.u32(nat::REG_PROTO_MIN)?)?;
        let in_place = port == addr + registers(family.addr_len());
        (in_place && attrs.u32(nat::TYPE)? == nat::DNAT).then_some(())?;
        let Some(Content::Mapped { key, map }) = self.registers.get(&addr).cloned() else {
            return None;
        };
        self.statements.push(Statement::Dnat { family, key, map });
        Some(())
    }

    fn dynset(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let map = Name::from(attrs.string(dynset::SET_NAME)?);
        let spec = self.sets.get(&map)?;
        (attrs.u32(dynset::OP)? == dynset::UPDATE).then_some(())?;
        let key = self.fields(attrs.u32(dynset::SREG_KEY)?, spec.key)?;
        let statement = match spec.kind {
            SetKind::Map(data_type) => Statement::Update {
                key,
                data: self.fields(attrs.u32(dynset::SREG_DATA)?, data_type)?,
                timeout_ms: attrs.get(dynset::TIMEOUT).and_then(Attr::u64).unwrap_or(0),
                map,
            },
            SetKind::Set => {
                let expression = attrs.get(dynset::EXPR)?.nested();
                let is_limit = expression.string(expr::NAME) == Some("limit");
                is_limit.then_some(())?;
                let (rate, burst) = read_limit(expression.get(expr::DATA)?.nested())?;
                Statement::LimitEach {
                    set: map,
                    key,
                    rate,
                    burst,
                }
            }
            SetKind::VerdictMap => return None,
        };
        self.statements.push(statement);
        Some(())
    }

    /// With the checksums that go with the field: the encoder writes no others.
    fn set_address(&mut self, attrs: Attrs<'_>) -> Option<()> {
        let source = Source::Payload {
            base: attrs.u32(payload::BASE)?,
            offset: attrs.u32(payload::OFFSET)?,
        };
        let addresses = IpFamily::BOTH.map(|family| [family.saddr(), family.daddr()]);
        let field = addresses.into_iter().flatten().find(|field| {
            let csum = match field {
                Field::IpSaddr | Field::IpDaddr => payload::CSUM_INET,
                _ => payload::CSUM_NONE,
            };
            Source::of(*field) == source
                && attrs.u32(payload::LEN).map(usize::try_from) == Some(Ok(field.size()))
                && attrs.u32(payload::CSUM_TYPE) == Some(csum)
        })?;
        let pseudo_header = Some(payload::L4CSUM_PSEUDOHDR);
        (attrs.u32(payload::CSUM_FLAGS) == pseudo_header).then_some(())?;
        let to = match self.held(attrs.u32(payload::SREG)?)?.clone() {
            Content::Field(field) => NewAddress::Of(field),
            Content::Mapped { key, map } => NewAddress::Mapped { key, map },
            Content::Bits { .. } | Content::AtLeast { .. } => return None,
        };
        self.statements.push(Statement::SetAddress { field, to });
        Some(())
    }

    fn ct_set(&mut self, attrs: Attrs<'_>) -> Option<()> {
        (attrs.u32(ct::KEY)? == ct::MARK).then_some(())?;
        let Content::Bits {
            field: Field::CtMark,
            mask,
            xor,
        } = *self.held(attrs.u32(ct::SREG)?)?
        else {
            return None;
        };
        self.statements.push(Statement::SetCtMark { mask, xor });
        Some(())
    }

    fn immediate(&mut self, attrs: Attrs<'_>) -> Option<()> {
        (attrs.u32(immediate::DREG)? == reg::VERDICT).then_some(())?;
        let content = attrs.get(immediate::DATA)?.nested();
        let verdict = decode_verdict(content.get(data::VERDICT)?.nested())?;
        self.statements.push(Statement::Verdict(verdict));
        Some(())
    }
}

/// Statements that neither load nor compare.
fn action(name: &str, attrs: Attrs<'_>) -> Option<Statement> {
    Some(match name {
        "counter" => Statement::Counter,
        "notrack" => Statement::Notrack,
        "masq" if attrs.u32(masq::FLAGS) == Some(masq::RANDOM_FULLY) => Statement::Masquerade,
        "reject" => {
            let code = attrs.get(reject::ICMP_CODE).and_then(Attr::u8);
            Statement::Reject(match (attrs.u32(reject::TYPE)?, code) {
                (reject::ICMPX, Some(reject::PORT_UNREACH)) => Reject::PortUnreachable,
                (reject::ICMPX, Some(reject::ADMIN_PROHIBITED)) => Reject::AdminProhibited,
                (reject::TCP_RST, _) => Reject::TcpReset,
                _ => return None,
            })
        }
        "limit" => {
            let (rate, burst) = read_limit(attrs)?;
            Statement::Limit { rate, burst }
        }
        "log" => Statement::Log {
            group: attrs.get(log::GROUP)?.u16()?,
            prefix: attrs.string(log::PREFIX)?.into(),
            snaplen: attrs.u32(log::SNAPLEN)?,
        },
        _ => return None,
    })
}

/// Packets a second, and at once.
fn read_limit(attrs: Attrs<'_>) -> Option<(u64, u32)> {
    let per_second = attrs.get(limit::UNIT)?.u64()? == 1;
    let packets = attrs.u32(limit::TYPE)? == limit::PACKETS;
    (per_second && packets).then_some(())?;
    Some((attrs.get(limit::RATE)?.u64()?, attrs.u32(limit::BURST)?))
}

/// The number of a 4-byte register from 0; dumps name every fourth by its old
/// 16-byte number (`nft_dump_register`).
fn register(number: u32) -> Option<u32> {
    match number {
        1..=4 => Some((number - 1) * 4),
        reg::FIRST..24 => Some(number - reg::FIRST),
        _ => None,
    }
}

fn value(attr: Attr<'_>) -> Option<&[u8]> {
    Some(attr.nested().get(data::VALUE)?.payload)
}

fn word(attr: Attr<'_>) -> Option<u32> {
    Some(u32::from_ne_bytes(value(attr)?.try_into().ok()?))
}
