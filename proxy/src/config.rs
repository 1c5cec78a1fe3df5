//! Settings of the proxy.

use dataplane::layout::services::PodSources;
use ipnet::IpNet;

/// How this cluster wants its Services served. The default is that of kube-proxy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProxyConfig {
    /// How pods of the cluster are told from other senders.
    pub pod_sources: PodSources,
    /// Give this node's address to everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// `externalIPs` outside of these are not served; `None`: all are. Whoever may write a
    /// Service can take traffic to any address with them (CVE-2020-8554).
    pub external_ip_ranges: Option<Vec<IpNet>>,
    /// The same for `status.loadBalancer.ingress`.
    pub load_balancer_ip_ranges: Option<Vec<IpNet>>,
}
