use super::*;
use crate::compile::PolicySummary;

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
            sets: 10,
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
    health.state().failing_since = Some(long_ago(FAILING + Duration::from_secs(1)));
    // Further errors do not start the time anew.
    health.publish(&failing);
    assert_eq!(health.not_healthy().as_deref(), Some("refused"));
    assert_eq!(health.not_ready().as_deref(), Some("refused"));
    assert_eq!(health.not_alive(), None, "a restart would not help");
    health.publish(&Summary {
        error: None,
        ..failing
    });
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
    health.synced(&summary());
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
