//! Desired state from the Kubernetes API: one watch per kind.
//!
//! Each watch lists, then follows changes from the list's resourceVersion; a broken
//! connection resumes, an expired version (410 Gone) lists again, an unreachable server
//! is tried again with growing delays. None of that loses or repeats state: a relist
//! becomes one [`Event::Reset`], and the index compares. A server that has gone back in time
//! is listed anew, too ([`past`]).
//!
//! Of objects only what is used is read ([`super::narrow`]); they are converted as they arrive
//! and dropped, so only the model is ever held. An
//! object that does not even deserialize stops nothing: it is told as
//! [`Event::Invalid`].

mod connection;
mod past;
mod relist;
mod token;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::convert::{ClusterNetworkPolicy, Convert};
use super::narrow::Narrow;
use crate::complaint::Problem;
use crate::event::{Event, Kind};
pub use connection::{Access, ClientError, client};
pub use past::complaints;
use past::{Course, Past};
use relist::Relist;

/// What kube-proxy watches: not what another proxy serves, nor slices of headless
/// Services.
const SERVED: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";

/// Objects per page of a list.
const PAGE_SIZE: u32 = 500;

/// A broken watch is tried again after this long at most. client-go and kube wait for up to
/// 30 s, and as much again at random: so long after an outage this node would go on by
/// policies of yesterday.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// A watch without an error for longer than that and a connection attempt works, even if
/// nothing changes.
const QUIET: Duration = Duration::from_secs(90);

/// The pauses of kube, which grow and differ at random, up to [`LONGEST_PAUSE`].
#[derive(Default)]
struct Impatient(watcher::DefaultBackoff);

impl Iterator for Impatient {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Impatient {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// How one watch is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchState {
    /// Whether everything was listed at least once.
    pub listed: bool,
    /// Why the watch is broken, while it is.
    pub error: Option<String>,
    /// The UID of the server's `kube-system`, while it is not that of the cluster whose objects
    /// these are; empty if it has none.
    pub foreign: Option<String>,
}

/// The state of every watch.
pub type WatchStates = BTreeMap<Kind, WatchState>;

/// Watches all kinds.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
    states: Arc<watch::Sender<WatchStates>>,
    /// The UID of the first `kube-system` that was seen.
    cluster: Arc<OnceLock<String>>,
}

/// A kind that is watched.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Convert + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()>
        + Convert
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Who wants to know every kind that is watched.
trait Visitor {
    /// One of them, and how it is watched.
    fn visit<K: Watched>(&mut self, config: watcher::Config);
}

/// All kinds: what starts the watches and what says which rights they need.
fn visit_all(visitor: &mut impl Visitor) {
    let all = watcher::Config::default().page_size(PAGE_SIZE);
    let served = all.clone().labels(SERVED);
    visitor.visit::<core::Namespace>(all.clone());
    visitor.visit::<core::Node>(all.clone());
    visitor.visit::<core::Pod>(all.clone());
    visitor.visit::<core::Service>(served.clone());
    visitor.visit::<discovery::EndpointSlice>(served);
    visitor.visit::<networking::NetworkPolicy>(all.clone());
    visitor.visit::<ClusterNetworkPolicy>(all.clone());
    visitor.visit::<networking::ServiceCIDR>(all);
}

/// Starts the watches.
struct Starter<'a> {
    watches: &'a Watches,
    tasks: &'a TaskTracker,
    left_out: &'a [Kind],
}

impl Visitor for Starter<'_> {
    fn visit<K: Watched>(&mut self, config: watcher::Config) {
        let watches = self.watches.clone();
        if self.left_out.contains(&K::KIND) {
            self.tasks.spawn(watches.leave_out(K::KIND));
        } else {
            self.tasks.spawn(watches.run::<K>(config));
        }
    }
}

/// What of the API the agent uses, as a ClusterRole names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Right {
    /// API group; empty for the core.
    pub group: String,
    /// Plural of the kind.
    pub resource: String,
    /// What is done.
    pub verbs: Vec<&'static str>,
    /// Whether the agent goes on without.
    pub is_optional: bool,
}

/// Every right that the agent uses: to watch the kinds, and to write Events.
pub fn rights() -> Vec<Right> {
    struct Collector(Vec<Right>);
    impl Visitor for Collector {
        fn visit<K: Watched>(&mut self, _: watcher::Config) {
            self.0.push(Right {
                group: K::group(&()).into_owned(),
                resource: K::plural(&()).into_owned(),
                verbs: vec!["list", "watch"],
                is_optional: K::KIND == Kind::ServiceCidr,
            });
        }
    }
    let mut collector = Collector(Vec::new());
    visit_all(&mut collector);
    collector.0.push(Right {
        group: "events.k8s.io".to_owned(),
        resource: "events".to_owned(),
        verbs: vec!["create", "patch"],
        is_optional: true,
    });
    collector.0
}

impl Watches {
    /// Starts one task per kind on `tasks`, but for those of `left_out`, of which there is
    /// nothing then. They end when `cancel` is cancelled or nobody
    /// receives `events` any more, and at nothing else. What the channel cannot take
    /// delays the watches. The receiver shows how the watches are doing.
    pub fn start(
        client: Client,
        events: mpsc::Sender<Event>,
        tasks: &TaskTracker,
        cancel: CancellationToken,
        left_out: &[Kind],
    ) -> watch::Receiver<WatchStates> {
        let states = Kind::ALL.map(|kind| (kind, WatchState::default())).into();
        let (states, receiver) = watch::channel(states);
        let watches = Self {
            client,
            events,
            cancel,
            states: Arc::new(states),
            cluster: Arc::default(),
        };
        visit_all(&mut Starter {
            watches: &watches,
            tasks,
            left_out,
        });
        receiver
    }

    /// Tells that there is nothing of the kind.
    async fn leave_out(self, kind: Kind) {
        if self.send(Event::Reset(kind, Vec::new())).await {
            self.set_state(kind, |state| !std::mem::replace(&mut state.listed, true));
        }
    }

    async fn run<K: Watched>(self, config: watcher::Config) {
        let mut relist = Relist::default();
        let cancel = self.cancel.clone();
        let follow_on = async {
            while let Some(Course::Back) = self.follow::<K>(config.clone(), &mut relist).await {
                tracing::warn!(kind = %K::KIND, "the API server has gone back in time, listing again");
            }
        };
        cancel.run_until_cancelled(follow_on).await;
    }

    /// Lists and then follows changes until the server has gone back; `None`: nobody is there to
    /// go on for.
    async fn follow<K: Watched>(
        &self,
        config: watcher::Config,
        relist: &mut Relist,
    ) -> Option<Course> {
        let begun = Arc::new(Notify::new());
        let api: Api<Narrow<K>> = Api::all(past::noticing(&self.client, &begun));
        let mut stream = pin!(watcher(api, config).backoff(Impatient::default()));
        let mut past = Past::default();
        loop {
            let next = tokio::select! {
                biased;
                // Before anything that such a watch may tell.
                () = async { tokio::select! { () = begun.notified() => {} () = past.is_due() => {} } } => {
                    match self.settle::<K>(&mut past).await {
                        Course::Onward => continue,
                        Course::Back => return Some(Course::Back),
                    }
                }
                next = stream.next() => next,
                () = tokio::time::sleep(QUIET), if self.is_broken(K::KIND) => {
                    self.works(K::KIND);
                    continue;
                }
            };
            // The stream of a watcher has no end of its own.
            match next? {
                Err(error) if is_absent(K::KIND, &error, relist.knows_any()) => {
                    if !self.absent(K::KIND, relist).await {
                        return None;
                    }
                }
                Err(error) => self.broken(K::KIND, &error),
                Ok(change) => {
                    // Init only says that a list is about to be asked for.
                    if !matches!(change, watcher::Event::Init) {
                        self.works(K::KIND);
                    }
                    self.look_at(&change, &mut past);
                    let is_list = matches!(change, watcher::Event::InitDone);
                    for event in relist.handle::<K>(change) {
                        if !self.send(event).await {
                            return None;
                        }
                    }
                    if is_list {
                        self.set_state(K::KIND, |state| {
                            !std::mem::replace(&mut state.listed, true)
                        });
                    }
                }
            }
        }
    }

    /// Notes versions, and which cluster this is.
    fn look_at<K: Watched>(&self, change: &watcher::Event<Narrow<K>>, past: &mut Past) {
        let (watcher::Event::Apply(object)
        | watcher::Event::InitApply(object)
        | watcher::Event::Delete(object)) = change
        else {
            return;
        };
        let metadata = object.meta();
        past.saw(metadata.resource_version.as_deref());
        if K::KIND == Kind::Namespace
            && metadata.name.as_deref() == Some(past::NAMES_CLUSTER)
            && let Some(uid) = &metadata.uid
        {
            self.cluster.get_or_init(|| uid.clone());
        }
    }

    /// The kind is not installed: there is no object of it. The watch goes on asking for it.
    /// Returns whether there is anybody to go on for.
    async fn absent(&self, kind: Kind, relist: &mut Relist) -> bool {
        self.works(kind);
        let Some(event) = relist.absent(kind) else {
            return true;
        };
        tracing::info!(%kind, "not installed in this cluster, watched as soon as it is");
        if !self.send(event).await {
            return false;
        }
        self.set_state(kind, |state| !std::mem::replace(&mut state.listed, true));
        true
    }

    /// Whether there is anybody to go on for.
    async fn send(&self, event: Event) -> bool {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => false,
            sent = self.events.send(event) => sent.is_ok(),
        }
    }

    /// Notes an error of the watch.
    fn broken(&self, kind: Kind, error: &watcher::Error) {
        if is_expired(error) {
            tracing::debug!(%kind, "resourceVersion expired, listing again");
            return;
        }
        self.fails(kind, &causes(error));
    }

    /// Notes that the watch fails, and logs the first time of a row.
    fn fails(&self, kind: Kind, message: &str) {
        let is_first = self.set_state(kind, |state| {
            state.error.replace(message.to_owned()).is_none()
        });
        if is_first {
            tracing::warn!(%kind, error = message, "watch broken, trying again");
        }
    }

    fn is_broken(&self, kind: Kind) -> bool {
        let states = self.states.borrow();
        states.get(&kind).is_some_and(|state| state.error.is_some())
    }

    fn works(&self, kind: Kind) {
        if self.set_state(kind, |state| state.error.take().is_some()) {
            tracing::info!(%kind, "watch works again");
        }
    }

    /// Changes a state; `change` says whether that is worth telling, and so does this.
    fn set_state(&self, kind: Kind, change: impl FnOnce(&mut WatchState) -> bool) -> bool {
        self.states
            .send_if_modified(|states| change(states.entry(kind).or_default()))
    }
}

/// The watches that do not work, those together that fail alike. One that nothing comes through
/// counts as working again some time after its last error.
pub fn problems(states: &WatchStates) -> Vec<Problem> {
    let mut alike: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (kind, state) in states {
        if let Some(error) = &state.error {
            alike.entry(error).or_default().push(kind.to_string());
        }
    }
    let problem = |(error, kinds): (&str, Vec<String>)| Problem {
        object: "API server".to_owned(),
        reason: format!(
            "watching {} fails, and what is known of them is enforced on: {error}",
            kinds.join(", ")
        ),
    };
    alike.into_iter().map(problem).collect()
}

/// Number of the watches that do not work.
pub(crate) fn broken(states: &WatchStates) -> usize {
    let states = states.values();
    states.filter(|state| state.error.is_some()).count()
}

/// 410 Gone is the ordinary way of an API server to ask for a relist.
fn is_expired(error: &watcher::Error) -> bool {
    const GONE: u16 = 410;
    match error {
        watcher::Error::WatchError(status) => status.code == GONE,
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == GONE,
        _ => false,
    }
}

/// Whether the error says that the cluster has no such kind, which may be for custom
/// resources, and for ServiceCIDRs before Kubernetes 1.33. An API server answers so once it
/// knows what it serves, and 503 before. Rights are another matter: one that has just been
/// started refuses everything for a moment, which makes nothing unknown.
fn is_absent(kind: Kind, error: &watcher::Error, knows_any: bool) -> bool {
    const FORBIDDEN: u16 = 403;
    const NOT_FOUND: u16 = 404;
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            match kind {
                Kind::ClusterNetworkPolicy => status.code == NOT_FOUND,
                // Nothing is open or lost without the ranges: no reason to wait for a right.
                Kind::ServiceCidr => {
                    status.code == NOT_FOUND || (status.code == FORBIDDEN && !knows_any)
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// The error and what caused it, on one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
