//! What of the layout there is without an agent: hostPorts and masquerading, each only where
//! a pod wants it. No policy: its chains are closed by default, and nobody would open them.
//!
//! The plugin, and `cleanup` after it has removed the rest, make the tables so. A stopped
//! agent leaves its tables as they are: then this is a part of them and the rest is not
//! touched.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::attachment::Attachment;
use crate::desired::Desired;
use crate::diff::diff;
use crate::layout::{INET, hostports, masquerade};
use crate::object::{Ruleset, Table};
use crate::transaction::Transaction;

/// The part of the tables that can be without an agent, empty: what an observer has to look
/// at.
pub fn part() -> Table {
    let mut desired = Desired::new();
    desired.table(&INET);
    hostports::install(&mut desired);
    masquerade::install(&mut desired);
    desired.ruleset().tables[&*INET].clone()
}

/// The tables for these attachments, without an agent. Of two that claim the same hostPort
/// the later one gets it.
pub fn ruleset<'a>(attachments: impl IntoIterator<Item = &'a Attachment>) -> Ruleset {
    wanted(attachments, None)
}

/// The transaction after which these attachments have what they want.
///
/// `observed` is what there is of [`part`]; `None`: there is no table. `is_shared`: the table
/// holds more than that. It is then an agent's, which is not running: all of the part stays
/// in it, with the networks in which it kept addresses. Those of other nodes only it knows.
pub fn update<'a>(
    observed: Option<Table>,
    is_shared: bool,
    attachments: impl IntoIterator<Item = &'a Attachment>,
) -> Transaction {
    let observed = observed.map(|table| (INET.clone(), table));
    let observed = Ruleset {
        tables: observed.into_iter().collect(),
    };
    let agents = is_shared.then(|| masquerade::inside_of(&observed));
    let wanted = wanted(attachments, agents);
    diff(&observed, &wanted)
}

/// With the networks of an agent's table: all of the part.
fn wanted<'a>(
    attachments: impl IntoIterator<Item = &'a Attachment>,
    agents: Option<BTreeSet<IpNet>>,
) -> Ruleset {
    let mut elements = BTreeMap::new();
    let whole = agents.is_some();
    let mut pod_networks = agents.unwrap_or_default();
    let (mut host_ports, mut masquerades) = (whole, whole);
    for attachment in attachments {
        let (ports, addresses) = (
            hostports::elements(attachment),
            masquerade::elements(attachment),
        );
        host_ports |= !ports.is_empty();
        masquerades |= !addresses.is_empty();
        pod_networks.extend(attachment.masquerade_beyond.iter().copied());
        for (set, key, element) in ports.into_iter().chain(addresses) {
            elements.insert((set, key), element);
        }
    }
    let mut desired = Desired::new();
    if host_ports || masquerades {
        desired.table(&INET);
    }
    if host_ports {
        hostports::install(&mut desired);
    }
    if masquerades {
        masquerade::install(&mut desired);
        masquerade::want_inside(&mut desired, &pod_networks);
    }
    for ((set, key), element) in elements {
        desired.insert(&INET, set, key, element);
    }
    desired.ruleset().clone()
}

#[cfg(test)]
mod tests;
