//! Weights of endpoints, for Services with the scheduler `wrr`.
//!
//! The annotation of a Pod is the weight of its endpoints, that of an EndpointSlice of all its
//! endpoints whose pods say nothing; without both it is 1. An endpoint has as many slots as it
//! weighs, after all weights of the frontend were divided by what they have in common. So no
//! rule knows of weights, and a change of one is a change of the slots by which it differs.
//!
//! An endpoint that weighs 0 is like one that is not ready: connections that it has go on, new
//! ones go elsewhere, and where no other endpoint can be used they are refused.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::index::{Entry, Slice};
use crate::model::{ObjectKey, Service, TrafficPolicy};
use crate::scheduler::Scheduler;
use crate::slots::Target;
use crate::topology::{Candidate, NodeIdentity, Selection, Usability, select};

/// The annotation of a Pod or an EndpointSlice: a number from 0 to 65535, the range that IPVS
/// has.
pub const ANNOTATION: &str = "trammel.io/weight";

/// So many slots a frontend has at most for its weights: more would be more elements than
/// the shares are worth. More endpoints than that have one each.
const MAX_SLOTS: usize = 1_000;

/// The weights that pods have.
#[derive(Default, Debug)]
pub(crate) struct Weights {
    /// Annotations, verbatim, by namespace and name of the pod.
    by_pod: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Box<str>>>,
    /// Pods whose annotation is another one since the last sync.
    changed: BTreeSet<ObjectKey>,
}

impl Weights {
    /// The pod has this annotation, or none.
    pub(crate) fn set(&mut self, pod: &ObjectKey, text: Option<&str>) {
        if self.text_of(&pod.namespace, &pod.name) == text {
            return;
        }
        self.changed.insert(pod.clone());
        let namespace = Arc::clone(&pod.namespace);
        let of_namespace = self.by_pod.entry(namespace).or_default();
        match text {
            Some(text) => {
                of_namespace.insert(Arc::clone(&pod.name), text.into());
            }
            None => {
                of_namespace.remove(&pod.name);
                if of_namespace.is_empty() {
                    self.by_pod.remove(&pod.namespace);
                }
            }
        }
    }

    /// The pods to hand to [`concerns`].
    pub(crate) fn take_changed(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.changed)
    }

    fn text_of(&self, namespace: &str, pod: &str) -> Option<&str> {
        Some(self.by_pod.get(namespace)?.get(pod)?)
    }

    /// The endpoints that a frontend of the Service with the traffic policy leads to, each as
    /// often as it is to have slots.
    pub(crate) fn select(
        &self,
        service: &Service,
        candidates: &[Candidate<'_>],
        policy: TrafficPolicy,
        node: &NodeIdentity,
    ) -> Selection {
        if !is_weighted(service) {
            return select(candidates, policy, node);
        }
        let usable = self.usable(service, candidates);
        match select(&usable, policy, node) {
            Selection::Chosen { by, targets } => {
                let weight = |target: &Target| {
                    let at = usable.binary_search_by_key(target, |candidate| candidate.target);
                    self.weight(service, &usable[at.expect("one of them")])
                };
                let weights: Vec<_> = targets.iter().map(weight).collect();
                let (slots, _) = slots(&weights);
                let repeated = targets.into_iter().zip(slots);
                let targets =
                    repeated.flat_map(|(target, slots)| std::iter::repeat_n(target, slots));
                Selection::Chosen {
                    by,
                    targets: targets.collect(),
                }
            }
            none => none,
        }
    }

    /// The candidates without those that are to have no connections.
    pub(crate) fn usable<'c, 'a>(
        &self,
        service: &Service,
        candidates: &'c [Candidate<'a>],
    ) -> Cow<'c, [Candidate<'a>]> {
        let weighs = |candidate: &&Candidate<'a>| self.weight(service, candidate) > 0;
        if !is_weighted(service) || candidates.iter().all(|candidate| weighs(&candidate)) {
            return Cow::Borrowed(candidates);
        }
        candidates.iter().filter(weighs).cloned().collect()
    }

    /// The weight of an endpoint of a Service with weights; of one without `None`.
    pub(crate) fn shown(&self, service: &Service, candidate: &Candidate<'_>) -> Option<u32> {
        is_weighted(service).then(|| self.weight(service, candidate))
    }

    /// Whether new connections may go to an endpoint of that pod in the slice.
    pub(crate) fn admits(&self, service: &Service, pod: Option<&str>, slice: &Slice) -> bool {
        let text = self.text_for(service, pod, slice.weight.as_deref());
        !is_weighted(service) || text.and_then(parse) != Some(0)
    }

    fn weight(&self, service: &Service, candidate: &Candidate<'_>) -> u32 {
        let text = self.text(service, candidate);
        text.and_then(parse).unwrap_or(1)
    }

    fn text<'a>(&'a self, service: &Service, candidate: &Candidate<'a>) -> Option<&'a str> {
        self.text_for(service, candidate.pod, candidate.slice_weight)
    }

    fn text_for<'a>(
        &'a self,
        service: &Service,
        pod: Option<&str>,
        of_slice: Option<&'a str>,
    ) -> Option<&'a str> {
        let of_pod = pod.and_then(|pod| self.text_of(&service.key.namespace, pod));
        of_pod.or(of_slice)
    }

    /// What is wrong with the weights of a service port's endpoints, and what to do.
    pub(crate) fn problems(&self, service: &Service, candidates: &[Candidate<'_>]) -> Vec<String> {
        if !is_weighted(service) {
            return Vec::new();
        }
        let unreadable = candidates.iter().filter_map(|candidate| {
            let text = self.text(service, candidate)?;
            parse(text).is_none().then(|| {
                format!(
                    "endpoint {}: annotation {ANNOTATION}: {text:?} is not a number from 0 to {}; \
                     it weighs 1",
                    candidate.target,
                    u16::MAX
                )
            })
        });
        let mut problems: Vec<_> = unreadable.collect();
        let ready = candidates
            .iter()
            .filter(|candidate| candidate.conditions.usability() == Usability::Ready);
        let weights: Vec<_> = ready
            .map(|candidate| self.weight(service, candidate))
            .collect();
        if let (_, Some(total)) = slots(&weights) {
            problems.push(format!(
                "annotation {ANNOTATION}: weights add up to {total} after division by what they \
                 have in common, and a frontend has {MAX_SLOTS} slots: shares are rounded; use \
                 smaller weights"
            ));
        }
        problems
    }
}

/// Whether the Service has an endpoint of one of the pods, and weights.
pub(crate) fn concerns(pods: &BTreeSet<ObjectKey>, entry: &Entry) -> bool {
    let Some(service) = entry.service().filter(|service| is_weighted(service)) else {
        return false;
    };
    let endpoints = entry.slices.iter().flat_map(Slice::endpoints);
    let names = endpoints.filter_map(|(_, pod)| pod);
    let mut keys = names.map(|name| ObjectKey::new(Arc::clone(&service.key.namespace), name));
    keys.any(|key| pods.contains(&key))
}

fn is_weighted(service: &Service) -> bool {
    Scheduler::of(service) == Ok(Scheduler::Weighted)
}

fn parse(text: &str) -> Option<u32> {
    text.trim().parse::<u16>().ok().map(u32::from)
}

/// How many slots each of them has: in proportion, none for 0, for others at least one. With
/// the sum where that is too large, and shares are therefore rounded.
fn slots(weights: &[u32]) -> (Vec<usize>, Option<u64>) {
    let divisor = weights
        .iter()
        .fold(0, |a, b| greatest_common_divisor(a, *b));
    let exact: Vec<u64> = weights
        .iter()
        .map(|weight| u64::from(weight / divisor.max(1)))
        .collect();
    let sum: u64 = exact.iter().sum();
    let endpoints = exact.iter().filter(|weight| **weight > 0).count();
    let limit = MAX_SLOTS.max(endpoints) as u64;
    let (slots, too_large) = if sum > limit {
        (rounded(&exact, limit), Some(sum))
    } else {
        (exact, None)
    };
    let slots = slots.into_iter().map(|slots| slots as usize);
    (slots.collect(), too_large)
}

/// Shares of `limit`, which the weights exceed: by largest remainders, after those that are
/// too light for one have got theirs.
fn rounded(weights: &[u64], limit: u64) -> Vec<u64> {
    let mut slots: Vec<u64> = weights.iter().map(|weight| (*weight).min(1)).collect();
    let endpoints: u64 = slots.iter().sum();
    let mut heavy: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] > 1).collect();
    loop {
        let left = limit - (endpoints - heavy.len() as u64);
        let sum: u64 = heavy.iter().map(|i| weights[*i]).sum();
        let before = heavy.len();
        heavy.retain(|i| weights[*i] * left >= sum);
        if heavy.len() < before {
            continue;
        }
        for i in &heavy {
            slots[*i] = weights[*i] * left / sum;
        }
        let given: u64 = heavy.iter().map(|i| slots[*i]).sum();
        // The first of equals: the same on every node.
        heavy.sort_by_key(|i| std::cmp::Reverse(weights[*i] * left % sum));
        let rest = heavy.iter().zip(given..left);
        rest.for_each(|(i, _)| slots[*i] += 1);
        return slots;
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests;
