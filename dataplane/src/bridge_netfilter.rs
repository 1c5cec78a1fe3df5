//! Whether bridges hand their frames to the packet filter (br_netfilter), as a setting of
//! the network namespace of this thread.
//!
//! It decides about *isolated* ports. Isolation keeps a pod that adds a route of its own
//! from reaching a neighbour past the host's IP stack. While the bridge hands frames to the
//! packet filter, however, a packet that is redirected there to a pod on the same bridge
//! leaves by the bridge, and isolation would drop it.

use std::fs::File;
use std::io::Read;
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
    SETTINGS.iter().any(|path| {
        let mut value = [0];
        let read = File::open(path).and_then(|mut file| file.read(&mut value));
        read.is_ok() && value == *b"1"
    })
}
