//! The story: a node, pods, a Service, policies, a change, the end.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::agent::{self, Agent};
use tests::matrix::{self, Cell, Expect};
use tests::netns::NetNs;
use tests::node::{Node, OUTSIDE_IPS};
use tests::pod::{Family, Pod};
use tests::scene::{NODE, OUTSIDE};
use tests::traffic::{Protocol, Server, Stream};
use tests::{inspect, interrupt};

use crate::expected::{PODS, SERVICE, TESTER, WEB, answered};
use crate::report::{CellReport, Cut, PodReport, Report, Step, milliseconds};
use crate::terminal::Terminal;

/// Port of every server.
const PORT: u16 = 80;
/// The Service in `manifests/service.yaml`.
const SERVICE_IPS: [&str; 2] = ["10.96.0.10", "fd96::10"];
/// Its port.
const SERVICE_PORT: u16 = 8000;

/// The sources, rows of the table.
const FROM: [&str; 7] = [PODS[0], PODS[1], PODS[2], PODS[3], PODS[4], NODE, OUTSIDE];
/// The targets, columns of the table.
const TO: [&str; 7] = [
    PODS[0], PODS[1], PODS[2], PODS[3], PODS[4], SERVICE, OUTSIDE,
];

/// How often the open connections say something.
const LINE_EVERY: Duration = Duration::from_millis(2);

/// Does everything and tells it to `terminal`.
pub(crate) fn run(terminal: &Terminal) -> Result<Report> {
    let started = Instant::now();
    let mut demo = Demo {
        terminal,
        report: Report::default(),
    };
    terminal.title("A node");
    let node = demo.step("ip", || {
        let node = Node::new()?;
        Ok((
            node,
            "namespaces for a node and a neighbour outside, an uplink between".to_owned(),
        ))
    })?;
    let agent = demo.start_agent(&node)?;
    let pods = demo.attach(&node)?;
    let servers = demo.serve(&node, &pods)?;

    let connected = demo.connect(&node, &agent, &pods)?;
    let cut = demo.change_policy(&node, &agent, &pods)?;

    terminal.title("The end");
    drop(servers);
    let clean = demo.clean_up(&node, agent, &pods)?;
    drop(pods);
    demo.step("ip", || {
        drop(node);
        Ok(((), "namespaces deleted".to_owned()))
    })?;
    let mut report = demo.report;
    report.agrees = connected && cut && clean;
    report.milliseconds = milliseconds(started.elapsed());
    terminal.verdict(&report);
    Ok(report)
}

struct Demo<'t> {
    terminal: &'t Terminal,
    report: Report,
}

impl Demo<'_> {
    /// Does one thing, which returns what it has to say about it.
    fn step<T>(&mut self, by: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        interrupt::check()?;
        let started = Instant::now();
        let (value, what) = work()?;
        let step = Step {
            by: by.to_owned(),
            what,
            milliseconds: milliseconds(started.elapsed()),
        };
        self.terminal.step(&step);
        self.report.steps.push(step);
        Ok(value)
    }

    fn start_agent<'n>(&mut self, node: &'n Node) -> Result<Agent<'n>> {
        for (file, text) in [
            ("pods.yaml", include_str!("manifests/pods.yaml")),
            ("service.yaml", include_str!("manifests/service.yaml")),
            ("policies.yaml", include_str!("manifests/policies.yaml")),
        ] {
            node.manifests.write_text(file, text)?;
        }
        self.step("trammel-agent", || {
            let agent = Agent::start(node)?;
            let tables = inspect::tables(&node.netns)?.join(", ");
            Ok((
                agent,
                format!("started on 5 pods, 1 Service, 3 policies; tables: {tables}"),
            ))
        })
    }

    fn attach<'n>(&mut self, node: &'n Node) -> Result<BTreeMap<&'static str, Pod<'n>>> {
        let mut pods = BTreeMap::new();
        for name in PODS {
            let pod = self.step("cnitool, trammel", || {
                let pod = Pod::add(node, name)?;
                let ips: Vec<_> = pod.ips().iter().map(IpAddr::to_string).collect();
                let what = format!(
                    "{name} is {}, port {} of cbr0",
                    ips.join(" and "),
                    pod.port()?
                );
                Ok((pod, what))
            })?;
            let (ips, port) = (pod.ips().to_vec(), pod.port()?);
            self.report.pods.push(PodReport {
                name: name.to_owned(),
                ips,
                port,
            });
            pods.insert(name, pod);
        }
        Ok(pods)
    }

    fn serve(&mut self, node: &Node, pods: &BTreeMap<&str, Pod<'_>>) -> Result<Vec<Server>> {
        self.step("demo", || {
            let mut servers = vec![Server::start(&node.outside, OUTSIDE, &[PORT])?];
            for (name, pod) in pods {
                servers.push(Server::start(&pod.netns, name, &[PORT])?);
            }
            Ok((
                servers,
                format!("a server on port {PORT} in every pod and outside"),
            ))
        })
    }

    /// Tries every connection; whether all came out as expected.
    fn connect(
        &mut self,
        node: &Node,
        agent: &Agent<'_>,
        pods: &BTreeMap<&str, Pod<'_>>,
    ) -> Result<bool> {
        self.step("trammel-agent", || {
            agent.wait()?;
            Ok(((), "everything is in the kernel".to_owned()))
        })?;
        self.terminal.title("Who reaches whom");
        let mut sources: BTreeMap<String, &NetNs> = pods
            .iter()
            .map(|(name, pod)| ((*name).to_owned(), &pod.netns))
            .collect();
        sources.insert(NODE.to_owned(), &node.netns);
        sources.insert(OUTSIDE.to_owned(), &node.outside);
        for observed in matrix::observe(&sources, &cells(pods))? {
            let expected = matches!(observed.cell.expect, Expect::Answer(_));
            self.report.matrix.push(CellReport::new(observed, expected));
        }
        self.terminal.matrix(&FROM, &TO, &self.report.matrix);
        Ok(self.report.matrix.iter().all(|cell| cell.agrees))
    }

    /// Takes the testers out of a policy while one of them has connections open;
    /// whether those are cut.
    fn change_policy(
        &mut self,
        node: &Node,
        agent: &Agent<'_>,
        pods: &BTreeMap<&str, Pod<'_>>,
    ) -> Result<bool> {
        self.terminal
            .title("A policy change, and connections that are open");
        let (from, to) = (&pods[TESTER], &pods[WEB[0]]);
        let mut streams = Vec::new();
        for family in Family::ALL {
            let target = to.at(family, PORT);
            streams.push((
                family,
                Stream::open(&from.netns, Protocol::Tcp, target, LINE_EVERY)?,
            ));
        }
        let changed = Instant::now();
        let policies = include_str!("manifests/policies-without-testers.yaml");
        node.manifests.write_text("policies.yaml", policies)?;
        for (family, stream) in &streams {
            let cut = stream
                .wait_for_cut()
                .with_context(|| format!("{TESTER} to {}, {family}", WEB[0]))?;
            self.report.live_change.push(Cut {
                from: TESTER.to_owned(),
                to: WEB[0].to_owned(),
                family: family.to_string(),
                milliseconds: milliseconds(cut.saturating_duration_since(changed)),
            });
        }
        self.terminal.cuts(&self.report.live_change);
        self.step("trammel-agent", || {
            let verified = agent.verify()?;
            anyhow::ensure!(
                verified.status.success(),
                "verify: {}",
                verified.stdout.trim()
            );
            Ok(((), "verify: the kernel is as it should be".to_owned()))
        })?;
        Ok(true)
    }

    /// Takes down what the programs made; whether they left nothing.
    fn clean_up(
        &mut self,
        node: &Node,
        agent: Agent<'_>,
        pods: &BTreeMap<&str, Pod<'_>>,
    ) -> Result<bool> {
        let number = pods.len();
        let nothing_left = self.step("cnitool, trammel", || {
            pods.values().try_for_each(Pod::del)?;
            let left = [
                node.ports()?.len(),
                node.leases()?.len(),
                node.records()?.len(),
            ];
            let [ports, leases, records] = left;
            let what = format!(
                "{number} pods detached; left: {ports} ports, {leases} leases, {records} records"
            );
            Ok((left == [0; 3], what))
        })?;
        let no_tables = self.step("trammel-agent", || {
            agent.stop()?;
            let cleaned = agent::verb(node, &["cleanup"])?;
            anyhow::ensure!(
                cleaned.status.success(),
                "cleanup: {}",
                cleaned.stderr.trim()
            );
            let tables = inspect::tables(&node.netns)?;
            Ok((
                tables.is_empty(),
                format!("stopped, cleanup; left: {} tables", tables.len()),
            ))
        })?;
        Ok(nothing_left && no_tables)
    }
}

/// Every connection of the table.
fn cells(pods: &BTreeMap<&str, Pod<'_>>) -> Vec<Cell> {
    let mut cells = Vec::new();
    for from in FROM {
        for to in TO {
            let Some(is_answered) = answered(from, to) else {
                continue;
            };
            for family in Family::ALL {
                let (target, servers) = match (to, pods.get(to)) {
                    (_, Some(pod)) => (pod.at(family, PORT), vec![to.to_owned()]),
                    (SERVICE, None) => (
                        SocketAddr::new(family.pick(SERVICE_IPS), SERVICE_PORT),
                        WEB.map(str::to_owned).into(),
                    ),
                    _ => (
                        SocketAddr::new(family.pick(OUTSIDE_IPS), PORT),
                        vec![OUTSIDE.to_owned()],
                    ),
                };
                cells.push(Cell {
                    from: from.to_owned(),
                    to: to.to_owned(),
                    protocol: Protocol::Tcp,
                    target,
                    expect: if is_answered {
                        Expect::Answer(servers)
                    } else {
                        Expect::Silence
                    },
                });
            }
        }
    }
    cells
}
