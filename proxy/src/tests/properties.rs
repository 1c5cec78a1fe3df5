//! Random histories against an oracle that knows only the objects.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::harness::*;
use crate::model::{EndpointSlice, ObjectKey, Protocol, Service, SliceEndpoint, TrafficPolicy};
use crate::{Findings, FrontendKind, FrontendState};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SLICES: [&str; 5] = ["s1", "s2", "s3", "s4", "s5"];
/// Few, so that Services meet.
const ADDRESSES: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd96::1", "fd96::2"];
const PORTS: [Port<'_>; 3] = [
    ("http", Protocol::Tcp, 80),
    ("alt", Protocol::Tcp, 80),
    ("dns", Protocol::Udp, 53),
];

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Apply(Service),
    Remove(&'static str),
    ApplySlice(EndpointSlice),
    RemoveSlice(&'static str),
    /// A sync whose commit fails.
    Sync,
    /// A sync whose commit goes through.
    Commit,
}

/// The objects as they are now.
#[derive(Default)]
struct Objects {
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, EndpointSlice>,
}

impl Objects {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Apply(service) => {
                self.services
                    .insert(service.key.name.to_string(), service.clone());
            }
            Step::Remove(name) => {
                self.services.remove(*name);
            }
            Step::ApplySlice(slice) => {
                self.slices
                    .insert(slice.key.name.to_string(), slice.clone());
            }
            Step::RemoveSlice(name) => {
                self.slices.remove(*name);
            }
            Step::Sync | Step::Commit => {}
        }
    }

    /// What each frontend is to do: written from the API's words, without hints, which
    /// the tables of `topology` cover.
    fn expected(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut by_age: Vec<_> = self.services.values().collect();
        by_age.sort_by_key(|service| (service.created, &service.uid, &service.key));
        let mut expected = BTreeMap::new();
        for service in by_age {
            for port in &service.ports {
                for ip in &service.cluster_ips {
                    let protocol = port.protocol.to_string().to_lowercase();
                    let frontend = format!("{ip} . {protocol} . {}", port.port);
                    let name = (port.name.as_str(), port.protocol);
                    let what = || self.endpoints(service, name, ip.is_ipv4());
                    expected.entry(frontend).or_insert_with(what);
                }
            }
        }
        expected
    }

    fn endpoints(
        &self,
        service: &Service,
        (name, protocol): (&str, Protocol),
        is_v4: bool,
    ) -> BTreeSet<String> {
        let mut all = Vec::new();
        for slice in self
            .slices
            .values()
            .filter(|s| *s.service == *service.key.name)
        {
            let port = slice
                .ports
                .iter()
                .find(|p| p.name == name && p.protocol == protocol);
            let Some(port) = port else { continue };
            let of_family = slice
                .endpoints
                .iter()
                .filter(|e| e.address.is_ipv4() == is_v4);
            all.extend(of_family.map(|e| (format!("{} . {}", e.address, port.port), e)));
        }
        let is_here = |e: &SliceEndpoint| e.node.as_deref() == Some(NODE);
        let targets: BTreeSet<_> = all.iter().map(|(target, _)| target.clone()).collect();
        // Of several entries the ones on this node hide the others.
        let entries = |target: &String| -> Vec<&SliceEndpoint> {
            let same = all.iter().filter(|(t, _)| t == target).map(|(_, e)| *e);
            let (here, there): (Vec<_>, Vec<_>) = same.partition(|e| is_here(e));
            if here.is_empty() { there } else { here }
        };
        let with = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> BTreeSet<String> {
            let has = |target: &&String| entries(target).into_iter().any(wanted);
            targets.iter().filter(has).cloned().collect()
        };
        let last_resort = |e: &SliceEndpoint| e.serving && e.terminating;
        let (candidates, otherwise): ([BTreeSet<String>; 2], _) = match service.internal_policy {
            TrafficPolicy::Cluster => ([with(&|e| e.ready), with(&last_resort)], "refused"),
            TrafficPolicy::Local => {
                let usable = with(&|e| e.ready || last_resort(e));
                let otherwise = if usable.is_empty() {
                    "refused"
                } else {
                    "dropped"
                };
                let ready = with(&|e| is_here(e) && e.ready);
                ([ready, with(&|e| is_here(e) && last_resort(e))], otherwise)
            }
        };
        let chosen = candidates.into_iter().find(|set| !set.is_empty());
        chosen.unwrap_or_else(|| set(&[otherwise]))
    }
}

fn any_service() -> impl Strategy<Value = Service> {
    let addresses = proptest::sample::subsequence(&ADDRESSES, 0..=3);
    let ports = proptest::sample::subsequence(&PORTS, 0..=3);
    (
        proptest::sample::select(&NAMES),
        addresses,
        ports,
        0i64..3,
        "[xy]?",
        any::<bool>(),
    )
        .prop_map(|(name, addresses, ports, created, uid, is_local)| Service {
            created,
            uid,
            internal_policy: if is_local {
                TrafficPolicy::Local
            } else {
                TrafficPolicy::Cluster
            },
            ..service(name, &addresses, &ports)
        })
}

fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let conditions = proptest::sample::select(vec![
        (true, true, false),
        (true, true, false),
        (false, true, true),
        (false, false, false),
        (true, false, true),
    ]);
    (0u8..8, any::<bool>(), any::<bool>(), conditions).prop_map(
        |(number, is_v4, is_here, (is_ready, serving, terminating))| {
            let ip = if is_v4 {
                format!("10.1.0.{number}")
            } else {
                format!("fd10::{number}")
            };
            let endpoint = SliceEndpoint {
                ready: is_ready,
                serving,
                terminating,
                ..ready(&ip)
            };
            if is_here { here(endpoint) } else { endpoint }
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let ports = proptest::sample::subsequence(&PORTS, 0..=3);
    let endpoints = proptest::collection::vec(any_endpoint(), 0..8);
    (
        proptest::sample::select(&SLICES),
        proptest::sample::select(&NAMES),
        ports,
        endpoints,
    )
        .prop_map(|(name, service, mut ports, endpoints)| {
            for port in &mut ports {
                port.2 += 8000;
            }
            slice(name, service, &ports, endpoints)
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any_service().prop_map(Step::Apply),
        1 => proptest::sample::select(&NAMES).prop_map(Step::Remove),
        4 => any_slice().prop_map(Step::ApplySlice),
        1 => proptest::sample::select(&SLICES).prop_map(Step::RemoveSlice),
        1 => Just(Step::Sync),
        3 => Just(Step::Commit),
    ]
}

fn carry_out(node: &mut Node, step: Step) {
    match step {
        Step::Apply(service) => node.proxy.apply_service(service),
        Step::Remove(name) => node.proxy.remove_service(&key(name)),
        Step::ApplySlice(slice) => {
            node.proxy.apply_slice(slice);
        }
        Step::RemoveSlice(name) => {
            node.proxy.remove_slice(&key(name));
        }
        Step::Sync => {
            node.proxy.sync(&mut node.desired);
        }
        Step::Commit => {
            node.sync();
        }
    }
}

/// What is to be said of each Service, by a look at all of them.
fn findings_of_all(node: &Node) -> BTreeMap<ObjectKey, Findings> {
    let mut all = BTreeMap::new();
    for service in node.proxy.services() {
        let states = |wanted: &FrontendState, is_internal: bool| {
            let of_kind = service.frontends.iter();
            let of_kind = of_kind.filter(|f| (f.kind == FrontendKind::ClusterIp) == is_internal);
            of_kind.filter(|f| f.state == *wanted).count() > 0
        };
        let is_lost = |state: &FrontendState| matches!(state, FrontendState::Lost { .. });
        let lost = service.frontends.iter().filter(|f| is_lost(&f.state));
        let findings = Findings {
            contested: lost.count(),
            drops_internal: states(&FrontendState::Dropped, true),
            drops_external: states(&FrontendState::Dropped, false),
            problems: service.problems.clone(),
        };
        if !findings.is_empty() {
            all.insert(service.key, findings);
        }
    }
    all
}

fn described_sets(node: &Node) -> BTreeMap<String, BTreeSet<String>> {
    let described = described(node.ruleset()).into_iter();
    described
        .map(|(frontend, targets)| {
            let count = targets.len();
            let set: BTreeSet<_> = targets.into_iter().collect();
            assert_eq!(set.len(), count, "{frontend} has an endpoint twice");
            (frontend, set)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_maps_say_what_the_objects_say(
        steps in proptest::collection::vec(any_step(), 1..40),
        seed in any::<u64>(),
    ) {
        let mut node = Node::new();
        let mut objects = Objects::default();
        let mut reviewed = BTreeMap::new();
        for step in steps {
            objects.take(&step);
            carry_out(&mut node, step);
            // Some are looked at between the steps, as they are while others change.
            reviewed.extend(node.proxy.review(2));
        }
        node.settle();
        reviewed.extend(node.proxy.review(usize::MAX));
        reviewed.retain(|_, findings| !findings.is_empty());
        prop_assert_eq!(reviewed, findings_of_all(&node));
        prop_assert_eq!(described_sets(&node), objects.expected());
        prop_assert_eq!(node.ruleset(), node.desired.ruleset());

        // The same objects in another order, without the history.
        let mut steps: Vec<_> = objects.services.into_values().map(Step::Apply)
            .chain(objects.slices.into_values().map(Step::ApplySlice))
            .collect();
        let turn = usize::try_from(seed % (1 + steps.len() as u64)).expect("small");
        steps.rotate_left(turn);
        if seed & 1 << 40 != 0 {
            steps.reverse();
        }
        let mut fresh = Node::new();
        for step in steps {
            carry_out(&mut fresh, step);
        }
        fresh.settle();
        prop_assert_eq!(described_sets(&fresh), described_sets(&node));
    }

    #[test]
    fn a_sync_costs_what_it_changes(
        sets in proptest::collection::vec(proptest::collection::btree_set(0u16..40, 0..30), 2..8)
    ) {
        let mut node = Node::with([service("web", &["10.96.0.1"], HTTP)], []);
        let mut before = BTreeSet::new();
        for wanted in sets {
            let gone = before.difference(&wanted).count();
            let new = wanted.difference(&before).count();
            node.proxy.apply_slice(slice("web-1", "web", HTTP, many(wanted.iter().copied())));
            prop_assert!(node.operations() <= 5 * gone.max(new));
            before = wanted;
        }
    }
}
