//! Whether bridges hand their frames to the packet filter (br_netfilter), as a setting of
//! the network namespace of this thread.
//!
//! It decides about *isolated* ports. Isolation keeps a pod that adds a route of its own
//! from reaching a neighbour past the host's IP stack. While the bridge hands frames to the
//! packet filter, however, a packet that is redirected there to a pod on the same bridge
//! leaves by the bridge, and isolation would drop it.

use std::fs;
use std::path::Path;

/// The settings of both families, on by default where the kernel has br_netfilter.
const SETTINGS: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

/// Whether the kernel has br_netfilter.
pub fn is_available() -> bool {
    SETTINGS.iter().all(|path| Path::new(path).exists())
}

/// Whether bridges hand frames of either family to the packet filter.
pub fn is_on() -> bool {
    let on = |path: &&str| fs::read(path).is_ok_and(|value| value.starts_with(b"1"));
    SETTINGS.iter().any(on)
}
