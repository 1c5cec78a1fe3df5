//! Sets of intervals that change, against the kernel: it looks for overlaps while it inserts,
//! so the order and the unit of changes matter.

use dataplane::datatype::{DataType, Type};
use dataplane::desired::Desired;
use dataplane::diff::diff;
use dataplane::interval;
use dataplane::kernel::Kernel;
use dataplane::layout::INET;
use dataplane::netlink::Nftables;
use dataplane::object::{IpFamily, Name, SetSpec};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Prefixes that overlap, touch, and hold each other, up to the end of the address space.
fn networks() -> impl Strategy<Value = Vec<IpNet>> {
    let net = (0u8..=7, 25u8..=32, prop::bool::ANY).prop_map(|(step, len, last)| {
        let start = if last { "255.255.255" } else { "10.0.0" };
        let net: IpNet = format!("{start}.{}/{len}", step * 32)
            .parse()
            .expect("a prefix");
        net.trunc()
    });
    prop::collection::vec(net, 0..6)
}

/// Wants exactly the intervals of these networks.
fn want(desired: &mut Desired, set: &Name, networks: &[IpNet]) {
    let wanted = interval::networks(IpFamily::V4, networks.iter());
    let wanted = interval::elements(IpFamily::V4, &wanted);
    let old = &desired.ruleset().tables[&*INET].sets[set].elements;
    let gone: Vec<_> = old
        .keys()
        .filter(|key| !wanted.iter().any(|(wanted, _)| wanted == *key))
        .cloned()
        .collect();
    for key in gone {
        desired.remove(&INET, set, &key);
    }
    for (key, element) in wanted {
        desired.insert(&INET, set, key, element);
    }
}

#[test]
fn intervals_become_any_others() {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("TRAMMEL_SKIP_ROOT").is_some(),
            "this suite needs root; TRAMMEL_SKIP_ROOT=1 leaves it out"
        );
        eprintln!("SKIP: not root");
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let mut kernel = Nftables::open().expect("nf_tables");
    let set: Name = "intervals".into();
    let mut desired = Desired::new();
    desired.table(&INET);
    let spec = SetSpec::intervals(Type::of(&[DataType::Ipv4Addr]), "");
    desired.set(&INET, &set, spec);
    kernel.commit(&desired.transaction()).expect("an empty set");
    desired.committed();

    let config = Config {
        cases: 300,
        failure_persistence: None,
        // Each case begins where the last one has ended.
        max_shrink_iters: 0,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let state = std::cell::RefCell::new((desired, kernel));
    runner
        .run(
            &(networks(), prop::bool::ANY, prop::bool::ANY),
            |(networks, by_diff, in_parts)| {
                let (desired, kernel) = &mut *state.borrow_mut();
                // Both ways in which a change becomes a transaction.
                let observed = kernel.dump(std::slice::from_ref(&*INET)).expect("a dump");
                want(desired, &set, &networks);
                let transaction = if by_diff {
                    diff(&observed, desired.ruleset())
                } else {
                    desired.transaction()
                };
                let parts = match in_parts {
                    true => transaction.clone().chunks(1, desired.ruleset()),
                    false => vec![transaction.clone()],
                };
                for part in parts {
                    let committed = kernel.commit(&part);
                    prop_assert!(
                        committed.is_ok(),
                        "{committed:?}\n{observed}\n{transaction}\nin {part}"
                    );
                }
                desired.committed();
                let now = kernel.dump(std::slice::from_ref(&*INET)).expect("a dump");
                prop_assert_eq!(&now, desired.ruleset());
                Ok(())
            },
        )
        .expect("any intervals");
}
