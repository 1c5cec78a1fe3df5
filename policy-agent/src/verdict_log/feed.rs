//! The last records, and those to come, for whoever asks on the socket.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::record::Record;

/// Records that are kept.
const KEPT: usize = 1_000;
/// Records that a follower may be behind before it misses some.
const BEHIND: usize = 1_024;

/// Shared by the log's thread and the socket.
#[derive(Clone, Debug)]
pub struct Feed {
    recent: Arc<Mutex<VecDeque<Told>>>,
    live: broadcast::Sender<Told>,
    is_on: bool,
}

/// A record, and by what it can be selected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// The record as JSON.
    pub json: Arc<str>,
    /// The pods at its ends and the one that forged it, `namespace/name`.
    pods: [Option<Arc<str>>; 3],
}

/// Which records somebody wants; all that is said has to hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// `namespace/name` of a pod at either end.
    pub pod: Option<String>,
    /// Namespace of a pod at either end.
    pub namespace: Option<String>,
}

/// What a follower is told, a JSON line each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum News {
    /// A record, as JSON.
    Record(String),
    /// So many records were left out: the follower is too slow.
    Missed(u64),
    /// There is no more.
    End,
    /// There is no log.
    Error(String),
}

impl Feed {
    /// A feed of a log that is on, or off.
    pub fn new(is_on: bool) -> Self {
        Self {
            recent: Arc::default(),
            live: broadcast::Sender::new(BEHIND),
            is_on,
        }
    }

    /// Whether there are ever records.
    pub const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Tells a record to those who follow, and keeps it for those who ask later.
    pub(super) fn tell(&self, record: &Record) {
        let Ok(json) = serde_json::to_string(record) else {
            return;
        };
        let told = Told {
            json: json.into(),
            pods: record.pods().map(|pod| pod.map(Arc::from)),
        };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(told.clone());
        // Nobody may follow.
        drop(self.live.send(told));
    }

    /// The last records, and the way to those that come after exactly them.
    pub fn follow(&self) -> (Vec<Told>, broadcast::Receiver<Told>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.iter().cloned().collect(), self.live.subscribe())
    }
}

impl Selection {
    /// Whether the record is wanted.
    pub fn wants(&self, told: &Told) -> bool {
        let any = |is_it: &dyn Fn(&str) -> bool| told.pods.iter().flatten().any(|pod| is_it(pod));
        let of_pod = |wanted: &String| any(&|pod| pod == wanted);
        let of_namespace = |wanted: &String| {
            any(&|pod| {
                pod.split_once('/')
                    .is_some_and(|(namespace, _)| namespace == wanted)
            })
        };
        self.pod.as_ref().is_none_or(of_pod) && self.namespace.as_ref().is_none_or(of_namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &str, pods: [Option<&str>; 3]) -> Told {
        Told {
            json: json.into(),
            pods: pods.map(|pod| pod.map(Arc::from)),
        }
    }

    #[test]
    fn a_selection_is_of_either_end_and_of_all_that_is_said() {
        let record = told("{}", [Some("shop/web"), None, None]);
        let wants = |pod: Option<&str>, namespace: Option<&str>| {
            let selection = Selection {
                pod: pod.map(str::to_owned),
                namespace: namespace.map(str::to_owned),
            };
            selection.wants(&record)
        };
        assert!(wants(None, None));
        assert!(wants(Some("shop/web"), None) && wants(None, Some("shop")));
        assert!(wants(Some("shop/web"), Some("shop")));
        assert!(!wants(Some("shop/web"), Some("lab")));
        assert!(!wants(Some("web"), None) && !wants(None, Some("sho")));
        assert!(
            !Selection {
                pod: None,
                namespace: Some("shop".into())
            }
            .wants(&told("{}", [None, None, None]))
        );
    }
}
