//! What is wrong with policies, to be told as Events of them.

use dataplane::kernel::Kernel;
use proxy::model::ObjectKey;

use super::Owner;
use crate::complaint::Complaint;
use crate::event::Kind;

impl<K: Kernel> Owner<K> {
    /// Everything that is wrong with policies of either kind.
    pub(super) fn policy_complaints(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut complain = |about: (Kind, ObjectKey), uid: &str, reason, messages: &[String]| {
            complaints.extend(messages.iter().map(|message| Complaint {
                about: Some(about.clone()),
                uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
                reason,
                message: message.clone(),
            }));
        };
        for policy in self.index.policies.values() {
            let about = (Kind::NetworkPolicy, policy.key.clone());
            complain(
                about.clone(),
                &policy.uid,
                "PolicyPartlyIgnored",
                &policy.problems,
            );
            complain(about, &policy.uid, "PolicyProbablyMistaken", &policy.notes);
        }
        for policy in self.index.cluster_policies.values() {
            let about = (
                Kind::ClusterNetworkPolicy,
                ObjectKey::new("", &*policy.name),
            );
            complain(about, &policy.uid, "PolicyFailsClosed", &policy.problems);
        }
        if self.progress.refused.len() == 0 {
            return complaints;
        }
        let groups = self.policies.groups();
        for (chain, reason) in self.progress.refused.chains() {
            let Some(group) = groups.get(chain) else {
                continue;
            };
            for name in &group.policies {
                let Some(about) = self.policy_of(name) else {
                    continue;
                };
                let uid = match about.0 {
                    Kind::NetworkPolicy => self.index.policies.get(&about.1).map(|p| &p.uid),
                    _ => self
                        .index
                        .cluster_policies
                        .get(&*about.1.name)
                        .map(|p| &p.uid),
                };
                let message = format!(
                    "the kernel refuses chain {chain}, whose pods are closed in its direction: {reason}"
                );
                let uid = uid.cloned().unwrap_or_default();
                complain(about, &uid, "PolicyNotProgrammed", &[message]);
            }
        }
        complaints
    }

    /// The policy that a group calls so: `namespace/name`, or `Admin name`.
    fn policy_of(&self, name: &str) -> Option<(Kind, ObjectKey)> {
        if let Some((_, name)) = name.split_once(' ') {
            return Some((Kind::ClusterNetworkPolicy, ObjectKey::new("", name)));
        }
        let (namespace, name) = name.split_once('/')?;
        Some((Kind::NetworkPolicy, ObjectKey::new(namespace, name)))
    }
}
