//! The `ipam` section: who gives a pod its addresses, and out of which ranges.

use std::net::IpAddr;
use std::path::PathBuf;

use ipam::{Range, RangeSet, RangeSpec};
use serde_json::Value;

use super::args::{ExtraArgs, requested_address};
use super::error::Error;
use super::json::Object;
use super::options::{self, net};
use super::result::Route;

/// The name of our own allocator.
pub const IN_PROCESS: &str = "trammel-ipam";
/// The plugin that asks a server on the pod's link.
const DHCP: &str = "dhcp";

/// Who gives a pod its addresses (`ipam.type`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ipam {
    /// The allocator in this process.
    InProcess,
    /// Nobody: the section is missing or empty.
    Nobody,
    /// The plugin of this name in `CNI_PATH`.
    Plugin(String),
}

/// What the allocator in this process works with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// One address of each, those from the runtime first.
    pub ranges: Vec<RangeSet>,
    /// Addresses that the pod must get.
    pub requested: Vec<IpAddr>,
    /// `routes`.
    pub routes: Vec<Route>,
    /// `resolvConf`.
    pub resolv_conf: Option<PathBuf>,
}

impl Ipam {
    /// Whether the addresses are asked for over the pod's interface, which is then made
    /// first and up, and given back over it, too.
    pub fn needs_link(&self) -> bool {
        matches!(self, Self::Plugin(name) if name == DHCP)
    }

    /// Reads `ipam.type` of a whole configuration.
    pub fn of(root: &Object<'_>) -> Result<Self, Error> {
        let Some(ipam) = root.object("ipam")?.filter(|ipam| !ipam.is_empty()) else {
            return Ok(Self::Nobody);
        };
        match ipam.text("type")? {
            None | Some(IN_PROCESS) => Ok(Self::InProcess),
            // It becomes a file name.
            Some(name) if name.contains('/') || name.contains('\0') || name.starts_with('.') => {
                let message = format!("ipam.type: {name:?} is not the name of a plugin");
                Err(Error::config(message))
            }
            Some(name) => Ok(Self::Plugin(name.to_owned())),
        }
    }
}

impl Pool {
    /// Reads the section, and what the runtime adds to it.
    pub fn of(root: &Object<'_>, args: &ExtraArgs) -> Result<Self, Error> {
        let runtime = root.object("runtimeConfig")?;
        let cni_args = options::cni_args(root)?;
        let Some(ipam) = root.object("ipam")? else {
            return Err(Error::config("ipam: missing"));
        };
        Ok(Self {
            ranges: range_sets(&ipam, runtime.as_ref())?,
            requested: requested(runtime.as_ref(), cni_args.as_ref(), args)?,
            routes: routes(&ipam)?,
            resolv_conf: ipam.text("resolvConf")?.map(PathBuf::from),
        })
    }

    /// Whether pods get IPv6 addresses.
    pub fn has_ipv6(&self) -> bool {
        self.ranges.iter().any(|set| !set.is_ipv4())
    }
}

/// The ranges: those of the runtime (`ipRanges`) first, then the old style of
/// one subnet, then `ranges`.
fn range_sets(ipam: &Object<'_>, runtime: Option<&Object<'_>>) -> Result<Vec<RangeSet>, Error> {
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

/// `ipam.routes`.
fn routes(ipam: &Object<'_>) -> Result<Vec<Route>, Error> {
    let entries = ipam.array("routes")?.iter().enumerate();
    entries
        .map(|(n, value)| {
            options::route(&Object::at(format!("{}[{n}]", ipam.path("routes")), value)?)
        })
        .collect()
}

/// Requested addresses: of the runtime, the configuration and `CNI_ARGS`
/// together, as in host-local.
fn requested(
    runtime: Option<&Object<'_>>,
    cni_args: Option<&Object<'_>>,
    args: &ExtraArgs,
) -> Result<Vec<IpAddr>, Error> {
    let mut ips: Vec<IpAddr> = args.ip.into_iter().collect();
    for object in [runtime, cni_args].into_iter().flatten() {
        for text in object.texts("ips")? {
            let ip = requested_address(text).ok_or_else(|| {
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
