//! Scenarios on a real cluster: kube-apiserver, kubelets and containerd on two nodes, and
//! Trammel as their only network.
//!
//! `make cluster-test` starts one, runs these and takes it down. They also run on a
//! cluster of `tests/cluster/up`:
//!
//! ```sh
//! TRAMMEL_CLUSTER=~/.cache/trammel-cluster/run cargo test -p tests --test cluster
//! ```
//!
//! Without `TRAMMEL_CLUSTER` each says that it was skipped. One runs at a time, since
//! they stop the programs of the cluster, and each leaves it as it was.

mod backup;
mod cluster;
mod daemon_set;
mod deployments;
mod guarded;
mod http;
mod load;
mod manifests;
mod migration;
mod node;
mod objects;
mod outage;
mod policies;
mod space;
mod upgrade;
