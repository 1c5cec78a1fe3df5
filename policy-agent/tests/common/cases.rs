//! The NetworkPolicy cases that cyclonus generates: 256 steps per family, 123,669 cells
//! each with the expected egress, ingress and overall answer.
//!
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
use proxy::model::Protocol;
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

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
pub(crate) struct Step {
    pub(crate) policies: Vec<Value>,
    pub(crate) pods: Vec<CasePod>,
    #[serde(rename = "NS")]
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) table: Vec<Cell>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CasePod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "IP")]
    pub(crate) ip: IpAddr,
    pub(crate) containers: Vec<CaseContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CaseContainer {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    pub(crate) port_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Cell {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) egress: String,
    pub(crate) ingress: String,
    pub(crate) allowed: String,
}

/// The objects of one step.
pub(crate) struct World {
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) policies: Vec<NetworkPolicy>,
}

impl Step {
    /// Addresses by the names that cells give to pods.
    pub(crate) fn addresses(&self) -> BTreeMap<String, IpAddr> {
        let pods = self.pods.iter();
        pods.map(|pod| (format!("{}/{}", pod.namespace, pod.name), pod.ip))
            .collect()
    }
}

impl World {
    pub(crate) fn new(step: &Step) -> Result<Self> {
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

/// What was found of the cells judged so far.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) cells: usize,
    /// Cells of a pod and itself.
    pub(crate) to_itself: usize,
    /// One line each.
    pub(crate) differences: Vec<String>,
}

/// Calls `judge` with every step of a family and its title; it has to count every cell and
/// to find no difference. Asserts nothing where there are no cases on this machine.
pub(crate) fn agrees_in_every_cell(
    family: &str,
    judge: impl Fn(&mut Tally, &str, &Step) -> Result<()>,
) -> Result<()> {
    let Some(cases) = read_cases(family)? else {
        return Ok(());
    };
    let mut steps = 0;
    let mut tally = Tally::default();
    for case in &cases {
        for (i, step) in case.steps.iter().enumerate() {
            let title = format!("case {} step {} ({})", case.index, i + 1, case.description);
            judge(&mut tally, &title, step)?;
            steps += 1;
        }
    }
    assert!(
        tally.differences.is_empty(),
        "{} differences in {} cells, the first:\n{}",
        tally.differences.len(),
        tally.cells,
        tally.differences[..tally.differences.len().min(10)].join("\n")
    );
    assert_eq!((steps, tally.cells), (STEPS, CELLS));
    assert!(tally.to_itself > 0 && tally.to_itself < tally.cells / 8);
    Ok(())
}
