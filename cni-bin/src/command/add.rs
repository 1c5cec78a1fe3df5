//! ADD.
//!
//! ```text
//!   lock ----> addresses ----> record ----> unlock     (files)
//!                                 |
//!   agent <------- attach --------+                    (answers when it has bound the
//!                                 |                     addresses to policies)
//!   host namespace: one send: bridge? veth, port, neighbours
//!   pod  namespace: one send: lo, addresses, up, routes
//!                                 |
//!   agent -------- answer ------->+----> result
//! ```
//!
//! The agent works while the kernel does. Whatever fails, everything before it is
//! undone, and the error says what could not be.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use dataplane::attachment::{Attachment, AttachmentKey, MacAddr, PodRef, Request};
use ipam::{Allocation, Claim, Locked, Store};
use ipnet::IpNet;
use nix::errno::Errno;
use serde_json::Value;

use super::teardown::{remove_link, tell_agent};
use super::{LOCK_TIMEOUT, open_netns, owner, refuse_own};
use crate::agent::{Agent, PROGRAM_TIMEOUT};
use crate::attachment::{Record, Records};
use crate::bridge::{QUERY_LENGTH, Wanted, may_isolate};
use crate::link::{self, HostEnd, PodEnd};
use crate::mtu;
use crate::netlink::{Answers, Batch, Socket};
use crate::netns::Netns;
use crate::spec::config::Config;
use crate::spec::result::{Addition, Dns, Interface, Ip, Route};
use crate::spec::{Code, Document, Environment, Error, Target};
use crate::sysctl;

/// An attachment that is made but not yet reported. Undone when dropped.
pub struct Pending<'a> {
    /// The result for standard output.
    pub result: Value,
    made: Made<'a>,
}

/// What exists of an attachment so far.
struct Made<'a> {
    document: &'a Document,
    key: AttachmentKey,
    ips: Vec<IpAddr>,
    record: Option<Record>,
    told_agent: bool,
    link: bool,
}

/// What ADD works with.
struct Plan<'a> {
    document: &'a Document,
    config: Config,
    target: &'a Target,
    home: Netns,
    netns: Netns,
    netns_path: &'a str,
    mtu: u32,
    dns: Dns,
}

/// The attachment as it is to be.
struct Endpoint {
    attachment: Attachment,
    allocations: Vec<Allocation>,
    routes: Vec<Route>,
}

/// Attaches a container to the network.
pub fn add<'a>(
    document: &'a Document,
    environment: &Environment,
    target: &Target,
) -> Result<Pending<'a>, Error> {
    let args = environment.extra_args()?;
    let config = document.config(&args)?;
    let netns_path = target.netns.as_deref().unwrap_or_default();
    let (home, netns) = open_netns(netns_path)?;
    refuse_own(&home, &netns, target)?;
    let agent = Agent::connect(&document.agent_socket, document.policy)?;
    let plan = Plan {
        document,
        mtu: config.mtu.unwrap_or_else(mtu::of_default_route),
        dns: dns(&config)?,
        config,
        target,
        home,
        netns,
        netns_path,
    };
    let mut made = Made {
        document,
        key: target.key(&document.network),
        ips: Vec::new(),
        record: None,
        told_agent: false,
        link: false,
    };
    match plan.attach(&mut made, agent, args.pod) {
        Ok(result) => Ok(Pending { result, made }),
        Err(error) => Err(error.with_details(made.undo())),
    }
}

impl Pending<'_> {
    /// The runtime has the result: the attachment is its own from now on.
    pub fn commit(mut self) {
        self.made.release();
    }

    /// The runtime did not get the result. Returns what could not be undone.
    pub fn revoke(mut self) -> Vec<String> {
        self.made.undo()
    }
}

impl Made<'_> {
    /// Undoes what was made and nothing else: links and leases of the same
    /// attachment that were there before are not ours to touch.
    fn undo(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |outcome: Result<(), Error>| {
            if let Err(error) = outcome {
                left.push(format!("not undone: {error}"));
            }
        };
        if std::mem::take(&mut self.link) {
            note(
                remove_link(&self.key.host_ifname())
                    .map(drop)
                    .map_err(Error::from),
            );
        }
        if !self.ips.is_empty() {
            let ips = std::mem::take(&mut self.ips);
            note(self.free(&ips));
        }
        if std::mem::take(&mut self.told_agent) {
            note(tell_agent(self.document, &self.key));
        }
        if let Some(record) = self.record.take() {
            note(record.remove().map_err(Error::from));
        }
        left
    }

    fn free(&self, ips: &[IpAddr]) -> Result<(), Error> {
        let store = Store::new(&self.document.data_dir, &self.document.network);
        if let Some(locked) = store.lock_existing(LOCK_TIMEOUT)? {
            for &ip in ips {
                locked.free(ip)?;
            }
        }
        Ok(())
    }

    fn release(&mut self) {
        self.link = false;
        self.told_agent = false;
        self.ips.clear();
        self.record = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // Only a panic leaves anything to undo here; nobody is left to be told.
        drop(self.undo());
    }
}

impl Plan<'_> {
    fn attach(
        &self,
        made: &mut Made<'_>,
        mut agent: Option<Agent>,
        pod: Option<PodRef>,
    ) -> Result<Value, Error> {
        let mut host = Socket::open()?;
        let wanted = Wanted::new(
            &self.document.bridge,
            &self.config.ranges,
            self.mtu,
            self.config.force_address,
        );
        let bridge = wanted.ensure(&mut host)?;
        let endpoint = self.reserve(made, pod)?;
        if let Some(agent) = &mut agent {
            made.told_agent = true;
            agent.send(&Request::Attach {
                timeout_ms: u64::try_from(PROGRAM_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
                attachment: endpoint.attachment.clone(),
            })?;
        }
        let bridge = self.connect(made, &mut host, &wanted, bridge, &endpoint)?;
        if let Some(agent) = &mut agent {
            // Whether the policies are in the kernel yet does not matter: until they
            // are, nothing passes.
            agent.answer(PROGRAM_TIMEOUT)?;
        }
        self.result(endpoint, bridge)
    }

    /// Addresses and record, under one lock: who holds it sees either both or
    /// what a dead request left of them.
    fn reserve(&self, made: &mut Made<'_>, pod: Option<PodRef>) -> Result<Endpoint, Error> {
        let store = Store::new(&self.document.data_dir, &self.document.network);
        let locked = store.lock(LOCK_TIMEOUT)?;
        let records = Records::beside(&self.document.agent_socket);
        self.clear_remains(&made.key, &records, &locked)?;
        let claim = Claim {
            owner: &owner(&made.key),
            sets: &self.config.ranges,
            requested: &self.config.requested,
            in_use: &|ip| in_use(&records, ip),
        };
        let allocations = claim.run(&locked)?;
        made.ips = allocations.iter().map(|allocation| allocation.ip).collect();
        let mac = self.config.mac.or_else(|| MacAddr::of_pod(&made.ips));
        let attachment = Attachment {
            host_ifname: made.key.host_ifname(),
            key: made.key.clone(),
            netns: self.netns_path.to_owned(),
            bridge: Some(self.document.bridge.clone()),
            mac: mac.ok_or_else(|| Error::config("ipam.ranges: no range is given"))?,
            ips: made.ips.clone(),
            pod,
            port_mappings: Vec::new(),
            masquerade_beyond: Vec::new(),
            bandwidth: None,
        };
        made.record = Some(records.create(&attachment)?);
        Ok(Endpoint {
            routes: self.routes(&allocations)?,
            attachment,
            allocations,
        })
    }

    /// An attachment of the same name: refused if it is alive, cleared away if it
    /// is what a killed ADD or a lost namespace left.
    fn clear_remains(
        &self,
        key: &AttachmentKey,
        records: &Records,
        locked: &Locked,
    ) -> Result<(), Error> {
        if link::index(&key.host_ifname()).is_some() {
            let message = format!("attachment {key} exists already: DEL it first");
            return Err(Error::new(Code::Exists, message));
        }
        let Some(record) = records.open(key, Duration::ZERO)? else {
            return Ok(());
        };
        locked.free_all_of(&owner(key))?;
        Ok(record.remove()?)
    }

    /// The two sends. Returns the bridge as result and kernel know it.
    fn connect(
        &self,
        made: &mut Made<'_>,
        host: &mut Socket,
        wanted: &Wanted<'_>,
        bridge: u32,
        endpoint: &Endpoint,
    ) -> Result<Interface, Error> {
        let attachment = &endpoint.attachment;
        let ifname = self.target.ifname.as_str();
        let end = HostEnd {
            name: &attachment.host_ifname,
            bridge,
            isolated: may_isolate(),
            netns: &self.netns,
            pod_name: ifname,
            pod_mac: attachment.mac,
            mtu: self.mtu,
            ips: &attachment.ips,
        };
        let mut batch = Batch::default();
        wanted.push_query(&mut batch, bridge);
        end.push_to(&mut batch);
        // From inside the pod's namespace, because the index of the new link is
        // then one cheap call away.
        let visit = self.netns.enter(&self.home)?;
        let mut pod = Socket::open()?;
        let answers = host.run(batch)?;
        let plan = self.check_host(made, wanted, &answers)?;
        let index = link::index(ifname).ok_or_else(|| {
            Error::new(
                Code::Kernel,
                format!("{ifname} has disappeared from the pod"),
            )
        })?;
        self.pod_settings(ifname, &attachment.ips)?;
        visit.leave();
        wanted.apply(host, &plan)?;

        let gateways = endpoint
            .allocations
            .iter()
            .map(|allocation| allocation.range.gateway());
        let gateways: BTreeSet<IpAddr> = gateways.collect();
        let mut batch = Batch::default();
        let end = PodEnd {
            index,
            name: ifname,
            mac: attachment.mac,
            ips: &attachment.ips,
            gateways: &gateways,
            routes: &endpoint.routes,
        };
        end.push_to(&mut batch);
        pod.run(batch)?.all_done()?;
        Ok(Interface {
            name: wanted.name.to_owned(),
            mac: plan.link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(plan.link.mtu),
            sandbox: None,
        })
    }

    /// Reads the answers of the host's side, in order: what the bridge lacks, or
    /// the first reason why there is no port.
    fn check_host(
        &self,
        made: &mut Made<'_>,
        wanted: &Wanted<'_>,
        answers: &Answers,
    ) -> Result<crate::bridge::Plan, Error> {
        let create = answers.get(QUERY_LENGTH);
        made.link = create.outcome.is_ok();
        let plan = wanted.plan(answers)?;
        match &create.outcome {
            // Its name on the host was free a moment ago: it is the other one.
            Err(refusal) if refusal.errno == Errno::EEXIST => {
                let ifname = &self.target.ifname;
                let message = format!("CNI_IFNAME: {ifname} exists already in {}", self.netns_path);
                return Err(Error::new(Code::Exists, message));
            }
            _ => answers.all_done()?,
        }
        Ok(plan)
    }

    /// Settings of the pod's end, made from inside its namespace.
    fn pod_settings(&self, ifname: &str, ips: &[IpAddr]) -> Result<(), Error> {
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

    /// The pod's routes, each with its next hop.
    fn routes(&self, allocations: &[Allocation]) -> Result<Vec<Route>, Error> {
        let gateway = |ipv4: bool| {
            let mut gateways = allocations
                .iter()
                .map(|allocation| allocation.range.gateway());
            gateways.find(|gateway| gateway.is_ipv4() == ipv4)
        };
        let is_ipv4 = |route: &Route| matches!(route.dst, IpNet::V4(_));
        let mut routes = Vec::new();
        for route in &self.config.routes {
            let gw = route.gw.or_else(|| gateway(is_ipv4(route)));
            let Some(gw) = gw else {
                return Err(Error::config(format!(
                    "ipam.routes: {}: no range of that family gives a gateway",
                    route.dst
                )));
            };
            routes.push(Route {
                gw: Some(gw),
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

    fn result(&self, endpoint: Endpoint, bridge: Interface) -> Result<Value, Error> {
        let attachment = &endpoint.attachment;
        let end = |name: &str, mac: MacAddr, sandbox: Option<&str>| Interface {
            name: name.to_owned(),
            mac: mac.to_string(),
            mtu: Some(self.mtu),
            sandbox: sandbox.map(str::to_owned),
        };
        let host = &attachment.host_ifname;
        let ip = |allocation: &Allocation| Ip {
            address: IpNet::from(allocation.ip),
            gateway: Some(allocation.range.gateway()),
            interface: 2,
        };
        let addition = Addition {
            interfaces: vec![
                bridge,
                end(host, link::host_mac(host), None),
                end(&self.target.ifname, attachment.mac, Some(self.netns_path)),
            ],
            ips: endpoint.allocations.iter().map(ip).collect(),
            routes: endpoint.routes,
            dns: self.dns.clone(),
        };
        addition.render(self.document.version, self.document.prev_result())
    }
}

/// Whether a pod of ours has the address: the question about a lease that does
/// not say so itself. If the records cannot be read, it has.
fn in_use(records: &Records, ip: IpAddr) -> bool {
    let holds = |attachment: &Attachment| {
        attachment.ips.contains(&ip) && link::index(&attachment.host_ifname).is_some()
    };
    records.list().map_or(true, |all| all.iter().any(holds))
}

fn dns(config: &Config) -> Result<Dns, Error> {
    match &config.resolv_conf {
        Some(path) if config.dns == Dns::default() => {
            let text = fs::read_to_string(path).map_err(|error| {
                let message = format!("ipam.resolvConf: cannot read {}: {error}", path.display());
                Error::new(Code::Io, message)
            })?;
            Ok(Dns::from_resolv_conf(&text))
        }
        _ => Ok(config.dns.clone()),
    }
}
