//! JSON as Go reads it, because the programs on the other side are written in Go.
//!
//! containerd sends keys such as `HostPort` where the convention says `hostPort`,
//! and Go does not mind: `encoding/json` compares keys without regard to case,
//! lets the last of several win, and takes `null` for absent. A derived
//! `Deserialize` does none of this, so configurations are read through
//! [`Object`] instead.

use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::{Code, Error};

/// Key whose value is handed on and therefore kept as it is, keys of equal
/// letters included.
const VERBATIM: &str = "prevResult";

/// Parses one JSON document. Of keys that differ in case only, the last remains.
pub fn parse(input: &[u8]) -> Result<Value, Error> {
    let folded: Folded = serde_json::from_slice(input).map_err(|error| {
        Error::new(
            Code::Decode,
            format!("standard input is not valid JSON: {error}"),
        )
    })?;
    Ok(folded.0)
}

/// The value of a key in any case; `null` is absent. An exact match is preferred.
pub fn get<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let same = |name: &String| name.eq_ignore_ascii_case(key);
    map.get(key)
        .or_else(|| {
            map.iter()
                .find(|(name, _)| same(name))
                .map(|(_, value)| value)
        })
        .filter(|value| !value.is_null())
}

/// A JSON object and where it is in the configuration, for messages.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Object<'a> {
    /// The whole configuration.
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            path: String::new(),
        }
    }

    /// An object found at `path`.
    pub fn at(path: String, value: &'a Value) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(unexpected(&path, "an object", other)),
        }
    }

    /// The path of one of its keys: `ipam.ranges`.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// A value, whatever it is.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        get(self.map, key)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(unexpected(&self.path(key), expected, value)),
        }
    }

    /// A string; an empty one is absent, as Go's zero value is.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let text = self.typed(key, "a string", Value::as_str)?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// A boolean.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A number from 0 to 2^32 - 1.
    pub fn number(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "a number from 0 to 4294967295", |value| {
            value.as_u64().and_then(|n| u32::try_from(n).ok())
        })
    }

    /// A number from 0 to 2^64 - 1.
    pub fn large_number(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(
            key,
            "a number from 0 to 18446744073709551615",
            Value::as_u64,
        )
    }

    /// An address.
    pub fn address(&self, key: &str) -> Result<Option<IpAddr>, Error> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        let address = text.parse();
        address.map(Some).map_err(|_| {
            Error::config(format!("{}: {text:?} is not an IP address", self.path(key)))
        })
    }

    /// An array; absent is empty.
    pub fn array(&self, key: &str) -> Result<&'a [Value], Error> {
        let array = self.typed(key, "an array", |value| value.as_array())?;
        Ok(array.map_or(&[], Vec::as_slice))
    }

    /// An array of strings; absent is empty.
    pub fn texts(&self, key: &str) -> Result<Vec<&'a str>, Error> {
        let text = |value: &'a Value| {
            value
                .as_str()
                .ok_or_else(|| unexpected(&self.path(key), "an array of strings", value))
        };
        self.array(key)?.iter().map(text).collect()
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<Self>, Error> {
        let path = self.path(key);
        self.value(key)
            .map(|value| Self::at(path, value))
            .transpose()
    }

    /// Whether it has no key.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

fn unexpected(path: &str, expected: &str, found: &Value) -> Error {
    Error::config(format!("{path}: expected {expected}, found {found}"))
}

/// A [`Value`] in whose objects no two keys differ in case only.
struct Folded(Value);

impl<'de> Deserialize<'de> for Folded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FoldedVisitor)
    }
}

struct FoldedVisitor;

impl<'de> Visitor<'de> for FoldedVisitor {
    type Value = Folded;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Folded, E> {
        Ok(Folded(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Folded, E> {
        Ok(Folded(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Folded, E> {
        Ok(Folded(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Folded, E> {
        Ok(Folded(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Folded, E> {
        Ok(Folded(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Folded, E> {
        Ok(Folded(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Folded, A::Error> {
        let mut array = Vec::new();
        while let Some(Folded(value)) = access.next_element()? {
            array.push(value);
        }
        Ok(Folded(Value::Array(array)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Folded, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = if key.eq_ignore_ascii_case(VERBATIM) {
                access.next_value()?
            } else {
                access.next_value::<Folded>()?.0
            };
            let other = map
                .keys()
                .find(|name| name.eq_ignore_ascii_case(&key))
                .cloned();
            if let Some(other) = other {
                map.remove(&other);
            }
            map.insert(key, value);
        }
        Ok(Folded(Value::Object(map)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn root(text: &str) -> Value {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_last_of_keys_that_differ_in_case_wins() {
        let value = root(r#"{"mtu":1,"MTU":2,"mtu":3,"ipam":{"A":[{"b":1,"B":2}],"a":null}}"#);
        assert_eq!(value, json!({"mtu": 3, "ipam": {"a": null}}));
        let value = root(r#"{"mtu":1,"mtu":3,"MTU":2}"#);
        assert_eq!(value, json!({"MTU": 2}));
    }

    #[test]
    fn a_previous_result_keeps_all_its_keys() {
        let value = root(r#"{"PrevResult":{"x":1,"X":2}}"#);
        assert_eq!(value, json!({"PrevResult": {"x": 1, "X": 2}}));
    }

    #[test]
    fn lookup_ignores_case_and_takes_null_for_absent() {
        let value = root(r#"{"RuntimeConfig":{"PortMappings":null,"Mac":"x"},"mtu":null}"#);
        let object = Object::root(value.as_object().unwrap());
        let runtime = object.object("runtimeConfig").unwrap().unwrap();
        assert_eq!(runtime.text("mac").unwrap(), Some("x"));
        assert!(runtime.value("portMappings").is_none());
        assert_eq!(object.number("mtu").unwrap(), None);
    }

    #[test]
    fn a_wrong_type_is_named_with_path_and_value() {
        let value = root(r#"{"ipam":{"dataDir":7},"mtu":-1,"ips":["a",1]}"#);
        let object = Object::root(value.as_object().unwrap());
        let ipam = object.object("ipam").unwrap().unwrap();
        let message = |error: Error| (error.code, error.message);
        assert_eq!(
            message(ipam.text("dataDir").unwrap_err()),
            (
                Code::InvalidConfig,
                "ipam.dataDir: expected a string, found 7".into()
            )
        );
        assert_eq!(
            message(object.number("mtu").unwrap_err()).1,
            "mtu: expected a number from 0 to 4294967295, found -1"
        );
        assert_eq!(
            message(object.texts("ips").unwrap_err()).1,
            "ips: expected an array of strings, found 1"
        );
    }

    #[test]
    fn what_is_not_json_is_a_decode_error() {
        let deep = "[".repeat(100_000);
        for bad in [
            "",
            "garbage",
            "{",
            r#"{"a":1}{"b":2}"#,
            "{\"a\":\"\u{1}\"}",
            &deep,
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert_eq!(error.code, Code::Decode, "{bad:.20}");
        }
        assert_eq!(parse(b"{\"a\":\"\xff\"}").unwrap_err().code, Code::Decode);
    }
}
