//! Everything that sources and the plugin have said, in the shape that questions are
//! asked in. Synchronous, no IO.
//!
//! The index answers one question that no single object does: *whose is this address?*
//! A finished pod keeps its address in `status.podIPs` although another pod may have it
//! already (kubernetes#92697), and a pod that was recreated under its name is another pod.
//! So an address has one owner: the attachment that holds it on this node, else the
//! newest live pod that claims it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey};
use proxy::model::ObjectKey;

use crate::model::{ClusterNetworkPolicy, Namespace, NetworkPolicy, Node, Pod, PodPhase};

/// Objects by key.
#[derive(Clone, Default, Debug)]
pub struct Index {
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Pods.
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// Policies.
    pub policies: BTreeMap<ObjectKey, NetworkPolicy>,
    /// Policies of the cluster by name.
    pub cluster_policies: BTreeMap<String, ClusterNetworkPolicy>,
    /// Ranges of cluster IPs, by the name of their ServiceCIDR.
    pub service_cidrs: BTreeMap<String, Vec<ipnet::IpNet>>,
    attachments: BTreeMap<AttachmentKey, Attachment>,
    /// Which pods claim an address in their status.
    claims: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Which attachment holds an address on this node.
    held: BTreeMap<IpAddr, AttachmentKey>,
}

/// Whose an address is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner<'a> {
    /// A pod whose object is known.
    Pod(&'a Pod),
    /// A container on this node that is no pod; no policy can select it.
    Container,
    /// A pod on this node whose object is not known, or is of another pod of that name.
    UnknownPod,
    /// Nobody's that is known.
    Nobody,
}

impl Index {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The attachments of this node.
    pub const fn attachments(&self) -> &BTreeMap<AttachmentKey, Attachment> {
        &self.attachments
    }

    /// Puts or, with `None`, removes a pod. Returns the pods whose labels or addresses may
    /// have changed: it, and those that gain or lose an address by it.
    pub fn set_pod(&mut self, key: &ObjectKey, pod: Option<Pod>) -> BTreeSet<ObjectKey> {
        let mut affected = BTreeSet::from([key.clone()]);
        let old = self.pods.remove(key);
        let claimed = |pod: &Option<Pod>| -> Vec<IpAddr> {
            pod.iter().flat_map(|pod| pod.ips.clone()).collect()
        };
        let (before, after) = (claimed(&old), claimed(&pod));
        for ip in before {
            if let Some(pods) = self.claims.get_mut(&ip) {
                affected.extend(pods.iter().cloned());
                pods.remove(key);
                if pods.is_empty() {
                    self.claims.remove(&ip);
                }
            }
        }
        for ip in after {
            let pods = self.claims.entry(ip).or_default();
            pods.insert(key.clone());
            affected.extend(pods.iter().cloned());
        }
        if let Some(pod) = pod {
            self.pods.insert(key.clone(), pod);
        }
        affected
    }

    /// Puts an attachment. Returns the pods whose addresses may have changed.
    pub fn attach(&mut self, attachment: Attachment) -> BTreeSet<ObjectKey> {
        let mut affected = self.detach(&attachment.key);
        for ip in &attachment.ips {
            // An address that another attachment still holds was given away by IPAM
            // since: the newest wins, as its lease is the one on disk.
            let previous = self.held.insert(*ip, attachment.key.clone());
            let previous = previous.and_then(|key| self.attachments.get(&key));
            affected.extend(previous.and_then(pod_key));
            affected.extend(self.claims.get(ip).into_iter().flatten().cloned());
        }
        affected.extend(pod_key(&attachment));
        self.attachments.insert(attachment.key.clone(), attachment);
        affected
    }

    /// Removes an attachment. Returns the pods whose addresses may have changed.
    pub fn detach(&mut self, key: &AttachmentKey) -> BTreeSet<ObjectKey> {
        let mut affected = BTreeSet::new();
        let Some(attachment) = self.attachments.remove(key) else {
            return affected;
        };
        for ip in &attachment.ips {
            if self.held.get(ip) == Some(key) {
                self.held.remove(ip);
                affected.extend(self.hand_back(*ip));
            }
            affected.extend(self.claims.get(ip).into_iter().flatten().cloned());
        }
        affected.extend(pod_key(&attachment));
        affected
    }

    /// An attachment that the address was taken over from and that is still there holds it
    /// again. Returns its pod.
    fn hand_back(&mut self, ip: IpAddr) -> Option<ObjectKey> {
        let mut attachments = self.attachments.values();
        let holder = attachments.rfind(|attachment| attachment.ips.contains(&ip))?;
        self.held.insert(ip, holder.key.clone());
        pod_key(holder)
    }

    /// Whose the address is.
    pub fn owner(&self, ip: IpAddr) -> Owner<'_> {
        if let Some(attachment) = self.holder(ip) {
            let Some(identity) = &attachment.pod else {
                return Owner::Container;
            };
            let key = ObjectKey::new(&*identity.namespace, &*identity.name);
            return match self.pods.get(&key) {
                Some(pod) if is_same_pod(identity.uid.as_deref(), &pod.uid) => Owner::Pod(pod),
                _ => Owner::UnknownPod,
            };
        }
        let claimants = self.claims.get(&ip).into_iter().flatten();
        let newest = claimants
            .filter_map(|key| self.pods.get(key))
            .filter(|pod| pod.owns_addresses())
            .max_by_key(|pod| pod.claim());
        newest.map_or(Owner::Nobody, Owner::Pod)
    }

    /// The attachment that holds the address on this node.
    pub fn holder(&self, ip: IpAddr) -> Option<&Attachment> {
        self.attachments.get(self.held.get(&ip)?)
    }

    /// Whether a container of this node or a live pod has the address, the node's own address
    /// included where a pod is on the host network.
    pub fn is_in_use(&self, ip: IpAddr) -> bool {
        let mut claimants = self.claims.get(&ip).into_iter().flatten();
        self.held.contains_key(&ip)
            || claimants.any(|key| {
                let pod = self.pods.get(key);
                pod.is_some_and(|pod| pod.phase == PodPhase::Live)
            })
    }

    /// The addresses that are the pod's: claimed in its status or held by its attachment
    /// and nobody else's. None for a pod on the host network: its address is the node's.
    pub fn addresses(&self, pod: &Pod) -> BTreeSet<IpAddr> {
        if !pod.owns_addresses() {
            return BTreeSet::new();
        }
        let attached = self
            .attachments_of(&pod.key)
            .flat_map(|at| at.ips.iter().copied());
        let candidates = pod.ips.iter().copied().chain(attached);
        candidates
            .filter(|ip| matches!(self.owner(*ip), Owner::Pod(owner) if owner.key == pod.key))
            .collect()
    }

    /// The attachments that say they are of that pod.
    pub fn attachments_of(&self, key: &ObjectKey) -> impl Iterator<Item = &Attachment> {
        // A node has at most some hundreds.
        self.attachments
            .values()
            .filter(move |attachment| pod_key(attachment).as_ref() == Some(key))
    }

    /// The pods of a namespace.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Pod> {
        in_namespace(&self.pods, namespace)
    }

    /// The policies of a namespace.
    pub fn policies_in(&self, namespace: &str) -> impl Iterator<Item = &NetworkPolicy> {
        in_namespace(&self.policies, namespace)
    }
}

/// The objects of a namespace.
pub(crate) fn in_namespace<'a, T>(
    objects: &'a BTreeMap<ObjectKey, T>,
    namespace: &str,
) -> impl Iterator<Item = &'a T> {
    let first = ObjectKey::new(namespace, "");
    let namespace = namespace.to_owned();
    objects
        .range(first..)
        .take_while(move |(key, _)| *key.namespace == *namespace)
        .map(|(_, object)| object)
}

/// The pod that the attachment says it is of.
pub fn pod_key(attachment: &Attachment) -> Option<ObjectKey> {
    let pod = attachment.pod.as_ref()?;
    Some(ObjectKey::new(&*pod.namespace, &*pod.name))
}

/// A runtime, or a manifest, that tells no UID is believed by the name.
fn is_same_pod(attached_uid: Option<&str>, uid: &str) -> bool {
    attached_uid.is_none_or(|attached| uid.is_empty() || attached == uid)
}

#[cfg(test)]
mod tests;
