//! hostPorts and masquerading.
//!
//! Where an agent runs it writes their elements, with the rest of the attachment. Where there
//! is none, this does: it makes the kernel hold what the attachments of the node want, all of
//! them, as their records say. So whatever was left by a killed request or taken by somebody
//! else is mended by the next one.
//!
//! One lock per node is held while hostPorts are given to an attachment and while the kernel
//! is made to agree. Nothing else is locked behind it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::attachment::{Attachment, AttachmentKey, PortMapping};
use dataplane::kernel::{CommitError, Kernel, KernelError};
use dataplane::layout::{INET, hostports, masquerade, standalone};
use dataplane::netlink::{HostPortFlows, Nftables};
use dataplane::object::IpFamily;
use ipam::lock::lock_within;
use nix::ifaddrs::getifaddrs;

use crate::attachment::{RecordError, Records};
use crate::link;
use crate::netlink::NetlinkError;
use crate::sysctl::{self, SysctlError};

/// The file beside the agent's socket whose lock [`NodeLock`] is.
pub const LOCK: &str = "nat.lock";

/// Why hostPorts or masquerading could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// Another pod has it.
    #[error(
        "hostPort {wanted} is taken: {other} has {theirs}: use another port, or DEL that container first"
    )]
    Taken {
        /// What was asked for.
        wanted: PortMapping,
        /// Who has it.
        other: String,
        /// What they have.
        theirs: PortMapping,
    },
    /// The pod has no address that it could lead to.
    #[error(
        "hostPort {0}: the pod has no address of the family of hostIP: leave hostIP out, or give the network a range of that family"
    )]
    NoAddress(PortMapping),
    /// The lock cannot be had.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other requests hold the lock.
    #[error("other requests hold {} for too long", .0.display())]
    Busy(PathBuf),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// Whether an attachment has its port cannot be told.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel refuses the tables.
    #[error("cannot write {}: {source}", *INET)]
    Commit {
        /// Why.
        source: Box<CommitError>,
    },
    /// A setting could not be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// The lock on this node's hostPorts, as long as it lives.
#[derive(Debug)]
pub struct NodeLock {
    records: Records,
    _file: File,
}

/// Whether the attachment has anything to do with this module.
pub fn concerns(attachment: &Attachment) -> bool {
    !attachment.port_mappings.is_empty() || !attachment.masquerade_beyond.is_empty()
}

/// An error unless each mapping has an address of the pod to lead to.
pub fn check_families(attachment: &Attachment) -> Result<(), NatError> {
    let leads_nowhere = |mapping: &&PortMapping| {
        let mut ips = attachment.ips.iter();
        !ips.any(|ip| mapping.is_of(IpFamily::of(*ip)))
    };
    match attachment.port_mappings.iter().find(leads_nowhere) {
        Some(mapping) => Err(NatError::NoAddress(*mapping)),
        None => Ok(()),
    }
}

impl NodeLock {
    /// Takes the lock of the node that the agent's socket is on.
    pub fn take(agent_socket: &Path, timeout: Duration) -> Result<Self, NatError> {
        let path = agent_socket.with_file_name(LOCK);
        let open = || {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let locked = open().and_then(|file| Ok((lock_within(&file, timeout)?, file)));
        match locked {
            Ok((true, file)) => Ok(Self {
                records: Records::beside(agent_socket),
                _file: file,
            }),
            Ok((false, _)) => Err(NatError::Busy(path)),
            Err(source) => Err(NatError::Lock { path, source }),
        }
    }

    /// An error if another attachment has one of the mappings. One whose port is gone has
    /// lost them, unless it is being made just now.
    pub fn refuse_taken(
        &self,
        key: &AttachmentKey,
        mappings: &[PortMapping],
    ) -> Result<(), NatError> {
        if mappings.is_empty() {
            return Ok(());
        }
        for other in self
            .records
            .list()?
            .iter()
            .filter(|other| other.key != *key)
        {
            for theirs in &other.port_mappings {
                if let Some(wanted) = mappings.iter().find(|wanted| wanted.overlaps(theirs))
                    && self.is_alive(other)
                {
                    let name = other.owner_name();
                    return Err(NatError::Taken {
                        wanted: *wanted,
                        other: match &other.pod {
                            Some(_) => format!("pod {name}"),
                            None => format!("container {name}"),
                        },
                        theirs: *theirs,
                    });
                }
            }
        }
        Ok(())
    }

    fn is_alive(&self, attachment: &Attachment) -> bool {
        let is_locked = || {
            let opened = self.records.open(&attachment.key, Duration::ZERO);
            matches!(opened, Err(RecordError::Busy { .. }))
        };
        link::exists(&attachment.host_ifname).unwrap_or(true) || is_locked()
    }

    /// Makes the kernel hold what the attachments want whose ports exist. For nodes without
    /// an agent.
    pub fn write(&self) -> Result<(), NatError> {
        let mut attachments = Vec::new();
        for attachment in self.records.list()? {
            if concerns(&attachment) && link::exists(&attachment.host_ifname)? {
                attachments.push(attachment);
            }
        }
        let mut kernel = Nftables::open()?;
        let (observed, is_shared) = match kernel.dump_part(&INET, &standalone::part())? {
            Some((table, is_shared)) => (Some(table), is_shared),
            None => (None, false),
        };
        let update = standalone::update(observed, is_shared, &attachments);
        kernel.commit(&update).map_err(|source| NatError::Commit {
            source: Box::new(source),
        })
    }

    /// Lets packets with a source in 127.0.0.0/8 out to the attachment, so that this node
    /// reaches its hostPorts there. To be called when the rules are in the kernel, which keep
    /// the pods from the node's own 127.0.0.0/8 in return.
    pub fn open_loopback(&self, attachment: &Attachment) -> Result<(), NatError> {
        if has_loopback(attachment) {
            sysctl::set(&route_localnet(attachment), "1")?;
        }
        Ok(())
    }

    /// Takes the setting back when the last attachment that needs it goes: nothing guards it
    /// once the tables are gone.
    pub fn close_loopback(&self, attachment: &Attachment) -> Result<(), NatError> {
        if !has_loopback(attachment) {
            return Ok(());
        }
        let setting = route_localnet(attachment);
        let needs_it = |other: &Attachment| {
            other.key != attachment.key
                && has_loopback(other)
                && route_localnet(other) == setting
                && self.is_alive(other)
        };
        if !self.records.list()?.iter().any(needs_it) {
            // The interface may have gone.
            sysctl::set_if_present(&setting, "0")?;
        }
        Ok(())
    }
}

fn has_loopback(attachment: &Attachment) -> bool {
    let mut mappings = attachment.port_mappings.iter();
    attachment.ips.iter().any(IpAddr::is_ipv4) && mappings.any(PortMapping::is_on_loopback)
}

/// That of the interface by which the node reaches the pod.
fn route_localnet(attachment: &Attachment) -> String {
    let gateway = attachment.undo.vlan_gateway.as_ref();
    let interface = gateway.or(attachment.bridge.as_ref());
    let interface = interface.unwrap_or(&attachment.host_ifname);
    format!("ipv4/conf/{interface}/route_localnet")
}

/// Ends flows that would go past the hostPorts that the attachment has got.
pub fn forget_flows_past(attachment: &Attachment) -> Result<(), NatError> {
    if !has_lasting_flows(attachment) {
        return Ok(());
    }
    forget(&HostPortFlows::Acquired {
        mappings: attachment.port_mappings.clone(),
        pod: attachment.ips.clone(),
        host: host_addresses(),
    })
}

/// Ends flows that lead to the attachment by its hostPorts.
pub fn forget_flows_to(attachment: &Attachment) -> Result<(), NatError> {
    if !has_lasting_flows(attachment) {
        return Ok(());
    }
    forget(&HostPortFlows::Released {
        mappings: attachment.port_mappings.clone(),
        pod: attachment.ips.clone(),
    })
}

fn forget(flows: &HostPortFlows) -> Result<(), NatError> {
    Nftables::open()?.forget_host_port_flows(flows)?;
    Ok(())
}

fn has_lasting_flows(attachment: &Attachment) -> bool {
    let mut mappings = attachment.port_mappings.iter();
    mappings.any(|mapping| mapping.protocol.outlives_endpoints())
}

/// The addresses of this host's interfaces; none where they cannot be listed, and old flows
/// then last until their clients pause.
fn host_addresses() -> BTreeSet<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| interface.address);
    addresses
        .filter_map(
            |address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
                (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
                _ => None,
            },
        )
        .collect()
}

/// What the kernel lacks of what the attachment wants, a line each.
pub fn differences(attachment: &Attachment) -> Result<Vec<String>, NatError> {
    if !concerns(attachment) {
        return Ok(Vec::new());
    }
    let found = Nftables::open()?.dump_part(&INET, &standalone::part())?;
    let Some((table, _)) = found else {
        return Ok(vec![format!("table {} does not exist", *INET)]);
    };
    let wanted = standalone::ruleset([attachment]);
    let chains = wanted.tables[&*INET].chains.keys();
    let mut differences: Vec<String> = chains
        .filter(|name| {
            table
                .chains
                .get(*name)
                .is_none_or(|chain| chain.rules.is_empty())
        })
        .map(|name| format!("chain {name} of table {} is missing or empty", *INET))
        .collect();
    let own = hostports::elements(attachment).into_iter();
    for (set, key, element) in own.chain(masquerade::elements(attachment)) {
        let found = table.sets.get(set).and_then(|set| set.elements.get(&key));
        if found.is_none_or(|found| found.value != element.value) {
            let wanted = &wanted.tables[&*INET].sets[set].spec;
            let key = wanted.key.print(&key);
            differences.push(match found {
                None => format!("{set} of table {} has no element {key}", *INET),
                Some(_) => format!("{set} of table {} leads elsewhere for {key}", *INET),
            });
        }
    }
    Ok(differences)
}
