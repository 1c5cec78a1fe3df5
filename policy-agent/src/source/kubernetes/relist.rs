//! One watch's changes in the vocabulary of the index.
//!
//! Only keys are kept. They are needed where a relist contains an invalid object: a reset
//! would drop the last good state of that object, so such a relist is told as
//! single changes instead. And an object that was never good is told to be gone as well: until
//! then it is a problem.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event as Change;
use proxy::model::ObjectKey;

use crate::event::{Event, Kind, Object};
use crate::source::convert::{Convert, ConvertError, object_key};
use crate::source::narrow::Narrow;

/// The state between changes.
#[derive(Debug, Default)]
pub(super) struct Relist {
    /// Keys that the index has an object for.
    known: BTreeSet<ObjectKey>,
    /// Keys of what was told to be invalid: that has to be taken back, too.
    invalid: BTreeSet<ObjectKey>,
    /// The list that is being received.
    listing: Option<Listing>,
    /// Whether a list was ever complete.
    has_listed: bool,
}

/// A list that is not complete yet.
#[derive(Debug, Default)]
struct Listing {
    objects: Vec<Object>,
    invalid: Vec<(ObjectKey, String)>,
}

/// One object of the API.
enum Received {
    Good(Object),
    NotOurs(ObjectKey),
    Invalid(ObjectKey, String),
    /// Not even a name: it cannot be told apart from others.
    Nameless(String),
}

impl Relist {
    /// What the index is to be told of a change.
    pub(super) fn handle<K>(&mut self, change: Change<Narrow<K>>) -> Vec<Event>
    where
        K: Resource<DynamicType = ()> + Convert,
    {
        match change {
            Change::Init => {
                self.listing = Some(Listing::default());
                Vec::new()
            }
            Change::InitApply(object) => {
                let listing = self.listing.get_or_insert_default();
                match receive(object) {
                    Received::Good(object) => listing.objects.push(object),
                    Received::Invalid(key, reason) => listing.invalid.push((key, reason)),
                    Received::NotOurs(_) => {}
                    Received::Nameless(reason) => log_nameless(K::KIND, &reason),
                }
                Vec::new()
            }
            Change::InitDone => self.complete(K::KIND),
            Change::Apply(object) => self.apply(K::KIND, receive(object)),
            Change::Delete(object) => match key_of(K::KIND, &object) {
                Ok(key) => self.delete(K::KIND, key),
                Err(error) => {
                    log_nameless(K::KIND, &error.to_string());
                    Vec::new()
                }
            },
        }
    }

    /// Whether the index has an object of the kind.
    pub(super) fn knows_any(&self) -> bool {
        !self.known.is_empty()
    }

    /// The kind is gone from the server, and all its objects with it. `None` where that is
    /// known.
    pub(super) fn absent(&mut self, kind: Kind) -> Option<Event> {
        let was_listed = std::mem::replace(&mut self.has_listed, true);
        if was_listed && self.known.is_empty() && self.invalid.is_empty() {
            return None;
        }
        *self = Self {
            has_listed: true,
            ..Self::default()
        };
        Some(Event::Reset(kind, Vec::new()))
    }

    /// A list is complete.
    fn complete(&mut self, kind: Kind) -> Vec<Event> {
        let Listing { objects, invalid } = self.listing.take().unwrap_or_default();
        let is_first = !std::mem::replace(&mut self.has_listed, true);
        if !is_first && !invalid.is_empty() {
            return self.complete_singly(kind, objects, invalid);
        }
        self.known = objects.iter().map(Object::key).collect();
        self.invalid.clear();
        let mut stand_ins = Vec::new();
        let mut reports = Vec::new();
        for (key, reason) in invalid {
            for event in self.invalid(kind, key, reason) {
                match event {
                    Event::Apply(object) => stand_ins.push(object),
                    other => reports.push(other),
                }
            }
        }
        let objects = objects.into_iter().chain(stand_ins).collect();
        let mut events = vec![Event::Reset(kind, objects)];
        events.append(&mut reports);
        events
    }

    /// A later list with invalid objects, as changes.
    fn complete_singly(
        &mut self,
        kind: Kind,
        objects: Vec<Object>,
        invalid: Vec<(ObjectKey, String)>,
    ) -> Vec<Event> {
        let listed: BTreeSet<ObjectKey> = objects
            .iter()
            .map(Object::key)
            .chain(invalid.iter().map(|(key, _)| key.clone()))
            .collect();
        let told = self.known.union(&self.invalid);
        let gone: Vec<ObjectKey> = told.filter(|key| !listed.contains(key)).cloned().collect();
        let mut events = Vec::with_capacity(listed.len() + gone.len());
        for object in objects {
            events.extend(self.apply(kind, Received::Good(object)));
        }
        for (key, reason) in invalid {
            events.extend(self.invalid(kind, key, reason));
        }
        for key in gone {
            events.extend(self.delete(kind, key));
        }
        events
    }

    fn apply(&mut self, kind: Kind, received: Received) -> Vec<Event> {
        match received {
            Received::Good(object) => {
                self.invalid.remove(&object.key());
                self.known.insert(object.key());
                vec![Event::Apply(object)]
            }
            Received::NotOurs(key) => self.delete(kind, key),
            Received::Invalid(key, reason) => self.invalid(kind, key, reason),
            Received::Nameless(reason) => {
                log_nameless(kind, &reason);
                Vec::new()
            }
        }
    }

    fn delete(&mut self, kind: Kind, key: ObjectKey) -> Vec<Event> {
        let was_invalid = self.invalid.remove(&key);
        match self.known.remove(&key) || was_invalid {
            true => vec![Event::Delete(kind, key)],
            false => Vec::new(),
        }
    }

    /// A policy of which no good state is known denies whatever it may have meant to.
    fn invalid(&mut self, kind: Kind, key: ObjectKey, reason: String) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.known.contains(&key)
            && let Some(object) = Object::unreadable(kind, &key, &reason)
        {
            self.known.insert(key.clone());
            events.push(Event::Apply(object));
        }
        self.invalid.insert(key.clone());
        events.push(Event::Invalid { kind, key, reason });
        events
    }
}

/// Converts an object; its Kubernetes form ends here, managedFields and all.
fn receive<K>(object: Narrow<K>) -> Received
where
    K: Resource<DynamicType = ()> + Convert,
{
    let key = match key_of(K::KIND, &object) {
        Ok(key) => key,
        Err(error) => return Received::Nameless(error.to_string()),
    };
    match object.0.map(Convert::convert) {
        Ok(Ok(Some(object))) => Received::Good(object),
        Ok(Ok(None)) => Received::NotOurs(key),
        Ok(Err(error)) => Received::Invalid(key, error.to_string()),
        Err(error) => Received::Invalid(
            key,
            format!("cannot be read: {}: correct the object", error.error),
        ),
    }
}

fn key_of<K>(kind: Kind, object: &Narrow<K>) -> Result<ObjectKey, ConvertError>
where
    K: Resource<DynamicType = ()>,
{
    let metadata: &ObjectMeta = match &object.0 {
        Ok(object) => object.meta(),
        Err(invalid) => &invalid.metadata,
    };
    object_key(kind, metadata)
}

fn log_nameless(kind: Kind, reason: &str) {
    tracing::warn!(%kind, reason, "object from the API server left out");
}
