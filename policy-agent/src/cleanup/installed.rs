//! What was installed for the container runtime. Each function returns what it has removed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use cni_bin::bridge;
use cni_bin::link;
use cni_bin::nat::LOCK as NAT_LOCK;
use cni_bin::netlink::Socket;
use cni_bin::netlink::observed::Link;
use dataplane::attachment::records_dir;
use ipam::store::{Locked, Store};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use serde_json::Value;

use crate::install::PROGRAMS;
use crate::journal;
use crate::network::conflist;
use crate::sysctls;

/// The lock of IPAM is held for the time of one request.
const LOCK: Duration = Duration::from_secs(10);

/// Our network configuration, which a runtime reads.
pub(super) struct Conf {
    path: PathBuf,
    /// Name of the network.
    pub(super) network: String,
}

impl Conf {
    /// That in the folder, if there is one.
    ///
    /// # Errors
    /// If somebody else has written it.
    pub(super) fn find(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(conflist::FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let conf: Value = serde_json::from_str(&text).unwrap_or_default();
        let plugins = conf["plugins"].as_array();
        let is_ours =
            plugins.is_some_and(|plugins| plugins.iter().any(|p| p["type"] == PROGRAMS[0]));
        if !is_ours {
            bail!(
                "{} has no plugin of type {}: somebody else has written it",
                path.display(),
                PROGRAMS[0]
            );
        }
        let network = conf["name"].as_str().unwrap_or(conflist::NAME).to_owned();
        Ok(Some(Self { path, network }))
    }

    /// Hides it from runtimes, which look for three other extensions.
    pub(super) fn hide(&self) -> anyhow::Result<()> {
        fs::rename(&self.path, self.hidden())
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }

    /// Shows it again.
    pub(super) fn show(&self) -> anyhow::Result<()> {
        fs::rename(self.hidden(), &self.path)
            .with_context(|| format!("cannot put {} back", self.path.display()))
    }

    /// Removes the hidden one.
    pub(super) fn remove(&self) -> anyhow::Result<String> {
        remove(&self.hidden())?;
        Ok(format!("file {}", self.path.display()))
    }

    fn hidden(&self) -> PathBuf {
        self.path.with_extension("removed")
    }
}

/// What IPAM has of the network, unless there are leases: who has them is not known here. Those
/// are counted in an error.
pub(super) fn remove_leases(folder: &Path, network: &str) -> anyhow::Result<Option<String>> {
    let path = folder.join(network);
    if !path.is_dir() {
        return Ok(None);
    }
    let locked = Store::new(folder, network).lock_existing(LOCK)?;
    let leases = locked.as_ref().map_or(Ok(Vec::new()), Locked::leases)?;
    if !leases.is_empty() {
        bail!(
            "{} addresses are still leased in {}: remove the folder if nobody uses them",
            leases.len(),
            path.display()
        );
    }
    fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(Some(format!("folder {}", path.display())))
}

/// The objects that were written down.
pub(super) fn remove_state(folder: &Path) -> anyhow::Result<Option<String>> {
    let removed =
        journal::remove(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    Ok(removed.then(|| format!("objects in {}", folder.display())))
}

/// The folder of the socket and of the records, as far as nothing is in it.
pub(super) fn remove_run_folder(socket: &Path) -> anyhow::Result<()> {
    // What still has something in it, or is a mount, stays.
    if fs::remove_dir(records_dir(socket)).is_ok() {
        remove(&socket.with_file_name(NAT_LOCK))?;
        socket.parent().map(fs::remove_dir);
    }
    Ok(())
}

/// The plugins.
pub(super) fn remove_plugins(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in PROGRAMS {
        removed.extend(remove(&folder.join(name))?);
    }
    Ok(removed)
}

/// Bridges that the plugin has made and that have no port any more but those of the gateways
/// of their VLANs, which go with them.
pub(super) fn remove_bridges() -> anyhow::Result<Vec<String>> {
    let mut socket = Socket::open()?;
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = socket.dump("list links", &all)?;
    let links: Vec<Link> = answers.get(0).links()?;
    let gateways: Vec<(&Link, String)> = links
        .iter()
        .filter_map(|link| Some((link, bridge::gateway_port(link)?)))
        .collect();
    let gateway_of = |port: &Link| {
        let mut gateways = gateways.iter();
        gateways.find(|(_, name)| *name == port.name)
    };
    let mut removed = Vec::new();
    for bridge in links.iter().filter(|link| bridge::is_ours(link)) {
        let ports = links
            .iter()
            .filter(|link| link.master == Some(bridge.index));
        let of_gateways: Vec<_> = ports.clone().filter_map(gateway_of).collect();
        if of_gateways.len() < ports.count() {
            continue;
        }
        let gateways = of_gateways.iter().map(|(gateway, _)| ("link", *gateway));
        for (what, link) in gateways.chain([("bridge", bridge)]) {
            let action = format!("delete {what} {}", link.name);
            socket.ask(action, &link::removal(&link.name))?.all_done()?;
            removed.push(format!("{what} {}", link.name));
        }
    }
    Ok(removed)
}

/// The file of sysctls. Their values stay: others may rely on them by now.
pub(super) fn remove_sysctls(folder: &Path) -> anyhow::Result<Option<String>> {
    remove(&folder.join(sysctls::FILE))
}

/// A file.
pub(super) fn remove(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(format!("file {}", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}
