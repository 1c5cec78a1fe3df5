//! The plugin's attachment records: what there was before this agent started.

use std::path::Path;

use dataplane::attachment::Attachment;

/// The attachments in the folder. A record that cannot be read is logged and left out: its
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
    records
}

#[cfg(test)]
mod tests;
