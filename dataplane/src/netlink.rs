//! The kernel's side of the data plane: batches, dumps and the socket.
//!
//! The encoder writes attributes straight into one buffer. The messages of
//! `netlink-packet-netfilter` 0.4 lack most expressions that are needed here, and a
//! cold start writes 40,000 elements: building message structures first costs several
//! times what the kernel then needs to take them.

mod attr;
mod batch;
mod conntrack;
mod decode;
mod denials;
mod dump;
mod encode;
mod foreign;
mod host_port_flows;
mod marks;
mod nflog;
mod socket;
mod tracked;
mod uapi;
mod unlearnt;

pub use batch::Batch;
pub use foreign::ForeignChain;
pub use host_port_flows::HostPortFlows;
pub use nflog::{LoggedPacket, PacketLog};
pub use socket::Nftables;
pub use tracked::TrackedFlow;
