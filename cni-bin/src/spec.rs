//! The CNI wire protocol: what comes in by environment and standard input, and
//! what goes out. Pure; the files and links are elsewhere.
//!
//! Written against the CNI specification 1.1.0 and, where that is silent, the
//! behaviour of `containernetworking/cni` 1.3. Numbers such as 0.4.0 are
//! versions of the specification.

pub mod args;
pub mod bandwidth;
pub mod config;
pub mod error;
pub mod ipam;
pub mod json;
pub mod options;
pub mod port;
pub mod port_mappings;
pub mod result;
pub mod version;
pub mod vlan;

pub use args::{Environment, Target, Verb};
pub use config::{Config, Document, Policy};
pub use error::{Code, Error};
pub use ipam::{Ipam, Pool};
pub use port::Port;
pub use version::Version;
pub use vlan::Vlans;
