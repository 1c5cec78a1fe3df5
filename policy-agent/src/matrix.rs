//! `matrix`: who reaches whom, on which ports, as the policies of the whole cluster say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use proxy::model::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::reach::{Reach, reach};
use crate::snapshot::Snapshot;
use crate::verdict::Cluster;

/// Marks of cells that reach some ports.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The pods of a namespace against each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Matrix {
    /// The namespace.
    pub namespace: String,
    /// Its pods that have addresses, by key.
    pub pods: Vec<String>,
    /// Its pods that have none, or are on the host network, with the reason.
    pub left_out: Vec<String>,
    /// Those of this node that another plugin has attached, with the interface: no policy is
    /// enforced on them.
    #[serde(default)]
    pub not_enforced: Vec<String>,
    /// Each pair of two pods.
    pub cells: Vec<Cell>,
}

/// What one pod reaches at another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// Who connects.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Over IPv4; `None` where one of them has no such address.
    pub ipv4: Option<Reach>,
    /// Over IPv6.
    pub ipv6: Option<Reach>,
}

/// Pods with their addresses.
pub(crate) type Pods = BTreeMap<ObjectKey, BTreeSet<IpAddr>>;

/// The matrix of a namespace.
///
/// # Errors
/// Where there is no such namespace.
pub fn matrix(snapshot: &Snapshot, namespace: &str) -> Result<Matrix, String> {
    let index = &snapshot.index;
    let is_known = index.namespaces.contains_key(namespace);
    if !is_known && index.pods_in(namespace).next().is_none() {
        let mut near: Vec<_> = index.namespaces.keys().collect();
        near.sort_by(|a, b| {
            let score = |name: &str| strsim::jaro_winkler(name, namespace);
            score(b).total_cmp(&score(a))
        });
        let near: Vec<_> = near.into_iter().take(3).map(String::as_str).collect();
        return Err(format!(
            "namespace {namespace} is not known: there are {} and others",
            near.join(", ")
        ));
    }
    let mut pods = Pods::new();
    let mut left_out = Vec::new();
    let mut not_enforced = Vec::new();
    for pod in index.pods_in(namespace) {
        let addresses = index.addresses(pod);
        if pod.host_network {
            left_out.push(format!("{}: on the host network", pod.key));
        } else if !pod.owns_addresses() {
            left_out.push(format!("{}: finished", pod.key));
        } else if addresses.is_empty() {
            left_out.push(format!("{}: no address yet", pod.key));
        } else {
            let unguarded = addresses.iter().find_map(|ip| snapshot.unguarded(*ip));
            let by = |interface| format!("{}: reached by {interface}", pod.key);
            not_enforced.extend(unguarded.map(by));
            pods.insert(pod.key.clone(), addresses);
        }
    }
    let cluster = snapshot.cluster();
    let mut cells = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| to.0 != from.0) {
            cells.push(cell(&cluster, from, to));
        }
    }
    Ok(Matrix {
        namespace: namespace.to_owned(),
        pods: pods.keys().map(ToString::to_string).collect(),
        left_out,
        not_enforced,
        cells,
    })
}

/// What a pod reaches at another, in each family that both have.
pub(crate) fn cell(
    cluster: &Cluster<'_>,
    from: (&ObjectKey, &BTreeSet<IpAddr>),
    to: (&ObjectKey, &BTreeSet<IpAddr>),
) -> Cell {
    let of = |is_v4: bool| {
        let first = |addresses: &BTreeSet<IpAddr>| {
            addresses.iter().find(|ip| ip.is_ipv4() == is_v4).copied()
        };
        Some(reach(cluster, first(from.1)?, first(to.1)?))
    };
    Cell {
        from: from.0.to_string(),
        to: to.0.to_string(),
        ipv4: of(true),
        ipv6: of(false),
    }
}

impl Cell {
    /// What it says: the families apart where they differ.
    pub fn text(&self) -> String {
        match (&self.ipv4, &self.ipv6) {
            (Some(v4), Some(v6)) if v4 != v6 => format!("IPv4 {v4}, IPv6 {v6}"),
            (Some(reach), _) | (None, Some(reach)) => reach.to_string(),
            (None, None) => "no common address family".into(),
        }
    }
}

impl fmt::Display for Matrix {
    /// A row for each pod that connects, a column for each that is connected to, and a
    /// legend. Without a final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: rows connect to columns", self.namespace)?;
        let name = |pod: &str| pod.split_once('/').map_or(pod, |(_, name)| name).to_owned();
        let width = self
            .pods
            .iter()
            .map(|pod| name(pod).len())
            .max()
            .unwrap_or(0);
        let numbers: String = (1..=self.pods.len()).map(|n| format!(" {n:>3}")).collect();
        write!(f, "\n{:>3} {:width$} {numbers}", "", "")?;
        let mut legend: Vec<String> = Vec::new();
        let mut cells = self.cells.iter();
        for (row, from) in self.pods.iter().enumerate() {
            write!(f, "\n{:>3} {:width$} ", row + 1, name(from))?;
            for (column, _) in self.pods.iter().enumerate() {
                if row == column {
                    write!(f, "   -")?;
                    continue;
                }
                let text = cells.next().map(Cell::text).unwrap_or_default();
                let mark = match text.as_str() {
                    "everything" => "+".to_owned(),
                    "nothing" => ".".to_owned(),
                    _ => {
                        let at = legend.iter().position(|known| *known == text);
                        let at = at.unwrap_or_else(|| {
                            legend.push(text);
                            legend.len() - 1
                        });
                        let letter = LETTERS.get(at).map(|letter| char::from(*letter));
                        letter.map_or_else(|| (at + 1).to_string(), String::from)
                    }
                };
                write!(f, " {mark:>3}")?;
            }
        }
        write!(f, "\n+ everything   . nothing")?;
        for (at, text) in legend.iter().enumerate() {
            let letter = LETTERS.get(at).map(|letter| char::from(*letter));
            let mark = letter.map_or_else(|| (at + 1).to_string(), String::from);
            write!(f, "\n{mark} {text}")?;
        }
        for pod in &self.left_out {
            write!(f, "\nleft out: {pod}")?;
        }
        for pod in &self.not_enforced {
            write!(
                f,
                "\nno policy is enforced on {pod}, another plugin's interface"
            )?;
        }
        Ok(())
    }
}
