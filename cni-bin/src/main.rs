//! The CNI plugin `trammel`. See the library of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_bin::run(std::env::vars_os())
}
