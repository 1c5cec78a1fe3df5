//! DEL.

use nix::errno::Errno;

use super::teardown::{Configured, tear_down};
use super::{LOCK_TIMEOUT, open_netns, refuse_own};
use crate::attachment::Records;
use crate::link;
use crate::netlink::{Batch, Socket};
use crate::netns::Netns;
use crate::spec::{Document, Environment, Error, Target};

/// Takes a container off the network. What is gone already is a success, however
/// little the runtime still knows.
pub fn del(document: &Document, environment: &Environment, target: &Target) -> Result<(), Error> {
    // A namespace that cannot be opened any more is the normal case; only our own
    // is a mistake.
    let namespaces = match &target.netns {
        Some(path) => open_netns(path).ok(),
        None => None,
    };
    if let Some((home, netns)) = &namespaces {
        refuse_own(home, netns, target)?;
    }
    let key = target.key(&document.network);
    let records = Records::beside(&document.agent_socket);
    let record = records.open(&key, LOCK_TIMEOUT)?;
    records.remove_temporary(&key);
    let is_ours = record.is_some();
    let configured = Configured {
        document,
        environment,
        netns: target.netns.as_deref(),
    };
    let mut done = tear_down(&document.agent_socket, Some(configured), &key, record);
    if let Some((home, netns)) = namespaces
        && !is_ours
        && !done.link
        && !done.freed.is_empty()
        && let Err(error) = remove_foreign(&target.ifname, &netns, &home)
    {
        done.errors.push(error);
    }
    Error::collect(done.into_errors())
}

/// Removes the interface that another plugin made for the addresses which we
/// just freed: the node was moved to us with its pods running. Only a veth, which
/// is what the plugins that we replace make.
fn remove_foreign(ifname: &str, netns: &Netns, home: &Netns) -> Result<(), Error> {
    let visit = netns.enter(home)?;
    let Some(index) = link::index(ifname) else {
        return Ok(());
    };
    let mut socket = Socket::open()?;
    visit.leave();
    let mut batch = Batch::default();
    link::push_link_query(&mut batch, ifname, index);
    let links = socket.run(batch)?.get(0).links()?;
    if links
        .iter()
        .any(|link| link.kind.as_deref() == Some("veth"))
    {
        let action = format!("remove {ifname} in the pod");
        let answers = socket.ask(action, &link::removal(ifname))?;
        answers.get(0).done_or(Errno::ENODEV)?;
    }
    Ok(())
}
