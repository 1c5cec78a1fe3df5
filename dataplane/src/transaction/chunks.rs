//! Large transactions in parts.
//!
//! A commit holds the netfilter lock of the network namespace, 0.1 s for 30,000 elements, and
//! every other user of nftables waits for it. Parts give others their turn. Packets see the
//! states between them, so each of these must be sound: nothing leads to what is not there
//! yet, or any more, and nothing is absent that was there before and will be.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::{Element, Key, Name, TableId};
use crate::transaction::{Operation, Transaction};

/// What becomes of one element.
struct Change {
    table: TableId,
    set: Name,
    key: Key,
    old: Option<Element>,
    new: Option<Element>,
}

impl Change {
    const fn operations(&self) -> usize {
        self.old.is_some() as usize + self.new.is_some() as usize
    }
}

/// The parts of a transaction, in the order in which they are sound.
#[derive(Default)]
struct Parts {
    /// New tables, sets, and chains with their rules: nothing leads there yet.
    created: Vec<Operation>,
    /// Chains whose rules change.
    rewritten: Vec<Operation>,
    /// Chains and sets that go.
    removed: Vec<Operation>,
    changes: BTreeMap<(u8, TableId, Name), BTreeMap<Key, Change>>,
}

impl Transaction {
    /// The same in several transactions with at most about `max_elements` each.
    ///
    /// New slots come before what leads to them, an element is replaced within one
    /// transaction, and what nothing leads to any more goes last. A transaction that makes a
    /// table, set or chain anew under its name stays whole.
    pub fn chunks(self, max_elements: usize) -> Vec<Self> {
        if self.element_operations() <= max_elements || self.makes_anew() {
            return vec![self];
        }
        let parts = Parts::of(self.operations);
        let mut targets = Vec::new();
        let mut dispatches = Vec::new();
        let mut orphans = Vec::new();
        for ((rank, ..), changes) in parts.changes {
            let (comes, goes): (Vec<_>, Vec<_>) = changes
                .into_values()
                .partition(|change| change.new.is_some());
            if rank == 0 {
                targets.push(comes);
                orphans.push(goes);
            } else {
                dispatches.extend([comes, goes]);
            }
        }
        let mut chunks = Chunks {
            done: vec![Transaction {
                operations: parts.created,
            }],
            room: max_elements,
            max: max_elements,
        };
        chunks.elements(targets);
        chunks.structure(parts.rewritten);
        chunks.elements(dispatches);
        chunks.elements(orphans);
        chunks.structure(parts.removed);
        chunks.done
    }

    fn makes_anew(&self) -> bool {
        let mut removed = BTreeSet::new();
        self.operations.iter().any(|operation| match operation {
            Operation::DeleteTable { .. } => true,
            Operation::DeleteSet { .. } | Operation::DeleteChain { .. } => {
                removed.insert(operation.object());
                false
            }
            Operation::AddSet { .. } | Operation::AddChain { .. } => {
                removed.contains(&operation.object())
            }
            _ => false,
        })
    }
}

impl Parts {
    fn of(operations: Vec<Operation>) -> Self {
        let mut parts = Self::default();
        let names =
            |pick: fn(&Operation) -> Option<(&TableId, &Name)>| -> BTreeSet<(TableId, Name)> {
                let picked = operations.iter().filter_map(pick);
                picked
                    .map(|(table, chain)| (table.clone(), chain.clone()))
                    .collect()
            };
        let added = names(|operation| match operation {
            Operation::AddChain { table, chain, .. } => Some((table, chain)),
            _ => None,
        });
        let deleted = names(|operation| match operation {
            Operation::DeleteChain { table, chain } => Some((table, chain)),
            _ => None,
        });
        for operation in operations {
            match operation {
                Operation::AddTable { .. }
                | Operation::AddSet { .. }
                | Operation::AddChain { .. } => parts.created.push(operation),
                Operation::AddRule {
                    ref table,
                    ref chain,
                    ..
                } => {
                    if added.contains(&(table.clone(), chain.clone())) {
                        parts.created.push(operation);
                    } else {
                        parts.rewritten.push(operation);
                    }
                }
                Operation::FlushChain {
                    ref table,
                    ref chain,
                } => {
                    if deleted.contains(&(table.clone(), chain.clone())) {
                        parts.removed.push(operation);
                    } else {
                        parts.rewritten.push(operation);
                    }
                }
                Operation::DeleteTable { .. }
                | Operation::DeleteSet { .. }
                | Operation::DeleteChain { .. } => parts.removed.push(operation),
                Operation::DeleteElements {
                    table,
                    set,
                    elements,
                } => {
                    parts.change(&table, &set, elements, |change, old| change.old = Some(old));
                }
                Operation::AddElements {
                    table,
                    set,
                    elements,
                } => {
                    parts.change(&table, &set, elements, |change, new| change.new = Some(new));
                }
            }
        }
        parts
    }

    fn change(
        &mut self,
        table: &TableId,
        set: &Name,
        elements: Vec<(Key, Element)>,
        note: fn(&mut Change, Element),
    ) {
        let rank = crate::layout::rank(set.as_str());
        let changes = self
            .changes
            .entry((rank, table.clone(), set.clone()))
            .or_default();
        for (key, element) in elements {
            let change = changes.entry(key.clone()).or_insert_with(|| Change {
                table: table.clone(),
                set: set.clone(),
                key,
                old: None,
                new: None,
            });
            note(change, element);
        }
    }
}

struct Chunks {
    done: Vec<Transaction>,
    room: usize,
    max: usize,
}

impl Chunks {
    /// Operations that belong into one transaction.
    fn structure(&mut self, operations: Vec<Operation>) {
        let last = self.done.last_mut().expect("never empty");
        last.operations.extend(operations);
    }

    /// The changes of each set; only those of one set stand together.
    fn elements(&mut self, sets: Vec<Vec<Change>>) {
        for changes in sets {
            let mut changes = changes.into_iter().peekable();
            while changes.peek().is_some() {
                if self.room == 0 {
                    self.done.push(Transaction::default());
                    self.room = self.max;
                }
                let mut part = Vec::new();
                // An interval without its end would hold everything above it: both go
                // into one transaction, and the end is next in the order of keys.
                let closes =
                    |change: &Change| change.new.as_ref().is_some_and(|new| new.interval_end);
                while let Some(change) = changes.next_if(|change| self.room > 0 || closes(change)) {
                    self.room = self.room.saturating_sub(change.operations());
                    part.push(change);
                }
                self.push(part);
            }
        }
    }

    /// Appends changes of one set.
    fn push(&mut self, changes: Vec<Change>) {
        let Some(first) = changes.first() else { return };
        let (table, set) = (first.table.clone(), first.set.clone());
        let mut deleted = Vec::new();
        let mut added = Vec::new();
        for change in changes {
            deleted.extend(change.old.map(|old| (change.key.clone(), old)));
            added.extend(change.new.map(|new| (change.key, new)));
        }
        let last = self.done.last_mut().expect("never empty");
        if !deleted.is_empty() {
            last.operations.push(Operation::DeleteElements {
                table: table.clone(),
                set: set.clone(),
                elements: deleted,
            });
        }
        if !added.is_empty() {
            last.operations.push(Operation::AddElements {
                table,
                set,
                elements: added,
            });
        }
    }
}
