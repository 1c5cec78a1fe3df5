//! What the proxy has in the data plane's maps, and how it changes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use dataplane::desired::Desired;
use dataplane::layout::services::{
    AffinityGroup, Algorithm, Balancer, Entry, Lane, Masquerade, RESTRICTED, SourceRanges, Sources,
    endpoint_data, frontend_key, learn_chain, refused, slot_key, want_learn_chain,
};
use dataplane::layout::{INET, PerFamily};
use dataplane::object::{Element, Key, Name};
use dataplane::rule::Verdict;

use crate::SyncReport;
use crate::frontend::FrontendId;
use crate::hash::HashMap;
use crate::scheduler::Slots;
use crate::slots::{SlotTable, Target};

/// What leads to a slot table.
pub(crate) type TableId = (FrontendId, Sources);

/// What a frontend is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Program {
    /// For all sources.
    pub(crate) all: Outcome,
    /// For sources of the cluster, where they fare better than others.
    pub(crate) cluster: Option<Outcome>,
    /// How slots are chosen.
    pub(crate) algorithm: Algorithm,
    /// Whose source addresses are replaced, for frontends from outside the cluster.
    pub(crate) masquerade: Option<Masquerade>,
    /// For how many seconds a client stays with its endpoint, and with which other frontends
    /// that is shared.
    pub(crate) affinity: Option<(u32, AffinityGroup)>,
    /// From where it may be reached.
    pub(crate) ranges: Option<SourceRanges>,
    /// Shown by `nft list`.
    pub(crate) comment: String,
}

/// What becomes of a new connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It goes to an endpoint: at least one has a slot.
    Served(Slots),
    /// There is no endpoint at all.
    Refused,
    /// There are endpoints, but not for this frontend on this node.
    Dropped,
}

/// The slots of all frontends.
#[derive(Default, Debug)]
pub(crate) struct Maps {
    /// Frontends that have slots in a map.
    tables: HashMap<TableId, SlotTable>,
    /// Those with orphaned slots.
    unsettled: BTreeSet<TableId>,
    /// Names of the balancing chains: one copy for all.
    balancers: HashMap<Balancer, Name>,
    /// Slots that the kernel had before the first sync.
    adopted: HashMap<TableId, Vec<Target>>,
    /// What the kernel refuses of them.
    refused: HashMap<TableId, RefusedSlots>,
    ranges: Ranges,
}

/// What the kernel refuses of a slot table.
#[derive(Default, Debug)]
struct RefusedSlots {
    /// Endpoints to do without.
    targets: BTreeSet<Target>,
    /// The slots that they had.
    slots: BTreeSet<u32>,
    /// A slot was refused with one endpoint and then with another: it is not for them, and
    /// to go on would try all.
    all: bool,
}

/// The chains of source ranges, which go with their last user.
#[derive(Default, Debug)]
struct Ranges {
    by_frontend: HashMap<FrontendId, Name>,
    users: BTreeMap<Name, usize>,
    /// Nothing leads there in the desired state; and in the kernel, once `true`.
    unused: BTreeMap<Name, bool>,
}

impl Maps {
    /// Starts from these slots.
    pub(crate) fn adopt(&mut self, slots: HashMap<TableId, Vec<Target>>) {
        self.adopted = slots;
    }

    /// Frontends that are new from now on start empty.
    pub(crate) fn forget_adopted(&mut self) {
        self.adopted = HashMap::default();
    }

    /// Does without the endpoint of a slot, which the kernel refuses, from the next
    /// [`program`](Self::program) on. Returns it; `None` where the slot has none.
    pub(crate) fn leave_out(&mut self, at: TableId, slot: u32) -> Option<Target> {
        let target = *self.tables.get(&at)?.targets().get(slot as usize)?;
        let refused = self.refused.entry(at).or_default();
        refused.targets.insert(target);
        refused.all |= !refused.slots.insert(slot);
        Some(target)
    }

    /// Tries them again. Returns whose frontends have to be programmed for that.
    pub(crate) fn take_refused(&mut self) -> impl Iterator<Item = FrontendId> {
        let refused = std::mem::take(&mut self.refused);
        refused.into_keys().map(|(id, _)| id)
    }

    /// The endpoints of a frontend, by slot.
    pub(crate) fn targets(&self, id: FrontendId, sources: Sources) -> &[Target] {
        let table = self.tables.get(&(id, sources));
        table.map_or(&[], SlotTable::targets)
    }

    /// Wants the frontend to do that.
    pub(crate) fn program(
        &mut self,
        desired: &mut Desired,
        id: FrontendId,
        program: &Program,
        report: &mut SyncReport,
    ) {
        let entry = Entry::of(id.address);
        let goto = |name: Name| Element::verdict(Verdict::Goto(name));
        let outcomes = [
            (Sources::All, Some(&program.all)),
            (Sources::Cluster, program.cluster.as_ref()),
        ];
        for (sources, outcome) in outcomes {
            let lane = Lane::new(entry, sources);
            let slots = match outcome {
                Some(Outcome::Served(slots)) => Some(slots),
                _ => None,
            };
            let count = self.assign(desired, (id, sources), slots, report);
            let balancer = (count > 0).then(|| {
                let balancer = Balancer {
                    lane,
                    algorithm: program.algorithm,
                    sticky: program.affinity.is_some(),
                    slots: count,
                };
                goto(self.balancer(desired, balancer)).with_comment(&program.comment)
            });
            report.frontends += set(desired, lane.frontends(), id, balancer);
        }
        let unserved = match &program.all {
            Outcome::Served(_) if !self.targets(id, Sources::All).is_empty() => None,
            // The kernel refuses every endpoint.
            Outcome::Served(_) | Outcome::Refused => Some(refused()),
            Outcome::Dropped => Some(Verdict::Drop),
        };
        let unserved = unserved.map(|verdict| {
            let element = Element::verdict(verdict);
            element.with_comment(&program.comment)
        });
        report.frontends += set(desired, entry.unserved(), id, unserved);

        let masquerade = program.masquerade.map(Masquerade::verdict);
        set(
            desired,
            entry.external(),
            id,
            masquerade.map(Element::verdict),
        );
        let learn = program.affinity.map(|(seconds, _)| {
            want_learn_chain(desired, entry, seconds);
            goto(learn_chain(entry, seconds))
        });
        set(desired, entry.sticky(), id, learn);
        let group = program.affinity.map(|(_, group)| {
            let element = group.element(id.family());
            element.with_comment(&program.comment)
        });
        set(desired, entry.affinity_groups(), id, group);
        if entry == Entry::Address {
            let chain = self.ranges.assign(desired, id, program.ranges.as_ref());
            set(desired, &RESTRICTED, id, chain.map(goto));
        }
    }

    /// Does not want the frontend.
    pub(crate) fn withdraw(
        &mut self,
        desired: &mut Desired,
        id: FrontendId,
        report: &mut SyncReport,
    ) {
        let entry = Entry::of(id.address);
        for sources in [Sources::All, Sources::Cluster] {
            let lane = Lane::new(entry, sources);
            report.frontends += set(desired, lane.frontends(), id, None);
            if self.tables.contains_key(&(id, sources)) {
                self.assign(desired, (id, sources), None, report);
            }
        }
        report.frontends += set(desired, entry.unserved(), id, None);
        set(desired, entry.external(), id, None);
        set(desired, entry.sticky(), id, None);
        set(desired, entry.affinity_groups(), id, None);
        if entry == Entry::Address {
            self.ranges.assign(desired, id, None);
            set(desired, &RESTRICTED, id, None);
        }
    }

    /// Removes what nothing leads to since the last commit.
    pub(crate) fn prune(&mut self, desired: &mut Desired, report: &mut SyncReport) {
        let tables = &mut self.tables;
        self.unsettled.retain(|at| {
            let Some(table) = tables.get_mut(at) else {
                return false;
            };
            for slot in table.prune() {
                let (map, key) = place(*at, slot);
                desired.remove(&INET, map.of(at.0.family()), &key);
                report.slots_removed += 1;
            }
            let is_settled = table.is_settled();
            if is_settled && table.targets().is_empty() {
                tables.remove(at);
            }
            !is_settled
        });
        self.ranges.prune(desired);
    }

    /// What is desired is in the kernel. Returns whether there is something to prune.
    pub(crate) fn committed(&mut self) -> bool {
        for at in &self.unsettled {
            if let Some(table) = self.tables.get_mut(at) {
                table.committed();
            }
        }
        self.ranges.committed();
        !self.unsettled.is_empty() || !self.ranges.unused.is_empty()
    }

    /// Gives slots to the targets. Returns their number.
    fn assign(
        &mut self,
        desired: &mut Desired,
        at: TableId,
        slots: Option<&Slots>,
        report: &mut SyncReport,
    ) -> u32 {
        let slots = slots.map(|slots| self.without_refused(at, slots));
        let family = at.0.family();
        let mut write = |slot: u32, target: Target| {
            let (map, key) = place(at, slot);
            let element = Element::data(endpoint_data(target.address, target.port));
            desired.insert(&INET, map.of(family), key, element);
        };
        if slots.is_none() && !self.tables.contains_key(&at) && !self.adopted.contains_key(&at) {
            return 0;
        }
        let table = self.tables.entry(at).or_insert_with(|| {
            let adopted = self.adopted.remove(&at).unwrap_or_default();
            for (slot, target) in (0..).zip(&adopted) {
                write(slot, *target);
            }
            SlotTable::adopted(adopted)
        });
        let written = match slots.as_deref() {
            None => table.update(&[]),
            Some(Slots::Each(targets)) => table.update(targets),
            Some(Slots::Fixed(targets)) => table.place(targets),
        };
        for slot in written {
            write(slot, table.targets()[slot as usize]);
            report.slots_written += 1;
        }
        let count = table.targets().len();
        if !table.is_settled() {
            self.unsettled.insert(at);
        } else if count == 0 {
            self.tables.remove(&at);
        }
        u32::try_from(count).expect("fewer than 2^32 endpoints")
    }

    fn without_refused<'s>(&self, at: TableId, slots: &'s Slots) -> Cow<'s, Slots> {
        let Some(refused) = self.refused.get(&at) else {
            return Cow::Borrowed(slots);
        };
        let mut slots = slots.clone();
        let (Slots::Each(targets) | Slots::Fixed(targets)) = &mut slots;
        targets.retain(|target| !refused.all && !refused.targets.contains(target));
        Cow::Owned(slots)
    }

    fn balancer(&mut self, desired: &mut Desired, balancer: Balancer) -> Name {
        let name = self.balancers.entry(balancer);
        let name = name.or_insert_with(|| balancer.chain()).clone();
        if !desired.has_chain(&INET, &name) {
            balancer.want(desired);
        }
        name
    }
}

impl Ranges {
    /// Wants the ranges for the frontend. Returns the chain that decides.
    fn assign(
        &mut self,
        desired: &mut Desired,
        id: FrontendId,
        ranges: Option<&SourceRanges>,
    ) -> Option<Name> {
        let chain = ranges.map(|ranges| {
            ranges.want(desired);
            let chain = ranges.chain();
            *self.users.entry(chain.clone()).or_default() += 1;
            self.unused.remove(&chain);
            chain
        });
        let before = match &chain {
            Some(chain) => self.by_frontend.insert(id, chain.clone()),
            None => self.by_frontend.remove(&id),
        };
        if let Some(before) = before
            && let Some(users) = self.users.get_mut(&before)
        {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&before);
                self.unused.insert(before, false);
            }
        }
        chain
    }

    fn prune(&mut self, desired: &mut Desired) {
        self.unused.retain(|chain, is_committed| {
            if *is_committed {
                desired.remove_chain(&INET, chain);
            }
            !*is_committed
        });
    }

    fn committed(&mut self) {
        self.unused
            .values_mut()
            .for_each(|is_committed| *is_committed = true);
    }
}

/// Wants the element of the frontend, or none. Returns 1 where that is a change.
fn set(desired: &mut Desired, map: &PerFamily, id: FrontendId, element: Option<Element>) -> usize {
    let map = map.of(id.family());
    let key = frontend_key(id.address, id.protocol.number(), id.port);
    if desired.get(&INET, map, &key) == element.as_ref() {
        return 0;
    }
    match element {
        Some(element) => desired.insert(&INET, map, key, element),
        None => desired.remove(&INET, map, &key),
    }
    1
}

/// Where a slot is.
fn place((id, sources): TableId, slot: u32) -> (&'static PerFamily, Key) {
    let map = Lane::new(Entry::of(id.address), sources).endpoints();
    let key = slot_key(id.address, id.protocol.number(), id.port, slot);
    (map, key)
}
