//! hostPorts: ports of the host that lead to a port of one pod.
//!
//! ```text
//!   to an address of this host? -> host-addresses4/6  address . protocol . port -> pod . port
//!                                  host-ports4/6                protocol . port -> pod . port
//! ```
//!
//! A hostPort of one host address goes before one of all addresses. The base chains are
//! behind those of Services: the kernel asks the NAT chains of a hook in the order of their
//! priorities until one translates. They are chains of their own, because without an agent
//! the plugin installs them, the same ones, and an agent that starts later finds nothing to
//! change.
//!
//! What comes back must pass this node. Outside, other pods and the node's own addresses do
//! so by themselves; two sources are masqueraded: the pod itself, which would answer itself,
//! and 127.0.0.0/8, which no packet may have on a wire. For the latter the bridge has
//! `route_localnet`, with which the kernel takes packets *to* 127.0.0.0/8 from the pods as
//! well: those are dropped before any translation (CVE-2020-8558).

use std::net::IpAddr;
use std::sync::Arc;

use crate::attachment::{Attachment, PortMapping};
use crate::datatype::{Bytes, DataType, Type};
use crate::desired::Desired;
use crate::field::{Field, ct_status};
use crate::layout::services::{endpoint_data, endpoint_type, frontend_key, frontend_type};
use crate::layout::{
    INET, PRIORITY_DSTNAT, PRIORITY_RAW, PRIORITY_SRCNAT, PerFamily, base_chain, per_family,
    regular_chain,
};
use crate::object::{ChainType, Element, Hook, IpFamily, Key, Name, SetSpec};
use crate::rule::{Rule, Statement};

/// `protocol . port` on all addresses of the host to the pod's `address . port`.
pub static HOST_PORTS: PerFamily = per_family!("host-ports");
/// `address . protocol . port` on one address of the host to the pod's `address . port`.
pub static HOST_ADDRESSES: PerFamily = per_family!("host-addresses");
/// `address . address` of the pods with hostPorts, each with itself.
pub static HOST_PORT_PODS: PerFamily = per_family!("host-port-pods");

const HOST_PORTS_CHAIN: &str = "host-ports";

/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// 127.0.0.0/8.
const LOOPBACK: [[u8; 4]; 2] = [[127, 0, 0, 0], [127, 255, 255, 255]];

/// An element, and the set or map that it is of.
pub type Placed = (&'static Name, Key, Element);

/// The elements of an attachment's hostPorts.
pub fn elements(attachment: &Attachment) -> Vec<Placed> {
    let comment = attachment.owner_name();
    let mut elements = Vec::new();
    for &pod in &attachment.ips {
        let family = IpFamily::of(pod);
        let mappings = attachment.port_mappings.iter();
        let mut mappings = mappings.filter(|mapping| mapping.is_of(family)).peekable();
        if mappings.peek().is_some() {
            let key = Bytes::new().addr(pod).addr(pod).build();
            let element = Element::member().with_comment(&comment);
            elements.push((HOST_PORT_PODS.of(family), key, element));
        }
        for mapping in mappings {
            let (map, key) = place(family, mapping);
            let element = Element::data(target(mapping, pod)).with_comment(&comment);
            elements.push((map, key, element));
        }
    }
    elements
}

fn place(family: IpFamily, mapping: &PortMapping) -> (&'static Name, Key) {
    let (protocol, port) = (mapping.protocol.number(), mapping.host_port);
    match mapping.only_address() {
        Some(address) => (
            HOST_ADDRESSES.of(family),
            frontend_key(address, protocol, port),
        ),
        None => (
            HOST_PORTS.of(family),
            Bytes::new().proto(protocol).port(port).build(),
        ),
    }
}

fn target(mapping: &PortMapping, pod: IpAddr) -> Arc<[u8]> {
    endpoint_data(pod, mapping.container_port)
}

pub(super) fn install(desired: &mut Desired) {
    use DataType::{InetProto, InetService};
    for family in IpFamily::BOTH {
        let pair = Type::of(&[family.addr_type(), family.addr_type()]);
        let specs = [
            (
                &HOST_ADDRESSES,
                SetSpec::map(
                    frontend_type(family),
                    endpoint_type(family),
                    "address of this node . protocol . port to the pod",
                ),
            ),
            (
                &HOST_PORTS,
                SetSpec::map(
                    Type::of(&[InetProto, InetService]),
                    endpoint_type(family),
                    "protocol . port of this node to the pod",
                ),
            ),
            (
                &HOST_PORT_PODS,
                SetSpec::set(pair, "pods with hostPorts, each with itself"),
            ),
        ];
        for (name, spec) in specs {
            desired.set(&INET, name.of(family), spec);
        }
    }
    regular_chain(desired, HOST_PORTS_CHAIN, "to the pod", translations());
    let to_host = || {
        vec![
            Rule::new()
                .eq(Field::FibDaddrType, &LOCAL.to_ne_bytes())
                .jump(HOST_PORTS_CHAIN),
        ]
    };
    for (name, hook, comment) in [
        (
            "host-ports-prerouting",
            Hook::Prerouting,
            "hostPorts for what comes in",
        ),
        (
            "host-ports-output",
            Hook::Output,
            "hostPorts for this node's own traffic",
        ),
    ] {
        let base = (ChainType::Nat, hook, PRIORITY_DSTNAT + 1);
        base_chain(desired, &INET, name, base, comment, to_host());
    }
    base_chain(
        desired,
        &INET,
        "host-ports-postrouting",
        (ChainType::Nat, Hook::Postrouting, PRIORITY_SRCNAT + 1),
        "hostPorts: what must come back through this node",
        returns(),
    );
    base_chain(
        desired,
        &INET,
        "loopback",
        (ChainType::Filter, Hook::Prerouting, PRIORITY_RAW),
        "127.0.0.0/8 is this node's own",
        vec![
            loopback(Field::IpDaddr)
                .ne(Field::Iifname, &Bytes::new().ifname("lo").build())
                .counter()
                .drop(),
        ],
    );
}

/// For each family: the one address before all of them.
fn translations() -> Vec<Rule> {
    let translate = |family: IpFamily, map: &PerFamily, key: &[Field]| {
        Rule::new().family(family).with(Statement::Dnat {
            family,
            key: key.to_vec(),
            map: map.of(family).clone(),
        })
    };
    let rules = IpFamily::BOTH.map(|family| {
        let port = [Field::L4Proto, Field::Dport];
        let address = [family.daddr(), port[0], port[1]];
        [
            translate(family, &HOST_ADDRESSES, &address),
            translate(family, &HOST_PORTS, &port),
        ]
    });
    rules.into_iter().flatten().collect()
}

fn returns() -> Vec<Rule> {
    let itself = |family: IpFamily| {
        Rule::new()
            .family(family)
            .in_set(
                &[family.saddr(), family.daddr()],
                HOST_PORT_PODS.of(family).clone(),
            )
            .with(Statement::Masquerade)
            .comment("a pod reaches itself through its hostPort")
    };
    let mut rules: Vec<_> = IpFamily::BOTH.map(itself).into();
    let from_loopback = loopback(Field::IpSaddr).with(Statement::AnyBit {
        field: Field::CtStatus,
        bits: ct_status::DNAT,
    });
    rules.push(
        from_loopback
            .with(Statement::Masquerade)
            .comment("127.0.0.1 reaches a pod through its hostPort"),
    );
    rules
}

/// The field, an IPv4 address, is in 127.0.0.0/8.
fn loopback(field: Field) -> Rule {
    let [from, to] = LOOPBACK.map(Box::from);
    Rule::new()
        .family(IpFamily::V4)
        .with(Statement::Range { field, from, to })
}
