//! Statements to the kernel's register expressions, in the sequences that `nft`
//! itself makes (`nft --debug=netlink`), so that it can print what we write.
//!
//! Every statement loads what it needs anew into the registers from the first on:
//! loads are cheap, and the kernel forbids reading what an earlier rule left.

use crate::field::Field;
use crate::netlink::attr::Writer;
use crate::netlink::uapi::{LIST_ELEM, data, verdict};
use crate::netlink::uapi::{
    bitwise, cmp, ct, dynset, expr, fib, hash, immediate, limit, log, lookup, masq, meta, nat,
    numgen, payload, reg, reject,
};
use crate::object::IpFamily;
use crate::rule::{Comparison, NewAddress, Reject, Rule, Statement, Verdict};

/// The register that hashed source addresses pass through: an IPv6 address from
/// here on fits, and no key of ours reaches this far with a slot behind it.
const SCRATCH: u32 = reg::FIRST + 12;

/// Writes `NFTA_RULE_EXPRESSIONS`' content.
///
/// # Panics
/// On [`Statement::Foreign`], which only a dump can contain and no caller writes.
pub(crate) fn rule(rule: &Rule, list: &mut Writer<'_>) {
    for statement in &rule.statements {
        encode_statement(statement, list);
    }
}

fn encode_statement(statement: &Statement, list: &mut Writer<'_>) {
    match statement {
        Statement::Match { field, op, value } => {
            load(*field, reg::FIRST, list);
            let op = match op {
                Comparison::Eq => cmp::EQ,
                Comparison::Ne => cmp::NEQ,
            };
            compare(op, value, list);
        }
        Statement::AnyBit { field, bits } => {
            load(*field, reg::FIRST, list);
            and_xor(*bits, 0, list);
            compare(cmp::NEQ, &[0; 4], list);
        }
        Statement::Masked { field, mask, value } => {
            load(*field, reg::FIRST, list);
            and_xor(*mask, 0, list);
            compare(cmp::EQ, &value.to_ne_bytes(), list);
        }
        Statement::Range { field, from, to } => {
            load(*field, reg::FIRST, list);
            compare(cmp::GTE, from, list);
            compare(cmp::LTE, to, list);
        }
        Statement::InSet { key, set, negate } => {
            load_all(key, reg::FIRST, list);
            expression(list, "lookup", |w| {
                w.string(lookup::SET, set.as_str());
                w.u32(lookup::SREG, reg::FIRST);
                if *negate {
                    w.u32(lookup::FLAGS, lookup::INV);
                }
            });
        }
        Statement::VerdictMap { key, map } => {
            load_all(key, reg::FIRST, list);
            look_up(map.as_str(), reg::VERDICT, list);
        }
        Statement::Dnat { family, key, map } => {
            load_all(key, reg::FIRST, list);
            look_up(map.as_str(), reg::FIRST, list);
            let port = reg::FIRST + registers(family.addr_len());
            expression(list, "nat", |w| {
                w.u32(nat::TYPE, nat::DNAT);
                w.u32(nat::FAMILY, u32::from(family.nfproto()));
                w.u32(nat::REG_ADDR_MIN, reg::FIRST);
                w.u32(nat::REG_PROTO_MIN, port);
            });
        }
        Statement::Update {
            map,
            key,
            data,
            timeout_ms,
        } => {
            let data_reg = load_all(key, reg::FIRST, list);
            load_all(data, data_reg, list);
            expression(list, "dynset", |w| {
                w.string(dynset::SET_NAME, map.as_str());
                w.u32(dynset::OP, dynset::UPDATE);
                w.u32(dynset::SREG_KEY, reg::FIRST);
                w.u32(dynset::SREG_DATA, data_reg);
                if *timeout_ms > 0 {
                    w.u64(dynset::TIMEOUT, *timeout_ms);
                }
            });
        }
        Statement::LimitEach {
            set,
            key,
            rate,
            burst,
        } => {
            load_all(key, reg::FIRST, list);
            expression(list, "dynset", |w| {
                w.string(dynset::SET_NAME, set.as_str());
                w.u32(dynset::OP, dynset::UPDATE);
                w.u32(dynset::SREG_KEY, reg::FIRST);
                w.nest(dynset::EXPR, |w| {
                    w.string(expr::NAME, "limit");
                    w.nest(expr::DATA, |w| write_limit(*rate, *burst, w));
                });
            });
        }
        Statement::SetAddress { field, to } => {
            match to {
                NewAddress::Of(source) => load(*source, reg::FIRST, list),
                NewAddress::Mapped { key, map } => {
                    load_all(key, reg::FIRST, list);
                    look_up(map.as_str(), reg::FIRST, list);
                }
            }
            write_address(*field, list);
        }
        Statement::SetCtMark { mask, xor } => {
            load(Field::CtMark, reg::FIRST, list);
            and_xor(*mask, *xor, list);
            expression(list, "ct", |w| {
                w.u32(ct::KEY, ct::MARK);
                w.u32(ct::SREG, reg::FIRST);
            });
        }
        Statement::Verdict(verdict) => expression(list, "immediate", |w| {
            w.u32(immediate::DREG, reg::VERDICT);
            w.nest(immediate::DATA, |w| encode_verdict(verdict, w));
        }),
        Statement::Foreign(name) => unreachable!("a foreign expression {name} is never written"),
        action => encode_action(action, list),
    }
}

/// The statements that neither load nor compare.
fn encode_action(statement: &Statement, list: &mut Writer<'_>) {
    match statement {
        Statement::Masquerade => {
            expression(list, "masq", |w| w.u32(masq::FLAGS, masq::RANDOM_FULLY));
        }
        Statement::Notrack => expression(list, "notrack", |_| ()),
        Statement::Counter => expression(list, "counter", |_| ()),
        Statement::Reject(how) => expression(list, "reject", |w| {
            let (ty, code) = match how {
                Reject::PortUnreachable => (reject::ICMPX, reject::PORT_UNREACH),
                Reject::AdminProhibited => (reject::ICMPX, reject::ADMIN_PROHIBITED),
                Reject::TcpReset => (reject::TCP_RST, 0),
            };
            w.u32(reject::TYPE, ty);
            w.u8(reject::ICMP_CODE, code);
        }),
        Statement::Limit { rate, burst } => {
            expression(list, "limit", |w| write_limit(*rate, *burst, w));
        }
        Statement::Log {
            group,
            prefix,
            snaplen,
        } => expression(list, "log", |w| {
            w.u16(log::GROUP, *group);
            w.string(log::PREFIX, prefix);
            w.u32(log::SNAPLEN, *snaplen);
        }),
        other => unreachable!("{other:?} is written by encode_statement"),
    }
}

/// Packets a second, and at once.
fn write_limit(rate: u64, burst: u32, w: &mut Writer<'_>) {
    w.u64(limit::RATE, rate);
    w.u64(limit::UNIT, 1);
    w.u32(limit::BURST, burst);
    w.u32(limit::TYPE, limit::PACKETS);
}

/// Writes `NFTA_DATA_VERDICT`.
pub(crate) fn encode_verdict(verdict: &Verdict, w: &mut Writer<'_>) {
    let code = match verdict {
        Verdict::Accept => verdict::ACCEPT,
        Verdict::Drop => verdict::DROP,
        Verdict::Return => verdict::RETURN,
        Verdict::Jump(_) => verdict::JUMP,
        Verdict::Goto(_) => verdict::GOTO,
    };
    w.nest(data::VERDICT, |w| {
        w.u32(data::VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = verdict.target() {
            w.string(data::VERDICT_CHAIN, chain.as_str());
        }
    });
}

/// Registers of four bytes that `len` bytes take.
pub(crate) fn registers(len: usize) -> u32 {
    u32::try_from(len.div_ceil(4)).expect("a field of at most 16 bytes")
}

fn expression(list: &mut Writer<'_>, name: &str, fill: impl FnOnce(&mut Writer<'_>)) {
    list.nest(LIST_ELEM, |w| {
        w.string(expr::NAME, name);
        w.nest(expr::DATA, fill);
    });
}

fn compare(op: u32, value: &[u8], list: &mut Writer<'_>) {
    expression(list, "cmp", |w| {
        w.u32(cmp::SREG, reg::FIRST);
        w.u32(cmp::OP, op);
        w.nest(cmp::DATA, |w| w.bytes(data::VALUE, value));
    });
}

fn and_xor(mask: u32, xor: u32, list: &mut Writer<'_>) {
    expression(list, "bitwise", |w| {
        w.u32(bitwise::SREG, reg::FIRST);
        w.u32(bitwise::DREG, reg::FIRST);
        w.u32(bitwise::LEN, 4);
        w.nest(bitwise::MASK, |w| w.bytes(data::VALUE, &mask.to_ne_bytes()));
        w.nest(bitwise::XOR, |w| w.bytes(data::VALUE, &xor.to_ne_bytes()));
    });
}

fn look_up(set: &str, dreg: u32, list: &mut Writer<'_>) {
    expression(list, "lookup", |w| {
        w.string(lookup::SET, set);
        w.u32(lookup::SREG, reg::FIRST);
        w.u32(lookup::DREG, dreg);
    });
}

/// Loads the fields one behind the other and returns the first register after them.
fn load_all(fields: &[Field], first: u32, list: &mut Writer<'_>) -> u32 {
    fields.iter().fold(first, |reg, field| {
        load(*field, reg, list);
        reg + registers(field.size())
    })
}

/// Writes the first registers into an address of the packet. The checksum of the transport
/// header covers both addresses, that of the IPv4 header is ten bytes into it.
///
/// # Panics
/// With a field that is no address of the IP header.
fn write_address(field: Field, list: &mut Writer<'_>) {
    let (csum_type, csum_offset) = match field {
        Field::IpSaddr | Field::IpDaddr => (payload::CSUM_INET, 10),
        Field::Ip6Saddr | Field::Ip6Daddr => (payload::CSUM_NONE, 0),
        other => unreachable!("{} is not written", other.name()),
    };
    let Source::Payload { base, offset } = Source::of(field) else {
        unreachable!("an address is in the packet");
    };
    let len = u32::try_from(field.size()).expect("16 at most");
    expression(list, "payload", |w| {
        w.u32(payload::SREG, reg::FIRST);
        w.u32(payload::BASE, base);
        w.u32(payload::OFFSET, offset);
        w.u32(payload::LEN, len);
        w.u32(payload::CSUM_TYPE, csum_type);
        w.u32(payload::CSUM_OFFSET, csum_offset);
        w.u32(payload::CSUM_FLAGS, payload::L4CSUM_PSEUDOHDR);
    });
}

fn load(field: Field, dreg: u32, list: &mut Writer<'_>) {
    match Source::of(field) {
        Source::Meta(key) => expression(list, "meta", |w| {
            w.u32(meta::DREG, dreg);
            w.u32(meta::KEY, key);
        }),
        Source::Payload { base, offset } => expression(list, "payload", |w| {
            w.u32(payload::DREG, dreg);
            w.u32(payload::BASE, base);
            w.u32(payload::OFFSET, offset);
            w.u32(
                payload::LEN,
                u32::try_from(field.size()).expect("at most 16"),
            );
        }),
        Source::Ct { key, original } => expression(list, "ct", |w| {
            w.u32(ct::DREG, dreg);
            w.u32(ct::KEY, key);
            if original {
                w.u8(ct::DIRECTION, ct::ORIGINAL);
            }
        }),
        Source::FibType { flags } => expression(list, "fib", |w| {
            w.u32(fib::DREG, dreg);
            w.u32(fib::RESULT, fib::ADDRTYPE);
            w.u32(fib::FLAGS, flags);
        }),
        Source::Numgen { ty, modulus } => expression(list, "numgen", |w| {
            w.u32(numgen::DREG, dreg);
            w.u32(numgen::MODULUS, modulus);
            w.u32(numgen::TYPE, ty);
            w.u32(numgen::OFFSET, 0);
        }),
        Source::Hash {
            family,
            modulus,
            seed,
        } => {
            load(family.saddr(), SCRATCH, list);
            expression(list, "hash", |w| {
                w.u32(hash::SREG, SCRATCH);
                w.u32(hash::DREG, dreg);
                w.u32(
                    hash::LEN,
                    u32::try_from(family.addr_len()).expect("16 at most"),
                );
                w.u32(hash::MODULUS, modulus);
                w.u32(hash::SEED, seed);
                w.u32(hash::TYPE, hash::JENKINS);
            });
        }
    }
}

/// Where a field comes from, in kernel terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Meta(u32),
    Payload {
        base: u32,
        offset: u32,
    },
    Ct {
        key: u32,
        original: bool,
    },
    FibType {
        flags: u32,
    },
    Numgen {
        ty: u32,
        modulus: u32,
    },
    Hash {
        family: IpFamily,
        modulus: u32,
        seed: u32,
    },
}

/// The fields whose [`Source`] has no parameters, for the way back.
pub(crate) const PLAIN_FIELDS: [Field; 29] = [
    Field::NfProto,
    Field::EtherType,
    Field::L4Proto,
    Field::Iif,
    Field::Iifname,
    Field::Oifname,
    Field::EtherSaddr,
    Field::ArpSaddrEther,
    Field::ArpSaddrIp,
    Field::IpSaddr,
    Field::IpDaddr,
    Field::Ip6Saddr,
    Field::Ip6Daddr,
    Field::Ip6HopLimit,
    Field::Sport,
    Field::Dport,
    Field::Icmpv6Type,
    Field::NdTarget,
    Field::CtState,
    Field::CtDirection,
    Field::CtMark,
    Field::CtStatus,
    Field::CtOrigIpSaddr,
    Field::CtOrigIp6Saddr,
    Field::CtOrigIpDaddr,
    Field::CtOrigIp6Daddr,
    Field::CtOrigProtoDst,
    Field::FibSaddrType,
    Field::FibDaddrType,
];

impl Source {
    pub(crate) const fn of(field: Field) -> Self {
        use payload::{LINK, NETWORK, TRANSPORT};
        const fn payload(base: u32, offset: u32) -> Source {
            Source::Payload { base, offset }
        }
        const fn ct(key: u32, original: bool) -> Source {
            Source::Ct { key, original }
        }
        match field {
            Field::NfProto => Self::Meta(meta::NFPROTO),
            Field::EtherType => Self::Meta(meta::PROTOCOL),
            Field::L4Proto => Self::Meta(meta::L4PROTO),
            Field::Iif => Self::Meta(meta::IIF),
            Field::Iifname => Self::Meta(meta::IIFNAME),
            Field::Oifname => Self::Meta(meta::OIFNAME),
            Field::EtherSaddr => payload(LINK, 6),
            // RFC 826: 8 bytes of types and lengths, then sender hardware address,
            // sender protocol address.
            Field::ArpSaddrEther => payload(NETWORK, 8),
            Field::ArpSaddrIp => payload(NETWORK, 14),
            Field::IpSaddr => payload(NETWORK, 12),
            Field::IpDaddr => payload(NETWORK, 16),
            Field::Ip6Saddr => payload(NETWORK, 8),
            Field::Ip6Daddr => payload(NETWORK, 24),
            Field::Ip6HopLimit => payload(NETWORK, 7),
            Field::Sport | Field::Icmpv6Type => payload(TRANSPORT, 0),
            Field::Dport => payload(TRANSPORT, 2),
            Field::NdTarget => payload(TRANSPORT, 8),
            Field::CtState => ct(ct::STATE, false),
            Field::CtDirection => ct(ct::KEY_DIRECTION, false),
            Field::CtMark => ct(ct::MARK, false),
            Field::CtStatus => ct(ct::STATUS, false),
            Field::CtOrigIpSaddr => ct(ct::SRC_IP, true),
            Field::CtOrigIp6Saddr => ct(ct::SRC_IP6, true),
            Field::CtOrigIpDaddr => ct(ct::DST_IP, true),
            Field::CtOrigIp6Daddr => ct(ct::DST_IP6, true),
            Field::CtOrigProtoDst => ct(ct::PROTO_DST, true),
            Field::FibSaddrType => Self::FibType { flags: fib::SADDR },
            Field::FibDaddrType => Self::FibType { flags: fib::DADDR },
            Field::Random(modulus) => Self::Numgen {
                ty: numgen::RANDOM,
                modulus,
            },
            Field::RoundRobin(modulus) => Self::Numgen {
                ty: numgen::INCREMENTAL,
                modulus,
            },
            Field::SourceHash {
                family,
                modulus,
                seed,
            } => Self::Hash {
                family,
                modulus,
                seed,
            },
        }
    }
}
