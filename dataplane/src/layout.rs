//! The layout of the tables: names, hooks, priorities and mark bits, in one place.
//!
//! ```text
//!  bridge prerouting -300  ports      a pod's port sends from its own addresses only
//!  inet   prerouting -300  links      the same for a pod's link that is no port
//!  inet   prerouting -300  loopback   127.0.0.0/8 is this node's own
//!  inet   prerouting -110  restrict   loadBalancerSourceRanges     (and output -110)
//!  inet   prerouting -100  services   frontends -> endpoints       (and output -100)
//!  inet   prerouting  -99  hostports  hostPorts -> pods             (and output  -99)
//!  inet   forward       0  forward    unserved frontends; egress, then ingress policy
//!  inet   input         0  input      unserved frontends; egress policy
//!  inet   output        0  output     unserved frontends; a node's own traffic is exempt
//!  inet   input, forward 0 tunnels    VXLAN is from nodes, where there are tunnels
//!  inet   postrouting  90  learn      session affinity
//!  inet   postrouting 100  masquerade what must come back through this node
//!  inet   postrouting 101  hostports, masquerade: the same for hostPorts; pods that leave
//! ```
//!
//! The rules do not grow with the cluster: a Service, an endpoint or a pod is a few
//! elements of the maps. Only *policy groups* ([`policy`]) and the numbers of
//! endpoints that occur ([`services`]) add chains.
//!
//! What is API: the table names, for those who list or exclude them, and
//! [`GENERATION_MASK`]. Names of chains and sets may change between versions.

pub mod denials;
mod forged;
pub mod hostports;
pub mod masquerade;
pub mod policy;
pub mod ports;
pub mod services;
pub mod standalone;
pub mod tunnels;

use std::sync::LazyLock;

use crate::desired::Desired;
use crate::object::{BaseChain, Chain, ChainType, Family, Hook, IpFamily, Name, TableId};
use crate::rule::Rule;

/// The table of Services and policy.
pub static INET: LazyLock<TableId> = LazyLock::new(|| TableId::new(Family::Inet, "trammel"));
/// The table that guards the bridge's ports.
pub static BRIDGE: LazyLock<TableId> = LazyLock::new(|| TableId::new(Family::Bridge, "trammel"));

/// All tables of ours: exactly these are adopted, verified and cleaned up.
pub fn tables() -> [TableId; 2] {
    [INET.clone(), BRIDGE.clone()]
}

/// Bits of a flow's mark that hold the policy generation under which it was last
/// judged, see [`policy`]. The lower half is left to others (kube-proxy 0x4000,
/// portmap 0x2000, Istio, Calico).
pub const GENERATION_MASK: u32 = 0xffff_0000;

/// Before routing decisions, above everything that filters.
const PRIORITY_PORTS: i32 = -300;
/// `raw`: before conntrack and every translation.
const PRIORITY_RAW: i32 = -300;
/// While the destination is still the one that the client knows.
const PRIORITY_RESTRICT: i32 = -110;
/// `dstnat`.
const PRIORITY_DSTNAT: i32 = -100;
/// `filter`.
const PRIORITY_FILTER: i32 = 0;
/// While the source is still the client.
const PRIORITY_LEARN: i32 = 90;
/// `srcnat`.
const PRIORITY_SRCNAT: i32 = 100;

/// A set or map that exists once for each family, as `NAME4` and `NAME6`.
pub struct PerFamily(LazyLock<[Name; 2]>);

impl PerFamily {
    /// The name for the family.
    pub fn of(&self, family: IpFamily) -> &Name {
        match family {
            IpFamily::V4 => &self.0[0],
            IpFamily::V6 => &self.0[1],
        }
    }
}

macro_rules! per_family {
    ($name:literal) => {
        $crate::layout::PerFamily(std::sync::LazyLock::new(|| {
            [concat!($name, "4").into(), concat!($name, "6").into()]
        }))
    };
}
use per_family;

/// In which order additions to sets become visible: what leads to other elements
/// comes after them, and goes before them.
pub fn rank(set: &str) -> u8 {
    let frontends = services::Lane::ALL.map(services::Lane::frontends);
    let unserved = services::Entry::BOTH.map(services::Entry::unserved);
    let groups = [&policy::EGRESS, &policy::INGRESS];
    let mut dispatches = frontends.into_iter().chain(unserved).chain(groups);
    u8::from(dispatches.any(|map| map.0.iter().any(|name| name.as_str() == set)))
}

/// Wants everything that is the same on every node: base chains, static chains and
/// empty sets. `generation` is that of the policies, see [`policy`].
pub fn install(desired: &mut Desired, generation: u16) {
    desired.table(&INET);
    desired.table(&BRIDGE);
    services::install(desired);
    hostports::install(desired);
    masquerade::install(desired);
    policy::install(desired, generation);
    denials::set(desired, denials::Denials::default());
    ports::install(desired);
}

fn base_chain(
    desired: &mut Desired,
    table: &TableId,
    name: &str,
    (kind, hook, priority): (ChainType, Hook, i32),
    comment: &str,
    rules: Vec<Rule>,
) {
    let base = BaseChain {
        kind,
        hook,
        priority,
        drops: false,
    };
    desired.chain(table, &name.into(), Chain::base(base, comment, rules));
}

fn regular_chain(desired: &mut Desired, name: &str, comment: &str, rules: Vec<Rule>) {
    desired.chain(&INET, &name.into(), Chain::regular(comment, rules));
}
