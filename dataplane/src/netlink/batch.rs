//! A transaction as one netlink batch, with the way back from a message to the
//! operation, and the element, that it carries.

use std::ops::Range;

use crate::netlink::attr::Writer;
use crate::netlink::encode;
use crate::netlink::uapi::{
    self, LIST_ELEM, SUBSYS, chain, data, elem, elem_list, msg, rule, set, set_flags, table, udata,
};
use crate::object::{Chain, Element, Key, SetKind, SetSpec, TableId, Value, shortened};
use crate::rule::Rule;
use crate::transaction::{Operation, Transaction};

/// `NLM_F_*` flags.
pub(super) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// On an error: the kernel's text and offset follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
    /// On a dump: it was interrupted by a change.
    pub(crate) const DUMP_INTR: u16 = 0x10;
}

/// Length of `struct nlmsghdr`.
pub(super) const NLMSG_HEADER: usize = 16;
/// Length of `struct nlmsghdr` and `struct nfgenmsg`.
pub(super) const HEADER: usize = NLMSG_HEADER + 4;

/// Elements of one message stay below this many bytes: they are nested, and the
/// length of an attribute is 16 bits.
const ELEMENTS_MAX: usize = 48 << 10;

/// A transaction, encoded.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// By sequence number, from 1; number 0 opens the batch.
    messages: Vec<Message>,
}

/// What a message of the batch carries.
#[derive(Debug)]
struct Message {
    /// Index into [`Transaction::operations`].
    operation: usize,
    /// Which of its elements, and where each begins in the message.
    first_element: usize,
    offsets: Vec<u32>,
}

impl Batch {
    /// Encodes the transaction.
    pub fn new(transaction: &Transaction) -> Self {
        let capacity = 4096 + 96 * transaction.element_operations();
        let mut batch = Self {
            bytes: Vec::with_capacity(capacity),
            messages: Vec::with_capacity(transaction.operations.len() + 1),
        };
        batch.border(uapi::batch::BEGIN, 0);
        let mut last = 0;
        for (index, operation) in transaction.operations.iter().enumerate() {
            last = batch.bytes.len();
            batch.operation(index, operation);
        }
        batch.acknowledge_last(last);
        let seq = batch.next_seq();
        batch.border(uapi::batch::END, seq);
        batch
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The operation, and the element of it if one is to blame, behind an error at
    /// `offset` of the message with that sequence number.
    pub(super) fn culprit(&self, seq: u32, offset: Option<u32>) -> Option<(usize, Option<usize>)> {
        let index = usize::try_from(seq).ok()?.checked_sub(1)?;
        let message = self.messages.get(index)?;
        let element = offset
            .filter(|_| !message.offsets.is_empty())
            .and_then(|offset| {
                let after = message.offsets.partition_point(|begin| *begin <= offset);
                Some(message.first_element + after.checked_sub(1)?)
            });
        Some((message.operation, element))
    }

    /// The elements that the message with that sequence number carries.
    pub(super) fn elements(&self, seq: u32) -> Option<Range<usize>> {
        let message = self
            .messages
            .get(usize::try_from(seq).ok()?.checked_sub(1)?)?;
        Some(message.first_element..message.first_element + message.offsets.len())
    }

    /// Sequence number of the message whose acknowledgement ends the batch.
    pub(super) fn last_seq(&self) -> u32 {
        u32::try_from(self.messages.len()).expect("fewer than 4 G messages")
    }

    fn next_seq(&self) -> u32 {
        self.last_seq() + 1
    }

    /// Asks for an acknowledgement of the last message, which says that all were taken.
    /// Those of `NFNL_MSG_BATCH_END` exist from kernel 6.10 on only.
    fn acknowledge_last(&mut self, mut start: usize) {
        loop {
            let len = &self.bytes[start..start + 4];
            let len = u32::from_ne_bytes(len.try_into().expect("four bytes")) as usize;
            if start + len >= self.bytes.len() {
                break;
            }
            start += len;
        }
        let flags = &mut self.bytes[start + 6..start + 8];
        let acknowledged = u16::from_ne_bytes([flags[0], flags[1]]) | flag::ACK;
        flags.copy_from_slice(&acknowledged.to_ne_bytes());
    }

    fn border(&mut self, ty: u16, seq: u32) {
        let start = begin(&mut self.bytes, ty, flag::REQUEST, seq, 0, SUBSYS);
        end(&mut self.bytes, start);
    }

    fn message(
        &mut self,
        operation: usize,
        ty: u8,
        flags: u16,
        table: &TableId,
        fill: impl FnOnce(&mut Writer<'_>),
    ) {
        let seq = self.next_seq();
        let start = begin(
            &mut self.bytes,
            SUBSYS << 8 | u16::from(ty),
            flag::REQUEST | flags,
            seq,
            table.family.number(),
            0,
        );
        fill(&mut Writer(&mut self.bytes));
        end(&mut self.bytes, start);
        self.messages.push(Message {
            operation,
            first_element: 0,
            offsets: Vec::new(),
        });
    }

    fn operation(&mut self, index: usize, operation: &Operation) {
        match operation {
            Operation::AddTable { table } => {
                self.message(index, msg::NEWTABLE, flag::CREATE, table, |w| {
                    w.string(table::NAME, table.name.as_str());
                    w.u32(table::FLAGS, 0);
                });
            }
            Operation::DeleteTable { table } => {
                self.message(index, msg::DELTABLE, 0, table, |w| {
                    w.string(table::NAME, table.name.as_str());
                });
            }
            Operation::AddChain { table, chain, spec } => {
                self.message(index, msg::NEWCHAIN, flag::CREATE, table, |w| {
                    w.string(chain::TABLE, table.name.as_str());
                    w.string(chain::NAME, chain.as_str());
                    add_chain(spec, w);
                });
            }
            Operation::DeleteChain { table, chain } => {
                self.message(index, msg::DELCHAIN, 0, table, |w| {
                    w.string(chain::TABLE, table.name.as_str());
                    w.string(chain::NAME, chain.as_str());
                });
            }
            Operation::FlushChain { table, chain } => {
                self.message(index, msg::DELRULE, 0, table, |w| {
                    w.string(rule::TABLE, table.name.as_str());
                    w.string(rule::CHAIN, chain.as_str());
                });
            }
            Operation::AddRule { table, chain, rule } => {
                self.message(
                    index,
                    msg::NEWRULE,
                    flag::CREATE | flag::APPEND,
                    table,
                    |w| {
                        w.string(rule::TABLE, table.name.as_str());
                        w.string(rule::CHAIN, chain.as_str());
                        add_rule(rule, w);
                    },
                );
            }
            Operation::AddSet { table, set, spec } => {
                // The kernel wants an ID, unique in the batch, for sets that rules
                // of the batch refer to by it; ours refer by name.
                let id = self.next_seq();
                self.message(index, msg::NEWSET, flag::CREATE, table, |w| {
                    w.string(set::TABLE, table.name.as_str());
                    w.string(set::NAME, set.as_str());
                    w.u32(set::ID, id);
                    add_set(spec, w);
                });
            }
            Operation::DeleteSet { table, set } => {
                self.message(index, msg::DELSET, 0, table, |w| {
                    w.string(set::TABLE, table.name.as_str());
                    w.string(set::NAME, set.as_str());
                });
            }
            Operation::AddElements {
                table,
                set,
                elements,
            } => {
                self.elements_of(
                    index,
                    msg::NEWSETELEM,
                    flag::CREATE,
                    table,
                    set.as_str(),
                    elements,
                );
            }
            Operation::DeleteElements {
                table,
                set,
                elements,
            } => {
                self.elements_of(index, msg::DELSETELEM, 0, table, set.as_str(), elements);
            }
        }
    }

    /// As many messages as the elements need.
    fn elements_of(
        &mut self,
        operation: usize,
        ty: u8,
        flags: u16,
        table: &TableId,
        set: &str,
        elements: &[(Key, Element)],
    ) {
        let with_value = ty == msg::NEWSETELEM;
        let mut first_element = 0;
        while first_element < elements.len() {
            let mut offsets = Vec::new();
            let message = self.bytes.len();
            self.message(operation, ty, flags, table, |w| {
                w.string(elem_list::TABLE, table.name.as_str());
                w.string(elem_list::SET, set);
                w.nest(elem_list::ELEMENTS, |w| {
                    let start = w.0.len();
                    for (key, element) in &elements[first_element..] {
                        if w.0.len() - start > ELEMENTS_MAX {
                            break;
                        }
                        let offset = w.0.len() - message;
                        offsets.push(u32::try_from(offset).expect("within a message"));
                        write_element(key, element, with_value, w);
                    }
                });
            });
            let count = offsets.len();
            let message = self.messages.last_mut().expect("pushed above");
            message.first_element = first_element;
            message.offsets = offsets;
            first_element += count;
        }
    }
}

/// Appends the headers of a message and returns where it starts.
pub(super) fn begin(
    bytes: &mut Vec<u8>,
    ty: u16,
    flags: u16,
    seq: u32,
    family: u8,
    res_id: u16,
) -> usize {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&ty.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&seq.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&res_id.to_be_bytes());
    start
}

/// Fills in the length of the message that starts there.
pub(super) fn end(bytes: &mut [u8], start: usize) {
    let len = u32::try_from(bytes.len() - start).expect("a message within 4 GiB");
    bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

fn add_chain(spec: &Chain, w: &mut Writer<'_>) {
    if let Some(base) = spec.base {
        w.nest(chain::HOOK, |w| {
            w.u32(uapi::hook::HOOKNUM, base.hook.number());
            w.u32(uapi::hook::PRIORITY, base.priority.cast_unsigned());
        });
        w.u32(chain::POLICY, uapi::verdict::ACCEPT.cast_unsigned());
        w.string(chain::TYPE, base.kind.name());
    }
    if let Some(comment) = &spec.comment {
        w.bytes(chain::USERDATA, &comment_udata(udata::COMMENT, comment));
    }
}

fn add_rule(rule: &Rule, w: &mut Writer<'_>) {
    w.nest(rule::EXPRESSIONS, |w| encode::rule(rule, w));
    if let Some(comment) = &rule.comment {
        w.bytes(rule::USERDATA, &comment_udata(udata::COMMENT, comment));
    }
}

fn add_set(spec: &SetSpec, w: &mut Writer<'_>) {
    let mut flags = 0;
    let len = |ty: crate::datatype::Type| u32::try_from(ty.size()).expect("at most 64 bytes");
    match spec.kind {
        SetKind::Set => {}
        SetKind::Map(data) => {
            flags |= set_flags::MAP;
            w.u32(set::DATA_TYPE, data.id());
            w.u32(set::DATA_LEN, len(data));
        }
        SetKind::VerdictMap => {
            flags |= set_flags::MAP;
            w.u32(set::DATA_TYPE, set::VERDICT_TYPE);
            w.u32(set::DATA_LEN, 0);
        }
    }
    if spec.interval {
        flags |= set_flags::INTERVAL;
    }
    if let Some(dynamic) = spec.dynamic {
        flags |= set_flags::EVAL | set_flags::TIMEOUT;
        if dynamic.timeout_ms > 0 {
            w.u64(set::TIMEOUT, dynamic.timeout_ms);
        }
        w.nest(set::DESC, |w| w.u32(set::DESC_SIZE, dynamic.size));
    }
    w.u32(set::FLAGS, flags);
    w.u32(set::KEY_TYPE, spec.key.id());
    w.u32(set::KEY_LEN, len(spec.key));
    w.bytes(set::USERDATA, &set_udata(spec));
}

/// Byte order of the key, which `nft` needs to print single integers and names, and
/// the comment.
fn set_udata(spec: &SetSpec) -> Vec<u8> {
    const HOST: u32 = 1;
    const NETWORK: u32 = 2;
    let host = spec
        .key
        .fields()
        .all(crate::datatype::DataType::is_host_order);
    let order = if host { HOST } else { NETWORK };
    let mut bytes = vec![udata::SET_KEYBYTEORDER, 4];
    bytes.extend_from_slice(&order.to_ne_bytes());
    if let Some(comment) = &spec.comment {
        bytes.extend(comment_udata(udata::SET_COMMENT, comment));
    }
    bytes
}

/// One entry: type, length with the final zero, text.
fn comment_udata(ty: u8, comment: &str) -> Vec<u8> {
    let text = shortened(comment).as_bytes();
    let len = u8::try_from(text.len() + 1).expect("at most 128");
    [&[ty, len], text, &[0]].concat()
}

fn write_element(key: &Key, element: &Element, with_value: bool, w: &mut Writer<'_>) {
    w.nest(LIST_ELEM, |w| {
        w.nest(elem::KEY, |w| w.bytes(data::VALUE, key));
        if element.interval_end {
            w.u32(elem::FLAGS, elem::INTERVAL_END);
        }
        if !with_value {
            return;
        }
        match &element.value {
            Value::None => {}
            Value::Data(bytes) => w.nest(elem::DATA, |w| w.bytes(data::VALUE, bytes)),
            Value::Verdict(verdict) => {
                w.nest(elem::DATA, |w| encode::encode_verdict(verdict, w));
            }
        }
        if let Some(comment) = &element.comment {
            w.bytes(elem::USERDATA, &comment_udata(udata::COMMENT, comment));
        }
    });
}
