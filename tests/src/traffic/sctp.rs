//! SCTP as far as a kernel without its sockets goes: first packets, made by hand.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use crate::netns::NetNs;
use crate::pod::Family;

/// Its protocol number.
const SCTP: i32 = 132;
/// Port of every sender.
const SOURCE: u16 = 40_000;
/// The chunk that opens an association (RFC 9260, 3.3.2).
const INIT: u8 = 1;
/// Octets of the common header.
const HEADER: usize = 12;

/// Sees the first packets that come into a namespace.
#[derive(Debug)]
pub struct Arrivals {
    socket: Socket,
    family: Family,
}

impl Arrivals {
    /// Those of a family from now on.
    pub fn listen(netns: &NetNs, family: Family) -> Result<Self> {
        let socket = netns.enter(move || raw(family))??;
        Ok(Self { socket, family })
    }

    /// The port to which the next one comes, if it comes within `limit`.
    pub fn next(&self, limit: Duration) -> Result<Option<u16>> {
        self.socket.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 256];
        let length = match (&self.socket).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Such sockets of IPv4 show its header as well.
        let start = match self.family {
            Family::V4 => usize::from(buffer[0] & 15) * 4,
            Family::V6 => 0,
        };
        let packet = buffer.get(start..length).context("a packet")?;
        anyhow::ensure!(packet.get(HEADER) == Some(&INIT), "no INIT: {packet:?}");
        Ok(Some(u16::from_be_bytes([packet[2], packet[3]])))
    }
}

/// Sends a first packet, each time of the same flow, and does not wait.
pub fn knock(netns: &NetNs, target: SocketAddr) -> Result<()> {
    let family = Family::of(target.ip());
    let packet = init(target.port());
    let target = SocketAddr::new(target.ip(), 0);
    let send = move || raw(family)?.send_to(&packet, &target.into());
    netns.enter(send)??;
    Ok(())
}

fn raw(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    Socket::new(domain, Type::RAW, Some(SCTP.into()))
}

/// An INIT to a port.
fn init(port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(SOURCE.to_be_bytes());
    packet.extend(port.to_be_bytes());
    // Verification tag and checksum.
    packet.extend([0; 8]);
    // Flags, length; initiate tag, window, streams out and in, first TSN.
    packet.extend([INIT, 0, 0, 20]);
    packet.extend(0x1234_5678u32.to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 10, 0, 10]);
    packet.extend(1u32.to_be_bytes());
    let checksum = crc32c(&packet);
    packet[8..HEADER].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// CRC32c, which conntrack checks.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}
