//! Whether the API server still is where a watch has seen it.
//!
//! A watch that resumes names the version that it has seen. A server whose data were restored
//! from a backup is behind that version: it keeps silent until it gets there, and what was lost
//! it never tells. So it is asked for its version whenever a watch begins, by a list of one
//! object. The versions of a kind are numbers that grow (KEP-5504); where one is lower than
//! before, everything is listed anew.
//!
//! A server that has lost everything, or is another cluster's, would have every node forget
//! its pods and policies. The UID of the namespace `kube-system` tells clusters apart: while it
//! is another one, nothing of that server is believed, and what is known stays.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Uri};
use futures::future::pending;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::service_fn;

use super::{Impatient, LONGEST_PAUSE, WatchStates, Watched, Watches, causes};
use crate::complaint::Complaint;
use crate::event::Kind;

/// The namespace whose UID names a cluster; no cluster is without it.
pub(super) const NAMES_CLUSTER: &str = "kube-system";

/// An answer of one object takes no longer.
const ANSWER: Duration = Duration::from_secs(30);

/// What a watch knows of its server.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The highest version.
    seen: Option<u64>,
    /// When to ask again, where there was no answer.
    due: Option<Instant>,
}

impl Past {
    /// An object of that version was received. One that is no number, which a server of its own
    /// kind may have, cannot be compared.
    pub(super) fn saw(&mut self, version: Option<&str>) {
        self.seen = self.seen.max(version.and_then(|text| text.parse().ok()));
    }

    /// Returns when it is to be asked again: never, as long as it has answered.
    pub(super) async fn is_due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
    }
}

/// A client that gives notice of each watch that it begins: a watcher does not, and a connection
/// that ends without an error may have been to a server that is no more.
pub(super) fn noticing(client: &Client, begun: &Arc<Notify>) -> Client {
    let (inner, begun) = (client.clone(), Arc::clone(begun));
    let send = service_fn(move |request: Request<Body>| {
        if is_watch(request.uri()) {
            begun.notify_one();
        }
        let inner = inner.clone();
        async move { inner.send(request).await }
    });
    Client::new(send, client.default_namespace())
}

fn is_watch(uri: &Uri) -> bool {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    parameters.any(|parameter| parameter.starts_with("watch="))
}

/// Where the server has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Course {
    /// On, as time does.
    Onward,
    /// Back: what was seen may never have been.
    Back,
}

/// One answer.
enum Answer {
    Course(Course),
    /// Of another cluster, that with this UID, which may be nobody's.
    Foreign(String),
    /// An error of the server's own: the watch will say what is wrong.
    Refusal,
}

/// What a server says of itself.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("no answer within {} s", ANSWER.as_secs())]
    Silence(#[from] tokio::time::error::Elapsed),
}

impl Watches {
    /// Asks where the server is until it says so. While it is another cluster's, waits for the
    /// right one.
    pub(super) async fn settle<K: Watched>(&self, past: &mut Past) -> Course {
        let mut pauses = Impatient::default();
        let mut was_foreign = false;
        let mut has_failed = false;
        past.due = None;
        let course = loop {
            match self.ask::<K>(past, was_foreign).await {
                Ok(Answer::Course(course)) => break course,
                Ok(Answer::Refusal) if !was_foreign => {
                    past.due = Some(Instant::now() + LONGEST_PAUSE);
                    break Course::Onward;
                }
                Ok(Answer::Refusal) => {}
                Ok(Answer::Foreign(uid)) => {
                    was_foreign = true;
                    self.foreign(K::KIND, &uid);
                }
                // The watch, which waits for this, cannot say it.
                Err(error) => {
                    has_failed = true;
                    self.fails(K::KIND, &causes(&error));
                }
            }
            sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        };
        if has_failed {
            self.works(K::KIND);
        }
        if was_foreign {
            tracing::info!(kind = %K::KIND, "the API server is the one that was known again");
            self.set_state(K::KIND, |state| state.foreign.take().is_some());
        }
        course
    }

    async fn ask<K: Watched>(
        &self,
        past: &mut Past,
        was_foreign: bool,
    ) -> Result<Answer, AskError> {
        let api: Api<K> = Api::all(self.client.clone());
        let one = ListParams::default().limit(1);
        let list = match timeout(ANSWER, api.list_metadata(&one)).await? {
            Err(kube::Error::Api(_)) => return Ok(Answer::Refusal),
            answer => answer?,
        };
        let version = list.metadata.resource_version.as_deref();
        let version: Option<u64> = version.and_then(|text| text.parse().ok());
        let is_behind = matches!((version, past.seen), (Some(now), Some(seen)) if now < seen);
        if !is_behind && !was_foreign {
            past.seen = past.seen.max(version);
            return Ok(Answer::Course(Course::Onward));
        }
        let Some(known) = self.cluster.get() else {
            return Ok(Answer::Course(Course::Back));
        };
        let api: Api<Namespace> = Api::all(self.client.clone());
        let named = ListParams::default().fields(&format!("metadata.name={NAMES_CLUSTER}"));
        let found = timeout(ANSWER, api.list_metadata(&named)).await??;
        let uid = found.items.into_iter().find_map(|it| it.metadata.uid);
        let uid = uid.unwrap_or_default();
        Ok(match uid == *known {
            true => Answer::Course(Course::Back),
            false => Answer::Foreign(uid),
        })
    }

    /// Notes that the server is another cluster's, and logs the first of a row.
    fn foreign(&self, kind: Kind, uid: &str) {
        let is_new = self.set_state(kind, |state| {
            state.foreign.replace(uid.to_owned()).as_deref() != Some(uid)
        });
        if is_new {
            tracing::error!(%kind, uid, "the API server is not the one that was known: it is not believed");
        }
    }
}

/// What is wrong where a server is another cluster's.
pub fn complaints(states: &WatchStates) -> Vec<Complaint> {
    let uid = states.values().find_map(|state| state.foreign.as_ref());
    uid.map(|uid| Complaint {
        about: None,
        uid: None,
        reason: "ApiServerForeign",
        message: format!(
            "the API server's namespace {NAMES_CLUSTER} has UID {uid:?}, not the one that was known: its \
             data are lost or another cluster's, and what was known is enforced on; restore them, or \
             restart the agent where this cluster is meant"
        ),
    })
    .into_iter()
    .collect()
}
