use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::range::RangeSpec;
use crate::store::Store;

struct Pool {
    dir: tempfile::TempDir,
    sets: Vec<RangeSet>,
}

fn pool(sets: &[&[&str]]) -> Pool {
    let range = |subnet: &&str| {
        Range::new(&RangeSpec {
            subnet: subnet.parse().unwrap(),
            start: None,
            end: None,
            gateway: None,
        })
        .unwrap()
    };
    let set = |subnets: &&[&str]| RangeSet::new(subnets.iter().map(range).collect()).unwrap();
    Pool {
        dir: tempfile::tempdir().unwrap(),
        sets: sets.iter().map(set).collect(),
    }
}

fn owner(id: &str) -> Owner {
    Owner {
        container_id: id.to_owned(),
        ifname: Some("eth0".to_owned()),
    }
}

impl Pool {
    fn store(&self) -> Locked {
        Store::new(self.dir.path(), "net")
            .lock(Duration::from_secs(5))
            .unwrap()
    }

    fn claim_with(
        &self,
        id: &str,
        requested: &[&str],
        in_use: &dyn Fn(IpAddr) -> bool,
    ) -> Result<Vec<String>, ClaimError> {
        let requested: Vec<IpAddr> = requested.iter().map(|ip| ip.parse().unwrap()).collect();
        let claim = Claim {
            owner: &owner(id),
            sets: &self.sets,
            requested: &requested,
            in_use,
        };
        let got = claim.run(&self.store())?;
        Ok(got.into_iter().map(|one| one.ip.to_string()).collect())
    }

    fn claim(&self, id: &str, requested: &[&str]) -> Result<Vec<String>, ClaimError> {
        self.claim_with(id, requested, &|_| false)
    }

    fn free(&self, id: &str) {
        self.store().free_all_of(&owner(id)).unwrap();
    }

    fn taken(&self) -> BTreeSet<String> {
        let leases = self.store().leases().unwrap();
        leases
            .into_iter()
            .map(|lease| lease.ip.to_string())
            .collect()
    }
}

#[test]
fn dual_stack_gives_one_address_per_set() {
    let pool = pool(&[&["10.0.0.0/29"], &["fd00::/64"]]);
    assert_eq!(pool.claim("a", &[]).unwrap(), ["10.0.0.2", "fd00::2"]);
    assert_eq!(pool.claim("b", &[]).unwrap(), ["10.0.0.3", "fd00::3"]);
}

#[test]
fn a_freed_address_is_not_the_next_one() {
    let pool = pool(&[&["10.0.0.0/29"]]);
    pool.claim("a", &[]).unwrap();
    pool.free("a");
    assert_eq!(pool.claim("b", &[]).unwrap(), ["10.0.0.3"]);
    for id in ["c", "d", "e"] {
        pool.claim(id, &[]).unwrap();
    }
    assert_eq!(pool.claim("f", &[]).unwrap(), ["10.0.0.2"]);
}

#[test]
fn a_full_pool_says_which_and_works_again_after_a_release() {
    let pool = pool(&[&["10.0.0.0/29"]]);
    for n in 0..5 {
        pool.claim(&format!("c{n}"), &[]).unwrap();
    }
    let error = pool.claim("x", &[]).unwrap_err();
    assert!(matches!(error, ClaimError::Exhausted { .. }));
    assert!(error.to_string().contains("10.0.0.0/29"), "{error}");
    pool.free("c3");
    assert_eq!(pool.claim("x", &[]).unwrap(), ["10.0.0.5"]);
}

#[test]
fn a_second_pool_of_a_set_takes_over() {
    let pool = pool(&[&["10.0.0.0/30", "10.0.1.0/30"]]);
    assert_eq!(pool.claim("a", &[]).unwrap(), ["10.0.0.2"]);
    assert_eq!(pool.claim("b", &[]).unwrap(), ["10.0.1.2"]);
    assert!(pool.claim("c", &[]).is_err());
}

#[test]
fn an_exhausted_family_gives_the_other_back() {
    let pool = pool(&[&["10.0.0.0/29"], &["fd00::/126"]]);
    pool.claim("a", &[]).unwrap();
    pool.claim("b", &[]).unwrap();
    let error = pool.claim("c", &[]).unwrap_err();
    assert!(error.to_string().contains("fd00::/126"), "{error}");
    assert_eq!(pool.taken().len(), 4);
}

#[test]
fn requested_addresses_are_honoured_or_refused_with_nothing_reserved() {
    let pool = pool(&[&["10.0.0.0/24"], &["fd00::/64"]]);
    assert_eq!(
        pool.claim("a", &["fd00::77"]).unwrap(),
        ["10.0.0.2", "fd00::77"]
    );
    for (ip, reason) in [
        ("fd00::77", Unavailable::Taken),
        ("10.0.0.1", Unavailable::Gateway),
        ("10.0.0.255", Unavailable::OutOfRange),
        ("10.9.0.1", Unavailable::OutOfRange),
    ] {
        let error = pool.claim("b", &[ip]).unwrap_err();
        let ClaimError::Unavailable { reason: got, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(got, reason, "{ip}");
    }
    let twice = pool.claim("b", &["10.0.0.8", "10.0.0.9"]).unwrap_err();
    assert!(
        twice.to_string().contains("second of its range set"),
        "{twice}"
    );
    assert_eq!(pool.taken().len(), 2);
}

#[test]
fn a_damaged_lease_is_reused_last_and_only_if_no_pod_has_its_address() {
    let pool = pool(&[&["10.0.0.0/29"]]);
    pool.claim("a", &[]).unwrap();
    let dir = pool.dir.path().join("net");
    std::fs::write(dir.join("10.0.0.3"), "").unwrap();
    std::fs::write(dir.join("10.0.0.4"), b"\0\0\0").unwrap();
    let in_use = |ip: IpAddr| ip.to_string() == "10.0.0.4";
    let mut got = Vec::new();
    for id in ["b", "c", "d"] {
        got.extend(pool.claim_with(id, &[], &in_use).unwrap());
    }
    assert_eq!(got, ["10.0.0.5", "10.0.0.6", "10.0.0.3"]);
    assert!(dir.join(".damaged-10.0.0.3").exists());
    assert!(matches!(
        pool.claim_with("e", &[], &in_use),
        Err(ClaimError::Exhausted { .. })
    ));
}

#[test]
fn parallel_claims_never_share_an_address() {
    let pool = pool(&[&["10.0.0.0/24"]]);
    let ips: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let pool = &pool;
                scope.spawn(move || {
                    (0..10)
                        .flat_map(|n| pool.claim(&format!("w{worker}-{n}"), &[]).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    let distinct: BTreeSet<_> = ips.iter().collect();
    assert_eq!((ips.len(), distinct.len()), (80, 80));
}
