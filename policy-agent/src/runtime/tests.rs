//! The owner's thread, on a kernel in memory that is watched from outside.

use std::sync::{Arc, Mutex};

use dataplane::attachment::{Attachment, MacAddr, Mode, PodRef};
use dataplane::fake::Fake;
use dataplane::kernel::{CommitError, KernelError, StaleFlow};
use dataplane::object::{Element, Key, Name, Ruleset, TableId};
use dataplane::transaction::Transaction;
use proxy::model::ObjectKey;

use super::*;
use crate::event::{Event, Kind, Object};
use crate::model::{Labels, Namespace, Pod, PodPhase};
use crate::owner::Settings;

/// Long enough for a loaded machine.
const PATIENT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(80);

/// A fake that several hold.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    fake: Fake,
    commits: usize,
    is_away: bool,
}

fn away() -> KernelError {
    KernelError::Io {
        action: "send",
        source: std::io::ErrorKind::TimedOut.into(),
    }
}

impl Kernel for Shared {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut watched = self.0.lock().expect("not poisoned");
        if watched.is_away {
            return Err(away().into());
        }
        watched.commits += 1;
        watched.fake.commit(transaction)
    }

    fn dump(&mut self, tables: &[TableId]) -> Result<Ruleset, KernelError> {
        self.0.lock().expect("not poisoned").fake.dump(tables)
    }

    fn learnt(&mut self, table: &TableId, map: &Name) -> Result<Vec<(Key, Element)>, KernelError> {
        self.0.lock().expect("not poisoned").fake.learnt(table, map)
    }

    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError> {
        self.0
            .lock()
            .expect("not poisoned")
            .fake
            .forget_flows(stale)
    }

    fn unmark_flows(&mut self, mask: u32, spared: u32) -> Result<usize, KernelError> {
        let mut watched = self.0.lock().expect("not poisoned");
        watched.fake.unmark_flows(mask, spared)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        self.0.lock().expect("not poisoned").fake.generation()
    }
}

/// A thread with its owner. Told to stop when dropped.
struct Running {
    mail: Sender<Mail>,
    thread: Option<JoinHandle<()>>,
    kernel: Shared,
    health: Health,
}

impl Running {
    fn start(manifests: Option<ManifestDir>) -> Self {
        let kernel = Shared::default();
        let settings = Settings {
            node: "n1".into(),
            compute_endpoints: false,
            bridges: Vec::new(),
        };
        let owner = Owner::new(settings, kernel.clone());
        let health = Health::new();
        let (mail, thread) = start(
            owner,
            manifests,
            health.clone(),
            Periods::default(),
            Outlets::default(),
        )
        .expect("a thread");
        Self {
            mail,
            thread: Some(thread),
            kernel,
            health,
        }
    }

    /// A thread that has listed nothing of every kind.
    fn listed() -> Self {
        let running = Self::start(None);
        running.list_nothing();
        assert_eq!(running.wait(PATIENT), Ok(true));
        running
    }

    fn tell(&self, event: Event) {
        self.mail.send(Mail::Event(event)).expect("it runs");
    }

    fn list_nothing(&self) {
        for kind in Kind::ALL {
            self.tell(Event::Reset(kind, Vec::new()));
        }
    }

    fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> T {
        let (reply, answer) = oneshot::channel();
        self.mail.send(Mail::Call(call(reply))).expect("it runs");
        answer.blocking_recv().expect("an answer")
    }

    fn wait(&self, timeout: Duration) -> Result<bool, String> {
        let deadline = Instant::now() + timeout;
        self.ask(|reply| Call::Wait { deadline, reply })
    }

    fn attach(&self, attachment: &Attachment, timeout: Duration) -> Result<bool, String> {
        let deadline = Instant::now() + timeout;
        let attachment = Box::new(attachment.clone());
        self.ask(|reply| Call::Attach {
            attachment,
            deadline,
            reply,
        })
    }

    fn detach(&self, key: &AttachmentKey) -> Result<bool, String> {
        let deadline = Instant::now() + PATIENT;
        let key = key.clone();
        self.ask(|reply| Call::Detach {
            key,
            deadline,
            reply,
        })
    }

    fn commits(&self) -> usize {
        self.kernel.0.lock().expect("not poisoned").commits
    }

    fn set_away(&self, is_away: bool) {
        self.kernel.0.lock().expect("not poisoned").is_away = is_away;
    }

    /// Waits until it is so.
    fn until(&self, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < PATIENT, "in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that has stopped it gets no answer.
        drop(self.mail.send(Mail::Stop));
        let thread = self.thread.take().expect("taken here only");
        let ended = thread.join();
        if !std::thread::panicking() {
            ended.expect("no panic in the owner's thread");
        }
    }
}

fn namespace(name: &str) -> Event {
    Event::Apply(Object::Namespace(Namespace {
        name: name.into(),
        labels: Labels::new(),
    }))
}

fn pod(number: usize) -> Event {
    Event::Apply(Object::Pod(Pod {
        key: ObjectKey::new("x", format!("p{number}")),
        uid: String::new(),
        labels: Labels::new(),
        node: Some("n1".into()),
        host_network: false,
        ips: vec![format!("10.88.1.{number}").parse().expect("an address")],
        ports: Vec::new(),
        phase: PodPhase::Live,
        ready: true,
        terminating: false,
        created: 0,
        weight: None,
    }))
}

fn attachment(number: usize) -> Attachment {
    let key = AttachmentKey {
        network: "net".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    };
    Attachment {
        host_ifname: key.host_ifname(),
        key,
        netns: "/run/netns/x".into(),
        mode: Mode::RoutedPorts,
        bridge: Some("cbr0".into()),
        mac: MacAddr([0; 6]),
        ips: vec![format!("10.88.1.{number}").parse().expect("an address")],
        port_mappings: Vec::new(),
        masquerade_beyond: Vec::new(),
        bandwidth: None,
        undo: Default::default(),
        pod: Some(PodRef {
            namespace: "x".into(),
            name: format!("p{number}"),
            uid: None,
        }),
    }
}

#[test]
fn a_burst_is_one_transaction() {
    let running = Running::listed();
    let before = running.commits();
    {
        // While the first of it is being committed the rest comes, however slow this is.
        let _busy = running.kernel.0.lock().expect("not poisoned");
        running.tell(pod(1));
        std::thread::sleep(PATIENCE * 2);
        (2..100).for_each(|number| running.tell(pod(number)));
    }
    assert_eq!(running.wait(PATIENT), Ok(true));
    let commits = running.commits() - before;
    assert!((1..=2).contains(&commits), "{commits} commits");
    let status = running.ask(Call::Status);
    assert_eq!(status.summary.policy.bound_addresses, 99);
}

#[test]
fn a_change_that_never_pauses_is_not_put_off_for_ever() {
    let running = Running::listed();
    let before = running.commits();
    let started = Instant::now();
    let mut number = 0;
    while running.commits() < before + 3 {
        number += 1;
        running.tell(pod(1 + number % 200));
        running.tell(Event::Delete(
            Kind::Pod,
            ObjectKey::new("x", format!("p{}", number % 200)),
        ));
        std::thread::sleep(QUIET / 5);
        assert!(started.elapsed() < PATIENT, "commits while changes come");
    }
}

#[test]
fn wait_answers_when_what_came_before_is_in_the_kernel() {
    let running = Running::listed();
    for number in 1..20 {
        running.tell(pod(number));
        assert_eq!(running.wait(PATIENT), Ok(true));
        let status = running.ask(Call::Status);
        assert_eq!(status.summary.policy.bound_addresses, number);
        assert!(status.summary.synced);
    }
}

#[test]
fn wait_that_runs_out_names_the_kinds_that_are_missing() {
    let running = Running::start(None);
    for kind in Kind::ALL {
        if ![Kind::Pod, Kind::EndpointSlice].contains(&kind) {
            running.tell(Event::Reset(kind, Vec::new()));
        }
    }
    let error = running.wait(SHORT).expect_err("nothing is written");
    assert_eq!(error, "waiting for the first list of Pod, EndpointSlice");
    assert_eq!(running.commits(), 0);
    let attached = running.attach(&attachment(1), SHORT);
    assert_eq!(attached, Err(error));
    running.tell(Event::Reset(Kind::Pod, Vec::new()));
    running.tell(Event::Reset(Kind::EndpointSlice, Vec::new()));
    assert_eq!(running.wait(PATIENT), Ok(true));
    assert_eq!(
        running.attach(&attachment(1), SHORT),
        Ok(false),
        "it is closed, and known to be"
    );
}

#[test]
fn wait_that_runs_out_says_why_the_kernel_was_not_written() {
    let running = Running::listed();
    running.set_away(true);
    running.tell(pod(1));
    let error = running.wait(SHORT).expect_err("it cannot be written");
    assert!(error.contains("cannot send"), "{error}");
    running.set_away(false);
    assert_eq!(running.wait(PATIENT), Ok(true), "it is tried again");
    assert!(running.ask(Call::Status).summary.failures > 0);
}

#[test]
fn attach_is_answered_when_it_is_programmed_or_at_its_deadline() {
    let running = Running::listed();
    let started = Instant::now();
    assert_eq!(
        running.attach(&attachment(1), SHORT),
        Ok(false),
        "its pod is not known"
    );
    assert!(started.elapsed() >= SHORT);

    running.tell(pod(2));
    assert_eq!(running.attach(&attachment(2), PATIENT), Ok(true));

    // Known while the plugin waits.
    let (reply, answer) = oneshot::channel();
    let deadline = Instant::now() + PATIENT;
    let call = Call::Attach {
        attachment: Box::new(attachment(3)),
        deadline,
        reply,
    };
    running.mail.send(Mail::Call(call)).expect("it runs");
    std::thread::sleep(SHORT);
    running.tell(pod(3));
    assert_eq!(answer.blocking_recv(), Ok(Ok(true)));
    assert!(Instant::now() < deadline);
}

#[test]
fn detach_is_answered_when_the_port_is_out_of_the_kernel() {
    let running = Running::listed();
    let senders = || {
        let watched = running.kernel.0.lock().expect("not poisoned");
        let name = dataplane::layout::ports::SENDERS.of(dataplane::object::IpFamily::V4);
        let table = &watched.fake.ruleset().tables[&*dataplane::layout::BRIDGE];
        table.sets[name].elements.len()
    };
    assert_eq!(running.attach(&attachment(1), SHORT), Ok(false));
    assert_eq!(senders(), 1);
    assert_eq!(running.detach(&attachment(1).key), Ok(true));
    assert_eq!(senders(), 0);
    assert_eq!(
        running.detach(&attachment(1).key),
        Ok(true),
        "unknown: nothing to do"
    );
}

#[test]
fn what_others_change_is_repaired_without_any_event() {
    let running = Running::listed();
    let tables = |running: &Running| {
        let watched = running.kernel.0.lock().expect("not poisoned");
        watched.fake.ruleset().tables.len()
    };
    let damage = || {
        let mut watched = running.kernel.0.lock().expect("not poisoned");
        watched.fake.tamper(|ruleset| ruleset.tables.clear());
    };
    damage();
    running.until(|running| tables(running) == 2);
    assert_eq!(running.ask(Call::Status).summary.repairs, 1);

    // Also when the first attempt fails.
    running.set_away(true);
    damage();
    running.until(|running| running.ask(Call::Status).summary.failures > 0);
    running.set_away(false);
    running.until(|running| tables(running) == 2);
    assert_eq!(running.ask(Call::Verify), Ok(Vec::new()));
}

#[test]
fn the_folder_of_manifests_is_read_at_the_start_and_by_wait() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifests = ManifestDir::open(folder.path()).expect("it is there");
    let running = Running::start(Some(manifests));
    assert_eq!(
        running.wait(PATIENT),
        Ok(true),
        "an empty folder is a list of nothing"
    );
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
        metadata: {name: deny, namespace: x}\nspec: {podSelector: {}}\n";
    std::fs::write(folder.path().join("deny.yaml"), policy).expect("written");
    assert_eq!(running.wait(PATIENT), Ok(true));
    assert_eq!(running.ask(Call::Policies)[0].policy, "x/deny");
    std::fs::write(folder.path().join("broken.yaml"), "kind: [").expect("written");
    running.mail.send(Mail::Rescan).expect("it runs");
    let status = running.ask(Call::Status);
    assert!(
        status.problems[0].object.contains("broken.yaml"),
        "{:?}",
        status.problems
    );
    assert_eq!(running.ask(Call::Services), []);
}

#[test]
fn health_follows_the_syncs() {
    let running = Running::start(None);
    assert_eq!(running.health.not_alive(), None);
    assert!(running.health.not_ready().is_some());
    running.list_nothing();
    running.until(|running| running.health.not_ready().is_none());
    running.tell(namespace("x"));
    running.until(|running| running.health.metrics().contains("trammel_syncs_total"));
}

#[test]
fn it_ends_when_told_or_when_nobody_can_tell_it_anything() {
    let mut running = Running::listed();
    let before = running.commits();
    running.tell(pod(1));
    running.mail.send(Mail::Stop).expect("it runs");
    running.until(|running| running.thread.as_ref().is_some_and(JoinHandle::is_finished));
    assert!(running.mail.send(Mail::Ping).is_err());
    assert!(running.commits() <= before + 1, "the tables stay");
    let tables = running
        .kernel
        .0
        .lock()
        .expect("not poisoned")
        .fake
        .ruleset()
        .tables
        .len();
    assert_eq!(tables, 2);

    running = Running::listed();
    let (unused, _) = channel();
    drop(std::mem::replace(&mut running.mail, unused));
    running.until(|running| running.thread.as_ref().is_some_and(JoinHandle::is_finished));
}
