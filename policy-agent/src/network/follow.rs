//! When to look: after each change of Nodes, links, addresses, routes and of what is in the
//! tunnels, and from time to time in any case. Every pass compares all that there is to be
//! with all that there is, so that it does not matter what was missed.

mod events;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::watch;

use super::NodeNetwork;
use super::conflist::Conflist;
use super::plan::Settings;
use crate::health::Health;
use crate::runtime::Mail;
use events::Events;
use worker::Worker;

/// The Nodes; `None` until they have been listed.
pub type Nodes = Option<Arc<[NodeNetwork]>>;

/// Who these complaints are from.
pub(crate) const FROM: &str = "network";

/// A change is looked at this long after it was told: they come in bursts.
const QUIET: Duration = Duration::from_millis(100);
/// How often everything is looked at in any case.
const RESYNC: Duration = Duration::from_secs(10);
/// How soon a pass that has failed in part is done again.
const RETRY: Duration = Duration::from_secs(1);
/// The same for one that waits for the first sync, to write the CNI configuration.
const WAITING: Duration = Duration::from_millis(100);

/// Keeps the network as it should be until nobody listens any more.
///
/// # Errors
/// Where the kernel gives no route socket, or a pass panics.
pub async fn follow(
    settings: Settings,
    conflist: Option<Conflist>,
    mut nodes: watch::Receiver<Nodes>,
    health: Health,
    mail: Sender<Mail>,
) -> anyhow::Result<()> {
    let mut events = Events::open()?;
    let mut worker = Worker::open(settings, conflist)?;
    loop {
        let known = nodes.borrow_and_update().clone();
        let pause = if let Some(known) = known {
            let is_ready = health.not_ready().is_none();
            let pass = tokio::task::spawn_blocking(move || {
                let outcome = worker.pass(&known, is_ready);
                (worker, outcome)
            });
            let (returned, outcome) = pass.await?;
            worker = returned;
            for news in outcome.news {
                if mail.send(news).is_err() {
                    return Ok(());
                }
            }
            match (outcome.has_failed, outcome.waits_for_sync) {
                (_, true) => WAITING,
                (true, false) => RETRY,
                (false, false) => RESYNC,
            }
        } else {
            RESYNC
        };
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return Ok(()) },
            result = events.wait() => result?,
            () = tokio::time::sleep(pause) => {}
        }
        tokio::time::sleep(QUIET).await;
        events.drain();
    }
}
