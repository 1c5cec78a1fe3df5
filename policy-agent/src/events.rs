//! Complaints as Events of their objects (`events.k8s.io/v1`), so that `kubectl describe`
//! shows them to those who cannot see this node.
//!
//! An Event is written when a complaint comes up, not while it lasts, and at most five a
//! second: a thousand wrong objects on a thousand nodes must not be the API server's next
//! problem. One that comes again within six minutes counts up the Event that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use proxy::model::ObjectKey;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::complaint::{Complaint, Complaints};
use crate::event::Kind;

/// Between two Events.
const PAUSE: Duration = Duration::from_millis(200);
/// Until an Event that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Longest note that the API server takes.
const NOTE: usize = 1024;

/// What an Event is about, and why.
type Subject = (Option<(Kind, ObjectKey)>, &'static str);

/// Writes Events until nobody complains any more.
pub async fn report(client: Client, node: String, mut complaints: watch::Receiver<Complaints>) {
    let reporter = Reporter {
        controller: "trammel-agent".into(),
        instance: Some(node.clone()),
    };
    let recorder = Recorder::new(client, reporter);
    let mut pace = tokio::time::interval(PAUSE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: BTreeMap<Subject, (Option<String>, String)> = BTreeMap::new();
    let mut is_broken = false;
    loop {
        let now = by_subject(&complaints.borrow_and_update());
        told.retain(|subject, _| now.contains_key(subject));
        let mut failed = None;
        for (subject, what) in now {
            if told.get(&subject) == Some(&what) {
                continue;
            }
            pace.tick().await;
            let event = Event {
                type_: EventType::Warning,
                reason: subject.1.to_owned(),
                note: Some(what.1.clone()),
                action: "Sync".into(),
                secondary: None,
            };
            match recorder
                .publish(&event, &reference(&subject, &what.0, &node))
                .await
            {
                Ok(()) => {
                    told.insert(subject, what);
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = &failed
            && !is_broken
        {
            tracing::warn!(%error, "Events cannot be written, trying again; see status");
        }
        is_broken = failed.is_some();
        let retry = async {
            match is_broken {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = complaints.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

/// One Event for each object and reason: its UID, and everything that is to be said.
fn by_subject(complaints: &Complaints) -> BTreeMap<Subject, (Option<String>, String)> {
    let mut subjects: BTreeMap<Subject, (Option<String>, String)> = BTreeMap::new();
    for Complaint {
        about,
        uid,
        reason,
        message,
    } in complaints
    {
        let (known_uid, note) = subjects.entry((about.clone(), *reason)).or_default();
        known_uid.clone_from(uid);
        if !note.is_empty() {
            note.push_str("; ");
        }
        note.push_str(message);
    }
    for (_, note) in subjects.values_mut() {
        note.truncate(note.floor_char_boundary(NOTE));
    }
    subjects
}

fn reference((about, _): &Subject, uid: &Option<String>, node: &str) -> ObjectReference {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    match about {
        Some((kind, key)) => ObjectReference {
            api_version: text(kind.api_version()),
            kind: Some(kind.to_string()),
            namespace: text(&key.namespace),
            name: text(&key.name),
            uid: uid.clone(),
            ..ObjectReference::default()
        },
        // The UID is that under which kubelet and kube-proxy write: the name.
        None => ObjectReference {
            api_version: text(Kind::Node.api_version()),
            kind: Some(Kind::Node.to_string()),
            name: text(node),
            uid: text(node),
            ..ObjectReference::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_object_for_one_reason_is_one_event() {
        let of = |name: &str, message: &str| {
            let key = ObjectKey::new("shop", name);
            Complaint::of_service(&key, "ServiceNotServed", message.to_owned())
        };
        let long = "ä".repeat(NOTE);
        let complaints = [of("a", "one"), of("a", "two"), of("b", &long)].into();
        let subjects = by_subject(&complaints);
        let notes: Vec<_> = subjects.values().map(|(_, note)| note.as_str()).collect();
        assert_eq!(notes[0], "one; two");
        assert_eq!((notes.len(), notes[1].len()), (2, NOTE));
        let (subject, (uid, _)) = subjects.first_key_value().expect("two");
        let of_object = reference(subject, uid, "n1");
        assert_eq!(of_object.kind.as_deref(), Some("Service"));
        assert_eq!(of_object.namespace.as_deref(), Some("shop"));
        let of_node = reference(&(None, "Any"), &None, "n1");
        assert_eq!(
            (of_node.name.as_deref(), of_node.namespace),
            (Some("n1"), None)
        );
    }
}
