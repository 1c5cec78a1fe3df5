//! Who forges is told: which pod, what it sent, and why that is gone.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use tests::inspect;
use tests::netns::NetNs;
use tests::node::{GATEWAYS, Node, WAYS};
use tests::pod::Family;
use tests::require_root;
use tests::scene::Scene;
use tests::shop::pods;
use tests::traffic::send_from;
use tests::wait::{SOON, eventually};

const OTHER_MAC: &str = "02:00:00:00:00:66";
/// ICMPv6 types.
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;

fn start<'n>(node: &'n Node, path: &Path) -> Result<Scene<'n>> {
    let path = path.display().to_string();
    Scene::start_with(node, &pods(), &[], &["--verdict-log", &path])
}

/// The records of forged packets so far.
fn records(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let all = whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    let all: Vec<Value> = all.collect::<Result<_>>()?;
    let forged = all.into_iter();
    Ok(forged
        .filter(|record| record["reason"] == "forged")
        .collect())
}

/// Waits for a record of that protocol about that claim.
fn record_of(path: &Path, protocol: &str, what: &str, claimed: IpAddr) -> Result<Value> {
    let is_it = |record: &Value| {
        record["protocol"] == protocol
            && record["forgery"]["what"] == what
            && record["forgery"]["claimed"] == claimed.to_string()
    };
    let (record, _) = eventually(SOON, || {
        let records = records(path)?;
        let found = records.iter().find(|record| is_it(record)).cloned();
        found.with_context(|| format!("no {what} of {claimed} by {protocol} in {records:#?}"))
    })?;
    Ok(record)
}

/// Forged packets that the agent has counted.
fn counted(scene: &Scene<'_>) -> Result<u64> {
    let (_, text) = scene.agent.get("/metrics")?;
    let mut lines = text.lines();
    let line = lines.find(|line| {
        line.starts_with("trammel_denied_packets_total") && line.contains("forgedSender")
    });
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.map(str::parse).transpose()?.unwrap_or(0))
}

/// Has `pod` have an address while `action` runs.
fn with_address<T>(pod: &NetNs, ip: IpAddr, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let (length, option) = if ip.is_ipv4() {
        (32, "")
    } else {
        (128, " nodad")
    };
    pod.ip(&format!("address add {ip}/{length} dev eth0{option}"))?;
    let done = action();
    pod.ip(&format!("address del {ip}/{length} dev eth0"))?;
    done
}

/// Sends an ICMPv6 message to all neighbours, from an address of the pod's own.
fn tell_neighbours(pod: &NetNs, source: IpAddr, kind: u8, rest: Vec<u8>) -> Result<()> {
    let index = pod.ip_json("link show eth0")?[0]["ifindex"].as_u64();
    let index = u32::try_from(index.context("a link has an index")?)?;
    pod.enter(move || -> Result<()> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(IpProtocol::ICMPV6))?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.set_multicast_if_v6(index)?;
        socket.set_multicast_hops_v6(255)?;
        let message = [&[kind, 0, 0, 0][..], &rest].concat();
        let all: Ipv6Addr = "ff02::1".parse()?;
        socket.send_to(&message, &SocketAddr::new(all.into(), 0).into())?;
        Ok(())
    })?
}

/// Flags, and the target.
fn advert(target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else {
        panic!("{target} has no neighbour discovery");
    };
    [&[0x20, 0, 0, 0][..], &target.octets()].concat()
}

/// netpol.md 73.
#[test]
fn a_forged_packet_is_told_with_the_pod_that_sent_it_and_counted() -> Result<()> {
    require_root!();
    for (mode, bridge_nf) in WAYS {
        let node = Node::with_mode(mode, bridge_nf)?;
        let path = node.dir().join("denied.json");
        let scene = start(&node, &path)?;
        each_forgery(&scene, &path, mode != "routed").context(mode)?;
    }
    Ok(())
}

fn each_forgery(scene: &Scene<'_>, path: &Path, has_neighbours: bool) -> Result<()> {
    let (thief, victim, web) = (
        scene.pod("lab/probe"),
        scene.pod("shop/front"),
        scene.pod("shop/web"),
    );
    for family in Family::ALL {
        thief.netns.ping(web.ip(family)).context("as itself")?;
    }
    ensure!(records(path)?.is_empty(), "{:#?}", records(path)?);

    for family in Family::ALL {
        let (stolen, target) = (victim.ip(family), web.at(family, 80));
        with_address(&thief.netns, stolen, || {
            Ok(thief
                .netns
                .enter(move || send_from(stolen, target, "forged"))??)
        })?;
        let record = record_of(path, "UDP", "address", stolen)?;
        assert_eq!(record["verdict"], "denied");
        assert_eq!(record["direction"], "egress");
        assert_eq!(record["policies"], json!([]));
        assert_eq!(record["source"]["address"], stolen.to_string());
        assert_eq!(record["source"]["pod"], "shop/front", "whose it is");
        assert_eq!(record["destination"]["pod"], "shop/web");
        assert_eq!(record["destination"]["port"], 80);
        let forgery = &record["forgery"];
        assert_eq!(forgery["pod"], "lab/probe", "{record:#}");
        let port = forgery["port"].as_str().context("a port")?;
        scene.node.netns.ip(&format!("link show {port}"))?;
        let mac = thief.netns.ip_json("link show eth0")?[0]["address"].take();
        assert_eq!(forgery["mac"], mac);
    }

    let (own, stolen) = (thief.ip(Family::V6), victim.ip(Family::V6));
    let nothing = vec![0; 12];
    tell_neighbours(&thief.netns, own, ROUTER_ADVERT, nothing)?;
    record_of(path, "ICMPv6", "routerAdvertisement", own)?;
    tell_neighbours(&thief.netns, own, REDIRECT, vec![0; 36])?;
    record_of(path, "ICMPv6", "redirect", own)?;
    // Its own link has nobody else to lie to.
    if has_neighbours {
        tell_neighbours(&thief.netns, own, NEIGHBOUR_ADVERT, advert(stolen))?;
        let record = record_of(path, "ICMPv6", "address", stolen)?;
        assert_eq!(record["forgery"]["pod"], "lab/probe", "{record:#}");

        let stolen = victim.ip(Family::V4);
        with_address(&thief.netns, stolen, || {
            thief.netns.ip("neigh flush all")?;
            let gateway = GATEWAYS[0];
            let ping = format!("-n -q -c1 -W1 -I {stolen} {gateway}");
            let asked = thief.netns.command("ping").args(ping.split(' ')).output()?;
            ensure!(!asked.status.success(), "the gateway has answered {stolen}");
            Ok(())
        })?;
        let record = record_of(path, "ARP", "address", stolen)?;
        assert_eq!(record["forgery"]["pod"], "lab/probe", "{record:#}");

        thief
            .netns
            .ip(&format!("link set eth0 address {OTHER_MAC}"))?;
        let (own, target) = (thief.ip(Family::V4), web.at(Family::V4, 80));
        thief
            .netns
            .enter(move || send_from(own, target, "other"))??;
        let record = record_of(path, "ARP", "hardwareAddress", own)?;
        assert_eq!(record["forgery"]["mac"], OTHER_MAC, "{record:#}");
    }
    let told = u64::try_from(records(path)?.len())?;
    eventually(SOON, || {
        let counted = counted(scene)?;
        ensure!(counted >= told, "{told} records, {counted} counted");
        Ok(())
    })?;
    assert!(scene.agent.verify()?.status.success());
    // Elements that limit are printed, too.
    let ruleset = inspect::ruleset(&scene.node.netns)?;
    assert!(serde_json::to_string(&ruleset)?.contains("forgers"));
    let text = scene.agent.verb(&["log", "--pod", "lab/probe"])?;
    let stolen = victim.ip(Family::V6);
    assert!(
        text.contains("forged by lab/probe at trm")
            && text.contains(&format!("{stolen} is not its address"))
            && text.contains("a pod is no router"),
        "{text}"
    );
    Ok(())
}

/// netpol.md 72, 73: a port has its own limit, and all is counted.
#[test]
fn a_pod_that_floods_hides_no_other_that_forges() -> Result<()> {
    require_root!();
    let node = Node::new()?;
    let path = node.dir().join("denied.json");
    let scene = start(&node, &path)?;
    let (flooder, other) = (scene.pod("lab/probe"), scene.pod("shop/front"));
    let target = scene.pod("shop/web").at(Family::V6, 80);
    let stolen: IpAddr = "fd88::dead".parse()?;
    let sent: u16 = 5_000;
    for pod in [flooder, other] {
        // However long it takes: asked for as somebody else the gateway would not be found.
        let key = "net.ipv6.neigh.eth0.base_reachable_time_ms";
        pod.netns.sysctl(key, 3_600_000)?;
        pod.netns.ping(target.ip())?;
    }
    with_address(&flooder.netns, stolen, || {
        flooder.netns.enter(move || -> Result<()> {
            let socket = UdpSocket::bind((stolen, 0))?;
            for _ in 0..sent {
                socket.send_to(b"flood", target)?;
            }
            Ok(())
        })??;
        with_address(&other.netns, stolen, || {
            Ok(other
                .netns
                .enter(move || send_from(stolen, target, "one"))??)
        })
    })?;
    let of = |pod: &str| -> Result<usize> {
        let records = records(&path)?;
        Ok(records
            .iter()
            .filter(|r| r["forgery"]["pod"] == pod)
            .count())
    };
    eventually(SOON, || {
        ensure!(of("shop/front")? > 0, "the other is not told of");
        let counted = counted(&scene)?;
        ensure!(counted > u64::from(sent), "{counted} counted");
        Ok(())
    })?;
    let flood = of("lab/probe")?;
    // The burst, and some for the time that sending takes on a busy machine.
    assert!((1..2_000).contains(&flood), "{flood} records of a flood");
    Ok(())
}
