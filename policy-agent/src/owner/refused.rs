//! What the kernel refuses: left out of the desired state so that the rest goes through,
//! and put back before the next sync, which may have no use for it any more or find that
//! the kernel takes it.
//!
//! What is left out must not open anything. An address whose new binding is refused has
//! none; a chain whose rules are refused denies, and so does one that would allow more for
//! want of an element ([`policy::opened_without`]). Where nothing of the kind helps
//! ([`opens_the_node`]) it is no matter of one object: the sync fails, and is tried again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dataplane::desired::Desired;
use dataplane::layout::policy;
use dataplane::layout::ports::{self, PORTS_OF_POD};
use dataplane::layout::services::{Balancer, Lane, RESTRICTED, Sources, refused};
use dataplane::object::{Chain, Element, IpFamily, Key, Name, TableId, Value};
use dataplane::rule::{Rule, Verdict};
use dataplane::transaction::Operation;

/// Whether packets that policies forbid might pass if the operation were left out: those of a
/// whole bridge, which nobody would judge, or of whom something was to be taken away.
pub(super) fn opens_the_node(desired: &Desired, operation: &Operation) -> bool {
    match operation {
        Operation::AddElements { set, .. } => *set == *PORTS_OF_POD,
        Operation::DeleteElements { table, set, .. } => {
            let table = &desired.ruleset().tables[table];
            ports::admits(set) || policy::is_read_by_policies(table, set)
        }
        _ => false,
    }
}

/// Where the element of a frontend leads to.
fn balancer_of(element: &Element) -> Option<Balancer> {
    match &element.value {
        Value::Verdict(Verdict::Goto(chain)) => Balancer::of_chain(chain),
        _ => None,
    }
}

/// Everything that is left out, by its place.
#[derive(Debug, Default)]
pub(super) struct RefusedObjects(BTreeMap<Place, Refused>);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    Element(TableId, Name, Key),
    Chain(TableId, Name),
}

#[derive(Debug)]
struct Refused {
    wanted: Wanted,
    /// Whether policies hang on it.
    is_of_policies: bool,
    /// How `status` calls it.
    object: String,
    /// The kernel's words.
    reason: String,
}

#[derive(PartialEq, Debug)]
enum Wanted {
    /// `None`: the element is to go.
    Element(Option<Element>),
    /// An endpoint that the proxy does without for now.
    Endpoint,
    /// Nothing: the element is there in place of one that is refused.
    StandIn,
    Chain(Chain),
}

impl RefusedObjects {
    /// Number of objects.
    pub(super) fn len(&self) -> usize {
        let all = self.0.values();
        all.filter(|refused| refused.wanted != Wanted::StandIn)
            .count()
    }

    /// The elements: set, key, name and reason.
    pub(super) fn elements(&self) -> impl Iterator<Item = (&Name, &Key, &str, &str)> {
        self.0.iter().filter_map(|(place, refused)| match place {
            Place::Element(_, set, key) if refused.wanted != Wanted::StandIn => {
                Some((set, key, &*refused.object, &*refused.reason))
            }
            _ => None,
        })
    }

    /// The chains: name and reason.
    pub(super) fn chains(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(place, refused)| match place {
            Place::Chain(..) => Some((&*refused.object, &*refused.reason)),
            Place::Element(..) => None,
        })
    }

    /// Gives up what is desired of the element. What is applied of it stays, but for the
    /// binding of an address: that goes, and the address is closed. A frontend whose source
    /// ranges are refused goes with them.
    pub(super) fn leave_out_element(
        &mut self,
        desired: &mut Desired,
        (table, set, key): (&TableId, &Name, &Key),
        reason: &str,
    ) {
        self.note(desired, (table, set, key), reason);
        if policy::binds(set) {
            desired.remove(table, set, key);
        } else {
            desired.revert(table, set, key);
        }
        for (chain, rules) in policy::opened_without(&desired.ruleset().tables[table], set) {
            self.close_chain(desired, (table, &chain), rules, reason);
        }
        for family in IpFamily::BOTH {
            if RESTRICTED.of(family) != set {
                continue;
            }
            for frontends in Lane::ALL.map(|lane| lane.frontends().of(family)) {
                if desired.get(table, frontends, key).is_some() {
                    self.note(desired, (table, frontends, key), reason);
                    desired.remove(table, frontends, key);
                }
            }
        }
    }

    fn note(
        &mut self,
        desired: &Desired,
        (table, set, key): (&TableId, &Name, &Key),
        reason: &str,
    ) {
        let place = Place::Element(table.clone(), set.clone(), key.clone());
        self.0.entry(place).or_insert_with(|| Refused {
            wanted: Wanted::Element(desired.get(table, set, key).cloned()),
            is_of_policies: policy::is_read_by_policies(&desired.ruleset().tables[table], set),
            object: format!("{set} {}", desired.print_key(table, set, key)),
            reason: reason.to_owned(),
        });
    }

    /// The same of a frontend, whose balancer chooses among `slots` endpoints. It stays with
    /// the old balancer unless that chooses among more: some would be gone, and soon their
    /// slots. Without a balancer connections are refused.
    pub(super) fn leave_out_frontend(
        &mut self,
        desired: &mut Desired,
        (table, lane, key): (&TableId, (Lane, IpFamily), &Key),
        slots: usize,
        reason: &str,
    ) {
        let (lane, family) = lane;
        let set = lane.frontends().of(family);
        self.leave_out_element(desired, (table, set, key), reason);
        let kept = desired.get(table, set, key).and_then(balancer_of);
        if kept.is_some_and(|balancer| balancer.slots as usize <= slots) {
            return;
        }
        desired.remove(table, set, key);
        let unserved = lane.entry.unserved().of(family);
        if lane.sources != Sources::All || desired.get(table, unserved, key).is_some() {
            return;
        }
        let place = Place::Element(table.clone(), unserved.clone(), key.clone());
        if let Entry::Vacant(place) = self.0.entry(place) {
            desired.insert(table, unserved, key.clone(), Element::verdict(refused()));
            place.insert(Refused {
                wanted: Wanted::StandIn,
                is_of_policies: false,
                object: String::new(),
                reason: reason.to_owned(),
            });
        }
    }

    /// The same of a slot, which the proxy gives to another endpoint.
    pub(super) fn leave_out_slot(
        &mut self,
        desired: &mut Desired,
        (table, set, key): (&TableId, &Name, &Key),
        endpoint: SocketAddr,
        reason: &str,
    ) {
        let refused = Refused {
            wanted: Wanted::Endpoint,
            is_of_policies: false,
            object: format!(
                "{set} {}: endpoint {endpoint}",
                desired.print_key(table, set, key)
            ),
            reason: reason.to_owned(),
        };
        desired.revert(table, set, key);
        let place = Place::Element(table.clone(), set.clone(), key.clone());
        self.0.entry(place).or_insert(refused);
    }

    /// Gives the chain the rules of [`policy::closed`].
    pub(super) fn close_chain(
        &mut self,
        desired: &mut Desired,
        (table, chain): (&TableId, &Name),
        rules: Vec<Rule>,
        reason: &str,
    ) {
        let place = Place::Chain(table.clone(), chain.clone());
        // The kernel blames every rule of the chain.
        if self.0.contains_key(&place) {
            return;
        }
        let wanted = desired.ruleset().tables[table].chains[chain].clone();
        let closed = Chain {
            rules,
            ..wanted.clone()
        };
        desired.chain(table, chain, closed);
        let refused = Refused {
            wanted: Wanted::Chain(wanted),
            is_of_policies: true,
            object: chain.to_string(),
            reason: reason.to_owned(),
        };
        self.0.insert(place, refused);
    }

    /// Forgets the endpoints: the proxy tries them again.
    pub(super) fn forget_endpoints(&mut self) {
        self.0
            .retain(|_, refused| !matches!(refused.wanted, Wanted::Endpoint));
    }

    /// Wants everything again but endpoints. Whoever changes the desired state calls this
    /// first: it is then what was made of it, and an object that is gone is not put back later.
    /// Returns whether something of policies was left out: flows were not judged by it so far.
    pub(super) fn restore(&mut self, desired: &mut Desired) -> bool {
        self.restore_where(desired, |_| true)
    }

    /// The same for these elements alone.
    pub(super) fn restore_elements(
        &mut self,
        desired: &mut Desired,
        elements: &BTreeSet<(Name, Key)>,
    ) {
        self.restore_where(desired, |place| match place {
            Place::Element(_, set, key) => elements.contains(&(set.clone(), key.clone())),
            Place::Chain(..) => false,
        });
    }

    fn restore_where(&mut self, desired: &mut Desired, is_meant: impl Fn(&Place) -> bool) -> bool {
        let is_meant = |place: &Place, refused: &mut Refused| {
            !matches!(refused.wanted, Wanted::Endpoint) && is_meant(place)
        };
        let mut is_of_policies = false;
        for (place, refused) in self.0.extract_if(.., is_meant) {
            is_of_policies |= refused.is_of_policies;
            match (place, refused.wanted) {
                (Place::Element(table, set, key), Wanted::Element(Some(element))) => {
                    desired.insert(&table, &set, key, element);
                }
                (Place::Element(table, set, key), Wanted::Element(None) | Wanted::StandIn) => {
                    desired.remove(&table, &set, &key);
                }
                (Place::Chain(table, name), Wanted::Chain(chain)) => {
                    desired.chain(&table, &name, chain);
                }
                _ => unreachable!("an element has an element, a chain has a chain"),
            }
        }
        is_of_policies
    }
}
