//! Rules of others in this network namespace that Services and policies cannot work with:
//! reported, never fought.
//!
//! `accept` in one table does not keep another from dropping, and of two that translate a
//! packet the first wins. So left-overs of kube-proxy and base chains that drop by default
//! are told with what to do about them. Rules of iptables show up as nftables tables
//! (`ip filter`, `ip nat`) where its nft variant made them.

use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::time::Duration;

use dataplane::kernel::{Kernel, KernelError};
use dataplane::layout;
use dataplane::netlink::{ForeignChain, Nftables};
use dataplane::object::{Family, Hook, TableId};

use crate::complaint::Complaint;
use crate::runtime::Mail;

/// How often to look; only where somebody has changed something is more asked for.
const PERIOD: Duration = Duration::from_secs(5);

/// Who these complaints are from.
const FROM: &str = "foreign";

/// Why a base chain that drops is told.
pub(crate) const DROP_POLICY: &str = "ForeignDropPolicy";

/// The tables of kube-proxy in nftables mode.
pub(crate) fn kube_proxy_tables() -> [TableId; 2] {
    [Family::Ip, Family::Ip6].map(|family| TableId::new(family, "kube-proxy"))
}

/// Looks until nobody listens any more. `serves`: Services are this agent's to serve, and
/// rules of another proxy are in its way.
pub async fn watch(mail: Sender<Mail>, serves: bool) {
    let mut told = Vec::new();
    let mut generation = None;
    let mut is_broken = false;
    loop {
        let looked = tokio::task::spawn_blocking(move || look(generation)).await;
        match looked {
            Ok(Ok((seen, chains))) => {
                generation = Some(seen);
                is_broken = false;
                let complaints =
                    chains.map_or_else(|| told.clone(), |chains| findings(&chains, serves));
                if complaints != told {
                    for complaint in complaints.iter().filter(|new| !told.contains(new)) {
                        tracing::warn!("{}", complaint.message);
                    }
                    told.clone_from(&complaints);
                    if mail.send(Mail::Complaints(FROM, complaints)).is_err() {
                        return;
                    }
                }
            }
            Ok(Err(error)) if !std::mem::replace(&mut is_broken, true) => {
                tracing::warn!(%error, "the tables of others cannot be listed");
            }
            Ok(Err(_)) => {}
            // The look has panicked.
            Err(_) => return,
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The chains, where anything has changed since that generation of the ruleset.
fn look(before: Option<u32>) -> Result<(u32, Option<Vec<ForeignChain>>), KernelError> {
    let mut kernel = Nftables::open()?;
    let generation = kernel.generation()?;
    if before == Some(generation) {
        return Ok((generation, None));
    }
    Ok((generation, Some(kernel.chains()?)))
}

/// What is wrong with these chains.
pub(crate) fn findings(chains: &[ForeignChain], serves: bool) -> Vec<Complaint> {
    let own = layout::tables();
    let kube_proxy = kube_proxy_tables();
    let mut left_over = BTreeSet::new();
    let mut iptables = BTreeSet::new();
    let mut complaints = Vec::new();
    let mut complain = |reason, message| {
        complaints.push(Complaint {
            about: None,
            uid: None,
            reason,
            message,
        });
    };
    for chain in chains.iter().filter(|chain| !own.contains(&chain.table)) {
        if kube_proxy.contains(&chain.table) {
            left_over.insert(&chain.table);
        } else if chain.name.starts_with("KUBE-SERVICES")
            || chain.name.starts_with("KUBE-NODEPORTS")
        {
            iptables.insert(&chain.table);
        } else if chain.drops && matches!(chain.hook, Some(Hook::Forward | Hook::Input)) {
            let hook = chain.hook.map_or("", Hook::name);
            complain(
                DROP_POLICY,
                format!(
                    "chain {} of table {} drops what its rules do not accept ({hook} hook), \
                     whatever is allowed here: accept the traffic of pods and Services there, or \
                     set its policy to accept",
                    chain.name, chain.table
                ),
            );
        }
    }
    if !serves {
        return complaints;
    }
    for table in left_over {
        complain(
            "KubeProxyLeftOvers",
            format!(
                "table {table} is kube-proxy's, and serves Services as well: stop kube-proxy, then \
                 run `trammel-agent cleanup --kube-proxy`"
            ),
        );
    }
    for table in iptables {
        complain(
            "KubeProxyLeftOvers",
            format!(
                "table {table} has kube-proxy's chains KUBE-*, which serve Services as well: stop \
                 kube-proxy, then run `kube-proxy --cleanup`"
            ),
        );
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: (Family, &str), name: &str, hook: Option<Hook>, drops: bool) -> ForeignChain {
        ForeignChain {
            table: TableId::new(table.0, table.1),
            name: name.to_owned(),
            hook,
            drops,
        }
    }

    /// services.md 52, 53.
    #[test]
    fn what_others_have_is_told_with_what_to_do() {
        let ours = (Family::Inet, "trammel");
        for (found, expected) in [
            (chain(ours, "forward", Some(Hook::Forward), true), None),
            (
                chain(
                    (Family::Ip, "nat"),
                    "POSTROUTING",
                    Some(Hook::Postrouting),
                    false,
                ),
                None,
            ),
            (
                chain((Family::Ip, "filter"), "OUTPUT", Some(Hook::Output), true),
                None,
            ),
            (
                chain((Family::Ip, "filter"), "FORWARD", Some(Hook::Forward), true),
                Some("set its policy to accept"),
            ),
            (
                chain((Family::Ip6, "kube-proxy"), "services", None, false),
                Some("cleanup --kube-proxy"),
            ),
            (
                chain((Family::Ip, "nat"), "KUBE-SERVICES", None, false),
                Some("kube-proxy --cleanup"),
            ),
        ] {
            let told = findings(std::slice::from_ref(&found), true);
            let messages: Vec<_> = told.iter().map(|told| told.message.as_str()).collect();
            match expected {
                None => assert_eq!(messages, Vec::<&str>::new(), "{found:?}"),
                Some(part) => {
                    assert!(
                        messages.len() == 1 && messages[0].contains(part),
                        "{messages:?}"
                    );
                    assert!(
                        messages[0].contains(&found.table.to_string()),
                        "{messages:?}"
                    );
                }
            }
        }
    }
}
