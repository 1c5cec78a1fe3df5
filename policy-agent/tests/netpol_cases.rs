//! The verdict oracle against the cases that cyclonus generates, see [`cases`].
//!
//! The policies and pods go through the same conversion as those of an API server.

#[path = "common/cases.rs"]
mod cases;

use cases::{Result, Step, Tally, World, agrees_in_every_cell};
use policy_agent::verdict::{Cluster, Flow, Judgement, Path, Transport};

/// The step's objects as the oracle wants them.
fn cluster(world: &World) -> Cluster<'_> {
    let pods = world.pods.iter().map(|pod| (pod, pod.ips.iter().copied()));
    Cluster::new(&world.namespaces, pods, &world.policies, [])
}

fn judge(tally: &mut Tally, title: &str, step: &Step) -> Result<()> {
    let world = World::new(step)?;
    let cluster = cluster(&world);
    let addresses = step.addresses();
    for cell in &step.table {
        tally.cells += 1;
        let verdict = cluster.judge(&Flow {
            source: addresses[&cell.from],
            destination: addresses[&cell.to],
            transport: Transport::Port(cell.protocol, cell.port),
        });
        // The cases judge these like any other pair; the API always allows them.
        if cell.from == cell.to {
            tally.to_itself += 1;
            assert_eq!(verdict.path, Path::PodToItself, "{title}: {}", cell.from);
            assert!(verdict.is_allowed());
            continue;
        }
        let word = |allowed| if allowed { "allowed" } else { "blocked" };
        let got = [
            word(verdict.egress.is_allowed()),
            word(verdict.ingress.is_allowed()),
            word(verdict.is_allowed()),
        ];
        let expected = [&cell.egress, &cell.ingress, &cell.allowed];
        if got != expected.map(String::as_str) {
            tally.differences.push(format!(
                "{title}: {} -> {} {}/{}: expected {expected:?}, got {got:?}: {verdict}",
                cell.from, cell.to, cell.port, cell.protocol,
            ));
        }
        assert_ne!(verdict.egress, Judgement::Exempt);
        assert_ne!(verdict.ingress, Judgement::Exempt);
    }
    Ok(())
}

#[test]
fn the_oracle_agrees_with_every_ipv4_case() -> Result<()> {
    agrees_in_every_cell("v4", judge)
}

#[test]
fn the_oracle_agrees_with_every_ipv6_case() -> Result<()> {
    agrees_in_every_cell("v6", judge)
}
