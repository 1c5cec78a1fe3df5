//! What the kernel refuses: left out of the desired state so that the rest goes through,
//! and put back before the next sync, which may have no use for it any more or find that
//! the kernel takes it.
//!
//! What is left out must not open anything. An address whose new binding is refused has
//! none; a chain whose rules are refused denies, and so does one that would allow more for
//! want of an element ([`policy::opened_without`]). Where nothing of the kind helps
//! ([`opens_the_node`]) it is no matter of one object: the sync fails, and is tried again.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dataplane::desired::Desired;
use dataplane::layout::policy;
use dataplane::layout::ports::{self, PORTS_OF_POD};
use dataplane::layout::services::{Lane, RESTRICTED};
use dataplane::object::{Chain, Element, IpFamily, Key, Name, TableId};
use dataplane::rule::Rule;
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

#[derive(Debug)]
enum Wanted {
    /// `None`: the element is to go.
    Element(Option<Element>),
    /// An endpoint that the proxy does without for now.
    Endpoint,
    Chain(Chain),
}

impl RefusedObjects {
    /// Number of objects.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The elements: set, key, name and reason.
    pub(super) fn elements(&self) -> impl Iterator<Item = (&Name, &Key, &str, &str)> {
        self.0.iter().filter_map(|(place, refused)| match place {
            Place::Element(_, set, key) => Some((set, key, &*refused.object, &*refused.reason)),
            Place::Chain(..) => None,
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
        let is_element =
            |_: &Place, refused: &mut Refused| !matches!(refused.wanted, Wanted::Endpoint);
        let mut is_of_policies = false;
        for (place, refused) in self.0.extract_if(.., is_element) {
            is_of_policies |= refused.is_of_policies;
            match (place, refused.wanted) {
                (Place::Element(table, set, key), Wanted::Element(Some(element))) => {
                    desired.insert(&table, &set, key, element);
                }
                (Place::Element(table, set, key), Wanted::Element(None)) => {
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
