//! The directory of manifests that an agent watches.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// A directory of manifests, each file replaced at once.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// Manifests in a directory that exists.
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where they lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `objects` as one v1 List, in place of what the file held.
    pub fn write(&self, file: &str, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.write_text(&format!("{file}.json"), &format!("{list:#}"))
    }

    /// Writes a file as it is; its name has an extension.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        let hidden = self.dir.join(format!(".{file}"));
        let path = self.dir.join(file);
        fs::write(&hidden, text)
            .and_then(|()| fs::rename(&hidden, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a file that [`Self::write`] made.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.dir.join(format!("{file}.json"));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}
