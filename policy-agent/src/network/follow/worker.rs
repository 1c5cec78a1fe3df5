//! One pass: look, plan, change, and what to tell of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use cni_bin::netlink::NetlinkError;
use dataplane::object::IpFamily;
use ipnet::IpNet;

use super::super::change::{State, changes};
use super::super::conflist::{Conflist, Written};
use super::super::kernel::{Kernel, Surroundings};
use super::super::plan::{Plan, Settings, Way, plan};
use super::super::{NetworkStatus, NodeNetwork, RouteStatus, sysctls};
use super::FROM;
use crate::complaint::{Complaint, Problem};
use crate::config::network::NetworkMode;
use crate::runtime::Mail;

/// Lines of one pass in the log.
const LOGGED: usize = 20;

/// What passes are done with, and what they have found.
pub(super) struct Worker {
    settings: Settings,
    conflist: Option<Conflist>,
    kernel: Kernel,
    /// The last plan that the kernel held in full.
    held: Option<Plan>,
    status: NetworkStatus,
    direct: BTreeSet<IpNet>,
    complaints: Vec<Complaint>,
    is_told: bool,
}

/// What came of a pass.
#[derive(Default)]
pub(super) struct Outcome {
    /// For the owner.
    pub(super) news: Vec<Mail>,
    /// Something could not be done.
    pub(super) has_failed: bool,
    /// The CNI configuration is not written, as pods cannot start yet.
    pub(super) waits_for_sync: bool,
}

/// What a pass has found.
#[derive(Default)]
struct Findings {
    status: Option<NetworkStatus>,
    direct: BTreeSet<IpNet>,
    complaints: Vec<Complaint>,
    errors: Vec<String>,
    waits_for_sync: bool,
}

impl Worker {
    pub(super) fn open(
        settings: Settings,
        conflist: Option<Conflist>,
    ) -> Result<Self, NetlinkError> {
        let status = NetworkStatus::new(settings.mode);
        Ok(Self {
            settings,
            conflist,
            kernel: Kernel::open()?,
            held: None,
            status,
            direct: BTreeSet::new(),
            complaints: Vec::new(),
            is_told: false,
        })
    }

    pub(super) fn pass(&mut self, nodes: &[NodeNetwork], is_ready: bool) -> Outcome {
        let mut findings = Findings::default();
        if let Err(error) = self.look_and_change(nodes, is_ready, &mut findings) {
            findings.errors.push(error.to_string());
        }
        let mut status = findings.status.unwrap_or_else(|| self.status.clone());
        status.error = (!findings.errors.is_empty()).then(|| findings.errors.join("; "));
        let has_failed = status.error.is_some();
        if let Some(error) = &status.error {
            if self.status.error.as_ref() != Some(error) {
                tracing::error!(error, "the pod network is not as it should be");
            }
            findings
                .complaints
                .push(about_node("PodNetwork", error.clone()));
        } else if self.status.error.is_some() {
            tracing::info!("the pod network is as it should be again");
        }
        let mut outcome = Outcome {
            news: Vec::new(),
            has_failed,
            waits_for_sync: findings.waits_for_sync,
        };
        for complaint in &findings.complaints {
            if !self.complaints.contains(complaint) && complaint.reason != "PodNetwork" {
                tracing::warn!("{}", complaint.message);
            }
        }
        if !self.is_told || self.complaints != findings.complaints {
            self.complaints.clone_from(&findings.complaints);
            let news = Mail::Complaints(FROM, findings.complaints);
            outcome.news.push(news);
        }
        if !self.is_told || self.status != status || self.direct != findings.direct {
            self.direct.clone_from(&findings.direct);
            self.status.clone_from(&status);
            let news = Mail::Network(Box::new(status), findings.direct);
            outcome.news.push(news);
        }
        self.is_told = true;
        outcome
    }

    fn look_and_change(
        &mut self,
        nodes: &[NodeNetwork],
        is_ready: bool,
        findings: &mut Findings,
    ) -> Result<(), NetlinkError> {
        // Until there is something new to say.
        findings.direct.clone_from(&self.direct);
        let around = self.kernel.look()?;
        let mut underlay = around.underlay();
        if self.settings.mode != NetworkMode::None {
            let others = nodes.iter().filter(|node| node.name != self.settings.node);
            let addresses = others.flat_map(|node| node.addresses.iter().copied());
            underlay.hops = self.kernel.hops(&addresses.collect())?;
        }
        let Some(mut plan) = plan(&self.settings, nodes, &underlay) else {
            let message = format!(
                "there is no Node {}: the pod network stays as it is; does --node-name say what \
                 kubelet registers?",
                self.settings.node
            );
            findings.complaints.push(about_node("NodeUnknown", message));
            return Ok(());
        };
        let (own, others) = std::mem::take(&mut plan.problems)
            .into_iter()
            .partition(|problem: &Complaint| problem.about.is_none());
        findings.complaints = own;
        self.set_sysctls(&plan, &around, findings);
        let tunnels = self.kernel.set_tunnels(&plan, &around)?;
        let observed = self.kernel.state(&around, &tunnels.indexes)?;
        let wanted = State::wanted(&plan, &tunnels.indexes);
        let steps = changes(&wanted, &observed, &plan.undecided);
        let refused = self.kernel.apply(&steps)?;

        let mut done = tunnels.done;
        done.extend(steps.iter().map(ToString::to_string));
        let is_repair = self.held.as_ref() == Some(&plan) && !done.is_empty();
        log(&done, is_repair);
        let is_whole = tunnels.errors.is_empty() && refused.is_empty();
        let has_tunnels = tunnels.errors.is_empty();
        findings.errors.extend(tunnels.errors);
        findings.errors.extend(refused);
        findings.direct = direct_nodes(&plan);

        let mut status = self.status_of(&plan, &others);
        status.repairs += u64::from(is_repair);
        if let Some(conflist) = self.conflist.clone() {
            let own = nodes.iter().find(|node| node.name == self.settings.node);
            let all: BTreeSet<_> = own.iter().flat_map(|node| &node.pod_cidrs).collect();
            let is_whole_own = !all.is_empty() && all.len() == plan.pod_cidrs.len();
            if is_whole_own && has_tunnels {
                findings.waits_for_sync = !is_ready;
                if is_ready {
                    write(&conflist, &plan, &mut status, findings);
                }
            }
            findings.complaints.extend(hidden(&conflist));
        }
        findings.status = Some(status);
        self.held = is_whole.then_some(plan);
        Ok(())
    }

    fn set_sysctls(&self, plan: &Plan, around: &Surroundings, findings: &mut Findings) {
        let families = plan.pod_cidrs.iter().map(|net| IpFamily::of(net.addr()));
        let families: BTreeSet<_> = families.collect();
        let root = Path::new(sysctls::ROOT);
        let (done, problems) = sysctls::configure(root, &families, &around.advertised_links());
        for done in done {
            tracing::info!("set {done}");
        }
        let problems = problems.into_iter();
        findings
            .complaints
            .extend(problems.map(|problem| about_node("Sysctl", problem)));
    }

    fn status_of(&self, plan: &Plan, others: &[Complaint]) -> NetworkStatus {
        let routes = plan.nodes.iter().map(|(pod_cidr, (node, address))| {
            let path = match plan.routes.get(pod_cidr) {
                Some(Way::Tunnel { .. }) => "vxlan",
                _ => "direct",
            };
            RouteStatus {
                node: node.clone(),
                pod_cidr: *pod_cidr,
                path: path.to_owned(),
                node_address: *address,
            }
        });
        NetworkStatus {
            pod_cidrs: plan.pod_cidrs.clone(),
            mtu: Some(plan.mtu),
            routes: routes.collect(),
            problems: others.iter().map(Problem::from).collect(),
            ..self.status.clone()
        }
    }
}

/// The addresses of nodes that are reached directly: they know the way back to a pod, which
/// keeps its address towards them.
fn direct_nodes(plan: &Plan) -> BTreeSet<IpNet> {
    let addresses = plan.routes.values().filter_map(|way| match way {
        Way::Direct { via, .. } => Some(*via),
        _ => None,
    });
    addresses.map(|via: IpAddr| IpNet::from(via)).collect()
}

fn write(conflist: &Conflist, plan: &Plan, status: &mut NetworkStatus, findings: &mut Findings) {
    let path = conflist.path();
    match conflist.write(&conflist.text(&plan.pod_cidrs, plan.mtu)) {
        Ok(written) => {
            if written == Written::Changed {
                tracing::info!(path = %path.display(), "CNI configuration written");
            }
            status.cni_conf = Some(path.display().to_string());
        }
        Err(error) => {
            let message = format!("cannot write {}: {error}", path.display());
            findings.errors.push(message);
        }
    }
}

fn hidden(conflist: &Conflist) -> Option<Complaint> {
    let others = conflist.hidden_by();
    let message = format!(
        "runtimes take {} in place of {}, as it comes first by name: remove or rename it",
        others.join(", "),
        conflist.path().display()
    );
    (!others.is_empty()).then(|| about_node("CNIConfHidden", message))
}

const fn about_node(reason: &'static str, message: String) -> Complaint {
    Complaint {
        about: None,
        uid: None,
        reason,
        message,
    }
}

fn log(done: &[String], is_repair: bool) {
    for (number, done) in done.iter().enumerate() {
        match (number < LOGGED, is_repair) {
            (true, true) => tracing::warn!("repaired: {done}"),
            (true, false) => tracing::info!("{done}"),
            (false, _) => tracing::debug!("{done}"),
        }
    }
    if done.len() > LOGGED {
        tracing::info!("and {} changes more", done.len() - LOGGED);
    }
}
