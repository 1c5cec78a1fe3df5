//! Results of ADD, in the layout of each version, and `prevResult`.
//!
//! A previous result is carried as raw JSON: what other plugins put there, known
//! to us or not, comes out as it went in.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::error::{Code, Error};
use super::json::{Object, get};
use super::options;
use super::version::Version;

/// An interface of a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its MTU (1.1).
    pub mtu: Option<u32>,
    /// The namespace that it is in, as the runtime wrote it; `None` on the host.
    pub sandbox: Option<String>,
}

/// An address of a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ip {
    /// As it is on the interface.
    pub address: IpNet,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// The interface that has it: its position in the same list of interfaces. `None` in
    /// the answer of an IPAM plugin, which makes none.
    pub interface: Option<usize>,
}

/// A route, of a configuration or a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; `None`: the gateway of its family.
    pub gw: Option<IpAddr>,
    /// Path MTU (1.1).
    pub mtu: Option<u32>,
    /// TCP maximum segment size to announce (1.1).
    pub advmss: Option<u32>,
    /// Metric (1.1).
    pub priority: Option<u32>,
    /// Routing table (1.1).
    pub table: Option<u32>,
    /// Scope, as in `rtnetlink(7)` (1.1).
    pub scope: Option<u32>,
}

/// Name resolution.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dns {
    /// Servers.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: Option<String>,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// What this plugin adds to a result.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addition {
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Addresses; their interface counts from the first of ours.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name resolution; where empty, the previous result's stays.
    pub dns: Dns,
}

/// What CHECK compares the kernel with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expected {
    /// Addresses of the container's interface.
    pub addresses: Vec<IpNet>,
    /// Routes.
    pub routes: Vec<Route>,
}

impl Route {
    /// A plain route.
    pub fn via(dst: IpNet, gw: IpAddr) -> Self {
        Self {
            dst,
            gw: Some(gw),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    fn to_json(&self) -> Value {
        let mut route = json!({ "dst": self.dst });
        let numbers = [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
            ("table", self.table),
            ("scope", self.scope),
        ];
        if let Some(gw) = self.gw {
            route["gw"] = json!(gw);
        }
        for (key, number) in numbers {
            if let Some(number) = number {
                route[key] = number.into();
            }
        }
        route
    }
}

impl Dns {
    /// Reads a file in the format of `resolv.conf(5)`. Lines that it does not
    /// know are left out.
    pub fn from_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => dns.nameservers.extend(words.next()),
                Some("domain") => dns.domain = words.next(),
                // The last of several counts (resolv.conf(5)).
                Some("search") => dns.search = words.collect(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }

    fn to_json(&self) -> Value {
        let mut dns = Map::new();
        for (key, list) in [
            ("nameservers", &self.nameservers),
            ("search", &self.search),
            ("options", &self.options),
        ] {
            if !list.is_empty() {
                dns.insert(key.to_owned(), json!(list));
            }
        }
        if let Some(domain) = &self.domain {
            dns.insert("domain".to_owned(), json!(domain));
        }
        Value::Object(dns)
    }
}

impl Addition {
    /// The result for the runtime, with what the plugins before us did.
    pub fn render(&self, version: Version, prev: Option<&Value>) -> Result<Value, Error> {
        let mut result = match prev {
            None => Map::new(),
            Some(Value::Object(prev)) => prev.clone(),
            Some(other) => {
                let message = format!("prevResult: expected an object, found {other:.40}");
                return Err(Error::config(message));
            }
        };
        let interfaces = list(&mut result, "interfaces")?;
        let offset = interfaces.len();
        interfaces.extend(self.interfaces.iter().map(interface_json));
        list(&mut result, "ips")?.extend(self.ips.iter().map(|ip| ip_json(ip, offset)));
        let routes = list(&mut result, "routes")?;
        routes.extend(self.routes.iter().map(Route::to_json));
        if self.dns != Dns::default() {
            result.insert("dns".to_owned(), self.dns.to_json());
        }
        Ok(convert(Value::Object(result), version))
    }
}

impl Expected {
    /// Reads a previous result for the interface `ifname`.
    pub fn of(prev: &Value, ifname: &str) -> Result<Self, Error> {
        let prev = Object::at("prevResult".to_owned(), prev)?;
        let mut in_container = Vec::new();
        for (n, value) in prev.array("interfaces")?.iter().enumerate() {
            let interface = Object::at(format!("prevResult.interfaces[{n}]"), value)?;
            let sandbox = interface.text("sandbox")?;
            in_container.push(interface.text("name")? == Some(ifname) && sandbox.is_some());
        }
        let mut expected = Self::default();
        for (n, value) in prev.array("ips")?.iter().enumerate() {
            let ip = Object::at(format!("prevResult.ips[{n}]"), value)?;
            let position = ip
                .number("interface")?
                .and_then(|n| usize::try_from(n).ok());
            if position.and_then(|n| in_container.get(n)) == Some(&true) {
                let text = ip.text("address")?.unwrap_or_default();
                let address = text.parse().map_err(|_| {
                    Error::config(format!("{}: {text:?} is no address", ip.path("address")))
                })?;
                expected.addresses.push(address);
            }
        }
        for (n, value) in prev.array("routes")?.iter().enumerate() {
            let route = Object::at(format!("prevResult.routes[{n}]"), value)?;
            expected.routes.push(options::route(&route)?);
        }
        Ok(expected)
    }
}

/// Brings a result, in the layout of any version, into that of `version`.
///
/// Between 0.3.0 and 0.4.0 nothing changed; 1.0.0 dropped `ips[].version` and the
/// empty `dns`; 1.1.0 added `mtu`, `socketPath` and `pciID` to interfaces, which the
/// reference library leaves out before 1.0.0 and hands on in 1.0.0.
pub fn convert(mut result: Value, version: Version) -> Value {
    let Some(object) = result.as_object_mut() else {
        return result;
    };
    rename(object, "cniVersion");
    object.insert("cniVersion".to_owned(), version.as_str().into());
    let legacy = version < Version::V1_0_0;
    for ip in objects(object, "ips") {
        rename(ip, "version");
        ip.remove("version");
        if legacy {
            let address = get(ip, "address")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let family = if address.contains(':') { "6" } else { "4" };
            ip.insert("version".to_owned(), family.into());
        }
    }
    if legacy {
        for interface in objects(object, "interfaces") {
            for key in ["mtu", "socketPath", "pciID"] {
                interface.retain(|name, _| !name.eq_ignore_ascii_case(key));
            }
        }
    }
    let dns_is_empty = get(object, "dns").is_none_or(|dns| *dns == json!({}));
    if dns_is_empty {
        object.retain(|name, _| !name.eq_ignore_ascii_case("dns"));
        if legacy {
            object.insert("dns".to_owned(), json!({}));
        }
    }
    for key in ["interfaces", "ips", "routes"] {
        if get(object, key) == Some(&json!([])) {
            object.retain(|name, _| !name.eq_ignore_ascii_case(key));
        }
    }
    result
}

/// Gives a key that is there in another case its proper name.
fn rename(object: &mut Map<String, Value>, key: &str) {
    if object.contains_key(key) {
        return;
    }
    let other = object
        .keys()
        .find(|name| name.eq_ignore_ascii_case(key))
        .cloned();
    if let Some(value) = other.and_then(|other| object.remove(&other)) {
        object.insert(key.to_owned(), value);
    }
}

fn objects<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    rename(object, key);
    let list = object.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, Error> {
    rename(result, key);
    let value = result.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| {
        Error::new(
            Code::InvalidConfig,
            format!("prevResult.{key}: expected an array"),
        )
    })
}

fn interface_json(interface: &Interface) -> Value {
    let mut object = json!({ "name": interface.name, "mac": interface.mac });
    if let Some(mtu) = interface.mtu {
        object["mtu"] = mtu.into();
    }
    if let Some(sandbox) = &interface.sandbox {
        object["sandbox"] = json!(sandbox);
    }
    object
}

fn ip_json(ip: &Ip, offset: usize) -> Value {
    let mut object = json!({ "address": ip.address });
    if let Some(interface) = ip.interface {
        object["interface"] = json!(interface + offset);
    }
    if let Some(gateway) = ip.gateway {
        object["gateway"] = json!(gateway);
    }
    object
}

#[cfg(test)]
mod tests;
