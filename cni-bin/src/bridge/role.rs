//! What an interface that carries gateways is for, and how that is written on it.

use crate::netlink::observed::Link;
use crate::spec::Vlans;

/// Each mark with what has it: the alias of a link that is completely set up.
pub(super) const ROUTED: (&str, &str) = ("trammel", "mode \"routed-ports\"");
pub(super) const SWITCHED: (&str, &str) = ("trammel l2", "mode \"l2\" without VLANs");
pub(super) const VLANS: (&str, &str) = ("trammel vlan", "mode \"l2\" with VLANs");
pub(super) const GATEWAY: (&str, &str) = ("trammel vlan gateway", "a VLAN's gateway");

/// What the interface is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role<'a> {
    /// A bridge whose ports are routed.
    Routed,
    /// A bridge whose ports are switched; it hands their frames to the packet filter.
    Switched,
    /// A bridge that keeps the VLANs of its ports apart. It does not hand frames to the packet
    /// filter: those to and from a [`Gateway`](Self::Gateway) would pass it twice, as two
    /// flows.
    Vlans,
    /// The gateway of one VLAN, as the reference bridge plugin makes it: one end of a pair
    /// whose other end is a port of the bridge.
    Gateway {
        /// Index of the bridge.
        bridge: u32,
        /// Those of the port.
        vlans: &'a Vlans,
    },
}

impl Role<'_> {
    /// The alias of such a link when it is set up, and what it is in words.
    pub(super) fn mark(self) -> (&'static str, &'static str) {
        match self {
            Self::Routed => ROUTED,
            Self::Switched => SWITCHED,
            Self::Vlans => VLANS,
            Self::Gateway { .. } => GATEWAY,
        }
    }

    /// The kind of link, as the kernel calls it.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Routed | Self::Switched | Self::Vlans => "bridge",
            Self::Gateway { .. } => "veth",
        }
    }
}

/// What has the mark, if it is one.
pub(super) fn described(mark: &str) -> Option<&'static str> {
    let marks = [ROUTED, SWITCHED, VLANS, GATEWAY];
    let (_, what) = marks.into_iter().find(|(known, _)| *known == mark)?;
    Some(what)
}

/// The name of a gateway's port, which follows from its own: `cbr0-7` of `cbr0.7`.
pub(super) fn port_name(gateway: &str) -> String {
    gateway.replace('.', "-")
}

/// Whether the link is a bridge that the plugin has made and set up.
pub fn is_ours(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge") && link.alias.as_deref().and_then(described).is_some()
}

/// The name of its port on the bridge, if the link is a gateway that the plugin has made.
pub fn gateway_port(link: &Link) -> Option<String> {
    (link.alias.as_deref() == Some(GATEWAY.0)).then(|| port_name(&link.name))
}
