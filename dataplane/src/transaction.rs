//! Transactions: what changes from one state of the tables to the next.
//!
//! A transaction is one netlink batch: the kernel takes all of it or nothing, and
//! no packet sees a part of it. [`TransactionBuilder`] puts the operations into the
//! one order in which every reference exists when it is made and is gone when its
//! target goes, so that callers need not think of order.

mod chunks;

use std::collections::BTreeSet;

use crate::object::{Chain, Element, Key, Name, Set, SetSpec, TableId};
use crate::rule::Rule;

/// One operation on one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Create the table; where it exists, wake it if it is dormant.
    AddTable {
        /// Which.
        table: TableId,
    },
    /// Remove the table with all that is in it.
    DeleteTable {
        /// Which.
        table: TableId,
    },
    /// Remove all rules of the chain.
    FlushChain {
        /// Table.
        table: TableId,
        /// Name.
        chain: Name,
    },
    /// Remove elements; each must exist.
    DeleteElements {
        /// Table.
        table: TableId,
        /// Set or map.
        set: Name,
        /// Keys, with their values for what the kernel wants to know of them
        /// (the end of an interval is deleted as such).
        elements: Vec<(Key, Element)>,
    },
    /// Remove the set or map.
    DeleteSet {
        /// Table.
        table: TableId,
        /// Name.
        set: Name,
    },
    /// Remove the chain; no rule and no element may lead to it.
    DeleteChain {
        /// Table.
        table: TableId,
        /// Name.
        chain: Name,
    },
    /// Create the set or map.
    AddSet {
        /// Table.
        table: TableId,
        /// Name.
        set: Name,
        /// Declaration.
        spec: SetSpec,
    },
    /// Create the chain; its rules follow as [`Operation::AddRule`].
    AddChain {
        /// Table.
        table: TableId,
        /// Name.
        chain: Name,
        /// Hook and comment; `rules` is empty.
        spec: Chain,
    },
    /// Append the rule.
    AddRule {
        /// Table.
        table: TableId,
        /// Chain.
        chain: Name,
        /// Rule.
        rule: Rule,
    },
    /// Add elements; none may exist with another value.
    AddElements {
        /// Table.
        table: TableId,
        /// Set or map.
        set: Name,
        /// Keys and values.
        elements: Vec<(Key, Element)>,
    },
}

impl Operation {
    /// What the operation is about, for errors: `inet trammel map frontends4`.
    pub fn object(&self) -> String {
        match self {
            Self::AddTable { table } | Self::DeleteTable { table } => format!("table {table}"),
            Self::FlushChain { table, chain }
            | Self::DeleteChain { table, chain }
            | Self::AddChain { table, chain, .. }
            | Self::AddRule { table, chain, .. } => format!("chain {table} {chain}"),
            Self::DeleteElements { table, set, .. }
            | Self::AddElements { table, set, .. }
            | Self::DeleteSet { table, set }
            | Self::AddSet { table, set, .. } => format!("set {table} {set}"),
        }
    }

    /// The elements that it adds or removes.
    pub fn elements(&self) -> &[(Key, Element)] {
        match self {
            Self::AddElements { elements, .. } | Self::DeleteElements { elements, .. } => elements,
            _ => &[],
        }
    }
}

/// Operations in the order in which the kernel is to carry them out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Transaction {
    /// The operations.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Number of elements that are added or removed.
    pub fn element_operations(&self) -> usize {
        self.operations.iter().map(|op| op.elements().len()).sum()
    }
}

/// Collects what changes and orders it.
///
/// Phases: tables; rules of changed and removed chains go; elements go; sets go;
/// chains go; sets, chains, rules, elements come. Within a phase sets follow their rank
/// ([`crate::layout::rank`]): what points comes after what is pointed at, and goes
/// before it.
#[derive(Default, Debug)]
pub struct TransactionBuilder {
    add_tables: BTreeSet<TableId>,
    delete_tables: BTreeSet<TableId>,
    flushed: Vec<Operation>,
    removed_elements: Vec<Operation>,
    removed_sets: Vec<Operation>,
    removed_chains: Vec<Operation>,
    added_sets: Vec<Operation>,
    added_chains: Vec<Operation>,
    added_rules: Vec<Operation>,
    added_elements: Vec<Operation>,
}

impl TransactionBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates the table, or wakes it.
    pub fn add_table(&mut self, table: &TableId) {
        self.add_tables.insert(table.clone());
    }

    /// Removes the table.
    pub fn delete_table(&mut self, table: &TableId) {
        self.delete_tables.insert(table.clone());
    }

    /// Turns chain `before` into `after`; `None` where there is none. A base chain that
    /// moves to another hook is removed and created again. The comment of a chain that
    /// stays is not changed: the kernel has no way to, and a chain that others lead to
    /// cannot be made anew.
    pub fn chain(
        &mut self,
        table: &TableId,
        name: &Name,
        before: Option<&Chain>,
        after: Option<&Chain>,
    ) {
        let (table, chain) = (table.clone(), name.clone());
        let kept = match (before, after) {
            (Some(before), Some(after)) => before.base == after.base,
            _ => false,
        };
        if before.is_some_and(|before| !before.rules.is_empty()) {
            self.flushed.push(Operation::FlushChain {
                table: table.clone(),
                chain: chain.clone(),
            });
        }
        if before.is_some() && !kept {
            self.removed_chains.push(Operation::DeleteChain {
                table: table.clone(),
                chain: chain.clone(),
            });
        }
        let Some(after) = after else { return };
        if !kept {
            self.added_chains.push(Operation::AddChain {
                table: table.clone(),
                chain: chain.clone(),
                spec: Chain {
                    rules: Vec::new(),
                    ..after.clone()
                },
            });
        }
        for rule in &after.rules {
            self.added_rules.push(Operation::AddRule {
                table: table.clone(),
                chain: chain.clone(),
                rule: rule.clone(),
            });
        }
    }

    /// Creates the set with its elements.
    pub fn add_set(&mut self, table: &TableId, name: &Name, set: &Set) {
        self.added_sets.push(Operation::AddSet {
            table: table.clone(),
            set: name.clone(),
            spec: set.spec.clone(),
        });
        let elements = set.elements.iter();
        self.add_elements(
            table,
            name,
            elements.map(|(k, e)| (k.clone(), e.clone())).collect(),
        );
    }

    /// Removes the set with its elements. Every rule that reads it must be flushed or
    /// rewritten in the same transaction.
    pub fn delete_set(&mut self, table: &TableId, name: &Name) {
        self.removed_sets.push(Operation::DeleteSet {
            table: table.clone(),
            set: name.clone(),
        });
    }

    /// Adds elements.
    pub fn add_elements(&mut self, table: &TableId, set: &Name, elements: Vec<(Key, Element)>) {
        if !elements.is_empty() {
            self.added_elements.push(Operation::AddElements {
                table: table.clone(),
                set: set.clone(),
                elements,
            });
        }
    }

    /// Removes elements.
    pub fn delete_elements(&mut self, table: &TableId, set: &Name, elements: Vec<(Key, Element)>) {
        if !elements.is_empty() {
            self.removed_elements.push(Operation::DeleteElements {
                table: table.clone(),
                set: set.clone(),
                elements,
            });
        }
    }

    /// The transaction.
    pub fn build(mut self) -> Transaction {
        fn rank(operation: &Operation) -> u8 {
            match operation {
                Operation::AddElements { set, .. } | Operation::DeleteElements { set, .. } => {
                    crate::layout::rank(set.as_str())
                }
                _ => 0,
            }
        }
        self.added_elements.sort_by_key(rank);
        self.removed_elements.sort_by_key(|op| u8::MAX - rank(op));
        let delete = self.delete_tables.into_iter();
        let add = self.add_tables.into_iter();
        let mut operations: Vec<_> = delete
            .map(|table| Operation::DeleteTable { table })
            .chain(add.map(|table| Operation::AddTable { table }))
            .collect();
        for phase in [
            self.flushed,
            self.removed_elements,
            self.removed_sets,
            self.removed_chains,
            self.added_sets,
            self.added_chains,
            self.added_rules,
            self.added_elements,
        ] {
            operations.extend(phase);
        }
        Transaction { operations }
    }
}
