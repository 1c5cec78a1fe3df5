use dataplane::fake::Fake;
use dataplane::kernel::{CommitError, KernelError, Rejection};
use dataplane::netlink::Nftables;
use dataplane::object::{Element, Key, Name, Ruleset, TableId};
use dataplane::rule::Statement;
use dataplane::transaction::{Operation, Transaction};

use super::*;
use crate::check::Severity;

/// A kernel that does not know one statement.
struct Without {
    fake: Fake,
    is_unknown: fn(&Statement) -> bool,
}

impl Kernel for Without {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let unknown = transaction.operations.iter().position(|operation| {
            matches!(operation, Operation::AddRule { rule, .. }
                if rule.statements.iter().any(self.is_unknown))
        });
        let Some(index) = unknown else {
            return self.fake.commit(transaction);
        };
        Err(CommitError::Rejected(vec![Rejection {
            operation: Some(index),
            elements: 0..0,
            object: transaction.operations[index].object(),
            errno: 2,
            message: None,
        }]))
    }

    fn dump(&mut self, tables: &[TableId]) -> Result<Ruleset, KernelError> {
        self.fake.dump(tables)
    }

    fn learnt(&mut self, table: &TableId, map: &Name) -> Result<Vec<(Key, Element)>, KernelError> {
        self.fake.learnt(table, map)
    }

    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError> {
        self.fake.forget_flows(stale)
    }

    fn unmark_flows(&mut self, mask: u32, spared: u32) -> Result<usize, KernelError> {
        self.fake.unmark_flows(mask, spared)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        self.fake.generation()
    }
}

#[test]
fn a_missing_expression_is_named_with_its_option_and_the_rest_is_tried() {
    let mut kernel = Without {
        fake: Fake::default(),
        is_unknown: |statement| matches!(statement, Statement::Masquerade | Statement::Reject(_)),
    };
    let found = nftables(&mut kernel);
    let actions: Vec<_> = found
        .iter()
        .map(|finding| finding.action.as_str())
        .collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(actions[0].contains("CONFIG_NFT_MASQ"), "{actions:?}");
    assert!(actions[1].contains("CONFIG_NFT_REJECT_INET"), "{actions:?}");
    assert!(
        found
            .iter()
            .all(|finding| finding.severity == Severity::Error)
    );
}

#[test]
fn a_kernel_that_takes_everything_is_fine() {
    let found = nftables(&mut Fake::default());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].severity, Severity::Ok, "{found:?}");
}

#[test]
fn versions_are_compared_as_numbers() {
    for (release, is_fine) in [
        ("6.18.44-fc-v657", true),
        ("5.13.0", true),
        ("5.4.0-200-generic", false),
        ("4.19", false),
        ("10.1-rc1", true),
        ("", false),
    ] {
        let finding = judge_version(release);
        assert_eq!(finding.severity == Severity::Ok, is_fine, "{finding}");
    }
}

/// The kernel that the suites run on has all of it, and nothing is left behind.
#[test]
fn the_probe_of_this_kernel_finds_nothing_and_leaves_nothing() {
    if !nix::unistd::Uid::effective().is_root() {
        assert!(
            std::env::var_os("TRAMMEL_SKIP_ROOT").is_some(),
            "needs root: set TRAMMEL_SKIP_ROOT=1 to leave such tests out"
        );
        return;
    }
    let own = || Nftables::open().and_then(|mut kernel| kernel.generation());
    let before = own().expect("a kernel with nftables");
    let found = in_own_namespace(probe).expect("a namespace");
    let wrong: Vec<_> = found
        .iter()
        .filter(|f| f.severity != Severity::Ok)
        .collect();
    assert_eq!(wrong, Vec::<&Finding>::new());
    assert_eq!(
        own().expect("as before"),
        before,
        "our own tables are untouched"
    );
}
