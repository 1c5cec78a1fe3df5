//! The agent: NetworkPolicy and Services of one node, on one nftables table.
//!
//! ```text
//!  source (watch | files) ──Event──► runtime ──► owner ──► kernel
//!  plugin ─────────Attachment──────►  (thread)    │ index, compile, proxy: pure
//!  command line ──────Query────────►              └ desired, one transaction a sync
//! ```
//!
//! - [`source`]: the Kubernetes API or a folder of manifests, as [`event::Event`]s of
//!   [`model`] objects; Kubernetes types stop there.
//! - [`index`], [`compile`], [`verdict`]: pure. The compiler writes policies into the desired
//!   state; the verdict is the oracle that judges flows straight from the API's text, and
//!   knows nothing of the compiler.
//! - [`owner`]: the one owner of the desired state; [`runtime`] is its thread.
//! - [`journal`]: the last known good objects on disk.
//! - [`reaper`]: frees what dead runtimes have left.
//! - [`network`]: routes to other nodes' pods, and the CNI configuration. Off by default.
//! - [`check`], [`install`], [`cleanup`]: a node before and after it.
//! - [`admin`], [`http`], [`health`]: what it shows; [`client`], [`args`], [`config`]: the
//!   command line.

pub mod addresses;
pub mod admin;
pub mod agent;
pub mod args;
pub mod check;
pub mod cleanup;
pub mod client;
pub mod compile;
pub mod complaint;
pub mod config;
pub mod conntrack;
pub mod event;
pub mod events;
pub mod explain;
#[cfg(test)]
pub(crate) mod fixture;
pub mod foreign;
pub mod health;
pub mod health_check;
pub mod http;
pub mod index;
pub(crate) mod inspect;
pub mod install;
pub mod isolation;
pub mod journal;
pub mod lint;
mod listeners;
pub mod loopback;
pub mod matrix;
pub mod metrics;
pub mod model;
pub mod network;
pub mod owner;
pub mod plan;
pub mod reach;
pub mod reaper;
pub mod records;
pub mod runtime;
pub mod snapshot;
pub mod source;
pub mod sysctls;
pub mod verdict;
pub mod verdict_log;
