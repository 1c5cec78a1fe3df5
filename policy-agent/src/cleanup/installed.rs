//! What was installed for the container runtime. Each function returns what it has removed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, bail};
use cni_bin::bridge;
use cni_bin::link;
use cni_bin::netlink::Socket;
use cni_bin::netlink::observed::Link;
use dataplane::attachment::Attachment;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use serde_json::Value;

use crate::install::PROGRAMS;
use crate::network::conflist;
use crate::sysctls;

/// At most so many pods are named.
const NAMED: usize = 5;

/// The network configuration, if it is of our plugin.
pub(super) fn remove_conf(folder: &Path) -> anyhow::Result<Option<String>> {
    let path = folder.join(conflist::FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let conf: Value = serde_json::from_str(&text).unwrap_or_default();
    let plugins = conf["plugins"].as_array();
    let is_ours = plugins.is_some_and(|plugins| plugins.iter().any(|p| p["type"] == PROGRAMS[0]));
    if !is_ours {
        bail!(
            "{} has no plugin of type {}: somebody else has written it",
            path.display(),
            PROGRAMS[0]
        );
    }
    remove(&path)
}

/// An error where there are pods: the runtime cannot remove them without the plugins.
pub(super) fn refuse_with_pods<'a>(
    running: impl Iterator<Item = &'a Attachment>,
) -> anyhow::Result<()> {
    let mut names: Vec<_> = running
        .map(|attachment| match &attachment.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => attachment.key.to_string(),
        })
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let count = names.len();
    names.truncate(NAMED);
    let more = if count > NAMED { ", ..." } else { "" };
    bail!(
        "{count} pods of this node are still in the network ({}{more}), and the runtime needs the \
         plugins to remove them: delete or drain them first; they come back in the next network",
        names.join(", ")
    );
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
