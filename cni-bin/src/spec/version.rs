//! The versions of the specification that we speak.

use std::fmt;

use serde_json::{Value, json};

use super::error::{Code, Error};
use super::json::{Object, get};

/// A version of the CNI specification. Only these exist for us: the match is
/// exact, as in the reference library.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// 0.3.0, still written by kube-router.
    V0_3_0,
    /// 0.3.1, still written by flannel.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: `ips[].version` is gone.
    V1_0_0,
    /// 1.1.0: GC, STATUS, and more fields in results.
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version with exactly this name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let found = Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text);
        found.ok_or_else(|| {
            let message = format!("cniVersion {text:?} is not supported");
            Error::new(Code::IncompatibleVersion, message).with_details([format!(
                "supported: {}",
                Self::ALL.map(Self::as_str).join(", ")
            )])
        })
    }

    /// The version of a configuration. One without `cniVersion` is 0.1.0.
    pub fn of(config: &Object<'_>) -> Result<Self, Error> {
        Self::parse(config.text("cniVersion")?.unwrap_or("0.1.0"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION. `input` is what standard input held, if anything.
pub fn answer(input: Option<&Value>) -> Value {
    let asked = input
        .and_then(Value::as_object)
        .and_then(|object| get(object, "cniVersion"))
        .and_then(Value::as_str);
    json!({
        "cniVersion": asked.unwrap_or(Version::NEWEST.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}
