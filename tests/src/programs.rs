//! Where the programs under test and their helpers lie.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Directory of `trammel` and `trammel-agent`; default `target/release` of this tree.
const BIN_DIR: &str = "TRAMMEL_BIN_DIR";
/// Path of cnitool; default `target/tools/cnitool` of this tree.
const CNITOOL: &str = "TRAMMEL_CNITOOL";
/// Where Debian's containernetworking-plugins lie.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// The directory of the programs under test, which is also the `CNI_PATH`.
pub fn bin_dir() -> PathBuf {
    std::env::var_os(BIN_DIR).map_or_else(|| workspace().join("target/release"), PathBuf::from)
}

/// The CNI plugin.
pub fn plugin() -> PathBuf {
    bin_dir().join("trammel")
}

/// The IPAM plugin.
pub fn ipam_plugin() -> PathBuf {
    bin_dir().join("trammel-ipam")
}

/// The agent.
pub fn agent() -> PathBuf {
    bin_dir().join("trammel-agent")
}

/// The CNI reference runtime.
pub fn cnitool() -> PathBuf {
    std::env::var_os(CNITOOL)
        .map_or_else(|| workspace().join("target/tools/cnitool"), PathBuf::from)
}

/// The `nft` of a newer Debian, which setup fetches where it can.
pub fn newest_nft() -> PathBuf {
    workspace().join("target/tools/nft-newest/nft")
}

/// An error that says what is missing and how to get it.
pub fn check() -> Result<()> {
    for (path, target) in [
        (plugin(), "build"),
        (ipam_plugin(), "build"),
        (agent(), "build"),
        (cnitool(), "setup"),
    ] {
        if !path.exists() {
            bail!("{} is missing: run `make {target}` first", path.display());
        }
    }
    Ok(())
}

/// The root of the source tree that this was built from.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in a folder of the workspace")
}
