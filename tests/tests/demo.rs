//! The demo as data: what `make demo` shows to people.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tests::{command, name, require_root};

fn demo() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trammel-demo"))
}

fn report() -> Result<Value> {
    let output = command::output(demo().args(["-o", "json"]), b"", command::LIMIT)?;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())
}

fn check(report: &Value) {
    assert_eq!(report["agrees"], true, "{report:#}");
    let cells = report["matrix"].as_array().expect("a list of cells");
    assert!(cells.len() >= 50, "{} cells", cells.len());
    assert!(cells.iter().all(|cell| cell["agrees"] == true));
    for outcome in [true, false] {
        for family in ["IPv4", "IPv6"] {
            let has = |cell: &&Value| cell["expected"] == outcome && cell["family"] == family;
            assert!(
                cells.iter().any(|cell| has(&cell)),
                "no {family} cell expects {outcome}"
            );
        }
    }
    assert!(
        report["pods"]
            .as_array()
            .is_some_and(|pods| pods.len() >= 4)
    );
    for change in report["liveChange"]
        .as_array()
        .expect("one for each family")
    {
        let took = change["milliseconds"].as_f64();
        assert!(took.is_some_and(|took| took > 0.0), "{change}");
    }
}

#[test]
fn two_demos_at_once_and_one_after_them_agree_with_what_they_expect() -> Result<()> {
    require_root!();
    let reports = thread::scope(|scope| {
        let demos = [(); 2].map(|()| scope.spawn(report));
        demos.map(|demo| demo.join().expect("asserts of a report"))
    });
    for report in reports {
        check(&report?);
    }
    check(&report()?);
    Ok(())
}

#[test]
fn what_a_killed_demo_left_disturbs_nobody_and_is_removed_on_request() -> Result<()> {
    require_root!();
    for after in [700, 1500] {
        let mut killed = start()?;
        thread::sleep(Duration::from_millis(after));
        killed.kill()?;
        killed.wait()?;
    }
    check(&report()?);
    command::run(demo().arg("--clean"))?;
    let left = command::run(Command::new("ip").args(["netns", "list"]))?;
    let abandoned: Vec<_> = left
        .lines()
        .filter(|line| name::is_abandoned(line))
        .collect();
    assert!(abandoned.is_empty(), "{abandoned:?}");
    Ok(())
}

#[test]
fn an_interrupted_demo_cleans_up_behind_it() -> Result<()> {
    require_root!();
    let mut interrupted = start()?;
    thread::sleep(Duration::from_millis(1200));
    let prefix = name::of_process(interrupted.id()).context("it still runs")?;
    command::run(Command::new("kill").args(["-INT", &interrupted.id().to_string()]))?;
    assert!(!interrupted.wait()?.success());
    let left = command::run(Command::new("ip").args(["netns", "list"]))?;
    assert!(!left.contains(&prefix), "{left}");
    Ok(())
}

fn start() -> Result<Child> {
    Ok(demo()
        .args(["-o", "json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}
