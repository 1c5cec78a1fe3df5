//! Wiring: sources, owner, socket, HTTP server. Everything that runs is joined, and the end
//! of any of them ends the agent with a reason. The tables stay as they are.

use std::future::IntoFuture;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use dataplane::attachment::records_dir;
use dataplane::kernel::Kernel;
use dataplane::layout::denials::Denials;
use dataplane::netlink::{Nftables, PacketLog};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::AddressWatch;
use crate::admin::Socket;
use crate::args::{Run, StateDir};
use crate::complaint::Complaints;
use crate::config::network::NetworkConfig;
use crate::config::services::ServiceConfig;
use crate::config::{Config, DenyWith};
use crate::event::Kind;
use crate::health::Health;
use crate::isolation;
use crate::journal::{self, Journal};
use crate::network::conflist::Conflist;
use crate::network::plan;
use crate::owner::{Owner, Settings};
use crate::reaper::Reaper;
use crate::records;
use crate::runtime::{self, Mail, Outlets, Periods};
use crate::source::kubernetes::{self, Access, WatchStates, Watches};
use crate::source::manifests::ManifestDir;
use crate::source::manifests::watch::{ManifestWatch, POLL_INTERVAL};
use crate::verdict_log::{self, Feed, Target, VerdictLog};
use crate::{conntrack, events, foreign, health_check, http, loopback, network};

/// Events between the watches and the owner; more than that delays the watches.
const EVENTS: usize = 1024;

/// How often connection tracking is looked at.
const CONNTRACK: Duration = Duration::from_secs(5);

/// Runs the agent until a signal ends it.
///
/// # Errors
/// With what could not be set up, or what has ended unexpectedly.
pub fn run(arguments: &Run, config: &Config) -> anyhow::Result<()> {
    let mut kernel = Nftables::open()?;
    // Says at once what is missing, not at the first sync.
    kernel.generation()?;

    let manifests = arguments
        .manifests
        .as_ref()
        .map(ManifestDir::open)
        .transpose()?;
    let services = arguments.services.over(config.services.clone());
    if let Some(problem) = services.problem().or_else(|| services.missing()) {
        bail!("{problem}");
    }
    let network = arguments.network.over(config.network.clone());
    if let Some(problem) = network.problem() {
        bail!("{problem}");
    }
    let conflist = conflist(&network, &arguments.socket)?;
    conntrack::configure(&services.conntrack);
    if services.reset_gone_endpoints {
        conntrack::warn_unless_loose();
    }
    let mut owner = Owner::new(
        Settings {
            node: arguments.node_name.clone(),
            compute_endpoints: manifests.is_some(),
            bridges: config.bridges.clone(),
        },
        kernel,
    );

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let socket = Socket::bind(&arguments.socket)?;
        let packets = listen(&arguments.verdict_log);
        let feed = Feed::new(packets.is_some());
        let socket = socket.with_feed(feed.clone());
        owner.set_denials(Denials {
            log: packets.is_some(),
            reject: arguments.deny_with.unwrap_or(config.deny_with) == DenyWith::Reject,
        });
        for attachment in records::read(&records_dir(&arguments.socket)) {
            owner.attach(attachment);
        }
        owner.configure_services(&services);
        if network.is_on() {
            owner.follow_network(network.has_tunnels().then_some(network.vxlan_port));
        }
        if let Some(folder) = state_folder(arguments) {
            fall_back(&mut owner, folder, &arguments.node_name);
        }
        let addresses = AddressWatch::open()
            .await
            .context("cannot list the node's addresses")?;
        owner.set_host_addresses(addresses.addresses().clone());
        let health = Health::with_sync_period(services.sync_period);
        let periods = Periods {
            retry: services.sync_period,
            pause: services.min_sync_period,
        };
        let outlets = Outlets::default();
        let news = outlets.services.subscribe();
        let complaints = outlets.complaints.subscribe();
        let nodes = outlets.nodes.subscribe();
        let (mail, thread) = runtime::start(owner, manifests, health.clone(), periods, outlets)
            .context("cannot start the owner's thread")?;
        let target = &arguments.verdict_log;
        let verdict_log = VerdictLog::start(packets, target, mail.clone(), health.clone(), feed)
            .context("cannot start the verdict log's thread")?;
        let reaper = Reaper::start(&arguments.socket, arguments.reap_interval)
            .context("cannot start the reaper's thread")?;
        let owner = mail.clone();
        let follow = addresses.follow(move |now| owner.send(Mail::HostAddresses(now)).is_ok());
        let health_checks = health_check::serve(news.clone(), health.clone(), mail.clone());
        let loopback = loopback::serve(news, mail.clone());
        let foreign = foreign::watch(mail.clone(), services.enabled);
        let network = async {
            if !network.is_on() {
                return std::future::pending().await;
            }
            let settings = plan::Settings {
                node: arguments.node_name.clone(),
                mode: network.mode,
                vxlan_port: network.vxlan_port,
                vxlan_vni: network.vxlan_vni,
                mtu: network.mtu,
            };
            network::follow::follow(settings, conflist, nodes, health.clone(), mail.clone()).await
        };
        let mut result = tokio::select! {
            result = serve(
                arguments, &services, socket, health.clone(), complaints, &mail, &reaper
            ) => result,
            () = health_checks => Err(anyhow!("the server of health checks has ended")),
            () = foreign => Err(anyhow!("the look at the tables of others has ended")),
            result = network => match result {
                Ok(()) => Err(anyhow!("the pod network is not looked at any more")),
                Err(error) => Err(error.context("the pod network cannot be looked at")),
            },
            () = loopback => Err(anyhow!("the listener on node ports has ended")),
            () = follow => Err(anyhow!("the kernel tells no more of the node's addresses")),
        };
        if reaper.stop().is_err() {
            result = Err(anyhow!("the reaper's thread has panicked"));
        }
        if verdict_log.stop().is_err() {
            result = Err(anyhow!("the verdict log's thread has panicked"));
        }
        // The thread may have ended, which is then the error.
        drop(mail.send(Mail::Stop));
        if thread.join().is_err() {
            bail!("the owner's thread has panicked");
        }
        result
    })
}

/// The CNI configuration to write, if one is.
fn conflist(network: &NetworkConfig, socket: &Path) -> anyhow::Result<Option<Conflist>> {
    let Some(dir) = &network.cni_conf_dir else {
        return Ok(None);
    };
    let conflist = Conflist::new(dir, socket, network.ip_masq);
    Ok(Some(match &network.cni_conf_template {
        Some(template) => conflist.with_template(template)?,
        None => conflist,
    }))
}

/// Where objects are written down: manifests are on disk themselves.
fn state_folder(arguments: &Run) -> Option<&Path> {
    match &arguments.state_dir {
        StateDir::Folder(folder) if arguments.manifests.is_none() => Some(folder),
        _ => None,
    }
}

fn fall_back<K: Kernel>(owner: &mut Owner<K>, folder: &Path, node: &str) {
    let (folder, node) = (folder.to_owned(), node.to_owned());
    owner.fall_back_on(Box::new(move || {
        let restored = journal::restore(&folder, &node).inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "no use can be made of the objects of an earlier run; without the API server pods \
                 stay closed"
            );
        });
        restored.ok().flatten()
    }));
}

/// The packets that are denied, where somebody wants to be told and the kernel can tell.
fn listen(target: &Target) -> Option<PacketLog> {
    if *target == Target::Off {
        return None;
    }
    verdict_log::listen()
        .inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "there is no verdict log; packets are denied all the same"
            );
        })
        .ok()
}

async fn serve(
    arguments: &Run,
    services: &ServiceConfig,
    socket: Socket,
    health: Health,
    complaints: watch::Receiver<Complaints>,
    mail: &Sender<Mail>,
    reaper: &Reaper,
) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let tasks = TaskTracker::new();

    let watch = arguments.manifests.as_ref().map(|folder| {
        let mail = mail.clone();
        // An owner that has ended needs no news.
        ManifestWatch::start(folder, POLL_INTERVAL, move || drop(mail.send(Mail::Rescan)))
    });
    if watch.is_none() {
        let left_out: &[Kind] = match services.enabled {
            true => &[],
            false => &Kind::OF_SERVICES,
        };
        let outlets = (mail, &health);
        start_watches(arguments, outlets, complaints, (&tasks, &cancel), left_out).await?;
    }

    let mut servers = JoinSet::new();
    if let Some(address) = arguments.listen {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}: give another --listen"))?;
        let server = axum::serve(listener, http::router(health.clone()));
        servers.spawn(server.into_future());
    }
    if let Some(address) = services.healthz_bind_address {
        let router = http::healthz_router(health.clone());
        servers.spawn(http::serve_when_free(address, router));
    }
    if let Some(address) = services.metrics_bind_address {
        let router = http::metrics_router(health.clone());
        servers.spawn(http::serve_when_free(address, router));
    }
    servers.spawn(watch_conntrack(health.clone()));
    let records = records_dir(&arguments.socket);
    servers.spawn(isolation::follow(records, mail.clone()));

    tracing::info!(node = arguments.node_name, socket = %arguments.socket.display(), "running");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(result) = servers.join_next() => match result {
            Ok(result) => result.context("an HTTP server has ended"),
            Err(error) => Err(error).context("a server has ended"),
        },
        () = socket.serve(mail.clone(), health.clone()) => bail!("the socket has ended"),
        () = ended(|| mail.send(Mail::Ping).is_err()) => bail!("the owner's thread has ended"),
        () = ended(|| reaper.has_ended()) => bail!("the reaper's thread has ended"),
    };
    tracing::info!("ending; the tables stay");
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Tells how full connection tracking is, and warns when it is nearly full or has dropped
/// packets: connections fail then, whatever the rules say. The same for session affinity,
/// where clients go anywhere then.
async fn watch_conntrack(health: Health) -> std::io::Result<()> {
    let mut was_full = false;
    let mut drops = None;
    let mut unlearnt = 0;
    let mut forgets = false;
    let mut kernel = Nftables::open().ok();
    loop {
        if let Some(now) = kernel.as_mut().and_then(|kernel| kernel.unlearnt().ok()) {
            let added = now.saturating_sub(unlearnt);
            if added > 0 && !forgets {
                tracing::warn!(
                    "the map of session affinity is full, new clients are not remembered"
                );
            }
            health.unlearnt(added);
            forgets = added > 0;
            unlearnt = now;
        }
        if let Some(now) = conntrack::usage() {
            health.conntrack(now);
            let is_full = now.entries >= now.limit - now.limit / 10
                || drops.is_some_and(|before| now.drops > before);
            if is_full && !was_full {
                tracing::warn!(
                    entries = now.entries,
                    limit = now.limit,
                    drops = now.drops,
                    "connection tracking is full, new connections fail: raise nf_conntrack_max"
                );
            }
            was_full = is_full;
            drops = Some(now.drops);
        }
        tokio::time::sleep(CONNTRACK).await;
    }
}

/// Watches the API server and hands its events to the owner.
async fn start_watches(
    arguments: &Run,
    (mail, health): (&Sender<Mail>, &Health),
    complaints: watch::Receiver<Complaints>,
    (tasks, cancel): (&TaskTracker, &CancellationToken),
    left_out: &[Kind],
) -> anyhow::Result<()> {
    let access = match &arguments.kubeconfig {
        Some(path) => Access::Kubeconfig(path.clone()),
        None => Access::InCluster,
    };
    let client = kubernetes::client(&access).await?;
    let (sender, mut events) = tokio::sync::mpsc::channel(EVENTS);
    let report = events::report(client.clone(), arguments.node_name.clone(), complaints);
    tasks.spawn(cancel.clone().run_until_cancelled_owned(report));
    let states = Watches::start(client, sender, tasks, cancel.clone(), left_out);
    let tell = tell_of_server(states, mail.clone(), health.clone());
    tasks.spawn(cancel.clone().run_until_cancelled_owned(tell));
    let mail = mail.clone();
    let journal = state_folder(arguments)
        .map(|folder| Journal::start(folder, &arguments.node_name))
        .transpose()
        .context("cannot start the journal's thread")?;
    tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            if let Some(journal) = &journal {
                journal.note(&event);
            }
            if mail.send(Mail::Event(event)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Tells which watches do not work, and complains while the API server is not to be believed.
async fn tell_of_server(
    mut states: watch::Receiver<WatchStates>,
    mail: Sender<Mail>,
    health: Health,
) {
    let mut told = (Vec::new(), Vec::new());
    loop {
        let now = {
            let states = states.borrow_and_update();
            health.watches_broken(kubernetes::broken(&states));
            (
                kubernetes::complaints(&states),
                kubernetes::problems(&states),
            )
        };
        let (complaints, problems) = now.clone();
        // An owner that has ended needs no news.
        let is_heard = (now.0 == told.0
            || mail
                .send(Mail::Complaints("api server", complaints))
                .is_ok())
            && (now.1 == told.1 || mail.send(Mail::Unwatched(problems)).is_ok());
        if !is_heard || states.changed().await.is_err() {
            return;
        }
        told = now;
    }
}

/// Ends when a thread has, which a panic would cause.
async fn ended(has_ended: impl Fn() -> bool) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if has_ended() {
            return;
        }
    }
}
