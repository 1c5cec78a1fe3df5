//! The verdict oracle against the cases that cyclonus generates, see [`cases`].
//!
//! The policies and pods go through the same conversion as those of an API server.

#[path = "common/cases.rs"]
mod cases;

use cases::{CELLS, Result, Step, World, for_each_step};
use policy_agent::verdict::{Cluster, Flow, Judgement, Path, Transport};

#[derive(Default)]
struct Tally {
    cells: usize,
    to_itself: usize,
    differences: Vec<String>,
}

/// The step's objects as the oracle wants them.
fn cluster(world: &World) -> Cluster<'_> {
    let pods = world.pods.iter().map(|pod| (pod, pod.ips.iter().copied()));
    Cluster::new(&world.namespaces, pods, &world.policies, [])
}

impl Tally {
    fn step(&mut self, title: &str, step: &Step) -> Result<()> {
        let world = World::new(step)?;
        let cluster = cluster(&world);
        let addresses = step.addresses();
        for cell in &step.table {
            self.cells += 1;
            let verdict = cluster.judge(&Flow {
                source: addresses[&cell.from],
                destination: addresses[&cell.to],
                transport: Transport::Port(cell.protocol, cell.port),
            });
            // The cases judge these like any other pair; the API always allows them.
            if cell.from == cell.to {
                self.to_itself += 1;
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
                self.differences.push(format!(
                    "{title}: {} -> {} {}/{}: expected {expected:?}, got {got:?}: {verdict}",
                    cell.from, cell.to, cell.port, cell.protocol,
                ));
            }
            assert_ne!(verdict.egress, Judgement::Exempt);
            assert_ne!(verdict.ingress, Judgement::Exempt);
        }
        Ok(())
    }
}

fn agrees_in_every_cell(family: &str) -> Result<()> {
    let mut tally = Tally::default();
    if !for_each_step(family, |title, step| tally.step(title, step))? {
        return Ok(());
    }
    assert!(
        tally.differences.is_empty(),
        "{} of {} cells differ, the first:\n{}",
        tally.differences.len(),
        tally.cells,
        tally.differences[..tally.differences.len().min(10)].join("\n")
    );
    assert_eq!(tally.cells, CELLS);
    assert!(tally.to_itself > 0 && tally.to_itself < tally.cells / 8);
    Ok(())
}

#[test]
fn the_oracle_agrees_with_every_ipv4_case() -> Result<()> {
    agrees_in_every_cell("v4")
}

#[test]
fn the_oracle_agrees_with_every_ipv6_case() -> Result<()> {
    agrees_in_every_cell("v6")
}
