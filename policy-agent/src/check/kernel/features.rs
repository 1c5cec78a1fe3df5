//! What the rules need of nf_tables, one by one.

use dataplane::datatype::{DataType, Type};
use dataplane::desired::Desired;
use dataplane::field::{Field, ct_state};
use dataplane::layout::{BRIDGE, INET, denials::LOG_GROUP};
use dataplane::object::{BaseChain, Chain, ChainType, Dynamic, Hook, IpFamily, Name, SetSpec};
use dataplane::rule::{Reject, Rule, Statement};

/// Something of nf_tables that the rules need.
pub(super) struct Feature {
    pub(super) name: &'static str,
    /// The kernel's option for it, without `CONFIG_`.
    pub(super) option: &'static str,
    pub(super) purpose: &'static str,
    pub(super) want: fn(&mut Desired),
}

/// Each by itself.
pub(super) fn features() -> [Feature; 14] {
    let feature = |name, option, purpose, want| Feature {
        name,
        option,
        purpose,
        want,
    };
    [
        feature(
            "tables of family inet",
            "NF_TABLES_INET",
            "every rule",
            |d| {
                rule(d, Hook::Forward, Rule::new().counter());
            },
        ),
        feature(
            "tables of family bridge",
            "NF_TABLES_BRIDGE",
            "spoofed senders on the bridge",
            |d| {
                d.table(&BRIDGE);
                let base = base(ChainType::Filter, Hook::Prerouting, -300);
                let rules = vec![
                    Rule::new()
                        .eq(Field::EtherSaddr, &[2, 0, 0, 0, 0, 1])
                        .drop(),
                ];
                d.chain(&BRIDGE, &"probe".into(), Chain::base(base, "", rules));
            },
        ),
        feature(
            "matching by flow (ct)",
            "NFT_CT",
            "policies on live flows",
            |d| {
                let rule_of_flow = Rule::new()
                    .ct_state(ct_state::ESTABLISHED)
                    .eq(Field::CtDirection, &[0])
                    .with(Statement::SetCtMark {
                        mask: 0xffff,
                        xor: 1 << 16,
                    });
                rule(d, Hook::Forward, rule_of_flow);
            },
        ),
        feature("address translation (nat)", "NFT_NAT", "Services", |d| {
            dnat(d, Field::Dport);
        }),
        feature(
            "masquerading (masq)",
            "NFT_MASQ",
            "traffic that must come back",
            |d| {
                let base = base(ChainType::Nat, Hook::Postrouting, 100);
                let rules = vec![Rule::new().with(Statement::Masquerade)];
                d.chain(&INET, &"probe".into(), Chain::base(base, "", rules));
            },
        ),
        feature(
            "random choice (numgen)",
            "NFT_NUMGEN",
            "endpoints of Services",
            |d| {
                dnat(d, Field::Random(2));
            },
        ),
        feature(
            "hashes (hash)",
            "NFT_HASH",
            "the schedulers sh and mh",
            |d| {
                dnat(
                    d,
                    Field::SourceHash {
                        family: IpFamily::V4,
                        modulus: 2,
                        seed: 1,
                    },
                );
            },
        ),
        feature(
            "types of addresses (fib)",
            "NFT_FIB_INET",
            "node ports and hostPorts",
            |d| {
                let local = Rule::new().eq(Field::FibDaddrType, &2u32.to_ne_bytes());
                rule(d, Hook::Prerouting, local);
            },
        ),
        feature(
            "refusal (reject)",
            "NFT_REJECT_INET",
            "Services without endpoints",
            |d| {
                let refuse = Rule::new().with(Statement::Reject(Reject::PortUnreachable));
                rule(d, Hook::Forward, refuse);
            },
        ),
        feature(
            "rate limits (limit)",
            "NFT_LIMIT",
            "the log of denied packets",
            |d| {
                rule(
                    d,
                    Hook::Forward,
                    Rule::new().with(Statement::Limit {
                        rate: 10,
                        burst: 50,
                    }),
                );
            },
        ),
        feature(
            "logging (log)",
            "NFT_LOG",
            "the log of denied packets",
            |d| {
                let log = Statement::Log {
                    group: LOG_GROUP,
                    prefix: "probe".into(),
                    snaplen: 128,
                };
                rule(d, Hook::Forward, Rule::new().with(log));
            },
        ),
        feature(
            "verdict maps of concatenations",
            "NF_TABLES",
            "frontends and policies",
            |d| {
                let key = Type::of(&[
                    DataType::Ipv4Addr,
                    DataType::InetProto,
                    DataType::InetService,
                ]);
                d.set(&INET, &"probe".into(), SetSpec::verdict_map(key, ""));
                let fields = [Field::IpDaddr, Field::L4Proto, Field::Dport];
                rule(
                    d,
                    Hook::Forward,
                    Rule::new().family(IpFamily::V4).vmap(&fields, "probe"),
                );
            },
        ),
        feature("sets of intervals", "NF_TABLES", "ipBlocks", |d| {
            let key = Type::of(&[DataType::Ipv4Addr]);
            d.set(&INET, &"probe".into(), SetSpec::intervals(key, ""));
            let rule_of_block = Rule::new()
                .family(IpFamily::V4)
                .in_set(&[Field::IpSaddr], "probe");
            rule(d, Hook::Forward, rule_of_block.accept());
        }),
        feature(
            "maps that rules write (dynset)",
            "NF_TABLES",
            "session affinity",
            |d| {
                let key = Type::of(&[DataType::Ipv4Addr]);
                let bounds = Dynamic {
                    timeout_ms: 1000,
                    size: 16,
                };
                d.set(
                    &INET,
                    &"probe".into(),
                    SetSpec::learnt(key, key, bounds, ""),
                );
                let learn = Statement::Update {
                    map: "probe".into(),
                    key: vec![Field::IpSaddr],
                    data: vec![Field::IpDaddr],
                    timeout_ms: 500,
                };
                rule(
                    d,
                    Hook::Forward,
                    Rule::new().family(IpFamily::V4).with(learn),
                );
            },
        ),
    ]
}

const fn base(kind: ChainType, hook: Hook, priority: i32) -> BaseChain {
    BaseChain {
        kind,
        hook,
        priority,
        drops: false,
    }
}

/// Wants a chain with that rule.
fn rule(desired: &mut Desired, hook: Hook, rule: Rule) {
    let base = base(ChainType::Filter, hook, 0);
    desired.chain(&INET, &"probe".into(), Chain::base(base, "", vec![rule]));
}

/// Wants a translation to what a map has for a destination and `last`.
fn dnat(desired: &mut Desired, last: Field) {
    let map = Name::from("probe-endpoints");
    let last_type = last.data_type().expect("fields of this module have one");
    let key = Type::of(&[DataType::Ipv4Addr, last_type]);
    let data = Type::of(&[DataType::Ipv4Addr, DataType::InetService]);
    desired.set(&INET, &map, SetSpec::map(key, data, ""));
    let translate = Rule::new()
        .family(IpFamily::V4)
        .l4proto(6)
        .with(Statement::Dnat {
            family: IpFamily::V4,
            key: vec![Field::IpDaddr, last],
            map,
        });
    let base = base(ChainType::Nat, Hook::Prerouting, -100);
    desired.chain(
        &INET,
        &"probe".into(),
        Chain::base(base, "", vec![translate]),
    );
}
