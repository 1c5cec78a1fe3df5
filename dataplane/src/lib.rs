//! Typed nftables: everything of the data plane that the kernel sees, nothing that is
//! Kubernetes.
//!
//! ```text
//!  layout ──────────────► desired ──► transaction ──► kernel::Kernel
//!  (names, rules, keys)   (what and       (ordered       ├─ netlink::Nftables  encode, send, dump
//!                          what of it      operations)   └─ fake::Fake         in memory
//!                          is new)
//!                             ▲                                     │ dump
//!                             └───────────── observe ◄──────────────┘
//! ```
//!
//! - [`object`], [`rule`], [`field`], [`datatype`]: the nouns. Rules are a typed syntax tree;
//!   the encoder, the decoder, the printer and the tracer all work on it.
//! - [`desired`] keeps the desired state with a record of what is not applied yet;
//!   [`diff`] compares whole rulesets, for adoption after a restart.
//! - [`transaction`] puts operations into an order in which every reference exists.
//! - [`netlink`] speaks to the kernel, [`fake`] stands in for it, [`trace`] walks packets
//!   through a ruleset, [`mod@print`] shows it in `nft` syntax.
//! - [`interval`] makes disjoint intervals of networks, for sets of them.
//! - [`layout`] is the concrete design: hooks, priorities, mark bits, maps.
//! - [`attachment`] is the contract between the CNI plugin and the agent.
//!
//! Requirements: kernel 5.13 or newer with nf_tables for the inet and bridge families,
//! and `CAP_NET_ADMIN` in the network namespace. No `nft` program is run.

pub mod attachment;
pub mod bridge_netfilter;
pub mod datatype;
pub mod desired;
pub mod diff;
pub mod fake;
pub mod field;
pub mod interval;
pub mod kernel;
pub mod layout;
pub mod netlink;
pub mod object;
pub mod print;
pub mod rule;
pub mod trace;
pub mod transaction;
