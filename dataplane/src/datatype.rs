//! The data types of set keys and map values, as the `nft` program numbers them.
//!
//! The kernel does not interpret a set's type: it stores the number and hands it
//! back. It is `nft` that reads it to print elements, so the numbers are those of
//! its `enum datatypes` (`include/datatype.h`), unchanged since 0.9. A
//! concatenation packs them six bits each, and pads every field to a multiple of
//! four bytes.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::attachment::MacAddr;

/// One field of a key or a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DataType {
    /// IPv4 address, 4 bytes.
    Ipv4Addr,
    /// IPv6 address, 16 bytes.
    Ipv6Addr,
    /// Ethernet address, 6 bytes.
    EtherAddr,
    /// IP protocol number, 1 byte.
    InetProto,
    /// Port, 2 bytes, network order.
    InetService,
    /// 32 bits in host order. Slots of a load balanced frontend use it too: it is the
    /// only host-order integer type that `nft` 1.0.6 prints inside a concatenation.
    Mark,
    /// Interface name, 16 bytes, padded with zeros.
    Ifname,
}

impl DataType {
    const ALL: [Self; 7] = [
        Self::Ipv4Addr,
        Self::Ipv6Addr,
        Self::EtherAddr,
        Self::InetProto,
        Self::InetService,
        Self::Mark,
        Self::Ifname,
    ];

    /// The number that `nft` knows the type by.
    pub const fn id(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::Ifname => 41,
        }
    }

    /// Length in bytes, without padding.
    pub const fn size(self) -> usize {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark => 4,
            Self::EtherAddr => 6,
            Self::Ipv6Addr | Self::Ifname => 16,
        }
    }

    /// Length in bytes inside a concatenation: a multiple of a register's four.
    pub const fn padded_size(self) -> usize {
        self.size().next_multiple_of(4)
    }

    /// Name in `nft` syntax.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::EtherAddr => "ether_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::Ifname => "ifname",
        }
    }

    /// Whether the bytes of a value are in the machine's own order.
    pub const fn is_host_order(self) -> bool {
        matches!(self, Self::Mark | Self::Ifname)
    }

    const fn from_id(id: u32) -> Option<Self> {
        let mut i = 0;
        while i < Self::ALL.len() {
            if Self::ALL[i].id() == id {
                return Some(Self::ALL[i]);
            }
            i += 1;
        }
        None
    }

    fn print(self, bytes: &[u8], out: &mut String) {
        // A value that is shorter than its type can only come from a foreign
        // table; show what there is.
        let Some(bytes) = bytes.get(..self.size()) else {
            let _infallible = write!(out, "0x{}", hex(bytes));
            return;
        };
        let _infallible = match self {
            Self::Ipv4Addr => write!(out, "{}", Ipv4Addr::from(array::<4>(bytes))),
            Self::Ipv6Addr => write!(out, "{}", Ipv6Addr::from(array::<16>(bytes))),
            Self::EtherAddr => write!(out, "{}", MacAddr(array::<6>(bytes))),
            Self::InetProto => match bytes[0] {
                1 => write!(out, "icmp"),
                6 => write!(out, "tcp"),
                17 => write!(out, "udp"),
                58 => write!(out, "ipv6-icmp"),
                132 => write!(out, "sctp"),
                other => write!(out, "{other}"),
            },
            Self::InetService => write!(out, "{}", u16::from_be_bytes(array::<2>(bytes))),
            Self::Mark => write!(out, "0x{:08x}", u32::from_ne_bytes(array::<4>(bytes))),
            Self::Ifname => {
                let end = bytes
                    .iter()
                    .position(|byte| *byte == 0)
                    .unwrap_or(bytes.len());
                write!(out, "\"{}\"", String::from_utf8_lossy(&bytes[..end]))
            }
        };
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The type of a key or a value: one field or a concatenation of up to five,
/// stored as the packed number, `NFTA_SET_KEY_TYPE` or `NFTA_SET_DATA_TYPE`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Type(u32);

impl Type {
    /// A concatenation of one to five fields.
    pub const fn of(fields: &[DataType]) -> Self {
        assert!(!fields.is_empty() && fields.len() <= 5);
        let mut id = 0;
        let mut i = 0;
        while i < fields.len() {
            id = id << 6 | fields[i].id();
            i += 1;
        }
        Self(id)
    }

    /// The packed number.
    pub const fn id(self) -> u32 {
        self.0
    }

    /// The type of a packed number; `None` where a field is not known here.
    pub fn from_id(id: u32) -> Option<Self> {
        let known = |shift: u32| DataType::from_id(id >> shift & 0x3f).is_some();
        (id != 0 && shifts(id).all(known)).then_some(Self(id))
    }

    /// The fields, first to last.
    pub fn fields(self) -> impl Iterator<Item = DataType> {
        shifts(self.0).filter_map(move |shift| DataType::from_id(self.0 >> shift & 0x3f))
    }

    /// Length in bytes, `NFTA_SET_KEY_LEN` or `NFTA_SET_DATA_LEN`.
    pub fn size(self) -> usize {
        if self.0 < 1 << 6 {
            self.fields().map(DataType::size).sum()
        } else {
            self.fields().map(DataType::padded_size).sum()
        }
    }

    /// Name in `nft` syntax: `ipv4_addr . inet_service`.
    pub fn name(self) -> String {
        let names: Vec<_> = self.fields().map(DataType::name).collect();
        names.join(" . ")
    }

    /// A value of this type in `nft` syntax: `10.96.0.1 . tcp . 80`.
    pub fn print(self, bytes: &[u8]) -> String {
        let mut out = String::new();
        let mut rest = bytes;
        for (i, ty) in self.fields().enumerate() {
            if i > 0 {
                out.push_str(" . ");
            }
            ty.print(rest, &mut out);
            rest = rest.get(ty.padded_size()..).unwrap_or_default();
        }
        out
    }
}

impl std::fmt::Debug for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// How far to shift a packed number for each of its fields, first to last.
fn shifts(id: u32) -> impl Iterator<Item = u32> {
    (0..5)
        .rev()
        .map(|field| field * 6)
        .filter(move |shift| id >> shift != 0)
}

/// Builds the bytes of a key or value, field by field, with the padding that a
/// concatenation needs.
///
/// On the stack, as a cold start builds a hundred thousand of them.
#[derive(Clone, Debug)]
pub struct Bytes {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Default for Bytes {
    fn default() -> Self {
        Self::new()
    }
}

impl Bytes {
    /// All registers of the kernel together, `NFT_DATA_VALUE_MAXLEN`.
    const MAX: usize = 64;

    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            bytes: [0; Self::MAX],
            len: 0,
        }
    }

    /// Appends one field of raw bytes, padded to four.
    ///
    /// # Panics
    /// Where it is all longer than 64 bytes, which no key of the kernel can be.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len = (self.len + bytes.len()).next_multiple_of(4);
        self
    }

    /// Appends an address of either family.
    #[must_use]
    pub fn addr(self, addr: std::net::IpAddr) -> Self {
        match addr {
            std::net::IpAddr::V4(v4) => self.raw(&v4.octets()),
            std::net::IpAddr::V6(v6) => self.raw(&v6.octets()),
        }
    }

    /// Appends an IP protocol number.
    #[must_use]
    pub fn proto(self, proto: u8) -> Self {
        self.raw(&[proto])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.raw(&port.to_be_bytes())
    }

    /// Appends a host-order word: a mark or a slot.
    #[must_use]
    pub fn word(self, word: u32) -> Self {
        self.raw(&word.to_ne_bytes())
    }

    /// Appends an interface name; what is over 15 bytes is cut, as no interface
    /// has such a name.
    #[must_use]
    pub fn ifname(self, name: &str) -> Self {
        let mut padded = [0u8; 16];
        let len = name.len().min(15);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.raw(&padded)
    }

    /// Appends an Ethernet address.
    #[must_use]
    pub fn mac(self, mac: MacAddr) -> Self {
        self.raw(&mac.0)
    }

    /// The bytes.
    pub fn build(self) -> Arc<[u8]> {
        self.bytes[..self.len].into()
    }
}
