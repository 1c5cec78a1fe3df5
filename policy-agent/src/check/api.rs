//! The API server: whether it can be reached, whether its clock is ours, whether it grants
//! what the agent asks for, and what it knows of this node.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822;
use kube::api::{ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client};

use super::{Families, Finding, causes};
use crate::args::Check;
use crate::source::convert::parse_cidr;
use crate::source::kubernetes::{self, Access, Right};

/// Where a pod finds the API server.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";
/// Longer than an API server that works needs for anything asked here.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Clocks that differ by more than this confuse whoever compares logs.
const SKEW: i64 = 5;
/// By more than this certificates, tokens and leases go wrong.
const LARGE_SKEW: i64 = 60;

/// What was found.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) findings: Vec<Finding>,
    /// Those of this node's PodCIDRs.
    pub(super) families: Families,
}

/// Asks the API server.
pub(super) async fn check(arguments: &Check) -> Checked {
    let mut checked = Checked::default();
    let access = match &arguments.kubeconfig {
        Some(path) => Access::Kubeconfig(path.clone()),
        None if std::env::var_os(IN_CLUSTER).is_some() => Access::InCluster,
        None => {
            let what = "not asked: there is no --kubeconfig, and this is no pod";
            checked.findings.push(Finding::ok("api", what));
            return checked;
        }
    };
    let client = match kubernetes::client(&access).await {
        Ok(client) => client,
        Err(error) => {
            checked.findings.push(Finding::error(
                "api",
                causes(&error),
                "the agent gets its objects from the API server",
                "correct the kubeconfig or the service account",
            ));
            return checked;
        }
    };
    if !checked.reach(&client).await {
        return checked;
    }
    checked.rights(&client).await;
    if let Some(name) = &arguments.node_name {
        checked.node(&client, name).await;
    }
    checked
}

impl Checked {
    /// Asks for the version, which everybody may, and looks at the answer's date. Returns
    /// whether there was one.
    async fn reach(&mut self, client: &Client) -> bool {
        let request = axum::http::Request::get("/version").body(Body::empty());
        let request = request.expect("a valid path");
        let before = Timestamp::now();
        let answer = match tokio::time::timeout(TIMEOUT, client.send(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return self.unreachable(&causes(&error)),
            Err(_) => return self.unreachable(&format!("no answer in {} s", TIMEOUT.as_secs())),
        };
        let status = answer.status();
        self.findings.push(Finding::ok(
            "api",
            format!("the API server answers ({status})"),
        ));
        let date = answer
            .headers()
            .get("date")
            .and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(|date| rfc2822::parse(date).ok()) {
            self.findings
                .push(judge_clock(date.timestamp(), before, Timestamp::now()));
        }
        true
    }

    fn unreachable(&mut self, reason: &str) -> bool {
        self.findings.push(Finding::error(
            "api",
            format!("the API server cannot be reached: {reason}"),
            "the agent gets its objects from there; one that runs goes on with what it knows",
            "without kube-proxy no cluster IP leads there before the agent runs: set KUBERNETES_SERVICE_HOST and _PORT, or the kubeconfig's server, to an address of a control plane node or its load balancer",
        ));
        false
    }

    async fn rights(&mut self, client: &Client) {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
        let mut granted = 0;
        for right in kubernetes::rights() {
            for verb in &right.verbs {
                let (parameters, review) = (PostParams::default(), review(&right, verb));
                let asked = reviews.create(&parameters, &review);
                let answer = match tokio::time::timeout(TIMEOUT, asked).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => return self.rights_unknown(&causes(&error)),
                    Err(_) => return self.rights_unknown("no answer"),
                };
                let status = answer.status.unwrap_or_default();
                if status.allowed {
                    granted += 1;
                } else {
                    self.findings
                        .push(denied(&right, verb, status.reason.as_deref()));
                }
            }
        }
        self.findings.push(Finding::ok(
            "api-rights",
            format!("{granted} rights are granted"),
        ));
    }

    fn rights_unknown(&mut self, reason: &str) {
        self.findings.push(Finding::warning(
            "api-rights",
            format!("cannot ask which rights there are: {reason}"),
            "a watch that is forbidden keeps the agent from its first sync",
            "grant the ClusterRole of conf/",
        ));
    }

    /// What the node's object says. `list` with a field selector: the agent has no `get`.
    async fn node(&mut self, client: &Client, name: &str) {
        let nodes: Api<Node> = Api::all(client.clone());
        let one = ListParams::default()
            .fields(&format!("metadata.name={name}"))
            .limit(1);
        let Ok(Ok(list)) = tokio::time::timeout(TIMEOUT, nodes.list(&one)).await else {
            // Said already, as an error of rights.
            return;
        };
        let node = list
            .items
            .into_iter()
            .find(|node| node.metadata.name.as_deref() == Some(name));
        let Some(node) = node else {
            self.findings.push(Finding::error(
                "node",
                format!("there is no Node {name}"),
                "policies and topology depend on which pods are this node's",
                "give the name under which the kubelet has registered (--node-name)",
            ));
            return;
        };
        let spec = node.spec.unwrap_or_default();
        let cidrs = match spec.pod_cidrs {
            Some(cidrs) if !cidrs.is_empty() => cidrs,
            _ => spec.pod_cidr.into_iter().collect(),
        };
        for cidr in cidrs.iter().filter_map(|text| parse_cidr(text)) {
            self.families.add(cidr.addr().is_ipv4());
        }
        self.findings.push(if cidrs.is_empty() {
            Finding::warning(
                "node",
                format!("Node {name} has no spec.podCIDRs"),
                "the agent cannot write a network configuration, nor the others a route to here",
                "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or write the configuration by hand",
            )
        } else {
            Finding::ok("node", format!("Node {name} has the pod ranges {}", cidrs.join(", ")))
        });
    }
}

/// `date` has whole seconds and was written between the other two.
fn judge_clock(date: Timestamp, before: Timestamp, after: Timestamp) -> Finding {
    let (date, before, after) = (date.as_second(), before.as_second(), after.as_second());
    let ahead = (before - 1 - date).max(0);
    let behind = (date - after).max(0);
    let (skew, direction) = if ahead > 0 {
        (ahead, "ahead of")
    } else {
        (behind, "behind")
    };
    let what = format!("this clock is {skew} s {direction} the API server's");
    let action = "let chrony, systemd-timesyncd or the hypervisor set the clock of both";
    match skew {
        0..=SKEW => Finding::ok("clock", "the clock is that of the API server"),
        _ if skew <= LARGE_SKEW => Finding::warning(
            "clock",
            what,
            "times in logs and Events do not compare",
            action,
        ),
        _ => Finding::error(
            "clock",
            what,
            "certificates and tokens are not valid yet, or not any more",
            action,
        ),
    }
}

fn review(right: &Right, verb: &str) -> SelfSubjectAccessReview {
    let attributes = ResourceAttributes {
        group: Some(right.group.clone()),
        resource: Some(right.resource.clone()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    }
}

fn denied(right: &Right, verb: &str, reason: Option<&str>) -> Finding {
    let name = match right.group.as_str() {
        "" => right.resource.clone(),
        group => format!("{}.{group}", right.resource),
    };
    let reason = reason.filter(|reason| !reason.is_empty());
    let reason = reason
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    let what = format!("{verb} of {name} is not granted{reason}");
    let action = format!("grant {verb} of {name}, as the ClusterRole of conf/ does");
    if right.is_optional {
        let why = "a part of the agent does without: Events of what is wrong, refusal of unallocated cluster IPs";
        Finding::warning("api-rights", what, why, action)
    } else {
        let why = "without it there is no first sync, and no pod starts";
        Finding::error("api-rights", what, why, action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn a_clock_is_judged_by_what_the_answer_took_at_least() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        for (date, before, after, expected, part) in [
            (1000, 1000, 1000, Severity::Ok, ""),
            // A slow answer proves nothing.
            (1000, 1000, 1030, Severity::Ok, ""),
            (1030, 1000, 1030, Severity::Ok, ""),
            (1020, 1000, 1001, Severity::Warning, "19 s behind"),
            (980, 1000, 1001, Severity::Warning, "19 s ahead"),
            (1100, 1000, 1001, Severity::Error, "99 s behind"),
            (100, 1000, 1001, Severity::Error, "899 s ahead"),
        ] {
            let finding = judge_clock(at(date), at(before), at(after));
            assert_eq!(finding.severity, expected, "{finding}");
            assert!(finding.what.contains(part), "{finding}");
        }
    }

    #[test]
    fn every_right_is_asked_for_by_its_group_and_plural() {
        let rights = kubernetes::rights();
        let names: Vec<_> = rights
            .iter()
            .map(|right| format!("{}/{}", right.group, right.resource))
            .collect();
        assert!(names.contains(&"/pods".to_owned()), "{names:?}");
        assert!(
            names.contains(&"policy.networking.k8s.io/clusternetworkpolicies".to_owned()),
            "{names:?}"
        );
        let finding = denied(&rights[0], "watch", Some("no"));
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.what.contains("watch of namespaces"), "{finding}");
    }
}
