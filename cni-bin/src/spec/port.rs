//! How the pod's link is made: `mode`, and the keys of the reference bridge plugin
//! that make sense in some of the modes only.

use dataplane::attachment::Mode;
use serde_json::Value;

use super::error::Error;
use super::ipam::Ipam;
use super::json::Object;
use super::vlan::Vlans;

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
    /// `vlan` and `vlanTrunk`: the VLANs of the port, if it has any; [`Mode::L2`] only.
    pub vlans: Option<Vlans>,
}

impl Port {
    /// Reads and checks the keys.
    pub fn of(root: &Object<'_>, ipam: &Ipam) -> Result<Self, Error> {
        refuse_unsupported(root)?;
        let mode = mode(root, ipam)?;
        let on = |key: &str| root.boolean(key).map(|value| value == Some(true));
        let vlans = Vlans::of(root)?;
        let is_gateway = root.boolean("isGateway")?;
        let port = Self {
            mode,
            // A VLAN has a router of its own more often than not, and two of one address
            // would cut off both.
            is_gateway: is_gateway.unwrap_or(vlans.is_none()) || on("isDefaultGateway")?,
            hairpin: root.boolean("hairpinMode")?.unwrap_or(true),
            isolated: on("portIsolation")?,
            down: on("disableContainerInterface")?,
            vlans,
        };
        if mode != Mode::L2 {
            let vlans = ["vlan", "vlanTrunk"].map(|key| (key, root.value(key)));
            if port.vlans.is_some()
                && let Some((key, value)) = vlans
                    .into_iter()
                    .find_map(|(key, value)| Some((key, value.filter(|v| **v != 0)?)))
            {
                let advice = "VLANs are for ports that are switched: use mode \"l2\"";
                return Err(Error::unsupported(key, value, advice));
            }
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

    /// Name of the interface that carries the gateways where the bridge does not: a bridge
    /// is in all of its VLANs, which are not to reach each other by it.
    pub fn vlan_gateway(&self, bridge: &str) -> Option<String> {
        let vlan = self.vlans.as_ref()?.access?;
        self.is_gateway.then(|| format!("{bridge}.{vlan}"))
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
