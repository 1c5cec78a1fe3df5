//! hostPorts and masquerading: who has what, as attachments come and go.

use std::net::IpAddr;

use dataplane::attachment::{Attachment, PortMapping, Transport};
use dataplane::layout::{INET, hostports, masquerade, standalone};
use dataplane::object::{IpFamily, Ruleset, Value};

use super::harness::{Node, World};
use super::objects::attachment;
use super::world;
use crate::config::network::NetworkMode;
use crate::config::services::ServiceConfig;
use crate::network::NetworkStatus;

fn with_port(container: &str, address: &str) -> Attachment {
    Attachment {
        port_mappings: vec![PortMapping {
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            protocol: Transport::Tcp,
        }],
        ..attachment(container, None, &[address])
    }
}

fn masqueraded(container: &str, address: &str, network: &str) -> Attachment {
    Attachment {
        masquerade_beyond: vec![network.parse().expect("a network")],
        ..attachment(container, None, &[address])
    }
}

/// The address that hostPort 8080 leads to.
fn leads_to(node: &mut Node) -> Option<IpAddr> {
    let ruleset = node.ruleset();
    let map = &ruleset.tables[&*INET].sets[hostports::HOST_PORTS.of(IpFamily::V4)];
    let mut elements = map.elements.values();
    let element = elements.next()?;
    assert!(elements.next().is_none(), "one hostPort");
    let Value::Data(data) = &element.value else {
        panic!("{element:?}")
    };
    let address: [u8; 4] = data[..4].try_into().expect("IPv4");
    Some(address.into())
}

/// The networks in which addresses are kept.
fn inside(node: &mut Node) -> String {
    let ruleset = node.ruleset();
    let set = &ruleset.tables[&*INET].sets[masquerade::INSIDE.of(IpFamily::V4)];
    let ends = set.elements.keys().map(|key| set.spec.key.print(key));
    ends.collect::<Vec<_>>().join(" ")
}

fn status() -> NetworkStatus {
    NetworkStatus::new(NetworkMode::Auto)
}

fn listed(node: &mut Node, attachments: &[Attachment]) {
    let mut world: World = world();
    for attachment in attachments {
        let key = attachment.key.clone();
        world.attachments.insert(key, attachment.clone());
    }
    node.list(&world);
    node.settle();
}

#[test]
fn of_two_claims_to_a_host_port_the_newer_counts() {
    let address = |text: &str| text.parse::<IpAddr>().ok();
    let (old, new) = (with_port("old", "10.88.0.8"), with_port("new", "10.88.0.9"));
    let mut node = Node::new();
    listed(&mut node, std::slice::from_ref(&old));
    assert_eq!(leads_to(&mut node), address("10.88.0.8"));
    node.owner.attach(new.clone());
    node.settle();
    assert_eq!(leads_to(&mut node), address("10.88.0.9"));
    // The DEL of the older comes late.
    assert!(node.owner.detach(&old.key));
    node.settle();
    assert_eq!(leads_to(&mut node), address("10.88.0.9"));
    node.owner.attach(old.clone());
    node.settle();
    assert_eq!(leads_to(&mut node), address("10.88.0.8"));
    assert!(node.owner.detach(&old.key));
    node.settle();
    assert_eq!(
        leads_to(&mut node),
        address("10.88.0.9"),
        "claimed all the time"
    );
    assert!(node.owner.detach(&new.key));
    node.settle();
    assert_eq!(leads_to(&mut node), None);
}

#[test]
fn an_attachment_that_changes_leaves_nothing_of_what_it_was() {
    let mut node = Node::new();
    listed(&mut node, &[with_port("one", "10.88.0.8")]);
    let with = node.ruleset();
    let without = attachment("one", None, &["10.88.0.8"]);
    node.owner.attach(without);
    node.settle();
    assert_eq!(leads_to(&mut node), None);
    node.owner.attach(with_port("one", "10.88.0.8"));
    node.settle();
    let tables = |ruleset: &Ruleset| ruleset.tables[&*INET].sets.clone();
    assert_eq!(tables(&node.ruleset()), tables(&with));
}

#[test]
fn addresses_are_kept_in_the_networks_of_pods_and_cluster() {
    let mut node = Node::new();
    node.owner.configure_services(&ServiceConfig {
        cluster_cidrs: vec!["10.200.0.0/16".parse().expect("a network")],
        ..ServiceConfig::default()
    });
    listed(
        &mut node,
        &[masqueraded("one", "10.88.0.8", "10.88.0.0/24")],
    );
    let (cluster, multicast) = ("10.200.0.0 10.201.0.0", "224.0.0.0 240.0.0.0");
    let one = format!("10.88.0.0 10.88.1.0 {cluster} {multicast}");
    assert_eq!(inside(&mut node), one);
    let wider = masqueraded("two", "10.88.7.7", "10.88.0.0/16");
    node.owner.attach(wider.clone());
    node.settle();
    let both = format!("10.88.0.0 10.89.0.0 {cluster} {multicast}");
    assert_eq!(inside(&mut node), both);
    node.owner.detach(&wider.key);
    node.settle();
    assert_eq!(inside(&mut node), one);
}

/// issue 7, "Must hold": which nodes know the way back is found out after the first sync of an
/// agent that was replaced.
#[test]
fn addresses_are_kept_towards_other_nodes_while_the_agent_is_replaced() {
    let mut node = Node::new();
    node.owner.follow_network(None);
    listed(
        &mut node,
        &[masqueraded("one", "10.88.0.8", "10.88.0.0/24")],
    );
    let direct = |text: &str| [text.parse().expect("a network")].into();
    let (pods, multicast) = ("10.88.0.0 10.88.1.0", "224.0.0.0 240.0.0.0");
    node.owner.set_network(status(), direct("192.0.2.2/32"));
    node.settle();
    let before = format!("{pods} 192.0.2.2 192.0.2.3 {multicast}");
    assert_eq!(inside(&mut node), before);

    node.restart();
    node.owner.follow_network(None);
    listed(
        &mut node,
        &[masqueraded("one", "10.88.0.8", "10.88.0.0/24")],
    );
    assert_eq!(inside(&mut node), before);
    node.owner.set_network(status(), direct("192.0.2.7/32"));
    node.settle();
    let after = format!("{pods} 192.0.2.7 192.0.2.8 {multicast}");
    assert_eq!(inside(&mut node), after);
}

/// The plugin wrote them while there was no agent: what the rules say does not change when
/// one starts, not even for a moment.
#[test]
fn what_the_plugin_wrote_is_taken_over_as_it_is() {
    let attachments = [
        with_port("one", "10.88.0.8"),
        masqueraded("two", "10.88.0.9", "10.88.0.0/24"),
    ];
    let mut node = Node::new();
    let alone = standalone::ruleset(&attachments);
    let written = alone.clone();
    node.kernel().fake.tamper(|ruleset| *ruleset = written);
    listed(&mut node, &attachments);

    let now = node.ruleset();
    let (before, after) = (&alone.tables[&*INET], &now.tables[&*INET]);
    for (name, set) in &before.sets {
        assert_eq!(after.sets[name].elements, set.elements, "{name}");
    }
    let commits = &node.kernel().commits;
    assert!(!commits.is_empty());
    let touched = commits.iter().flat_map(|commit| &commit.operations);
    for operation in touched {
        use dataplane::transaction::Operation::{DeleteElements, FlushChain};
        match operation {
            FlushChain { chain, .. } => {
                assert!(!before.chains.contains_key(chain), "{operation}");
            }
            DeleteElements { set, .. } => assert!(!before.sets.contains_key(set), "{operation}"),
            _ => {}
        }
    }
    assert!(after.chains.contains_key("forward"), "policy is there now");
}
