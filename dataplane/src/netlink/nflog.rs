//! Packets that rules hand over with `log group` (NFLOG, `nfnetlink_log`).
//!
//! The kernel collects messages for a short time and sends them together. What the
//! socket's buffer cannot hold is lost, and counted: nothing in the kernel waits for a
//! reader.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::attachment::MacAddr;
use crate::kernel::KernelError;
use crate::netlink::attr::{Attrs, Writer};
use crate::netlink::batch::{self, flag};
use crate::netlink::socket::Messages;

/// `NFNL_SUBSYS_ULOG << 8`, with `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const PACKET: u16 = 0x0400;
const CONFIG: u16 = 0x0401;

/// `enum nfulnl_attr_config`.
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CFG_QTHRESH: u16 = 5;
const CFG_FLAGS: u16 = 6;
/// `NFULNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// `NFULNL_COPY_PACKET`.
const COPY_PACKET: u8 = 2;
/// `NFULNL_CFG_F_SEQ`: number the messages of the group.
const NUMBERED: u16 = 1;

/// `enum nfulnl_attr_type`.
const PACKET_HDR: u16 = 1;
const TIMESTAMP: u16 = 3;
const INDEV: u16 = 4;
const OUTDEV: u16 = 5;
const PHYSINDEV: u16 = 6;
const HWADDR: u16 = 8;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQ: u16 = 12;

/// Bytes of each packet at most; rules ask for fewer.
const COPY_RANGE: u32 = 256;
/// The kernel sends what it has collected after so many hundredths of a second...
const COLLECT: u32 = 5;
/// ...or so many messages.
const AT_ONCE: u32 = 32;
/// Room for one datagram of collected messages.
const RECEIVE: usize = 64 << 10;
/// What comes in while the reader is busy: some thousand messages.
const RECEIVE_BUFFER: usize = 2 << 20;

/// A listener to one NFLOG group of the network namespace in which it was made.
pub struct PacketLog {
    socket: Socket,
    buffer: Vec<u8>,
    next: Option<u32>,
    lost: u64,
}

/// A packet that a rule has logged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedPacket {
    /// Text of the rule.
    pub prefix: String,
    /// When it was seen: as the kernel says, else when it was read.
    pub time: SystemTime,
    /// Its EtherType.
    pub ether_type: u16,
    /// Index of the interface it came in by.
    pub indev: Option<u32>,
    /// Index of the bridge port it came in by, where it did by one.
    pub port: Option<u32>,
    /// Its hardware source address, where the hook comes before that is forgotten.
    pub mac: Option<MacAddr>,
    /// Index of the interface it was to go out by.
    pub outdev: Option<u32>,
    /// Its first bytes, from the header behind that of the link on.
    pub payload: Vec<u8>,
}

impl PacketLog {
    /// Listens to the group.
    ///
    /// # Errors
    /// Where the kernel has no NFLOG, or somebody else listens to the group.
    pub fn bind(group: u16) -> Result<Self, KernelError> {
        let io = |action| move |source| KernelError::Io { action, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(io("open it"))?;
        socket.bind_auto().map_err(io("bind it"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(io("connect it"))?;
        let set = |errno: Errno| KernelError::Io {
            action: "set its buffers",
            source: errno.into(),
        };
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(set)?;
        let mut log = Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE),
            next: None,
            lost: 0,
        };
        log.configure(group, |w| w.u8(CFG_CMD, BIND))?;
        log.configure(group, |w| {
            // `struct nfulnl_msg_config_mode`.
            let [a, b, c, d] = COPY_RANGE.to_be_bytes();
            w.bytes(CFG_MODE, &[a, b, c, d, COPY_PACKET, 0]);
            w.u32(CFG_TIMEOUT, COLLECT);
            w.u32(CFG_QTHRESH, AT_ONCE);
            w.u16(CFG_FLAGS, NUMBERED);
        })?;
        Ok(log)
    }

    /// The packets of the next datagram; none where nothing comes within `limit`.
    ///
    /// # Errors
    /// Where the kernel cannot be read. That messages were lost is no error, see
    /// [`PacketLog::lost`].
    pub fn read(&mut self, limit: Duration) -> Result<Vec<LoggedPacket>, KernelError> {
        let micros = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX).max(1);
        let timeout = TimeVal::microseconds(micros);
        setsockopt(&self.socket.as_fd(), sockopt::ReceiveTimeout, &timeout).map_err(|errno| {
            KernelError::Io {
                action: "set its time-out",
                source: errno.into(),
            }
        })?;
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, 0) {
            Ok(_) => {}
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw) {
                    // The numbers of later messages tell how many were lost.
                    Some(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => Ok(Vec::new()),
                    _ => Err(KernelError::Io {
                        action: "receive",
                        source: error,
                    }),
                };
            }
        }
        let mut packets = Vec::new();
        let buffer = std::mem::take(&mut self.buffer);
        for message in Messages(&buffer).filter(|message| message.ty == PACKET) {
            self.note_number(message.attrs().u32(SEQ));
            packets.push(packet(message.attrs()));
        }
        self.buffer = buffer;
        Ok(packets)
    }

    /// The number of messages that were lost on the way so far.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    fn note_number(&mut self, number: Option<u32>) {
        let Some(number) = number else { return };
        if let Some(next) = self.next {
            self.lost += u64::from(number.wrapping_sub(next));
        }
        self.next = Some(number.wrapping_add(1));
    }

    /// Sends a configuration message and waits for its acknowledgement.
    fn configure(
        &mut self,
        group: u16,
        fill: impl FnOnce(&mut Writer<'_>),
    ) -> Result<(), KernelError> {
        let mut bytes = Vec::new();
        let flags = flag::REQUEST | flag::ACK;
        let start = batch::begin(&mut bytes, CONFIG, flags, 1, 0, group);
        fill(&mut Writer(&mut bytes));
        batch::end(&mut bytes, start);
        let io = |action| move |source| KernelError::Io { action, source };
        self.socket
            .send(&bytes, 0)
            .map_err(io("listen to a log group"))?;
        loop {
            self.buffer.clear();
            self.socket
                .recv(&mut self.buffer, 0)
                .map_err(io("listen to a log group"))?;
            // Packets may come before the acknowledgement; they are not waited for yet.
            let answer = Messages(&self.buffer).find_map(|message| message.error());
            let Some(answer) = answer else { continue };
            if answer.errno == 0 {
                return Ok(());
            }
            // EPERM where another socket has it.
            return Err(KernelError::Io {
                action: "listen to its log group: does another process?",
                source: io::Error::from_raw_os_error(answer.errno),
            });
        }
    }
}

fn packet(attrs: Attrs<'_>) -> LoggedPacket {
    LoggedPacket {
        prefix: attrs.string(PREFIX).unwrap_or_default().to_owned(),
        time: timestamp(attrs).unwrap_or_else(SystemTime::now),
        // `struct nfulnl_msg_packet_hdr` begins with it.
        ether_type: attrs
            .get(PACKET_HDR)
            .and_then(|attr| attr.payload.first_chunk().copied())
            .map_or(0, u16::from_be_bytes),
        indev: attrs.u32(INDEV),
        port: attrs.u32(PHYSINDEV),
        mac: hardware_address(attrs),
        outdev: attrs.u32(OUTDEV),
        payload: attrs
            .get(PAYLOAD)
            .map(|attr| attr.payload.to_vec())
            .unwrap_or_default(),
    }
}

/// `struct nfulnl_msg_packet_hw`: length, padding, address.
fn hardware_address(attrs: Attrs<'_>) -> Option<MacAddr> {
    let payload = attrs.get(HWADDR)?.payload;
    let (length, rest) = payload.split_first_chunk::<2>()?;
    let is_ethernet = u16::from_be_bytes(*length) == 6;
    let address = rest.get(2..)?.first_chunk::<6>()?;
    is_ethernet.then_some(MacAddr(*address))
}

/// `struct nfulnl_msg_packet_timestamp`; only packets that came in by a link have one.
fn timestamp(attrs: Attrs<'_>) -> Option<SystemTime> {
    let payload = attrs.get(TIMESTAMP)?.payload;
    let (seconds, rest) = payload.split_first_chunk::<8>()?;
    let micros = u64::from_be_bytes(*rest.first_chunk::<8>()?);
    let since_epoch = Duration::from_secs(u64::from_be_bytes(*seconds))
        .checked_add(Duration::from_micros(micros))?;
    UNIX_EPOCH.checked_add(since_epoch)
}
