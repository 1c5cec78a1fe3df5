//! Kernel settings without which the node forwards nothing.
//!
//! They are looked at again and again: `sysctl --system` sets them back wherever a file of
//! the distribution says so.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use dataplane::object::IpFamily;

/// The settings of the network namespace that this process is in.
pub const ROOT: &str = "/proc/sys/net";

/// Sets what forwarding of these families needs. Returns what was set, and what could not
/// be, with what to do.
///
/// A node that forwards IPv6 takes no router advertisements, unless `accept_ra` is 2, and
/// would lose its own default route by that: `advertised` are the links that have theirs
/// from there.
pub fn configure(
    root: &Path,
    families: &BTreeSet<IpFamily>,
    advertised: &BTreeSet<&str>,
) -> (Vec<String>, Vec<String>) {
    let mut wanted = Vec::new();
    if families.contains(&IpFamily::V4) {
        wanted.push(("ipv4/ip_forward".to_owned(), "1"));
    }
    if families.contains(&IpFamily::V6) {
        // Before forwarding is on: switching it on drops the routes.
        for link in advertised {
            wanted.push((format!("ipv6/conf/{link}/accept_ra"), "2"));
        }
        wanted.push(("ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for (name, value) in wanted {
        match set(&root.join(&name), value) {
            Ok(None) => {}
            Ok(Some(was)) => done.push(format!("net/{name} from {was} to {value}")),
            Err(error) => problems.push(format!(
                "net/{name} cannot be set to {value}: {error}; set it on the host, in \
                 /etc/sysctl.d as well"
            )),
        }
    }
    (done, problems)
}

/// Returns the value that was there before, if it was another.
fn set(path: &Path, value: &str) -> io::Result<Option<String>> {
    let before = fs::read_to_string(path)?;
    let before = before.trim();
    if before == value {
        return Ok(None);
    }
    fs::write(path, value)?;
    Ok(Some(before.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for folder in ["ipv4", "ipv6/conf/all", "ipv6/conf/eth0", "ipv6/conf/eth1"] {
            fs::create_dir_all(root.path().join(folder)).expect("made");
        }
        for (name, value) in [
            ("ipv4/ip_forward", "0"),
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0/accept_ra", "1"),
            ("ipv6/conf/eth1/accept_ra", "1"),
        ] {
            fs::write(root.path().join(name), format!("{value}\n")).expect("written");
        }
        root
    }

    #[test]
    fn only_what_is_needed_and_differs_is_set() {
        let root = tree();
        let read = |name: &str| fs::read_to_string(root.path().join(name)).expect("there");
        let v4 = BTreeSet::from([IpFamily::V4]);
        let both = BTreeSet::from(IpFamily::BOTH);
        let links = BTreeSet::from(["eth0"]);

        let (done, problems) = configure(root.path(), &v4, &links);
        assert_eq!(done, ["net/ipv4/ip_forward from 0 to 1"]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(read("ipv6/conf/all/forwarding").trim(), "0", "no IPv6 pods");

        let (done, problems) = configure(root.path(), &both, &links);
        let expected = [
            "net/ipv6/conf/eth0/accept_ra from 1 to 2",
            "net/ipv6/conf/all/forwarding from 0 to 1",
        ];
        assert_eq!(
            (done, problems),
            (expected.map(String::from).into(), vec![])
        );
        assert_eq!(read("ipv6/conf/eth1/accept_ra").trim(), "1", "another link");
        let (done, problems) = configure(root.path(), &both, &links);
        assert!(done.is_empty() && problems.is_empty());
    }

    #[test]
    fn what_cannot_be_set_is_told_with_what_to_do() {
        let root = tempfile::tempdir().expect("a folder");
        let v4 = BTreeSet::from([IpFamily::V4]);
        let (done, problems) = configure(root.path(), &v4, &BTreeSet::new());
        assert!(done.is_empty());
        assert!(
            problems[0].contains("ip_forward") && problems[0].contains("/etc/sysctl.d"),
            "{problems:?}"
        );
    }
}
