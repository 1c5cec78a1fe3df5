//! The sysctls that the agent needs: into a folder where they outlive whatever the
//! distribution sets, and into the kernel.
//!
//! `run` sets what it may. In a container it may nothing, unless that is privileged:
//! `/proc/sys` is read only there. So `install --sysctls` is a step before it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Sysctls of this network namespace.
pub const ROOT: &str = "/proc/sys";
/// Behind what distributions ship, before what people number 99.
pub const FILE: &str = "95-trammel.conf";

/// A sysctl and the value that it is to have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sysctl {
    /// Path below [`ROOT`]: names of links may have dots.
    pub path: String,
    /// Value.
    pub value: u64,
    /// Nothing is forwarded without it.
    pub is_required: bool,
}

/// The value of a sysctl, where there is one of that path and it is a number.
pub fn read(root: &Path, path: &str) -> Option<u64> {
    let text = fs::read_to_string(root.join(path)).ok()?;
    text.trim().parse().ok()
}

/// What forwarding of these families needs, in the order in which it is to be set, and
/// room for `tracked` connections. `advertised` are links whose IPv6 default route is from a
/// router advertisement: a node that forwards takes none, unless `accept_ra` is 2.
pub fn needed(
    root: &Path,
    (v4, v6): (bool, bool),
    advertised: &BTreeSet<String>,
    tracked: u64,
) -> Vec<Sysctl> {
    let mut needed = Vec::new();
    let mut need = |path: String, value| {
        let is_required = !path.starts_with("net/netfilter");
        needed.push(Sysctl {
            path,
            value,
            is_required,
        });
    };
    if v4 {
        need("net/ipv4/ip_forward".to_owned(), 1);
    }
    let forwarding = "net/ipv6/conf/all/forwarding";
    if v6 && read(root, forwarding).is_some() {
        for link in advertised {
            let path = format!("net/ipv6/conf/{link}/accept_ra");
            // 0: somebody else in user space listens to advertisements.
            if read(root, &path).is_some_and(|value| value > 0) {
                need(path, 2);
            }
        }
        need(forwarding.to_owned(), 1);
    }
    let limit = "net/netfilter/nf_conntrack_max";
    if read(root, limit).is_some_and(|limit| limit < tracked) {
        need(limit.to_owned(), tracked);
    }
    needed
}

/// Writes them into the folder, where `systemd-sysctl` and `sysctl --system` find them, in
/// place of an older file, and returns its path.
///
/// # Errors
/// Where that fails; what was there is still there.
pub fn write_file(folder: &Path, sysctls: &[Sysctl]) -> anyhow::Result<PathBuf> {
    let path = folder.join(FILE);
    let mut text = String::from("# Written by trammel-agent: what it needs.\n");
    for Sysctl { path, value, .. } in sysctls {
        let name = match path.contains('.') {
            true => path.clone(),
            false => path.replace('/', "."),
        };
        text.push_str(&format!("{name} = {value}\n"));
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let hidden = folder.join(format!(".{FILE}.new"));
        let mut file = fs::File::create(&hidden)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&hidden, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Sets those that have another value. Returns what was set, and what could not be.
pub fn apply(root: &Path, sysctls: &[Sysctl]) -> (Vec<String>, Vec<String>) {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for Sysctl { path, value, .. } in sysctls {
        let before = read(root, path);
        if before == Some(*value) {
            continue;
        }
        match fs::write(root.join(path), value.to_string()) {
            Ok(()) => {
                let before = before.map_or_else(|| "?".to_owned(), |value| value.to_string());
                done.push(format!("{path} from {before} to {value}"));
            }
            Err(error) => problems.push(format!(
                "{path} cannot be set to {value}: {error}: in a container that takes privileged: true"
            )),
        }
    }
    (done, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(values: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, value) in values {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, format!("{value}\n")).expect("written");
        }
        root
    }

    fn lines(folder: &Path) -> Vec<String> {
        let text = fs::read_to_string(folder.join(FILE)).expect("there");
        text.lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn the_file_has_what_is_needed_and_replaces_the_last() {
        let root = root(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/eth0.7/accept_ra", "1"),
            ("net/ipv6/conf/eth1/accept_ra", "0"),
            ("net/netfilter/nf_conntrack_max", "65536"),
        ]);
        let advertised = ["eth0.7", "eth1"].map(str::to_owned).into();
        let of = |families| needed(root.path(), families, &advertised, 131_072);
        let target = tempfile::tempdir().expect("a folder");
        let folder = target.path().join("sysctl.d");
        write_file(&folder, &of((true, false))).expect("written");
        let limit = "net.netfilter.nf_conntrack_max = 131072";
        assert_eq!(lines(&folder), ["net.ipv4.ip_forward = 1", limit]);
        write_file(&folder, &of((true, true))).expect("written");
        assert_eq!(
            lines(&folder),
            [
                "net.ipv4.ip_forward = 1",
                "net/ipv6/conf/eth0.7/accept_ra = 2",
                "net.ipv6.conf.all.forwarding = 1",
                limit,
            ]
        );
        let count = fs::read_dir(&folder).expect("a folder").count();
        assert_eq!(count, 1, "nothing else is left");
    }

    #[test]
    fn what_differs_is_set_and_what_cannot_be_is_named() {
        let root = root(&[("net/ipv4/ip_forward", "0"), ("net/other", "1")]);
        let sysctl = |path: &str, value| Sysctl {
            path: path.to_owned(),
            value,
            is_required: true,
        };
        let wanted = [
            sysctl("net/ipv4/ip_forward", 1),
            sysctl("net/other", 1),
            sysctl("net/no/such", 1),
        ];
        let (done, problems) = apply(root.path(), &wanted);
        assert_eq!(done, ["net/ipv4/ip_forward from 0 to 1"]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("net/no/such"), "{problems:?}");
        assert_eq!(read(root.path(), "net/ipv4/ip_forward"), Some(1));
    }
}
