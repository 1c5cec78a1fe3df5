//! Conntrack entries that a hostPort leaves behind, or finds.
//!
//! A client that goes on sending over UDP keeps its entry, and so the pod that it led to. And
//! one that sent before there was a pod has an entry, too: to this host, where nobody
//! listened.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::attachment::{PortMapping, Transport};
use crate::kernel::KernelError;
use crate::netlink::conntrack::{Flow, forget_where};
use crate::netlink::socket::Nftables;
use crate::object::IpFamily;

/// Flows of hostPorts to forget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostPortFlows {
    /// The pod got the hostPorts: what reaches this host, and not the pod, by them.
    Acquired {
        /// The hostPorts.
        mappings: Vec<PortMapping>,
        /// The pod's addresses.
        pod: Vec<IpAddr>,
        /// This host's addresses.
        host: BTreeSet<IpAddr>,
    },
    /// The pod lost the hostPorts: what reaches it by them.
    Released {
        /// The hostPorts.
        mappings: Vec<PortMapping>,
        /// The pod's addresses.
        pod: Vec<IpAddr>,
    },
}

impl HostPortFlows {
    fn mappings(&self) -> &[PortMapping] {
        match self {
            Self::Acquired { mappings, .. } | Self::Released { mappings, .. } => mappings,
        }
    }

    fn is_stale(&self, protocol: Transport, flow: &Flow) -> bool {
        let (Self::Acquired { pod, .. } | Self::Released { pod, .. }) = self;
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == flow.frontend.is_ipv4();
        self.mappings().iter().any(|mapping| {
            let is_of_mapping = mapping.protocol == protocol
                && mapping.host_port == flow.frontend.port()
                && mapping.is_of(IpFamily::of(flow.frontend.ip()))
                && mapping
                    .only_address()
                    .is_none_or(|only| only == flow.frontend.ip());
            let leads_to_pod = pod
                .iter()
                .filter(of_family)
                .any(|ip| flow.endpoint == SocketAddr::new(*ip, mapping.container_port));
            let is_affected = match self {
                // Services come first, and have other addresses.
                Self::Acquired { host, .. } => host.contains(&flow.frontend.ip()) && !leads_to_pod,
                Self::Released { .. } => leads_to_pod,
            };
            is_of_mapping && is_affected
        })
    }
}

pub(super) fn forget(kernel: &mut Nftables, stale: &HostPortFlows) -> Result<usize, KernelError> {
    let mut forgotten = 0;
    for protocol in [Transport::Udp, Transport::Sctp] {
        for family in IpFamily::BOTH {
            let mut mappings = stale.mappings().iter();
            if mappings.any(|mapping| mapping.protocol == protocol && mapping.is_of(family)) {
                forgotten += forget_where(kernel, family, protocol.number(), |flow| {
                    stale.is_stale(protocol, flow)
                })?;
            }
        }
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(frontend: &str, endpoint: &str) -> Flow {
        Flow {
            frontend: frontend.parse().expect("an address and a port"),
            endpoint: endpoint.parse().expect("an address and a port"),
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        let ip = |text: &&str| text.parse().expect("an address");
        texts.iter().map(ip).collect()
    }

    #[test]
    fn only_flows_that_go_astray_are_stale() {
        let dns = PortMapping {
            host_ip: None,
            host_port: 5353,
            container_port: 53,
            protocol: Transport::Udp,
        };
        let pod = ips(&["10.88.0.2", "fd88::2"]);
        let acquired = HostPortFlows::Acquired {
            mappings: vec![dns],
            pod: pod.clone(),
            host: ips(&["192.0.2.2", "127.0.0.1", "2001:db8::2"])
                .into_iter()
                .collect(),
        };
        let released = HostPortFlows::Released {
            mappings: vec![dns],
            pod,
        };
        for (frontend, endpoint, by_acquired, by_released) in [
            // To the host itself, before there was a pod.
            ("192.0.2.2:5353", "192.0.2.2:5353", true, false),
            // To the pod that had it before.
            ("192.0.2.2:5353", "10.88.0.9:53", true, false),
            ("[2001:db8::2]:5353", "[fd88::9]:53", true, false),
            // To the pod that has it.
            ("192.0.2.2:5353", "10.88.0.2:53", false, true),
            ("[2001:db8::2]:5353", "[fd88::2]:53", false, true),
            // Another port, another port of the pod, another destination.
            ("192.0.2.2:53", "10.88.0.2:53", false, false),
            ("192.0.2.2:5353", "10.88.0.2:54", true, false),
            ("198.51.100.1:5353", "198.51.100.1:5353", false, false),
        ] {
            let flow = flow(frontend, endpoint);
            let stale = |flows: &HostPortFlows| flows.is_stale(Transport::Udp, &flow);
            assert_eq!(stale(&acquired), by_acquired, "{frontend} -> {endpoint}");
            assert_eq!(stale(&released), by_released, "{frontend} -> {endpoint}");
            assert!(!acquired.is_stale(Transport::Sctp, &flow));
        }
        let one = HostPortFlows::Acquired {
            mappings: vec![PortMapping {
                host_ip: Some(ips(&["192.0.2.3"])[0]),
                ..dns
            }],
            pod: Vec::new(),
            host: ips(&["192.0.2.2", "192.0.2.3"]).into_iter().collect(),
        };
        assert!(!one.is_stale(Transport::Udp, &flow("192.0.2.2:5353", "192.0.2.2:5353")));
        assert!(one.is_stale(Transport::Udp, &flow("192.0.2.3:5353", "192.0.2.3:5353")));
    }
}
