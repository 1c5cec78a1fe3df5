//! What the owner tells about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use dataplane::kernel::Kernel;
use k8s_openapi::jiff::Timestamp;
use proxy::ServiceStatus;
use proxy::model::ObjectKey;
use serde::{Deserialize, Serialize};

use super::{Owner, ServiceSummary};
use crate::compile::PolicySummary;
use crate::complaint::Problem;
use crate::network::NetworkStatus;
use crate::snapshot::{About, Snapshot};

/// The state of the agent in one document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the program; empty where it is older than this field.
    #[serde(default)]
    pub version: String,
    /// Numbers.
    #[serde(flatten)]
    pub summary: Summary,
    /// Attachments of this node, and which of them are open to their policies.
    pub attachments: Vec<AttachmentStatus>,
    /// Whether ports of pods on bridges are isolated: they are unless bridges hand frames to
    /// the packet filter (`net.bridge.bridge-nf-call-iptables`). Unknown at first.
    pub ports_isolated: Option<bool>,
    /// The pod network of the cluster, where this agent sees to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// Everything that is wrong with an object, by its kind and key.
    pub problems: Vec<Problem>,
}

/// The part of the state that costs nothing to gather.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Name of the node.
    pub node: String,
    /// Whether the kernel holds everything that is desired.
    pub synced: bool,
    /// Why it does not.
    pub error: Option<String>,
    /// Seconds since the epoch at which it last did.
    pub last_sync: Option<f64>,
    /// Duration of the last sync in seconds.
    pub last_sync_seconds: f64,
    /// Operations of the last sync, elements counted one by one.
    pub last_sync_operations: usize,
    /// Successful syncs.
    pub syncs: u64,
    /// Failed syncs.
    pub failures: u64,
    /// Times that somebody else had changed our tables and they were repaired.
    pub repairs: u64,
    /// Generation of the policies.
    pub policy_generation: u16,
    /// Number of Services.
    pub services: usize,
    /// Number of policies, ClusterNetworkPolicies among them.
    pub policies: usize,
    /// Number of pods that are known.
    pub pods: usize,
    /// Number of attachments that are closed because their pod is not known.
    pub unprogrammed: usize,
    /// Number of objects that cannot be used or that the kernel refuses.
    pub unusable: usize,
    /// What of the policies is on this node.
    pub policy: PolicySummary,
    /// The Services in numbers.
    pub service_proxy: ServiceSummary,
}

/// An attachment of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentStatus {
    /// Network, container and interface.
    pub attachment: String,
    /// The pod, `namespace/name`.
    pub pod: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether its policies are in the kernel; while not, it is closed.
    pub programmed: bool,
}

/// A policy as this node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `namespace/name`, or the name alone of a ClusterNetworkPolicy.
    pub policy: String,
    /// Tier and priority of a ClusterNetworkPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierStatus>,
    /// Whether it only tells what it would deny, and isolates nobody.
    pub audit: bool,
    /// Pods of this node whose ingress it isolates, or is asked about.
    pub isolates_ingress: Vec<String>,
    /// Pods of this node whose egress it isolates, or is asked about.
    pub isolates_egress: Vec<String>,
    /// What of it could not be understood.
    pub problems: Vec<String>,
}

/// Where a ClusterNetworkPolicy stands among the others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TierStatus {
    /// `Admin` or `Baseline`.
    pub name: String,
    /// The lowest is asked first; equals by name.
    pub priority: u16,
}

impl<K: Kernel> Owner<K> {
    /// The state in one document.
    pub fn status(&self) -> Status {
        let attachments = self
            .index
            .attachments()
            .values()
            .map(|attachment| AttachmentStatus {
                attachment: attachment.key.to_string(),
                pod: attachment
                    .pod
                    .as_ref()
                    .map(|pod| format!("{}/{}", pod.namespace, pod.name)),
                ips: attachment.ips.clone(),
                programmed: self.is_programmed(&attachment.key),
            });
        let mut problems = self.problems();
        problems.extend(self.enforces_as_of().map(|as_of| Problem {
            object: "Node".into(),
            reason: format!(
                "the objects of {} are enforced, {}: see to it that the API server can be reached",
                Timestamp::try_from(as_of).unwrap_or_default(),
                self.not_listed()
            ),
        }));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: self.summary(),
            attachments: attachments.collect(),
            ports_isolated: self.ports_isolated,
            network: self.network.status().cloned(),
            problems,
        }
    }

    /// The numbers of the state.
    pub fn summary(&self) -> Summary {
        let progress = &self.progress;
        let since_epoch = |time: std::time::SystemTime| {
            let duration = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            duration.as_secs_f64()
        };
        let attachments = self.index.attachments().values();
        let unprogrammed = attachments.filter(|at| !self.is_admitted(at));
        Summary {
            node: self.settings.node.clone(),
            synced: self.is_synced(),
            error: progress.error.clone(),
            last_sync: progress.last_success.map(since_epoch),
            last_sync_seconds: progress.last_duration.as_secs_f64(),
            last_sync_operations: progress.last_operations,
            syncs: progress.syncs,
            failures: progress.failures,
            repairs: progress.repairs,
            policy_generation: self.generation,
            services: self.proxy.service_keys().count(),
            policies: self.index.policies.len() + self.index.cluster_policies.len(),
            pods: self.index.pods.len(),
            unprogrammed: unprogrammed.count(),
            unusable: self.invalid.len() + progress.refused.len(),
            policy: self.policies.summary(),
            service_proxy: self.service_summary(),
        }
    }

    /// Whether the kernel holds everything that is desired.
    pub fn is_synced(&self) -> bool {
        self.progress.is_synced() && !self.dirty
    }

    fn problems(&self) -> Vec<Problem> {
        let invalid = self.invalid.iter().map(|((kind, key), reason)| Problem {
            object: format!("{kind} {key}"),
            reason: reason.clone(),
        });
        let in_policies = self.index.policies.values().flat_map(|policy| {
            policy.problems.iter().map(|reason| Problem {
                object: format!("NetworkPolicy {}", policy.key),
                reason: reason.clone(),
            })
        });
        let in_cluster_policies = self.index.cluster_policies.values().flat_map(|policy| {
            policy.problems.iter().map(|reason| Problem {
                object: format!("ClusterNetworkPolicy {}", policy.name),
                reason: reason.clone(),
            })
        });
        let of_services = self.proxy.services().flat_map(|service| {
            let object = format!("Service {}", service.key);
            service.problems.into_iter().map(move |reason| Problem {
                object: object.clone(),
                reason,
            })
        });
        let refused = self.refusals();
        let refused = refused.iter().map(Problem::from);
        let chains = self.progress.refused.chains();
        let chains = chains.map(|(chain, reason)| Problem {
            object: chain.to_owned(),
            reason: reason.to_owned(),
        });
        invalid
            .chain(in_policies)
            .chain(in_cluster_policies)
            .chain(of_services)
            .chain(refused)
            .chain(chains)
            .chain(self.unknown_pods().as_ref().map(Problem::from))
            .chain(self.network.problems().cloned())
            .collect()
    }

    /// A snapshot; what the kernel knows of addresses is left to
    /// [`Snapshot::with_node_addresses`] and [`Snapshot::ways`].
    pub fn snapshot(&self, about: &About) -> Snapshot {
        let mut keys: BTreeSet<ObjectKey> = about.services.iter().cloned().collect();
        for address in &about.addresses {
            keys.extend(self.proxy.services_at(*address));
        }
        Snapshot {
            node: self.settings.node.clone(),
            index: self.index.clone(),
            service_keys: self.proxy.service_keys().cloned().collect(),
            services: keys
                .iter()
                .filter_map(|key| self.proxy.service(key))
                .collect(),
            groups: self.policies.groups(),
            pod_interfaces: self.interfaces.keys().cloned().collect(),
            node_addresses: BTreeSet::new(),
            ways: BTreeMap::new(),
            is_synced: self.is_synced(),
            revision: self.revision,
        }
    }

    /// The Services with their frontends and endpoints.
    pub fn services(&self) -> Vec<ServiceStatus> {
        self.proxy.services().collect()
    }

    /// The policies with the pods of this node that they isolate: those of the Admin tier
    /// first, in the order in which they are asked.
    pub fn policies(&self) -> Vec<PolicyStatus> {
        let mut of_cluster: Vec<_> = self.index.cluster_policies.values().collect();
        of_cluster.sort_by(|a, b| a.precedence(b));
        let of_cluster = of_cluster.into_iter().map(|policy| {
            let [egress, ingress] = self.policies.selected_by(&policy.name);
            PolicyStatus {
                policy: policy.name.clone(),
                tier: Some(TierStatus {
                    name: policy.tier.to_string(),
                    priority: policy.priority,
                }),
                audit: policy.audit,
                isolates_ingress: ingress,
                isolates_egress: egress,
                problems: policy.problems.clone(),
            }
        });
        let of_namespaces = self.index.policies.values().map(|policy| {
            let [egress, ingress] = self.policies.isolated_by(&policy.key);
            PolicyStatus {
                policy: policy.key.to_string(),
                tier: None,
                audit: policy.audit,
                isolates_ingress: ingress,
                isolates_egress: egress,
                problems: policy.problems.clone(),
            }
        });
        of_cluster.chain(of_namespaces).collect()
    }
}
