//! The parts of a configuration, each from its keys to its type.

use dataplane::attachment::MacAddr;
use ipnet::IpNet;

use super::args::ExtraArgs;
use super::error::Error;
use super::json::Object;
use super::result::{Dns, Route};

/// `ipMasq`. `ipMasqBackend` says how the reference plugin does it; here it is nftables in any
/// case. A name that does not exist is a mistake.
pub fn ip_masq(root: &Object<'_>) -> Result<bool, Error> {
    match root.text("ipMasqBackend")? {
        None | Some("iptables" | "nftables") => {}
        Some(other) => {
            let advice = "the reference plugin knows iptables and nftables";
            return Err(Error::unsupported("ipMasqBackend", &other.into(), advice));
        }
    }
    Ok(root.boolean("ipMasq")?.unwrap_or(false))
}

/// `args.cni`, where a configuration carries what a runtime's capabilities do not.
pub fn cni_args<'a>(root: &Object<'a>) -> Result<Option<Object<'a>>, Error> {
    match root.object("args")? {
        Some(args) => args.object("cni"),
        None => Ok(None),
    }
}

/// A subnet.
pub fn net(object: &Object<'_>, key: &str) -> Result<Option<IpNet>, Error> {
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

/// Name resolution: the runtime's (`servers`, `searches`, `options`) before the
/// configuration's `dns`.
pub fn dns(root: &Object<'_>, runtime: Option<&Object<'_>>) -> Result<Dns, Error> {
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
    match root.object("dns")? {
        Some(dns) => dns_of_result(&dns),
        None => Ok(Dns::default()),
    }
}

/// Name resolution in the form of results and configurations.
pub fn dns_of_result(dns: &Object<'_>) -> Result<Dns, Error> {
    Ok(Dns {
        nameservers: owned(dns.texts("nameservers")?),
        domain: dns.text("domain")?.map(str::to_owned),
        search: owned(dns.texts("search")?),
        options: owned(dns.texts("options")?),
    })
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}
