//! A Kubernetes API server as small as the agent's watches need it: lists, in pages, and
//! watches of eight kinds over plain HTTP, in a node's namespace. It takes Events, and says
//! which rights there are.
//!
//! Objects have a resourceVersion, and every change is an event of it. A watch begins at a
//! version, gets bookmarks, can be disconnected, and is told 410 Gone where its version is
//! older than what the server remembers. One that is ahead of the server, as after a restored
//! backup, is told nothing until the server gets there. Label selectors are not looked at: no
//! object of the suites has a label that the agent leaves out.

mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use self::requests::{RESOURCES, listen};
use crate::netns::NetNs;

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
    /// Whether there is no socket to connect to.
    is_deaf: bool,
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

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
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
        self.shared.changed.notify_all();
        // The socket is closed by the thread that holds it.
        let closed = self
            .shared
            .changed
            .wait_while(state, |state| !state.is_deaf);
        drop(closed.expect("no holder of this lock panics"));
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
