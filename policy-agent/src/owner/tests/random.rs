//! Any history, with restarts, errors, refusals and changes by others in between, ends in
//! the rules that a fresh owner makes of the last state.

use dataplane::attachment::AttachmentKey;
use dataplane::layout;
use dataplane::object::Ruleset;
use proptest::prelude::*;
use proxy::model::{ObjectKey, Protocol, TrafficPolicy};

use super::harness::{Failure, Node, Scripted, World};
use super::objects::{
    allow, attachment, deny, endpoint, ip, model_pod, model_service, namespace, node, quarantine,
    slice,
};
use crate::event::{Event, Kind, Object};
use crate::model::PodPhase;
use crate::snapshot::About;
use crate::verdict::{Flow, Transport};

const NAMESPACES: [&str; 2] = ["x", "y"];
const APPS: [&str; 3] = ["a", "b", "c"];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Put(Box<Object>),
    Gone(Kind, ObjectKey),
    Relist(Kind),
    Attach(u8, Option<String>),
    Detach(u8),
    Sync,
    Check,
    Restart,
    Fail(Failure),
    FailLook,
    Refuse(usize),
    /// Somebody takes away an element, or all.
    Tamper(usize),
}

fn name(prefix: &'static str, count: usize) -> impl Strategy<Value = String> {
    (prop::sample::select(NAMESPACES.to_vec()), 0..count)
        .prop_map(move |(namespace, number)| format!("{namespace}/{prefix}{number}"))
}

fn app() -> impl Strategy<Value = &'static str> {
    prop::sample::select(APPS.to_vec())
}

fn pod() -> impl Strategy<Value = Object> {
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.1));
    let address = prop::option::weighted(0.7, 2u8..8);
    (name("p", 3), app(), address, flags, 0i64..3, any::<bool>()).prop_map(
        |(name, app, address, (ready, finished), created, here)| {
            let address = address
                .map(|host| format!("10.88.0.{host}"))
                .unwrap_or_default();
            let mut pod = model_pod(&name, &address, app);
            pod.ready = ready;
            pod.created = created;
            if finished {
                pod.phase = PodPhase::Finished;
            }
            if !here {
                pod.node = Some("n2".into());
            }
            Object::Pod(pod)
        },
    )
}

fn service() -> impl Strategy<Value = Object> {
    (name("s", 3), 10u8..13, app(), any::<bool>(), 0i64..2).prop_map(
        |(name, address, app, local, created)| {
            let mut service = model_service(&name, &format!("10.96.0.{address}"), app);
            service.created = created;
            if local {
                service.internal_policy = TrafficPolicy::Local;
            }
            Object::Service(service)
        },
    )
}

fn endpoint_slice() -> impl Strategy<Value = Object> {
    let hosts = prop::sample::subsequence((2u8..9).collect::<Vec<_>>(), 0..7);
    let zone = prop::option::weighted(0.2, prop::sample::select(vec!["a", "b"]));
    (name("slice", 3), 0usize..3, hosts, zone, any::<bool>()).prop_map(
        |(name, service, hosts, zone, here)| {
            let Object::EndpointSlice(mut slice) = slice(&name, &format!("s{service}"), &[]) else {
                unreachable!("a slice");
            };
            slice.endpoints = hosts
                .into_iter()
                .map(|host| {
                    let mut endpoint = endpoint(ip(&format!("10.99.0.{host}")));
                    endpoint.hint_zones = zone.into_iter().map(str::to_owned).collect();
                    endpoint.node = Some(if here { "n1" } else { "n2" }.into());
                    endpoint.ready = host != 5;
                    endpoint
                })
                .collect();
            Object::EndpointSlice(slice)
        },
    )
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        1 => prop::sample::select(NAMESPACES.to_vec()).prop_map(namespace),
        1 => prop::option::of(prop::sample::select(vec!["a", "b"])).prop_map(|zone| node("n1", zone)),
        5 => pod(),
        3 => service(),
        4 => endpoint_slice(),
        3 => (name("np", 2), app(), prop::option::of(app())).prop_map(|(name, selected, from)| {
            match from {
                Some(from) => allow(&name, selected, from),
                None => deny(&name, selected),
            }
        }),
        1 => (0..2, app(), app())
            .prop_map(|(number, selected, from)| quarantine(&format!("c{number}"), selected, from)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => object().prop_map(|object| Step::Put(object.into())),
        5 => object().prop_map(|object| Step::Gone(object.kind(), object.key())),
        1 => prop::sample::select(Kind::ALL.to_vec()).prop_map(Step::Relist),
        3 => (20u8..24, prop::option::weighted(0.8, name("p", 3)))
            .prop_map(|(container, pod)| Step::Attach(container, pod)),
        1 => (20u8..24).prop_map(Step::Detach),
        6 => Just(Step::Sync),
        1 => Just(Step::Check),
        1 => Just(Step::Restart),
        1 => prop::sample::select(vec![Failure::Before, Failure::After]).prop_map(Step::Fail),
        1 => Just(Step::FailLook),
        3 => any::<usize>().prop_map(Step::Refuse),
        1 => any::<usize>().prop_map(Step::Tamper),
    ]
}

fn container(number: u8) -> AttachmentKey {
    attachment(&format!("c{number}"), None, &["10.88.0.99"]).key
}

fn tamper(ruleset: &mut Ruleset, number: usize) {
    let mut elements = Vec::new();
    for (id, table) in &ruleset.tables {
        for (name, set) in &table.sets {
            let keys = set.elements.keys();
            elements.extend(keys.map(|key| (id.clone(), name.clone(), key.clone())));
        }
    }
    if number.is_multiple_of(8) || elements.is_empty() {
        ruleset.tables.clear();
        return;
    }
    let (id, name, key) = &elements[number % elements.len()];
    let table = ruleset.tables.get_mut(id).expect("listed above");
    let set = table.sets.get_mut(name).expect("listed above");
    set.elements.remove(key);
}

/// Carries a step out on the world and on the node.
fn take(step: Step, world: &mut World, node: &mut Node) {
    match step {
        Step::Put(object) => {
            world.put((*object).clone());
            node.owner.handle(Event::Apply(*object));
        }
        Step::Gone(kind, key) => {
            world.objects.remove(&(kind, key.clone()));
            node.owner.handle(Event::Delete(kind, key));
        }
        Step::Relist(kind) => node.owner.handle(Event::Reset(kind, world.all(kind))),
        Step::Attach(number, pod) => {
            let address = format!("10.88.0.{number}");
            let attachment = attachment(&format!("c{number}"), pod.as_deref(), &[&address]);
            world
                .attachments
                .insert(attachment.key.clone(), attachment.clone());
            node.owner.attach(attachment);
        }
        Step::Detach(number) => {
            let key = container(number);
            let was_there = world.attachments.remove(&key).is_some();
            assert_eq!(node.owner.detach(&key), was_there);
        }
        // It may have been told to fail.
        Step::Sync => drop(node.owner.sync()),
        Step::Check => drop(node.owner.check()),
        Step::Restart => {
            node.restart();
            node.list(world);
        }
        Step::Fail(failure) => node.kernel().failures.push_back(Some(failure)),
        Step::FailLook => node.kernel().fails_dump = true,
        Step::Refuse(number) => node.kernel().refuses_once = Some(number),
        Step::Tamper(number) => node.kernel().fake.tamper(|ruleset| tamper(ruleset, number)),
    }
}

/// Nothing passes that policies forbid.
fn assert_closed(node: &mut Node) {
    let snapshot = node.owner.snapshot(&About::default());
    let cluster = snapshot.cluster();
    let pods = (2..8).chain(20..24).map(|host| format!("10.88.0.{host}"));
    let addresses: Vec<_> = pods.chain(["192.0.2.1".into()]).collect();
    for source in &addresses {
        for destination in &addresses {
            let flow = Flow {
                source: ip(source),
                destination: ip(destination),
                transport: Transport::Port(Protocol::Tcp, 80),
            };
            let verdict = cluster.judge(&flow);
            assert!(
                verdict.is_allowed() || !node.passes(source, destination, 80),
                "{source} to {destination} passes: {verdict}, {:?}",
                node.problems()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_in_the_rules_of_its_last_state(
        steps in prop::collection::vec(step(), 1..80),
        computes in any::<bool>(),
    ) {
        let mut world = World::default();
        let mut node = Node::on(Scripted::default(), computes);
        node.list(&world);
        let mut was_tampered = false;
        for step in steps {
            was_tampered |= matches!(step, Step::Tamper(_));
            take(step, &mut world, &mut node);
        }
        let kernel = node.kernel();
        kernel.failures.clear();
        kernel.fails_dump = false;
        kernel.refuses_once = None;
        // What was refused is tried again with the next change.
        take(Step::Put(namespace("later").into()), &mut world, &mut node);
        node.owner.sync().expect("the kernel takes it");
        let repaired = node.owner.check().expect("it can be asked");
        prop_assert!(was_tampered || !repaired, "own commits were taken for foreign ones");
        node.settle();
        prop_assert_eq!(node.problems().iter().filter(|p| p.contains("refused")).count(), 0);
        prop_assert!(node.owner.verify().expect("it can be asked").is_empty());

        let mut fresh = Node::on(Scripted::default(), computes);
        fresh.list(&world);
        fresh.settle();
        prop_assert_eq!(node.canonical(), fresh.canonical());
        let programmed = |node: &Node| -> Vec<bool> {
            world.attachments.keys().map(|key| node.owner.is_programmed(key)).collect()
        };
        prop_assert_eq!(programmed(&node), programmed(&fresh));
        prop_assert_eq!(node.ruleset().tables.len(), layout::tables().len());
    }

    /// netpol.md 66, 69: not even for want of what the kernel has refused.
    #[test]
    fn nothing_forbidden_passes_after_any_sync(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::default();
        let mut node = Node::on(Scripted::default(), false);
        node.list(&world);
        for step in steps {
            if matches!(step, Step::Tamper(_)) {
                continue;
            }
            let is_sync = matches!(step, Step::Sync);
            take(step, &mut world, &mut node);
            if is_sync && node.owner.is_synced() {
                assert_closed(&mut node);
            }
        }
    }
}
