//! Objects as the API server sends them, cut to the fields that are used while they are
//! read.
//!
//! Most of what a list of pods or nodes consists of is of no use here: managedFields,
//! volumes, environments, images. It is skipped in the text and never becomes a value, so a
//! page of a list costs little beyond its bytes. What of a kind is used its conversion says
//! beside the code that uses it ([`Convert::FIELDS`]).
//!
//! An object that cannot be read must not stop its list or watch: it becomes an error with
//! the object's name.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use proxy::weights;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess};
use serde::de::{SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::convert::Convert;

/// Which fields of a value are read. Lists are transparent: it holds for each element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fields {
    /// All, of whatever is below.
    All,
    /// Not even the value itself.
    None,
    /// These, each cut further.
    Only(&'static [(&'static str, Self)]),
    /// All, these cut further.
    AllBut(&'static [(&'static str, Self)]),
}

/// What watches and conversions use of `metadata`.
pub const METADATA: Fields = Fields::Only(&[
    ("name", Fields::All),
    ("namespace", Fields::All),
    ("uid", Fields::All),
    ("resourceVersion", Fields::All),
    ("labels", Fields::All),
    (
        "annotations",
        Fields::Only(&[(weights::ANNOTATION, Fields::All)]),
    ),
    ("creationTimestamp", Fields::All),
    ("deletionTimestamp", Fields::All),
]);

/// An object cut to [`Convert::FIELDS`], or why it cannot be read.
#[derive(Clone, Debug)]
pub struct Narrow<K>(pub Result<K, Unreadable>);

/// An object that cannot be read.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Why.
    pub error: String,
    /// As far as it can be read.
    pub metadata: ObjectMeta,
}

impl<'de, K: Convert + DeserializeOwned> Deserialize<'de> for Narrow<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Cut(&K::FIELDS).deserialize(deserializer)?;
        // With the path of the field that is wrong.
        let object: Result<K, _> = serde_path_to_error::deserialize(&value);
        Ok(Self(object.map_err(|error| Unreadable {
            error: error.to_string(),
            metadata: ObjectMeta::deserialize(&value["metadata"]).unwrap_or_default(),
        })))
    }
}

impl<K: Resource> Resource for Narrow<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(unreadable) => &unreadable.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(unreadable) => &mut unreadable.metadata,
        }
    }
}

/// Reads a value with these fields.
#[derive(Clone, Copy)]
struct Cut(&'static Fields);

impl<'de> DeserializeSeed<'de> for Cut {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            Fields::All => Value::deserialize(deserializer),
            Fields::None | Fields::Only(_) | Fields::AllBut(_) => {
                deserializer.deserialize_any(self)
            }
        }
    }
}

impl<'de> Visitor<'de> for Cut {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (fields, keeps_others) = match self.0 {
            Fields::All => (&[][..], true),
            Fields::None => (&[][..], false),
            Fields::Only(fields) => (*fields, false),
            Fields::AllBut(fields) => (*fields, true),
        };
        let mut object = Map::new();
        while let Some(key) = map.next_key_seed(Key {
            fields,
            keeps_others,
        })? {
            let (name, fields) = match key {
                Named::Known(name, fields) => (name.to_owned(), fields),
                Named::Other(name) => (name, &Fields::All),
                Named::Skipped => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            object.insert(name, map.next_value_seed(Cut(fields))?);
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    // Anything else is of the wrong type, which the object's own type says better.

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }
}

/// Reads the name of a field, which becomes a string of its own only if it is kept.
struct Key {
    fields: &'static [(&'static str, Fields)],
    keeps_others: bool,
}

enum Named {
    Known(&'static str, &'static Fields),
    Other(String),
    Skipped,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Named;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Named, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Named;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Named, E> {
        let known = self.fields.iter().find(|(known, _)| *known == name);
        Ok(match known {
            Some((_, Fields::None)) => Named::Skipped,
            Some((name, fields)) => Named::Known(name, fields),
            None if self.keeps_others => Named::Other(name.to_owned()),
            None => Named::Skipped,
        })
    }
}

/// For tests of conversions: they get an object as it comes through this.
#[cfg(test)]
pub(crate) fn cut<K: Convert>(object: &Value) -> Value {
    Cut(&K::FIELDS)
        .deserialize(object)
        .expect("a value has no wrong types")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    use super::*;
    use crate::source::convert::ClusterNetworkPolicy;

    const PART: Fields = Fields::Only(&[
        ("a", Fields::All),
        ("b", Fields::Only(&[("c", Fields::All)])),
        ("d", Fields::AllBut(&[("e", Fields::None)])),
    ]);

    fn cut_text(text: &str) -> Value {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Cut(&PART).deserialize(&mut deserializer).expect("JSON")
    }

    #[test]
    fn what_is_not_named_is_left_out_in_lists_too() {
        let text = r#"{"x": {"deep": [1, {"y": "z"}]}, "a": {"any": [1, -2, 0.5, null, true, "s"]},
            "b": [{"c": 1, "x": 2}, {"x": 3}, 7], "d": {"e": {"gone": 1}, "f": 2}}"#;
        let expected = json!({"a": {"any": [1, -2, 0.5, null, true, "s"]},
            "b": [{"c": 1}, {}, 7], "d": {"f": 2}});
        assert_eq!(cut_text(text), expected);
        let value: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(Cut(&PART).deserialize(&value).expect("the same"), expected);
        assert_eq!(cut_text("null"), Value::Null);
    }

    #[test]
    fn escaped_names_are_read() {
        assert_eq!(
            cut_text(r#"{"\u0061": "\u00e4\n", "b\"": 1}"#),
            json!({"a": "ä\n"})
        );
    }

    #[test]
    fn the_larger_part_of_a_pod_is_not_read() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "labels": {"app": "web"}, "annotations": {"a": "b", "trammel.io/weight": "3"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]},
            "spec": {"nodeName": "n1", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "A"}],
                    "ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"podIP": "10.0.0.1", "hostIP": "192.0.2.1",
                "containerStatuses": [{"name": "c", "restartCount": 1}]}});
        let Narrow::<Pod>(Ok(pod)) = serde_json::from_value(pod).expect("any object") else {
            panic!("a pod");
        };
        let weight = [("trammel.io/weight".to_owned(), "3".to_owned())];
        assert_eq!(
            (pod.metadata.annotations, pod.metadata.managed_fields),
            (Some(weight.into()), None)
        );
        assert_eq!(pod.metadata.resource_version.as_deref(), Some("7"));
        let spec = pod.spec.expect("a spec");
        assert_eq!(
            (spec.volumes, spec.node_name.as_deref()),
            (None, Some("n1"))
        );
        assert_eq!(
            (&spec.containers[0].env, spec.containers[0].image.as_deref()),
            (&None, None)
        );
        assert!(spec.containers[0].ports.is_some());
        assert_eq!(pod.status.expect("a status").container_statuses, None);
    }

    #[test]
    fn an_object_that_cannot_be_read_has_its_name() {
        let broken = json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"containers": "none"}});
        let narrow: Narrow<Pod> = serde_json::from_value(broken).expect("any object");
        assert_eq!(narrow.meta().name.as_deref(), Some("web"));
        let error = narrow.0.expect_err("no list").error;
        assert!(
            error.contains("none") && error.contains("spec.containers"),
            "{error}"
        );
        let nameless: Narrow<Node> = serde_json::from_value(json!({"metadata": 7})).expect("any");
        assert_eq!(nameless.meta().name, None);
    }

    #[test]
    fn managed_fields_of_no_kind_are_read() {
        let object = json!({"metadata": {"name": "x", "managedFields": [1]}, "spec": {}});
        for cut in [
            cut::<Pod>(&object),
            cut::<Node>(&object),
            cut::<ClusterNetworkPolicy>(&object),
        ] {
            assert_eq!(cut["metadata"], json!({"name": "x"}));
        }
    }
}
