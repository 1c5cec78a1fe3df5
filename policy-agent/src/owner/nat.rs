//! hostPorts and masquerading of this node's attachments.
//!
//! The plugin does not give a hostPort to two live attachments. But the container of one may
//! be gone without a DEL so far, and then two claim it for a while: the newer one has it.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::attachment::{Attachment, AttachmentKey};
use dataplane::kernel::Kernel;
use dataplane::layout::{INET, hostports, masquerade};
use dataplane::object::{Element, Key, Name};
use ipnet::IpNet;

use super::Owner;

/// Who wants which elements.
#[derive(Debug, Default)]
pub(super) struct NatClaims {
    /// By place, from the oldest to the newest claim.
    elements: BTreeMap<(Name, Key), Vec<(AttachmentKey, Element)>>,
    /// The networks outside of which attachments are masqueraded.
    networks: BTreeMap<AttachmentKey, Vec<IpNet>>,
    /// Those of the cluster: pods of other nodes see who asks, too.
    pub(super) cluster_cidrs: Vec<IpNet>,
}

impl<K: Kernel> Owner<K> {
    /// The elements that translate for a port.
    pub(super) fn want_nat(&mut self, attachment: &Attachment) {
        let elements = hostports::elements(attachment).into_iter();
        for (set, key, element) in elements.chain(masquerade::elements(attachment)) {
            let place = (set.clone(), key.clone());
            let claims = self.nat.elements.entry(place).or_default();
            if let Some((other, _)) = claims.last() {
                tracing::warn!(
                    attachment = %attachment.key, before = %other,
                    element = self.desired.print_key(&INET, set, &key),
                    "{set}: another attachment had it"
                );
            }
            claims.push((attachment.key.clone(), element.clone()));
            self.desired.insert(&INET, set, key, element);
        }
        if !attachment.masquerade_beyond.is_empty() {
            let networks = attachment.masquerade_beyond.clone();
            self.nat.networks.insert(attachment.key.clone(), networks);
            self.want_inside();
        }
    }

    pub(super) fn forget_nat(&mut self, attachment: &Attachment) {
        let elements = hostports::elements(attachment).into_iter();
        for (set, key, _) in elements.chain(masquerade::elements(attachment)) {
            let place = (set.clone(), key.clone());
            let Some(claims) = self.nat.elements.get_mut(&place) else {
                continue;
            };
            claims.retain(|(claimant, _)| *claimant != attachment.key);
            match claims.last() {
                Some((_, element)) => {
                    let element = element.clone();
                    self.desired.insert(&INET, set, key, element);
                }
                None => {
                    self.nat.elements.remove(&place);
                    self.desired.remove(&INET, set, &key);
                }
            }
        }
        if self.nat.networks.remove(&attachment.key).is_some() {
            self.want_inside();
        }
    }

    /// Where masqueraded pods keep their addresses.
    pub(super) fn want_inside(&mut self) {
        let networks = self.nat.networks.values().flatten();
        let networks = networks.chain(&self.nat.cluster_cidrs).copied();
        let networks = networks.chain(self.network.inside());
        let networks: BTreeSet<_> = networks.collect();
        masquerade::want_inside(&mut self.desired, &networks);
    }
}
