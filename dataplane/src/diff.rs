//! What must change to get from one ruleset to another.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::{Chain, Element, Key, Name, Ruleset, Set, Table, TableId};
use crate::transaction::{Transaction, TransactionBuilder};

/// The transaction that turns `observed` into `desired`.
///
/// Objects that are equal are not touched. A set whose declaration differs is made
/// anew, and with it every chain that reads it. Pure and deterministic.
pub fn diff(observed: &Ruleset, desired: &Ruleset) -> Transaction {
    let mut builder = TransactionBuilder::new();
    for id in observed.tables.keys() {
        if !desired.tables.contains_key(id) {
            builder.delete_table(id);
        }
    }
    let empty = Table::default();
    for (id, after) in &desired.tables {
        let before = observed.tables.get(id);
        if before.is_none_or(|before| before.is_dormant) {
            builder.add_table(id);
        }
        table(&mut builder, id, before.unwrap_or(&empty), after);
    }
    builder.build()
}

fn table(builder: &mut TransactionBuilder, id: &TableId, before: &Table, after: &Table) {
    let remade: BTreeSet<&Name> = before
        .sets
        .iter()
        .filter(|(name, set)| after.sets.get(*name).is_none_or(|new| new.spec != set.spec))
        .map(|(name, _)| name)
        .collect();

    for name in union(before.chains.keys(), after.chains.keys()) {
        let (old, new) = (before.chains.get(name), after.chains.get(name));
        let reads_remade = || old.is_some_and(|chain| reads_any(chain, &remade));
        if !same_rules(old, new) || reads_remade() {
            builder.chain(id, name, old, new);
        }
    }
    for name in union(before.sets.keys(), after.sets.keys()) {
        match (before.sets.get(name), after.sets.get(name)) {
            (Some(old), Some(new)) if old.spec == new.spec => {
                changed_set(builder, id, name, old, new);
            }
            (old, new) => {
                if old.is_some() {
                    builder.delete_set(id, name);
                }
                if let Some(new) = new {
                    builder.add_set(id, name, new);
                }
            }
        }
    }
}

/// The elements that turn a set into another of the same declaration.
pub(crate) fn changed_set(
    builder: &mut TransactionBuilder,
    id: &TableId,
    name: &Name,
    old: &Set,
    new: &Set,
) {
    if new.spec.dynamic.is_some() {
        return;
    }
    if new.spec.interval {
        changed_intervals(builder, id, name, &old.elements, &new.elements);
        return;
    }
    let missing_in =
        |set: &Set, key: &Key, element: &Element| set.elements.get(key) != Some(element);
    let pick = |from: &Set, other: &Set| -> Vec<(Key, Element)> {
        let differing = from
            .elements
            .iter()
            .filter(|(k, e)| missing_in(other, k, e));
        differing.map(|(k, e)| (k.clone(), e.clone())).collect()
    };
    builder.delete_elements(id, name, pick(old, new));
    builder.add_elements(id, name, pick(new, old));
}

/// The same for a set of intervals. One that changes goes and comes with both its ends: the
/// kernel looks for overlaps while it inserts, and refuses a start whose end has moved.
pub(crate) fn changed_intervals(
    builder: &mut TransactionBuilder,
    id: &TableId,
    name: &Name,
    old: &BTreeMap<Key, Element>,
    new: &BTreeMap<Key, Element>,
) {
    let (old, new) = (intervals(old), intervals(new));
    let missing_in = |other: &Intervals<'_>, from: &Intervals<'_>| -> Vec<(Key, Element)> {
        let differing = from
            .iter()
            .filter(|(start, ends)| other.get(*start) != Some(*ends));
        let ends = differing.flat_map(|(_, ends)| ends);
        ends.map(|(key, element)| ((*key).clone(), (*element).clone()))
            .collect()
    };
    builder.delete_elements(id, name, missing_in(&new, &old));
    builder.add_elements(id, name, missing_in(&old, &new));
}

/// Intervals by their starts: each the element that opens it, and the one that closes it if
/// there is one.
type Intervals<'a> = BTreeMap<&'a Key, Vec<(&'a Key, &'a Element)>>;

fn intervals(elements: &BTreeMap<Key, Element>) -> Intervals<'_> {
    let mut intervals = Intervals::new();
    let mut open = None;
    for (key, element) in elements {
        if !element.interval_end {
            open = Some(key);
        }
        // An end without a start is somebody else's work, and an interval of its own.
        let start = open.unwrap_or(key);
        intervals.entry(start).or_default().push((key, element));
    }
    intervals
}

/// Whether the chain need not be written: comments of chains do not count, see
/// [`TransactionBuilder::chain`].
pub(crate) fn same_rules(old: Option<&Chain>, new: Option<&Chain>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.base == new.base && old.rules == new.rules,
        (None, None) => true,
        _ => false,
    }
}

fn reads_any(chain: &Chain, sets: &BTreeSet<&Name>) -> bool {
    use crate::rule::Reference;
    !sets.is_empty()
        && chain
            .rules
            .iter()
            .flat_map(crate::rule::Rule::references)
            .any(|reference| matches!(reference, Reference::Set(set) if sets.contains(set)))
}

fn union<'a>(
    a: impl Iterator<Item = &'a Name>,
    b: impl Iterator<Item = &'a Name>,
) -> BTreeSet<&'a Name> {
    a.chain(b).collect()
}
