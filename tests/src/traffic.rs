//! Servers that say who answers and whom they see, and clients that say what
//! became of an attempt.

mod client;
mod hammer;
pub mod sctp;
mod server;
mod stream;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

pub use client::{ask, send_from, udp_to};
pub use hammer::{Hammer, Tally};
pub use server::{Seen, Server};
pub use stream::Stream;

/// How long an attempt takes at most that is to be answered: it ends with the answer, and neither
/// a lost packet nor a machine that stands still for seconds is a failure.
pub const PATIENT: Duration = Duration::from_secs(20);

/// How long is waited for an answer that is not to come.
pub const SHORT: Duration = Duration::from_millis(400);

/// How long an attempt may take that is, or is not, to be answered.
pub const fn limit(is_answered: bool) -> Duration {
    if is_answered { PATIENT } else { SHORT }
}

/// A transport protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// What became of one attempt to be answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Outcome {
    /// A server answered.
    Answered {
        /// The name of the server.
        server: String,
        /// The client's address as the server saw it.
        peer: SocketAddr,
    },
    /// Turned away at once: a TCP reset, or ICMP port unreachable.
    Refused,
    /// No answer in time.
    Timeout,
    /// ICMP said that it cannot be reached, or may not be.
    Unreachable {
        /// The kernel's words.
        reason: String,
    },
    /// Anything else, such as a connection that was made and then reset.
    Failed {
        /// The kernel's words.
        reason: String,
    },
}

impl Outcome {
    /// Whether a server answered.
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Answered { .. })
    }

    /// The name of the server that answered.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Answered { server, .. } => Some(server),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { server, peer } => write!(f, "answered by {server}, seen as {peer}"),
            Self::Refused => f.write_str("refused"),
            Self::Timeout => f.write_str("no answer"),
            Self::Unreachable { reason } => write!(f, "unreachable: {reason}"),
            Self::Failed { reason } => f.write_str(reason),
        }
    }
}
