//! The CNI configuration of this node, written from its PodCIDRs.
//!
//! A runtime takes the node for ready as soon as the file is there, so it is written when
//! pods can start and not before. It stays when the agent ends: a plugin that finds no agent
//! fails with a code that the runtime tries again after, a missing file would make the node
//! not ready.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use dataplane::attachment::DEFAULT_SOCKET;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// Name of the file.
pub const FILE: &str = "10-trammel.conflist";
/// Of the plugin, and of the built-in network.
pub const NAME: &str = "trammel";
/// What all runtimes read: containerd before 2.0 fails each ADD of 1.1.0.
const OLDEST: &str = "1.0.0";
/// STATUS and GC, for runtimes that choose by `cniVersions` (CNI 1.1, libcni 1.2).
const NEWEST: &str = "1.1.0";
/// What a runtime takes for configurations (libcni `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What is written, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflist {
    dir: PathBuf,
    template: Option<Value>,
    socket: PathBuf,
    ip_masq: bool,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It was there already.
    Unchanged,
    /// It is new, or another.
    Changed,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("template {} of the CNI configuration: {reason}", path.display())]
pub struct TemplateError {
    path: PathBuf,
    reason: String,
}

impl Conflist {
    /// For the folder, with the agent's socket.
    pub fn new(dir: &Path, socket: &Path, ip_masq: bool) -> Self {
        Self {
            dir: dir.to_owned(),
            template: None,
            socket: socket.to_owned(),
            ip_masq,
        }
    }

    /// From a template in place of the built-in list.
    ///
    /// # Errors
    /// Where it cannot be read or has no plugin of our type.
    pub fn with_template(mut self, path: &Path) -> Result<Self, TemplateError> {
        let error = |reason: String| TemplateError {
            path: path.to_owned(),
            reason,
        };
        let text = fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
        let mut list: Value =
            serde_json::from_str(&text).map_err(|source| error(source.to_string()))?;
        if plugin(&mut list).is_none() {
            return Err(error(format!(
                "it has no plugin of type {NAME} in plugins: write a network configuration list"
            )));
        }
        self.template = Some(list);
        Ok(self)
    }

    /// Where it is written.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// The list for these PodCIDRs, at least one.
    pub fn text(&self, pod_cidrs: &[IpNet], mtu: u32) -> String {
        let mut list = self.template.clone().unwrap_or_else(|| {
            json!({
                "cniVersion": OLDEST,
                "cniVersions": [OLDEST, NEWEST],
                "name": NAME,
                "plugins": [{
                    "type": NAME,
                    "bridge": "cbr0",
                    "capabilities": {
                        "bandwidth": true, "dns": true, "ipRanges": true, "ips": true, "mac": true,
                        "portMappings": true,
                    },
                }],
            })
        });
        let plugin = plugin(&mut list).expect("a template without it is refused");
        let mut fill = |key: &str, value: Value| {
            plugin.entry(key).or_insert(value);
        };
        fill("mtu", mtu.into());
        fill("ipMasq", self.ip_masq.into());
        fill("policy", "required".into());
        if self.socket != Path::new(DEFAULT_SOCKET) {
            fill("agentSocket", self.socket.display().to_string().into());
        }
        fill("ipam", json!({ "type": "trammel-ipam" }));
        let ranges: Vec<Value> = pod_cidrs
            .iter()
            .map(|net| json!([{ "subnet": net }]))
            .collect();
        if let Some(ipam) = plugin.get_mut("ipam").and_then(Value::as_object_mut) {
            ipam.entry("ranges").or_insert(ranges.into());
        }
        format!("{list:#}\n")
    }

    /// Writes the list: a reader sees the old one or the new one, whole, also after a crash.
    ///
    /// # Errors
    /// Where that fails; what was there is still there.
    pub fn write(&self, text: &str) -> io::Result<Written> {
        let path = self.path();
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(Written::Unchanged);
        }
        // Neither its name nor its extension makes it a configuration.
        let new = self.dir.join(format!(".{FILE}.new"));
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Written::Changed)
    }

    /// Configurations that a runtime takes in place of this one: it takes the first by name.
    pub fn hidden_by(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut before: Vec<String> = names
            .filter(|name| {
                let extension = Path::new(name).extension();
                let extension = extension.and_then(|extension| extension.to_str());
                extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
            })
            .filter(|name| name.as_str() < FILE)
            .collect();
        before.sort();
        before
    }
}

/// The first plugin of our type in a list.
fn plugin(list: &mut Value) -> Option<&mut Map<String, Value>> {
    let plugins = list.get_mut("plugins")?.as_array_mut()?.iter_mut();
    let mut plugins = plugins.filter_map(Value::as_object_mut);
    plugins.find(|plugin| plugin.get("type").and_then(Value::as_str) == Some(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets() -> Vec<IpNet> {
        ["10.88.3.0/24", "fd88:3::/64"]
            .map(|text| text.parse().expect("a prefix"))
            .into()
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn the_built_in_list_has_the_node_s_ranges() {
        let list = Conflist::new(Path::new("/x"), Path::new(DEFAULT_SOCKET), true);
        let list = parsed(&list.text(&nets(), 1450));
        let plugin = &list["plugins"][0];
        assert_eq!(
            (&list["name"], &plugin["type"]),
            (&json!("trammel"), &json!("trammel"))
        );
        assert_eq!(plugin["mtu"], 1450);
        assert_eq!(plugin["ipMasq"], true);
        assert_eq!(plugin["policy"], "required");
        assert_eq!(plugin["capabilities"]["portMappings"], true);
        assert_eq!(plugin["capabilities"]["bandwidth"], true);
        assert_eq!(plugin.get("agentSocket"), None, "the default");
        let ranges = json!([[{"subnet": "10.88.3.0/24"}], [{"subnet": "fd88:3::/64"}]]);
        assert_eq!(plugin["ipam"]["ranges"], ranges);
    }

    #[test]
    fn old_runtimes_read_1_0_and_new_ones_choose_1_1() {
        let list = Conflist::new(Path::new("/x"), Path::new(DEFAULT_SOCKET), true);
        let list = parsed(&list.text(&nets(), 1450));
        assert_eq!(list["cniVersion"], "1.0.0");
        assert_eq!(list["cniVersions"], json!(["1.0.0", "1.1.0"]));
    }

    #[test]
    fn what_a_template_says_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("template");
        let template = json!({
            "name": "pods", "cniVersion": "1.0.0",
            "plugins": [
                {"type": "trammel", "mtu": 1300, "ipam": {"type": "trammel-ipam", "dataDir": "/d"}},
                {"type": "tuning"},
            ],
        });
        fs::write(&path, template.to_string()).expect("written");
        let list = Conflist::new(dir.path(), Path::new("/run/x.sock"), false);
        let list = list.with_template(&path).expect("a list");
        let list = parsed(&list.text(&nets(), 1450));
        let plugin = &list["plugins"][0];
        assert_eq!(
            (&list["name"], &list["plugins"][1]["type"]),
            (&json!("pods"), &json!("tuning"))
        );
        assert_eq!(
            (&plugin["mtu"], &plugin["ipMasq"]),
            (&json!(1300), &json!(false))
        );
        assert_eq!(plugin["agentSocket"], "/run/x.sock");
        assert_eq!(plugin["ipam"]["dataDir"], "/d");
        assert_eq!(plugin["ipam"]["ranges"][1][0]["subnet"], "fd88:3::/64");
    }

    #[test]
    fn a_template_without_the_plugin_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("template");
        let list = Conflist::new(dir.path(), Path::new("/x"), true);
        for text in ["{", "{}", r#"{"plugins": [{"type": "bridge"}]}"#] {
            fs::write(&path, text).expect("written");
            let error = list.clone().with_template(&path).expect_err(text);
            assert!(error.to_string().contains("template"), "{error}");
        }
    }

    /// cni.md 62.
    #[test]
    fn the_file_is_replaced_at_once_and_only_where_it_differs() {
        let dir = tempfile::tempdir().expect("a folder");
        let list = Conflist::new(dir.path(), Path::new("/x"), true);
        assert_eq!(list.write("one").expect("written"), Written::Changed);
        assert_eq!(list.write("one").expect("written"), Written::Unchanged);
        assert_eq!(list.write("two").expect("written"), Written::Changed);
        assert_eq!(fs::read_to_string(list.path()).expect("there"), "two");
        let names = fs::read_dir(dir.path()).expect("listed").count();
        assert_eq!(names, 1, "nothing else is left");
    }

    #[test]
    fn configurations_that_a_runtime_takes_first_are_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let list = Conflist::new(dir.path(), Path::new("/x"), true);
        for name in [
            "05-cilium.conflist",
            "10-bridge.conf",
            "00-notes.txt",
            "10-trammel.conflist",
            "87-podman.conflist",
        ] {
            fs::write(dir.path().join(name), "{}").expect("written");
        }
        assert_eq!(list.hidden_by(), ["05-cilium.conflist", "10-bridge.conf"]);
    }
}
