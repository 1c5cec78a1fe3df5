//! The nfnetlink socket.

use std::io;
use std::os::fd::AsFd;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::kernel::{CommitError, Kernel, KernelError, Rejection, StaleFlow};
use crate::netlink::attr::Attrs;
use crate::netlink::batch::{self, Batch, HEADER, NLMSG_HEADER, flag};
use crate::netlink::conntrack;
use crate::netlink::dump;
use crate::netlink::host_port_flows::{self, HostPortFlows};
use crate::netlink::marks;
use crate::netlink::uapi::{SUBSYS, gen_id, msg};
use crate::object::{Element, Key, Name, Ruleset, Table, TableId};
use crate::transaction::Transaction;

/// `NLMSG_ERROR`, `NLMSG_DONE`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`, `NLMSGERR_ATTR_OFFS`.
const ERR_MSG: u16 = 1;
const ERR_OFFSET: u16 = 2;
/// `MSG_DONTWAIT`.
const DONTWAIT: i32 = 0x40;
/// Room for what the kernel puts into one datagram of a dump.
const RECEIVE: usize = 64 << 10;
/// Errors of a large batch wait here until they are read.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The nf_tables of the network namespace in which the value was made.
pub struct Nftables {
    socket: Socket,
    send_buffer: usize,
    seq: u32,
}

impl Nftables {
    /// Opens the socket.
    ///
    /// # Errors
    /// Where the kernel has no nfnetlink or gives no socket.
    pub fn open() -> Result<Self, KernelError> {
        let mut socket =
            Socket::new(NETLINK_NETFILTER).map_err(|source| match source.raw_os_error() {
                Some(errno) if errno == Errno::EPROTONOSUPPORT as i32 => KernelError::Unsupported,
                _ => KernelError::Io {
                    action: "open it",
                    source,
                },
            })?;
        let io = |action| move |source| KernelError::Io { action, source };
        socket.bind_auto().map_err(io("bind it"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(io("connect it"))?;
        socket
            .set_ext_ack(true)
            .map_err(io("ask for extended errors"))?;
        socket
            .set_cap_ack(true)
            .map_err(io("ask for short errors"))?;
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(permission)?;
        Ok(Self {
            socket,
            send_buffer: 0,
            seq: 0,
        })
    }

    /// Sends an encoded batch and reads the kernel's verdict on it. It has decided when
    /// `send` returns.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn send(&mut self, transaction: &Transaction, batch: &Batch) -> Result<(), CommitError> {
        self.reserve(batch.bytes().len())?;
        self.write(batch.bytes())?;
        let mut acknowledged = false;
        let mut rejections = Vec::new();
        let mut buffer = Vec::with_capacity(RECEIVE);
        while self.read(&mut buffer, DONTWAIT)? {
            for message in Messages(&buffer) {
                let Some(error) = message.error() else {
                    continue;
                };
                if error.errno == 0 {
                    acknowledged |= message.seq == batch.last_seq();
                    continue;
                }
                not_about_an_object(error.errno)?;
                let culprit = batch.culprit(message.seq, error.offset);
                let elements = match culprit {
                    Some((_, Some(element))) => element..element + 1,
                    _ => batch.elements(message.seq).unwrap_or(0..0),
                };
                let operation = culprit.map(|(operation, _)| operation);
                rejections.push(Rejection::of(
                    transaction,
                    operation,
                    elements,
                    error.errno,
                    error.message,
                ));
            }
        }
        match (rejections.is_empty(), acknowledged) {
            (false, _) => Err(CommitError::Rejected(rejections)),
            (true, true) => Ok(()),
            (true, false) => Err(KernelError::Io {
                action: "read the verdict on a batch",
                source: io::ErrorKind::InvalidData.into(),
            }
            .into()),
        }
    }

    /// What there is of the chains and sets that `like` names, and whether the table holds
    /// others besides; `None` where there is no table.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn dump_part(
        &mut self,
        id: &TableId,
        like: &Table,
    ) -> Result<Option<(Table, bool)>, KernelError> {
        dump::part(self, id, like)
    }

    /// Ends the flows of these protocols and ports of the host that do not lead where they
    /// should, see [`HostPortFlows`]. Returns how many there were.
    ///
    /// # Errors
    /// Where the kernel cannot be asked, or has no conntrack.
    pub fn forget_host_port_flows(&mut self, stale: &HostPortFlows) -> Result<usize, KernelError> {
        host_port_flows::forget(self, stale)
    }

    /// Asks for a dump and hands the attributes of each message of the answer to
    /// `each`. Returns whether the answer is consistent: the tables may change
    /// meanwhile.
    pub(super) fn dump_once(
        &mut self,
        ty: u16,
        family: u8,
        attributes: &[u8],
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> Result<bool, KernelError> {
        let seq = self.request(ty, flag::DUMP, family, attributes)?;
        let mut consistent = true;
        let mut buffer = Vec::with_capacity(RECEIVE);
        loop {
            self.read(&mut buffer, 0)?;
            for message in Messages(&buffer).filter(|message| message.seq == seq) {
                consistent &= message.flags & flag::DUMP_INTR == 0;
                match message.ty {
                    NLMSG_DONE => return Ok(consistent),
                    NLMSG_ERROR => {
                        let errno = message.error().map_or(0, |error| error.errno);
                        not_about_an_object(errno)?;
                        if errno == Errno::ENOENT as i32 {
                            // What was asked for has gone since it was listed.
                            return Ok(true);
                        }
                        return Err(KernelError::Io {
                            action: "dump",
                            source: io::Error::from_raw_os_error(errno),
                        });
                    }
                    _ => each(message.attrs()),
                }
            }
        }
    }

    /// Asks for one object and hands its attributes to `each`, or nothing where there is
    /// no such object.
    pub(super) fn get(
        &mut self,
        ty: u16,
        family: u8,
        attributes: &[u8],
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> Result<(), KernelError> {
        let seq = self.request(ty, 0, family, attributes)?;
        let mut buffer = Vec::with_capacity(RECEIVE);
        loop {
            self.read(&mut buffer, 0)?;
            let Some(message) = Messages(&buffer).find(|message| message.seq == seq) else {
                continue;
            };
            let Some(error) = message.error() else {
                each(message.attrs());
                return Ok(());
            };
            not_about_an_object(error.errno)?;
            return match Errno::from_raw(error.errno) {
                Errno::ENOENT => Ok(()),
                _ => Err(KernelError::Io {
                    action: "get an object",
                    source: io::Error::from_raw_os_error(error.errno),
                }),
            };
        }
    }

    fn request(
        &mut self,
        ty: u16,
        flags: u16,
        family: u8,
        attributes: &[u8],
    ) -> Result<u32, KernelError> {
        self.seq += 1;
        let mut bytes = Vec::with_capacity(HEADER + attributes.len());
        let start = batch::begin(&mut bytes, ty, flag::REQUEST | flags, self.seq, family, 0);
        bytes.extend_from_slice(attributes);
        batch::end(&mut bytes, start);
        self.write(&bytes)?;
        Ok(self.seq)
    }

    /// Asks a question of that type, whose answer is one message, for a number in it. `None`:
    /// it has none, or the kernel does not know the question.
    pub(super) fn number(&mut self, ty: u16, attribute: u16) -> Result<Option<u32>, KernelError> {
        let seq = self.request(ty, 0, 0, &[])?;
        let mut buffer = Vec::with_capacity(RECEIVE);
        loop {
            self.read(&mut buffer, 0)?;
            let Some(message) = Messages(&buffer).find(|message| message.seq == seq) else {
                continue;
            };
            return match message.error() {
                Some(error) => not_about_an_object(error.errno).map(|()| None),
                None => Ok(message.attrs().u32(attribute)),
            };
        }
    }

    /// Sends a message of that type with each of the attributes, as one datagram, and waits
    /// until the kernel has carried them all out. What does not exist is no error.
    pub(super) fn carry_out(
        &mut self,
        ty: u16,
        family: u8,
        messages: &[Vec<u8>],
    ) -> Result<(), KernelError> {
        let mut bytes = Vec::new();
        let first = self.seq + 1;
        for attributes in messages {
            self.seq += 1;
            let flags = flag::REQUEST | flag::ACK;
            let start = batch::begin(&mut bytes, ty, flags, self.seq, family, 0);
            bytes.extend_from_slice(attributes);
            batch::end(&mut bytes, start);
        }
        self.reserve(bytes.len())?;
        self.write(&bytes)?;
        let mut answers = 0;
        let mut buffer = Vec::with_capacity(RECEIVE);
        while answers < messages.len() {
            self.read(&mut buffer, 0)?;
            for message in Messages(&buffer).filter(|message| message.seq >= first) {
                let Some(error) = message.error() else {
                    continue;
                };
                not_about_an_object(error.errno)?;
                if error.errno != 0 && error.errno != Errno::ENOENT as i32 {
                    return Err(KernelError::Io {
                        action: "change conntrack entries",
                        source: io::Error::from_raw_os_error(error.errno),
                    });
                }
                answers += 1;
            }
        }
        Ok(())
    }

    /// The kernel takes a batch as one datagram: the send buffer must hold it.
    fn reserve(&mut self, len: usize) -> Result<(), KernelError> {
        // The kernel counts its own overhead too; it doubles the number for that.
        let wanted = len + len / 2 + (256 << 10);
        if wanted > self.send_buffer {
            setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &wanted).map_err(permission)?;
            self.send_buffer = wanted;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<(), KernelError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) if source.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => {
                    return Err(KernelError::Unsupported);
                }
                Err(source) => {
                    return Err(KernelError::Io {
                        action: "send",
                        source,
                    });
                }
            }
        }
    }

    /// One datagram; `false` where there is none and `flags` forbid to wait.
    fn read(&self, buffer: &mut Vec<u8>, flags: i32) -> Result<bool, KernelError> {
        loop {
            buffer.clear();
            match self.socket.recv(buffer, flags) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(KernelError::Io {
                        action: "receive",
                        source,
                    });
                }
            }
        }
    }
}

impl Kernel for Nftables {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.send(transaction, &Batch::new(transaction))
    }

    fn dump(&mut self, tables: &[TableId]) -> Result<Ruleset, KernelError> {
        dump::ruleset(self, tables)
    }

    fn learnt(&mut self, table: &TableId, map: &Name) -> Result<Vec<(Key, Element)>, KernelError> {
        dump::learnt(self, table, map)
    }

    fn forget_flows(&mut self, stale: &[StaleFlow]) -> Result<usize, KernelError> {
        conntrack::forget(self, stale)
    }

    fn unmark_flows(&mut self, mask: u32, spared: u32) -> Result<usize, KernelError> {
        marks::clear(self, mask, spared)
    }

    fn generation(&mut self) -> Result<u32, KernelError> {
        let id = self.number(message_type(msg::GETGEN), gen_id::ID)?;
        id.ok_or(KernelError::Protocol("a generation without number"))
    }
}

/// A message of the nf_tables subsystem.
pub(super) const fn message_type(ty: u8) -> u16 {
    SUBSYS << 8 | ty as u16
}

/// Errors that are about this process or the kernel as a whole.
fn not_about_an_object(errno: i32) -> Result<(), KernelError> {
    match Errno::from_raw(errno) {
        Errno::EPERM => Err(KernelError::Permission),
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => Err(KernelError::Unsupported),
        _ => Ok(()),
    }
}

fn permission(errno: Errno) -> KernelError {
    match errno {
        Errno::EPERM => KernelError::Permission,
        other => KernelError::Io {
            action: "set its buffers",
            source: other.into(),
        },
    }
}

/// The messages of a datagram.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

pub(super) struct Message<'a> {
    pub(super) ty: u16,
    flags: u16,
    seq: u32,
    payload: &'a [u8],
}

pub(super) struct Error {
    pub(super) errno: i32,
    offset: Option<u32>,
    message: Option<String>,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..NLMSG_HEADER)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let half = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().expect("2 bytes"));
        let len = usize::try_from(word(0)).ok()?;
        let payload = self.0.get(NLMSG_HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            ty: half(4),
            flags: half(6),
            seq: word(8),
            payload,
        })
    }
}

impl<'a> Message<'a> {
    /// The attributes behind `struct nfgenmsg`.
    pub(super) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.payload.get(4..).unwrap_or_default())
    }

    /// For `NLMSG_ERROR`: `struct nlmsgerr` and, where flagged, attributes. With
    /// `NETLINK_CAP_ACK` the header of the refused message follows, not all of it.
    pub(super) fn error(&self) -> Option<Error> {
        if self.ty != NLMSG_ERROR {
            return None;
        }
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().expect("4 bytes"));
        let mut error = Error {
            errno: -code,
            offset: None,
            message: None,
        };
        if self.flags & flag::ACK_TLVS != 0 {
            let attrs = Attrs(self.payload.get(4 + NLMSG_HEADER..).unwrap_or_default());
            // Unlike those of nf_tables, in host order.
            error.offset = attrs
                .get(ERR_OFFSET)
                .and_then(|attr| Some(u32::from_ne_bytes(attr.payload.try_into().ok()?)));
            error.message = attrs.string(ERR_MSG).map(str::to_owned);
        }
        Some(error)
    }
}
