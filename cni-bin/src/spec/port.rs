//! How the pod's link is made: `mode`, and the keys of the reference bridge plugin
//! that make sense in some of the modes only.

use dataplane::attachment::Mode;
use serde_json::Value;

use super::error::Error;
use super::ipam::Ipam;
use super::json::Object;

/// Why there are no VLANs.
const NO_VLAN: &str = "ports do not filter VLANs: use one bridge per VLAN, with the VLAN's \
                       interface as its uplink";

/// The pod's link as configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// `mode`.
    pub mode: Mode,
    /// `isGateway`: whether the bridge carries the gateways' addresses. Without, which
    /// only [`Mode::L2`] allows, someone else on the link is the gateway.
    pub is_gateway: bool,
    /// `hairpinMode`: whether the port sends frames back where they came from.
    pub hairpin: bool,
    /// `portIsolation`: whether the port exchanges frames with isolated ports.
    pub isolated: bool,
    /// `disableContainerInterface`: leave the pod's end down.
    pub down: bool,
}

impl Port {
    /// Reads and checks the keys.
    pub fn of(root: &Object<'_>, ipam: &Ipam) -> Result<Self, Error> {
        refuse_unsupported(root)?;
        vlan(root)?;
        let mode = mode(root, ipam)?;
        let on = |key: &str| root.boolean(key).map(|value| value == Some(true));
        let port = Self {
            mode,
            is_gateway: root.boolean("isGateway")?.unwrap_or(true) || on("isDefaultGateway")?,
            hairpin: root.boolean("hairpinMode")?.unwrap_or(true),
            isolated: on("portIsolation")?,
            down: on("disableContainerInterface")?,
        };
        if mode != Mode::L2 {
            if !port.is_gateway {
                let advice = "the node is the pods' gateway, unless mode is \"l2\"";
                return Err(Error::unsupported("isGateway", &false.into(), advice));
            }
            if port.isolated {
                let advice = "it would cut pods off from nobody here, as they reach each other \
                              through the node: use policies, or mode \"l2\"";
                return Err(Error::unsupported("portIsolation", &true.into(), advice));
            }
        }
        if port.down && *ipam != Ipam::Nobody {
            return Err(Error::config(
                "disableContainerInterface: true needs an interface without addresses: remove ipam",
            ));
        }
        Ok(port)
    }
}

fn mode(root: &Object<'_>, ipam: &Ipam) -> Result<Mode, Error> {
    let stated = match root.text("mode")? {
        None => None,
        Some(text) => match Mode::ALL.into_iter().find(|mode| mode.as_str() == text) {
            Some(mode) => Some(mode),
            None => {
                let advice = "use \"routed-ports\", \"l2\" or \"routed\"";
                return Err(Error::unsupported("mode", &text.into(), advice));
            }
        },
    };
    match (stated, ipam) {
        // There is nothing to route to.
        (None, Ipam::Nobody) => Ok(Mode::L2),
        (Some(mode @ (Mode::RoutedPorts | Mode::Routed)), Ipam::Nobody) => {
            Err(Error::config(format!(
                "mode: {:?} needs addresses: give ipam, or use mode \"l2\"",
                mode.as_str()
            )))
        }
        // Its server is a neighbour, which pods have in this mode only.
        (None, ipam) if ipam.needs_link() => Ok(Mode::L2),
        (Some(mode @ (Mode::RoutedPorts | Mode::Routed)), ipam) if ipam.needs_link() => {
            let advice = "ipam.type \"dhcp\" finds its server by broadcast: use mode \"l2\"";
            Err(Error::unsupported("mode", &mode.as_str().into(), advice))
        }
        (stated, _) => Ok(stated.unwrap_or_default()),
    }
}

/// Keys of the reference bridge plugin that are not offered, with what to do instead.
fn refuse_unsupported(root: &Object<'_>) -> Result<(), Error> {
    if root.boolean("promiscMode")? == Some(true) && root.boolean("hairpinMode")? == Some(true) {
        return Err(Error::config(
            "hairpinMode and promiscMode exclude each other: leave out promiscMode",
        ));
    }
    for (key, advice) in [
        (
            "promiscMode",
            "it duplicates frames: use hairpinMode, which is the default",
        ),
        (
            "enabledad",
            "an address has one holder, and is usable at once: leave it out",
        ),
    ] {
        if root.boolean(key)? == Some(true) {
            return Err(Error::unsupported(key, &Value::Bool(true), advice));
        }
    }
    match root.text("uplinkInterface")? {
        Some(name) => {
            let advice = "make it a port of the bridge yourself: ip link set IFACE master BRIDGE";
            Err(Error::unsupported("uplinkInterface", &name.into(), advice))
        }
        None => Ok(()),
    }
}

/// Bridge VLAN filtering is not offered. Values that no VLAN has are a mistake in any
/// case.
fn vlan(root: &Object<'_>) -> Result<(), Error> {
    if let Some(value) = root.value("vlan") {
        match value.as_i64() {
            Some(0) => {}
            Some(1..=4094) => {
                return Err(Error::unsupported("vlan", value, NO_VLAN));
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
        Some(value) => Err(Error::unsupported("vlanTrunk", value, NO_VLAN)),
        None => Ok(()),
    }
}
