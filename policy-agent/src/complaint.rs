//! What needs a person: shown by `status` and, in a cluster, told as an Event of its object.

use std::collections::BTreeSet;

use proxy::model::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::event::Kind;

/// Everything that is wrong.
pub type Complaints = BTreeSet<Complaint>;

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Complaint {
    /// The object; `None`: it is about this node.
    pub about: Option<(Kind, ObjectKey)>,
    /// UID of the object, where it is known.
    pub uid: Option<String>,
    /// Why, in one word, for those who filter Events.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Complaint {
    /// About a Service.
    pub fn of_service(key: &ObjectKey, reason: &'static str, message: String) -> Self {
        Self {
            about: Some((Kind::Service, key.clone())),
            uid: None,
            reason,
            message,
        }
    }
}

/// A line of `status` about something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// `Kind namespace/name`.
    pub object: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl From<&Complaint> for Problem {
    fn from(complaint: &Complaint) -> Self {
        let object = complaint.about.as_ref();
        Self {
            object: object.map_or_else(|| "Node".to_owned(), |(kind, key)| format!("{kind} {key}")),
            reason: complaint.message.clone(),
        }
    }
}
