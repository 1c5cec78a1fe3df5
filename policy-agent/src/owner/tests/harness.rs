//! A node with a kernel that does what a test tells it, and ways to look at it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey};
use dataplane::fake::Fake;
use dataplane::kernel::{CommitError, Kernel, KernelError, Rejection, StaleFlow};
use dataplane::layout::services::{Balancer, ENDPOINTS, FRONTENDS, endpoint_type, frontend_key};
use dataplane::layout::{INET, policy};
use dataplane::object::{Element, Family, Hook, IpFamily, Key, Name, Ruleset, TableId, Value};
use dataplane::trace::{Fate, Packet, Tracer};
use dataplane::transaction::{Operation, Transaction};
use proxy::model::ObjectKey;

use super::objects::{NODE, ip};
use crate::event::{Event, Kind, Object};
use crate::owner::{Owner, Settings};

/// Refuses what it is told to refuse.
type Refuses = Box<dyn Fn(&Operation, Option<&Key>) -> bool>;

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// The kernel is not reached.
    Before,
    /// The kernel has done it, the answer is lost.
    After,
}

/// The fake, with faults.
#[derive(Default)]
pub(super) struct Scripted {
    pub(super) fake: Fake,
    /// What was committed.
    pub(super) commits: Vec<Transaction>,
    /// The rules after each commit.
    pub(super) states: Vec<Ruleset>,
    /// Whether to keep those.
    pub(super) keeps_states: bool,
    /// Refuses an operation, or an element of it.
    pub(super) refuses: Option<Refuses>,
    /// Refuses in the next commit the one of that number, of those that the owner can do
    /// without.
    pub(super) refuses_once: Option<usize>,
    /// How the next commits fail, if they do.
    pub(super) failures: VecDeque<Option<Failure>>,
    /// Whether the next dump fails.
    pub(super) fails_dump: bool,
    /// Whether marks of flows cannot be cleared.
    pub(super) fails_unmark: bool,
}

fn io() -> KernelError {
    KernelError::Io {
        action: "receive",
        source: std::io::ErrorKind::TimedOut.into(),
    }
}

impl Kernel for Scripted {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let failure = self.failures.pop_front().flatten();
        if failure == Some(Failure::Before) {
            return Err(io().into());
        }
        let rejections = self.rejections(transaction);
        if !rejections.is_empty() {
            return Err(CommitError::Rejected(rejections));
        }
        self.fake.commit(transaction)?;
        self.commits.push(transaction.clone());
        if self.keeps_states {
            self.states.push(self.fake.ruleset().clone());
        }
        failure.map_or(Ok(()), |_| Err(io().into()))
    }

    fn dump(&mut self, tables: &[TableId]) -> Result<Ruleset, KernelError> {
        if std::mem::take(&mut self.fails_dump) {
            return Err(io());
        }
        self.fake.dump(tables)
    }

    fn learnt(&mut self, table: &TableId, map: &Name) -> Result<Vec<(Key, Element)>, KernelError> {
        self.fake.learnt(table, map)
    }

    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError> {
        self.fake.forget_flows(stale)
    }

    fn unmark_flows(&mut self, mask: u32, spared: u32) -> Result<usize, KernelError> {
        if self.fails_unmark {
            return Err(io());
        }
        self.fake.unmark_flows(mask, spared)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        self.fake.generation()
    }
}

impl Scripted {
    fn rejections(&mut self, transaction: &Transaction) -> Vec<Rejection> {
        let mut candidates = Vec::new();
        for (i, operation) in transaction.operations.iter().enumerate() {
            for (j, (key, _)) in operation.elements().iter().enumerate() {
                candidates.push((i, operation, Some(key), j..j + 1));
            }
            if let Operation::AddRule { chain, .. } = operation
                && (policy::is_group(chain) || self.refuses.is_some())
            {
                candidates.push((i, operation, None, 0..0));
            }
        }
        let chosen = self.refuses_once.take().filter(|_| !candidates.is_empty());
        let chosen = chosen.map(|number| number % candidates.len());
        let refused = candidates
            .into_iter()
            .enumerate()
            .filter(|(n, (_, operation, key, _))| {
                let refuses = self.refuses.as_ref();
                chosen == Some(*n) || refuses.is_some_and(|refuses| refuses(operation, *key))
            });
        refused
            .map(|(_, (i, operation, _, elements))| Rejection {
                operation: Some(i),
                elements,
                object: operation.object(),
                errno: 12,
                message: Some("refused by the test".into()),
            })
            .collect()
    }
}

/// Everything that the sources and the plugin say.
#[derive(Clone, Default, Debug)]
pub(super) struct World {
    pub(super) objects: BTreeMap<(Kind, ObjectKey), Object>,
    pub(super) attachments: BTreeMap<AttachmentKey, Attachment>,
}

impl World {
    pub(super) fn of(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut world = Self::default();
        objects.into_iter().for_each(|object| world.put(object));
        world
    }

    pub(super) fn put(&mut self, object: Object) {
        self.objects.insert((object.kind(), object.key()), object);
    }

    pub(super) fn all(&self, kind: Kind) -> Vec<Object> {
        let of_kind = self.objects.iter().filter(|((of, _), _)| *of == kind);
        of_kind.map(|(_, object)| object.clone()).collect()
    }
}

pub(super) struct Node {
    pub(super) owner: Owner<Scripted>,
    computes: bool,
}

impl Node {
    /// A node whose endpoints are given.
    pub(super) fn new() -> Self {
        Self::on(Scripted::default(), false)
    }

    /// A node whose endpoints are computed.
    pub(super) fn of_manifests() -> Self {
        Self::on(Scripted::default(), true)
    }

    pub(super) fn on(kernel: Scripted, computes: bool) -> Self {
        let settings = Settings {
            node: NODE.into(),
            compute_endpoints: computes,
            bridges: vec!["cbr0".into()],
        };
        Self {
            owner: Owner::new(settings, kernel),
            computes,
        }
    }

    /// The next process on the same kernel. It has seen and committed nothing.
    pub(super) fn restart(&mut self) {
        let mut kernel = std::mem::take(self.kernel());
        kernel.commits.clear();
        *self = Self::on(kernel, self.computes);
    }

    pub(super) fn kernel(&mut self) -> &mut Scripted {
        self.owner.kernel_mut()
    }

    pub(super) fn ruleset(&mut self) -> Ruleset {
        self.kernel().fake.ruleset().clone()
    }

    /// The first lists, and the attachments.
    pub(super) fn list(&mut self, world: &World) {
        for attachment in world.attachments.values() {
            self.owner.attach(attachment.clone());
        }
        for kind in Kind::ALL {
            self.owner.handle(Event::Reset(kind, world.all(kind)));
        }
    }

    pub(super) fn apply(&mut self, object: Object) {
        self.owner.handle(Event::Apply(object));
        self.settle();
    }

    pub(super) fn delete(&mut self, object: &Object) {
        self.owner
            .handle(Event::Delete(object.kind(), object.key()));
        self.settle();
    }

    /// Syncs until nothing more is wanted, and checks that the rules are sound.
    pub(super) fn settle(&mut self) {
        self.owner.sync().expect("the kernel takes it");
        let mut rounds = 0;
        while self.owner.is_dirty() {
            self.owner.sync().expect("the kernel takes it");
            rounds += 1;
            assert!(rounds < 3, "orphans take one more commit");
        }
        assert_sound(&self.ruleset());
    }

    /// The policy generation in the kernel.
    pub(super) fn generation(&mut self) -> u16 {
        policy::generation(&self.ruleset()).expect("there is one")
    }

    /// The endpoints of a frontend in the kernel, by slot.
    pub(super) fn served(&mut self, address: &str, port: u16) -> Vec<String> {
        let ruleset = self.ruleset();
        let frontend = frontend_key(ip(address), 6, port);
        slots(&ruleset, IpFamily::of(ip(address)), &frontend)
    }

    /// What the forward hook does with the first packet of a TCP flow.
    pub(super) fn passes(&mut self, from: &str, to: &str, port: u16) -> bool {
        let interface = |ip: IpAddr| {
            let is_pod =
                ip.to_string().starts_with("10.88.") || ip.to_string().starts_with("fd88:");
            if is_pod { "cbr0" } else { "uplink" }.to_owned()
        };
        let ruleset = self.ruleset();
        let mut packet = Packet::first(ip(from), ip(to), 6, port);
        packet.iifname = interface(ip(from));
        packet.oifname = Some(interface(ip(to)));
        let tracer = Tracer::new(&ruleset, &|_| 0);
        tracer.hook(Family::Inet, Hook::Forward, &mut packet).fate == Fate::Accepted
    }

    pub(super) fn canonical(&mut self) -> Ruleset {
        canonical(self.ruleset())
    }

    /// What `status` says of objects.
    pub(super) fn problems(&self) -> Vec<String> {
        let problems = self.owner.status().problems.into_iter();
        problems
            .map(|problem| format!("{}: {}", problem.object, problem.reason))
            .collect()
    }
}

/// The targets in the slots of a frontend, from 0 to the number that its balancer chooses
/// among, each of which must be there.
fn slots(ruleset: &Ruleset, family: IpFamily, frontend: &Key) -> Vec<String> {
    let sets = &ruleset.tables[&*INET].sets;
    let Some(element) = sets[FRONTENDS.of(family)].elements.get(frontend) else {
        return Vec::new();
    };
    let Value::Verdict(verdict) = &element.value else {
        panic!("no verdict in frontends");
    };
    let chain = verdict.target().expect("a balancer");
    let count = Balancer::of_chain(chain).expect("a balancer").slots;
    let slot = |number: u32| {
        let key: Key = [&frontend[..], &number.to_ne_bytes()].concat().into();
        let element = sets[ENDPOINTS.of(family)].elements.get(&key);
        let element =
            element.unwrap_or_else(|| panic!("{chain} of {frontend:?}: no slot {number}"));
        let Value::Data(data) = &element.value else {
            panic!("no data in endpoints");
        };
        endpoint_type(family).print(data)
    };
    (0..count).map(slot).collect()
}

/// Every frontend has its slots.
pub(super) fn assert_sound(ruleset: &Ruleset) {
    for family in IpFamily::BOTH {
        for frontend in ruleset.tables[&*INET].sets[FRONTENDS.of(family)]
            .elements
            .keys()
        {
            let targets = slots(ruleset, family, frontend);
            let distinct: BTreeSet<_> = targets.iter().collect();
            assert_eq!(
                distinct.len(),
                targets.len(),
                "each endpoint once: {targets:?}"
            );
        }
    }
}

/// The ruleset without what depends on the way there: the order of slots, balancers that
/// nothing uses any more, and the generation.
pub(super) fn canonical(mut ruleset: Ruleset) -> Ruleset {
    let table = ruleset.tables.get_mut(&*INET).expect("the layout");
    for family in IpFamily::BOTH {
        let endpoints = table
            .sets
            .get_mut(ENDPOINTS.of(family))
            .expect("the layout");
        let mut by_frontend: BTreeMap<Vec<u8>, Vec<_>> = BTreeMap::new();
        for (key, element) in std::mem::take(&mut endpoints.elements) {
            let (frontend, _) = key.split_at(key.len() - 4);
            by_frontend
                .entry(frontend.to_vec())
                .or_default()
                .push(element);
        }
        for (frontend, mut elements) in by_frontend {
            elements.sort_by_key(|element| format!("{element:?}"));
            for (slot, element) in (0u32..).zip(elements) {
                let key = [&frontend[..], &slot.to_ne_bytes()].concat().into();
                endpoints.elements.insert(key, element);
            }
        }
    }
    let by_generation = ["judged", "accepted"];
    let depends =
        |name: &Name| Balancer::of_chain(name).is_some() || by_generation.contains(&name.as_str());
    table.chains.retain(|name, _| !depends(name));
    ruleset
}
