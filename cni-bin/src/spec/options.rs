//! The parts of a configuration, each from its keys to its type.

use std::net::IpAddr;

use dataplane::attachment::MacAddr;
use ipam::{Range, RangeSet, RangeSpec};
use ipnet::IpNet;
use serde_json::Value;

use super::args::ExtraArgs;
use super::error::Error;
use super::json::Object;
use super::result::{Dns, Route};

/// What this plugin does not offer although the reference plugins do. Everything
/// else that it does not know is ignored, as the specification says.
pub fn refuse_unsupported(root: &Object<'_>) -> Result<(), Error> {
    for (key, advice) in [
        ("ipMasq", "leave masquerading to the agent or the node"),
        ("promiscMode", "it duplicates frames; hairpin is always on"),
        ("enabledad", "addresses are usable at once"),
        ("disableContainerInterface", "leave it out"),
        (
            "portIsolation",
            "ports are isolated whenever the node allows it",
        ),
    ] {
        if root.boolean(key)? == Some(true) {
            if key == "promiscMode" && root.boolean("hairpinMode")? == Some(true) {
                return Err(Error::config(
                    "hairpinMode and promiscMode exclude each other: leave out promiscMode",
                ));
            }
            return Err(Error::unsupported(key, &Value::Bool(true), advice));
        }
    }
    if root.boolean("isGateway")? == Some(false) {
        let advice = "the bridge is always the pods' gateway";
        return Err(Error::unsupported("isGateway", &Value::Bool(false), advice));
    }
    backend(root)?;
    vlan(root)?;
    match root.text("mode")? {
        None | Some("routed-ports") => {}
        Some(mode) => {
            return Err(Error::unsupported(
                "mode",
                &mode.into(),
                "use \"routed-ports\"",
            ));
        }
    }
    let Some(runtime) = root.object("runtimeConfig")? else {
        return Ok(());
    };
    if let Some((value, _)) = runtime
        .value("portMappings")
        .zip(runtime.array("portMappings")?.first())
    {
        let advice = "chain the portmap plugin, which then declares the capability";
        return Err(Error::unsupported(
            "runtimeConfig.portMappings",
            value,
            advice,
        ));
    }
    if let Some(bandwidth) = runtime.object("bandwidth")?
        && !bandwidth.is_empty()
    {
        let value = runtime.value("bandwidth").unwrap_or(&Value::Null);
        let advice = "chain the bandwidth plugin, which then declares the capability";
        return Err(Error::unsupported("runtimeConfig.bandwidth", value, advice));
    }
    Ok(())
}

/// `ipMasqBackend` says how `ipMasq` is done, which is refused when asked for;
/// a name that does not exist is a mistake in any case.
fn backend(root: &Object<'_>) -> Result<(), Error> {
    match root.text("ipMasqBackend")? {
        None | Some("iptables" | "nftables") => Ok(()),
        Some(other) => {
            let advice = "the reference plugin knows iptables and nftables";
            Err(Error::unsupported("ipMasqBackend", &other.into(), advice))
        }
    }
}

fn vlan(root: &Object<'_>) -> Result<(), Error> {
    if let Some(value) = root.value("vlan") {
        match value.as_i64() {
            Some(0) => {}
            Some(1..=4094) => {
                return Err(Error::unsupported("vlan", value, "use one bridge per VLAN"));
            }
            _ => {
                return Err(Error::config(format!(
                    "vlan: {value} is not between 0 and 4094"
                )));
            }
        }
    }
    let trunk = root.array("vlanTrunk")?;
    for (n, entry) in trunk.iter().enumerate() {
        let entry = Object::at(format!("vlanTrunk[{n}]"), entry)?;
        let id = |key: &str| match entry.number(key)? {
            Some(id) if !(1..=4094).contains(&id) => Err(Error::config(format!(
                "{}: {id} is not between 1 and 4094",
                entry.path(key)
            ))),
            id => Ok(id),
        };
        id("id")?;
        if let (Some(min), Some(max)) = (id("minID")?, id("maxID")?)
            && min > max
        {
            let message = format!("vlanTrunk[{n}]: minID {min} is greater than maxID {max}");
            return Err(Error::config(message));
        }
    }
    match root.value("vlanTrunk").filter(|_| !trunk.is_empty()) {
        Some(value) => Err(Error::unsupported(
            "vlanTrunk",
            value,
            "use one bridge per VLAN",
        )),
        None => Ok(()),
    }
}

/// The `ipam` section, if it asks for the allocator in this process.
pub fn in_process_ipam<'a>(root: &Object<'a>) -> Result<Object<'a>, Error> {
    let Some(ipam) = root.object("ipam")?.filter(|ipam| !ipam.is_empty()) else {
        let value = root.value("ipam").unwrap_or(&Value::Null);
        let advice = "give it subnets; interfaces without addresses are not offered";
        return Err(Error::unsupported("ipam", value, advice));
    };
    match ipam.text("type")? {
        None | Some("trammel-ipam") => Ok(ipam),
        Some(other) => {
            let advice = "use \"trammel-ipam\", which reads host-local's files";
            Err(Error::unsupported("ipam.type", &other.into(), advice))
        }
    }
}

/// The ranges: those of the runtime (`ipRanges`) first, then the old style of
/// one subnet, then `ranges`.
pub fn range_sets(ipam: &Object<'_>, runtime: Option<&Object<'_>>) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    if let Some(runtime) = runtime {
        sets.extend(sets_at(runtime, "ipRanges")?);
    }
    if ipam.text("subnet")?.is_some() {
        let range = range(ipam)?;
        let set = RangeSet::new(vec![range]);
        sets.push(set.map_err(|error| Error::config(format!("ipam: {error}")))?);
    }
    sets.extend(sets_at(ipam, "ranges")?);
    if sets.is_empty() {
        return Err(Error::config(
            "ipam.ranges: no range is given: add [[{\"subnet\": \"10.88.0.0/24\"}]]",
        ));
    }
    RangeSet::check_disjoint(&sets)
        .map_err(|error| Error::config(format!("{}: {error}", ipam.path("ranges"))))?;
    Ok(sets)
}

fn sets_at(object: &Object<'_>, key: &str) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    for (n, pools) in object.array(key)?.iter().enumerate() {
        let path = format!("{}[{n}]", object.path(key));
        let Value::Array(pools) = pools else {
            let message = format!("{path}: expected an array of ranges, found {pools}");
            return Err(Error::config(message));
        };
        let one = |(m, pool)| range(&Object::at(format!("{path}[{m}]"), pool)?);
        let pools = pools
            .iter()
            .enumerate()
            .map(one)
            .collect::<Result<_, _>>()?;
        let set = RangeSet::new(pools);
        sets.push(set.map_err(|error| Error::config(format!("{path}: {error}")))?);
    }
    Ok(sets)
}

fn range(object: &Object<'_>) -> Result<Range, Error> {
    let subnet = net(object, "subnet")?
        .ok_or_else(|| Error::config(format!("{}: missing", object.path("subnet"))))?;
    let spec = RangeSpec {
        subnet,
        start: object.address("rangeStart")?,
        end: object.address("rangeEnd")?,
        gateway: object.address("gateway")?,
    };
    Range::new(&spec).map_err(|error| Error::config(format!("{}: {error}", object.path("subnet"))))
}

fn net(object: &Object<'_>, key: &str) -> Result<Option<IpNet>, Error> {
    let Some(text) = object.text(key)? else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let path = object.path(key);
        Error::config(format!(
            "{path}: {text:?} is not a subnet like 10.88.0.0/24"
        ))
    })
}

/// `ipam.routes`.
pub fn routes(ipam: &Object<'_>) -> Result<Vec<Route>, Error> {
    let entries = ipam.array("routes")?.iter().enumerate();
    entries
        .map(|(n, value)| route(&Object::at(format!("{}[{n}]", ipam.path("routes")), value)?))
        .collect()
}

/// One route, of a configuration or of a result.
pub fn route(object: &Object<'_>) -> Result<Route, Error> {
    let dst = net(object, "dst")?
        .ok_or_else(|| Error::config(format!("{}: missing", object.path("dst"))))?
        .trunc();
    let gw = object.address("gw")?;
    if gw.is_some_and(|gw| gw.is_ipv4() != matches!(dst, IpNet::V4(_))) {
        let message = format!("{}: not of the family of dst {dst}", object.path("gw"));
        return Err(Error::config(message));
    }
    let scope = object.number("scope")?;
    if let Some(scope) = scope.filter(|scope| *scope > 255) {
        let path = object.path("scope");
        return Err(Error::config(format!(
            "{path}: {scope} is not between 0 and 255"
        )));
    }
    Ok(Route {
        dst,
        gw,
        mtu: object.number("mtu")?.filter(|mtu| *mtu != 0),
        advmss: object.number("advmss")?.filter(|advmss| *advmss != 0),
        priority: object.number("priority")?.filter(|priority| *priority != 0),
        table: object.number("table")?,
        scope,
    })
}

/// The pod's Ethernet address: the runtime's wish before the configuration's
/// before `CNI_ARGS`, as in the reference bridge plugin.
pub fn mac(
    runtime: Option<&Object<'_>>,
    cni_args: Option<&Object<'_>>,
    args: &ExtraArgs,
) -> Result<Option<MacAddr>, Error> {
    for object in [runtime, cni_args].into_iter().flatten() {
        if let Some(text) = object.text("mac")? {
            let bad = |error| Error::config(format!("{}: {error}", object.path("mac")));
            return usable_mac(text.parse().map_err(bad)?).map(Some);
        }
    }
    args.mac.map(usable_mac).transpose()
}

fn usable_mac(mac: MacAddr) -> Result<MacAddr, Error> {
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        let message = format!("mac: {mac} is not the address of one interface");
        return Err(Error::config(message));
    }
    Ok(mac)
}

/// Requested addresses: of the runtime, the configuration and `CNI_ARGS`
/// together, as in host-local. A prefix length is allowed and means nothing.
pub fn requested(
    runtime: Option<&Object<'_>>,
    cni_args: Option<&Object<'_>>,
    args: &ExtraArgs,
) -> Result<Vec<IpAddr>, Error> {
    let mut ips: Vec<IpAddr> = args.ip.into_iter().collect();
    for object in [runtime, cni_args].into_iter().flatten() {
        for text in object.texts("ips")? {
            let address = text.split_once('/').map_or(text, |(address, _)| address);
            let ip = address.parse().map_err(|_| {
                Error::config(format!(
                    "{}: {text:?} is not an IP address",
                    object.path("ips")
                ))
            })?;
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    Ok(ips)
}

/// Name resolution: the runtime's (`servers`, `searches`, `options`) before the
/// configuration's `dns`.
pub fn dns(root: &Object<'_>, runtime: Option<&Object<'_>>) -> Result<Dns, Error> {
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
    if let Some(dns) = runtime
        .map(|runtime| runtime.object("dns"))
        .transpose()?
        .flatten()
    {
        let dns = Dns {
            nameservers: owned(dns.texts("servers")?),
            search: owned(dns.texts("searches")?),
            options: owned(dns.texts("options")?),
            domain: None,
        };
        if dns != Dns::default() {
            return Ok(dns);
        }
    }
    let Some(dns) = root.object("dns")? else {
        return Ok(Dns::default());
    };
    Ok(Dns {
        nameservers: owned(dns.texts("nameservers")?),
        domain: dns.text("domain")?.map(str::to_owned),
        search: owned(dns.texts("search")?),
        options: owned(dns.texts("options")?),
    })
}
