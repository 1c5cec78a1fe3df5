//! A Kubernetes namespace of one scenario, and what runs in it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::inspect::items;
use tests::name;
use tests::netns::NetNs;
use tests::wait::eventually;

use crate::cluster::{Cluster, SOON};
use crate::objects::PORT;

/// A namespace. Deleted with all that is in it when dropped.
#[derive(Debug)]
pub(crate) struct Space<'c> {
    cluster: &'c Cluster,
    name: String,
}

/// A running pod.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Its name.
    pub(crate) name: String,
    /// The node that it runs on.
    pub(crate) node: String,
    /// IPv4 and IPv6.
    pub(crate) ips: [IpAddr; 2],
    /// Where its processes are.
    pub(crate) netns: NetNs,
}

impl Pod {
    /// Where it serves, in both families.
    pub(crate) fn targets(&self) -> [SocketAddr; 2] {
        self.ips.map(|ip| SocketAddr::new(ip, PORT))
    }
}

impl<'c> Space<'c> {
    /// A namespace with a name of its own.
    pub(crate) fn create(cluster: &'c Cluster, role: &str) -> Result<Self> {
        let space = Self {
            cluster,
            name: name::unique(role),
        };
        cluster.kubectl(&["create", "namespace", &space.name])?;
        // Pods are refused until it has its account.
        eventually(SOON, || {
            space.kubectl(&["get", "serviceaccount", "default"])
        })?;
        Ok(space)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in it.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// Creates or changes objects in it.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let mut objects = objects.to_vec();
        for object in &mut objects {
            object["metadata"]["namespace"] = json!(self.name);
        }
        self.cluster.apply(&objects)
    }

    /// Waits until a Deployment has rolled out.
    pub(crate) fn rolled_out(&self, deployment: &str) -> Result<()> {
        let target = format!("deployment/{deployment}");
        self.kubectl(&["rollout", "status", &target, "--timeout=180s"])?;
        Ok(())
    }

    /// The pods `app: NAME` that run and are not being deleted, sorted by name.
    pub(crate) fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let selector = format!("app={app}");
        let list = self
            .cluster
            .get(&["-n", &self.name, "pod", "-l", &selector])?;
        items(&list["items"])
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| self.pod(pod))
            .collect()
    }

    /// Waits for the one pod `app: NAME`.
    pub(crate) fn ready_pod(&self, app: &str) -> Result<Pod> {
        let selector = format!("app={app}");
        self.kubectl(&[
            "wait",
            "pod",
            "-l",
            &selector,
            "--for=condition=Ready",
            "--timeout=180s",
        ])?;
        let mut pods = self.pods(app)?;
        ensure!(pods.len() == 1, "{} pods of {app}", pods.len());
        Ok(pods.remove(0))
    }

    fn pod(&self, object: &Value) -> Result<Pod> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, node) = (
            text(&object["metadata"]["name"]),
            text(&object["spec"]["nodeName"]),
        );
        let ips: Vec<IpAddr> = items(&object["status"]["podIPs"])
            .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
            .collect();
        let [first, second] = ips[..] else {
            bail!("{name} has addresses {ips:?}, not one of each family");
        };
        let container = text(&object["status"]["containerStatuses"][0]["containerID"]);
        Ok(Pod {
            netns: self.cluster.pod_netns(&node, &name, &container)?,
            ips: if first.is_ipv4() {
                [first, second]
            } else {
                [second, first]
            },
            name,
            node,
        })
    }

    /// The cluster IPs of a Service with its port, IPv4 first, and its node port.
    pub(crate) fn service(&self, name: &str) -> Result<(Vec<SocketAddr>, u16)> {
        let service = self.cluster.get(&["-n", &self.name, "service", name])?;
        let port = &service["spec"]["ports"][0];
        let number = |key: &str| {
            port[key]
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())
        };
        let own = number("port").with_context(|| format!("{name} has no port"))?;
        let mut ips: Vec<IpAddr> = items(&service["spec"]["clusterIPs"])
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect();
        ips.sort_by_key(IpAddr::is_ipv6);
        Ok((
            ips.into_iter().map(|ip| SocketAddr::new(ip, own)).collect(),
            number("nodePort").unwrap_or_default(),
        ))
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.name, "--wait=false"];
        if let Err(error) = self.cluster.kubectl(&delete) {
            eprintln!("cannot delete a Kubernetes namespace: {error:#}");
        }
    }
}
