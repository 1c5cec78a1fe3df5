//! The IPAM plugin `trammel-ipam`. See `ipam_plugin` in the library of this package.

use std::process::ExitCode;

/// musl's own maps and unmaps pages for almost every allocation of so short a run.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    cni_bin::ipam_plugin::run(std::env::vars_os())
}
