//! A Kubernetes API server as small as the agent's watches need it: lists, in pages, and
//! watches of eight kinds over plain HTTP, in a node's namespace. It takes Events, and says
//! which rights there are.
//!
//! Objects have a resourceVersion, and every change is an event of it. A watch begins at a
//! version, gets bookmarks, can be disconnected, and is told 410 Gone where its version is
//! older than what the server remembers. One that is ahead of the server, as after a restored
//! backup, is told nothing until the server gets there. Label selectors are not looked at: no object of
//! the suites has a label that the agent leaves out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::netns::NetNs;

/// How often the server looks whether it is to listen, and for whom.
const POLL: Duration = Duration::from_millis(5);

/// Kind, path and `apiVersion`.
const RESOURCES: [(&str, &str, &str); 8] = [
    ("Namespace", "/api/v1/namespaces", "v1"),
    ("Node", "/api/v1/nodes", "v1"),
    ("Pod", "/api/v1/pods", "v1"),
    ("Service", "/api/v1/services", "v1"),
    (
        "EndpointSlice",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "discovery.k8s.io/v1",
    ),
    (
        "NetworkPolicy",
        "/apis/networking.k8s.io/v1/networkpolicies",
        "networking.k8s.io/v1",
    ),
    (
        "ClusterNetworkPolicy",
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        "policy.networking.k8s.io/v1alpha2",
    ),
    (
        "ServiceCIDR",
        "/apis/networking.k8s.io/v1/servicecidrs",
        "networking.k8s.io/v1",
    ),
];

/// Where rights are asked for.
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// A running server. It ends when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes of all answers, without their heads.
    sent: AtomicU64,
    requests: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// That of the last change.
    version: u64,
    /// By kind, namespace and name.
    objects: BTreeMap<(String, String), Value>,
    /// Version, kind and event of every change that is remembered.
    history: Vec<(u64, String, Value)>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    /// Watches that began in an earlier round end.
    round: u64,
    /// Kinds whose lists fail.
    failing: BTreeSet<String>,
    /// How often each kind was listed.
    lists: BTreeMap<String, usize>,
    /// Events and changes of Events, in the order in which they were written.
    events: Vec<Value>,
    /// Verbs and resources that are not granted.
    denied: BTreeSet<(String, String)>,
    /// Seconds by which its clock is ahead.
    clock_ahead: i64,
    presence: Presence,
}

/// All objects at one time; the default is from before there were any.
#[derive(Clone, Debug, Default)]
pub struct Backup {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Presence {
    #[default]
    Here,
    Away,
    Ended,
}

impl ApiServer {
    /// Starts a server on the loopback interface of a namespace.
    pub fn start(netns: &NetNs) -> Result<Self> {
        let listener = netns
            .enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?
            .context("cannot listen for the API server")?;
        let address = listener.local_addr().context("the address of a listener")?;
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // The thread is inside: it can listen there again.
        let thread = netns.spawn(move || listen(&of_thread, listener, address))?;
        let listener = thread::spawn(move || match thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("the API server has panicked"),
        });
        Ok(Self {
            shared,
            address,
            listener: Some(listener),
        })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test",
                "cluster": {"server": format!("http://{}", self.address)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
        });
        format!("{config:#}")
    }

    /// Creates or replaces an object.
    pub fn put(&self, object: &Value) -> Result<()> {
        let key = key_of(object)?;
        let mut state = self.state();
        state.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let what = match state.objects.insert(key.clone(), object.clone()) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        self.record(state, key.0, json!({"type": what, "object": object}));
        Ok(())
    }

    /// Creates many objects at once, as if they had always been there: no watch is told.
    pub fn fill(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let mut state = self.state();
        for mut object in objects {
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.objects.insert(key_of(&object)?, object);
        }
        state.forgotten = state.version;
        Ok(())
    }

    /// Requests so far, and bytes that were answered.
    pub fn traffic(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.shared.requests), read(&self.shared.sent))
    }

    /// Deletes an object, which has to exist.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let key = key_of(object)?;
        let mut state = self.state();
        let Some(mut object) = state.objects.remove(&key) else {
            bail!("the API server has no {} {}", key.0, key.1);
        };
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        self.record(state, key.0, json!({"type": "DELETED", "object": object}));
        Ok(())
    }

    /// Tells every watch the current version.
    pub fn bookmark(&self) {
        let mut state = self.state();
        state.version += 1;
        for (kind, _, api) in RESOURCES {
            let event = json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": api,
                "metadata": {"resourceVersion": state.version.to_string()}}});
            let version = state.version;
            state.history.push((version, kind.to_owned(), event));
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Ends every watch. Each may begin again where it was.
    pub fn disconnect(&self) {
        self.state().round += 1;
        self.shared.changed.notify_all();
    }

    /// Forgets every change so far: watches that have not seen all of them are told 410.
    pub fn forget(&self) {
        let mut state = self.state();
        state.version += 1;
        state.forgotten = state.version;
        state.history.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What there is now.
    pub fn backup(&self) -> Backup {
        let state = self.state();
        Backup {
            version: state.version,
            objects: state.objects.clone(),
        }
    }

    /// Goes back to a backup, as a server does that was stopped meanwhile: nothing is
    /// remembered of what came after, and every watch has ended.
    pub fn restore(&self, backup: &Backup) {
        let mut state = self.state();
        state.version = backup.version;
        state.objects.clone_from(&backup.objects);
        state.forgotten = backup.version;
        state.history.clear();
        state.round += 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Refuses connections, and ends those that there are.
    pub fn go_away(&self) {
        let mut state = self.state();
        state.presence = Presence::Away;
        state.round += 1;
        drop(state);
        self.shared.changed.notify_all();
        // The socket is closed by the thread that holds it.
        while TcpStream::connect(self.address).is_ok() {
            thread::sleep(POLL);
        }
    }

    /// Listens again.
    pub fn come_back(&self) {
        self.state().presence = Presence::Here;
    }

    /// Whether lists of that kind fail.
    pub fn set_failing(&self, kind: &str, fails: bool) {
        let failing = &mut self.state().failing;
        if fails {
            failing.insert(kind.to_owned());
        } else {
            failing.remove(kind);
        }
    }

    /// Whether it says that `verb` of `resource` is granted. It grants it all the same.
    pub fn set_denied(&self, verb: &str, resource: &str, is_denied: bool) {
        let right = (verb.to_owned(), resource.to_owned());
        let denied = &mut self.state().denied;
        if is_denied {
            denied.insert(right);
        } else {
            denied.remove(&right);
        }
    }

    /// Sets its clock, which dates its answers.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.state().clock_ahead = seconds;
    }

    /// How often that kind was listed: neither pages count nor lists of one object, which ask
    /// for the version.
    pub fn lists(&self, kind: &str) -> usize {
        self.state().lists.get(kind).copied().unwrap_or_default()
    }

    /// The Events that were written, and what was changed of them, in order.
    pub fn events(&self) -> Vec<Value> {
        self.state().events.clone()
    }

    fn record(&self, mut state: MutexGuard<'_, State>, kind: String, event: Value) {
        let version = state.version;
        state.history.push((version, kind, event));
        drop(state);
        self.shared.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let mut state = self.state();
        state.presence = Presence::Ended;
        state.round += 1;
        drop(state);
        self.shared.changed.notify_all();
        let ended = self.listener.take().map(JoinHandle::join);
        if let Some(Ok(Err(error))) = ended {
            eprintln!("API server: {error:#}");
        }
    }
}

impl Shared {
    fn count(&self, body: &str) {
        self.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

/// Kind, and namespace and name.
fn key_of(object: &Value) -> Result<(String, String)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let kind = text(&object["kind"]).with_context(|| format!("no kind in {object}"))?;
    let metadata = &object["metadata"];
    let name = text(&metadata["name"]).with_context(|| format!("no name in {object}"))?;
    let namespace = text(&metadata["namespace"]).unwrap_or_default();
    Ok((kind, format!("{namespace}/{name}")))
}

/// Accepts until the end, and does not listen while away.
fn listen(shared: &Arc<Shared>, first: TcpListener, address: SocketAddr) -> Result<()> {
    first.set_nonblocking(true)?;
    let mut listener = Some(first);
    loop {
        let presence = shared.state().presence;
        match (presence, &listener) {
            (Presence::Ended, _) => return Ok(()),
            (Presence::Away, _) => listener = None,
            (Presence::Here, None) => {
                let again = TcpListener::bind(address).context("cannot listen again")?;
                again.set_nonblocking(true)?;
                listener = Some(again);
            }
            (Presence::Here, Some(open)) => {
                if let Ok((stream, _)) = open.accept() {
                    let shared = Arc::clone(shared);
                    // A client that goes away ends its connection: nothing to report.
                    thread::spawn(move || serve(&shared, stream).ok());
                    continue;
                }
            }
        }
        thread::sleep(POLL);
    }
}

/// One request for each connection.
fn serve(shared: &Shared, stream: TcpStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    let mut length = 0;
    while reader.read_line(&mut header)? > 2 {
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
        header.clear();
    }
    let mut words = request.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if method != "GET" {
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        return match path {
            REVIEWS => review(shared, stream, &body),
            _ => write_event(shared, stream, path, &body),
        };
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
    if path == "/version" {
        return answer(shared, stream, 200, &json!({"major": "1", "minor": "36"}));
    }
    let Some((kind, _, api)) = RESOURCES.iter().find(|(_, of, _)| *of == path) else {
        return answer(shared, stream, 404, &status(404, "no such path"));
    };
    let Some(&"true" | &"1") = query.get("watch") else {
        return list(shared, stream, (kind, api), &query);
    };
    let version = query
        .get("resourceVersion")
        .and_then(|text| text.parse().ok());
    watch(shared, stream, kind, version.unwrap_or_default())
}

/// Takes what is written of Events, the only objects that the agent writes.
fn write_event(shared: &Shared, stream: TcpStream, target: &str, body: &[u8]) -> Result<()> {
    if !target.starts_with("/apis/events.k8s.io/v1/namespaces/") {
        return answer(shared, stream, 404, &status(404, "no such path"));
    }
    let event: Value = serde_json::from_slice(body)?;
    shared.state().events.push(event.clone());
    answer(shared, stream, 201, &event)
}

/// Whether the right is granted that a SelfSubjectAccessReview asks for.
fn review(shared: &Shared, stream: TcpStream, body: &[u8]) -> Result<()> {
    let mut review: Value = serde_json::from_slice(body)?;
    let asked = &review["spec"]["resourceAttributes"];
    let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let is_denied = shared
        .state()
        .denied
        .contains(&(text("verb"), text("resource")));
    review["status"] = json!({"allowed": !is_denied});
    answer(shared, stream, 201, &review)
}

/// A page of a list. What changes between two pages may be in it or not: a watch from the
/// first page's version tells it in any case.
fn list(
    shared: &Shared,
    stream: TcpStream,
    (kind, api): (&str, &str),
    query: &BTreeMap<&str, &str>,
) -> Result<()> {
    let mut state = shared.state();
    if state.failing.contains(kind) {
        drop(state);
        return answer(shared, stream, 500, &status(500, "told to fail"));
    }
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let (version, after) = match query.get("continue") {
        None => {
            if limit != Some(1) {
                *state.lists.entry(kind.to_owned()).or_default() += 1;
            }
            (state.version, String::new())
        }
        // The number of the version and the last key, which has a slash.
        Some(token) => {
            let token = token.replace("%2F", "/").replace("%3A", ":");
            let (version, after) = token.split_once(':').context("a token of this server")?;
            (version.parse()?, after.to_owned())
        }
    };
    let named = query.get("fieldSelector").and_then(|fields| {
        let name = fields.strip_prefix("metadata.name")?;
        Some(name.trim_start_matches("%3D").trim_start_matches('='))
    });
    let first = (Bound::Excluded((kind.to_owned(), after)), Bound::Unbounded);
    let mut rest = state
        .objects
        .range(first)
        .take_while(|((of, _), _)| of == kind)
        .filter(|(_, object)| named.is_none_or(|name| object["metadata"]["name"] == name))
        .peekable();
    let page: Vec<_> = rest.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if rest.peek().is_some()
        && let Some(((_, last), _)) = page.last()
    {
        metadata["continue"] = format!("{version}:{last}").into();
    }
    let items: Vec<_> = page.into_iter().map(|(_, object)| object.clone()).collect();
    drop(state);
    let list = json!({"apiVersion": api, "kind": format!("{kind}List"), "items": items,
        "metadata": metadata});
    answer(shared, stream, 200, &list)
}

/// Sends what changes after `seen`, until the round ends.
fn watch(shared: &Shared, mut stream: TcpStream, kind: &str, mut seen: u64) -> Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    )?;
    let round = shared.state().round;
    loop {
        let (events, is_gone) = {
            let mut state = shared.state();
            while state.round == round && state.version <= seen {
                state = shared
                    .changed
                    .wait(state)
                    .expect("no holder of this lock panics");
            }
            if state.round != round {
                return Ok(());
            }
            let is_gone = seen < state.forgotten;
            let news = state
                .history
                .iter()
                .filter(|(at, of, _)| *at > seen && of == kind);
            let events: Vec<_> = news.map(|(_, _, event)| event.clone()).collect();
            seen = state.version;
            (events, is_gone)
        };
        if is_gone {
            let gone = json!({"type": "ERROR", "object": status(410, "too old resource version")});
            writeln!(stream, "{gone}")?;
            return Ok(());
        }
        for event in events {
            let line = format!("{event}\n");
            shared.count(&line);
            stream.write_all(line.as_bytes())?;
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        404 => "NotFound",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message})
}

fn answer(shared: &Shared, mut stream: TcpStream, code: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    shared.count(&body);
    let ahead = shared.state().clock_ahead;
    let now = match u64::try_from(ahead) {
        Ok(ahead) => SystemTime::now() + Duration::from_secs(ahead),
        Err(_) => SystemTime::now() - Duration::from_secs(ahead.unsigned_abs()),
    };
    write!(
        stream,
        "HTTP/1.1 {code} Test\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Date: {}\r\nContent-Length: {}\r\n\r\n{body}",
        httpdate::fmt_http_date(now),
        body.len()
    )?;
    Ok(())
}
