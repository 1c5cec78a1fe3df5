//! What can be said to the owner's thread, and asked.

use std::collections::BTreeSet;
use std::time::Instant;

use dataplane::attachment::{Attachment, AttachmentKey};
use dataplane::object::IpFamily;
use ipnet::IpNet;
use proxy::{NodePortEndpoints, ServiceStatus};
use tokio::sync::oneshot;

use crate::addresses::HostAddresses;
use crate::complaint::{Complaint, Problem};
use crate::event::Event;
use crate::network::NetworkStatus;
use crate::owner::{PolicyStatus, Status};
use crate::snapshot::{About, Snapshot};

/// What the owner's thread is told.
pub enum Mail {
    /// An object has changed.
    Event(Event),
    /// The manifests may have changed.
    Rescan,
    /// The addresses of the node's interfaces.
    HostAddresses(HostAddresses),
    /// Everything that is wrong now in the eyes of whom the name is of.
    Complaints(&'static str, Vec<Complaint>),
    /// What of the API is not watched now. For the status alone: an Event would have to go
    /// where no watch comes through.
    Unwatched(Vec<Problem>),
    /// Somebody asks.
    Call(Call),
    /// Whether the pods' bridge ports are isolated now.
    PortsIsolated(bool),
    /// The pod network of the cluster, and the nodes that know the way to this one's pods.
    Network(Box<NetworkStatus>, BTreeSet<IpNet>),
    /// Nothing: whoever sends it wants to know whether it can be sent.
    Ping,
    /// End. The tables stay as they are.
    Stop,
}

/// A question, and where the answer goes; nobody may be there any more to get it.
pub enum Call {
    /// Admit an attachment; answered when it is programmed, or at the deadline.
    Attach {
        /// What the plugin creates.
        attachment: Box<Attachment>,
        /// When to answer at the latest.
        deadline: Instant,
        /// `true`: programmed; `false`: closed until its pod is known.
        reply: oneshot::Sender<Result<bool, String>>,
    },
    /// Forget an attachment; answered when its addresses are out of the kernel.
    Detach {
        /// What the plugin removes.
        key: AttachmentKey,
        /// When to answer at the latest.
        deadline: Instant,
        /// Answer.
        reply: oneshot::Sender<Result<bool, String>>,
    },
    /// Answered when everything that was visible before is in the kernel.
    Wait {
        /// When to answer at the latest.
        deadline: Instant,
        /// Answer.
        reply: oneshot::Sender<Result<bool, String>>,
    },
    /// The state in one document.
    Status(oneshot::Sender<Status>),
    /// The Services.
    Services(oneshot::Sender<Vec<ServiceStatus>>),
    /// The policies.
    Policies(oneshot::Sender<Vec<PolicyStatus>>),
    /// The state of this moment.
    Snapshot {
        /// Which Services it is to hold.
        about: About,
        /// Answer.
        reply: oneshot::Sender<Snapshot>,
    },
    /// What differs between the kernel and the desired state, a line each.
    Verify(oneshot::Sender<Result<Vec<String>, String>>),
    /// Where connections of this node itself to a TCP node port lead.
    NodePort {
        /// The port.
        port: u16,
        /// Of the client.
        family: IpFamily,
        /// `None`: no Service has it.
        reply: oneshot::Sender<Option<NodePortEndpoints>>,
    },
}
