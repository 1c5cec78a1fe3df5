//! Fields and attributes of the kernel's answers.
//!
//! Readers pick the attributes that they ask about and pass over the rest. A full parser
//! must know every attribute of every kernel, and has failed on new ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::attachment::MacAddr;
use netlink_packet_core::{NlaBuffer, NlasIterator};
use nix::libc;

use super::{Answer, NetlinkError};

impl Answer {
    /// The bodies of the replies of one kind (`RTM_*`).
    pub fn bodies(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        let replies = self.replies.iter();
        replies
            .filter(move |(k, _)| *k == kind)
            .map(|(_, body)| body.as_slice())
    }
}

/// The attributes behind a header of `header` bytes; behind none those in a nested
/// attribute.
///
/// # Errors
/// The bytes end within the header; an item: within its attribute.
pub fn attributes(
    body: &[u8],
    header: usize,
) -> Result<impl Iterator<Item = Result<NlaBuffer<&[u8]>, NetlinkError>>, NetlinkError> {
    let rest = body.get(header..).ok_or(NetlinkError::Malformed)?;
    Ok(NlasIterator::new(rest).map(|attribute| attribute.map_err(|_| NetlinkError::Malformed)))
}

/// Four bytes in the machine's order.
///
/// # Errors
/// There are fewer.
pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32, NetlinkError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_ne_bytes(*word))
        .ok_or(NetlinkError::Malformed)
}

/// An address of either family, by its length.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The unspecified address of a family (`AF_*`), which a route to everywhere does not
/// spell out.
pub fn unspecified(family: u8) -> Option<IpAddr> {
    match family.into() {
        libc::AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        libc::AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

/// An Ethernet address.
pub fn mac(bytes: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr)
}

/// Text up to its first zero byte.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
