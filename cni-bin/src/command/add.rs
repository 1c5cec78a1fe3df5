//! ADD.
//!
//! ```text
//!   lock ----> addresses ----> record ----> unlock     (files, or the IPAM plugin)
//!                                 |
//!   agent <------- attach --------+                    (answers when it has bound the
//!                                 |                     addresses to policies)
//!   host namespace: one send: bridge? veth, port, neighbours, limits
//!   pod  namespace: one send: lo, addresses, up, routes; do packets pass?
//!                                 |
//!   agent -------- answer ------->+----> hostPorts, masquerading ----> result
//! ```
//!
//! The agent works while the kernel does. Whatever fails, everything before it is
//! undone, and the error says what could not be; of that the record stays, for DEL or
//! the agent to try again.
//!
//! An IPAM plugin that asks over the pod's interface (`dhcp`) comes when that is up; one
//! more send to the pod's namespace then adds the addresses.
//!
//! * [`made`]: what there is to undo.
//! * [`reserve`]: addresses and record.
//! * [`connect`]: the links and their limits.
//! * [`translate`]: hostPorts and masquerading.
//! * [`report`]: routes and the result.

mod connect;
mod made;
mod report;
mod reserve;
mod translate;

use std::net::IpAddr;

use dataplane::attachment::{Attachment, PodRef, Request};
use ipnet::IpNet;
use serde_json::Value;

use self::made::{Leases, Made};
use super::{open_netns, refuse_own};
use crate::agent::{Agent, PROGRAM_TIMEOUT};
use crate::mtu;
use crate::netlink::Socket;
use crate::netns::Netns;
use crate::signals::Deferred;
use crate::spec::config::Config;
use crate::spec::json::get;
use crate::spec::result::{Dns, Route};
use crate::spec::{Document, Environment, Error, Target};

/// An attachment that is made but not yet reported. Undone when dropped.
pub struct Pending<'a> {
    /// The result for standard output.
    pub result: Value,
    made: Made<'a>,
}

/// What ADD works with.
struct Plan<'a> {
    document: &'a Document,
    environment: &'a Environment,
    config: Config,
    target: &'a Target,
    home: Netns,
    netns: Netns,
    netns_path: &'a str,
    mtu: u32,
    /// This boot of the machine, where `/proc` says it.
    boot: Option<String>,
}

/// An address of the pod.
struct Address {
    /// With the length of its subnet's prefix.
    net: IpNet,
    /// The gateway that comes with it.
    gateway: Option<IpAddr>,
}

/// The attachment as it is to be.
struct Endpoint {
    attachment: Attachment,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    dns: Dns,
}

/// Attaches a container to the network.
pub fn add<'a>(
    document: &'a Document,
    environment: &'a Environment,
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
        environment,
        mtu: config.mtu.unwrap_or_else(mtu::of_default_route),
        config,
        target,
        home,
        netns,
        netns_path,
        boot: ipam::boot::id().ok(),
    };
    let mut made = Made {
        document,
        environment,
        key: target.key(&document.network),
        leases: Leases::None,
        record: None,
        told_agent: false,
        link: false,
        ifb: false,
        nat: false,
    };
    match plan.attach(&mut made, agent, args.pod) {
        Ok(result) => Ok(Pending { result, made }),
        Err(error) => Err(error.with_details(made.undo())),
    }
}

impl Pending<'_> {
    /// Says in the record that all is done, unless a signal has asked to end: the
    /// result may be told now. Not after it was told, when nothing may fail any more.
    pub fn finish(&self, signals: &Deferred) -> Result<(), Error> {
        signals.check()?;
        match &self.made.record {
            Some(record) => Ok(record.finish()?),
            None => Ok(()),
        }
    }

    /// The runtime has the result: the attachment is its own from now on.
    pub fn commit(mut self) {
        self.made.release();
    }

    /// The runtime did not get the result. Returns what could not be undone.
    pub fn revoke(mut self) -> Vec<String> {
        self.made.undo()
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
        let over_link = self.document.ipam.needs_link();
        let mut endpoint = self.reserve_or_reap(made, &host, pod.clone())?;
        if agent.is_none() {
            // One that has started meanwhile may have read the records before ours was there.
            agent = Agent::connect(&self.document.agent_socket, self.document.policy)?;
        }
        if agent.is_some() {
            self.refuse_beside_agent()?;
        }
        if let Some(agent) = &mut agent {
            made.told_agent = true;
            agent.send(&Request::Attach {
                timeout_ms: u64::try_from(PROGRAM_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
                attachment: Box::new(endpoint.attachment.clone()),
            })?;
        }
        let links = self.connect(made, &mut host, &endpoint)?;
        if over_link {
            endpoint = self.ask_over_link(made, pod)?;
            self.address(&mut host, &endpoint)?;
        }
        if let Some(agent) = &mut agent {
            // Whether the policies are in the kernel yet does not matter: until they
            // are, nothing passes.
            agent.answer(PROGRAM_TIMEOUT)?;
        }
        self.translate(made, &endpoint.attachment, agent.is_none())?;
        self.result(endpoint, links)
    }

    /// What an agent would enforce and could not.
    fn refuse_beside_agent(&self) -> Result<(), Error> {
        if self.document.ipam.needs_link() {
            let advice = "the agent closes a port until its address is known, and it is asked \
                          for over that port: use another type, or do without the agent here";
            return Err(Error::unsupported("ipam.type", &"dhcp".into(), advice));
        }
        if let Some(vlans) = &self.config.port.vlans {
            let advice = "what pods of one VLAN send each other passes no policies: use a bridge \
                          without VLANs, or do without the agent here";
            let key = if vlans.access.is_some() {
                "vlan"
            } else {
                "vlanTrunk"
            };
            let value = get(self.document.root(), key).unwrap_or(&Value::Null);
            return Err(Error::unsupported(key, value, advice));
        }
        Ok(())
    }
}

/// The gateway of a family: of its first address that has one.
fn gateway(addresses: &[Address], ipv4: bool) -> Option<IpAddr> {
    let gateways = addresses.iter().filter_map(|address| address.gateway);
    let mut of_family = gateways.filter(|gateway| gateway.is_ipv4() == ipv4);
    of_family.next()
}
