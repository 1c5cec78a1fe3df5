//! What holds the tables: the kernel, or a fake of it.

use std::net::SocketAddr;

use crate::object::{Element, Key, Name, Ruleset, TableId};
use crate::transaction::{Operation, Transaction};

/// Takes transactions and lists what it holds.
pub trait Kernel {
    /// Carries out the transaction, all of it or nothing.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError>;

    /// What these tables hold now; a table that does not exist is left out. Elements
    /// of dynamic sets are not listed.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn dump(&mut self, tables: &[TableId]) -> Result<Ruleset, KernelError>;

    /// What the rules have put into a dynamic map; nothing where there is no such map.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn learnt(&mut self, table: &TableId, map: &Name) -> Result<Vec<(Key, Element)>, KernelError>;

    /// Ends the flows that still lead from a frontend to an endpoint that it no longer has:
    /// their next packet chooses anew. Returns how many there were.
    ///
    /// # Errors
    /// Where the kernel cannot be asked, or has no conntrack.
    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError>;

    /// Clears the bits of `mask` in the mark of every flow that has other bits there than
    /// `spared` and 0. Returns how many there were. Flows that begin meanwhile are not
    /// looked at.
    ///
    /// # Errors
    /// Where the kernel cannot be asked, or has no conntrack, or where it cannot be known
    /// that no flow was missed.
    fn unmark_flows(&mut self, mask: u32, spared: u32) -> Result<usize, KernelError>;

    /// A number that grows by one with every commit of anybody in the network
    /// namespace.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    fn generation(&mut self) -> Result<u32, KernelError>;
}

/// Flows to forget: from where clients sent to, to where that was translated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StaleFlow {
    /// IP protocol.
    pub protocol: u8,
    /// Address and port before translation.
    pub frontend: SocketAddr,
    /// Address and port after it; those of the frontend for flows that are not translated,
    /// because they are older than the frontend.
    pub endpoint: SocketAddr,
}

/// The kernel cannot be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No right to change the network namespace.
    #[error(
        "nftables is closed to this process: it needs CAP_NET_ADMIN in its network namespace (run it as root, or add the capability)"
    )]
    Permission,
    /// No nf_tables.
    #[error(
        "this kernel has no nf_tables: load the module nf_tables, or use a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET and CONFIG_NF_TABLES_BRIDGE"
    )]
    Unsupported,
    /// A system call has failed.
    #[error("netlink socket: cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// An answer that cannot be understood.
    #[error("nftables answered with {0}")]
    Protocol(&'static str),
}

/// Why a transaction was not carried out. The tables are as they were, except where
/// the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// These operations are impossible; others of the transaction may be fine.
    #[error("{}", list(.0))]
    Rejected(Vec<Rejection>),
    /// The kernel could not be told. For [`KernelError::Io`] it is unknown whether the
    /// transaction was carried out: dump the tables.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// One operation that the kernel refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// Index into [`Transaction::operations`]; `None` where the kernel blames the batch.
    pub operation: Option<usize>,
    /// Indexes of the elements to blame, where it is elements: one, or where the kernel
    /// does not say which, all of its message.
    pub elements: std::ops::Range<usize>,
    /// The object, see [`Operation::object`].
    pub object: String,
    /// Error number, positive.
    pub errno: i32,
    /// What the kernel says about it, if it does.
    pub message: Option<String>,
}

impl Rejection {
    /// The rejection of an operation of the transaction.
    pub(crate) fn of(
        transaction: &Transaction,
        operation: Option<usize>,
        elements: std::ops::Range<usize>,
        errno: i32,
        message: Option<String>,
    ) -> Self {
        let object = operation.and_then(|index| transaction.operations.get(index));
        Self {
            operation,
            elements,
            object: object.map_or_else(|| "the batch".to_owned(), Operation::object),
            errno,
            message,
        }
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "{}: {error}", self.object)?;
        match &self.message {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

fn list(rejections: &[Rejection]) -> String {
    const SHOWN: usize = 3;
    let mut text: Vec<_> = rejections
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect();
    if rejections.len() > SHOWN {
        text.push(format!("and {} more", rejections.len() - SHOWN));
    }
    format!("the kernel rejects {}", text.join("; "))
}
