//! Bandwidth limits of a pod's port.
//!
//! ```text
//!   to the pod     trm0123456789ab  tbf
//!   from the pod   trm0123456789ab  ingress, redirects to
//!                  tri0123456789ab  (ifb) tbf, and back to where it came from
//! ```
//!
//! As the reference bandwidth plugin does it: a queue that waits for tokens instead of
//! dropping what comes too early, in both directions. Only the kernel's side of an interface
//! that packets leave by has such a queue, so what the pod sends takes a detour over a device
//! that does nothing else.

use std::net::IpAddr;

use dataplane::attachment::{Attachment, Bandwidth, Rate};
use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::link;
use crate::netlink::{Batch, NetlinkError, Socket};

/// How long a packet may wait for tokens, in parts of a second: longer queues delay
/// everything behind them and gain no throughput.
const LATENCY: u64 = 40;
/// Length of an Ethernet header, which counts.
const ETHERNET: u32 = 14;
/// The largest packet that the pod's or the host's stack leaves to others to cut
/// (`GSO_LEGACY_MAX_SIZE`).
const LARGEST: u32 = 65_536;

/// `TCA_KIND`, `TCA_OPTIONS`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const LINKLAYER_ETHERNET: u8 = 1;
/// `TCA_U32_SEL`, `TCA_U32_ACT`, and the first action in it.
const U32_SELECTOR: u16 = 5;
const U32_ACTION: u16 = 7;
const FIRST: u16 = 1;
/// `TCA_ACT_KIND`, `TCA_ACT_OPTIONS`.
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
/// `TCA_MIRRED_PARMS`, `TCA_EGRESS_REDIR`, `TC_ACT_STOLEN`.
const MIRRED_PARMS: u16 = 2;
const EGRESS_REDIRECT: i32 = 1;
const STOLEN: i32 = 4;
/// `TC_U32_TERMINAL`.
const TERMINAL: u8 = 1;
/// `ETH_P_ALL`.
const ALL: u16 = 3;
/// `RTM_NEWQDISC`, `RTM_NEWTFILTER`.
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;

/// The limits with buckets that hold a packet: one that holds less never lets it through.
pub fn usable(bandwidth: Bandwidth, mtu: u32) -> Bandwidth {
    let rate = |rate: Rate| Rate {
        burst: rate.burst.max(mtu + ETHERNET),
        ..rate
    };
    Bandwidth {
        ingress: bandwidth.ingress.map(rate),
        egress: bandwidth.egress.map(rate),
    }
}

/// A port and its limits.
pub struct Shaper<'a> {
    /// Name of the port.
    pub port: &'a str,
    /// Name of the device for what the pod sends, [`AttachmentKey::ifb_name`](dataplane::attachment::AttachmentKey::ifb_name).
    pub ifb: String,
    /// The limits.
    pub bandwidth: Bandwidth,
}

impl<'a> Shaper<'a> {
    /// The limits of an attachment's port, if it has any.
    pub fn of(attachment: &'a Attachment) -> Option<Self> {
        Some(Self {
            port: &attachment.host_ifname,
            ifb: attachment.key.ifb_name(),
            bandwidth: attachment.bandwidth?,
        })
    }

    /// Adds the messages that limit the port, which has the index `port`. The device for what
    /// the pod sends gets the next one.
    pub fn push_to(&self, batch: &mut Batch, port: u32, ips: &[IpAddr], mtu: u32) {
        if let Some(rate) = self.bandwidth.ingress {
            self.push_tbf(batch, port, self.port, rate);
        }
        if let Some(rate) = self.bandwidth.egress {
            let ifb = port + 1;
            self.push_device(batch, ifb, ips, mtu);
            self.push_tbf(batch, ifb, &self.ifb, rate);
            self.push_redirection(batch, port, ifb);
        }
    }

    fn push_device(&self, batch: &mut Batch, index: u32, ips: &[IpAddr], mtu: u32) {
        let name = &self.ifb;
        let mut ifb = link::named(name);
        ifb.header.index = index;
        ifb.attributes.push(LinkAttribute::Mtu(mtu));
        ifb.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let action = format!("create {name} (does this kernel have ifb?)");
        batch.push(action, create, &RouteNetlinkMessage::NewLink(ifb));
        let mut up = link::named(name);
        // It carries frames of others and speaks no IP itself.
        up.attributes.extend(link::no_automatic_ipv6(ips));
        link::set_up(&mut up);
        let action = format!("set {name} up");
        batch.push(action, 0, &RouteNetlinkMessage::NewLink(up));
    }

    fn push_tbf(&self, batch: &mut Batch, index: u32, name: &str, rate: Rate) {
        let mut message = tc(index, TcHandle::ROOT, "tbf");
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message
            .attributes
            .push(nested(OPTIONS, &Tbf::new(rate).attributes()));
        let action = format!("limit {name} to {} bytes a second", rate.rate);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        batch.push(action, flags, &message);
    }

    fn push_redirection(&self, batch: &mut Batch, port: u32, ifb: u32) {
        let mut qdisc = tc(port, TcHandle::INGRESS, "ingress");
        qdisc.header.handle = INGRESS_QDISC;
        let action = format!("catch what {} receives", self.port);
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
        batch.push(action, create, &message);

        let mut filter = tc(port, INGRESS_QDISC, "u32");
        filter.header.info = u32::from(FIRST) << 16 | u32::from(ALL.to_be());
        // One key that matches everything.
        let mut selector = vec![TERMINAL, 0, 1, 0];
        selector.resize(16 + 16, 0);
        let mut parms = Vec::new();
        for number in [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT] {
            parms.extend_from_slice(&number.to_ne_bytes());
        }
        parms.extend_from_slice(&ifb.to_ne_bytes());
        let action = emit(&[
            DefaultNla::new(ACTION_KIND, b"mirred\0".to_vec()),
            DefaultNla::new(
                ACTION_OPTIONS,
                emit(&[DefaultNla::new(MIRRED_PARMS, parms)]),
            ),
        ]);
        let options = [
            DefaultNla::new(U32_SELECTOR, selector),
            DefaultNla::new(U32_ACTION, emit(&[DefaultNla::new(FIRST, action)])),
        ];
        filter.attributes.push(nested(OPTIONS, &options));
        let action = format!("lead what {} receives over {}", self.port, self.ifb);
        let message = RouteNetlinkMessage::NewTrafficFilter(filter);
        batch.push(action, create, &message);
    }

    /// How the port differs from its limits, a line each.
    pub fn differences(&self, socket: &mut Socket) -> Result<Vec<String>, NetlinkError> {
        let mut differences = Vec::new();
        let directions = [
            (self.port, self.bandwidth.ingress),
            (&self.ifb, self.bandwidth.egress),
        ];
        for (name, rate) in directions {
            let Some(rate) = rate else { continue };
            let Some(index) = link::index(name) else {
                differences.push(format!("{name} does not exist"));
                continue;
            };
            let wanted = Tbf::new(rate);
            let query = TcMessage::with_index(index.cast_signed());
            let query = RouteNetlinkMessage::GetQueueDiscipline(query);
            let answers = socket.dump(format!("list queues of {name}"), &query)?;
            answers.all_done()?;
            let replies = &answers.get(0).replies;
            let found = replies.iter().filter(|(kind, _)| *kind == NEW_QDISC);
            let found = found.filter_map(|(_, body)| Tbf::of(index, body));
            if !found
                .into_iter()
                .any(|tbf| (tbf.rate, tbf.limit) == (wanted.rate, wanted.limit))
            {
                differences.push(format!(
                    "{name} is not limited to {} bytes a second",
                    rate.rate
                ));
            }
        }
        if self.bandwidth.egress.is_some() && !self.is_redirected(socket)? {
            differences.push(format!("{} does not lead over {}", self.port, self.ifb));
        }
        Ok(differences)
    }

    fn is_redirected(&self, socket: &mut Socket) -> Result<bool, NetlinkError> {
        let (Some(port), Some(ifb)) = (link::index(self.port), link::index(&self.ifb)) else {
            return Ok(false);
        };
        let mut query = TcMessage::with_index(port.cast_signed());
        query.header.parent = INGRESS_QDISC;
        let query = RouteNetlinkMessage::GetTrafficFilter(query);
        let answers = socket.dump(format!("list filters of {}", self.port), &query)?;
        // Without an ingress qdisc there is nothing to list, and old kernels call it an error.
        let replies = &answers.get(0).replies;
        let filters = replies.iter().filter(|(kind, _)| *kind == NEW_FILTER);
        Ok(filters.into_iter().any(|(_, body)| redirects_to(body, ifb)))
    }
}

/// The ingress qdisc's own handle.
const INGRESS_QDISC: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// Settings of a token bucket filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tbf {
    rate: u64,
    limit: u32,
    burst: u32,
}

impl Tbf {
    fn new(rate: Rate) -> Self {
        // What arrives in the time that it may wait, behind the largest packet that is let
        // through in one piece.
        let limit = rate.rate / LATENCY + u64::from(rate.burst.min(LARGEST));
        Self {
            rate: rate.rate,
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            burst: rate.burst,
        }
    }

    fn attributes(self) -> Vec<DefaultNla> {
        let rate32 = u32::try_from(self.rate).unwrap_or(u32::MAX);
        // `struct tc_tbf_qopt`: rate and peak rate, each a `struct tc_ratespec` with its rate
        // last; limit, buffer, MTU. The bucket is given in bytes, further down.
        let mut parms = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
        parms.extend_from_slice(&rate32.to_ne_bytes());
        parms.resize(24, 0);
        parms.extend_from_slice(&self.limit.to_ne_bytes());
        parms.resize(36, 0);
        let mut attributes = vec![
            DefaultNla::new(TBF_PARMS, parms),
            DefaultNla::new(TBF_BURST, self.burst.to_ne_bytes().to_vec()),
        ];
        if rate32 == u32::MAX {
            let rate = self.rate.to_ne_bytes().to_vec();
            attributes.push(DefaultNla::new(TBF_RATE64, rate));
        }
        attributes
    }

    /// The settings in an `RTM_NEWQDISC`, if it is of that device and a tbf. The kernel tells
    /// the bucket in units of time, which are not read.
    fn of(index: u32, body: &[u8]) -> Option<Self> {
        if word(body, 4)? != index || attribute(body.get(20..)?, KIND)? != b"tbf\0" {
            return None;
        }
        let options = attribute(&body[20..], OPTIONS)?;
        let parms = attribute(options, TBF_PARMS)?;
        let rate64 = attribute(options, TBF_RATE64).and_then(|rate| rate.try_into().ok());
        Some(Self {
            rate: match rate64 {
                Some(rate) => u64::from_ne_bytes(rate),
                None => word(parms, 8)?.into(),
            },
            limit: word(parms, 24)?,
            burst: 0,
        })
    }
}

/// Whether an `RTM_NEWTFILTER` is one that leads all to that device.
fn redirects_to(body: &[u8], ifb: u32) -> bool {
    let target = || {
        let options = attribute(body.get(20..)?, OPTIONS)?;
        let action = attribute(attribute(options, U32_ACTION)?, FIRST)?;
        let parms = attribute(attribute(action, ACTION_OPTIONS)?, MIRRED_PARMS)?;
        word(parms, 24)
    };
    target() == Some(ifb)
}

fn tc(index: u32, parent: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> TcAttribute {
    TcAttribute::Other(DefaultNla::new(kind, emit(attributes)))
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut attributes = NlasIterator::new(bytes).filter_map(Result::ok);
    let found = attributes.find(|attribute| attribute.kind() == kind)?;
    let length = found.value_length();
    found.into_inner().get(4..4 + length)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}
