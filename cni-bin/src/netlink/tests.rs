use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::*;

impl Batch {
    /// Each message in hexadecimal digits, as if it were sent alone, with the number 1.
    pub(crate) fn printed(&self) -> Vec<String> {
        let mut rest = self.bytes.as_slice();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let (_, behind) = Message::split(rest).unwrap();
            let mut bytes = rest[..rest.len() - behind.len()].to_vec();
            bytes[8..12].copy_from_slice(&1_u32.to_ne_bytes());
            let flags = u16::from_ne_bytes([bytes[FLAGS], bytes[FLAGS + 1]]) | NLM_F_ACK;
            bytes[FLAGS..FLAGS + 2].copy_from_slice(&flags.to_ne_bytes());
            messages.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
            rest = behind;
        }
        messages
    }
}

fn message(sequence: u32, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn answer(bytes: &[u8]) -> (Answer, bool) {
    let mut answer = Answer {
        action: "test".into(),
        outcome: Ok(()),
        replies: Vec::new(),
    };
    let (message, rest) = Message::split(bytes).unwrap();
    assert!(rest.is_empty());
    let complete = message.take_into(&mut answer).unwrap();
    (answer, complete)
}

#[test]
fn a_batch_is_a_row_of_aligned_messages_with_their_own_numbers() {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName("abcde".into()));
    let mut batch = Batch::default();
    batch.push("one", 0, &RouteNetlinkMessage::GetLink(link.clone()));
    batch.push("two", 0x600, &RouteNetlinkMessage::NewLink(link));
    batch.acknowledge_last();
    number_from(&mut batch.bytes, 40);
    let (first, rest) = Message::split(&batch.bytes).unwrap();
    let (second, rest) = Message::split(rest).unwrap();
    assert!(rest.is_empty());
    // The last alone asks for an acknowledgement.
    assert_eq!((first.kind, first.sequence, first.flags), (18, 40, 1));
    assert_eq!(
        (second.kind, second.sequence, second.flags),
        (16, 41, 0x605)
    );
}

#[test]
fn a_refusal_carries_the_kernels_words() {
    let mut body = (-libc_eexist()).to_ne_bytes().to_vec();
    body.extend([0; HEADER]);
    body.extend([8, 0, 1, 0, b'n', b'o', b'!', 0]);
    let bytes = message(1, MESSAGE_ERROR, FLAG_CAPPED | FLAG_ACK_TLVS, &body);
    let (answer, complete) = answer(&bytes);
    assert!(complete);
    let refusal = answer.outcome.unwrap_err();
    assert_eq!(refusal.errno, Errno::EEXIST);
    assert_eq!(refusal.to_string(), "File exists (no!)");
}

fn libc_eexist() -> i32 {
    Errno::EEXIST as i32
}

#[test]
fn an_acknowledgement_and_the_end_of_a_dump_complete_an_answer() {
    let (ack, complete) = answer(&message(1, MESSAGE_ERROR, FLAG_CAPPED, &[0; 20]));
    assert!(complete && ack.outcome.is_ok());
    let (done, complete) = answer(&message(1, MESSAGE_DONE, 2, &[0; 4]));
    assert!(complete && done.outcome.is_ok());
    let (data, complete) = answer(&message(1, 16, 2, &[0; 16]));
    assert!(!complete && data.replies.len() == 1);
}

#[test]
fn what_is_cut_off_is_malformed_and_never_a_panic() {
    let whole = message(1, MESSAGE_ERROR, FLAG_ACK_TLVS, &[0xff; 24]);
    for end in 0..whole.len() {
        assert!(Message::split(&whole[..end]).is_err(), "{end}");
    }
    for length in 0..40 {
        for kind in [16, 20, 24, MESSAGE_ERROR, MESSAGE_DONE] {
            let bytes = message(1, kind, FLAG_ACK_TLVS, &vec![0xff; length]);
            let (message, _) = Message::split(&bytes).unwrap();
            let mut answer = Answer {
                action: String::new(),
                outcome: Ok(()),
                replies: Vec::new(),
            };
            // Whether it is an error depends on the length; that it returns is what counts.
            drop(message.take_into(&mut answer));
            drop((
                answer.links(),
                answer.addresses(),
                answer.routes(),
                answer.vlans(0xffff_ffff),
            ));
        }
    }
}

/// An `RTM_NEWLINK` of the bridge family as the kernel answers it (`br_fill_ifvlaninfo`).
#[cfg(target_endian = "little")]
#[test]
fn the_vlans_of_a_port_are_read_with_their_ranges_and_those_of_others_are_not() {
    let body = |port: u8, infos: &[[u8; 4]]| {
        let mut body = vec![7, 0, 0, 0, port, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        body.extend([8, 0, 3, 0, b't', b'r', b'm', 0]);
        body.extend([u8::try_from(4 + 8 * infos.len()).unwrap(), 0, 26, 0]);
        for info in infos {
            body.extend([8, 0, 2, 0]);
            body.extend(info);
        }
        (16, body)
    };
    let answer = Answer {
        action: "test".into(),
        outcome: Ok(()),
        replies: vec![
            body(
                4,
                &[
                    [6, 0, 7, 0],
                    [8, 0, 101, 0],
                    [16, 0, 103, 0],
                    [0, 0, 0xfe, 0x0f],
                ],
            ),
            body(5, &[[6, 0, 1, 0]]),
        ],
    };
    let vlans = |port| {
        let vlans = answer.vlans(port).unwrap().into_iter();
        vlans
            .map(|port| (port.vlan, port.is_native))
            .collect::<Vec<_>>()
    };
    let expected = [
        (7, true),
        (101, false),
        (102, false),
        (103, false),
        (4094, false),
    ];
    assert_eq!(vlans(4), expected);
    assert_eq!(vlans(5), [(1, true)]);
    assert_eq!(vlans(6), []);
}
