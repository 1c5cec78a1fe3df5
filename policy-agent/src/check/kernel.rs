//! What the kernel can do: tried, in a network namespace of a thread of its own, which
//! nobody else sees and which ends with the thread.

mod features;

use std::net::SocketAddr;

use cni_bin::link;
use cni_bin::netlink::{Batch, Socket};
use dataplane::desired::Desired;
use dataplane::diff::diff;
use dataplane::kernel::{Kernel, StaleFlow};
use dataplane::layout::{self, INET, denials::LOG_GROUP};
use dataplane::netlink::{Nftables, PacketLog};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};

use super::{Finding, causes};
use features::features;

/// Chain comments are older, deletions of `NAME . NAME` elements are not.
const OLDEST: (u32, u32) = (5, 13);

/// Bits of `CapEff` (`include/uapi/linux/capability.h`) that agent and plugin need.
const CAPABILITIES: [(u32, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "to change links, routes and nftables"),
    (
        21,
        "CAP_SYS_ADMIN",
        "to enter the network namespaces of pods",
    ),
];

/// The kernel's version, what this process may do, and what the kernel can do.
pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![version()];
    let missing = missing_capabilities();
    if missing.is_empty() {
        findings.push(Finding::ok(
            "capabilities",
            "CAP_NET_ADMIN and CAP_SYS_ADMIN are there",
        ));
    }
    findings.extend(missing.iter().map(|(name, purpose)| {
        Finding::error(
            "capabilities",
            format!("this process has no {name}"),
            format!("agent and plugin need it {purpose}; what needs it could not be checked"),
            "run as root; in a container, add the capability and use the host's network",
        )
    }));
    match in_own_namespace(probe) {
        Ok(probed) => findings.extend(probed),
        // Said already.
        Err(_) if !missing.is_empty() => {}
        Err(reason) => findings.push(Finding::error(
            "network-namespace",
            format!("no network namespace can be made: {reason}"),
            "every pod needs one, and the kernel's features were to be tried in one",
            "raise user.max_net_namespaces; use a kernel with CONFIG_NET_NS",
        )),
    }
    findings
}

fn version() -> Finding {
    let release = nix::sys::utsname::uname().map_or_else(
        |_| String::new(),
        |names| names.release().to_string_lossy().into_owned(),
    );
    judge_version(&release)
}

fn judge_version(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or_default());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    if version >= OLDEST {
        return Finding::ok("kernel-version", format!("Linux {release}"));
    }
    let (major, minor) = OLDEST;
    Finding::error(
        "kernel-version",
        format!("Linux {release} is older than {major}.{minor}"),
        "it refuses a part of the rules, and the agent will not get any into it",
        format!("boot Linux {major}.{minor} or newer"),
    )
}

fn missing_capabilities() -> Vec<(&'static str, &'static str)> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let bits = bits.unwrap_or_default();
    let missing = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| bits & (1 << bit) == 0);
    missing
        .map(|(_, name, purpose)| (*name, *purpose))
        .collect()
}

/// Runs `probe` in a new network namespace.
fn in_own_namespace<T: Send>(probe: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
            Ok(probe())
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err("the probe has panicked".to_owned()))
    })
}

fn probe() -> Vec<Finding> {
    let mut findings = links();
    match Nftables::open() {
        Ok(mut kernel) => {
            findings.extend(nftables(&mut kernel));
            findings.extend(conntrack(&mut kernel));
            findings.extend(packet_log());
        }
        Err(error) => findings.push(Finding::error(
            "nf-tables",
            causes(&error),
            "policies and Services are nftables rules",
            "use a kernel with CONFIG_NF_TABLES",
        )),
    }
    findings
}

/// Tries each feature by itself, so that what is missing has a name, and then the layout.
fn nftables(kernel: &mut impl Kernel) -> Vec<Finding> {
    let mut findings = Vec::new();
    for feature in features() {
        let mut desired = Desired::new();
        desired.table(&INET);
        (feature.want)(&mut desired);
        let tried = kernel.commit(&desired.transaction());
        let left = kernel.dump(&layout::tables());
        let left = left.map(|left| {
            let nothing = Desired::new();
            kernel.commit(&diff(&left, nothing.ruleset()))
        });
        if let Err(error) = &tried {
            findings.push(Finding::error(
                "nf-tables",
                format!("no {}: {}", feature.name, causes(error)),
                format!("it is needed for {}", feature.purpose),
                format!(
                    "load its module, or use a kernel with CONFIG_{}",
                    feature.option
                ),
            ));
        }
        // The namespace goes in any case: only the next feature would be disturbed.
        if !matches!(left, Ok(Ok(()))) {
            return findings;
        }
    }
    if findings.is_empty() {
        findings.push(layout_as_a_whole(kernel));
    }
    findings
}

/// What the agent writes on every node, and whether it comes back as it was written:
/// the agent repairs what does not.
fn layout_as_a_whole(kernel: &mut impl Kernel) -> Finding {
    let why = "the agent writes this on every node";
    let action = "report it with the kernel's version and `trammel-agent check -o json`";
    let mut desired = Desired::new();
    layout::install(&mut desired, 1);
    if let Err(error) = kernel.commit(&desired.transaction()) {
        return Finding::error("nf-tables", causes(&error), why, action);
    }
    let differences = match kernel.dump(&layout::tables()) {
        Ok(observed) => diff(&observed, desired.ruleset()),
        Err(error) => return Finding::error("nf-tables", causes(&error), why, action),
    };
    let operation = differences.operations.first();
    if let Some(operation) = operation {
        let what = format!("{} comes back changed", operation.object());
        return Finding::error("nf-tables", what, why, action);
    }
    Finding::ok("nf-tables", "every rule of the agent is taken")
}

/// Listing and ending flows, by one that cannot exist: TEST-NET-1 (RFC 5737).
fn conntrack(kernel: &mut impl Kernel) -> Option<Finding> {
    let nobody = SocketAddr::from(([192, 0, 2, 1], 9));
    let flow = StaleFlow {
        protocol: 17,
        frontend: nobody,
        endpoint: nobody,
    };
    let error = kernel.forget_flows(&[flow]).err()?;
    Some(Finding::error(
        "conntrack",
        causes(&error),
        "flows of clients that do not notice (UDP) would stay with endpoints that are gone",
        "load the module nf_conntrack_netlink, or use a kernel with CONFIG_NF_CT_NETLINK",
    ))
}

fn packet_log() -> Option<Finding> {
    let error = PacketLog::bind(LOG_GROUP).err()?;
    Some(Finding::warning(
        "nflog",
        causes(&error),
        "there would be no log of denied packets; they are denied all the same",
        "load the module nfnetlink_log, or use a kernel with CONFIG_NETFILTER_NETLINK_LOG",
    ))
}

/// Makes one link of each kind.
fn links() -> Vec<Finding> {
    let mut socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => {
            return vec![Finding::error(
                "links",
                causes(&error),
                "pods' links are made by route netlink",
                "use a kernel with CONFIG_NET",
            )];
        }
    };
    let mut findings = Vec::new();
    for (kind, option, is_required, purpose) in [
        (InfoKind::Bridge, "BRIDGE", true, "the pods' bridge"),
        (InfoKind::Veth, "VETH", true, "the link of each pod"),
        (
            InfoKind::Vxlan,
            "VXLAN",
            false,
            "pods of nodes that are not on one link",
        ),
        (
            InfoKind::Ifb,
            "IFB",
            false,
            "limits on what pods send (capability bandwidth)",
        ),
    ] {
        let message = RouteNetlinkMessage::NewLink(link_of(&kind));
        let name = option.to_lowercase();
        let mut batch = Batch::default();
        let action = format!("create a link of kind {name}");
        batch.push(action, NLM_F_CREATE | NLM_F_EXCL, &message);
        let made = socket.run(batch).and_then(|answers| answers.all_done());
        let Err(error) = made else { continue };
        let finding = if is_required {
            Finding::error
        } else {
            Finding::warning
        };
        findings.push(finding(
            "links",
            causes(&error),
            format!("it is needed for {purpose}"),
            format!("load the module {name}, or use a kernel with CONFIG_{option}"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "links",
            "bridge, veth, vxlan and ifb can be made",
        ));
    }
    findings
}

fn link_of(kind: &InfoKind) -> LinkMessage {
    let mut message = link::named(&format!("probe-{kind:?}").to_lowercase());
    let mut info = vec![LinkInfo::Kind(kind.clone())];
    match kind {
        InfoKind::Veth => {
            let peer = link::named("probe-peer");
            info.push(LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))));
        }
        InfoKind::Vxlan => {
            let settings = vec![InfoVxlan::Id(1), InfoVxlan::Port(8472)];
            info.push(LinkInfo::Data(InfoData::Vxlan(settings)));
        }
        _ => {}
    }
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

#[cfg(test)]
mod tests;
