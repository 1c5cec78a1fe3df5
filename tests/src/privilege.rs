//! What a suite needs before it can make a namespace.

use std::io::Write as _;
use std::sync::Once;

use nix::unistd::Uid;

use crate::{name, programs};

/// Set to `1` to leave out what needs root.
pub const SKIP: &str = "TRAMMEL_SKIP_ROOT";

/// Ends the calling test at once if [`SKIP`] is set and this is not root, with a
/// line that the test runner does not swallow; fails it if something is missing.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::privilege::ready() {
            return Ok(());
        }
    };
}

/// Whether namespaces can be made here. Panics with what to do if they cannot
/// and nobody asked to leave such tests out.
pub fn ready() -> bool {
    if !Uid::effective().is_root() {
        assert!(
            std::env::var_os(SKIP).is_some_and(|value| value == "1"),
            "this test makes network namespaces and needs root: run it as root, \
             or set {SKIP}=1 to leave such tests out",
        );
        skip("needs root");
        return false;
    }
    if let Err(error) = programs::check() {
        panic!("{error:#}");
    }
    static SWEEP: Once = Once::new();
    SWEEP.call_once(|| {
        // Left-overs disturb nobody: not a reason to fail this run.
        if let Err(error) = name::sweep() {
            eprintln!("cannot remove what an earlier run left behind: {error:#}");
        }
    });
    true
}

/// Says that the calling test does not test, past the capture of its output.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Standard error may be closed; there is nobody left to tell then.
    writeln!(std::io::stderr(), "SKIP {test}: {why}").ok();
}
