//! A node with a fake kernel, and short ways to write objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use dataplane::datatype::Bytes;
use dataplane::desired::Desired;
use dataplane::fake::Fake;
use dataplane::field::ct_status;
use dataplane::kernel::Kernel;
use dataplane::layout::{self, INET, services as layout_of};
use dataplane::object::{Element, Family, Hook, IpFamily, Key, Ruleset, Value};
use dataplane::rule::Verdict;
use dataplane::trace::{Fate, Learnt, Packet, Tracer};
use dataplane::transaction::Transaction;

use crate::model::{
    EndpointSlice, ObjectKey, Protocol, Service, ServicePort, ServiceType, SliceEndpoint,
    SlicePort, TargetPort, TrafficDistribution, TrafficPolicy,
};
use crate::{NodeIdentity, Proxy, SyncReport};

pub(super) const NODE: &str = "node-1";

/// A port of a Service or a slice.
pub(super) type Port<'a> = (&'a str, Protocol, u16);

/// One TCP port without a name.
pub(super) const HTTP: &[Port<'_>] = &[("", Protocol::Tcp, 80)];

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn network(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

/// The key of a name in the namespace `default`.
pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

pub(super) fn service(name: &str, cluster_ips: &[&str], ports: &[Port<'_>]) -> Service {
    let port = |(name, protocol, port): &Port<'_>| ServicePort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
        node_port: None,
        target_port: TargetPort::Number(*port),
    };
    Service {
        key: key(name),
        uid: String::new(),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: cluster_ips.iter().map(|ip| address(ip)).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: ports.iter().map(port).collect(),
        selector: BTreeMap::new(),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        publish_not_ready: false,
        traffic_distribution: TrafficDistribution::None,
        health_check_node_port: None,
        annotations: BTreeMap::new(),
    }
}

pub(super) fn slice(
    name: &str,
    service: &str,
    ports: &[Port<'_>],
    endpoints: impl IntoIterator<Item = SliceEndpoint>,
) -> EndpointSlice {
    let port = |(name, protocol, port): &Port<'_>| SlicePort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
    };
    EndpointSlice {
        key: key(name),
        service: service.to_owned(),
        ports: ports.iter().map(port).collect(),
        endpoints: endpoints.into_iter().collect(),
        triggered: None,
        weight: None,
    }
}

/// A ready endpoint on another node.
pub(super) fn ready(ip: &str) -> SliceEndpoint {
    SliceEndpoint {
        address: address(ip),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("node-2".to_owned()),
        zone: None,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
        pod: None,
    }
}

pub(super) fn unready(ip: &str) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        serving: false,
        ..ready(ip)
    }
}

pub(super) fn terminating(ip: &str) -> SliceEndpoint {
    SliceEndpoint {
        ready: false,
        terminating: true,
        ..ready(ip)
    }
}

pub(super) fn here(endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint {
        node: Some(NODE.to_owned()),
        ..endpoint
    }
}

/// Ready endpoints `10.1.x.y`.
pub(super) fn many(numbers: impl IntoIterator<Item = u16>) -> Vec<SliceEndpoint> {
    let endpoint = |number: u16| {
        let [high, low] = number.to_be_bytes();
        ready(&format!("10.1.{high}.{low}"))
    };
    numbers.into_iter().map(endpoint).collect()
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    /// Somebody outside the cluster.
    Outside,
    /// A pod of this node, which no policy isolates.
    Pod,
    /// A pod of another node, by its range.
    OtherPod,
    /// This node.
    Node,
}

impl From {
    pub(super) const ALL: [Self; 4] = [Self::Outside, Self::Pod, Self::OtherPod, Self::Node];

    fn address(self, family: IpFamily) -> IpAddr {
        let [v4, v6] = match self {
            Self::Outside => ["198.51.100.7", "2001:db8:7::7"],
            Self::Pod => ["10.88.0.9", "fd88::9"],
            Self::OtherPod => ["10.89.0.9", "fd89::9"],
            Self::Node => NODE_IPS,
        };
        address(match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        })
    }

    const fn interface(self) -> &'static str {
        match self {
            Self::Outside | Self::OtherPod => "uplink",
            Self::Pod => "cbr0",
            Self::Node => "",
        }
    }
}

/// The addresses of the node.
pub(super) const NODE_IPS: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// A node.
pub(super) struct Node {
    pub(super) proxy: Proxy,
    pub(super) desired: Desired,
    pub(super) kernel: Fake,
}

impl Node {
    /// A node with the static layout committed.
    pub(super) fn new() -> Self {
        let mut node = Self::not_installed();
        node.install();
        node.sync();
        node
    }

    /// Wants the static layout, and the node's part of it.
    pub(super) fn install(&mut self) {
        let desired = &mut self.desired;
        layout::install(desired, 1);
        let bridge = layout::ports::interface_key("cbr0");
        let bridges = &layout::ports::PORTS_OF_POD;
        desired.insert(&INET, bridges, bridge, Element::member());
        let egress = layout::policy::Direction::Egress;
        for family in IpFamily::BOTH {
            let pod = Bytes::new().addr(From::Pod.address(family)).build();
            let allowed = Element::verdict(egress.allowed());
            desired.insert(&INET, egress.map(family), pod, allowed);
            let pod = From::Pod.address(family);
            let itself = Bytes::new().addr(pod).addr(pod).build();
            let hairpin = layout_of::HAIRPIN.of(family);
            desired.insert(&INET, hairpin, itself, Element::member());
        }
        let ranges = ["10.88.0.0/14", "fd88::/15"].map(network);
        self.proxy.set_cluster_cidrs(&ranges);
        self.proxy.set_node_addresses(NODE_IPS.map(address));
    }

    /// A node that has yet to look at its kernel.
    pub(super) fn not_installed() -> Self {
        let identity = NodeIdentity {
            name: NODE.to_owned(),
            zone: None,
        };
        Self {
            proxy: Proxy::new(identity),
            desired: Desired::new(),
            kernel: Fake::new(),
        }
    }

    /// A node that serves these.
    pub(super) fn with(
        services: impl IntoIterator<Item = Service>,
        slices: impl IntoIterator<Item = EndpointSlice>,
    ) -> Self {
        let mut node = Self::new();
        services
            .into_iter()
            .for_each(|s| node.proxy.apply_service(s));
        for slice in slices {
            node.proxy.apply_slice(slice);
        }
        node.settle();
        node
    }

    pub(super) fn set_zone(&mut self, zone: &str) {
        self.proxy.set_node(NodeIdentity {
            name: NODE.to_owned(),
            zone: Some(zone.to_owned()),
        });
    }

    fn commit(&mut self) -> Transaction {
        let transaction = self.desired.transaction();
        self.kernel
            .commit(&transaction)
            .expect("the kernel takes it");
        self.desired.committed();
        transaction
    }

    /// One sync with its commit: what was sent, and whether another one is wanted.
    pub(super) fn sync(&mut self) -> (SyncReport, Transaction, bool) {
        let report = self.proxy.sync(&mut self.desired);
        let transaction = self.commit();
        (report, transaction, self.proxy.committed())
    }

    /// Syncs until nothing more is wanted. Returns what was sent.
    pub(super) fn settle(&mut self) -> Vec<Transaction> {
        let mut sent = Vec::new();
        loop {
            assert!(sent.len() < 3, "orphans take one more commit, not {sent:?}");
            let (_, transaction, again) = self.sync();
            sent.push(transaction);
            if !again {
                return sent;
            }
        }
    }

    /// The element operations until nothing more is wanted.
    pub(super) fn operations(&mut self) -> usize {
        let sent = self.settle();
        sent.iter().map(Transaction::element_operations).sum()
    }

    /// Where TCP connections to `ip:port` end, from another host or pod.
    pub(super) fn reach(&self, destination: &str) -> BTreeSet<String> {
        self.reach_by(destination, Protocol::Tcp)
    }

    /// Where connections to `ip:port` end: every choice of the balancer, for one that comes
    /// in and for one of this node's own, which must agree.
    pub(super) fn reach_by(&self, destination: &str, protocol: Protocol) -> BTreeSet<String> {
        let to: SocketAddr = destination.parse().expect("ip:port");
        let forwarded = self.ends(to, protocol, &[Hook::Prerouting, Hook::Forward]);
        let own = self.ends(to, protocol, &[Hook::Output]);
        assert_eq!(forwarded, own, "from outside, from this node");
        forwarded
    }

    fn ends(&self, to: SocketAddr, protocol: Protocol, hooks: &[Hook]) -> BTreeSet<String> {
        let from = match to {
            SocketAddr::V4(_) => address("192.0.2.1"),
            SocketAddr::V6(_) => address("2001:db8::1"),
        };
        let end = |choice: u32| {
            let choose = |slots: u32| choice % slots;
            let tracer = Tracer::new(self.kernel.ruleset(), &choose);
            let mut packet = Packet::first(from, to.ip(), protocol.number(), to.port());
            for hook in hooks {
                match tracer.hook(Family::Inet, *hook, &mut packet).fate {
                    Fate::Accepted => {}
                    Fate::Dropped => return "dropped".to_owned(),
                    Fate::Rejected(_) => return "refused".to_owned(),
                }
            }
            if packet.flow.status & ct_status::DNAT == 0 {
                return "untouched".to_owned();
            }
            SocketAddr::new(packet.daddr, packet.dport).to_string()
        };
        (0..24).map(end).collect()
    }

    /// Where new TCP connections from the source to `ip:port` end, and whether with this
    /// node's address.
    pub(super) fn walk(&self, from: From, destination: &str) -> BTreeSet<String> {
        let to: SocketAddr = destination.parse().expect("ip:port");
        let source = from.address(IpFamily::of(to.ip()));
        self.walk_as(from, &source.to_string(), destination)
    }

    /// The same with another source address.
    pub(super) fn walk_as(&self, from: From, source: &str, destination: &str) -> BTreeSet<String> {
        let to: SocketAddr = destination.parse().expect("ip:port");
        let source = address(source);
        (0..24)
            .map(|choice| self.connect(from, source, to, choice).0)
            .collect()
    }

    /// Where a new TCP connection ends whose slot is chosen so, and what is learnt of it.
    fn connect(
        &self,
        from: From,
        source: IpAddr,
        to: SocketAddr,
        choice: u32,
    ) -> (String, Vec<Learnt>) {
        let choose = |slots: u32| choice % slots;
        let tracer = Tracer::new(self.kernel.ruleset(), &choose);
        let mut packet = Packet::first(source, to.ip(), 6, to.port());
        packet.iifname = from.interface().to_owned();
        packet.from_local = from == From::Node;
        let hooks: &[Hook] = match from {
            From::Node => &[Hook::Output, Hook::Postrouting],
            _ => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
        };
        let mut is_masqueraded = false;
        let mut learnt = Vec::new();
        for hook in hooks {
            let trace = tracer.hook(Family::Inet, *hook, &mut packet);
            is_masqueraded |= trace.masquerade;
            learnt.extend(trace.learnt);
            match trace.fate {
                Fate::Accepted => {}
                Fate::Dropped => return ("dropped".to_owned(), learnt),
                Fate::Rejected(_) => return ("refused".to_owned(), learnt),
            }
        }
        assert_eq!(packet.saddr, source, "as it came, until it is masqueraded");
        if packet.flow.status & ct_status::DNAT == 0 {
            assert_eq!(packet.daddr, to.ip(), "as it came");
            return ("untouched".to_owned(), learnt);
        }
        let end = SocketAddr::new(packet.daddr, packet.dport);
        let mark = if is_masqueraded { " masqueraded" } else { "" };
        (format!("{end}{mark}"), learnt)
    }

    /// The endpoint of a new TCP connection, whose slot is chosen so where that is open. The
    /// kernel has learnt it afterwards.
    pub(super) fn visit(&mut self, from: From, destination: &str, choice: u32) -> String {
        let to: SocketAddr = destination.parse().expect("ip:port");
        let source = from.address(IpFamily::of(to.ip()));
        let (end, learnt) = self.connect(from, source, to, choice);
        self.kernel.tamper(|ruleset| {
            for entry in learnt {
                let table = ruleset.tables.get_mut(&entry.table).expect("the table");
                let map = table.sets.get_mut(&entry.map).expect("the map");
                map.elements.insert(entry.key, Element::data(entry.data));
            }
        });
        end.trim_end_matches(" masqueraded").to_owned()
    }

    pub(super) fn ruleset(&self) -> &Ruleset {
        self.kernel.ruleset()
    }
}

/// A set of texts.
pub(super) fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(ToString::to_string).collect()
}

/// What the maps say, read without the proxy: by frontend `address . protocol . port`, the
/// endpoints by slot or what is done instead. Checks that slots are dense and that none is
/// left over.
pub(super) fn described(ruleset: &Ruleset) -> BTreeMap<String, Vec<String>> {
    let mut described = BTreeMap::new();
    for family in IpFamily::BOTH {
        let slot_type = key_type(ruleset, layout_of::ENDPOINTS.of(family));
        let mut slots: BTreeMap<String, String> =
            elements(ruleset, layout_of::ENDPOINTS.of(family))
                .map(|(key, element)| {
                    let Value::Data(data) = &element.value else {
                        panic!("no data");
                    };
                    let target = layout_of::endpoint_type(family).print(data);
                    (slot_type.print(key), target)
                })
                .collect();
        let frontend_type = key_type(ruleset, layout_of::FRONTENDS.of(family));
        for (key, element) in elements(ruleset, layout_of::FRONTENDS.of(family)) {
            let Value::Verdict(Verdict::Goto(chain)) = &element.value else {
                panic!("no goto");
            };
            let frontend = frontend_type.print(key);
            let count = layout_of::Balancer::of_chain(chain)
                .expect("a balancer")
                .slots;
            let targets = (0..count).map(|slot| {
                let slot = format!("{frontend} . 0x{slot:08x}");
                slots.remove(&slot).unwrap_or_else(|| panic!("no {slot}"))
            });
            let targets = targets.collect();
            described.insert(frontend, targets);
        }
        assert!(slots.is_empty(), "left over: {slots:?}");
        for (key, element) in elements(ruleset, layout_of::UNSERVED.of(family)) {
            let what = match &element.value {
                Value::Verdict(Verdict::Drop) => "dropped",
                Value::Verdict(verdict) if *verdict == layout_of::refused() => "refused",
                other => panic!("unserved: {other:?}"),
            };
            let frontend = frontend_type.print(key);
            let old = described.insert(frontend.clone(), vec![what.to_owned()]);
            assert_eq!(old, None, "{frontend} is served and unserved");
        }
    }
    described
}

/// The key type of a set.
pub(super) fn key_type(
    ruleset: &Ruleset,
    set: &dataplane::object::Name,
) -> dataplane::datatype::Type {
    ruleset.tables[&*INET].sets[set].spec.key
}

/// The elements of a set.
pub(super) fn elements<'a>(
    ruleset: &'a Ruleset,
    set: &dataplane::object::Name,
) -> impl Iterator<Item = (&'a Key, &'a Element)> {
    ruleset.tables[&*INET].sets[set].elements.iter()
}

/// Numbers of chains, rules and sets.
pub(super) fn size_of_rules(ruleset: &Ruleset) -> (usize, usize, usize) {
    let table = &ruleset.tables[&*INET];
    let rules = table.chains.values().map(|chain| chain.rules.len()).sum();
    (table.chains.len(), rules, table.sets.len())
}
