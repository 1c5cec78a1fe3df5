//! Leases of an earlier boot.
//!
//! No pod outlives its machine, but leases do: they lie on a disk, and a machine that
//! loses its power runs no DEL. Each network's directory therefore says in `.boot` in
//! which boot of the machine it was used last. The first request of another boot frees
//! what is older than that boot and belongs to no attachment of it. A directory without
//! the file, one of host-local, is taken over with its pods running and loses nothing.
//!
//! The age is asked for besides because host-local may have served the directory
//! before us since the machine came up.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::store::{Lease, Locked, StoreError, io_error, read_short};

/// A random number of the kernel, drawn anew when it starts.
const ID: &str = "/proc/sys/kernel/random/boot_id";
/// Has the time of the start in a line `btime <seconds since the epoch>`.
const STAT: &str = "/proc/stat";
/// `btime` is cut to whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// Name of the file that says it, in a network's directory.
pub const MARK: &str = ".boot";

/// Names this boot of the machine.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn id() -> io::Result<String> {
    let text = read_short(Path::new(ID))?;
    let text = str::from_utf8(&text).map_err(|_| ErrorKind::InvalidData)?;
    Ok(text.trim().to_owned())
}

/// When this boot began, by the clock of today.
fn began() -> io::Result<SystemTime> {
    let stat = fs::read_to_string(STAT)?;
    let seconds = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no line btime"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

impl Locked {
    /// At the first request of boot `id`: frees the leases that are older than the boot,
    /// but for those of which `keep` says that an attachment has them, and returns
    /// their addresses. Damaged ones are put aside.
    ///
    /// # Errors
    /// Where a file cannot be read, written or removed. Repeating the call then goes on
    /// where this one ended.
    pub fn enter_boot(
        &self,
        id: &str,
        keep: impl Fn(&Lease) -> bool,
    ) -> Result<Vec<IpAddr>, StoreError> {
        let path = self.dir.join(MARK);
        let marked = match read_short(&path) {
            Ok(mark) if mark == id.as_bytes() => return Ok(Vec::new()),
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(source) => return Err(io_error("read", &path)(source)),
        };
        let freed = if marked {
            let began = began().map_err(io_error("read", Path::new(STAT)))?;
            self.free_older(began, keep)?
        } else {
            Vec::new()
        };
        // Torn by a kill it names no boot, and all this is done again.
        fs::write(&path, id).map_err(io_error("write", &path))?;
        Ok(freed)
    }

    fn free_older(
        &self,
        began: SystemTime,
        keep: impl Fn(&Lease) -> bool,
    ) -> Result<Vec<IpAddr>, StoreError> {
        let mut freed = Vec::new();
        for lease in self.leases()? {
            let path = self.path(lease.ip);
            let written = fs::symlink_metadata(&path)
                .and_then(|file| file.modified())
                .map_err(io_error("look at", &path))?;
            if written + SECOND >= began || keep(&lease) {
                continue;
            }
            match lease.owner {
                Ok(_) => self.free(lease.ip)?,
                Err(_) => self.quarantine(lease.ip)?,
            }
            freed.push(lease.ip);
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::store::Store;

    const OLD: &str = "00000000-0000-4000-8000-000000000000";

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn with(leases: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let net = dir.path().join("net");
            fs::create_dir(&net).unwrap();
            for (ip, content) in leases {
                fs::write(net.join(ip), content).unwrap();
            }
            Self(dir)
        }

        fn locked(&self) -> Locked {
            Store::new(self.0.path(), "net").lock(SECOND).unwrap()
        }

        /// Makes a lease as old as one of an earlier boot.
        fn age(&self, ip: &str) {
            let file = File::options()
                .write(true)
                .open(self.0.path().join("net").join(ip))
                .unwrap();
            file.set_modified(began().unwrap() - Duration::from_secs(60))
                .unwrap();
        }

        fn left(&self) -> Vec<String> {
            let leases = self.locked().leases().unwrap();
            leases.iter().map(|lease| lease.ip.to_string()).collect()
        }
    }

    #[test]
    fn a_directory_without_a_mark_loses_nothing_and_gets_one() {
        let dir = Dir::with(&[("10.0.0.2", "a\r\neth0")]);
        dir.age("10.0.0.2");
        let id = id().unwrap();
        assert_eq!(
            dir.locked().enter_boot(&id, |_| false).unwrap(),
            [] as [IpAddr; 0]
        );
        assert_eq!(dir.left(), ["10.0.0.2"]);
        assert_eq!(
            fs::read_to_string(dir.0.path().join("net/.boot")).unwrap(),
            id
        );
        // A second request of the same boot finds nothing to do.
        assert_eq!(
            dir.locked().enter_boot(&id, |_| false).unwrap(),
            [] as [IpAddr; 0]
        );
        assert_eq!(dir.left(), ["10.0.0.2"]);
    }

    #[test]
    fn another_boot_frees_what_is_older_and_belongs_to_nobody() {
        let dir = Dir::with(&[
            ("10.0.0.2", "old\r\neth0"),
            ("10.0.0.3", "kept\r\neth0"),
            ("10.0.0.4", "young\r\neth0"),
            ("10.0.0.5", ""),
            ("fd00::2", "old\r\neth0"),
            (".boot", OLD),
        ]);
        for ip in ["10.0.0.2", "10.0.0.3", "10.0.0.5", "fd00::2"] {
            dir.age(ip);
        }
        let keep = |lease: &Lease| lease.ip.to_string() == "10.0.0.3";
        let freed = dir.locked().enter_boot(&id().unwrap(), keep).unwrap();
        let freed: Vec<_> = freed.iter().map(IpAddr::to_string).collect();
        assert_eq!(freed, ["10.0.0.2", "10.0.0.5", "fd00::2"]);
        assert_eq!(dir.left(), ["10.0.0.3", "10.0.0.4"]);
        assert!(dir.0.path().join("net/.damaged-10.0.0.5").exists());
    }

    #[test]
    fn a_torn_mark_counts_as_that_of_another_boot() {
        let dir = Dir::with(&[("10.0.0.2", "a\r\neth0"), (".boot", &OLD[..7])]);
        dir.age("10.0.0.2");
        dir.locked().enter_boot(&id().unwrap(), |_| false).unwrap();
        assert_eq!(dir.left(), [] as [&str; 0]);
    }
}
