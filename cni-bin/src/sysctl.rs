//! Kernel settings below `/proc/sys/net`.
//!
//! The kernel shows each thread the settings of the namespace that it is in; no
//! mount of ours is needed for that, as it would be for `/sys`.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
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
    let mut found = [0; 64];
    let read = File::open(path(name)).and_then(|mut file| file.read(&mut found));
    read.is_ok_and(|length| found[..length].trim_ascii() == value.as_bytes())
}

/// Writes a setting, unless it has the value already: some of them have effects
/// when written, and `/proc/sys` may be mounted read-only where all is well.
/// One that does not exist is an error.
pub fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    if is(name, value) {
        return Ok(());
    }
    write(name, value)
}

/// Writes a setting that is likely to have another value, and is a mere value; one that does
/// not exist needs no setting.
pub fn set_if_present(name: &str, value: &'static str) -> Result<(), SysctlError> {
    match write(name, value) {
        Err(error) if error.source.kind() != ErrorKind::NotFound && !is(name, value) => Err(error),
        _ => Ok(()),
    }
}

fn write(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = path(name);
    let file = File::options().write(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| SysctlError {
        path,
        value,
        source,
    })
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}
