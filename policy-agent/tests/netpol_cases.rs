//! The verdict oracle against the cases that cyclonus generates: 256 steps per family,
//! 123,669 cells each with the expected egress, ingress and overall answer.
//!
//! The policies and pods go through the same conversion as those of an API server.
//! The data lies outside the crate: `TRAMMEL_SHARED` names the folder that holds
//! `netpol-cases` (default `../../shared` from the crate).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use policy_agent::event::Object;
use policy_agent::model::{Namespace, NetworkPolicy, Pod};
use policy_agent::source::convert::Convert;
use policy_agent::verdict::{Cluster, Flow, Judgement, Path, Transport};
use proxy::model::Protocol;
use serde::Deserialize;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Cells of one family, as the data's README states.
const CELLS: usize = 123_669;
const STEPS: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Case {
    index: usize,
    description: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    policies: Vec<Value>,
    pods: Vec<CasePod>,
    #[serde(rename = "NS")]
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    table: Vec<Cell>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CasePod {
    namespace: String,
    name: String,
    labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "IP")]
    ip: IpAddr,
    containers: Vec<CaseContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CaseContainer {
    name: String,
    port: u16,
    protocol: String,
    port_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Cell {
    from: String,
    to: String,
    protocol: Protocol,
    port: u16,
    egress: String,
    ingress: String,
    allowed: String,
}

/// The objects of one step.
struct World {
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
}

#[derive(Default)]
struct Tally {
    steps: usize,
    cells: usize,
    to_itself: usize,
    differences: Vec<String>,
}

impl World {
    fn new(step: &Step) -> Result<Self> {
        let mut world = Self {
            namespaces: Vec::new(),
            pods: Vec::new(),
            policies: Vec::new(),
        };
        for (name, labels) in &step.namespaces {
            world.add::<core::Namespace>(json!({"metadata": {"name": name, "labels": labels}}))?;
        }
        for pod in &step.pods {
            world.add::<core::Pod>(pod.manifest())?;
        }
        for policy in &step.policies {
            world.add::<networking::NetworkPolicy>(policy.clone())?;
        }
        Ok(world)
    }

    fn add<K: Convert + serde::de::DeserializeOwned>(&mut self, manifest: Value) -> Result<()> {
        match serde_json::from_value::<K>(manifest)?.convert()? {
            Some(Object::Namespace(namespace)) => self.namespaces.push(namespace),
            Some(Object::Pod(pod)) => self.pods.push(pod),
            Some(Object::NetworkPolicy(policy)) => {
                if !policy.problems.is_empty() {
                    return Err(format!("{}: {:?}", policy.key, policy.problems).into());
                }
                self.policies.push(policy);
            }
            other => return Err(format!("unexpected {other:?}").into()),
        }
        Ok(())
    }

    fn cluster(&self) -> Cluster<'_> {
        let pods = self.pods.iter().map(|pod| (pod, pod.ips.iter().copied()));
        Cluster::new(&self.namespaces, pods, &self.policies, [])
    }
}

impl CasePod {
    fn manifest(&self) -> Value {
        let container = |c: &CaseContainer| {
            let ports =
                json!([{"name": c.port_name, "containerPort": c.port, "protocol": c.protocol}]);
            json!({"name": c.name, "ports": ports})
        };
        json!({
            "metadata": {"namespace": self.namespace, "name": self.name, "labels": self.labels},
            "spec": {"containers": self.containers.iter().map(container).collect::<Vec<_>>()},
            "status": {"phase": "Running", "podIPs": [{"ip": self.ip}]},
        })
    }
}

impl Tally {
    fn step(&mut self, title: &str, step: &Step) -> Result<()> {
        let world = World::new(step)?;
        let cluster = world.cluster();
        let addresses: BTreeMap<String, IpAddr> = step
            .pods
            .iter()
            .map(|pod| (format!("{}/{}", pod.namespace, pod.name), pod.ip))
            .collect();
        self.steps += 1;
        for cell in &step.table {
            self.cells += 1;
            let verdict = cluster.judge(&Flow {
                source: addresses[&cell.from],
                destination: addresses[&cell.to],
                transport: Transport::Port(cell.protocol, cell.port),
            });
            // The cases judge these like any other pair; the API always allows them.
            if cell.from == cell.to {
                self.to_itself += 1;
                assert_eq!(verdict.path, Path::PodToItself, "{title}: {}", cell.from);
                assert!(verdict.is_allowed());
                continue;
            }
            let word = |allowed| if allowed { "allowed" } else { "blocked" };
            let got = [
                word(verdict.egress.is_allowed()),
                word(verdict.ingress.is_allowed()),
                word(verdict.is_allowed()),
            ];
            let expected = [&cell.egress, &cell.ingress, &cell.allowed];
            if got != expected.map(String::as_str) {
                self.differences.push(format!(
                    "{title}: {} -> {} {}/{}: expected {expected:?}, got {got:?}: {verdict}",
                    cell.from, cell.to, cell.port, cell.protocol,
                ));
            }
            assert_ne!(verdict.egress, Judgement::Exempt);
            assert_ne!(verdict.ingress, Judgement::Exempt);
        }
        Ok(())
    }
}

/// The cases, or `None` where there are none on this machine.
fn read_cases(family: &str) -> Result<Option<Vec<Case>>> {
    let named = std::env::var_os("TRAMMEL_SHARED").map(PathBuf::from);
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let is_named = named.is_some();
    let folder = named.unwrap_or_else(default).join("netpol-cases");
    if !is_named && !folder.is_dir() {
        // Past the capture of the test harness, which hides what a passing test prints.
        writeln!(
            std::io::stderr(),
            "SKIPPED: no NetworkPolicy cases in {}: set TRAMMEL_SHARED to the folder that holds \
             netpol-cases",
            folder.display()
        )?;
        return Ok(None);
    }
    let mut text = String::new();
    let file = File::open(folder.join(format!("cases-{family}.json.gz")))?;
    GzDecoder::new(file).read_to_string(&mut text)?;
    Ok(Some(serde_json::from_str(&text)?))
}

fn agrees_in_every_cell(family: &str) -> Result<()> {
    let Some(cases) = read_cases(family)? else {
        return Ok(());
    };
    let mut tally = Tally::default();
    for case in &cases {
        for (i, step) in case.steps.iter().enumerate() {
            let title = format!("case {} step {} ({})", case.index, i + 1, case.description);
            tally.step(&title, step)?;
        }
    }
    assert!(
        tally.differences.is_empty(),
        "{} of {} cells differ, the first:\n{}",
        tally.differences.len(),
        tally.cells,
        tally.differences[..tally.differences.len().min(10)].join("\n")
    );
    assert_eq!((tally.steps, tally.cells), (STEPS, CELLS));
    assert!(tally.to_itself > 0 && tally.to_itself < tally.cells / 8);
    Ok(())
}

#[test]
fn the_oracle_agrees_with_every_ipv4_case() -> Result<()> {
    agrees_in_every_cell("v4")
}

#[test]
fn the_oracle_agrees_with_every_ipv6_case() -> Result<()> {
    agrees_in_every_cell("v6")
}
