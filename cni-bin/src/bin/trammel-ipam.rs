//! The IPAM plugin `trammel-ipam`. See `ipam_plugin` in the library of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_bin::ipam_plugin::run(std::env::vars_os())
}
