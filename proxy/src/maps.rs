//! What the proxy has in the data plane's maps, and how it changes.

use std::collections::{BTreeSet, HashMap};

use dataplane::desired::Desired;
use dataplane::layout::INET;
use dataplane::layout::services::{
    ENDPOINTS, FRONTENDS, UNSERVED, endpoint_data, frontend_key, random_chain, refused, slot_key,
    want_random_chain,
};
use dataplane::object::{Element, Key, Name};
use dataplane::rule::Verdict;

use crate::SyncReport;
use crate::frontend::FrontendId;
use crate::slots::{SlotTable, Target};
use crate::topology::Selection;

/// The slots of all frontends.
#[derive(Default, Debug)]
pub(crate) struct Maps {
    /// Frontends that have slots in the map.
    tables: HashMap<FrontendId, SlotTable>,
    /// Frontends with orphaned slots.
    unsettled: BTreeSet<FrontendId>,
    /// Names of the balancing chains, by number of endpoints: one copy for all.
    balancers: HashMap<u32, Name>,
    /// Slots that the kernel had before the first sync.
    adopted: HashMap<FrontendId, Vec<Target>>,
}

impl Maps {
    /// Starts from these slots.
    pub(crate) fn adopt(&mut self, slots: HashMap<FrontendId, Vec<Target>>) {
        self.adopted = slots;
    }

    /// Frontends that are new from now on start empty.
    pub(crate) fn forget_adopted(&mut self) {
        self.adopted = HashMap::new();
    }

    /// The endpoints of a frontend, by slot.
    pub(crate) fn targets(&self, id: FrontendId) -> &[Target] {
        self.tables.get(&id).map_or(&[], SlotTable::targets)
    }

    /// Wants the frontend to lead to the selection.
    pub(crate) fn program(
        &mut self,
        desired: &mut Desired,
        id: FrontendId,
        comment: &str,
        selection: &Selection,
        report: &mut SyncReport,
    ) {
        let targets = match selection {
            Selection::Chosen { targets, .. } => targets.as_slice(),
            Selection::NoneLocal | Selection::None => &[],
        };
        let slots = self.assign(desired, id, targets, report);
        let verdict = match selection {
            Selection::Chosen { .. } => Verdict::Goto(self.balancer(desired, slots)),
            Selection::NoneLocal => Verdict::Drop,
            Selection::None => refused(),
        };
        let (holds, lacks) = if slots > 0 {
            (&FRONTENDS, &UNSERVED)
        } else {
            (&UNSERVED, &FRONTENDS)
        };
        let (holds, lacks) = (holds.of(id.family()), lacks.of(id.family()));
        let key = key_of(id);
        let element = Element::verdict(verdict).with_comment(comment);
        desired.remove(&INET, lacks, &key);
        if desired.get(&INET, holds, &key) != Some(&element) {
            report.frontends += 1;
            desired.insert(&INET, holds, key, element);
        }
    }

    /// Does not want the frontend.
    pub(crate) fn withdraw(
        &mut self,
        desired: &mut Desired,
        id: FrontendId,
        report: &mut SyncReport,
    ) {
        let key = key_of(id);
        for map in [&FRONTENDS, &UNSERVED] {
            let map = map.of(id.family());
            if desired.get(&INET, map, &key).is_some() {
                desired.remove(&INET, map, &key);
                report.frontends += 1;
            }
        }
        if self.tables.contains_key(&id) {
            self.assign(desired, id, &[], report);
        }
    }

    /// Removes the slots that nothing leads to since the last commit.
    pub(crate) fn prune(&mut self, desired: &mut Desired, report: &mut SyncReport) {
        let tables = &mut self.tables;
        self.unsettled.retain(|id| {
            let Some(table) = tables.get_mut(id) else {
                return false;
            };
            for slot in table.prune() {
                let key = slot_key(id.address, id.protocol.number(), id.port, slot);
                desired.remove(&INET, ENDPOINTS.of(id.family()), &key);
                report.slots_removed += 1;
            }
            let is_settled = table.is_settled();
            if is_settled && table.targets().is_empty() {
                tables.remove(id);
            }
            !is_settled
        });
    }

    /// What is desired is in the kernel. Returns whether there are slots to prune.
    pub(crate) fn committed(&mut self) -> bool {
        for id in &self.unsettled {
            if let Some(table) = self.tables.get_mut(id) {
                table.committed();
            }
        }
        !self.unsettled.is_empty()
    }

    /// Gives slots to the targets. Returns their number.
    fn assign(
        &mut self,
        desired: &mut Desired,
        id: FrontendId,
        targets: &[Target],
        report: &mut SyncReport,
    ) -> u32 {
        let mut write = |slot: u32, target: Target| {
            let key = slot_key(id.address, id.protocol.number(), id.port, slot);
            let data = endpoint_data(target.address, target.port);
            let element = Element::data(data);
            desired.insert(&INET, ENDPOINTS.of(id.family()), key, element);
        };
        let table = self.tables.entry(id).or_insert_with(|| {
            let adopted = self.adopted.remove(&id).unwrap_or_default();
            for (slot, target) in (0..).zip(&adopted) {
                write(slot, *target);
            }
            SlotTable::adopted(adopted)
        });
        for slot in table.update(targets) {
            write(slot, table.targets()[slot as usize]);
            report.slots_written += 1;
        }
        if !table.is_settled() {
            self.unsettled.insert(id);
        } else if table.targets().is_empty() {
            self.tables.remove(&id);
        }
        u32::try_from(targets.len()).expect("fewer than 2^32 endpoints")
    }

    fn balancer(&mut self, desired: &mut Desired, slots: u32) -> Name {
        let name = self.balancers.entry(slots);
        let name = name.or_insert_with(|| random_chain(slots)).clone();
        if !desired.has_chain(&INET, &name) {
            want_random_chain(desired, slots);
        }
        name
    }
}

fn key_of(id: FrontendId) -> Key {
    frontend_key(id.address, id.protocol.number(), id.port)
}
