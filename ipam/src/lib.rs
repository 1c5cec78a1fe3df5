//! Addresses for pods: which ones there are, which one is next, and who holds it.
//!
//! * [`range`]: subnets and the part of them that may be handed out (pure).
//! * [`allocator`]: the order in which addresses are tried (pure).
//! * [`store`]: leases as files, in host-local's layout, under one lock.
//! * [`claim`]: one request against all of the above, all or nothing.
//! * [`boot`]: leases that a restart of the machine has made void.
//!
//! ```text
//!   configuration --> RangeSet (one per address a pod gets; several pools each)
//!                        |
//!   last_reserved_ip --> allocator: candidates in round-robin order
//!                        |
//!                     store: <dataDir>/<network>/<ip>   (exclusive create)
//! ```
//!
//! The layout on disk is the one of the reference plugin `host-local`, so that a
//! node can be moved to this plugin and back with its pods running.

pub mod allocator;
pub mod boot;
pub mod claim;
pub mod lock;
pub mod range;
pub mod store;

pub use claim::{Allocation, Claim, ClaimError};
pub use range::{Range, RangeError, RangeSet, RangeSpec};
pub use store::{Lease, Locked, Owner, Store, StoreError};
