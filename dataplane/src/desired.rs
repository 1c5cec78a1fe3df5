//! The desired state, with a record of what differs from the applied one.
//!
//! A sync must cost what it changes, not what there is. So there is one ruleset, the
//! desired one, and for each object that was touched since the last commit its applied
//! form. [`Desired::transaction`] looks at those only.

use std::collections::BTreeMap;

use crate::diff::{changed_intervals, changed_set, diff, same_rules};
use crate::object::{Chain, Element, Key, Name, Ruleset, Set, SetSpec, Table, TableId};
use crate::transaction::{Transaction, TransactionBuilder};

/// The desired ruleset and what of it is not applied yet.
#[derive(Default, Debug)]
pub struct Desired {
    ruleset: Ruleset,
    before: BTreeMap<TableId, Before>,
    /// What the kernel holds, where that is not what was applied: the whole of it is then
    /// compared, and what is touched need not be noted.
    observed: Option<Ruleset>,
}

/// Applied forms of what was touched; `None`: did not exist.
#[derive(Default, Debug)]
struct Before {
    created: bool,
    chains: BTreeMap<Name, Option<Chain>>,
    /// Sets that did not exist, or that went with the elements they had.
    sets: BTreeMap<Name, Option<Set>>,
    elements: BTreeMap<Name, BTreeMap<Key, Option<Element>>>,
}

impl Desired {
    /// Nothing desired, nothing applied.
    pub fn new() -> Self {
        Self::default()
    }

    /// The desired ruleset.
    pub const fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// Wants the table. It must come before what is in it.
    pub fn table(&mut self, id: &TableId) {
        if !self.ruleset.tables.contains_key(id) {
            self.ruleset.tables.insert(id.clone(), Table::default());
            self.before.entry(id.clone()).or_default().created = true;
        }
    }

    /// Wants the chain as it is given.
    pub fn chain(&mut self, table: &TableId, name: &Name, chain: Chain) {
        let (desired, before) = self.parts(table);
        let old = desired.chains.insert(name.clone(), chain);
        before.chains.entry(name.clone()).or_insert(old);
    }

    /// Does not want the chain.
    pub fn remove_chain(&mut self, table: &TableId, name: &Name) {
        let (desired, before) = self.parts(table);
        if let Some(old) = desired.chains.remove(name) {
            before.chains.entry(name.clone()).or_insert(Some(old));
        }
    }

    /// Whether the chain is wanted.
    pub fn has_chain(&self, table: &TableId, name: &Name) -> bool {
        let table = self.ruleset.tables.get(table);
        table.is_some_and(|table| table.chains.contains_key(name))
    }

    /// Wants the set; nothing changes where it exists.
    ///
    /// # Panics
    /// Where a set of the name has another declaration: names are made so that
    /// this cannot be.
    pub fn set(&mut self, table: &TableId, name: &Name, spec: SetSpec) {
        let (desired, before) = self.parts(table);
        if let Some(set) = desired.sets.get(name) {
            assert!(set.spec == spec, "set {name} is declared in two ways");
            return;
        }
        desired.sets.insert(name.clone(), Set::new(spec));
        before.sets.entry(name.clone()).or_insert(None);
    }

    /// Does not want the set, nor its elements.
    pub fn remove_set(&mut self, table: &TableId, name: &Name) {
        let (desired, before) = self.parts(table);
        let Some(mut set) = desired.sets.remove(name) else {
            return;
        };
        // What was applied of it: elements as they are but for those touched.
        for (key, element) in before.elements.remove(name).unwrap_or_default() {
            match element {
                Some(element) => set.elements.insert(key, element),
                None => set.elements.remove(&key),
            };
        }
        before.sets.entry(name.clone()).or_insert(Some(set));
    }

    /// Wants the element, in place of one with the same key.
    ///
    /// # Panics
    /// Where the set is not wanted, see [`Desired::set`].
    pub fn insert(&mut self, table: &TableId, set: &Name, key: Key, element: Element) {
        let is_noted = self.observed.is_none();
        let (desired, before) = self.parts(table);
        let wanted = desired.sets.get_mut(set).expect("the set is wanted");
        if is_noted {
            let old = wanted.elements.insert(key.clone(), element);
            touch(before, set, key, old);
        } else {
            wanted.elements.insert(key, element);
        }
    }

    /// Does not want the element.
    pub fn remove(&mut self, table: &TableId, set: &Name, key: &Key) {
        let is_noted = self.observed.is_none();
        let (desired, before) = self.parts(table);
        let Some(wanted) = desired.sets.get_mut(set) else {
            return;
        };
        if let Some(old) = wanted.elements.remove(key)
            && is_noted
        {
            touch(before, set, key.clone(), Some(old));
        }
    }

    /// The element, where it is wanted.
    pub fn get(&self, table: &TableId, set: &Name, key: &Key) -> Option<&Element> {
        let table = self.ruleset.tables.get(table)?;
        table.sets.get(set)?.elements.get(key)
    }

    /// Gives up a change of an element: what is applied of it is desired.
    pub fn revert(&mut self, table: &TableId, set: &Name, key: &Key) {
        let applied = match &self.observed {
            Some(observed) => {
                let table = observed.tables.get(table);
                let set = table.and_then(|table| table.sets.get(set));
                set.and_then(|set| set.elements.get(key)).cloned()
            }
            None => self.before.get(table).and_then(|before| {
                let whole = before
                    .sets
                    .get(set)
                    .map(|old| old.as_ref()?.elements.get(key));
                let single = || before.elements.get(set)?.get(key)?.as_ref();
                whole.unwrap_or_else(single).cloned()
            }),
        };
        match applied {
            Some(element) => self.insert(table, set, key.clone(), element),
            None => self.remove(table, set, key),
        }
    }

    /// A key of the set in `nft` syntax.
    pub fn print_key(&self, table: &TableId, set: &Name, key: &Key) -> String {
        let table = self.ruleset.tables.get(table);
        let set = table.and_then(|table| table.sets.get(set));
        set.map_or_else(|| format!("{key:02x?}"), |set| set.spec.key.print(key))
    }

    /// What must be committed for the desired state to be the applied one.
    pub fn transaction(&self) -> Transaction {
        if let Some(observed) = &self.observed {
            return diff(observed, &self.ruleset);
        }
        let mut builder = TransactionBuilder::new();
        for (id, before) in &self.before {
            let table = &self.ruleset.tables[id];
            if before.created {
                builder.add_table(id);
            }
            for (name, old) in &before.chains {
                let new = table.chains.get(name);
                if !same_rules(old.as_ref(), new) {
                    builder.chain(id, name, old.as_ref(), new);
                }
            }
            for (name, old) in &before.sets {
                match (old, table.sets.get(name)) {
                    (None, Some(new)) => builder.add_set(id, name, new),
                    (Some(_), None) => builder.delete_set(id, name),
                    (Some(old), Some(new)) => changed_set(&mut builder, id, name, old, new),
                    (None, None) => {}
                }
            }
            for (name, old) in &before.elements {
                let set = &table.sets[name];
                let wanted = &set.elements;
                if set.spec.interval {
                    let before = overlay(wanted, old);
                    changed_intervals(&mut builder, id, name, &before, wanted);
                } else {
                    changed_elements(&mut builder, id, name, old, wanted);
                }
            }
        }
        builder.build()
    }

    /// What is desired is applied: the transaction has been committed.
    pub fn committed(&mut self) {
        self.before.clear();
        self.observed = None;
    }

    /// The kernel holds `observed` and not what was thought: for adoption of tables at
    /// the start and after changes by others. The next transaction is the whole
    /// difference.
    pub fn observe(&mut self, observed: Ruleset) {
        self.before.clear();
        self.observed = Some(observed);
    }

    fn parts(&mut self, id: &TableId) -> (&mut Table, &mut Before) {
        let desired = self.ruleset.tables.get_mut(id);
        let desired = desired.expect("the table is wanted before what is in it");
        // Most calls find it: look before cloning the name.
        if !self.before.contains_key(id) {
            self.before.insert(id.clone(), Before::default());
        }
        let before = self.before.get_mut(id).expect("inserted above");
        (desired, before)
    }
}

fn touch(before: &mut Before, set: &Name, key: Key, old: Option<Element>) {
    // A set that came or went since the last commit is compared as a whole.
    if before.sets.contains_key(set) {
        return;
    }
    if !before.elements.contains_key(set) {
        before.elements.insert(set.clone(), BTreeMap::new());
    }
    let elements = before.elements.get_mut(set).expect("inserted above");
    elements.entry(key).or_insert(old);
}

/// The applied elements: the wanted ones but for those that were touched.
fn overlay(
    wanted: &BTreeMap<Key, Element>,
    touched: &BTreeMap<Key, Option<Element>>,
) -> BTreeMap<Key, Element> {
    let mut applied = wanted.clone();
    for (key, element) in touched {
        match element {
            Some(element) => applied.insert(key.clone(), element.clone()),
            None => applied.remove(key),
        };
    }
    applied
}

fn changed_elements(
    builder: &mut TransactionBuilder,
    id: &TableId,
    set: &Name,
    before: &BTreeMap<Key, Option<Element>>,
    wanted: &BTreeMap<Key, Element>,
) {
    let mut deleted = Vec::new();
    let mut added = Vec::new();
    for (key, old) in before {
        let new = wanted.get(key);
        if old.as_ref() == new {
            continue;
        }
        deleted.extend(old.clone().map(|old| (key.clone(), old)));
        added.extend(new.cloned().map(|new| (key.clone(), new)));
    }
    builder.delete_elements(id, set, deleted);
    builder.add_elements(id, set, added);
}
