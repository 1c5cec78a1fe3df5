//! The links: a batch to the host's namespace and one to the pod's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::attachment::{MacAddr, Mode};
use dataplane::bridge_netfilter;
use ipnet::IpNet;
use netlink_packet_route::neighbour::NeighbourState;
use nix::errno::Errno;

use super::made::Made;
use super::{Endpoint, Plan};
use crate::bridge::{Role, Wanted};
use crate::carrier::Way;
use crate::link::{self, BridgePort, HostEnd, PodEnd, RoutedEnd};
use crate::netlink::observed::Link;
use crate::netlink::{Answer, Answers, Batch, Socket};
use crate::shaping::Shaper;
use crate::spec::result::Interface;
use crate::spec::{Code, Error, Vlans};
use crate::sysctl;

/// The interfaces of the node that the pod's link leads to, as result and kernel know them.
#[derive(Default)]
pub(super) struct Links {
    /// The bridge, where the mode has one.
    pub(super) bridge: Option<Interface>,
    /// The gateway of its VLAN, where it is in one.
    pub(super) gateway: Option<Interface>,
}

/// The gateway of a VLAN, but for the bridge that it is on.
struct VlanGateway<'a> {
    wanted: Wanted<'a>,
    vlans: Vlans,
}

impl VlanGateway<'_> {
    fn on(&self, bridge: u32) -> Wanted<'_> {
        let vlans = &self.vlans;
        Wanted {
            role: Role::Gateway { bridge, vlans },
            ..self.wanted.clone()
        }
    }
}

impl Plan<'_> {
    /// Makes the pair of links and sets both ends up. Returns what else there is between
    /// them and the node.
    pub(super) fn connect(
        &self,
        made: &mut Made<'_>,
        host: &mut Socket,
        endpoint: &Endpoint,
    ) -> Result<Links, Error> {
        if self.config.port.mode == Mode::Routed {
            self.connect_routed(made, host, endpoint)?;
            return Ok(Links::default());
        }
        let vlans = self.config.port.vlans.as_ref();
        let mut wanted = self.bridge(endpoint);
        let vlan_gateway = self.vlan_gateway(&mut wanted, endpoint);
        let (index, gateway) = match &vlan_gateway {
            None => (wanted.ensure(host)?, None),
            // It needs VLANs on the bridge, and nobody else does before the port.
            Some(gateway) => {
                let bridge = wanted.make_ready(host)?.index;
                (bridge, Some(gateway.on(bridge).make_ready(host)?))
            }
        };
        let port = BridgePort {
            bridge: index,
            gateway: match (&gateway, vlans.and_then(|vlans| vlans.access)) {
                (Some(gateway), _) => Some(gateway.index),
                (None, Some(_)) => None,
                (None, None) => Some(index),
            },
            hairpin: self.config.port.hairpin,
            isolated: match self.config.port.mode {
                Mode::L2 => self.config.port.isolated,
                Mode::RoutedPorts | Mode::Routed => !bridge_netfilter::is_on(),
            },
            vlans,
        };
        let mut batch = Batch::default();
        wanted.push_query(&mut batch, index);
        let create = batch.count();
        let attachment = &endpoint.attachment;
        // Limits and VLANs name their devices by index.
        let by_index = attachment.bandwidth.is_some() || vlans.is_some();
        let index = by_index.then(|| link::chosen_index(host, &attachment.host_ifname));
        self.push_host_end(&mut batch, made, endpoint, index, Some(port));
        // Before the link exists, for what may fail.
        let visit = self.netns.enter(&self.home)?;
        let mut pod = Socket::open()?;
        let answers = host.run(batch)?;
        // What the kernel has made is to be undone, whatever is wrong with the bridge.
        made.link = answers.get(create).outcome.is_ok();
        let plan = wanted.plan(host, &answers)?;
        self.note_link(made, &answers, create)?;
        let pod_index = self.pod_index(&pod)?;
        self.pod_settings(endpoint)?;
        visit.leave();
        wanted.apply(host, &plan)?;
        let carrier = gateway.as_ref().unwrap_or(&plan.link);
        let mac = carrier.mac.filter(|_| self.config.port.is_gateway);
        self.set_up_pod_end(host, &mut pod, pod_index, endpoint, mac)?;
        Ok(Links {
            bridge: Some(interface(wanted.name, &plan.link)),
            gateway: gateway.map(|link| interface(&link.name, &link)),
        })
    }

    /// Without a bridge: what it would have, the host's end has.
    fn connect_routed(
        &self,
        made: &mut Made<'_>,
        host: &mut Socket,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        let attachment = &endpoint.attachment;
        let name = attachment.host_ifname.as_str();
        let index = link::chosen_index(host, name);
        let mut batch = Batch::default();
        self.push_host_end(&mut batch, made, endpoint, Some(index), None);
        // Where links begin without IPv6, this one takes addresses of it only behind a setting
        // of its own, and that needs a send more.
        let begins_without_ipv6 = attachment.ips.iter().any(IpAddr::is_ipv6)
            && sysctl::is("ipv6/conf/default/disable_ipv6", "1");
        if begins_without_ipv6 {
            let answers = host.run(std::mem::take(&mut batch))?;
            self.note_link(made, &answers, 0)?;
            self.host_settings(name, endpoint)?;
        }
        let end = RoutedEnd {
            index,
            name,
            pod_mac: attachment.mac,
            ips: &attachment.ips,
            gateways: &gateways(endpoint),
        };
        end.push_to(&mut batch);
        let visit = self.netns.enter(&self.home)?;
        let mut pod = Socket::open()?;
        let answers = host.run(batch)?;
        if begins_without_ipv6 {
            answers.all_done()?;
        } else {
            self.note_link(made, &answers, 0)?;
        }
        let pod_index = self.pod_index(&pod)?;
        self.pod_settings(endpoint)?;
        visit.leave();
        self.host_settings(name, endpoint)?;
        let mac = Some(link::host_mac(name));
        self.set_up_pod_end(host, &mut pod, pod_index, endpoint, mac)
    }

    /// Adds the addresses and routes to a link that was made without.
    pub(super) fn address(&self, host: &mut Socket, endpoint: &Endpoint) -> Result<(), Error> {
        let visit = self.netns.enter(&self.home)?;
        let mut pod = Socket::open()?;
        self.pod_settings(endpoint)?;
        visit.leave();
        let index = self.pod_index(&pod)?;
        self.set_up_pod_end(host, &mut pod, index, endpoint, None)
    }

    fn bridge<'a>(&'a self, endpoint: &Endpoint) -> Wanted<'a> {
        let gateways: Vec<IpNet> = match &self.config.pool {
            _ if !self.config.port.is_gateway => Vec::new(),
            // Those of pools that are not in use yet, too: they are one network.
            Some(pool) => {
                let ranges = pool.ranges.iter().flat_map(ipam::RangeSet::ranges);
                ranges.map(ipam::Range::gateway_net).collect()
            }
            None => {
                let net = |address: &super::Address| {
                    IpNet::new(address.gateway?, address.net.prefix_len()).ok()
                };
                endpoint.addresses.iter().filter_map(net).collect()
            }
        };
        let role = match self.config.port.mode {
            Mode::L2 if self.config.port.vlans.is_some() => Role::Vlans,
            Mode::L2 => Role::Switched,
            Mode::RoutedPorts | Mode::Routed => Role::Routed,
        };
        Wanted::new(
            &self.document.bridge,
            role,
            gateways,
            self.mtu,
            self.config.force_address,
        )
    }

    /// The gateway of the pod's VLAN, which has the addresses that the bridge would have: it
    /// is in all VLANs, and would lead from each to the others.
    fn vlan_gateway<'a>(
        &self,
        bridge: &mut Wanted<'a>,
        endpoint: &'a Endpoint,
    ) -> Option<VlanGateway<'a>> {
        let name = endpoint.attachment.undo.vlan_gateway.as_deref()?;
        let vlans = self.config.port.vlans.as_ref()?.of_gateway();
        let gateways = std::mem::take(&mut bridge.gateways);
        let wanted = Wanted {
            name,
            gateways,
            ..bridge.clone()
        };
        Some(VlanGateway { wanted, vlans })
    }

    fn push_host_end(
        &self,
        batch: &mut Batch,
        made: &mut Made<'_>,
        endpoint: &Endpoint,
        index: Option<u32>,
        port: Option<BridgePort<'_>>,
    ) {
        let attachment = &endpoint.attachment;
        let end = HostEnd {
            name: &attachment.host_ifname,
            index,
            port,
            netns: &self.netns,
            pod_name: &self.target.ifname,
            pod_mac: attachment.mac,
            mtu: self.mtu,
            ips: &attachment.ips,
        };
        end.push_to(batch);
        if let (Some(shaper), Some(index)) = (Shaper::of(attachment), index) {
            shaper.push_to(batch, index, &attachment.ips, self.mtu);
            // Whatever becomes of it: its name is ours alone.
            made.ifb = true;
        }
    }

    /// Ends with the link carrying packets. `mac` is the Ethernet address of the gateways,
    /// where they are the node.
    fn set_up_pod_end(
        &self,
        host: &mut Socket,
        pod: &mut Socket,
        index: u32,
        endpoint: &Endpoint,
        mac: Option<MacAddr>,
    ) -> Result<(), Error> {
        let attachment = &endpoint.attachment;
        let nets: Vec<IpNet> = endpoint
            .addresses
            .iter()
            .map(|address| self.on_link(address))
            .collect();
        let gateways = gateways(endpoint);
        let mode = self.config.port.mode;
        let is_routed = mode == Mode::Routed;
        // A bridge hears the question for an IPv6 address that it has just got only when a
        // work of the kernel's has joined the group that it is sent to, and who asks before
        // asks again after a second. Other than of a routed veth it may get another.
        let is_late = |ip: &&IpAddr| is_routed || ip.is_ipv6();
        let neighbours: Vec<(IpAddr, MacAddr)> = gateways
            .iter()
            .filter(is_late)
            .filter_map(|ip| Some((*ip, mac?)))
            .collect();
        let end = PodEnd {
            index,
            name: &self.target.ifname,
            mac: attachment.mac,
            nets: &nets,
            // In mode `l2` the subnet leads to them.
            gateways: match mode {
                Mode::L2 => &BTreeSet::new(),
                Mode::RoutedPorts | Mode::Routed => &gateways,
            },
            neighbours: &neighbours,
            neighbour_state: match is_routed {
                true => NeighbourState::Permanent,
                false => NeighbourState::Reachable,
            },
            routes: &endpoint.routes,
            up: !self.config.port.down,
        };
        let mut batch = Batch::default();
        end.push_to(&mut batch);
        if !end.up {
            return Ok(pod.run(batch)?.all_done()?);
        }
        let changes = batch.count();
        let way = Way {
            pod_index: index,
            port: &attachment.host_ifname,
            bridge: attachment.bridge.as_deref(),
        };
        way.push_to(&mut batch);
        let answers = pod.run(batch)?;
        answers.iter().take(changes).try_for_each(Answer::done)?;
        Ok(way.wait(answers.iter().skip(changes), host)?)
    }

    /// Notes whether message number `create` made the pair of links. An error unless
    /// the kernel carried out that and all later ones.
    fn note_link(
        &self,
        made: &mut Made<'_>,
        answers: &Answers,
        create: usize,
    ) -> Result<(), Error> {
        let outcome = &answers.get(create).outcome;
        made.link = outcome.is_ok();
        match outcome {
            // Its name on the host was free a moment ago: it is the other one.
            Err(refusal) if refusal.errno == Errno::EEXIST => {
                let ifname = &self.target.ifname;
                let message = format!("CNI_IFNAME: {ifname} exists already in {}", self.netns_path);
                Err(Error::new(Code::Exists, message))
            }
            _ => Ok(answers.iter().skip(create).try_for_each(Answer::done)?),
        }
    }

    /// The index of the pod's end.
    fn pod_index(&self, pod: &Socket) -> Result<u32, Error> {
        let ifname = self.target.ifname.as_str();
        pod.index(ifname).ok_or_else(|| {
            let message = format!("{ifname} has disappeared from the pod");
            Error::new(Code::Kernel, message)
        })
    }

    /// Settings of the pod's end, made from inside its namespace. An interface that
    /// gets no addresses is left to whoever gives it some.
    fn pod_settings(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let ips = &endpoint.attachment.ips;
        let ifname = self.target.ifname.as_str();
        if ips.is_empty() {
            return Ok(());
        }
        if ips.iter().any(IpAddr::is_ipv6) {
            // Some runtimes turn IPv6 off in new namespaces.
            sysctl::set("ipv6/conf/lo/disable_ipv6", "0")?;
            sysctl::set(&format!("ipv6/conf/{ifname}/disable_ipv6"), "0")?;
        }
        // Its gateway does not advertise; whoever does is another pod.
        sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
        // The host forwards to neighbours through the interface that a packet came in by
        // and would tell the pod to send there directly, past the policies. IPv6 has no
        // setting to keep it from saying so.
        sysctl::set_if_present(&format!("ipv6/conf/{ifname}/accept_redirects"), "0")?;
        Ok(())
    }

    /// Settings of the node and of a routed veth's end on it.
    fn host_settings(&self, name: &str, endpoint: &Endpoint) -> Result<(), Error> {
        let ips = &endpoint.attachment.ips;
        if ips.iter().any(IpAddr::is_ipv4) {
            sysctl::set("ipv4/ip_forward", "1")?;
            // A pod that reaches itself through a Service must not be told of a shortcut.
            sysctl::set("ipv4/conf/all/send_redirects", "0")?;
            sysctl::set(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
        }
        if ips.iter().any(IpAddr::is_ipv6) {
            sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            sysctl::set("ipv6/conf/all/forwarding", "1")?;
            // No pod is a router for its node.
            sysctl::set_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        }
        Ok(())
    }
}

fn interface(name: &str, link: &Link) -> Interface {
    Interface {
        name: name.to_owned(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        sandbox: None,
    }
}

fn gateways(endpoint: &Endpoint) -> BTreeSet<IpAddr> {
    let addresses = endpoint.addresses.iter();
    addresses.filter_map(|address| address.gateway).collect()
}
