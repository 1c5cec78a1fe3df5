//! VLANs of bridge ports.
//!
//! As the reference bridge plugin has them: a port is taken out of the VLANs that the bridge
//! gives to each, and put into its own. What tells the kernel is a message of the bridge
//! family, and names the port by index.

use std::ops::RangeInclusive;

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Batch;
use crate::netlink::observed::PortVlan;
use crate::spec::Vlans;

/// What to look at where the kernel refuses VLANs.
pub const HAS_OPTION: &str = "(does this kernel have CONFIG_BRIDGE_VLAN_FILTERING?)";

/// All VLANs that there are.
const ALL: RangeInclusive<u16> = 1..=4094;

/// Adds the messages that put a port into its VLANs, and into no others unless it is to keep
/// those that it got with the bridge. To be carried out any number of times.
pub fn push_to(batch: &mut Batch, name: &str, port: u32, vlans: &Vlans) {
    if !vlans.keeps_default {
        // Which they are the bridge knows. The kernel minds none that the port is not in.
        let message = message(port, BridgeVlanInfoFlags::empty(), &ALL);
        let action = format!("take {name} out of the bridge's VLANs");
        batch.push(action, 0, &RouteNetlinkMessage::DelLink(message));
    }
    let native = vlans.untagged();
    let untagged = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    push(batch, name, port, untagged, &(native..=native));
    for range in &vlans.tagged {
        push(batch, name, port, BridgeVlanInfoFlags::empty(), range);
    }
}

fn push(
    batch: &mut Batch,
    name: &str,
    port: u32,
    flags: BridgeVlanInfoFlags,
    vlans: &RangeInclusive<u16>,
) {
    let (first, last) = (vlans.start(), vlans.end());
    let action = format!("put {name} into VLANs {first} to {last} {HAS_OPTION}");
    let message = message(port, flags, vlans);
    batch.push(action, 0, &RouteNetlinkMessage::SetLink(message));
}

/// Asks for the VLANs of all ports.
pub fn push_vlan_query(batch: &mut Batch) {
    let mut link = LinkMessage::default();
    link.header.interface_family = AddressFamily::Bridge;
    let mask = vec![LinkExtentMask::BrvlanCompressed];
    link.attributes.push(LinkAttribute::ExtMask(mask));
    batch.push_dump(
        "list the VLANs of ports",
        &RouteNetlinkMessage::GetLink(link),
    );
}

/// The VLANs that a port should be in and is not, or not in the same way.
pub fn missing<'a>(vlans: &'a Vlans, found: &'a [PortVlan]) -> impl Iterator<Item = u16> + 'a {
    let native = vlans.untagged();
    let tagged = vlans.tagged.iter().cloned().flatten();
    let wanted = [(native, true)].into_iter();
    let wanted = wanted.chain(tagged.map(|vlan| (vlan, false)));
    let is_missing = |(vlan, is_native): &(u16, bool)| {
        let wanted = PortVlan {
            vlan: *vlan,
            is_native: *is_native,
        };
        !found.contains(&wanted)
    };
    wanted.filter(is_missing).map(|(vlan, _)| vlan)
}

fn message(port: u32, flags: BridgeVlanInfoFlags, vlans: &RangeInclusive<u16>) -> LinkMessage {
    let info = |flags, vid| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    let (first, last) = (*vlans.start(), *vlans.end());
    let infos = if first == last {
        vec![info(flags, first)]
    } else {
        vec![
            info(flags | BridgeVlanInfoFlags::RangeBegin, first),
            info(flags | BridgeVlanInfoFlags::RangeEnd, last),
        ]
    };
    let mut link = LinkMessage::default();
    link.header.interface_family = AddressFamily::Bridge;
    link.header.index = port;
    link.attributes.push(LinkAttribute::AfSpecBridge(infos));
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `strace` shows of `bridge vlan ... dev PORT` (iproute2 6.1), the sequence number
    /// and the port's index set to 1 and 4: header, `struct ifinfomsg`, `IFLA_AF_SPEC` with
    /// an `IFLA_BRIDGE_VLAN_INFO` or two.
    const ADD_7_NATIVE: &str = "\
        2c000000 13000500 01000000 00000000 07000000 04000000 00000000 00000000 \
        0c001a00 08000200 06000700";
    const ADD_9: &str = "\
        2c000000 13000500 01000000 00000000 07000000 04000000 00000000 00000000 \
        0c001a00 08000200 00000900";
    const ADD_101_TO_103: &str = "\
        34000000 13000500 01000000 00000000 07000000 04000000 00000000 00000000 \
        14001a00 08000200 08006500 08000200 10006700";
    const DELETE_1_TO_4094: &str = "\
        34000000 11000500 01000000 00000000 07000000 04000000 00000000 00000000 \
        14001a00 08000200 08000100 08000200 1000fe0f";

    fn messages(vlans: &Vlans) -> Vec<String> {
        let mut batch = Batch::default();
        push_to(&mut batch, "trm0", 4, vlans);
        batch.printed()
    }

    fn expected(messages: &[&str]) -> Vec<String> {
        messages.iter().map(|text| text.replace(' ', "")).collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn messages_are_those_of_iproute2() {
        let access = Vlans {
            access: Some(7),
            tagged: Vec::new(),
            keeps_default: false,
        };
        let as_bridge = expected(&[DELETE_1_TO_4094, ADD_7_NATIVE]);
        assert_eq!(messages(&access), as_bridge);
        let trunk = Vlans {
            access: Some(7),
            tagged: vec![9..=9, 101..=103],
            keeps_default: true,
        };
        let as_bridge = expected(&[ADD_7_NATIVE, ADD_9, ADD_101_TO_103]);
        assert_eq!(messages(&trunk), as_bridge);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_trunk_without_a_vlan_of_its_own_has_the_default_one_without_tags() {
        let trunk = Vlans {
            access: None,
            tagged: vec![9..=9],
            keeps_default: false,
        };
        let default = ADD_7_NATIVE.replace("06000700", "06000100");
        let as_bridge = expected(&[DELETE_1_TO_4094, &default, ADD_9]);
        assert_eq!(messages(&trunk), as_bridge);
    }

    #[test]
    fn a_vlan_that_the_port_is_not_in_or_not_in_this_way_is_missing() {
        let vlans = Vlans {
            access: Some(7),
            tagged: vec![9..=9, 101..=103],
            keeps_default: false,
        };
        let port = |vlans: &[(u16, bool)]| -> Vec<PortVlan> {
            let vlans = vlans.iter();
            vlans
                .map(|&(vlan, is_native)| PortVlan { vlan, is_native })
                .collect()
        };
        let missing = |found: &[PortVlan]| missing(&vlans, found).collect::<Vec<_>>();
        let whole = [
            (7, true),
            (9, false),
            (101, false),
            (102, false),
            (103, false),
            (1, false),
        ];
        assert!(missing(&port(&whole)).is_empty());
        assert_eq!(missing(&port(&whole[1..5])), [7]);
        let other_way = [(7, false), (9, true), (101, false), (103, false)];
        assert_eq!(missing(&port(&other_way)), [7, 9, 102]);
    }
}
