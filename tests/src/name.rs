//! Names that say who made a thing, and the removal of things whose maker died.
//!
//! Namespaces, networks and directories are called
//! `trmt-<pid>-<start time>-<number>-<role>`. The start time (field 22 of
//! `/proc/<pid>/stat`, in clock ticks since boot) tells the maker from a later
//! process with the same pid.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::command;

/// First bytes of every name.
pub const PREFIX: &str = "trmt";

/// Where libcni keeps the results of ADD, by network name.
pub(crate) const CNI_RESULTS: &str = "/var/lib/cni/results";

static OWNER: LazyLock<String> =
    LazyLock::new(|| of_process(process::id()).expect("a running process has a start time"));
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other call, here or in another process, returns.
pub fn unique(role: &str) -> String {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{}{number}-{role}", *OWNER)
}

/// What the names that a running process makes begin with.
pub fn of_process(pid: u32) -> Option<String> {
    Some(format!("{PREFIX}-{pid}-{}-", start_time(pid)?))
}

/// Removes the namespaces, directories and cached CNI results of processes that
/// are gone, and returns what it removed. Safe beside running copies, and beside itself.
pub fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let namespaces = Path::new("/run/netns");
    for name in abandoned(namespaces)? {
        let done = command::run(Command::new("ip").args(["netns", "del", &name]));
        if namespaces.join(&name).exists() {
            done?;
        }
        removed.push(format!("namespace {name}"));
    }
    for dir in [scratch_root(), PathBuf::from(CNI_RESULTS)] {
        for name in abandoned(&dir)? {
            let path = dir.join(&name);
            let done = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            if path.exists() {
                done.with_context(|| format!("cannot remove {}", path.display()))?;
            }
            removed.push(path.display().to_string());
        }
    }
    Ok(removed)
}

/// The directory that holds the scratch directories. Not the one of `TMPDIR`:
/// the path of a socket has at most 107 bytes.
pub(crate) fn scratch_root() -> PathBuf {
    PathBuf::from("/tmp")
}

/// The entries of `dir` that carry a name of ours whose maker is gone.
fn abandoned(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot read {}", dir.display())),
    };
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_abandoned(name))
        .collect())
}

/// Whether `name` was made by a process that is gone.
pub fn is_abandoned(name: &str) -> bool {
    let Some((pid, start)) = owner(name) else {
        return false;
    };
    start_time(pid) != Some(start)
}

/// Pid and start time in a name of ours.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// When a process started, `None` if there is none with that pid.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may itself hold both.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_tell_their_maker() {
        let (one, two) = (unique("node"), unique("node"));
        assert_ne!(one, two);
        let (pid, start) = owner(&one).unwrap();
        assert_eq!(pid, process::id());
        assert_eq!(Some(start), start_time(pid));
    }

    #[test]
    fn only_names_whose_maker_is_gone_are_abandoned() {
        assert!(!is_abandoned(&unique("node")));
        let (pid, start) = owner(&unique("node")).unwrap();
        assert!(is_abandoned(&format!(
            "{PREFIX}-{pid}-{}-0-node",
            start + 1
        )));
        for foreign in [
            "trmt",
            "trmt-x-1-node",
            "trmt-1",
            "cni-1234",
            "atrmt-1-1-0-a",
        ] {
            assert!(!is_abandoned(foreign), "{foreign}");
        }
    }
}
