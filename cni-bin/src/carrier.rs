//! When a pod's link carries packets, which is not when it is up.
//!
//! A veth has a carrier as soon as both ends are up, but the kernel leaves the rest to its
//! link watch: the queue of the end that was up first, the state of the bridge port that it
//! is, and with the first port the queue of the bridge. What is sent before that work has
//! run is dropped, and a runtime may be faster: one first packet in a hundred was lost.
//!
//! `RTM_GETLINK` has the work for a link done before it answers (Linux 6.9,
//! `linkwatch_sync_dev`). So the send that sets the pod's end up ends with questions about
//! all links of the way. Those of the host have their own namespace in the question, by the
//! number that the pod's namespace knows it by: the kernel gave one when it made the pair,
//! and the first is 0. Where it is another, or the kernel is older, the host is asked
//! directly, until the links are up or [`PATIENCE`] is over.

use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::link;
use crate::netlink::{Answer, Batch, NetlinkError, Socket};

/// How long an older kernel's link watch is waited for, and how often it is asked. It takes
/// a few milliseconds; a bridge with spanning tree takes half a minute, which nobody waits.
const PATIENCE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(1);

/// The number of the first namespace that another one knows.
const FIRST_NAMESPACE: i32 = 0;

/// The links between a pod and its node.
pub struct Way<'a> {
    /// Index of the pod's end in its namespace.
    pub pod_index: u32,
    /// Name of the host's end.
    pub port: &'a str,
    /// Name of the bridge that it is a port of.
    pub bridge: Option<&'a str>,
}

impl Way<'_> {
    /// Adds the questions to a batch for the pod's namespace.
    pub fn push_to(&self, batch: &mut Batch) {
        let mut pod = LinkMessage::default();
        pod.header.index = self.pod_index;
        push_question(batch, "the pod's end", pod);
        self.push_host_questions(batch, Some(FIRST_NAMESPACE));
    }

    /// Returns when the links carry packets. `answers` are those to the questions.
    pub fn wait<'a>(
        &self,
        answers: impl Iterator<Item = &'a Answer>,
        host: &mut Socket,
    ) -> Result<(), NetlinkError> {
        if are_up(answers)? {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            let mut batch = Batch::default();
            self.push_host_questions(&mut batch, None);
            if are_up(host.run(batch)?.iter())? || started.elapsed() > PATIENCE {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }

    /// The port before the bridge, which has a carrier when one of its ports forwards.
    fn push_host_questions(&self, batch: &mut Batch, namespace: Option<i32>) {
        for name in [self.port].into_iter().chain(self.bridge) {
            let mut link = link::named(name);
            let namespace = namespace.map(LinkAttribute::IfNetnsId);
            link.attributes.extend(namespace);
            push_question(batch, name, link);
        }
    }
}

fn push_question(batch: &mut Batch, name: &str, mut link: LinkMessage) {
    link.attributes.push(link::without_counters());
    let action = format!("ask for the state of {name}");
    batch.push(action, 0, &RouteNetlinkMessage::GetLink(link));
}

/// Whether all answers are there and say so.
fn are_up<'a>(mut answers: impl Iterator<Item = &'a Answer>) -> Result<bool, NetlinkError> {
    answers.try_fold(true, |all, answer| {
        let links = answer.links()?;
        let is_up = links.first().is_some_and(|link| link.operational);
        Ok(all && answer.outcome.is_ok() && is_up)
    })
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::netlink::Refusal;

    /// An answer with one `RTM_NEWLINK`, whose only attribute is `IFLA_OPERSTATE`.
    fn answer(state: u8) -> Answer {
        let mut link = vec![0; 16];
        link.extend([5, 0, 16, 0, state, 0, 0, 0]);
        Answer {
            action: "test".into(),
            outcome: Ok(()),
            replies: vec![(16, link)],
        }
    }

    fn refused() -> Answer {
        let refusal = Refusal {
            errno: Errno::ENODEV,
            reason: None,
        };
        Answer {
            action: "test".into(),
            outcome: Err(refusal),
            replies: Vec::new(),
        }
    }

    #[test]
    fn links_are_up_when_each_of_them_says_so_and_a_refusal_says_nothing() {
        let up = |answers: &[Answer]| are_up(answers.iter()).unwrap();
        assert!(up(&[answer(6), answer(6)]));
        // Unknown, not present, down, down below, testing, dormant (RFC 2863).
        for other in 0..6 {
            assert!(!up(&[answer(6), answer(other)]), "{other}");
        }
        assert!(!up(&[answer(6), refused()]));
        let silent = Answer {
            replies: Vec::new(),
            ..answer(6)
        };
        assert!(!up(&[silent]));
    }

    #[test]
    fn the_host_is_asked_in_its_own_namespace_or_by_its_number_port_first() {
        let way = Way {
            pod_index: 2,
            port: "trm0",
            bridge: Some("cbr0"),
        };
        let mut batch = Batch::default();
        way.push_to(&mut batch);
        assert_eq!(batch.count(), 3);
        let mut directly = Batch::default();
        way.push_host_questions(&mut directly, None);
        assert_eq!(directly.count(), 2);
        let routed = Way {
            bridge: None,
            ..way
        };
        let mut batch = Batch::default();
        routed.push_to(&mut batch);
        assert_eq!(batch.count(), 2);
    }
}
