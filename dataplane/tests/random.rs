//! Random desired states in random order: what the journal of [`Desired`] writes, what a
//! fresh [`diff`] writes, what the fake holds and what the kernel dumps are the same.

mod common;

use std::collections::BTreeMap;

use dataplane::datatype::{Bytes, DataType, Type};
use dataplane::desired::Desired;
use dataplane::diff::diff;
use dataplane::fake::Fake;
use dataplane::field::{Field, ct_state};
use dataplane::kernel::Kernel;
use dataplane::netlink::Nftables;
use dataplane::object::{
    BaseChain, Chain, ChainType, Dynamic, Element, Family, Hook, IpFamily, Key, Name, Ruleset,
    SetSpec, TableId,
};
use dataplane::rule::{NewAddress, Reject, Rule, Statement, Verdict};
use proptest::prelude::*;

use common::own_namespace;

const CHAINS: [&str; 4] = ["c0", "c1", "c2", "c3"];

/// The sets that may exist; a name always has the same declaration.
fn spec(name: &str) -> SetSpec {
    let address = Type::of(&[DataType::Ipv4Addr]);
    let service = Type::of(&[
        DataType::Ipv6Addr,
        DataType::InetProto,
        DataType::InetService,
    ]);
    let slot = Type::of(&[
        DataType::Ipv4Addr,
        DataType::InetProto,
        DataType::InetService,
        DataType::Mark,
    ]);
    let endpoint = Type::of(&[DataType::Ipv4Addr, DataType::InetService]);
    match name {
        "plain" => SetSpec::set(address, "plain addresses"),
        "blocks" => SetSpec::intervals(address, ""),
        "verdicts" => SetSpec::verdict_map(service, "to chains"),
        "slots" => SetSpec::map(slot, endpoint, ""),
        "groups" => SetSpec::map(address, address, ""),
        LIMITS => SetSpec {
            dynamic: Some(Dynamic {
                timeout_ms: 10_000,
                size: 64,
            }),
            ..SetSpec::set(Type::of(&[DataType::Ifname]), "")
        },
        other => panic!("no declaration of {other}"),
    }
}

const SETS: [&str; 5] = ["plain", "blocks", "verdicts", "slots", "groups"];

/// A set that rules add to: it has no element of its own.
const LIMITS: &str = "limits";

/// An element of the set, from small numbers so that keys meet again.
fn element(set: &str, number: u8, choice: u8) -> Vec<(Key, Element)> {
    let v4 = [10, 0, 0, number];
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number];
    match set {
        "plain" => vec![(Bytes::new().raw(&v4).build(), Element::member())],
        // Disjoint and not adjacent: 4n to 4n+1.
        "blocks" => vec![
            (
                Bytes::new().raw(&[10, 0, number, 0]).build(),
                Element::member(),
            ),
            (
                Bytes::new().raw(&[10, 0, number, 2]).build(),
                Element::end_of_interval(),
            ),
        ],
        "verdicts" => {
            let key = Bytes::new()
                .raw(&v6)
                .proto(6)
                .port(u16::from(number))
                .build();
            let verdict = match choice % 4 {
                0 => Verdict::Drop,
                1 => Verdict::Return,
                n => Verdict::Goto(CHAINS[usize::from(n)].into()),
            };
            vec![(
                key,
                Element::verdict(verdict).with_comment("a \"quoted\" ü comment"),
            )]
        }
        "groups" => {
            let data = Bytes::new().raw(&[240, 0, 0, choice]).build();
            vec![(Bytes::new().raw(&v4).build(), Element::data(data))]
        }
        _ => {
            let key = Bytes::new()
                .raw(&v4)
                .proto(17)
                .port(53)
                .word(u32::from(number))
                .build();
            let data = Bytes::new().raw(&[10, 1, 0, choice]).port(80).build();
            vec![(key, Element::data(data))]
        }
    }
}

/// Rules that the kernel takes in a filter chain, one of each kind of statement.
fn rule(kind: u8, number: u8) -> Rule {
    let plain = Name::from("plain");
    match kind % 17 {
        0 => Rule::new()
            .family(IpFamily::V4)
            .in_set(&[Field::IpSaddr], plain)
            .counter(),
        1 if number.is_multiple_of(2) => Rule::new().eq(Field::Iif, &0u32.to_ne_bytes()).drop(),
        1 => Rule::new().eq(Field::Iifname, b"trm").drop(),
        2 => Rule::new()
            .family(IpFamily::V6)
            .vmap(&[Field::Ip6Daddr, Field::L4Proto, Field::Dport], "verdicts"),
        3 => Rule::new()
            .l4proto(6)
            .with(Statement::Range {
                field: Field::Dport,
                from: 80u16.to_be_bytes().into(),
                to: (80 + u16::from(number)).to_be_bytes().into(),
            })
            .accept()
            // Regression: of a comment longer than the kernel keeps nothing read back as written,
            // which looked like a change by others.
            .comment(&"ü".repeat(100)),
        4 => Rule::new()
            .ct_state(ct_state::ESTABLISHED | ct_state::RELATED)
            .accept(),
        5 => Rule::new()
            .eq(Field::CtDirection, &[0])
            .with(Statement::Masked {
                field: Field::CtMark,
                mask: 0xffff_0000,
                value: u32::from(number) << 16,
            })
            .accept(),
        6 => Rule::new().with(Statement::SetCtMark {
            mask: 0xffff,
            xor: u32::from(number) << 16,
        }),
        7 => Rule::new()
            .with(Statement::Limit { rate: 10, burst: 5 })
            .with(Statement::Log {
                group: u16::from(number),
                prefix: "denied".into(),
                snaplen: 128,
            }),
        8 => Rule::new().with(Statement::Reject(match number % 2 {
            0 => Reject::PortUnreachable,
            _ => Reject::AdminProhibited,
        })),
        9 => Rule::new()
            .l4proto(6)
            .with(Statement::Reject(Reject::TcpReset)),
        10 => Rule::new()
            .eq(Field::FibDaddrType, &2u32.to_ne_bytes())
            .counter()
            .accept(),
        11 => Rule::new()
            .family(IpFamily::V4)
            .with(Statement::InSet {
                key: vec![Field::IpSaddr],
                set: "blocks".into(),
                negate: true,
            })
            .drop(),
        12 => Rule::new()
            .family(IpFamily::V4)
            .with(Statement::SetAddress {
                field: Field::IpDaddr,
                to: NewAddress::Mapped {
                    key: vec![Field::IpSaddr],
                    map: "groups".into(),
                },
            })
            .drop(),
        13 => Rule::new()
            .family(IpFamily::V6)
            .with(Statement::SetAddress {
                field: Field::Ip6Saddr,
                to: NewAddress::Of(Field::CtOrigIp6Saddr),
            }),
        14 => Rule::new().ne(Field::L4Proto, &[number]).jump(CHAINS[3]),
        15 => Rule::new().with(Statement::LimitEach {
            set: LIMITS.into(),
            key: vec![Field::Iifname],
            rate: 1 + u64::from(number),
            burst: 5,
        }),
        _ => Rule::new()
            .family(IpFamily::V6)
            .eq(Field::Icmpv6Type, &[number])
            .ct_new()
            .with(Statement::AnyBit {
                field: Field::CtStatus,
                bits: 1 << 5,
            })
            .verdict(Verdict::Return),
    }
}

/// One random step.
#[derive(Clone, Debug)]
enum Step {
    /// Chain of that number gets rules of these kinds; its own number grows, so that jumps
    /// make no loop.
    Chain(usize, Vec<(u8, u8)>),
    Insert(usize, u8, u8),
    Remove(usize, u8),
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..3, prop::collection::vec((any::<u8>(), 0u8..4), 0..4))
            .prop_map(|(chain, rules)| Step::Chain(chain, rules)),
        6 => (0usize..SETS.len(), 0u8..8, any::<u8>())
            .prop_map(|(set, number, choice)| Step::Insert(set, number, choice)),
        3 => (0usize..SETS.len(), 0u8..8).prop_map(|(set, number)| Step::Remove(set, number)),
        2 => Just(Step::Commit),
    ]
}

fn table() -> TableId {
    TableId::new(Family::Inet, "random")
}

/// The verdict map leads to c2 and c3, rules of c0 read the map and jump to c3: no loop.
fn take(desired: &mut Desired, step: &Step) {
    let table = table();
    match step {
        Step::Chain(number, rules) => {
            let base = (*number == 0).then_some(BaseChain {
                kind: ChainType::Filter,
                hook: Hook::Forward,
                priority: -7,
                drops: false,
            });
            let maps = |kind: u8| *number == 0 || !matches!(kind % 17, 2 | 14);
            let rules = rules.iter().filter(|(kind, _)| maps(*kind));
            let chain = Chain {
                base,
                comment: Some("a chain".into()),
                rules: rules.map(|(kind, number)| rule(*kind, *number)).collect(),
            };
            desired.chain(&table, &CHAINS[*number].into(), chain);
        }
        Step::Insert(set, number, choice) => {
            for (key, element) in element(SETS[*set], *number, *choice) {
                desired.insert(&table, &SETS[*set].into(), key, element);
            }
        }
        Step::Remove(set, number) => {
            for (key, _) in element(SETS[*set], *number, 0) {
                desired.remove(&table, &SETS[*set].into(), &key);
            }
        }
        Step::Commit => {}
    }
}

fn start() -> Desired {
    let mut desired = Desired::new();
    desired.table(&table());
    for chain in CHAINS {
        let base = (chain == CHAINS[0]).then_some(BaseChain {
            kind: ChainType::Filter,
            hook: Hook::Forward,
            priority: -7,
            drops: false,
        });
        let chain_of = Chain {
            base,
            comment: Some("a chain".into()),
            rules: Vec::new(),
        };
        desired.chain(&table(), &chain.into(), chain_of);
    }
    for set in SETS.into_iter().chain([LIMITS]) {
        desired.set(&table(), &set.into(), spec(set));
    }
    desired
}

fn run(steps: &[Step], kernels: &mut [&mut dyn Kernel]) -> Ruleset {
    let mut desired = start();
    let steps = steps.iter().chain([&Step::Commit]);
    for step in steps {
        take(&mut desired, step);
        if !matches!(step, Step::Commit) {
            continue;
        }
        let transaction = desired.transaction();
        for kernel in kernels.iter_mut() {
            kernel
                .commit(&transaction)
                .unwrap_or_else(|error| panic!("{error}\n{transaction}"));
        }
        desired.committed();
        for kernel in kernels.iter_mut() {
            let dumped = kernel.dump(&[table()]).expect("a dump");
            let difference = diff(&dumped, desired.ruleset());
            assert!(difference.is_empty(), "{difference}");
        }
    }
    desired.ruleset().clone()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn journal_fake_and_kernel_agree(
        steps in prop::collection::vec(step(), 1..40),
        other in prop::collection::vec(step(), 1..40),
    ) {
        if !own_namespace() {
            return Ok(());
        }
        let mut fake = Fake::new();
        let mut kernel = Nftables::open().expect("nf_tables");
        let wanted = run(&steps, &mut [&mut fake, &mut kernel]);

        // From there to a state that was reached in another way, by one whole diff.
        let mut target = start();
        other.iter().for_each(|step| take(&mut target, step));
        let transaction = diff(&wanted, target.ruleset());
        for kernel in [&mut fake as &mut dyn Kernel, &mut kernel] {
            kernel.commit(&transaction).expect("the kernel takes the difference");
            let dumped = kernel.dump(&[table()]).expect("a dump");
            prop_assert_eq!(&dumped, target.ruleset());
        }
        // And away: nothing is left.
        kernel.commit(&diff(target.ruleset(), &Ruleset::default())).expect("removal");
        prop_assert_eq!(kernel.dump(&[table()]).expect("a dump").tables, BTreeMap::new());
    }
}
