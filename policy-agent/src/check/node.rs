//! Sysctls, MTU and the rules of others.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use dataplane::bridge_netfilter;
use dataplane::netlink::Nftables;

use super::links::Links;
use super::{Families, Finding, causes};
use crate::config::Config;
use crate::foreign;
use crate::sysctls::{self, ROOT, Sysctl};

/// Tables of iptables in its old form, which nftables does not show.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
/// The link on which kube-proxy in IPVS mode keeps cluster IPs.
const IPVS_LINK: &str = "kube-ipvs0";
/// Smallest MTU that IPv6 works with (RFC 8200 section 5).
const IPV6_MTU: u32 = 1280;

/// What was found.
pub(super) struct Checked {
    pub(super) findings: Vec<Finding>,
    /// What the agent needs.
    pub(super) sysctls: Vec<Sysctl>,
}

/// Looks at the node.
pub(super) fn check(links: &Links, config: &Config, families: Families) -> Checked {
    let root = Path::new(ROOT);
    let mut findings = sysctls(root, links, config, families);
    findings.push(isolation());
    findings.extend(mtus(links, &config.bridges, families));
    findings.extend(foreign_rules(links, config.services.enabled));
    let wanted = match families.is_unknown() {
        true => (true, true),
        false => (families.v4, families.v6),
    };
    let tracked = u64::from(least_tracked(config));
    Checked {
        findings,
        sysctls: sysctls::needed(root, wanted, &links.advertised, tracked),
    }
}

fn sysctls(root: &Path, links: &Links, config: &Config, families: Families) -> Vec<Finding> {
    let read = |path: &str| sysctls::read(root, path);
    let mut findings = Vec::new();
    let set =
        "set it to 1: `trammel-agent check --sysctl-dir /run/sysctl.d`, then `sysctl --system`";

    if read("net/ipv4/ip_forward") == Some(1) {
        findings.push(Finding::ok("ip-forward", "IPv4 is forwarded"));
    } else {
        // Pods with IPv6 alone do without.
        let finding = match families {
            Families {
                v4: false,
                v6: true,
            } => Finding::warning,
            _ => Finding::error,
        };
        findings.push(finding(
            "ip-forward",
            "net.ipv4.ip_forward is 0",
            "packets of pods end at this node: they reach no other pod, node or Service",
            set,
        ));
    }
    match read("net/ipv6/conf/all/forwarding") {
        None if families.v6 => findings.push(Finding::error(
            "ipv6-forward",
            "the kernel has no IPv6, and pods are to have it",
            "the plugin cannot give them their addresses",
            "boot without ipv6.disable=1, or take the IPv6 range out of the configuration",
        )),
        None => findings.push(Finding::ok("ipv6-forward", "no IPv6")),
        Some(value) => {
            if value == 1 {
                findings.push(Finding::ok("ipv6-forward", "IPv6 is forwarded"));
            } else if families.v6 || families.is_unknown() {
                let finding = if families.v6 {
                    Finding::error
                } else {
                    Finding::warning
                };
                findings.push(finding(
                    "ipv6-forward",
                    format!("net.ipv6.conf.all.forwarding is {value}"),
                    "IPv6 packets of pods end at this node",
                    set,
                ));
            }
        }
    }
    for link in &links.advertised {
        let name = format!("net/ipv6/conf/{link}/accept_ra");
        if read(&name) == Some(1) {
            findings.push(Finding::error(
                "accept-ra",
                format!("net.ipv6.conf.{link}.accept_ra is 1, and {link} has its IPv6 default route from a router advertisement"),
                "a node that forwards ignores advertisements unless it is 2: the route expires",
                "set it to 2, as `trammel-agent check --sysctl-dir` writes it, or give the node a static default route",
            ));
        }
    }
    findings.extend(reverse_path(&read, links));
    findings.push(conntrack_limit(&read, least_tracked(config)));
    findings
}

/// Strict reverse path filtering hurts where answers may leave by another link than
/// requests have come in.
fn reverse_path(read: &impl Fn(&str) -> Option<u64>, links: &Links) -> Vec<Finding> {
    let of = |link: &str| read(&format!("net/ipv4/conf/{link}/rp_filter")).unwrap_or_default();
    let outside: Vec<_> = links
        .addressed
        .iter()
        .filter(|link| links.uplinks.contains(*link) || !is_of_pods(link))
        .collect();
    if outside.len() < 2 {
        return Vec::new();
    }
    // The kernel takes the higher of both.
    let strict = outside
        .iter()
        .filter(|link| of(link).max(of("all")) == 1)
        .map(|link| link.as_str());
    let strict: Vec<_> = strict.collect();
    if strict.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "rp-filter",
        format!(
            "rp_filter is 1 (strict) on {}, and this node has several links",
            strict.join(", ")
        ),
        "a packet whose way back is another link is dropped before any rule, such as a client of a node port on the second link",
        "set net.ipv4.conf.all.rp_filter and that of the links to 2 (loose), or make routes symmetric",
    )]
}

/// Links of the pod networks of this project and its peers.
fn is_of_pods(name: &str) -> bool {
    [
        "cbr", "trm", "trammel", "lo", "docker", "cni", "veth", "podman",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// The agent raises it where it may, which is not so in a network namespace of its own.
fn conntrack_limit(read: &impl Fn(&str) -> Option<u64>, least: u32) -> Finding {
    match read("net/netfilter/nf_conntrack_max") {
        None => Finding::error(
            "conntrack",
            "the kernel tracks no connections",
            "Services and policies need to know which flow a packet belongs to",
            "load the module nf_conntrack, or use a kernel with CONFIG_NF_CONNTRACK",
        ),
        Some(limit) if limit < u64::from(least) => Finding::warning(
            "conntrack-limit",
            format!("net.netfilter.nf_conntrack_max is {limit}, less than {least}"),
            "when the table is full new connections fail; the agent raises it if it may",
            format!("set it to {least} or more, or services.conntrack.min to less"),
        ),
        Some(limit) => Finding::ok(
            "conntrack-limit",
            format!("{limit} tracked connections at most"),
        ),
    }
}

/// How many connections the agent wants to have room for.
const fn least_tracked(config: &Config) -> u32 {
    match config.services.conntrack.max_per_core {
        0 => 0,
        _ => config.services.conntrack.min,
    }
}

fn isolation() -> Finding {
    Finding::ok(
        "bridge-netfilter",
        if bridge_netfilter::is_on() {
            "bridges hand frames to the packet filter (bridge-nf-call-iptables is 1): pods' ports are not isolated from each other"
        } else {
            "bridges do not hand frames to the packet filter: pods' ports are isolated from each other"
        },
    )
}

fn mtus(links: &Links, bridges: &[String], families: Families) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some((uplink, outside)) = links.with_mtu(&links.uplinks).min_by_key(|(_, mtu)| *mtu) else {
        return vec![Finding::warning(
            "default-route",
            "this node has no default route",
            "pods reach nothing outside; the plugin cannot know the MTU and takes 1500",
            "add a default route, or set mtu in the plugin's configuration",
        )];
    };
    if outside < IPV6_MTU && (families.v6 || families.is_unknown()) {
        findings.push(Finding::error(
            "mtu",
            format!("{uplink} has MTU {outside}"),
            format!("IPv6 does not work below {IPV6_MTU}"),
            "raise it",
        ));
    }
    for (bridge, mtu) in links.with_mtu(bridges) {
        if mtu > outside {
            findings.push(Finding::warning(
                "mtu",
                format!("{bridge} has MTU {mtu}, and {uplink}, the way out, {outside}"),
                "larger packets of pods are refused by ICMP or fragmented, and lost where ICMP is",
                format!("set mtu in the plugin's configuration to {outside} at most, and recreate the pods"),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("mtu", format!("{outside} on {uplink}")));
    }
    findings
}

/// Base chains that drop, and what kube-proxy has left.
fn foreign_rules(links: &Links, serves: bool) -> Vec<Finding> {
    let chains = Nftables::open().and_then(|mut kernel| kernel.chains());
    let complaints = match chains {
        Ok(chains) => foreign::findings(&chains, serves),
        Err(error) => {
            return vec![Finding::warning(
                "foreign-rules",
                causes(&error),
                "whether others' rules are in the way is not known",
                "run as root",
            )];
        }
    };
    let mut findings: Vec<_> = complaints
        .into_iter()
        .map(|complaint| {
            let (what, action) = match complaint.message.split_once(": ") {
                Some((what, action)) => (what.to_owned(), action.to_owned()),
                None => (complaint.message, String::new()),
            };
            if complaint.reason == foreign::DROP_POLICY {
                let why = "every table decides: one drop is enough";
                Finding::error("foreign-drop-policy", what, why, action)
            } else {
                let why = "of two that translate a packet the first wins";
                Finding::warning("kube-proxy-left-overs", what, why, action)
            }
        })
        .collect();
    if serves && links.mtus.contains_key(IPVS_LINK) {
        findings.push(Finding::warning(
            "kube-proxy-left-overs",
            format!("link {IPVS_LINK} is of kube-proxy in IPVS mode"),
            "it holds all cluster IPs: packets to them are this node's own and reach no pod",
            format!(
                "stop kube-proxy, then run `kube-proxy --cleanup` or `ip link del {IPVS_LINK}`"
            ),
        ));
    }
    let legacy: Vec<_> = LEGACY
        .iter()
        .filter(|path| has_rules(path))
        .copied()
        .collect();
    if !legacy.is_empty() {
        findings.push(Finding::warning(
            "iptables-legacy",
            format!(
                "tables of iptables-legacy are in use ({})",
                legacy.join(", ")
            ),
            "left-overs of kube-proxy and drop policies in them cannot be seen from here",
            "look at `iptables-legacy-save` for KUBE-* and :FORWARD DROP",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "foreign-rules",
            "no rules of others are in the way",
        ));
    }
    findings
}

fn has_rules(names: &str) -> bool {
    match fs::read_to_string(names) {
        Ok(text) => text
            .lines()
            .any(|table| ["filter", "nat"].contains(&table.trim())),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests;
