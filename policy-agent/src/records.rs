//! The plugin's attachment records: what there was before this agent started.

use std::path::Path;

use dataplane::attachment::Attachment;
use nix::net::if_::if_nametoindex;

/// The attachments in the folder. One whose port is gone has lost its hostPorts: they may be
/// another's by now. A record that cannot be read is logged and left out: its
/// port stays closed, as no attachment vouches for it.
pub fn read(folder: &Path) -> Vec<Attachment> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(folder = %folder.display(), %error, "cannot read attachment records");
            return Vec::new();
        }
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut records: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| {
            let parsed = std::fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
            parsed
                .inspect_err(|error| {
                    tracing::error!(record = %path.display(), error, "cannot use attachment record");
                })
                .ok()
        })
        .collect();
    records.sort_by(|a: &Attachment, b| a.key.cmp(&b.key));
    for record in &mut records {
        if !has_port(record) {
            record.port_mappings.clear();
        }
    }
    records
}

/// Whether the host's end of the attachment exists.
pub fn has_port(attachment: &Attachment) -> bool {
    if_nametoindex(attachment.host_ifname.as_str()).is_ok()
}

#[cfg(test)]
mod tests;
