//! A random history of pods, labels, policies and agents, with a monitor that never sleeps:
//! what is denied before and after a step is never answered during it, what is allowed
//! before and after never fails, and after each step packets do what the oracle says.
//!
//! `TRAMMEL_FUZZ_STEPS` says how long the history is, `TRAMMEL_FUZZ_SEED` which.

mod lab;
mod monitor;
mod step;
mod world;

use anyhow::{Context as _, Result};
use tests::node::Node;
use tests::random::{Random, number};
use tests::require_root;

use lab::Lab;
use step::Step;

/// netpol.md 41 to 46, 51, 52, 54, 56, 60, 62 in any order.
#[test]
fn in_any_history_the_denied_never_pass_and_the_allowed_never_fail() -> Result<()> {
    require_root!();
    let mut random = Random::of_run("TRAMMEL_FUZZ_SEED");
    let node = Node::new()?;
    let mut lab = Lab::start(&node)?;
    let mut history = Vec::new();
    for number in 0..number("TRAMMEL_FUZZ_STEPS", 40) {
        let step = Step::choose(&mut random, &lab);
        history.push(format!("  {number}: {step}"));
        lab.take(&step, &mut random)
            .with_context(|| format!("history:\n{}", history.join("\n")))?;
    }
    let tried = lab.tried();
    eprintln!("{} steps: {tried:?}", history.len());
    assert!(tried.denied > 0 && tried.allowed > 0, "{tried:?}");
    assert!(lab.agent().verify()?.status.success());
    Ok(())
}
