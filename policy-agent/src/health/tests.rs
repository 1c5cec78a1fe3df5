use super::*;
use crate::compile::PolicySummary;
use crate::owner::{NoLocalEndpoints, ServiceSummary};

fn summary() -> Summary {
    Summary {
        node: "n1".into(),
        synced: false,
        error: None,
        last_sync: None,
        last_sync_seconds: 0.002,
        last_sync_operations: 7,
        syncs: 0,
        failures: 0,
        repairs: 0,
        policy_generation: 3,
        services: 4,
        policies: 5,
        pods: 6,
        unprogrammed: 1,
        unusable: 2,
        policy: PolicySummary {
            bound_addresses: 8,
            groups: 9,
            tiers: 0,
            sets: 10,
        },
        service_proxy: ServiceSummary {
            node_eligible: true,
            service_changes: 11,
            service_changes_pending: 1,
            endpoint_changes: 12,
            endpoint_changes_pending: 2,
            contested: 13,
            no_local_endpoints: NoLocalEndpoints {
                internal: 14,
                external: 15,
            },
        },
    }
}

/// The state as it was that long ago.
fn long_ago(duration: Duration) -> Instant {
    Instant::now()
        .checked_sub(duration)
        .expect("the machine is up for longer")
}

#[test]
fn it_is_ready_after_the_first_sync_and_stays_so() {
    let health = Health::new();
    health.publish(&summary());
    assert_eq!((health.not_alive(), health.not_healthy()), (None, None));
    assert_eq!(
        health.not_ready().as_deref(),
        Some("the first sync is not done")
    );
    let synced = Summary {
        last_sync: Some(1.0),
        ..summary()
    };
    health.publish(&synced);
    assert_eq!(health.not_ready(), None);
    health.publish(&Summary {
        error: Some("refused".into()),
        ..synced
    });
    assert_eq!(
        health.not_ready(),
        None,
        "a first error is no reason to send pods away"
    );
}

#[test]
fn syncs_that_fail_for_long_are_unhealthy_until_one_succeeds() {
    let health = Health::new();
    let failing = Summary {
        last_sync: Some(1.0),
        error: Some("refused".into()),
        ..summary()
    };
    health.publish(&failing);
    health.state().pending_since = Some(long_ago(2 * SYNC_PERIOD + Duration::from_secs(1)));
    // Further errors do not start the time anew.
    health.publish(&failing);
    assert_eq!(health.not_healthy().as_deref(), Some("refused"));
    assert_eq!(health.not_ready().as_deref(), Some("refused"));
    assert_eq!(health.not_alive(), None, "a restart would not help");
    let synced = Summary {
        error: None,
        synced: true,
        ..failing
    };
    health.publish(&synced);
    assert_eq!(health.not_healthy(), None);
}

#[test]
fn a_silent_owner_is_not_alive() {
    let health = Health::new();
    health.state().heartbeat = long_ago(STUCK + Duration::from_secs(1));
    let reason = health.not_alive().expect("silent");
    assert!(reason.contains("31 s"), "{reason}");
    assert!(health.not_healthy().is_some() && health.not_ready().is_some());
    health.publish(&summary());
    assert_eq!(health.not_alive(), None);
}

#[test]
fn counters_grow_by_what_is_new() {
    let health = Health::new();
    for failures in [1, 1, 4] {
        health.publish(&Summary {
            failures,
            repairs: 2,
            ..summary()
        });
    }
    health.synced(&summary(), &Observations::default());
    let metrics = health.metrics();
    for line in [
        "trammel_sync_failures_total 4",
        "trammel_repairs_total 2",
        "trammel_syncs_total 1",
        "trammel_services 4",
        "trammel_policies 5",
        "trammel_pods 6",
        "trammel_attachments_unprogrammed 1",
        "trammel_unusable_objects 2",
        "trammel_policy_generation 3",
        "trammel_bound_addresses 8",
        "trammel_policy_groups 9",
        "trammel_sync_duration_seconds_count 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
}

/// services.md 68.
#[test]
fn a_change_that_waits_for_twice_the_sync_period_is_unhealthy_until_a_sync() {
    let health = Health::with_sync_period(Duration::from_secs(5));
    let waiting = summary();
    health.publish(&waiting);
    health.state().pending_since = Some(long_ago(Duration::from_secs(9)));
    assert!(health.healthz().0);
    health.state().pending_since = Some(long_ago(Duration::from_secs(11)));
    let (is_fine, body) = health.healthz();
    assert!(
        !is_fine && body["reason"].to_string().contains("11 s"),
        "{body}"
    );
    assert_eq!(body["status"]["IPv6"]["healthy"], false);
    assert!(health.livez().0);
    // Others have come by the time that it is done: they wait from now on.
    health.synced(&waiting, &Observations::default());
    health.publish(&waiting);
    assert!(health.healthz().0);
}

/// services.md 68.
#[test]
fn a_node_that_is_being_removed_is_live_but_gets_no_new_connections() {
    let health = Health::new();
    let mut leaving = summary();
    leaving.synced = true;
    health.publish(&leaving);
    let (is_fine, body) = health.healthz();
    assert!(is_fine && body["nodeEligible"] == true, "{body}");
    assert_eq!(body["lastUpdated"], body["currentTime"], "nothing waits");
    leaving.service_proxy.node_eligible = false;
    health.publish(&leaving);
    let (is_fine, body) = health.healthz();
    assert!(!is_fine && body["nodeEligible"] == false, "{body}");
    assert_eq!(body["status"]["IPv4"]["healthy"], true, "{body}");
    let (is_fine, body) = health.livez();
    assert!(is_fine && body["nodeEligible"] == false, "{body}");
    let metrics = health.metrics();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
}

/// services.md 68.
#[test]
fn kube_proxys_metrics_have_its_names() {
    let health = Health::new();
    let mut synced = summary();
    health.queued();
    health.publish(&synced);
    for syncs in [1, 2] {
        synced.syncs = syncs;
        synced.last_sync = Some(1234.5);
        let observations = Observations {
            programming_seconds: vec![0.3, 61.0],
            reconciled: vec![(0.001, 3)],
            reset: 4,
            cleanup_failures: 1,
        };
        health.synced(&synced, &observations);
    }
    let metrics = health.metrics();
    for family in ["IPv4", "IPv6"] {
        for line in [
            "sync_proxy_rules_duration_seconds_count{F} 2",
            "sync_full_proxy_rules_duration_seconds_count{F} 1",
            "sync_partial_proxy_rules_duration_seconds_count{F} 1",
            "sync_proxy_rules_last_timestamp_seconds{F} 1234.5",
            "network_programming_duration_seconds_count{F} 4",
            "network_programming_duration_seconds_bucket{le=\"0.5\",F} 2",
            "network_programming_duration_seconds_bucket{le=\"65.0\",F} 4",
            "sync_proxy_rules_service_changes_total{F} 11",
            "sync_proxy_rules_service_changes_pending{F} 1",
            "sync_proxy_rules_endpoint_changes_total{F} 12",
            "sync_proxy_rules_endpoint_changes_pending{F} 2",
            "sync_proxy_rules_nftables_sync_failures_total{F} 0",
            "sync_proxy_rules_nftables_cleanup_failures_total{F} 2",
            "sync_proxy_rules_no_local_endpoints_total{F,traffic_policy=\"internal\"} 14",
            "sync_proxy_rules_no_local_endpoints_total{F,traffic_policy=\"external\"} 15",
            "conntrack_reconciler_sync_duration_seconds_count{F} 2",
            "conntrack_reconciler_deleted_entries_total{F} 6",
        ] {
            let label = format!("ip_family=\"{family}\"");
            let line = format!("kubeproxy_{}", line.replace('F', &label));
            assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
        }
        assert!(metrics.contains("trammel_connections_reset_total 8\n"));
        let queued = format!(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"{family}\"}} 1"
        );
        assert!(metrics.contains(&queued), "{queued} in\n{metrics}");
    }
}
