//! The result of ADD.

use dataplane::attachment::{MacAddr, Mode};
use ipnet::IpNet;
use serde_json::Value;

use super::connect::Links;
use super::{Address, Endpoint, Plan};
use crate::link;
use crate::spec::Error;
use crate::spec::result::{Addition, Interface, Ip};

impl Plan<'_> {
    /// Renders the result.
    pub(super) fn result(&self, endpoint: Endpoint, links: Links) -> Result<Value, Error> {
        let attachment = &endpoint.attachment;
        let end = |name: &str, mac: MacAddr, sandbox: Option<&str>| Interface {
            name: name.to_owned(),
            mac: mac.to_string(),
            mtu: Some(self.mtu),
            sandbox: sandbox.map(str::to_owned),
        };
        let host = &attachment.host_ifname;
        let mut interfaces: Vec<Interface> = links.bridge.into_iter().collect();
        interfaces.push(end(host, link::host_mac(host), None));
        interfaces.push(end(
            &self.target.ifname,
            attachment.mac,
            Some(self.netns_path),
        ));
        let position = interfaces.len() - 1;
        // Behind the pod's, as the reference plugin has it.
        interfaces.extend(links.gateway);
        let ip = |address: &Address| Ip {
            address: self.on_link(address),
            gateway: address.gateway,
            interface: Some(position),
        };
        let addition = Addition {
            ips: endpoint.addresses.iter().map(ip).collect(),
            interfaces,
            routes: endpoint.routes,
            dns: endpoint.dns,
        };
        addition.render(self.document.version, self.document.prev_result())
    }

    /// An address as the pod's interface carries it: only in mode `l2` are the others
    /// of its subnet on the same link.
    pub(super) fn on_link(&self, address: &Address) -> IpNet {
        match self.config.port.mode {
            Mode::L2 => address.net,
            Mode::RoutedPorts | Mode::Routed => IpNet::from(address.net.addr()),
        }
    }
}
