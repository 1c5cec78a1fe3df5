//! What every suite that talks to the kernel begins with.

/// Puts the thread into a network namespace of its own. False where that may not be done
/// and was said to be left out.
pub(crate) fn own_namespace() -> bool {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("TRAMMEL_SKIP_ROOT").is_some(),
            "this suite needs root; TRAMMEL_SKIP_ROOT=1 leaves it out"
        );
        eprintln!("SKIP: not root");
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    true
}
