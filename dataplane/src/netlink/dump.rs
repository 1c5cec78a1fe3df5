//! What the kernel holds, as a ruleset.

use std::collections::BTreeMap;

use crate::datatype::Type;
use crate::kernel::KernelError;
use crate::netlink::attr::{Attr, Attrs, Writer};
use crate::netlink::decode::{self, SetSpecs};
use crate::netlink::socket::{Nftables, message_type};
use crate::netlink::uapi::{
    LIST_ELEM, chain, data, elem, elem_list, hook, msg, rule, set, set_flags, table, udata, verdict,
};
use crate::object::{
    BaseChain, Chain, ChainType, Dynamic, Element, Hook, Key, Name, Ruleset, Set, SetKind, SetSpec,
    Table, TableId, Value,
};
use crate::rule::Rule;

pub(super) fn ruleset(kernel: &mut Nftables, ids: &[TableId]) -> Result<Ruleset, KernelError> {
    let mut ruleset = Ruleset::default();
    for id in ids {
        if let Some(flags) = table_flags(kernel, id)? {
            ruleset
                .tables
                .insert(id.clone(), read_table(kernel, id, flags)?);
        }
    }
    Ok(ruleset)
}

/// What there is of the chains and sets that `like` names, and whether the table holds others;
/// `None` where there is no table. Costs as much as the part, however large the rest is.
pub(super) fn part(
    kernel: &mut Nftables,
    id: &TableId,
    like: &Table,
) -> Result<Option<(Table, bool)>, KernelError> {
    let Some(flags) = table_flags(kernel, id)? else {
        return Ok(None);
    };
    let mut specs = read_specs(kernel, id)?;
    let mut chains = read_chains(kernel, id)?;
    let count = specs.len() + chains.len();
    specs.retain(|name, _| like.sets.contains_key(name));
    chains.retain(|name, _| like.chains.contains_key(name));
    let is_shared = specs.len() + chains.len() < count;
    for (name, chain) in &mut chains {
        let request = attributes(|w| {
            w.string(rule::TABLE, id.name.as_str());
            w.string(rule::CHAIN, name.as_str());
        });
        let rules = read_rules(kernel, id, &request, &specs)?.into_iter();
        chain.rules.extend(rules.map(|(_, rule)| rule));
    }
    let mut table = Table {
        is_dormant: flags & table::DORMANT != 0,
        chains,
        ..Table::default()
    };
    for (name, spec) in specs {
        table
            .sets
            .insert(name.clone(), read_set_elements(kernel, id, &name, spec)?);
    }
    Ok(Some((table, is_shared)))
}

/// `None`: there is no such table.
fn table_flags(kernel: &mut Nftables, id: &TableId) -> Result<Option<u32>, KernelError> {
    let found = collect(kernel, msg::GETTABLE, id, &[], |attrs| {
        let ours = attrs.string(table::NAME)? == id.name.as_str();
        ours.then(|| attrs.u32(table::FLAGS).unwrap_or(0))
    })?;
    Ok(found.first().copied())
}

fn read_table(kernel: &mut Nftables, id: &TableId, flags: u32) -> Result<Table, KernelError> {
    let specs = read_specs(kernel, id)?;
    let mut table = Table {
        is_dormant: flags & table::DORMANT != 0,
        chains: read_chains(kernel, id)?,
        ..Table::default()
    };
    let request = attributes(|w| w.string(rule::TABLE, id.name.as_str()));
    for (chain, rule) in read_rules(kernel, id, &request, &specs)? {
        if let Some(chain) = table.chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
    }
    for (name, spec) in specs {
        let set = read_set_elements(kernel, id, &name, spec)?;
        table.sets.insert(name, set);
    }
    Ok(table)
}

fn read_specs(kernel: &mut Nftables, id: &TableId) -> Result<SetSpecs, KernelError> {
    let name = id.name.as_str();
    let request = attributes(|w| w.string(set::TABLE, name));
    let specs = collect(kernel, msg::GETSET, id, &request, |attrs| {
        let ours = attrs.string(set::TABLE)? == name;
        ours.then(|| read_set(attrs))?
    })?;
    Ok(specs.into_iter().collect())
}

fn read_chains(kernel: &mut Nftables, id: &TableId) -> Result<BTreeMap<Name, Chain>, KernelError> {
    let chains = collect(kernel, msg::GETCHAIN, id, &[], |attrs| {
        let ours = attrs.string(chain::TABLE)? == id.name.as_str();
        ours.then(|| read_chain(attrs))?
    })?;
    Ok(chains.into_iter().collect())
}

fn read_rules(
    kernel: &mut Nftables,
    id: &TableId,
    request: &[u8],
    specs: &SetSpecs,
) -> Result<Vec<(Name, Rule)>, KernelError> {
    collect(kernel, msg::GETRULE, id, request, |attrs| {
        let ours = attrs.string(rule::TABLE)? == id.name.as_str();
        ours.then(|| read_rule(attrs, specs))?
    })
}

/// Looks at a set until one shows all of its elements.
const LOOKS: usize = 8;

/// The set with its elements, but for those that rules add.
///
/// The kernel finds the place at which the next part of a dump begins by counting. Where a
/// hash table grows or shrinks meanwhile, which it does for a moment after its elements have
/// become many more or fewer, some are left out, and nothing says so but their number. A
/// kernel that does not tell it (before 6.16) is to show as many twice.
fn read_set_elements(
    kernel: &mut Nftables,
    id: &TableId,
    name: &Name,
    spec: SetSpec,
) -> Result<Set, KernelError> {
    let mut set = Set::new(spec);
    if set.spec.dynamic.is_some() {
        return Ok(set);
    }
    let mut before = None;
    for _ in 0..LOOKS {
        let parts = read_elements(kernel, id, name)?;
        let may_lack = parts.len() > 1 && !set.spec.interval;
        set.elements = parts.into_iter().flatten().collect();
        let found = set.elements.len();
        // To go on without some is better than to go on for ever: each can be added again.
        if !may_lack
            || count(kernel, id, name)?
                .or(before)
                .is_some_and(|all| found >= all)
        {
            break;
        }
        before = before.max(Some(found));
    }
    Ok(set)
}

/// The number of elements, where the kernel tells it.
fn count(kernel: &mut Nftables, id: &TableId, name: &Name) -> Result<Option<usize>, KernelError> {
    let request = attributes(|w| {
        w.string(set::TABLE, id.name.as_str());
        w.string(set::NAME, name.as_str());
    });
    let mut count = None;
    let ty = message_type(msg::GETSET);
    kernel.get(ty, id.family.number(), &request, &mut |attrs| {
        count = attrs.u32(set::COUNT);
    })?;
    Ok(count.and_then(|count| usize::try_from(count).ok()))
}

/// The elements of a set as a list.
pub(super) fn learnt(
    kernel: &mut Nftables,
    id: &TableId,
    name: &Name,
) -> Result<Vec<(Key, Element)>, KernelError> {
    let elements: BTreeMap<_, _> = read_elements(kernel, id, name)?
        .into_iter()
        .flatten()
        .collect();
    Ok(elements.into_iter().collect())
}

/// The elements, in the parts in which the kernel hands them over; one may be there twice.
fn read_elements(
    kernel: &mut Nftables,
    id: &TableId,
    name: &Name,
) -> Result<Vec<Vec<(Key, Element)>>, KernelError> {
    let request = attributes(|w| {
        w.string(elem_list::TABLE, id.name.as_str());
        w.string(elem_list::SET, name.as_str());
    });
    collect(kernel, msg::GETSETELEM, id, &request, |attrs| {
        let list = attrs.get(elem_list::ELEMENTS)?.nested();
        let elements = list.filter(|attr| attr.ty == LIST_ELEM);
        Some(
            elements
                .filter_map(|attr| read_element(attr.nested()))
                .collect(),
        )
    })
}

/// Dumps and keeps what `read` makes of each message.
fn collect<T>(
    kernel: &mut Nftables,
    ty: u8,
    id: &TableId,
    request: &[u8],
    read: impl Fn(Attrs<'_>) -> Option<T>,
) -> Result<Vec<T>, KernelError> {
    loop {
        let mut found = Vec::new();
        let mut each = |attrs: Attrs<'_>| found.extend(read(attrs));
        if kernel.dump_once(message_type(ty), id.family.number(), request, &mut each)? {
            return Ok(found);
        }
    }
}

fn attributes(fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    fill(&mut Writer(&mut bytes));
    bytes
}

/// `None` for a set whose key is of no type of ours: a foreign one, which diff then
/// does not see and verify reports by its chain.
fn read_set(attrs: Attrs<'_>) -> Option<(Name, SetSpec)> {
    let flags = attrs.u32(set::FLAGS).unwrap_or(0);
    let kind = match attrs.u32(set::DATA_TYPE) {
        _ if flags & set_flags::MAP == 0 => SetKind::Set,
        Some(set::VERDICT_TYPE) => SetKind::VerdictMap,
        Some(ty) => SetKind::Map(Type::from_id(ty)?),
        None => return None,
    };
    let dynamic = (flags & set_flags::EVAL != 0).then(|| Dynamic {
        timeout_ms: attrs.get(set::TIMEOUT).and_then(Attr::u64).unwrap_or(0),
        size: attrs
            .get(set::DESC)
            .and_then(|desc| desc.nested().u32(set::DESC_SIZE))
            .unwrap_or(0),
    });
    let spec = SetSpec {
        key: Type::from_id(attrs.u32(set::KEY_TYPE)?)?,
        kind,
        interval: flags & set_flags::INTERVAL != 0,
        dynamic,
        comment: comment(attrs.get(set::USERDATA), udata::SET_COMMENT),
    };
    Some((attrs.string(set::NAME)?.into(), spec))
}

fn read_chain(attrs: Attrs<'_>) -> Option<(Name, Chain)> {
    let base = attrs.get(chain::HOOK).and_then(|attr| {
        let at = attr.nested();
        Some(BaseChain {
            kind: match attrs.string(chain::TYPE)? {
                "nat" => ChainType::Nat,
                _ => ChainType::Filter,
            },
            hook: Hook::from_number(at.u32(hook::HOOKNUM)?)?,
            priority: at.u32(hook::PRIORITY)?.cast_signed(),
            drops: attrs.u32(chain::POLICY) == Some(verdict::DROP.cast_unsigned()),
        })
    });
    let chain = Chain {
        base,
        comment: comment(attrs.get(chain::USERDATA), udata::COMMENT),
        rules: Vec::new(),
    };
    Some((attrs.string(chain::NAME)?.into(), chain))
}

fn read_rule(attrs: Attrs<'_>, sets: &SetSpecs) -> Option<(Name, Rule)> {
    let expressions = attrs
        .get(rule::EXPRESSIONS)
        .map_or(Attrs(&[]), Attr::nested);
    let rule = Rule {
        statements: decode::statements(expressions, sets),
        comment: comment(attrs.get(rule::USERDATA), udata::COMMENT),
    };
    Some((attrs.string(self::rule::CHAIN)?.into(), rule))
}

fn read_element(attrs: Attrs<'_>) -> Option<(Key, Element)> {
    let key = attrs.get(elem::KEY)?.nested().get(data::VALUE)?.payload;
    let value = match attrs.get(elem::DATA) {
        None => Value::None,
        Some(attr) => match attr.nested().get(data::VERDICT) {
            Some(verdict) => Value::Verdict(decode::decode_verdict(verdict.nested())?),
            None => Value::Data(attr.nested().get(data::VALUE)?.payload.into()),
        },
    };
    let element = Element {
        value,
        interval_end: attrs.u32(elem::FLAGS).unwrap_or(0) & elem::INTERVAL_END != 0,
        comment: comment(attrs.get(elem::USERDATA), udata::COMMENT),
    };
    Some((key.into(), element))
}

/// The text of the entry of that type in a `USERDATA` attribute.
fn comment(attr: Option<Attr<'_>>, wanted: u8) -> Option<std::sync::Arc<str>> {
    let mut rest = attr?.payload;
    while let [ty, len, tail @ ..] = rest {
        let text = tail.get(..usize::from(*len))?;
        if *ty == wanted {
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            return std::str::from_utf8(text).ok().map(Into::into);
        }
        rest = &tail[usize::from(*len)..];
    }
    None
}
