//! Where desired state comes from: the Kubernetes API or a directory of manifests.
//!
//! ```text
//!   kubernetes (watch) ──┐ k8s-openapi types, cut by narrow
//!                        ├──► convert ──► Event ──► the owner of the index
//!   manifests (files) ───┘
//! ```
//!
//! Both tell the same [`Event`](crate::event::Event)s, so nothing behind them knows
//! which one runs. Kubernetes types stop at [`convert`]: defaults that an API server
//! would have applied are applied there, and what it would have refused is refused
//! there, because files have seen no API server. [`endpoints`] does the work of the
//! EndpointSlice controller where there is none.

pub mod convert;
pub mod endpoints;
pub mod kubernetes;
pub mod manifests;
pub mod narrow;
