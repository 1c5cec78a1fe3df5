//! Kernel settings below `/proc/sys/net`.
//!
//! The kernel shows each thread the settings of the namespace that it is in; no
//! mount of ours is needed for that, as it would be for `/sys`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {} to {value}: {source}", path.display())]
pub struct SysctlError {
    path: PathBuf,
    value: &'static str,
    source: io::Error,
}

/// Whether the kernel has IPv6 in this namespace.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether a setting has the value. One that does not exist has none.
pub fn is(name: &str, value: &str) -> bool {
    fs::read(path(name)).is_ok_and(|found| found.trim_ascii() == value.as_bytes())
}

/// Writes a setting, unless it has the value already: some of them have effects
/// when written, and `/proc/sys` may be mounted read-only where all is well.
/// One that does not exist is an error.
pub fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    if is(name, value) {
        return Ok(());
    }
    let path = path(name);
    fs::write(&path, value).map_err(|source| SysctlError {
        path,
        value,
        source,
    })
}

/// As [`set`]; one that does not exist needs no setting.
pub fn set_if_present(name: &str, value: &'static str) -> Result<(), SysctlError> {
    match set(name, value) {
        Err(error) if error.source.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}
