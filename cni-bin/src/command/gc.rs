//! GC.

use std::collections::BTreeSet;

use dataplane::attachment::AttachmentKey;
use ipam::{Owner, Store};

use super::LOCK_TIMEOUT;
use super::teardown::{Configured, tear_down};
use crate::attachment::Records;
use crate::delegate::Delegate;
use crate::reap::has_unrecorded_pod;
use crate::spec::config::ValidAttachment;
use crate::spec::{Document, Environment, Error, Ipam, Verb};

/// Removes the attachments of this network that the runtime does not list: those
/// that have a record, and those of which only addresses are left. One that
/// cannot be removed does not keep the others.
pub fn gc(document: &Document, environment: &Environment) -> Result<(), Error> {
    let valid: BTreeSet<ValidAttachment> = document.valid_attachments()?.into_iter().collect();
    let records = Records::beside(&document.agent_socket);
    let configured = Configured {
        document,
        environment,
        netns: None,
    };
    let remove = |key: &AttachmentKey| match records.open(key, LOCK_TIMEOUT) {
        Ok(record) => {
            tear_down(&document.agent_socket, Some(configured), key, record).into_errors()
        }
        Err(error) => vec![error.into()],
    };
    let mut errors = Vec::new();
    for attachment in records.list()? {
        let key = attachment.key;
        if key.network == document.network && !valid.contains(&entry(&key)) {
            errors.extend(remove(&key));
        }
    }
    let remains = match &document.ipam {
        Ipam::InProcess => free_unlisted(document, &records, &valid),
        Ipam::Plugin(name) => Delegate::find(name, document, environment)
            .and_then(|delegate| delegate.forward(Verb::Gc))
            .map(|()| Vec::new()),
        Ipam::Nobody => Ok(Vec::new()),
    };
    match remains {
        Ok(remains) => errors.extend(remains.iter().flat_map(remove)),
        Err(error) => errors.push(error),
    }
    Error::collect(errors)
}

fn entry(key: &AttachmentKey) -> ValidAttachment {
    ValidAttachment {
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
    }
}

/// Leases without a record: of host-local, or of an ADD that was killed between
/// the two. Damaged ones that no record accounts for are put aside, unless the record that
/// might is damaged too and its pod runs. Returns the attachments of which there is more than
/// leases: their records are damaged.
fn free_unlisted(
    document: &Document,
    records: &Records,
    valid: &BTreeSet<ValidAttachment>,
) -> Result<Vec<AttachmentKey>, Error> {
    let store = Store::new(&document.data_dir, &document.network);
    let Some(locked) = store.lock_existing(LOCK_TIMEOUT)? else {
        return Ok(Vec::new());
    };
    let mut remains = BTreeSet::new();
    // Read under the lock: an ADD that got its addresses before us has its record.
    let recorded = records.list()?;
    for lease in locked.leases()? {
        if recorded.iter().any(|attachment| {
            attachment.key.network == document.network && attachment.ips.contains(&lease.ip)
        }) {
            continue;
        }
        match &lease.owner {
            Ok(holder) if is_listed(holder, valid) => {}
            Ok(holder) => match attachment_of(holder, &document.network) {
                Some(key) if records.exists(&key) => {
                    remains.insert(key);
                }
                _ => locked.free(lease.ip)?,
            },
            Err(_) if has_unrecorded_pod(records) => {}
            Err(_) => locked.quarantine(lease.ip)?,
        }
    }
    Ok(remains.into_iter().collect())
}

/// Whose lease it is; host-local's old ones do not say.
fn attachment_of(holder: &Owner, network: &str) -> Option<AttachmentKey> {
    Some(AttachmentKey {
        network: network.to_owned(),
        container_id: holder.container_id.clone(),
        ifname: holder.ifname.clone()?,
    })
}

/// Whether a lease of `holder` belongs to an attachment that GC must keep.
pub(crate) fn is_listed(holder: &Owner, valid: &BTreeSet<ValidAttachment>) -> bool {
    valid.iter().any(|entry| {
        let owner = Owner {
            container_id: entry.container_id.clone(),
            ifname: Some(entry.ifname.clone()),
        };
        owner.holds(holder)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dataplane::attachment::{Attachment, MacAddr, Mode};
    use serde_json::{Value, json};

    use super::*;

    fn document(dir: &tempfile::TempDir, valid: &[&str]) -> Document {
        let valid: Value = valid
            .iter()
            .map(|id| json!({"containerID": id, "ifname": "eth0"}))
            .collect();
        let conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "trammel",
            "agentSocket": dir.path().join("run/agent.sock"),
            "ipam": {"subnet": "10.0.0.0/24", "dataDir": dir.path()},
            "cni.dev/valid-attachments": valid,
        });
        Document::from_value(conf).unwrap()
    }

    fn record(document: &Document, network: &str, id: &str, ip: &str) {
        let key = AttachmentKey {
            network: network.into(),
            container_id: id.into(),
            ifname: "eth0".into(),
        };
        let attachment = Attachment {
            host_ifname: key.host_ifname(),
            key,
            netns: "/x".into(),
            mode: Mode::RoutedPorts,
            bridge: None,
            mac: MacAddr([2; 6]),
            ips: vec![ip.parse().unwrap()],
            undo: Default::default(),
            pod: None,
            port_mappings: Vec::new(),
            masquerade_beyond: Vec::new(),
            bandwidth: None,
        };
        drop(
            Records::beside(&document.agent_socket)
                .create(&attachment)
                .unwrap(),
        );
    }

    fn left(dir: &tempfile::TempDir, document: &Document) -> (Vec<String>, Vec<String>) {
        let records = Records::beside(&document.agent_socket).list().unwrap();
        let records = records.into_iter().map(|a| a.key.to_string()).collect();
        let entries = fs::read_dir(dir.path().join("net")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut leases: Vec<String> = names.filter(|name| name.contains("10.")).collect();
        leases.sort();
        (records, leases)
    }

    #[test]
    fn what_is_not_listed_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let document = document(&dir, &["keep", "legacy"]);
        fs::create_dir(dir.path().join("net")).unwrap();
        for (ip, content) in [
            ("10.0.0.2", "keep\r\neth0"),
            ("10.0.0.3", "gone\r\neth0"),
            ("10.0.0.4", "keep\r\neth1"),
            ("10.0.0.5", "legacy"),
            ("10.0.0.6", "orphan"),
            ("10.0.0.7", ""),
        ] {
            fs::write(dir.path().join("net").join(ip), content).unwrap();
        }
        record(&document, "net", "keep", "10.0.0.2");
        record(&document, "net", "gone", "10.0.0.3");
        record(&document, "other", "gone", "10.9.0.3");
        gc(&document, &Environment::default()).unwrap();
        let (records, leases) = left(&dir, &document);
        assert_eq!(records, ["net/keep/eth0", "other/gone/eth0"]);
        assert_eq!(leases, [".damaged-10.0.0.7", "10.0.0.2", "10.0.0.5"]);
    }

    #[test]
    fn an_empty_list_frees_all_of_this_network() {
        let dir = tempfile::tempdir().unwrap();
        let document = document(&dir, &[]);
        fs::create_dir(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/10.0.0.2"), "a\r\neth0").unwrap();
        record(&document, "net", "a", "10.0.0.2");
        gc(&document, &Environment::default()).unwrap();
        assert_eq!(left(&dir, &document), (vec![], vec![]));
    }
}
