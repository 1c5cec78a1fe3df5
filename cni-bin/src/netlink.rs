//! Route netlink over a blocking socket: many messages in one send, and an answer
//! to each.
//!
//! A request costs a system call and a turn of the kernel's RTNL lock, so ADD puts
//! all it has to say to a namespace into one send. The kernel works such a batch
//! off in order, message by message, and *goes on after a failed one*: whoever
//! sends a batch looks at every answer and undoes the rest.
//!
//! The kernel reports what it refuses unasked, and in order, too. So the last message
//! alone asks for an acknowledgement: when that is there, whatever else has not been
//! refused has been carried out. The others' would cost a receive each.
//!
//! A socket belongs for ever to the namespace in which its thread was when it
//! was opened.

pub mod observed;
pub mod read;

use std::io;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkSerializable,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use rustix::net::netdevice;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Where it has `nlmsg_flags`.
const FLAGS: usize = 6;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
/// Flags of an `NLMSG_ERROR` (`linux/netlink.h`): the request is not echoed
/// behind its header; attributes follow.
const FLAG_CAPPED: u16 = 0x100;
const FLAG_ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: why, in words.
const ATTRIBUTE_MESSAGE: u16 = 1;
/// Large enough for one datagram of a dump: the kernel makes them at most 32 KiB.
const BUFFER: usize = 64 * 1024;

/// Why a conversation with the kernel failed, as opposed to one of its messages.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A socket call failed.
    #[error("netlink: cannot {action}: {source}")]
    Socket {
        /// Which.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel sent what is no netlink message.
    #[error("netlink: the kernel sent a malformed message")]
    Malformed,
    /// The kernel refused a message.
    #[error("cannot {action}: {refusal}")]
    Refused {
        /// What the message was for.
        action: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
}

/// The kernel's answer to a message that it did not carry out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{}", errno.desc(), reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// What the kernel adds in words, if it does.
    pub reason: Option<String>,
}

/// Messages to send together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    requests: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    /// What it is for.
    action: String,
    /// Where it starts in the batch.
    start: usize,
    /// Whether the kernel answers it in parts, after those behind it if need be.
    is_dump: bool,
}

/// The answers to a [`Batch`], in its order.
#[derive(Debug)]
pub struct Answers(Vec<Answer>);

/// The answer to one message.
#[derive(Debug)]
pub struct Answer {
    /// What the message was for: "add address 10.88.0.2 to eth0".
    pub action: String,
    /// Whether the kernel carried it out.
    pub outcome: Result<(), Refusal>,
    /// Replies: message type and body behind the netlink header.
    pub replies: Vec<(u16, Vec<u8>)>,
}

/// A route netlink socket of one namespace.
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
}

impl Batch {
    /// Adds a message that changes something or asks for one object. `flags` are
    /// added to "request".
    pub fn push(&mut self, action: impl Into<String>, flags: u16, message: &RouteNetlinkMessage) {
        self.emit(action.into(), flags, message);
    }

    /// Adds a request for all objects of a kind. One per batch: the kernel runs
    /// one dump per socket at a time.
    pub fn push_dump(&mut self, action: impl Into<String>, message: &RouteNetlinkMessage) {
        self.emit(action.into(), NLM_F_DUMP, message);
    }

    /// How many messages it has.
    pub fn count(&self) -> usize {
        self.requests.len()
    }

    /// Has the kernel acknowledge the last message; the last part of a dump says so itself.
    fn acknowledge_last(&mut self) {
        if let Some(last) = self.requests.last().filter(|last| !last.is_dump) {
            let flags = &mut self.bytes[last.start + FLAGS..last.start + FLAGS + 2];
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
    }

    fn emit(&mut self, action: String, flags: u16, message: &RouteNetlinkMessage) {
        let length = HEADER + NetlinkSerializable::buffer_len(message);
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(length).expect("a request is a few hundred bytes");
        header.message_type = message.message_type();
        header.flags = flags | NLM_F_REQUEST;
        // Relative; the socket adds its own count when it sends.
        header.sequence_number = u32::try_from(self.requests.len()).expect("a batch is small");
        let start = self.bytes.len();
        self.bytes.resize(start + length.next_multiple_of(4), 0);
        header.emit(&mut self.bytes[start..start + HEADER]);
        message.serialize(&mut self.bytes[start + HEADER..start + length]);
        self.requests.push(Request {
            action,
            start,
            is_dump: flags & NLM_F_DUMP == NLM_F_DUMP,
        });
    }
}

impl Answers {
    /// The answer to message number `n`.
    pub fn get(&self, n: usize) -> &Answer {
        &self.0[n]
    }

    /// All answers.
    pub fn iter(&self) -> impl Iterator<Item = &Answer> {
        self.0.iter()
    }

    /// The first message that the kernel refused.
    pub fn first_refusal(&self) -> Option<(&Answer, &Refusal)> {
        let refusal = |answer: &Answer| answer.outcome.is_err();
        let answer = self.0.iter().find(|answer| refusal(answer))?;
        Some((answer, answer.outcome.as_ref().err()?))
    }

    /// An error unless the kernel carried out every message.
    pub fn all_done(&self) -> Result<(), NetlinkError> {
        match self.first_refusal() {
            None => Ok(()),
            Some((answer, refusal)) => Err(answer.error(refusal)),
        }
    }
}

impl Answer {
    /// An error unless the kernel carried the message out.
    pub fn done(&self) -> Result<(), NetlinkError> {
        match &self.outcome {
            Ok(()) => Ok(()),
            Err(refusal) => Err(self.error(refusal)),
        }
    }

    /// As [`done`](Self::done), with refusals for this reason being a success.
    pub fn done_or(&self, accepted: Errno) -> Result<(), NetlinkError> {
        match &self.outcome {
            Err(refusal) if refusal.errno == accepted => Ok(()),
            _ => self.done(),
        }
    }

    fn error(&self, refusal: &Refusal) -> NetlinkError {
        NetlinkError::Refused {
            action: self.action.clone(),
            refusal: refusal.clone(),
        }
    }
}

/// Whether a lookup of an interface by its name has found it.
pub(crate) fn is_found(index: Result<u32, Errno>) -> Result<bool, NetlinkError> {
    match index {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(false),
        Err(errno) => Err(NetlinkError::Socket {
            action: "look an interface up",
            source: errno.into(),
        }),
    }
}

impl Socket {
    /// Opens a socket in the namespace of this thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let call = |action| move |source| NetlinkError::Socket { action, source };
        // The kernel binds it when it sends.
        let inner = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(call("open a socket"))?;
        // Both are for messages only: reasons in words, and no echo of requests.
        inner
            .set_ext_ack(true)
            .map_err(call("set NETLINK_EXT_ACK"))?;
        inner
            .set_cap_ack(true)
            .map_err(call("set NETLINK_CAP_ACK"))?;
        // Dumps honour the filter in their header (Linux 4.20).
        inner
            .set_netlink_get_strict_chk(true)
            .map_err(call("set NETLINK_GET_STRICT_CHK"))?;
        Ok(Self { inner, sequence: 0 })
    }

    /// Index of an interface in the namespace of the socket. By `ioctl`, which is much
    /// cheaper than a message.
    pub fn index(&self, name: &str) -> Option<u32> {
        netdevice::name_to_index(&self.inner, name).ok()
    }

    /// Whether that namespace has the interface: for those who refuse by the answer, to whom
    /// "nobody knows" is not "no".
    pub fn has(&self, name: &str) -> Result<bool, NetlinkError> {
        let index = netdevice::name_to_index(&self.inner, name);
        is_found(index.map_err(|errno| Errno::from_raw(errno.raw_os_error())))
    }

    /// Whether no interface in the namespace of the socket has the index.
    pub fn is_free(&self, index: u32) -> bool {
        netdevice::index_to_name_inlined(&self.inner, index).is_err()
    }

    /// Sends a batch and waits for all answers.
    pub fn run(&mut self, mut batch: Batch) -> Result<Answers, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let count = u32::try_from(batch.count()).expect("a batch is small");
        self.sequence = self.sequence.wrapping_add(count);
        batch.acknowledge_last();
        number_from(&mut batch.bytes, first);
        let sent = self.inner.send(&batch.bytes, 0);
        sent.map_err(|source| NetlinkError::Socket {
            action: "send",
            source,
        })?;
        let last = batch.requests.len().saturating_sub(1);
        let mut answers = Vec::with_capacity(batch.requests.len());
        let mut is_awaited = Vec::with_capacity(batch.requests.len());
        for (number, request) in batch.requests.into_iter().enumerate() {
            is_awaited.push(request.is_dump || number == last);
            answers.push(Answer {
                action: request.action,
                outcome: Ok(()),
                replies: Vec::new(),
            });
        }
        // Not the socket's: of two sockets the second one's would be new to the process.
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut open = is_awaited.iter().filter(|is_awaited| **is_awaited).count();
        while open > 0 {
            self.receive(&mut buffer)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let (message, behind) = Message::split(rest)?;
                rest = behind;
                let number = message.sequence.wrapping_sub(first) as usize;
                // Answers to an earlier batch, which was given up on.
                let Some(answer) = answers.get_mut(number) else {
                    continue;
                };
                if message.take_into(answer)? && is_awaited[number] {
                    open -= 1;
                }
            }
        }
        Ok(Answers(answers))
    }

    /// Sends one message and waits for its answer.
    pub fn ask(
        &mut self,
        action: impl Into<String>,
        message: &RouteNetlinkMessage,
    ) -> Result<Answers, NetlinkError> {
        let mut batch = Batch::default();
        batch.push(action, 0, message);
        self.run(batch)
    }

    /// Asks for all objects of a kind.
    pub fn dump(
        &mut self,
        action: impl Into<String>,
        message: &RouteNetlinkMessage,
    ) -> Result<Answers, NetlinkError> {
        let mut batch = Batch::default();
        batch.push_dump(action, message);
        self.run(batch)
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> Result<(), NetlinkError> {
        buffer.clear();
        loop {
            match self.inner.recv(buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(NetlinkError::Socket {
                        action: "receive",
                        source,
                    });
                }
            }
        }
    }
}

/// A received message.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), NetlinkError> {
        let header = bytes.get(..HEADER).ok_or(NetlinkError::Malformed)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = bytes.get(HEADER..length).ok_or(NetlinkError::Malformed)?;
        let message = Self {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            body,
        };
        let next = length.next_multiple_of(4).min(bytes.len());
        Ok((message, &bytes[next..]))
    }

    /// Adds the message to the answer; returns whether that is complete now.
    fn take_into(&self, answer: &mut Answer) -> Result<bool, NetlinkError> {
        if self.kind != MESSAGE_ERROR && self.kind != MESSAGE_DONE {
            answer.replies.push((self.kind, self.body.to_vec()));
            return Ok(false);
        }
        let code = match self.body.get(..4) {
            Some(code) => i32::from_ne_bytes([code[0], code[1], code[2], code[3]]),
            None if self.kind == MESSAGE_DONE => 0,
            None => return Err(NetlinkError::Malformed),
        };
        if code != 0 {
            answer.outcome = Err(Refusal {
                errno: Errno::from_raw(code.saturating_neg()),
                reason: self.reason(),
            });
        }
        Ok(true)
    }

    /// `NLMSGERR_ATTR_MSG` behind the error number and the request's header.
    fn reason(&self) -> Option<String> {
        if self.kind != MESSAGE_ERROR || self.flags & FLAG_ACK_TLVS == 0 {
            return None;
        }
        let mut start = 4 + HEADER;
        if self.flags & FLAG_CAPPED == 0 {
            let length = self.body.get(4..8)?;
            let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]);
            start = 4 + (length as usize).next_multiple_of(4);
        }
        let attributes = NlasIterator::new(self.body.get(start..)?);
        let mut attributes = attributes.filter_map(Result::ok);
        let message = attributes.find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE)?;
        let text = message.value();
        let end = text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(text.len());
        Some(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}

/// Adds `first` to the sequence numbers of all messages.
fn number_from(mut bytes: &mut [u8], first: u32) {
    while bytes.len() >= HEADER {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let length = u32::from_ne_bytes(word(0)) as usize;
        let sequence = u32::from_ne_bytes(word(8)).wrapping_add(first);
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes = &mut bytes[length.next_multiple_of(4)..];
    }
}

#[cfg(test)]
mod tests;
