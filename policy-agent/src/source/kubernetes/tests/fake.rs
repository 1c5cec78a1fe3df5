//! A scripted API server: lists, watches, bookmarks, errors, disconnects, and a version that
//! may go back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the server answers, per resource and in order. A list is answered by the next
/// list or failure, a watch by the next watch; where nothing is left a list is empty and
/// a watch stays open without a word. A list of one object, which only asks for the version,
/// is answered by the next one of those, else by that of the last list or change.
#[derive(Default)]
pub(super) struct Script {
    lists: HashMap<&'static str, VecDeque<ListAnswer>>,
    watches: HashMap<&'static str, VecDeque<WatchAnswer>>,
    versions: HashMap<&'static str, VecDeque<u32>>,
    /// Of the last list or change.
    reached: HashMap<String, u32>,
    /// UIDs of `kube-system`; the last stays.
    clusters: VecDeque<&'static str>,
}

enum ListAnswer {
    Items {
        version: u32,
        items: Vec<Value>,
    },
    Failure(u16),
    /// Too many requests: come back after so many seconds.
    Later(u32),
}

enum WatchAnswer {
    Changes(Vec<Value>),
    Failure(u16),
}

/// One request.
#[derive(Clone)]
pub(super) struct Query {
    pub(super) path: String,
    query: String,
}

struct Shared {
    script: Mutex<Script>,
    queries: Mutex<Vec<Query>>,
}

pub(super) struct FakeApi {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Script {
    /// The next list of that resource.
    pub(super) fn list(
        mut self,
        resource: &'static str,
        version: u32,
        items: impl IntoIterator<Item = Value>,
    ) -> Self {
        let items = items.into_iter().collect();
        let answers = self.lists.entry(resource).or_default();
        answers.push_back(ListAnswer::Items { version, items });
        self
    }

    /// The next list fails with that status.
    pub(super) fn fail(mut self, resource: &'static str, code: u16) -> Self {
        let answers = self.lists.entry(resource).or_default();
        answers.push_back(ListAnswer::Failure(code));
        self
    }

    /// The next list is refused, to be asked for again after so many seconds.
    pub(super) fn later(mut self, resource: &'static str, seconds: u32) -> Self {
        let answers = self.lists.entry(resource).or_default();
        answers.push_back(ListAnswer::Later(seconds));
        self
    }

    /// The next watch sends these and is then disconnected.
    pub(super) fn watch(
        mut self,
        resource: &'static str,
        changes: impl IntoIterator<Item = Value>,
    ) -> Self {
        let changes = changes.into_iter().collect();
        let answers = self.watches.entry(resource).or_default();
        answers.push_back(WatchAnswer::Changes(changes));
        self
    }

    /// The next watch fails with that status.
    pub(super) fn fail_watch(mut self, resource: &'static str, code: u16) -> Self {
        let answers = self.watches.entry(resource).or_default();
        answers.push_back(WatchAnswer::Failure(code));
        self
    }
}

impl Script {
    /// The next versions that the server says it has of that resource.
    pub(super) fn versions(mut self, resource: &'static str, versions: &[u32]) -> Self {
        self.versions.entry(resource).or_default().extend(versions);
        self
    }

    /// The next UIDs of `kube-system`, as it says when asked for that namespace alone.
    pub(super) fn clusters(mut self, uids: &[&'static str]) -> Self {
        self.clusters.extend(uids);
        self
    }

    fn cluster(&mut self) -> Option<&'static str> {
        match self.clusters.len() {
            0 | 1 => self.clusters.front().copied(),
            _ => self.clusters.pop_front(),
        }
    }

    fn version(&mut self, resource: &str) -> u32 {
        let next = self
            .versions
            .get_mut(resource)
            .and_then(VecDeque::pop_front);
        next.or_else(|| self.reached.get(resource).copied())
            .unwrap_or(1)
    }
}

impl Query {
    /// Whether it only asks for the version.
    fn is_look(&self) -> bool {
        self.parameter("limit").as_deref() == Some("1") || self.parameter("fieldSelector").is_some()
    }

    /// A parameter of the query, decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        let value = pairs.into_iter().find(|(key, _)| *key == name)?.1;
        Some(decode(value))
    }
}

impl FakeApi {
    pub(super) async fn start(script: Script) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            queries: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            shared,
            server,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn queries(&self) -> Vec<Query> {
        self.shared.queries.lock().unwrap().clone()
    }

    /// How often that path was listed.
    pub(super) fn lists(&self, path: &str) -> usize {
        let queries = self.queries();
        let is_list = |q: &&Query| q.path == path && q.parameter("watch").is_none() && !q.is_look();
        queries.iter().filter(is_list).count()
    }

    /// The resourceVersions from which that path was watched.
    pub(super) fn watches(&self, path: &str) -> Vec<String> {
        let queries = self.queries();
        let of_path = queries
            .iter()
            .filter(|q| q.path == path && q.parameter("watch").is_some());
        of_path
            .filter_map(|q| q.parameter("resourceVersion"))
            .collect()
    }

    pub(super) async fn stop(self) {
        self.server.abort();
        // Cancelled, as was asked for.
        assert!(self.server.await.unwrap_err().is_cancelled());
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let query = Query {
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
    };
    shared.queries.lock().unwrap().push(query.clone());
    let resource = query.path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut script = shared.script.lock().unwrap();
    if query.parameter("watch").is_some() {
        let next = script
            .watches
            .get_mut(resource.as_str())
            .and_then(VecDeque::pop_front);
        let changes = match next {
            Some(WatchAnswer::Failure(code)) => return failure(code),
            Some(WatchAnswer::Changes(changes)) => Some(changes),
            None => None,
        };
        for change in changes.iter().flatten() {
            let version = &change["object"]["metadata"]["resourceVersion"];
            if let Some(version) = version.as_str().and_then(|text| text.parse().ok()) {
                script.reached.insert(resource.clone(), version);
            }
        }
        return watch(changes);
    }
    if query.parameter("fieldSelector").is_some() {
        let uid = script.cluster();
        let items = uid.map(|uid| json!({"metadata": {"name": "kube-system", "uid": uid}}));
        return list(1, items.into_iter().collect());
    }
    if query.is_look() {
        return list(script.version(&resource), Vec::new());
    }
    let next = script
        .lists
        .get_mut(resource.as_str())
        .and_then(VecDeque::pop_front);
    match next {
        Some(ListAnswer::Failure(code)) => failure(code),
        Some(ListAnswer::Later(seconds)) => {
            let later = [(header::RETRY_AFTER, seconds.to_string())];
            (later, failure(429)).into_response()
        }
        Some(ListAnswer::Items { version, items }) => {
            script.reached.insert(resource, version);
            list(version, items)
        }
        None => list(1, Vec::new()),
    }
}

fn list(version: u32, items: Vec<Value>) -> Response {
    let metadata = json!({"resourceVersion": version.to_string()});
    json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})
        .to_string()
        .into_response()
}

fn failure(code: u16) -> Response {
    let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "metadata": {},
        "code": code, "reason": "InternalError", "message": "scripted failure"});
    (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
}

fn watch(changes: Option<Vec<Value>>) -> Response {
    let is_scripted = changes.is_some();
    let lines = changes
        .unwrap_or_default()
        .into_iter()
        .map(|change| Ok::<_, std::convert::Infallible>(Bytes::from(format!("{change}\n"))));
    let lines = stream::iter(lines);
    match is_scripted {
        true => Body::from_stream(lines).into_response(),
        false => Body::from_stream(lines.chain(stream::pending())).into_response(),
    }
}

/// Percent-decoding of a query value.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap()));
                u8::from_str_radix(&String::from_iter(digits), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}
