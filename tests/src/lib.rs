//! The black-box side: real network namespaces, the real programs, real packets.
//!
//! Nothing here links the plugin or the agent. They are run as a container
//! runtime and an init system would run them, and what they did is read back
//! with other tools: `ip`, `nft`, `conntrack`, and connections.
//!
//! ```text
//!   Node ──────────────────────────────┐            outside
//!   │ trammel-agent   cbr0             │ uplink     ┌─────────┐
//!   │                 ├─ veth ─ Pod    ├────────────┤ servers │
//!   │ CNI conf, state └─ veth ─ Pod    │            │ clients │
//!   └──────────────────────────────────┘            └─────────┘
//! ```
//!
//! Every box is a namespace with a name of this process ([`name`]), so that any
//! number of runs stand beside each other, and what a killed run left behind
//! disturbs nobody and can be told from what is in use.
//!
//! Clients and servers are threads of this process that have entered a
//! namespace ([`NetNs::enter`](netns::NetNs::enter)), not programs: their sockets
//! go when they go, even at `kill -9`, and every measurement has one clock.

pub mod agent;
pub mod api_server;
pub mod cluster;
pub mod command;
pub mod fabric;
pub mod inspect;
pub mod interrupt;
pub mod manifests;
pub mod matrix;
pub mod name;
pub mod netns;
pub mod node;
pub mod objects;
pub mod plugin;
pub mod pod;
pub mod privilege;
pub mod programs;
pub mod random;
pub mod scene;
pub mod shop;
pub mod traffic;
pub mod wait;
