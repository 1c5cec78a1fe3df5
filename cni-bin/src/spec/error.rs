//! Errors as the specification wants them: one JSON object on standard output.

use serde_json::{Value, json};

/// What kind of error it is. Numbers below 100 are the specification's; 8 is
/// the reference library's; from 100 on they are ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// 1: the configuration's `cniVersion` is not supported, or has no such verb.
    IncompatibleVersion,
    /// 2: a key or value that this plugin does not offer; the message names both.
    UnsupportedField,
    /// 4: a `CNI_*` variable is missing or malformed.
    InvalidEnvironment,
    /// 5: a file could not be read or written.
    Io,
    /// 6: standard input is not a JSON object.
    Decode,
    /// 7: the configuration is wrong.
    InvalidConfig,
    /// 8: `CNI_NETNS` is no network namespace, or the plugin's own.
    Netns,
    /// 11: not now; the same request may succeed later.
    TryAgain,
    /// 50: STATUS: the plugin cannot serve ADD.
    NotAvailable,
    /// 51: STATUS: as 50, and running pods may be cut off.
    LimitedConnectivity,
    /// 100: the kernel refused.
    Kernel,
    /// 101: no address left.
    Exhausted,
    /// 102: the attachment or its interface exists.
    Exists,
    /// 103: a requested address cannot be had.
    AddressUnavailable,
    /// 104: CHECK found a difference.
    Mismatch,
    /// That of the IPAM plugin which failed; 999 where it gave none, as the reference
    /// library says.
    Plugin(u32),
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::Netns => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Kernel => 100,
            Self::Exhausted => 101,
            Self::Exists => 102,
            Self::AddressUnavailable => 103,
            Self::Mismatch => 104,
            Self::Plugin(code) => code,
        }
    }
}

/// An error for the runtime.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Its kind.
    pub code: Code,
    /// One line: what is wrong with which value.
    pub message: String,
    /// What else there is to know; empty in most cases.
    pub details: Vec<String>,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Vec::new(),
        }
    }

    /// A key or value that is not offered.
    pub fn unsupported(key: &str, value: &Value, advice: &str) -> Self {
        let message = format!("{key}: {value} is not supported: {advice}");
        Self::new(Code::UnsupportedField, message)
    }

    /// A wrong configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, message)
    }

    /// Adds what else went wrong.
    #[must_use]
    pub fn with_details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// One error of several: the first gives the code and the message.
    pub fn collect(errors: impl IntoIterator<Item = Self>) -> Result<(), Self> {
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else {
            return Ok(());
        };
        Err(first.with_details(errors.map(|error| error.message)))
    }

    /// The object for standard output.
    pub fn to_json(&self, cni_version: &str) -> Value {
        let mut object = json!({
            "cniVersion": cni_version,
            "code": self.code.number(),
            "msg": self.message,
        });
        if !self.details.is_empty() {
            object["details"] = self.details.join("; ").into();
        }
        object
    }
}
