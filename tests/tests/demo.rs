//! The demo as data: what `make demo` shows to people.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::wait::{SOON, eventually};
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
    let mut killed = Vec::new();
    for after in [0, 800] {
        let (mut demo, prefix) = start()?;
        thread::sleep(Duration::from_millis(after));
        demo.kill()?;
        demo.wait()?;
        killed.push(prefix);
    }
    check(&report()?);
    command::run(demo().arg("--clean"))?;
    for prefix in killed {
        assert_eq!(namespaces(&prefix)?, [""; 0]);
    }
    Ok(())
}

#[test]
fn an_interrupted_demo_cleans_up_behind_it() -> Result<()> {
    require_root!();
    let (mut interrupted, prefix) = start()?;
    command::run(Command::new("kill").args(["-INT", &interrupted.id().to_string()]))?;
    assert!(!interrupted.wait()?.success());
    assert_eq!(namespaces(&prefix)?, [""; 0]);
    Ok(())
}

/// A demo that has made its first pod, which is long before its end, and what its names begin
/// with.
fn start() -> Result<(Child, String)> {
    let started = demo()
        .args(["-o", "json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let prefix = name::of_process(started.id()).context("it runs")?;
    eventually(SOON, || {
        let made = namespaces(&prefix)?;
        // After those of the node and its neighbour.
        ensure!(made.len() > 2, "{made:?}");
        Ok(())
    })?;
    Ok((started, prefix))
}

/// The namespaces whose names begin so.
fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let all = command::run(Command::new("ip").args(["netns", "list"]))?;
    let ours = all.lines().filter(|name| name.starts_with(prefix));
    Ok(ours.map(str::to_owned).collect())
}
