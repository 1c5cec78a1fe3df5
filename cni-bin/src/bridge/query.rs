//! Questions about the bridge, in the send that creates a port of it.
//!
//! Not simply for all its addresses: whoever asks for those of every family waits for the
//! kernel's RTNL lock, behind whatever else it does for links. For IPv4 and for a single IPv6
//! address it looks them up without (Linux 6.10), and only where one is missing do the others
//! matter.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use super::{BridgeError, Plan, Wanted};
use crate::link;
use crate::netlink::{Answer, Answers, Batch, Socket};

impl Wanted<'_> {
    /// Adds the questions whose answers [`plan`](Self::plan) needs, as the first
    /// messages of a batch.
    pub fn push_query(&self, batch: &mut Batch, index: u32) {
        link::push_link_query(batch, self.name, index);
        if self.has_ipv4() {
            link::push_ipv4_query(batch, self.name, index);
        }
        for ip in self.ipv6() {
            link::push_ipv6_query(batch, self.name, index, ip);
        }
    }

    /// What is missing.
    pub fn plan(&self, socket: &mut Socket, answers: &Answers) -> Result<Plan, BridgeError> {
        let found = answers.get(0);
        found.done_or(Errno::ENODEV)?;
        let link = found.links()?.into_iter().next();
        let link = link.ok_or_else(|| self.gone())?;
        let mut answers = answers.iter().skip(1);
        let mut addresses = Vec::new();
        for ipv4 in answers.by_ref().take(usize::from(self.has_ipv4())) {
            ipv4.done()?;
            addresses.extend(ipv4.addresses()?);
        }
        for ipv6 in answers.take(self.ipv6().count()) {
            addresses.extend(ipv6.addresses()?);
        }
        let has = |wanted: &IpNet| addresses.iter().any(|address| address.net == *wanted);
        if !self.gateways.iter().all(has) {
            let mut batch = Batch::default();
            link::push_address_query(&mut batch, self.name, link.index);
            let all = socket.run(batch)?;
            let all: &Answer = all.get(0);
            all.done()?;
            addresses = all.addresses()?;
        }
        self.compare(link, &addresses)
    }

    fn ipv6(&self) -> impl Iterator<Item = IpAddr> {
        let ips = self.gateways.iter().map(IpNet::addr);
        ips.filter(IpAddr::is_ipv6)
    }
}
