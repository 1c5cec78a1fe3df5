//! CHECK.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::attachment::{Attachment, AttachmentKey};
use ipam::Store;
use ipnet::IpNet;

use super::{LOCK_TIMEOUT, open_netns, owner, refuse_own};
use crate::attachment::Records;
use crate::delegate::Delegate;
use crate::link;
use crate::nat;
use crate::netlink::observed::{Link, ObservedRoute};
use crate::netlink::{Batch, Socket};
use crate::shaping::Shaper;
use crate::spec::args::ExtraArgs;
use crate::spec::result::{Expected, Route};
use crate::spec::{Code, Document, Environment, Error, Ipam, Target, Verb, Vlans};

/// Compares an attachment with what ADD left. Later plugins of the chain may
/// have added to it, or changed MTU and Ethernet address: neither is compared.
pub fn check(document: &Document, environment: &Environment, target: &Target) -> Result<(), Error> {
    let prev = document
        .prev_result()
        .ok_or_else(|| Error::config("prevResult: missing; CHECK compares with it"))?;
    let expected = Expected::of(prev, &target.ifname)?;
    let path = target.netns.as_deref().unwrap_or_default();
    let (home, netns) = open_netns(path)?;
    refuse_own(&home, &netns, target)?;

    let key = target.key(&document.network);
    let records = Records::beside(&document.agent_socket);
    let record = records.open(&key, LOCK_TIMEOUT)?;
    let attachment = record
        .as_ref()
        .and_then(|record| record.attachment.as_ref());
    let attachment =
        attachment.ok_or_else(|| mismatch(format!("attachment {key} has no record")))?;

    let mut host = Socket::open()?;
    let visit = netns.enter(&home)?;
    let mut pod = Socket::open()?;
    let index = link::index(&target.ifname);
    visit.leave();
    let index = index.ok_or_else(|| mismatch(format!("{} is not in {path}", target.ifname)))?;

    let mut differences = match &document.ipam {
        Ipam::InProcess => leases(document, &key, attachment)?,
        Ipam::Plugin(name) => {
            Delegate::find(name, document, environment)?.forward(Verb::Check)?;
            Vec::new()
        }
        Ipam::Nobody => Vec::new(),
    };
    differences.extend(host_end(attachment, &mut host)?);
    let port = document.config(&ExtraArgs::default())?.port;
    if let Some(vlans) = &port.vlans {
        differences.extend(vlan_port(attachment, vlans, &mut host)?);
    }
    differences.extend(pod_end(target, index, !port.down, &expected, &mut pod)?);
    differences.extend(nat::differences(attachment)?);
    if let Some(shaper) = Shaper::of(attachment) {
        differences.extend(shaper.differences(&mut host)?);
    }
    Error::collect(differences.into_iter().map(mismatch))
}

fn mismatch(difference: String) -> Error {
    Error::new(Code::Mismatch, difference)
}

fn leases(
    document: &Document,
    key: &AttachmentKey,
    attachment: &Attachment,
) -> Result<Vec<String>, Error> {
    let store = Store::new(&document.data_dir, &document.network);
    let Some(locked) = store.lock_existing(LOCK_TIMEOUT)? else {
        return Ok(vec![format!(
            "ipam: {} does not exist",
            document.data_dir.display()
        )]);
    };
    let owner = owner(key);
    let mut differences = Vec::new();
    for &ip in &attachment.ips {
        let lease = locked.lease(ip)?;
        let held = lease.is_some_and(|lease| lease.owner.is_ok_and(|holder| owner.holds(&holder)));
        if !held {
            differences.push(format!("ipam: {ip} is not leased to {key}"));
        }
    }
    Ok(differences)
}

fn host_end(attachment: &Attachment, host: &mut Socket) -> Result<Vec<String>, Error> {
    let name = &attachment.host_ifname;
    let Some(veth) = look(host, name)? else {
        return Ok(vec![format!("{name} is gone from the host")]);
    };
    let mut differences = Vec::new();
    if !veth.up {
        differences.push(format!("{name} is down"));
    }
    let Some(bridge_name) = &attachment.bridge else {
        differences.extend(host_routes(attachment, &veth, host)?);
        return Ok(differences);
    };
    match look(host, bridge_name)? {
        None => differences.push(format!("bridge {bridge_name} is gone")),
        Some(bridge) => {
            if !bridge.up {
                differences.push(format!("{bridge_name} is down"));
            }
            if veth.master != Some(bridge.index) {
                differences.push(format!("{name} is not a port of {bridge_name}"));
            }
        }
    }
    Ok(differences)
}

/// The VLANs that the port is not in any more. Others may have put it into more of them.
fn vlan_port(
    attachment: &Attachment,
    vlans: &Vlans,
    host: &mut Socket,
) -> Result<Vec<String>, Error> {
    let name = &attachment.host_ifname;
    let mut differences = Vec::new();
    if let Some(gateway) = &attachment.undo.vlan_gateway
        && !look(host, gateway)?.is_some_and(|link| link.up)
    {
        differences.push(format!(
            "{gateway}, the gateway of the VLAN, is gone or down"
        ));
    }
    let Some(index) = link::index(name) else {
        return Ok(differences);
    };
    let mut batch = Batch::default();
    link::vlan::push_vlan_query(&mut batch);
    let answers = host.run(batch)?;
    answers.all_done()?;
    differences.extend(
        link::vlan::missing(vlans, &answers.get(0).vlans(index)?)
            .map(|vlan| format!("{name} is not in VLAN {vlan} as it should be")),
    );
    Ok(differences)
}

/// The routes that lead to a pod without a bridge.
fn host_routes(
    attachment: &Attachment,
    veth: &Link,
    host: &mut Socket,
) -> Result<Vec<String>, Error> {
    let answers = host.dump("list routes", &link::route_query())?;
    answers.all_done()?;
    let routes = answers.get(0).routes()?;
    let is_led_to = |ip: IpAddr| {
        let mut routes = routes.iter();
        routes.any(|route| route.dst == IpNet::from(ip) && route.oif == Some(veth.index))
    };
    let lost = attachment.ips.iter().filter(|ip| !is_led_to(**ip));
    Ok(lost
        .map(|ip| format!("the host has no route to {ip} by {}", veth.name))
        .collect())
}

fn look(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let Some(index) = link::index(name) else {
        return Ok(None);
    };
    let mut batch = Batch::default();
    link::push_link_query(&mut batch, name, index);
    let answers = socket.run(batch)?;
    Ok(answers.get(0).links()?.into_iter().next())
}

fn pod_end(
    target: &Target,
    index: u32,
    up: bool,
    expected: &Expected,
    pod: &mut Socket,
) -> Result<Vec<String>, Error> {
    let ifname = &target.ifname;
    let mut batch = Batch::default();
    link::push_link_query(&mut batch, ifname, index);
    link::push_address_query(&mut batch, ifname, index);
    let answers = pod.run(batch)?;
    answers.all_done()?;
    let addresses = answers.get(1).addresses()?.into_iter();
    let addresses: BTreeSet<IpNet> = addresses
        .filter(|address| address.index == index)
        .map(|address| address.net)
        .collect();
    let mut differences = Vec::new();
    if up && !answers.get(0).links()?.iter().any(|link| link.up) {
        differences.push(format!("{ifname} is down in the pod"));
    }
    for address in &expected.addresses {
        if !addresses.contains(address) {
            differences.push(format!("{ifname} does not have the address {address}"));
        }
    }
    let answers = pod.dump("list routes in the pod", &link::route_query())?;
    answers.all_done()?;
    let routes = answers.get(0).routes()?;
    for route in &expected.routes {
        if !routes.iter().any(|observed| matches(observed, route)) {
            let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            differences.push(format!("the pod has no route to {}{via}", route.dst));
        }
    }
    Ok(differences)
}

/// The table is not compared: policy routing of a later plugin moves routes.
fn matches(observed: &ObservedRoute, route: &Route) -> bool {
    observed.dst == route.dst && (route.gw.is_none() || route.gw == observed.gateway)
}
