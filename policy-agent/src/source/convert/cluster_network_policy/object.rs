//! The object as the API has it, with the fields of this version and what else is there.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::{Resource, core::ClusterResourceScope};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The object of the API.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ClusterNetworkPolicy {
    /// Its metadata.
    pub metadata: ObjectMeta,
    pub(super) spec: Spec,
}

/// Fields by name that this version does not know.
pub(super) type Unknown = BTreeMap<String, Value>;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) tier: String,
    pub(super) priority: Option<i64>,
    #[serde(default)]
    pub(super) subject: Subject,
    #[serde(default)]
    pub(super) ingress: Vec<RuleSpec>,
    #[serde(default)]
    pub(super) egress: Vec<RuleSpec>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Subject {
    pub(super) namespaces: Option<LabelSelector>,
    pub(super) pods: Option<NamespacedPod>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamespacedPod {
    #[serde(default)]
    pub(super) namespace_selector: LabelSelector,
    #[serde(default)]
    pub(super) pod_selector: LabelSelector,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// A rule of either direction; `from` and `to` have the same peers but for those that are
/// egress only.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct RuleSpec {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) action: String,
    #[serde(default)]
    pub(super) from: Vec<PeerSpec>,
    #[serde(default)]
    pub(super) to: Vec<PeerSpec>,
    pub(super) protocols: Option<Vec<ProtocolSpec>>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PeerSpec {
    pub(super) namespaces: Option<LabelSelector>,
    pub(super) pods: Option<NamespacedPod>,
    pub(super) nodes: Option<LabelSelector>,
    #[serde(default)]
    pub(super) networks: Vec<String>,
    #[serde(default)]
    pub(super) domain_names: Vec<String>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProtocolSpec {
    pub(super) tcp: Option<TransportSpec>,
    pub(super) udp: Option<TransportSpec>,
    pub(super) sctp: Option<TransportSpec>,
    pub(super) destination_named_port: Option<String>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TransportSpec {
    pub(super) destination_port: Option<PortSpec>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct PortSpec {
    pub(super) number: Option<i32>,
    pub(super) range: Option<PortRange>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct PortRange {
    pub(super) start: i32,
    pub(super) end: i32,
}

impl Resource for ClusterNetworkPolicy {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ClusterNetworkPolicy".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "policy.networking.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha2".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "clusternetworkpolicies".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
