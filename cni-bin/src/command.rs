//! The verbs.

pub mod add;
pub mod check;
pub mod del;
pub mod gc;
pub mod leases;
pub mod status;
pub mod teardown;

use std::fs;
use std::path::Path;
use std::time::Duration;

use dataplane::attachment::AttachmentKey;
use ipam::{ClaimError, Owner, StoreError};
use nix::errno::Errno;

use crate::agent::AgentError;
use crate::attachment::RecordError;
use crate::bridge::BridgeError;
use crate::nat::NatError;
use crate::netlink::NetlinkError;
use crate::netns::{Netns, NetnsError};
use crate::spec::result::Dns;
use crate::spec::{Code, Error, Target};
use crate::sysctl::SysctlError;

/// How long a request waits for others: less than any runtime waits for us.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens this process's own namespace and the one at `path`.
fn open_netns(path: &str) -> Result<(Netns, Netns), NetnsError> {
    Ok((Netns::own()?, Netns::open(path)?))
}

/// An error if the namespaces are the same: what ADD makes for the pod would
/// change the host. `CNI_NETNS_OVERRIDE` allows it.
fn refuse_own(home: &Netns, netns: &Netns, target: &Target) -> Result<(), Error> {
    if !netns.is_same(home) || target.own_netns_allowed {
        return Ok(());
    }
    let path = target.netns.as_deref().unwrap_or_default();
    let message = format!("CNI_NETNS: {path} is the network namespace of the plugin itself");
    Err(Error::new(Code::Netns, message))
}

/// Who holds the leases of an attachment.
pub(crate) fn owner(key: &AttachmentKey) -> Owner {
    Owner {
        container_id: key.container_id.clone(),
        ifname: Some(key.ifname.clone()),
    }
}

/// Name resolution out of a file.
pub(crate) fn resolv_conf(path: &Path) -> Result<Dns, Error> {
    let text = fs::read_to_string(path).map_err(|error| {
        let message = format!("ipam.resolvConf: cannot read {}: {error}", path.display());
        Error::new(Code::Io, message)
    })?;
    Ok(Dns::from_resolv_conf(&text))
}

impl From<NetnsError> for Error {
    fn from(error: NetnsError) -> Self {
        let code = match &error {
            NetnsError::Open { .. } | NetnsError::NotNetns { .. } => Code::Netns,
            NetnsError::Enter { .. } => Code::Kernel,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NetlinkError> for Error {
    fn from(error: NetlinkError) -> Self {
        let advice = match &error {
            NetlinkError::Refused { refusal, .. } if refusal.errno == Errno::EPERM => {
                ": the plugin needs CAP_NET_ADMIN"
            }
            _ => "",
        };
        Self::new(Code::Kernel, format!("{error}{advice}"))
    }
}

impl From<BridgeError> for Error {
    fn from(error: BridgeError) -> Self {
        match error {
            BridgeError::Netlink(error) => error.into(),
            BridgeError::OtherRole { .. } => Self::config(error.to_string()),
            error => Self::new(Code::Kernel, error.to_string()),
        }
    }
}

impl From<SysctlError> for Error {
    fn from(error: SysctlError) -> Self {
        Self::new(Code::Kernel, error.to_string())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Io { .. } => Code::Io,
            StoreError::Busy { .. } => Code::TryAgain,
        };
        Self::new(code, format!("ipam: {error}"))
    }
}

impl From<ClaimError> for Error {
    fn from(error: ClaimError) -> Self {
        let message = format!("ipam: {error}");
        match error {
            ClaimError::Store(error) => error.into(),
            ClaimError::Exhausted { .. } => Self::new(Code::Exhausted, message),
            ClaimError::Unavailable { .. } => Self::new(Code::AddressUnavailable, message),
        }
    }
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        let code = match &error {
            RecordError::Io { .. } => Code::Io,
            RecordError::Busy { .. } => Code::TryAgain,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NatError> for Error {
    fn from(error: NatError) -> Self {
        let code = match error {
            NatError::Taken { .. } => Code::AddressUnavailable,
            NatError::NoAddress(_) => Code::InvalidConfig,
            NatError::Lock { .. } => Code::Io,
            NatError::Busy(_) => Code::TryAgain,
            NatError::Records(error) => return error.into(),
            NatError::Sysctl(error) => return error.into(),
            NatError::Link(_) | NatError::Kernel(_) | NatError::Commit { .. } => Code::Kernel,
        };
        Self::new(code, error.to_string())
    }
}

impl From<AgentError> for Error {
    fn from(error: AgentError) -> Self {
        Self::new(Code::TryAgain, error.to_string())
    }
}
