use serde_json::json;

use super::*;
use crate::check::Severity;

/// Folders of configurations and of plugins.
struct Folders {
    conf: tempfile::TempDir,
    bin: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let folder = || tempfile::tempdir().expect("a folder");
        let folders = Self {
            conf: folder(),
            bin: folder(),
        };
        let version = env!("CARGO_PKG_VERSION");
        folders.program(PLUGIN, &format!("echo 'trammel {version}: CNI plugin' >&2"));
        folders
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.bin.path().join(name);
        // A program that is being written by another thread's child cannot be run.
        let hidden = self.bin.path().join(format!(".{name}"));
        fs::write(&hidden, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o755)).expect("set");
        fs::rename(hidden, path).expect("renamed");
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.conf.path().join(name), text).expect("written");
    }

    /// Codes and texts of what is not fine.
    fn wrong(&self, agent_runs: bool) -> Vec<(Severity, String, String)> {
        let socket = Path::new("/run/trammel/agent.sock");
        let checked = check(self.conf.path(), self.bin.path(), socket, agent_runs);
        let wrong = checked
            .findings
            .into_iter()
            .filter(|f| f.severity != Severity::Ok);
        wrong.map(|f| (f.severity, f.code, f.what)).collect()
    }

    fn only(&self, severity: Severity, code: &str, part: &str) {
        let wrong = self.wrong(true);
        assert!(
            wrong.len() == 1
                && (wrong[0].0, wrong[0].1.as_str()) == (severity, code)
                && wrong[0].2.contains(part),
            "{code} {part}: {wrong:?}"
        );
    }
}

fn list(change: impl FnOnce(&mut Value)) -> String {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "trammel", "plugins": [
        {"type": "trammel", "ipam": {"type": "trammel-ipam",
            "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]]}}]});
    change(&mut conf);
    conf.to_string()
}

#[test]
fn our_configuration_alone_is_fine_and_tells_the_families() {
    let folders = Folders::new();
    folders.write("10-trammel.conflist", &list(|_| {}));
    folders.write("README.txt", "not for runtimes");
    assert_eq!(folders.wrong(true), []);
    let socket = Path::new("/run/trammel/agent.sock");
    let checked = check(folders.conf.path(), folders.bin.path(), socket, true);
    assert!(checked.families.v4 && checked.families.v6);
}

#[test]
fn what_sorts_first_counts() {
    let folders = Folders::new();
    folders.write("20-trammel.conflist", &list(|_| {}));
    folders.write(
        "10-other.conf",
        r#"{"cniVersion":"1.0.0","name":"o","type":"bridge"}"#,
    );
    folders.only(
        Severity::Error,
        "network-conf-shadowed",
        "10-other.conf sorts before",
    );
    fs::remove_file(folders.conf.path().join("20-trammel.conflist")).expect("removed");
    folders.only(Severity::Warning, "network-conf-foreign", "10-other.conf");
}

#[test]
fn none_is_an_error_only_while_an_agent_runs() {
    let folders = Folders::new();
    folders.only(Severity::Error, "network-conf", "no network configuration");
    assert_eq!(folders.wrong(false)[0].0, Severity::Warning);
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    let folders = Folders::new();
    for (change, severity, code, part) in [
        (
            &(|conf: &mut Value| conf["plugins"][0]["mtu"] = json!(7)) as &dyn Fn(&mut Value),
            Severity::Error,
            "network-conf-invalid",
            "mtu: 7",
        ),
        (
            &|conf| conf["plugins"][0]["agentSocket"] = json!("/elsewhere"),
            Severity::Error,
            "agent-socket",
            "/elsewhere",
        ),
        (
            &|conf| conf["plugins"][0]["policy"] = json!("optional"),
            Severity::Warning,
            "policy-optional",
            "policy",
        ),
        (
            &|conf| {
                let plugins = conf["plugins"].as_array_mut().expect("a list");
                plugins.push(json!({"type": "tuning"}));
            },
            Severity::Error,
            "plugin-missing",
            "tuning",
        ),
        (
            &|conf| conf["plugins"][0]["ipam"]["type"] = json!("host-local"),
            Severity::Error,
            "plugin-missing",
            "host-local",
        ),
    ] {
        folders.write("10-trammel.conflist", &list(change));
        folders.only(severity, code, part);
    }
    folders.write("10-trammel.conflist", &list(|_| {}));
    folders.write("99-torn.conflist", "{\"plugins\": [");
    folders.only(
        Severity::Error,
        "network-conf-unreadable",
        "99-torn.conflist",
    );
}

#[test]
fn the_plugin_is_there_and_of_this_version() {
    let folders = Folders::new();
    folders.write("10-trammel.conflist", &list(|_| {}));
    folders.program(PLUGIN, "echo 'trammel 0.0.1: CNI plugin' >&2");
    folders.only(Severity::Warning, "plugin-version", "version 0.0.1");
    folders.program(PLUGIN, "echo 'usage: bridge' >&2");
    folders.only(Severity::Error, "plugin-foreign", PLUGIN);
    fs::remove_file(folders.bin.path().join(PLUGIN)).expect("removed");
    folders.only(Severity::Error, "plugin-missing", PLUGIN);
}
