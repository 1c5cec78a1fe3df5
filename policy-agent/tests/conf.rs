//! The manifests in `conf/`: every file is what its kind allows and nothing else, the rights
//! are those that the agent uses, and its arguments and settings are those that it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use policy_agent::args::{self, Arguments};
use policy_agent::config::Config;
use policy_agent::install::PROGRAMS;
use policy_agent::source::kubernetes::{Right, rights};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Overlays and other folders that `kubectl apply -k` takes.
const KUSTOMIZATIONS: [&str; 7] = [
    ".",
    "base",
    "overlays/dual-stack",
    "overlays/ipv4",
    "overlays/ipv6",
    "overlays/kube-proxy",
    "uninstall",
];

fn conf() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().expect("a workspace").join("conf")
}

/// All files below `conf/` with one of the extensions, by their paths from there.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![conf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let extension = path.extension().unwrap_or_default();
            if extensions.iter().any(|known| extension == *known) {
                found.push(path.strip_prefix(conf()).expect("below").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    documents
        .into_iter()
        .filter(|value| !value.is_null())
        .collect()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = conf().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The object as its type, which has to hold all that is written: an API server would drop
/// an unknown field, and `kubectl` refuse it.
fn typed<T: DeserializeOwned + Serialize>(value: &Value) -> T {
    let typed: T =
        serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value:#}"));
    let back = serde_json::to_value(&typed).expect("JSON");
    assert_eq!(lost("", value, &back), Vec::<String>::new());
    typed
}

/// Paths of what is in the first value and not in the second.
fn lost(path: &str, written: &Value, kept: &Value) -> Vec<String> {
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => written
            .iter()
            .flat_map(|(key, value)| {
                let path = format!("{path}.{key}");
                match kept.get(key) {
                    Some(kept) => lost(&path, value, kept),
                    None => vec![path],
                }
            })
            .collect(),
        (Value::Array(written), Value::Array(kept)) if written.len() == kept.len() => {
            let pairs = written.iter().zip(kept).enumerate();
            pairs
                .flat_map(|(i, (written, kept))| lost(&format!("{path}[{i}]"), written, kept))
                .collect()
        }
        _ if written == kept => Vec::new(),
        _ => vec![path.to_owned()],
    }
}

/// Checks an object by its kind and returns its pods' template, if it has one.
fn check(object: &Value) -> Option<PodSpec> {
    match object["kind"].as_str().unwrap_or_default() {
        "DaemonSet" => {
            let set: DaemonSet = typed(object);
            let spec = set.spec.expect("a spec");
            let labels = spec
                .template
                .metadata
                .and_then(|meta| meta.labels)
                .unwrap_or_default();
            for (key, value) in spec.selector.match_labels.unwrap_or_default() {
                assert_eq!(
                    labels.get(&key),
                    Some(&value),
                    "the selector selects its pods"
                );
            }
            return spec.template.spec;
        }
        "ServiceAccount" => drop(typed::<ServiceAccount>(object)),
        "ClusterRole" => drop(typed::<ClusterRole>(object)),
        "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(object)),
        "ConfigMap" => drop(typed::<ConfigMap>(object)),
        "Service" => drop(typed::<Service>(object)),
        other => panic!("kind {other:?} is not known to this test"),
    }
    None
}

/// The arguments of a container of ours, understood as the program does.
fn arguments(container: &Container) -> args::Command {
    let environment: BTreeMap<_, _> = container
        .env
        .iter()
        .flatten()
        .filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)))
        .collect();
    let words = container.args.iter().flatten().map(|word| {
        environment
            .iter()
            .fold(word.clone(), |word, (name, value)| {
                word.replace(&format!("$({name})"), value)
            })
    });
    let words = std::iter::once("trammel-agent".to_owned()).chain(words);
    // The name of the node is known to the kubelet alone.
    let named = words.chain((container.name == "agent").then(|| "--node-name=n1".to_owned()));
    match Arguments::try_parse_from(named) {
        Ok(arguments) => arguments.command,
        Err(error) => panic!("container {}: {error}", container.name),
    }
}

fn settings(text: &str) -> Config {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), text).expect("written");
    Config::read(file.path()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_file_is_of_a_known_kind_without_unknown_fields() {
    let mut seen = BTreeSet::new();
    for path in files(&["yaml", "yml"]) {
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let text = read(&path);
        match name.as_str() {
            "kustomization.yaml" => {}
            "config.yaml" => drop(settings(&text)),
            // A patch is a part of an object: its result is looked at below.
            "daemon-set.yaml" if path.starts_with("overlays") => {}
            _ => documents(&text).iter().for_each(|object| {
                seen.insert(object["kind"].as_str().unwrap_or_default().to_owned());
                check(object);
            }),
        }
    }
    let expected = [
        "ClusterRole",
        "ClusterRoleBinding",
        "DaemonSet",
        "Service",
        "ServiceAccount",
    ];
    assert_eq!(
        seen.iter().collect::<Vec<_>>(),
        expected.iter().collect::<Vec<_>>()
    );
}

#[test]
fn an_unknown_field_would_be_noticed() {
    let object = serde_json::json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "a"}, "automountServiceAccountTokens": false});
    let typed: ServiceAccount = serde_json::from_value(object.clone()).expect("a ServiceAccount");
    let back = serde_json::to_value(&typed).expect("JSON");
    assert_eq!(lost("", &object, &back), [".automountServiceAccountTokens"]);
}

#[test]
fn what_kustomizations_name_is_there() {
    let known: BTreeSet<_> = KUSTOMIZATIONS
        .iter()
        .map(|name| conf().join(name))
        .collect();
    for path in files(&["yaml"])
        .iter()
        .filter(|path| path.ends_with("kustomization.yaml"))
    {
        let folder = conf().join(path).parent().expect("a folder").to_owned();
        let folder = folder.components().collect::<PathBuf>();
        assert!(
            known
                .iter()
                .any(|known| known.components().collect::<PathBuf>() == folder),
            "{} is not in the list of this test",
            folder.display()
        );
        let kustomization = documents(&read(path)).remove(0);
        let of = |key: &str| kustomization[key].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut named: Vec<String> = of("resources").iter().map(text).collect();
        named.extend(of("patches").iter().map(|patch| text(&patch["path"])));
        for generator in of("configMapGenerator") {
            let files = generator["files"].as_array().cloned().unwrap_or_default();
            named.extend(files.iter().map(text));
        }
        assert!(!named.is_empty(), "{}", path.display());
        for name in named {
            assert!(folder.join(&name).exists(), "{}: {name}", path.display());
        }
    }
}

/// The ClusterRole grants exactly what the code asks for.
#[test]
fn the_rights_are_those_that_the_agent_uses() {
    let documents = documents(&read("base/cluster-role.yaml"));
    let role: ClusterRole = typed(&documents[0]);
    let mut granted = BTreeSet::new();
    for rule in role.rules.unwrap_or_default() {
        assert_eq!(rule.resource_names, None);
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    let is_new = granted.insert((group.clone(), resource.clone(), verb.clone()));
                    assert!(is_new, "{resource} {verb} is granted twice");
                }
            }
        }
    }
    let mut used = BTreeSet::new();
    for Right {
        group,
        resource,
        verbs,
        ..
    } in rights()
    {
        let verbs = verbs
            .into_iter()
            .map(|verb| (group.clone(), resource.clone(), verb.to_owned()));
        used.extend(verbs);
    }
    assert_eq!(granted, used);
    let readme = read("../README.md");
    for (group, resource, _) in &used {
        let name = match group.as_str() {
            "" => resource.clone(),
            group => format!("{resource}.{group}"),
        };
        assert!(readme.contains(&name), "the README names {name}");
    }
}

/// Whether the pods of the DaemonSets can do their work: arguments, ports, folders.
fn check_agent(pods: &PodSpec, settings: &Config) {
    let agent = pods
        .containers
        .iter()
        .find(|container| container.name == "agent");
    let agent = agent.expect("the container agent");
    let args::Command::Run(run) = arguments(agent) else {
        panic!("the agent runs");
    };
    let listen = run.listen.expect("an address");
    assert!(
        listen.ip().is_unspecified(),
        "metrics are asked for from outside"
    );
    let ports: BTreeMap<_, _> = agent
        .ports
        .iter()
        .flatten()
        .map(|port| (port.name.clone().unwrap_or_default(), port.container_port))
        .collect();
    assert_eq!(ports.get("metrics"), Some(&i32::from(listen.port())));
    if let Some(address) = settings.services.healthz_bind_address {
        assert_eq!(ports.get("healthz"), Some(&i32::from(address.port())));
    }
    for (probe, path) in [
        (&agent.liveness_probe, "/livez"),
        (&agent.readiness_probe, "/readyz"),
    ] {
        let probe = probe.as_ref().and_then(|probe| probe.http_get.as_ref());
        let probe = probe.expect("a probe by HTTP");
        assert_eq!(probe.path.as_deref(), Some(path));
    }
    let mounted = |container: &Container, path: &Path| {
        let mounts = container.volume_mounts.iter().flatten();
        mounts
            .clone()
            .any(|mount| path.starts_with(&mount.mount_path) && mount.read_only != Some(true))
    };
    let network = run.network.over(settings.network.clone());
    assert!(network.is_on(), "the agent is the only network");
    let conf_dir = network
        .cni_conf_dir
        .expect("the network configuration is written");
    // The image is read only: whatever the agent writes is a folder of the node.
    assert!(mounted(agent, &conf_dir));
    for path in [run.socket.as_path(), Path::new("/var/lib/cni/networks")] {
        assert!(mounted(agent, path), "{}", path.display());
    }
    let inits = pods.init_containers.iter().flatten();
    let install: Vec<_> = inits.clone().map(arguments).collect();
    assert_eq!(install.len(), 2);
    for (container, command) in inits.zip(&install) {
        let args::Command::Install(install) = command else {
            panic!("{command:?}");
        };
        for folder in install.to.iter().chain(&install.sysctl_dir) {
            assert!(mounted(container, folder), "{}", folder.display());
        }
    }
    check_security(pods, agent);
}

fn check_security(pods: &PodSpec, agent: &Container) {
    assert_eq!(pods.host_network, Some(true));
    assert_eq!(
        pods.priority_class_name.as_deref(),
        Some("system-node-critical")
    );
    let tolerations = pods.tolerations.as_deref().unwrap_or_default();
    assert!(
        tolerations.iter().any(|toleration| {
            toleration.operator.as_deref() == Some("Exists")
                && toleration.key.is_none()
                && toleration.effect.is_none()
        }),
        "a node without a network is tainted"
    );
    let security = agent.security_context.as_ref().expect("a security context");
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.privileged, None);
    let capabilities = security.capabilities.as_ref().expect("capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    // The suite `capabilities` runs the agent with exactly these.
    let added = ["NET_ADMIN", "SYS_ADMIN"].map(str::to_owned);
    assert_eq!(capabilities.add.as_deref(), Some(&added[..]));
    let volumes: BTreeSet<_> = pods
        .volumes
        .iter()
        .flatten()
        .map(|v| v.name.as_str())
        .collect();
    let containers = pods
        .containers
        .iter()
        .chain(pods.init_containers.iter().flatten());
    for container in containers {
        for mount in container.volume_mounts.iter().flatten() {
            assert!(volumes.contains(mount.name.as_str()), "{}", mount.name);
        }
    }
}

#[test]
fn the_base_runs_the_agent_as_it_can_be_run() {
    let object = documents(&read("base/daemon-set.yaml")).remove(0);
    let pods = check(&object).expect("a template");
    check_agent(&pods, &settings(&read("base/config.yaml")));
}

/// A ServiceMonitor finds the agents by their Service, and the port by its name.
#[test]
fn the_service_of_metrics_leads_to_the_agents() {
    let object = documents(&read("base/daemon-set.yaml")).remove(0);
    let template = typed::<DaemonSet>(&object).spec.expect("a spec").template;
    let labels = template.metadata.and_then(|metadata| metadata.labels);
    let service: Service = typed(&documents(&read("base/service.yaml"))[0]);
    let spec = service.spec.expect("a spec");
    assert_eq!(spec.selector, labels);
    let port = &spec.ports.expect("a port")[0];
    let containers = template.spec.expect("pods").containers;
    let mut ports = containers.iter().flat_map(|it| it.ports.iter().flatten());
    let served = ports.find(|served| served.name == port.name);
    assert_eq!(served.map(|served| served.container_port), Some(port.port));
}

#[test]
fn the_uninstall_step_runs_as_it_can_be_run() {
    let object = documents(&read("uninstall/daemon-set.yaml")).remove(0);
    let pods = check(&object).expect("a template");
    let container = &pods.init_containers.expect("a step")[0];
    let args::Command::Cleanup(cleanup) = arguments(container) else {
        panic!("it cleans up");
    };
    let folders = [
        cleanup.cni_conf_dir,
        cleanup.cni_bin_dir,
        cleanup.sysctl_dir,
        cleanup.data_dir,
        cleanup.state_dir,
        Some(cleanup.client.socket),
    ];
    for folder in folders {
        let folder = folder.expect("all is removed");
        let mut mounts = container.volume_mounts.iter().flatten();
        let is_mounted = mounts.any(|mount| folder.starts_with(&mount.mount_path));
        assert!(is_mounted, "{}", folder.display());
    }
    assert!(
        cleanup.wait && !cleanup.force,
        "no pod is left without a way out"
    );
}

/// The result of each overlay, with the resolver that users have.
#[test]
fn every_overlay_resolves_to_objects_that_work() {
    let kubectl = std::env::var_os("TRAMMEL_KUBECTL").unwrap_or_else(|| "kubectl".into());
    for name in KUSTOMIZATIONS {
        let mut command = Command::new(&kubectl);
        let output = match command.arg("kustomize").arg(conf().join(name)).output() {
            Ok(output) => output,
            Err(error) => {
                // Past the capture of the test runner.
                use std::io::Write as _;
                let mut out = std::io::stderr();
                writeln!(
                    out,
                    "SKIP every_overlay_resolves_to_objects_that_work: no kubectl: {error}"
                )
                .ok();
                return;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(!said.to_lowercase().contains("deprecat"), "{name}: {said}");
        let objects = documents(&String::from_utf8_lossy(&output.stdout));
        let namespaced = objects
            .iter()
            .filter(|o| o["kind"] != "ClusterRole" && o["kind"] != "ClusterRoleBinding");
        for object in namespaced {
            assert_eq!(
                object["metadata"]["namespace"], "kube-system",
                "{name}: {object:#}"
            );
        }
        let configs = objects.iter().filter(|o| o["kind"] == "ConfigMap");
        for config in configs.clone() {
            // By which conf/README.md has those of earlier settings removed.
            let labels = &config["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/name"], "trammel", "{name}");
        }
        let configs: Vec<_> = configs
            .map(|object| object["data"]["config.yaml"].as_str().expect("settings"))
            .collect();
        for pods in objects.iter().filter_map(check) {
            let containers = pods
                .containers
                .iter()
                .chain(pods.init_containers.iter().flatten());
            for container in containers {
                let image = container.image.as_deref().unwrap_or_default();
                assert!(
                    image.contains('/') && image.contains(':'),
                    "{name}: image {image:?}"
                );
            }
            if configs.is_empty() {
                continue;
            }
            let config = settings(configs[0]);
            check_agent(&pods, &config);
            let serves = name != "overlays/kube-proxy";
            assert_eq!(config.services.enabled, serves, "{name}");
        }
        assert_eq!(configs.len(), usize::from(name != "uninstall"), "{name}");
    }
}

#[test]
fn the_image_has_the_programs_that_are_installed_from_it() {
    let containerfile = read("Containerfile");
    assert!(containerfile.contains("FROM scratch"));
    for program in PROGRAMS.iter().chain(&["trammel-agent"]) {
        assert!(
            containerfile.contains(&format!("target/release/{program} ")),
            "{program}: they lie in one folder, where install looks for them"
        );
    }
}
