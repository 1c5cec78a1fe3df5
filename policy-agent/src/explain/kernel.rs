//! What the kernel does with a connection: its own tables, walked with the first packet.

use std::net::{IpAddr, SocketAddr};

use dataplane::object::{Family, Hook, IpFamily, Ruleset};
use dataplane::rule::Statement;
use dataplane::trace::{Fate, Packet, Step, Tracer};
use serde::{Deserialize, Serialize};

use crate::snapshot::Snapshot;
use crate::verdict::Transport;

/// The name of an interface that leads to no pod, whatever it is called.
const OUTSIDE: &str = "(outside)";

/// The kernel's answer against the expected one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "check", rename_all = "camelCase")]
pub enum KernelCheck {
    /// As expected.
    Agrees {
        /// What becomes of the packet.
        fate: String,
        /// The rules that decided, in `nft` syntax.
        steps: Vec<String>,
    },
    /// Otherwise.
    Disagrees {
        /// What was expected.
        expected: String,
        /// What becomes of the packet.
        fate: String,
        /// The rules that decided.
        steps: Vec<String>,
    },
    /// Not looked at.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// A packet's way through this node.
pub(super) struct Walk<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) source: IpAddr,
    /// What its sender addressed.
    pub(super) destination: SocketAddr,
    pub(super) transport: Transport,
    /// Which slot of a Service is drawn.
    pub(super) slot: u32,
}

/// What should become of a packet.
pub(super) struct Expected {
    /// Where it goes after translation.
    pub(super) destination: SocketAddr,
    /// Whether it passes this node.
    pub(super) passes: bool,
}

/// What became of it.
struct Walked {
    destination: SocketAddr,
    fate: Fate,
    steps: Vec<Step>,
}

impl KernelCheck {
    pub(super) fn skipped(reason: &str) -> Self {
        Self::Skipped {
            reason: reason.to_owned(),
        }
    }
}

/// The port of a transport; 0 without.
pub(super) const fn port(transport: Transport) -> u16 {
    match transport {
        Transport::Port(_, port) => port,
        Transport::Other(_) => 0,
    }
}

/// Walks the packet and compares; `expected` is `None` for a Service that nothing serves.
pub(super) fn check(
    live: Result<&Ruleset, &str>,
    walk: &Walk<'_>,
    expected: Option<&Expected>,
) -> KernelCheck {
    let ruleset = match live {
        Ok(ruleset) => ruleset,
        Err(reason) => return KernelCheck::skipped(reason),
    };
    if let Some(foreign) = foreign(ruleset) {
        return KernelCheck::Disagrees {
            expected: "rules of ours alone".into(),
            fate: format!("somebody else has written a rule: {foreign}"),
            steps: Vec::new(),
        };
    }
    let is_here =
        |address| walk.snapshot.is_here(address) || walk.snapshot.node_addresses.contains(&address);
    let target = expected.map_or(walk.destination.ip(), |expected| expected.destination.ip());
    if !is_here(walk.source) && !is_here(target) && expected.is_some() {
        return KernelCheck::skipped("neither end is on this node");
    }
    let has_no_port = |ip| {
        let (snapshot, index) = (walk.snapshot, &walk.snapshot.index);
        snapshot.is_here(ip) && index.holder(ip).is_none() && snapshot.unguarded(ip).is_none()
    };
    if has_no_port(walk.source) || has_no_port(target) {
        return KernelCheck::skipped("no attachment says by which port the pod is reached");
    }
    let walked = walk.run(ruleset);
    let steps = walked.steps.iter().map(ToString::to_string).collect();
    let passes = walked.fate == Fate::Accepted;
    let fate = match walked.fate {
        Fate::Accepted if walked.destination == walk.destination => "passes".to_owned(),
        Fate::Accepted => format!("passes, to {}", walked.destination),
        Fate::Dropped => "dropped".to_owned(),
        Fate::Rejected(_) => "rejected".to_owned(),
    };
    let agrees = match expected {
        None => !passes,
        Some(expected) => {
            passes == expected.passes && (!passes || walked.destination == expected.destination)
        }
    };
    if agrees {
        return KernelCheck::Agrees { fate, steps };
    }
    KernelCheck::Disagrees {
        expected: match expected {
            Some(expected) if expected.passes => format!("passes, to {}", expected.destination),
            _ => "denied".to_owned(),
        },
        fate,
        steps,
    }
}

/// A rule that is none of ours, which cannot be walked.
fn foreign(ruleset: &Ruleset) -> Option<String> {
    ruleset.tables.iter().find_map(|(id, table)| {
        table.chains.iter().find_map(|(name, chain)| {
            let is_foreign = |s: &Statement| matches!(s, Statement::Foreign(_));
            let mut rules = chain.rules.iter();
            let rule = rules.find(|rule| rule.statements.iter().any(is_foreign))?;
            Some(format!("{id} {name}: {rule}"))
        })
    })
}

impl Walk<'_> {
    fn run(&self, ruleset: &Ruleset) -> Walked {
        let slot = self.slot;
        let choose = move |slots: u32| slot % slots;
        let tracer = Tracer::new(ruleset, &choose);
        let protocol = match self.transport {
            Transport::Port(protocol, _) => protocol.number(),
            Transport::Other(number) => number,
        };
        let (address, number) = (self.destination.ip(), self.destination.port());
        let mut packet = Packet::first(self.source, address, protocol, number);
        let mut steps = Vec::new();
        let mut hook = |family, hook, packet: &mut Packet| {
            let trace = tracer.hook(family, hook, packet);
            steps.extend(trace.steps);
            trace.fate
        };
        let fate = 'walk: {
            let is_node = |address| self.snapshot.node_addresses.contains(&address);
            if is_node(self.source) {
                packet.oifname = Some(self.interface(address));
                break 'walk hook(Family::Inet, Hook::Output, &mut packet);
            }
            if let Some(attachment) = self.snapshot.index.holder(self.source) {
                packet.ether_saddr = attachment.mac;
                packet.iifname.clone_from(&attachment.host_ifname);
                if attachment.bridge.is_some() {
                    let fate = hook(Family::Bridge, Hook::Prerouting, &mut packet);
                    if fate != Fate::Accepted {
                        break 'walk fate;
                    }
                }
            }
            packet.iifname = self.interface(self.source);
            packet.to_local = is_node(packet.daddr);
            let fate = hook(Family::Inet, Hook::Prerouting, &mut packet);
            if fate != Fate::Accepted {
                break 'walk fate;
            }
            packet.to_local = is_node(packet.daddr);
            if packet.to_local {
                break 'walk hook(Family::Inet, Hook::Input, &mut packet);
            }
            packet.oifname = Some(self.interface(packet.daddr));
            hook(Family::Inet, Hook::Forward, &mut packet)
        };
        debug_assert_eq!(IpFamily::of(packet.saddr), IpFamily::of(packet.daddr));
        Walked {
            destination: SocketAddr::new(packet.daddr, packet.dport),
            fate,
            steps,
        }
    }

    /// The interface to the address, as the inet family sees it.
    fn interface(&self, address: IpAddr) -> String {
        let index = &self.snapshot.index;
        match index.holder(address) {
            Some(attachment) => attachment
                .bridge
                .clone()
                .unwrap_or_else(|| attachment.host_ifname.clone()),
            None => {
                let unguarded = self.snapshot.unguarded(address);
                unguarded.unwrap_or(OUTSIDE).to_owned()
            }
        }
    }
}
