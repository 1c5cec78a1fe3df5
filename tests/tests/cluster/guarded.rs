//! Where most scenarios begin: a Service that a policy opens to a friend, and to nobody else.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::Value;

use crate::cluster::NODES;
use crate::load::{answers, is_denied};
use crate::objects::{allow, deny_all, from_app, pod, service};
use crate::space::{Pod, Space};

/// The clients, both on the first node, and where the Service `web` is.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) friend: Pod,
    pub(crate) foe: Pod,
    /// IPv4 and IPv6.
    pub(crate) cluster_ips: Vec<SocketAddr>,
}

impl Guarded {
    /// Applies all of it, with `web` behind the Service, and waits for the clients.
    pub(crate) fn apply(space: &Space<'_>, web: Value) -> Result<Self> {
        space.apply(&[
            web,
            service("web"),
            pod("friend", NODES[0]),
            pod("foe", NODES[0]),
            deny_all(),
            allow("web", &from_app("friend")),
        ])?;
        Ok(Self {
            friend: space.ready_pod("friend")?,
            foe: space.ready_pod("foe")?,
            cluster_ips: space.service("web")?.0,
        })
    }

    /// The friend is answered there, and the foe is not.
    pub(crate) fn holds_at(&self, target: SocketAddr) -> Result<()> {
        answers(&self.friend.netns, target)?;
        is_denied(&self.foe.netns, target)
    }
}
