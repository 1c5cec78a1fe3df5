//! The sets that policy rules look addresses up in, shared by their meaning.
//!
//! A set exists while a rule uses it. Equal peers give one set, whatever policy they are
//! written in. Membership is kept by pod, so that a change of one pod costs one look at each
//! set, and no pod's address is taken away because another pod lost it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::LazyLock;

use dataplane::datatype::Bytes;
use dataplane::desired::Desired;
use dataplane::interval;
use dataplane::layout::INET;
use dataplane::layout::policy::{named_port_type, peer_type};
use dataplane::object::{Element, IpFamily, Key, Name, SetSpec};
use ipnet::IpNet;
use proxy::model::{ObjectKey, Protocol};

use super::hash::short_hash;
use crate::index::Index;
use crate::model::{LabelSelector, Pod};

/// What a set holds; equal contents are one set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Content {
    /// Addresses of the pods that one of the peers selects.
    Pods(Vec<PodPeer>),
    /// `address . protocol . port` of every pod that has a port of the name.
    Named(Protocol, String),
    /// Addresses of the nodes that the selector matches.
    Nodes(LabelSelector),
    /// Addresses in one of the blocks and none of that block's excepts.
    Blocks(Vec<(IpNet, Vec<IpNet>)>),
}

/// A `podSelector` and `namespaceSelector` peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PodPeer {
    pub(crate) namespaces: NamespacePeer,
    pub(crate) pods: LabelSelector,
}

/// The namespaces of a peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum NamespacePeer {
    /// That of the policy.
    Own(String),
    /// Those with matching labels.
    Selected(LabelSelector),
}

/// All sets in use.
#[derive(Default, Debug)]
pub(crate) struct Sets {
    sets: BTreeMap<Content, Shared>,
}

#[derive(Debug)]
struct Shared {
    users: usize,
    names: [Name; 2],
    /// A rule that denies or passes reads it: what comes in is cut off.
    takes_away: bool,
    /// What each pod brings in.
    members: BTreeMap<ObjectKey, BTreeSet<Member>>,
}

type Member = (IpFamily, Key);

impl Sets {
    /// Number of contents in use.
    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }

    /// The name of the set with that content, in use once more: by a rule that allows, or by
    /// one that takes away.
    pub(crate) fn acquire(
        &mut self,
        content: &Content,
        takes_away: bool,
        index: &Index,
        desired: &mut Desired,
    ) -> [Name; 2] {
        if let Some(shared) = self.sets.get_mut(content) {
            shared.users += 1;
            shared.takes_away |= takes_away;
            return shared.names.clone();
        }
        let names = content.names();
        let mut shared = Shared {
            users: 1,
            takes_away,
            names: names.clone(),
            members: BTreeMap::new(),
        };
        for family in IpFamily::BOTH {
            desired.set(&INET, shared.name(family), content.spec(family));
        }
        if let Content::Blocks(blocks) = content {
            for family in IpFamily::BOTH {
                let blocks = blocks.iter().map(|(cidr, except)| (cidr, &except[..]));
                for (key, element) in interval::elements(family, &interval::union(family, blocks)) {
                    desired.insert(&INET, shared.name(family), key, element);
                }
            }
        }
        if let Content::Nodes(selector) = content {
            let members = addresses_of_nodes(selector, index);
            shared.add(&members, desired);
            shared.members.insert(ALL_NODES.clone(), members);
        }
        for pod in content.candidates(index) {
            let brought = content.brought_by(pod, index);
            shared.add(&brought, desired);
            if !brought.is_empty() {
                shared.members.insert(pod.key.clone(), brought);
            }
        }
        self.sets.insert(content.clone(), shared);
        names
    }

    /// One use less; the last takes the set away.
    pub(crate) fn release(&mut self, content: &Content, desired: &mut Desired) {
        let shared = self
            .sets
            .get_mut(content)
            .expect("released as often as acquired");
        shared.users -= 1;
        if shared.users == 0 {
            for name in &shared.names {
                desired.remove_set(&INET, name);
            }
            self.sets.remove(content);
        }
    }

    /// Brings the sets up to date with pods whose labels, namespace labels, addresses or
    /// ports may have changed. Returns whether a set has lost a member, or gained one that is
    /// taken away from.
    pub(crate) fn update(
        &mut self,
        pods: &BTreeSet<ObjectKey>,
        index: &Index,
        desired: &mut Desired,
    ) -> bool {
        let mut narrowed = false;
        let of_pods = |content: &Content| matches!(content, Content::Pods(_) | Content::Named(..));
        let sets = self.sets.iter_mut();
        for (content, shared) in sets.filter(|(content, _)| of_pods(content)) {
            // What goes first, what comes then: an address may move between two of
            // these pods.
            let mut coming = Vec::new();
            for key in pods {
                let pod = index
                    .pods
                    .get(key)
                    .filter(|pod| content.selects(pod, index));
                let now = pod
                    .map(|pod| content.brought_by(pod, index))
                    .unwrap_or_default();
                let before = shared.members.remove(key).unwrap_or_default();
                for (family, element) in before.difference(&now) {
                    desired.remove(&INET, shared.name(*family), element);
                    narrowed = true;
                }
                coming.push(now.difference(&before).cloned().collect::<BTreeSet<_>>());
                if !now.is_empty() {
                    shared.members.insert(key.clone(), now);
                }
            }
            for members in coming {
                narrowed |= shared.takes_away && !members.is_empty();
                shared.add(&members, desired);
            }
        }
        narrowed
    }
}

impl Sets {
    /// Brings the sets of nodes up to date. Returns the same as [`Sets::update`].
    pub(crate) fn update_nodes(&mut self, index: &Index, desired: &mut Desired) -> bool {
        let mut narrowed = false;
        for (content, shared) in &mut self.sets {
            let Content::Nodes(selector) = content else {
                continue;
            };
            let now = addresses_of_nodes(selector, index);
            let before = shared.members.remove(&*ALL_NODES).unwrap_or_default();
            for (family, element) in before.difference(&now) {
                desired.remove(&INET, shared.name(*family), element);
                narrowed = true;
            }
            let coming: BTreeSet<_> = now.difference(&before).cloned().collect();
            narrowed |= shared.takes_away && !coming.is_empty();
            shared.add(&coming, desired);
            shared.members.insert(ALL_NODES.clone(), now);
        }
        narrowed
    }
}

/// Nodes may share an address, so they are members together, under a key that no pod has.
static ALL_NODES: LazyLock<ObjectKey> = LazyLock::new(|| ObjectKey::new("", ""));

fn addresses_of_nodes(selector: &LabelSelector, index: &Index) -> BTreeSet<Member> {
    let nodes = index.nodes.values();
    let selected = nodes.filter(|node| selector.matches(&node.labels));
    let addresses = selected.flat_map(|node| node.addresses.iter().copied());
    addresses.map(address_member).collect()
}

impl Shared {
    const fn name(&self, family: IpFamily) -> &Name {
        match family {
            IpFamily::V4 => &self.names[0],
            IpFamily::V6 => &self.names[1],
        }
    }

    fn add(&self, members: &BTreeSet<Member>, desired: &mut Desired) {
        for (family, key) in members {
            desired.insert(&INET, self.name(*family), key.clone(), Element::member());
        }
    }
}

impl Content {
    fn names(&self) -> [Name; 2] {
        let kind = match self {
            Self::Pods(_) => "pods",
            Self::Named(..) => "named",
            Self::Nodes(_) => "nodes",
            Self::Blocks(_) => "blocks",
        };
        let hash = short_hash(&format!("{self:?}"));
        IpFamily::BOTH.map(|family| format!("{kind}{}-{hash}", family.suffix()).into())
    }

    fn spec(&self, family: IpFamily) -> SetSpec {
        let comment = shorten(self.to_string());
        match self {
            Self::Pods(_) | Self::Nodes(_) => SetSpec::set(peer_type(family), &comment),
            Self::Named(..) => SetSpec::set(named_port_type(family), &comment),
            Self::Blocks(_) => SetSpec::intervals(peer_type(family), &comment),
        }
    }

    /// The pods that it may select: asks namespaces before pods.
    fn candidates<'a>(&'a self, index: &'a Index) -> Vec<&'a Pod> {
        match self {
            Self::Pods(peers) => {
                let namespaces: BTreeSet<&str> = peers
                    .iter()
                    .flat_map(|peer| peer.namespaces.names(index))
                    .collect();
                namespaces
                    .into_iter()
                    .flat_map(|name| index.pods_in(name))
                    .filter(|pod| self.selects(pod, index))
                    .collect()
            }
            Self::Named(..) => index.pods.values().collect(),
            Self::Nodes(_) | Self::Blocks(_) => Vec::new(),
        }
    }

    fn selects(&self, pod: &Pod, index: &Index) -> bool {
        match self {
            Self::Pods(peers) => peers.iter().any(|peer| {
                peer.namespaces.contains(&pod.key.namespace, index)
                    && peer.pods.matches(&pod.labels)
            }),
            Self::Named(protocol, name) => pod
                .ports
                .iter()
                .any(|port| port.protocol == *protocol && port.name == *name),
            Self::Nodes(_) | Self::Blocks(_) => false,
        }
    }

    /// The elements of a pod that it selects.
    fn brought_by(&self, pod: &Pod, index: &Index) -> BTreeSet<Member> {
        let addresses = index.addresses(pod).into_iter();
        match self {
            Self::Pods(_) => addresses.map(address_member).collect(),
            Self::Named(protocol, name) => {
                let ports = pod.ports.iter();
                let ports: Vec<_> = ports
                    .filter(|port| port.protocol == *protocol && port.name == *name)
                    .collect();
                addresses
                    .flat_map(|ip| {
                        ports
                            .iter()
                            .map(move |port| named_member(ip, *protocol, port.port))
                    })
                    .collect()
            }
            Self::Nodes(_) | Self::Blocks(_) => BTreeSet::new(),
        }
    }
}

impl NamespacePeer {
    /// The namespaces that match.
    fn names<'a>(&'a self, index: &'a Index) -> Vec<&'a str> {
        match self {
            Self::Own(name) => vec![name],
            Self::Selected(selector) => index
                .namespaces
                .values()
                .filter(|namespace| selector.matches(&namespace.labels))
                .map(|namespace| &*namespace.name)
                .collect(),
        }
    }

    /// A namespace whose object is not known matches no selector, whatever the selector
    /// says of absent labels: deny when unknown.
    fn contains(&self, name: &str, index: &Index) -> bool {
        match self {
            Self::Own(own) => own == name,
            Self::Selected(selector) => index
                .namespaces
                .get(name)
                .is_some_and(|namespace| selector.matches(&namespace.labels)),
        }
    }
}

fn address_member(ip: IpAddr) -> Member {
    (IpFamily::of(ip), Bytes::new().addr(ip).build())
}

fn named_member(ip: IpAddr, protocol: Protocol, port: u16) -> Member {
    let key = Bytes::new().addr(ip).proto(protocol.number()).port(port);
    (IpFamily::of(ip), key.build())
}

/// What `nft list` shows as the set's comment.
impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(peers) => {
                for (i, peer) in peers.iter().enumerate() {
                    let or = if i > 0 { " or " } else { "" };
                    write!(f, "{or}{peer}")?;
                }
                Ok(())
            }
            Self::Named(protocol, name) => write!(f, "pods' ports named {name} ({protocol})"),
            Self::Nodes(selector) => write!(f, "nodes {selector}"),
            Self::Blocks(blocks) => {
                for (i, (cidr, except)) in blocks.iter().enumerate() {
                    let or = if i > 0 { " or " } else { "" };
                    write!(f, "{or}{cidr}")?;
                    if let [first, rest @ ..] = &except[..] {
                        write!(f, " except {first}")?;
                        rest.iter().try_for_each(|net| write!(f, ",{net}"))?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PodPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pods.is_everything() {
            f.write_str("pods")?;
        } else {
            write!(f, "pods {}", self.pods)?;
        }
        match &self.namespaces {
            NamespacePeer::Own(name) => write!(f, " in {name}"),
            NamespacePeer::Selected(selector) if selector.is_everything() => Ok(()),
            NamespacePeer::Selected(selector) => write!(f, " in namespaces {selector}"),
        }
    }
}

/// Comments have 127 bytes.
fn shorten(mut text: String) -> String {
    const MAX: usize = 127;
    if text.len() > MAX {
        let mut end = MAX - 3;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}
