//! A kernel in memory: the same rules about references and duplicates, the same
//! all-or-nothing, no privileges.
//!
//! Tests use it to run the agent's logic without a network namespace, the property
//! tests hold it against the real kernel, and the tracer walks packets through what it
//! holds.

use std::ops::Range;

use nix::errno::Errno;

use crate::kernel::{CommitError, Kernel, KernelError, Rejection, StaleFlow};
use crate::object::{Element, Key, Name, Ruleset, Set, SetKind, Table, TableId, Value};
use crate::rule::{Reference, Verdict};
use crate::transaction::{Operation, Transaction};

/// Tables in memory.
#[derive(Clone, Default, Debug)]
pub struct Fake {
    ruleset: Ruleset,
    generation: u32,
    forgotten: Vec<StaleFlow>,
    unmarked: Vec<(u32, u32)>,
}

/// A refused operation: error number, and the elements to blame.
type Refusal = (Errno, Range<usize>);

impl Fake {
    /// No tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it holds.
    pub const fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// The flows that it was told to forget, in order.
    pub fn forgotten(&self) -> &[StaleFlow] {
        &self.forgotten
    }

    /// The mask and the spared bits of each time that it was told to clear marks.
    pub fn unmarked(&self) -> &[(u32, u32)] {
        &self.unmarked
    }

    /// Changes what it holds from outside, as another program would.
    pub fn tamper(&mut self, change: impl FnOnce(&mut Ruleset)) {
        change(&mut self.ruleset);
        self.generation += 1;
    }
}

impl Kernel for Fake {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let mut next = self.ruleset.clone();
        let mut rejections = Vec::new();
        for (index, operation) in transaction.operations.iter().enumerate() {
            // Like the kernel, go on after a refusal, to report them all.
            if let Err((errno, elements)) = apply(&mut next, operation) {
                rejections.push(Rejection::of(
                    transaction,
                    Some(index),
                    elements,
                    errno as i32,
                    None,
                ));
            }
        }
        if !rejections.is_empty() {
            return Err(CommitError::Rejected(rejections));
        }
        self.ruleset = next;
        self.generation += 1;
        Ok(())
    }

    fn dump(&mut self, tables: &[TableId]) -> Result<Ruleset, KernelError> {
        let mut ruleset = self.ruleset.clone();
        ruleset.tables.retain(|id, _| tables.contains(id));
        let sets = ruleset.tables.values_mut();
        for set in sets.flat_map(|table| table.sets.values_mut()) {
            if set.spec.dynamic.is_some() {
                set.elements.clear();
            }
        }
        Ok(ruleset)
    }

    fn learnt(&mut self, table: &TableId, map: &Name) -> Result<Vec<(Key, Element)>, KernelError> {
        let table = self.ruleset.tables.get(table);
        let elements = table.and_then(|table| table.sets.get(map)).into_iter();
        let elements = elements.flat_map(|set| &set.elements);
        Ok(elements.map(|(k, e)| (k.clone(), e.clone())).collect())
    }

    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError> {
        self.forgotten.extend_from_slice(stale);
        Ok(stale.len())
    }

    fn unmark_flows(&mut self, mask: u32, spared: u32) -> Result<usize, KernelError> {
        self.unmarked.push((mask, spared));
        Ok(0)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        Ok(self.generation)
    }
}

fn apply(ruleset: &mut Ruleset, operation: &Operation) -> Result<(), Refusal> {
    let refuse = |errno| Err((errno, 0..0));
    match operation {
        Operation::AddTable { table } => {
            ruleset.tables.entry(table.clone()).or_default();
        }
        Operation::DeleteTable { table } => {
            if ruleset.tables.remove(table).is_none() {
                return refuse(Errno::ENOENT);
            }
        }
        Operation::AddChain { table, chain, spec } => {
            let chains = &mut get(ruleset, table)?.chains;
            if chains.get(chain).is_some_and(|old| old.base != spec.base) {
                return refuse(Errno::EEXIST);
            }
            chains.entry(chain.clone()).or_insert_with(|| spec.clone());
        }
        Operation::DeleteChain { table, chain } => {
            let table = get(ruleset, table)?;
            if is_used(table, Reference::Chain(chain)) {
                return refuse(Errno::EBUSY);
            }
            if table.chains.remove(chain).is_none() {
                return refuse(Errno::ENOENT);
            }
        }
        Operation::FlushChain { table, chain } => {
            let chain = get(ruleset, table)?.chains.get_mut(chain);
            chain.ok_or((Errno::ENOENT, 0..0))?.rules.clear();
        }
        Operation::AddRule { table, chain, rule } => {
            let table = get(ruleset, table)?;
            if !rule.references().all(|reference| exists(table, reference)) {
                return refuse(Errno::ENOENT);
            }
            let chain = table.chains.get_mut(chain);
            chain.ok_or((Errno::ENOENT, 0..0))?.rules.push(rule.clone());
        }
        Operation::AddSet { table, set, spec } => {
            let sets = &mut get(ruleset, table)?.sets;
            if sets.get(set).is_some_and(|old| old.spec != *spec) {
                return refuse(Errno::EEXIST);
            }
            sets.entry(set.clone())
                .or_insert_with(|| Set::new(spec.clone()));
        }
        Operation::DeleteSet { table, set } => {
            let table = get(ruleset, table)?;
            if is_used(table, Reference::Set(set)) {
                return refuse(Errno::EBUSY);
            }
            if table.sets.remove(set).is_none() {
                return refuse(Errno::ENOENT);
            }
        }
        Operation::AddElements {
            table,
            set,
            elements,
        } => add_elements(get(ruleset, table)?, set, elements)?,
        Operation::DeleteElements {
            table,
            set,
            elements,
        } => {
            let set = get(ruleset, table)?.sets.get_mut(set);
            let set = set.ok_or((Errno::ENOENT, 0..0))?;
            for (i, (key, _)) in elements.iter().enumerate() {
                if set.elements.remove(key).is_none() {
                    return Err((Errno::ENOENT, i..i + 1));
                }
            }
        }
    }
    Ok(())
}

fn add_elements(
    table: &mut Table,
    name: &Name,
    elements: &[(Key, Element)],
) -> Result<(), Refusal> {
    let set = table.sets.get(name).ok_or((Errno::ENOENT, 0..0))?;
    for (i, (key, element)) in elements.iter().enumerate() {
        let blame = |errno| (errno, i..i + 1);
        if key.len() != set.spec.key.size() || !value_fits(set.spec.kind, &element.value) {
            return Err(blame(Errno::EINVAL));
        }
        if let Value::Verdict(verdict) = &element.value
            && let Some(chain) = verdict.target()
            && !table.chains.contains_key(chain)
        {
            return Err(blame(Errno::ENOENT));
        }
        let old = set.elements.get(key);
        if old.is_some_and(|old| {
            old.value != element.value || old.interval_end != element.interval_end
        }) {
            return Err(blame(Errno::EEXIST));
        }
    }
    let set = table.sets.get_mut(name).expect("looked up above");
    for (key, element) in elements {
        set.elements
            .entry(key.clone())
            .or_insert_with(|| element.clone());
    }
    Ok(())
}

fn value_fits(kind: SetKind, value: &Value) -> bool {
    match (kind, value) {
        (SetKind::Set, Value::None) => true,
        (SetKind::Map(ty), Value::Data(data)) => data.len() == ty.size(),
        // `nft_verdict_init` takes these only.
        (SetKind::VerdictMap, Value::Verdict(_)) => true,
        _ => false,
    }
}

fn get<'a>(ruleset: &'a mut Ruleset, table: &TableId) -> Result<&'a mut Table, Refusal> {
    ruleset.tables.get_mut(table).ok_or((Errno::ENOENT, 0..0))
}

fn exists(table: &Table, reference: Reference<'_>) -> bool {
    match reference {
        Reference::Set(name) => table.sets.contains_key(name),
        Reference::Chain(name) => table.chains.contains_key(name),
    }
}

/// Whether a rule, or for a chain an element, refers to it. A chain with rules of its
/// own may be deleted.
fn is_used(table: &Table, wanted: Reference<'_>) -> bool {
    let rules = table.chains.values().flat_map(|chain| &chain.rules);
    let by_rule = rules
        .flat_map(|rule| rule.references())
        .any(|reference| reference == wanted);
    let leads_there = |verdict: &Verdict| verdict.target().map(Reference::Chain) == Some(wanted);
    let elements = table.sets.values().flat_map(|set| set.elements.values());
    let by_element = || {
        elements
            .map(|element| &element.value)
            .any(|value| matches!(value, Value::Verdict(verdict) if leads_there(verdict)))
    };
    by_rule || by_element()
}
