//! Attachments of the plugin: which interfaces lead to pods, and what each may send.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey};
use dataplane::datatype::Bytes;
use dataplane::kernel::Kernel;
use dataplane::layout::policy::Direction;
use dataplane::layout::{INET, ports};
use dataplane::object::{Element, IpFamily};
use proxy::model::ObjectKey;

use super::Owner;

impl<K: Kernel> Owner<K> {
    /// Admits an attachment's addresses. They stay closed until their pod is known.
    pub fn attach(&mut self, attachment: Attachment) {
        let old = self.index.attachments().get(&attachment.key);
        if old == Some(&attachment) {
            return;
        }
        self.revision += 1;
        let given_up = old.map(|old| old.ips.clone()).unwrap_or_default();
        self.narrowed |= self.progress.refused.restore(&mut self.desired);
        self.policies.addresses_changed(given_up);
        self.forget_port(&attachment.key);
        self.dirty = true;
        // The layout comes with the first sync, which goes through the index.
        if !self.desired.ruleset().tables.is_empty() {
            self.want_port(&attachment);
        }
        let addresses = attachment.ips.clone();
        let affected = self.index.attach(attachment);
        self.attachments_changed(affected, addresses);
    }

    /// Forgets an attachment. Returns whether there was one.
    pub fn detach(&mut self, key: &AttachmentKey) -> bool {
        let Some(attachment) = self.index.attachments().get(key) else {
            return false;
        };
        self.revision += 1;
        let addresses = attachment.ips.clone();
        self.narrowed |= self.progress.refused.restore(&mut self.desired);
        self.forget_port(key);
        let affected = self.index.detach(key);
        self.attachments_changed(affected, addresses);
        self.dirty = true;
        true
    }

    fn attachments_changed(&mut self, pods: BTreeSet<ObjectKey>, addresses: Vec<IpAddr>) {
        for pod in &pods {
            self.computed_endpoints_of_pod(pod);
        }
        self.policies.pods_changed(pods);
        self.policies.addresses_changed(addresses);
    }

    /// The elements that let a port send, and that translate for it.
    pub(super) fn want_port(&mut self, attachment: &Attachment) {
        self.want_nat(attachment);
        let comment = attachment
            .pod
            .as_ref()
            .map(|pod| format!("{}/{}", pod.namespace, pod.name))
            .unwrap_or_default();
        for sender in ports::senders(attachment) {
            let element = Element::member().with_comment(&comment);
            self.desired
                .insert(sender.table, sender.set, sender.key, element);
        }
        if let Some(bridge) = &attachment.bridge {
            let users = self.interfaces.entry(bridge.clone()).or_default();
            users.insert(attachment.key.clone());
            let key = ports::interface_key(bridge);
            self.desired
                .insert(&INET, &ports::PORTS_OF_POD, key, Element::member());
        }
    }

    fn forget_port(&mut self, key: &AttachmentKey) {
        let Some(attachment) = self.index.attachments().get(key).cloned() else {
            return;
        };
        if self.desired.ruleset().tables.is_empty() {
            return;
        }
        self.forget_nat(&attachment);
        for sender in ports::senders(&attachment) {
            self.desired.remove(sender.table, sender.set, &sender.key);
        }
        let Some(bridge) = &attachment.bridge else {
            return;
        };
        let Some(users) = self.interfaces.get_mut(bridge) else {
            return;
        };
        users.remove(key);
        // A bridge of the settings stays closed to unknown pods without any attachment.
        if users.is_empty() && !self.settings.bridges.contains(bridge) {
            self.interfaces.remove(bridge);
            let key = ports::interface_key(bridge);
            self.desired.remove(&INET, &ports::PORTS_OF_POD, &key);
        }
    }

    /// Whether the attachment's addresses are bound to their policies in the kernel.
    pub fn is_programmed(&self, key: &AttachmentKey) -> bool {
        let attachment = self.index.attachments().get(key);
        attachment.is_some_and(|attachment| self.is_synced() && self.is_admitted(attachment))
    }

    /// Whether the elements that open a port are desired: an address that is not bound, or
    /// that the kernel refuses, is closed.
    pub(super) fn is_admitted(&self, attachment: &Attachment) -> bool {
        let may_send = ports::senders(attachment).into_iter().all(|sender| {
            let element = self.desired.get(sender.table, sender.set, &sender.key);
            element.is_some()
        });
        let is_bound = |ip: &IpAddr| {
            let key = Bytes::new().addr(*ip).build();
            Direction::BOTH.into_iter().all(|direction| {
                let map = direction.map(IpFamily::of(*ip));
                self.desired.get(&INET, map, &key).is_some()
            })
        };
        may_send && attachment.ips.iter().all(is_bound)
    }
}
