//! Rulesets, rules and transactions in `nft` syntax: for logs, for golden tests, for
//! whoever debugs.
//!
//! The text follows what `nft list ruleset` prints, with two differences: a translation
//! names the port that it sets (`dnat ip addr . port to`, which `nft` 1.0.6 leaves out),
//! and no dependency of a match is left out.

use std::fmt::{self, Write as _};

use crate::field::Field;
use crate::object::{BaseChain, Chain, Element, IpFamily, Ruleset, Set, SetKind, SetSpec, Value};
use crate::rule::{Comparison, NewAddress, Reject, Rule, Statement, Verdict};
use crate::transaction::{Operation, Transaction};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, statement) in self.statements.iter().enumerate() {
            if i > 0 {
                f.write_char(' ')?;
            }
            write!(f, "{statement}")?;
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match { field, op, value } => {
                let op = match op {
                    Comparison::Eq => "",
                    Comparison::Ne => "!= ",
                };
                write!(f, "{} {op}{}", field.name(), field.print_value(value))
            }
            Self::AnyBit { field, bits } => {
                write!(
                    f,
                    "{} {}",
                    field.name(),
                    field.print_value(&bits.to_ne_bytes())
                )
            }
            Self::Masked { field, mask, value } => {
                write!(f, "{} & 0x{mask:08x} == 0x{value:08x}", field.name())
            }
            Self::Range { field, from, to } => {
                let (from, to) = (field.print_value(from), field.print_value(to));
                write!(f, "{} {from}-{to}", field.name())
            }
            Self::InSet { key, set, negate } => {
                let op = if *negate { "!= " } else { "" };
                write!(f, "{} {op}@{set}", concatenation(key))
            }
            Self::VerdictMap { key, map } => write!(f, "{} vmap @{map}", concatenation(key)),
            Self::Dnat { family, key, map } => {
                let family = match family {
                    IpFamily::V4 => "ip",
                    IpFamily::V6 => "ip6",
                };
                write!(
                    f,
                    "dnat {family} addr . port to {} map @{map}",
                    concatenation(key)
                )
            }
            Self::Update {
                map,
                key,
                data,
                timeout_ms,
            } => {
                let (key, data) = (concatenation(key), concatenation(data));
                write!(
                    f,
                    "update @{map} {{ {key} timeout {timeout_ms}ms : {data} }}"
                )
            }
            Self::SetAddress { field, to } => {
                write!(f, "{} set ", field.name())?;
                match to {
                    NewAddress::Of(source) => f.write_str(&source.name()),
                    NewAddress::Mapped { key, map } => {
                        write!(f, "{} map @{map}", concatenation(key))
                    }
                }
            }
            Self::Masquerade => f.write_str("masquerade fully-random"),
            Self::SetCtMark { mask, xor } => {
                write!(f, "ct mark set ct mark & 0x{mask:08x} ^ 0x{xor:08x}")
            }
            Self::Notrack => f.write_str("notrack"),
            Self::Reject(how) => f.write_str(match how {
                Reject::PortUnreachable => "reject with icmpx port-unreachable",
                Reject::AdminProhibited => "reject with icmpx admin-prohibited",
                Reject::TcpReset => "reject with tcp reset",
            }),
            Self::Limit { rate, burst } => {
                write!(f, "limit rate {rate}/second burst {burst} packets")
            }
            Self::LimitEach {
                set,
                key,
                rate,
                burst,
            } => {
                let key = concatenation(key);
                write!(
                    f,
                    "update @{set} {{ {key} limit rate {rate}/second burst {burst} packets }}"
                )
            }
            Self::Log {
                group,
                prefix,
                snaplen,
            } => write!(f, "log prefix \"{prefix}\" group {group} snaplen {snaplen}"),
            Self::Counter => f.write_str("counter"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
            Self::Foreign(name) => write!(f, "<{name}>"),
        }
    }
}

fn concatenation(fields: &[Field]) -> String {
    let names: Vec<_> = fields.iter().map(|field| field.name()).collect();
    names.join(" . ")
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, table) in &self.tables {
            writeln!(f, "table {id} {{")?;
            if table.is_dormant {
                writeln!(f, "\tflags dormant")?;
            }
            for (name, set) in &table.sets {
                writeln!(f, "\t{} {name} {{", kind(&set.spec))?;
                write_spec(f, &set.spec)?;
                write_elements(f, set)?;
                f.write_str("\t}\n\n")?;
            }
            for (name, chain) in &table.chains {
                writeln!(f, "\tchain {name} {{")?;
                write_chain(f, chain)?;
                f.write_str("\t}\n\n")?;
            }
            f.write_str("}\n")?;
        }
        Ok(())
    }
}

const fn kind(spec: &SetSpec) -> &'static str {
    match spec.kind {
        SetKind::Set => "set",
        SetKind::Map(_) | SetKind::VerdictMap => "map",
    }
}

fn type_name(spec: &SetSpec) -> String {
    match spec.kind {
        SetKind::Set => spec.key.name(),
        SetKind::Map(data) => format!("{} : {}", spec.key.name(), data.name()),
        SetKind::VerdictMap => format!("{} : verdict", spec.key.name()),
    }
}

fn write_spec(f: &mut fmt::Formatter<'_>, spec: &SetSpec) -> fmt::Result {
    if let Some(comment) = &spec.comment {
        writeln!(f, "\t\tcomment \"{comment}\"")?;
    }
    writeln!(f, "\t\ttype {}", type_name(spec))?;
    if let Some(dynamic) = spec.dynamic {
        writeln!(f, "\t\tsize {}", dynamic.size)?;
        f.write_str("\t\tflags dynamic,timeout\n")?;
        if dynamic.timeout_ms > 0 {
            writeln!(f, "\t\ttimeout {}ms", dynamic.timeout_ms)?;
        }
    } else if spec.interval {
        f.write_str("\t\tflags interval\n")?;
    }
    Ok(())
}

fn write_elements(f: &mut fmt::Formatter<'_>, set: &Set) -> fmt::Result {
    for (key, element) in &set.elements {
        writeln!(f, "\t\t{}", print_element(&set.spec, key, element))?;
    }
    Ok(())
}

/// An element in `nft` syntax; the two ends of an interval stand alone.
pub fn print_element(spec: &SetSpec, key: &[u8], element: &Element) -> String {
    let mut text = spec.key.print(key);
    if spec.interval {
        text.push_str(if element.interval_end {
            " [end)"
        } else {
            " [start"
        });
    }
    if let Some(comment) = &element.comment {
        let _infallible = write!(text, " comment \"{comment}\"");
    }
    let _infallible = match (&element.value, spec.kind) {
        (Value::None, _) => Ok(()),
        (Value::Data(data), SetKind::Map(ty)) => write!(text, " : {}", ty.print(data)),
        (Value::Data(data), _) => write!(text, " : {data:02x?}"),
        (Value::Verdict(verdict), _) => write!(text, " : {verdict}"),
    };
    text
}

fn write_base(f: &mut fmt::Formatter<'_>, base: BaseChain) -> fmt::Result {
    writeln!(
        f,
        "\t\ttype {} hook {} priority {}; policy {};",
        base.kind.name(),
        base.hook.name(),
        base.priority,
        if base.drops { "drop" } else { "accept" }
    )
}

fn write_chain(f: &mut fmt::Formatter<'_>, chain: &Chain) -> fmt::Result {
    if let Some(comment) = &chain.comment {
        writeln!(f, "\t\tcomment \"{comment}\"")?;
    }
    if let Some(base) = chain.base {
        write_base(f, base)?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{rule}")?;
    }
    Ok(())
}

/// One line for each operation; elements by their number where there are many.
impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for operation in &self.operations {
            writeln!(f, "{operation}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { table } => write!(f, "add table {table}"),
            Self::DeleteTable { table } => write!(f, "delete table {table}"),
            Self::FlushChain { table, chain } => write!(f, "flush chain {table} {chain}"),
            Self::DeleteChain { table, chain } => write!(f, "delete chain {table} {chain}"),
            Self::DeleteSet { table, set } => write!(f, "delete set {table} {set}"),
            Self::AddChain { table, chain, .. } => write!(f, "add chain {table} {chain}"),
            Self::AddRule { table, chain, rule } => {
                write!(f, "add rule {table} {chain} {rule}")
            }
            Self::AddSet { table, set, spec } => {
                let (kind, ty) = (kind(spec), type_name(spec));
                write!(f, "add {kind} {table} {set} {{ type {ty} }}")
            }
            Self::DeleteElements {
                table,
                set,
                elements,
            } => write!(f, "delete {} elements of {table} {set}", elements.len()),
            Self::AddElements {
                table,
                set,
                elements,
            } => write!(f, "add {} elements to {table} {set}", elements.len()),
        }
    }
}
