//! Many ipBlocks, as the kernel would look addresses up in them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Change, NODE, Node};
use crate::model::policy::{Peer, Peers, Ports, Rule};
use crate::model::{LabelSelector, Labels, NetworkPolicy, Pod, PodPhase};
use crate::verdict::{Flow, Transport};
use proxy::model::{ObjectKey, Protocol};

const POD: &str = "10.88.0.2";

/// The same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        // Knuth's MMIX generator; the upper bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let high = u32::try_from(self.0 >> 32).expect("32 bits");
        high % limit
    }

    /// Inside 172.16.0.0/12, of any size, so that many contain each other.
    fn net(&mut self) -> IpNet {
        let length = u8::try_from(13 + self.below(20)).expect("up to 32");
        let address = Ipv4Addr::from((172 << 24) + (16 << 16) + self.below(1 << 20));
        let net = Ipv4Net::new(address, length).expect("a length up to 32");
        IpNet::from(net).trunc()
    }
}

fn node() -> Node {
    let mut node = Node::new();
    node.change(Change::Pod(Box::new(Pod {
        key: ObjectKey::new("x", "web"),
        uid: String::new(),
        labels: Labels::new(),
        node: Some(NODE.into()),
        host_network: false,
        ips: vec![POD.parse().expect("an address")],
        ports: Vec::new(),
        phase: PodPhase::Live,
        ready: true,
        terminating: false,
        created: 0,
        weight: None,
    })));
    node
}

fn policy(blocks: Vec<Peer>) -> Change {
    let rule = Rule {
        peers: Peers::Of(blocks),
        ports: Ports::Any,
    };
    Change::Policy(Box::new(NetworkPolicy {
        key: ObjectKey::new("x", "blocks"),
        uid: String::new(),
        pod_selector: LabelSelector::everything(),
        ingress: Some(vec![rule]),
        egress: None,
        audit: false,
        problems: Vec::new(),
        notes: Vec::new(),
    }))
}

/// The rules, the oracle and the blocks themselves agree on the address.
fn agree(node: &Node, blocks: &[(IpNet, Vec<IpNet>)], source: IpAddr) {
    let flow = Flow {
        source,
        destination: POD.parse().expect("an address"),
        transport: Transport::Port(Protocol::Tcp, 80),
    };
    let wanted = blocks.iter().any(|(cidr, except)| {
        cidr.contains(&source) && !except.iter().any(|net| net.contains(&source))
    });
    assert_eq!(
        node.passes(&flow),
        wanted,
        "the rules say otherwise of {source}"
    );
    let allowed = node.cluster().judge(&flow).is_allowed();
    assert_eq!(allowed, wanted, "the oracle says otherwise of {source}");
}

/// netpol.md 22: blocks come and go in any order.
#[test]
fn a_thousand_blocks_that_overlap_hold_what_they_say_however_they_change() {
    let mut numbers = Numbers(7);
    let mut node = node();
    let mut blocks: Vec<(IpNet, Vec<IpNet>)> = Vec::new();
    for round in 0..60 {
        // A thousand at once, then a few less and a few more each time.
        let coming = if round == 0 { 1_000 } else { 20 };
        for _ in 0..coming {
            let cidr = numbers.net();
            let except = (0..numbers.below(4)).map(|_| numbers.net());
            let inside = except.filter(|net| cidr.contains(net) && *net != cidr);
            blocks.push((cidr, inside.collect()));
        }
        for _ in 0..coming.min(20) {
            let count = u32::try_from(blocks.len()).expect("some thousand");
            let index = usize::try_from(numbers.below(count)).expect("an index");
            blocks.swap_remove(index);
        }
        let peers = blocks.iter().cloned();
        let peers = peers.map(|(cidr, except)| Peer::IpBlock { cidr, except });
        node.change(policy(peers.collect()));
        node.sync();
        for _ in 0..40 {
            // The edges of a block are where mistakes are.
            let (IpAddr::V4(first), IpAddr::V4(last)) = ends(numbers.net()) else {
                unreachable!("blocks are IPv4")
            };
            for address in [u32::from(first).wrapping_sub(1), first.into(), last.into()] {
                agree(&node, &blocks, Ipv4Addr::from(address).into());
            }
            agree(&node, &blocks, Ipv4Addr::from(u32::from(last) + 1).into());
        }
    }
}

fn ends(net: IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}

/// netpol.md 23.
#[test]
fn five_thousand_excepts_of_one_peer_are_all_left_out() {
    let mut node = node();
    let cidr: IpNet = "172.16.0.0/12".parse().expect("a prefix");
    // Every other address of the first ten thousand.
    let address = |i: u32| Ipv4Addr::from((172 << 24) + (16 << 16) + i);
    let except: Vec<_> = (0..5_000)
        .map(|i| IpAddr::from(address(2 * i)).into())
        .collect();
    let block = Peer::IpBlock {
        cidr,
        except: except.clone(),
    };
    node.change(policy(vec![block]));
    node.sync();
    let blocks = [(cidr, except)];
    for i in (0..10_004).step_by(7) {
        agree(&node, &blocks, address(i).into());
    }
}
