//! The CNI plugin from outside: the protocol, what it makes in the kernel and
//! what it leaves there, which is nothing.

mod add;
mod bandwidth;
mod bridge;
mod chaining;
mod container;
mod crash;
mod damage;
mod delegation;
mod delete;
mod dhcp;
mod first_packet;
mod hostport_ends;
mod hostports;
mod ipam;
mod masquerade;
mod network;
mod node;
mod protocol;
mod reap;
mod reference;
mod storage;
mod storm;
mod vlan;

use anyhow::Result;
use tests::node::Node;

/// Whether nothing of any attachment is left on a node: links, leases, records.
fn is_empty(node: &Node) -> Result<bool> {
    Ok(node.ports()?.is_empty() && node.leases()?.is_empty() && node.records()?.is_empty())
}

/// Fails with what is left of attachments on a node.
fn assert_empty(node: &Node) -> Result<()> {
    let left = (node.ports()?, node.leases()?, node.records()?);
    assert!(is_empty(node)?, "ports, leases, records: {left:?}");
    Ok(())
}
