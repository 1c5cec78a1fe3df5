//! Label selectors (`meta/v1` LabelSelector) in one canonical form.
//!
//! A selector is a sorted set of requirements that all have to hold. `matchLabels`
//! entries become `In` with one value, value lists are sorted and free of
//! duplicates: selectors that were written differently but mean the same by
//! these rules are equal, and equal selectors share one peer set in the kernel.
//!
//! Semantics are those of `k8s.io/apimachinery/pkg/labels`: `In` needs the key,
//! `NotIn` also matches where the key is absent, an empty selector matches
//! everything. What that package refuses is refused here as well; the caller
//! decides what a refused selector matches (nothing, for a peer).

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Labels;

/// Longest name part of a label key and longest label value, in bytes.
const MAX_NAME: usize = 63;

/// Longest prefix of a label key (a DNS subdomain), in bytes.
const MAX_PREFIX: usize = 253;

/// A conjunction of requirements on labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct LabelSelector {
    requirements: BTreeSet<Requirement>,
}

/// One condition on one label key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Requirement {
    key: String,
    condition: Condition,
}

/// What a requirement asks of the value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
enum Condition {
    /// The key is there and its value is one of these.
    In(BTreeSet<String>),
    /// The key is absent or its value is none of these.
    NotIn(BTreeSet<String>),
    /// The key is there.
    Exists,
    /// The key is absent.
    DoesNotExist,
}

/// Why a selector cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SelectorError {
    /// The operator is none of the four.
    #[error(
        "operator {operator:?} of key {key:?} is unknown: use In, NotIn, Exists or DoesNotExist"
    )]
    Operator {
        /// Key of the requirement.
        key: String,
        /// The operator as written.
        operator: String,
    },
    /// `In` or `NotIn` without values.
    #[error("operator {operator} of key {key:?} needs at least one value: add it to values")]
    NoValues {
        /// Key of the requirement.
        key: String,
        /// `In` or `NotIn`.
        operator: &'static str,
    },
    /// `Exists` or `DoesNotExist` with values.
    #[error("operator {operator} of key {key:?} takes no values: remove them")]
    Values {
        /// Key of the requirement.
        key: String,
        /// `Exists` or `DoesNotExist`.
        operator: &'static str,
    },
    /// The key is no label key.
    #[error(
        "{key:?} is no label key: write [prefix/]name, name of 1 to 63 letters, digits, '-', '_' \
         or '.' that begins and ends with a letter or digit, prefix a DNS subdomain"
    )]
    Key {
        /// The key as written.
        key: String,
    },
    /// The value is no label value.
    #[error(
        "value {value:?} of key {key:?} is no label value: use at most 63 letters, digits, '-', \
         '_' or '.' that begin and end with a letter or digit"
    )]
    Value {
        /// Key of the requirement.
        key: String,
        /// The value as written.
        value: String,
    },
}

impl LabelSelector {
    /// The selector that matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether this is [`LabelSelector::everything`].
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The selector whose requirements are these.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Self {
            requirements: requirements.into_iter().collect(),
        }
    }

    /// Whether all requirements hold for `labels`.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter()
    }
}

impl Requirement {
    /// The requirement of one `matchLabels` entry.
    ///
    /// # Errors
    /// Where `key` or `value` is no label key or value.
    pub fn equals(key: &str, value: &str) -> Result<Self, SelectorError> {
        Self::parse(key, "In", [value])
    }

    /// The requirement of one `matchExpressions` entry.
    ///
    /// # Errors
    /// Where the API server would refuse it: see [`SelectorError`].
    pub fn parse<'a>(
        key: &str,
        operator: &str,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SelectorError> {
        if !is_label_key(key) {
            return Err(SelectorError::Key { key: key.into() });
        }
        let values: BTreeSet<String> = values.into_iter().map(Into::into).collect();
        if let Some(value) = values.iter().find(|v| !is_label_value(v)) {
            return Err(SelectorError::Value {
                key: key.into(),
                value: value.clone(),
            });
        }
        let some = |operator| match values.is_empty() {
            true => Err(SelectorError::NoValues {
                key: key.into(),
                operator,
            }),
            false => Ok(values.clone()),
        };
        let none = |operator| match values.is_empty() {
            true => Ok(()),
            false => Err(SelectorError::Values {
                key: key.into(),
                operator,
            }),
        };
        let condition = match operator {
            "In" => Condition::In(some("In")?),
            "NotIn" => Condition::NotIn(some("NotIn")?),
            "Exists" => none("Exists").map(|()| Condition::Exists)?,
            "DoesNotExist" => none("DoesNotExist").map(|()| Condition::DoesNotExist)?,
            _ => {
                return Err(SelectorError::Operator {
                    key: key.into(),
                    operator: operator.into(),
                });
            }
        };
        Ok(Self {
            key: key.into(),
            condition,
        })
    }

    /// The label that it is about.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it holds for `labels`.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.condition {
            Condition::In(values) => value.is_some_and(|v| values.contains(v)),
            Condition::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Condition::Exists => value.is_some(),
            Condition::DoesNotExist => value.is_none(),
        }
    }
}

/// The notation of `kubectl`: `app=web,tier in (a,b),!legacy`, and `<none>` for the
/// selector without requirements, which matches everything.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("<none>");
        }
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let (operator, values) = match &self.condition {
            Condition::Exists => return write!(f, "{key}"),
            Condition::DoesNotExist => return write!(f, "!{key}"),
            Condition::In(values) => match values.first() {
                Some(only) if values.len() == 1 => return write!(f, "{key}={only}"),
                _ => ("in", values),
            },
            Condition::NotIn(values) => ("notin", values),
        };
        write!(f, "{key} {operator} (")?;
        for (i, value) in values.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{value}")?;
        }
        f.write_str(")")
    }
}

/// `[prefix/]name` of `apimachinery/pkg/util/validation` IsQualifiedName.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_subdomain)
}

/// `apimachinery/pkg/util/validation` IsValidLabelValue; the empty value is one.
fn is_label_value(value: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= MAX_NAME
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// RFC 1123 subdomain: dot-separated labels of lower case letters, digits and inner '-'.
fn is_dns_subdomain(prefix: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    prefix.len() <= MAX_PREFIX
        && prefix.split('.').all(|label| {
            let bytes = label.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

#[cfg(test)]
mod tests;
