//! Large transactions in parts.
//!
//! A commit holds the netfilter lock of the network namespace, 0.1 s for 30,000 elements, and
//! every other user of nftables waits for it. Parts give others their turn. Packets see the
//! states between them, so each of these must be sound: nothing leads to what is not there
//! yet, or any more, and nothing is absent that was there before and will be.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::{Element, Key, Name, Ruleset, TableId};
use crate::transaction::{Operation, Transaction};

type Elements = Vec<(Key, Element)>;

/// An element that comes, or is replaced.
struct Change {
    key: Key,
    old: Option<Element>,
    new: Element,
}

/// What becomes of the elements of one set.
#[derive(Default)]
struct Changes {
    deleted: Elements,
    added: Elements,
}

impl Changes {
    /// What comes, with what it replaces; and what goes. Both lists are sorted by key: that
    /// is the order in which a [`crate::transaction::TransactionBuilder`] gets them.
    fn pair(self) -> (Vec<Change>, Elements) {
        debug_assert!(self.deleted.is_sorted_by_key(|(key, _)| key));
        debug_assert!(self.added.is_sorted_by_key(|(key, _)| key));
        let mut comes = Vec::with_capacity(self.added.len());
        let mut goes = Vec::new();
        let mut deleted = self.deleted.into_iter().peekable();
        for (key, new) in self.added {
            goes.extend(std::iter::from_fn(|| {
                deleted.next_if(|(old, _)| *old < key)
            }));
            let old = deleted.next_if(|(old, _)| *old == key);
            let old = old.map(|(_, element)| element);
            comes.push(Change { key, old, new });
        }
        goes.extend(deleted);
        (comes, goes)
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
    /// By rank, see [`crate::layout::rank`].
    changes: BTreeMap<(u8, TableId, Name), Changes>,
}

impl Transaction {
    /// The same in several transactions with at most about `max_elements` each.
    ///
    /// New slots come before what leads to them, an element is replaced within one
    /// transaction, and what nothing leads to any more goes last. A transaction that makes a
    /// table, set or chain anew under its name stays whole. So does what becomes of a set of
    /// intervals where some go and some come: they may overlap, and the kernel refuses what
    /// comes before the other is gone. `desired` says which sets have intervals.
    pub fn chunks(self, max_elements: usize, desired: &Ruleset) -> Vec<Self> {
        if self.element_operations() <= max_elements || self.makes_anew() {
            return vec![self];
        }
        let parts = Parts::of(self.operations);
        let mut chunks = Chunks {
            done: vec![Transaction {
                operations: parts.created,
            }],
            room: max_elements,
            max: max_elements,
        };
        let has_intervals = |table: &TableId, set: &Name| {
            let table = desired.tables.get(table);
            table.is_some_and(|table| table.sets.get(set).is_some_and(|set| set.spec.interval))
        };
        let (whole, changes): (Vec<_>, Vec<_>) =
            parts
                .changes
                .into_iter()
                .partition(|((_, table, set), changes)| {
                    let overlap = !changes.deleted.is_empty() && !changes.added.is_empty();
                    overlap && has_intervals(table, set)
                });
        for ((_, table, set), changes) in whole {
            chunks.whole(&(table, set), changes);
        }
        let (targets, dispatches): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .map(|((rank, table, set), changes)| (rank, (table, set), changes.pair()))
            .partition(|(rank, ..)| *rank == 0);
        let mut orphans = Vec::new();
        for (_, set, (comes, goes)) in targets {
            chunks.come(&set, comes);
            orphans.push((set, goes));
        }
        chunks.structure(parts.rewritten);
        for (_, set, (comes, goes)) in dispatches {
            chunks.come(&set, comes);
            chunks.go(&set, goes);
        }
        for (set, goes) in orphans {
            chunks.go(&set, goes);
        }
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
                } => parts.changes(table, set).deleted.extend(elements),
                Operation::AddElements {
                    table,
                    set,
                    elements,
                } => parts.changes(table, set).added.extend(elements),
            }
        }
        parts
    }

    fn changes(&mut self, table: TableId, set: Name) -> &mut Changes {
        let rank = crate::layout::rank(set.as_str());
        self.changes.entry((rank, table, set)).or_default()
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

    /// Elements that come or are replaced.
    fn come(&mut self, set: &(TableId, Name), changes: Vec<Change>) {
        // An interval without its end would hold everything above it: both go
        // into one transaction, and the end is next in the order of keys.
        let closes = |change: &Change| change.new.interval_end;
        let cost = |change: &Change| 1 + usize::from(change.old.is_some());
        self.split(changes, closes, cost, |operations, changes| {
            let mut deleted = Vec::new();
            let mut added = Vec::with_capacity(changes.len());
            for Change { key, old, new } in changes {
                deleted.extend(old.map(|old| (key.clone(), old)));
                added.push((key, new));
            }
            push(operations, set, deleted, delete);
            push(operations, set, added, add);
        });
    }

    /// Everything that becomes of a set, at once.
    fn whole(&mut self, set: &(TableId, Name), Changes { deleted, added }: Changes) {
        let cost = deleted.len() + added.len();
        if self.room < cost {
            self.done.push(Transaction::default());
            self.room = self.max;
        }
        self.room = self.room.saturating_sub(cost);
        let last = self.done.last_mut().expect("never empty");
        push(&mut last.operations, set, deleted, delete);
        push(&mut last.operations, set, added, add);
    }

    /// Elements that go, an interval with both its ends.
    fn go(&mut self, set: &(TableId, Name), elements: Elements) {
        self.split(
            elements,
            |(_, element)| element.interval_end,
            |_| 1,
            |operations, part| push(operations, set, part, delete),
        );
    }

    /// Hands the items over in parts for which there is room, each to be appended to the
    /// operations of one transaction. What `closes` stays with the item before it.
    fn split<T>(
        &mut self,
        items: Vec<T>,
        closes: impl Fn(&T) -> bool,
        cost: impl Fn(&T) -> usize,
        append: impl Fn(&mut Vec<Operation>, Vec<T>),
    ) {
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            if self.room == 0 {
                self.done.push(Transaction::default());
                self.room = self.max;
            }
            let mut part = Vec::with_capacity(items.len().min(self.room + 1));
            while let Some(item) = items.next_if(|item| self.room > 0 || closes(item)) {
                self.room = self.room.saturating_sub(cost(&item));
                part.push(item);
            }
            let last = self.done.last_mut().expect("never empty");
            append(&mut last.operations, part);
        }
    }
}

fn push(
    operations: &mut Vec<Operation>,
    (table, set): &(TableId, Name),
    elements: Elements,
    operation: fn(TableId, Name, Elements) -> Operation,
) {
    if !elements.is_empty() {
        operations.push(operation(table.clone(), set.clone(), elements));
    }
}

const fn add(table: TableId, set: Name, elements: Elements) -> Operation {
    Operation::AddElements {
        table,
        set,
        elements,
    }
}

const fn delete(table: TableId, set: Name, elements: Elements) -> Operation {
    Operation::DeleteElements {
        table,
        set,
        elements,
    }
}
