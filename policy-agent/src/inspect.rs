//! Questions that are answered from a snapshot, in a thread where they may take their time.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;

use dataplane::kernel::Kernel as _;
use dataplane::layout;
use dataplane::netlink::Nftables;
use serde::Serialize;
use serde_json::Value;

use crate::addresses::interfaces_to;
use crate::admin::{ask, to_value};
use crate::explain::query::Query;
use crate::explain::{self, explain};
use crate::lint::lint;
use crate::matrix::matrix;
use crate::plan::{Proposal, plan};
use crate::runtime::{Call, Mail};
use crate::snapshot::{About, Snapshot};

/// `explain`.
pub(crate) async fn explanation(query: Query, owner: &Sender<Mail>) -> Result<Value, String> {
    let about = explain::about(&query).map_err(|error| error.to_string())?;
    with_snapshot(owner, about, move |snapshot| {
        let live = Nftables::open()
            .and_then(|mut kernel| kernel.dump(&layout::tables()))
            .map_err(|error| error.to_string());
        let live = live.as_ref().map_err(String::as_str);
        explain(snapshot, &query, live).map_err(|error| error.to_string())
    })
    .await
}

/// `matrix`.
pub(crate) async fn connectivity(namespace: String, owner: &Sender<Mail>) -> Result<Value, String> {
    let about = About::default();
    with_snapshot(owner, about, move |snapshot| matrix(snapshot, &namespace)).await
}

/// `lint`.
pub(crate) async fn findings(
    namespace: Option<String>,
    owner: &Sender<Mail>,
) -> Result<Value, String> {
    with_snapshot(owner, About::default(), move |snapshot| {
        Ok(lint(snapshot, namespace.as_deref()))
    })
    .await
}

/// `plan`.
pub(crate) async fn proposal(proposal: Proposal, owner: &Sender<Mail>) -> Result<Value, String> {
    with_snapshot(owner, About::default(), move |snapshot| {
        let flows = Nftables::open()
            .and_then(|mut kernel| kernel.tracked_flows())
            .inspect_err(|error| tracing::warn!(%error, "conntrack cannot be read"));
        Ok(plan(snapshot, &proposal, flows.ok().as_deref()))
    })
    .await
}

async fn with_snapshot<T: Serialize + Send + 'static>(
    owner: &Sender<Mail>,
    about: About,
    answer: impl FnOnce(&Snapshot) -> Result<T, String> + Send + 'static,
) -> Result<Value, String> {
    let mut snapshot = ask(owner, |reply| Call::Snapshot { about, reply }).await?;
    snapshot.ways = match interfaces_to(&snapshot.unattached()).await {
        Ok(ways) => ways,
        Err(error) => {
            tracing::warn!(%error, "the ways to pods without an attachment cannot be asked for");
            BTreeMap::new()
        }
    };
    let answered = tokio::task::spawn_blocking(move || {
        let snapshot = snapshot.with_node_addresses();
        answer(&snapshot)
    });
    let answered = answered.await.map_err(|error| error.to_string())?;
    answered.map(|answer| to_value(&answer))
}
