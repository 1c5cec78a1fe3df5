//! The compiled rules against the cases that cyclonus generates, see [`cases`]: every cell
//! is a packet that the tracer walks through the forward hook.
//!
//! By its interfaces a packet is between two pods of this node, or between one of them
//! and another node, where that side alone is judged here. So each of the three columns
//! of a cell is checked.

#[path = "common/cases.rs"]
mod cases;

use std::net::IpAddr;

use cases::{Cell, Result, Step, Tally, World, agrees_in_every_cell};
use dataplane::desired::Desired;
use dataplane::layout::{self, INET, ports};
use dataplane::object::{Element, Family, Hook, Ruleset};
use dataplane::trace::{Fate, Packet, Tracer};
use policy_agent::compile::PolicyCompiler;
use policy_agent::index::Index;

const NODE: &str = "n1";
const POD_SIDE: &str = "cbr0";
const OTHER_SIDE: &str = "uplink";

/// The rules of a node that all of the step's pods are on.
fn compile(world: World) -> Ruleset {
    let mut desired = Desired::new();
    layout::install(&mut desired, 1);
    let bridge = ports::interface_key(POD_SIDE);
    desired.insert(&INET, &ports::PORTS_OF_POD, bridge, Element::member());

    let mut index = Index::new();
    let mut compiler = PolicyCompiler::new(NODE);
    for namespace in world.namespaces {
        index.namespaces.insert(namespace.name.clone(), namespace);
    }
    for mut pod in world.pods {
        pod.node = Some(NODE.to_owned());
        let affected = index.set_pod(&pod.key.clone(), Some(pod));
        compiler.pods_changed(affected);
    }
    for policy in world.policies {
        compiler.policy_changed(policy.key.clone());
        index.policies.insert(policy.key.clone(), policy);
    }
    compiler.sync(&index, &mut desired);
    desired.ruleset().clone()
}

/// Whether the first packet of a flow between these addresses and interfaces passes.
fn passes(
    ruleset: &Ruleset,
    cell: &Cell,
    addresses: [IpAddr; 2],
    [iifname, oifname]: [&str; 2],
) -> bool {
    let [source, destination] = addresses;
    let mut packet = Packet::first(source, destination, cell.protocol.number(), cell.port);
    packet.iifname = iifname.to_owned();
    packet.oifname = Some(oifname.to_owned());
    let tracer = Tracer::new(ruleset, &|_| 0);
    let fate = tracer.hook(Family::Inet, Hook::Forward, &mut packet).fate;
    fate == Fate::Accepted
}

fn judge(tally: &mut Tally, title: &str, step: &Step) -> Result<()> {
    let ruleset = compile(World::new(step)?);
    let addresses = step.addresses();
    for cell in &step.table {
        tally.cells += 1;
        let ends = [addresses[&cell.from], addresses[&cell.to]];
        // The cases judge these like any other pair; the API always allows them.
        if cell.from == cell.to {
            tally.to_itself += 1;
            let passes = passes(&ruleset, cell, ends, [POD_SIDE, POD_SIDE]);
            assert!(passes, "{title}: {} to itself", cell.from);
            continue;
        }
        for (column, expected, interfaces) in [
            ("egress", &cell.egress, [POD_SIDE, OTHER_SIDE]),
            ("ingress", &cell.ingress, [OTHER_SIDE, POD_SIDE]),
            ("allowed", &cell.allowed, [POD_SIDE, POD_SIDE]),
        ] {
            if passes(&ruleset, cell, ends, interfaces) != (expected == "allowed") {
                tally.differences.push(format!(
                    "{title}: {} -> {} {}/{}: expected {column} {expected}",
                    cell.from, cell.to, cell.port, cell.protocol,
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn the_compiled_rules_agree_with_every_ipv4_case() -> Result<()> {
    agrees_in_every_cell("v4", judge)
}

#[test]
fn the_compiled_rules_agree_with_every_ipv6_case() -> Result<()> {
    agrees_in_every_cell("v6", judge)
}
