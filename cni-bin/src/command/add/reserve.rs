//! Addresses and the record of them.

use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey, IpamPlugin, MacAddr, Mode, PodRef, Undo};
use ipam::{Allocation, Claim, Store};
use ipnet::IpNet;
use serde_json::Value;

use super::made::{Leases, Made};
use super::{Address, Endpoint, Plan};
use crate::attachment::{Record, Records};
use crate::command::teardown::{Configured, tear_down};
use crate::command::{LOCK_TIMEOUT, owner, resolv_conf};
use crate::delegate::Delegate;
use crate::link;
use crate::nat;
use crate::netlink::Socket;
use crate::reap::{free_dead_leases, has_unrecorded_pod, reap};
use crate::shaping;
use crate::spec::result::{Dns, Route};
use crate::spec::{Code, Error, Ipam, Pool};

impl Plan<'_> {
    /// As [`reserve`](Self::reserve); where no address is left, those of dead attachments
    /// are freed first, as the agent does in its time, if there is one.
    pub(super) fn reserve_or_reap(
        &self,
        made: &mut Made<'_>,
        host: &Socket,
        pod: Option<PodRef>,
    ) -> Result<Endpoint, Error> {
        match self.reserve(made, host, pod.clone()) {
            Err(error) if error.code == Code::Exhausted => {
                match reap(&self.document.agent_socket) {
                    Ok(reaped) if reaped.is_empty() => Err(error),
                    Ok(_) => self.reserve(made, host, pod),
                    Err(records) => Err(error.with_details([records.to_string()])),
                }
            }
            outcome => outcome,
        }
    }

    /// Reserves the addresses and writes the record.
    fn reserve(
        &self,
        made: &mut Made<'_>,
        host: &Socket,
        pod: Option<PodRef>,
    ) -> Result<Endpoint, Error> {
        let records = Records::beside(&self.document.agent_socket);
        self.clear_remains(&made.key, &records, host)?;
        match (&self.document.ipam, &self.config.pool) {
            (Ipam::Plugin(_), _) if !self.document.ipam.needs_link() => {
                self.ask_plugin(&records, made, pod)
            }
            (_, Some(pool)) => self.claim(pool, &records, made, pod),
            (_, None) => {
                let attachment = self.attachment(made, &[], pod);
                if self.document.ipam == Ipam::Nobody {
                    nat::check_families(&attachment)?;
                }
                made.record = Some(self.record(&records, &attachment)?);
                let (routes, dns) = (Vec::new(), self.config.dns.clone());
                Ok(Endpoint {
                    attachment,
                    addresses: Vec::new(),
                    routes,
                    dns,
                })
            }
        }
    }

    /// From the allocator in this process. Addresses and record come under one lock:
    /// who holds it sees either both or what a dead request left of them.
    fn claim(
        &self,
        pool: &Pool,
        records: &Records,
        made: &mut Made<'_>,
        pod: Option<PodRef>,
    ) -> Result<Endpoint, Error> {
        let dns = match &pool.resolv_conf {
            Some(path) if self.config.dns == Dns::default() => resolv_conf(path)?,
            _ => self.config.dns.clone(),
        };
        let store = Store::new(&self.document.data_dir, &self.document.network);
        let locked = store.lock(LOCK_TIMEOUT)?;
        let (network, boot) = (&self.document.network, self.boot.as_deref());
        free_dead_leases(&locked, records, network, boot)?;
        let claim = Claim {
            owner: &owner(&made.key),
            sets: &pool.ranges,
            requested: &pool.requested,
            in_use: &|ip| in_use(records, ip),
        };
        let allocations = claim.run(&locked)?;
        let ips: Vec<IpAddr> = allocations.iter().map(|one| one.ip).collect();
        made.leases = Leases::InProcess(ips);
        let addresses: Vec<Address> = allocations.iter().map(Address::from).collect();
        let attachment = self.attachment(made, &addresses, pod);
        nat::check_families(&attachment)?;
        made.record = Some(self.record(records, &attachment)?);
        let routes = self.routes(&pool.routes, &addresses)?;
        Ok(Endpoint {
            attachment,
            addresses,
            routes,
            dns,
        })
    }

    /// From a plugin, which has locks of its own. The record comes first, without
    /// addresses: it says that there may be some to give back.
    fn ask_plugin(
        &self,
        records: &Records,
        made: &mut Made<'_>,
        pod: Option<PodRef>,
    ) -> Result<Endpoint, Error> {
        let unaddressed = self.attachment(made, &[], pod.clone());
        made.record = Some(self.record(records, &unaddressed)?);
        self.ask(records, made, pod)
    }

    /// From a plugin that asks over the link, when that is there.
    pub(super) fn ask_over_link(
        &self,
        made: &mut Made<'_>,
        pod: Option<PodRef>,
    ) -> Result<Endpoint, Error> {
        let records = Records::beside(&self.document.agent_socket);
        self.ask(&records, made, pod)
    }

    /// The plugin's answer, which the record then has too.
    fn ask(
        &self,
        records: &Records,
        made: &mut Made<'_>,
        pod: Option<PodRef>,
    ) -> Result<Endpoint, Error> {
        let Ipam::Plugin(name) = &self.document.ipam else {
            return Err(Error::config("ipam.type: it is no plugin"));
        };
        let delegate = Delegate::find(name, self.document, self.environment)?;
        made.leases = Leases::Plugin;
        let answer = delegate.add()?;
        let addresses = answer.addresses.into_iter();
        let addresses: Vec<Address> = addresses
            .map(|(net, gateway)| Address { net, gateway })
            .collect();
        let without = addresses.iter().find(|address| address.gateway.is_none());
        if let (Some(address), true) = (without, self.config.port.mode != Mode::L2) {
            let mode = self.config.port.mode.as_str();
            return Err(Error::config(format!(
                "ipam.type: {name} gave no gateway for {}, which mode {mode:?} needs: \
                 configure one, or use mode \"l2\"",
                address.net
            )));
        }
        let attachment = self.attachment(made, &addresses, pod);
        nat::check_families(&attachment)?;
        // The one without addresses, which was written before the plugin was asked.
        made.record = Some(match &made.record {
            Some(unaddressed) => unaddressed.replace(&attachment)?,
            None => records.create(&attachment)?,
        });
        let routes = self.routes(&answer.routes, &addresses)?;
        let dns = match &self.config.dns {
            dns if *dns == Dns::default() => answer.dns,
            dns => dns.clone(),
        };
        Ok(Endpoint {
            attachment,
            addresses,
            routes,
            dns,
        })
    }

    fn attachment(
        &self,
        made: &Made<'_>,
        addresses: &[Address],
        pod: Option<PodRef>,
    ) -> Attachment {
        let ips: Vec<IpAddr> = addresses.iter().map(|address| address.net.addr()).collect();
        let networks = addresses.iter().map(|address| address.net.trunc());
        let bandwidth = self.config.bandwidth;
        let mode = self.config.port.mode;
        let host_ifname = made.key.host_ifname();
        // One that is there before its address is known cannot follow from it.
        let of_ips = || MacAddr::of_pod(&ips).filter(|_| !self.document.ipam.needs_link());
        let mac = self.config.mac.or_else(of_ips);
        Attachment {
            mac: mac.unwrap_or_else(|| link::pod_mac(&host_ifname)),
            host_ifname,
            key: made.key.clone(),
            netns: self.netns_path.to_owned(),
            mode,
            bridge: (mode != Mode::Routed).then(|| self.document.bridge.clone()),
            ips,
            pod,
            port_mappings: self.config.port_mappings.clone(),
            masquerade_beyond: networks.filter(|_| self.config.ip_masq).collect(),
            bandwidth: bandwidth.map(|bandwidth| shaping::usable(bandwidth, self.mtu)),
            undo: self.undo(addresses),
        }
    }

    fn undo(&self, addresses: &[Address]) -> Undo {
        let has_gateway = addresses.iter().any(|address| address.gateway.is_some());
        let vlan_gateway = self.config.port.vlan_gateway(&self.document.bridge);
        let document = self.document;
        let plugin = || IpamPlugin {
            cni_path: self
                .environment
                .get("CNI_PATH")
                .unwrap_or_default()
                .to_owned(),
            conf: Value::Object(document.root().clone()).to_string(),
        };
        Undo {
            netns_id: self.netns.id(),
            boot: self.boot.clone(),
            data_dir: (document.ipam == Ipam::InProcess).then(|| document.data_dir.clone()),
            plugin: matches!(document.ipam, Ipam::Plugin(_)).then(plugin),
            vlan_gateway: vlan_gateway.filter(|_| has_gateway),
        }
    }

    /// An attachment of the same name: refused if it is alive, undone if it is what a
    /// killed ADD or a lost namespace left. Before any lock is taken: undoing takes them
    /// itself.
    fn clear_remains(
        &self,
        key: &AttachmentKey,
        records: &Records,
        host: &Socket,
    ) -> Result<(), Error> {
        let record = records.open(key, LOCK_TIMEOUT)?;
        // Only now, behind another ADD that may just have made it.
        let has_link = host.has(&key.host_ifname())?;
        if has_link && !record.as_ref().is_some_and(Record::is_unfinished) {
            let message = format!("attachment {key} exists already: DEL it first");
            return Err(Error::new(Code::Exists, message));
        }
        if record.is_none() {
            return Ok(());
        }
        let configured = Configured {
            document: self.document,
            environment: self.environment,
            netns: None,
        };
        let socket = &self.document.agent_socket;
        Error::collect(tear_down(socket, Some(configured), key, record).all_errors())
    }

    /// The pod's routes, each with its next hop.
    fn routes(&self, given: &[Route], addresses: &[Address]) -> Result<Vec<Route>, Error> {
        let gateway = |ipv4: bool| super::gateway(addresses, ipv4);
        let is_ipv4 = |route: &Route| matches!(route.dst, IpNet::V4(_));
        let mut routes = Vec::new();
        for route in given {
            let gw = route.gw.or_else(|| gateway(is_ipv4(route)));
            if gw.is_none() && self.config.port.mode != Mode::L2 {
                return Err(Error::config(format!(
                    "ipam.routes: {}: no range of that family gives a gateway",
                    route.dst
                )));
            }
            routes.push(Route {
                gw,
                ..route.clone()
            });
        }
        for (ipv4, dst) in [(true, "0.0.0.0/0"), (false, "::/0")] {
            let dst: IpNet = dst.parse().expect("the literals are prefixes");
            let given = match self.config.default_route {
                Some(false) => continue,
                Some(true) => routes.iter().any(|route| route.dst == dst),
                None => routes.iter().any(|route| is_ipv4(route) == ipv4),
            };
            if let (false, Some(gw)) = (given, gateway(ipv4)) {
                routes.push(Route::via(dst, gw));
            }
        }
        Ok(routes)
    }
}

impl From<&Allocation> for Address {
    fn from(allocation: &Allocation) -> Self {
        let length = allocation.range.subnet().prefix_len();
        Self {
            net: IpNet::new(allocation.ip, length).expect("the subnet is of the same family"),
            gateway: Some(allocation.range.gateway()),
        }
    }
}

/// Whether a pod of ours has the address: the question about a lease that does
/// not say so itself. If the records cannot be read, it has.
fn in_use(records: &Records, ip: IpAddr) -> bool {
    let holds = |attachment: &Attachment| {
        attachment.ips.contains(&ip) && link::exists(&attachment.host_ifname).unwrap_or(true)
    };
    records.list().map_or(true, |all| all.iter().any(holds)) || has_unrecorded_pod(records)
}
