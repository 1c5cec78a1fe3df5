//! The pods that are still in the network: the runtime needs configuration and plugins to end
//! them.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use dataplane::attachment::Attachment;

use crate::records;

/// At most so many are named.
const NAMED: usize = 5;
/// How often to look whether they are gone.
const PERIOD: Duration = Duration::from_millis(500);
/// How long the plugin may take from a pod's port to its record.
const DEL: Duration = Duration::from_secs(5);

/// What to do about them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stance {
    /// Remove nothing.
    Refuse,
    /// Wait until there are none.
    Wait,
    /// Go on.
    Ignore,
}

/// The attachments whose pods run.
pub(super) fn running(folder: &Path) -> Vec<Attachment> {
    let mut records = records::read(folder);
    records.retain(records::has_port);
    records
}

/// Returns when the pods are no reason to stop.
///
/// # Errors
/// With their names, where they are to refuse for.
pub(super) fn let_leave(folder: &Path, stance: Stance) -> anyhow::Result<()> {
    let mut told = String::new();
    loop {
        let pods = running(folder);
        if pods.is_empty() || stance == Stance::Ignore {
            break;
        }
        let names = names(&pods);
        let count = pods.len();
        if stance == Stance::Refuse {
            bail!(
                "{count} pods of this node are still in the network ({names}), and the runtime needs \
                 its configuration and the plugins to end them: drain the node first, or give --wait, \
                 or --force"
            );
        }
        if names != told {
            println!("waiting for {count} pods of this node to leave the network: {names}");
            told = names;
        }
        thread::sleep(PERIOD);
    }
    // One whose port is gone may still be on its way out.
    let deadline = Instant::now() + DEL;
    while stance != Stance::Ignore && !records::read(folder).is_empty() && Instant::now() < deadline
    {
        thread::sleep(PERIOD);
    }
    Ok(())
}

/// Some of their names, sorted: the same for the same pods.
fn names(pods: &[Attachment]) -> String {
    let name = |attachment: &Attachment| match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => attachment.key.to_string(),
    };
    let mut names: Vec<_> = pods.iter().map(name).collect();
    // The folder has no order of its own.
    names.sort_unstable();
    if pods.len() > NAMED {
        names.truncate(NAMED);
        names.push("...".to_owned());
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn names_are_the_same_in_whatever_order_the_folder_has() {
        let pod = |name: &str| {
            fixture::attachment("shop", name, &["10.88.0.2".parse().expect("an address")])
        };
        let mut pods: Vec<_> = ["b", "a", "f", "d", "c", "e"].map(pod).into();
        assert_eq!(names(&pods), "shop/a, shop/b, shop/c, shop/d, shop/e, ...");
        pods.reverse();
        assert_eq!(names(&pods[..2]), "shop/c, shop/e");
    }
}
