//! Wiring: sources, owner, socket, HTTP server. Everything that runs is joined, and the end
//! of any of them ends the agent with a reason. The tables stay as they are.

use std::sync::mpsc::Sender;

use anyhow::{Context, bail};
use dataplane::attachment::records_dir;
use dataplane::kernel::Kernel;
use dataplane::netlink::Nftables;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Socket;
use crate::args::Run;
use crate::config::Config;
use crate::health::Health;
use crate::owner::{Owner, Settings};
use crate::records;
use crate::runtime::{self, Mail};
use crate::source::kubernetes::{self, Access, Watches};
use crate::source::manifests::ManifestDir;
use crate::source::manifests::watch::{ManifestWatch, POLL_INTERVAL};

/// Events between the watches and the owner; more than that delays the watches.
const EVENTS: usize = 1024;

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
        for attachment in records::read(&records_dir(&arguments.socket)) {
            owner.attach(attachment);
        }
        let health = Health::new();
        let (mail, thread) = runtime::start(owner, manifests, health.clone())
            .context("cannot start the owner's thread")?;
        let result = serve(arguments, socket, health, &mail).await;
        // The thread may have ended, which is then the error.
        drop(mail.send(Mail::Stop));
        if thread.join().is_err() {
            bail!("the owner's thread has panicked");
        }
        result
    })
}

async fn serve(
    arguments: &Run,
    socket: Socket,
    health: Health,
    mail: &Sender<Mail>,
) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let tasks = TaskTracker::new();

    let watch = arguments.manifests.as_ref().map(|folder| {
        let mail = mail.clone();
        // An owner that has ended needs no news.
        ManifestWatch::start(folder, POLL_INTERVAL, move || drop(mail.send(Mail::Rescan)))
    });
    if watch.is_none() {
        start_watches(arguments, mail, &tasks, &cancel).await?;
    }

    let http = match arguments.listen {
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}: give another --listen"))?;
            Some(axum::serve(listener, crate::http::router(health.clone())))
        }
        None => None,
    };
    let http = async {
        match http {
            Some(server) => server.await.context("the HTTP server has ended"),
            None => std::future::pending().await,
        }
    };

    tracing::info!(node = arguments.node_name, socket = %arguments.socket.display(), "running");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        result = http => result,
        () = socket.serve(mail.clone(), health.clone()) => bail!("the socket has ended"),
        () = owner_ended(mail) => bail!("the owner's thread has ended"),
    };
    tracing::info!("ending; the tables stay");
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Watches the API server and hands its events to the owner.
async fn start_watches(
    arguments: &Run,
    mail: &Sender<Mail>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let access = match &arguments.kubeconfig {
        Some(path) => Access::Kubeconfig(path.clone()),
        None => Access::InCluster,
    };
    let client = kubernetes::client(&access).await?;
    let (sender, mut events) = tokio::sync::mpsc::channel(EVENTS);
    // What the watches say of themselves is in their log.
    let _states = Watches::start(client, sender, tasks, cancel.clone());
    let mail = mail.clone();
    tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            if mail.send(Mail::Event(event)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Ends when nobody reads the owner's mailbox any more, which a panic would cause.
async fn owner_ended(mail: &Sender<Mail>) {
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        if mail.send(Mail::Ping).is_err() {
            return;
        }
    }
}
