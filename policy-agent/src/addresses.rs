//! The addresses of this node, followed as they come and go, and which of them node ports
//! are served on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use crate::config::services::NodePortAddress;

/// A change is looked at this long after it was told, for they come in bursts.
const QUIET: Duration = Duration::from_millis(50);
/// How often everything is looked at in any case: the kernel drops news where they come
/// faster than they are read.
const RESYNC: Duration = Duration::from_secs(30);

/// `table main` (rtnetlink(7)).
const MAIN: u32 = 254;

/// The addresses of the interfaces of the network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostAddresses {
    /// All but loopback and IPv6 link-local ones: the latter are not the node's alone.
    pub all: BTreeSet<IpAddr>,
    /// Those of the interfaces that a default route leads through.
    pub of_default_routes: BTreeSet<IpAddr>,
}

impl HostAddresses {
    /// The addresses that node ports are served on. `of_node` are those of the Node object.
    pub fn serve_node_ports(
        &self,
        rules: &[NodePortAddress],
        of_node: &[IpAddr],
    ) -> BTreeSet<IpAddr> {
        let mut chosen = BTreeSet::new();
        for rule in rules {
            match rule {
                NodePortAddress::Primary if of_node.is_empty() => {
                    chosen.extend(&self.of_default_routes);
                }
                NodePortAddress::Primary => chosen.extend(of_node),
                NodePortAddress::All => chosen.extend(&self.all),
                NodePortAddress::Prefix(prefix) => {
                    chosen.extend(self.all.iter().filter(|ip| prefix.contains(*ip)));
                }
                // No rule translates loopback addresses: there is a listener for them.
                NodePortAddress::Localhost => {}
            }
        }
        chosen
    }
}

/// A source of [`HostAddresses`].
pub struct AddressWatch {
    handle: Handle,
    news: futures::channel::mpsc::UnboundedReceiver<(
        rtnetlink::packet_core::NetlinkMessage<rtnetlink::packet_route::RouteNetlinkMessage>,
        rtnetlink::sys::SocketAddr,
    )>,
    connection: tokio::task::JoinHandle<()>,
    last: HostAddresses,
}

impl AddressWatch {
    /// Subscribes, then looks for the first time: nothing that comes after is missed.
    ///
    /// # Errors
    /// Where the kernel gives no route socket or no answer.
    pub async fn open() -> Result<Self, rtnetlink::Error> {
        let (connection, handle, news) = new_multicast_connection(&[
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let last = look(&handle).await?;
        Ok(Self {
            handle,
            news,
            connection,
            last,
        })
    }

    /// What there was at the last look.
    pub const fn addresses(&self) -> &HostAddresses {
        &self.last
    }

    /// Tells each change, and ends where the kernel tells nothing any more or `tell` says
    /// that nobody listens.
    pub async fn follow(mut self, mut tell: impl FnMut(HostAddresses) -> bool) {
        loop {
            tokio::select! {
                message = self.news.next() => match message {
                    None => return,
                    Some(_) => {
                        tokio::time::sleep(QUIET).await;
                        while self.news.try_recv().is_ok() {}
                    }
                },
                () = tokio::time::sleep(RESYNC) => {}
            }
            match look(&self.handle).await {
                Ok(now) if now == self.last => {}
                Ok(now) => {
                    tracing::info!(addresses = ?now.all, "the node's addresses have changed");
                    self.last.clone_from(&now);
                    if !tell(now) {
                        return;
                    }
                }
                // Tried again with the next change, or in half a minute.
                Err(error) => tracing::warn!(%error, "the node's addresses cannot be listed"),
            }
        }
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The interfaces that the addresses are reached by; without those that no route leads to.
///
/// # Errors
/// Where the kernel gives no route socket.
pub(crate) async fn interfaces_to(
    addresses: &[IpAddr],
) -> Result<BTreeMap<IpAddr, String>, std::io::Error> {
    let mut interfaces = BTreeMap::new();
    if addresses.is_empty() {
        return Ok(interfaces);
    }
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    for address in addresses {
        let question = match address {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*ip, 32)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(*ip, 128)
                .build(),
        };
        let mut answer = std::pin::pin!(handle.route().get(question).execute());
        // "Unreachable" is an error.
        let Ok(Some(route)) = answer.try_next().await else {
            continue;
        };
        let link = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(link) => Some(*link),
                _ => None,
            });
        let name = link.and_then(|link| nix::net::if_::if_indextoname(link).ok());
        if let Some(name) = name.as_ref().and_then(|name| name.to_str().ok()) {
            interfaces.insert(*address, name.to_owned());
        }
    }
    connection.abort();
    Ok(interfaces)
}

async fn look(handle: &Handle) -> Result<HostAddresses, rtnetlink::Error> {
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
    let mut default_links = BTreeSet::new();
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for routes in [v4, v6] {
        let mut routes = handle.route().get(routes).execute();
        while let Some(route) = routes.try_next().await? {
            default_links.extend(links_of_default(&route));
        }
    }
    let mut host = HostAddresses::default();
    for message in &addresses {
        let Some(ip) = address_of(message) else {
            continue;
        };
        host.all.insert(ip);
        if default_links.contains(&message.header.index) {
            host.of_default_routes.insert(ip);
        }
    }
    Ok(host)
}

/// The address, if node ports can be served on it.
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let attributes = || message.attributes.iter();
    // For point-to-point links `IFA_ADDRESS` is the peer's, and `IFA_LOCAL` ours.
    let local = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = || {
        attributes().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    };
    let is_node_s = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    local.or_else(address).filter(is_node_s)
}

/// The interfaces that the route leads through, if it is a default route.
pub(crate) fn links_of_default(route: &RouteMessage) -> Vec<u32> {
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    let is_default = route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table.unwrap_or(route.header.table.into()) == MAIN;
    if !is_default {
        return Vec::new();
    }
    let mut links = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) => links.push(*link),
            RouteAttribute::MultiPath(hops) => {
                links.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        let parsed = texts.iter().map(|text| text.parse().expect("an address"));
        parsed.collect()
    }

    fn host() -> HostAddresses {
        HostAddresses {
            all: ips(&[
                "10.88.0.1",
                "192.0.2.2",
                "192.0.2.9",
                "2001:db8::2",
                "fd88::1",
            ]),
            of_default_routes: ips(&["192.0.2.2", "192.0.2.9", "2001:db8::2"]),
        }
    }

    /// services.md 14.
    #[test]
    fn node_ports_are_served_on_the_addresses_that_the_rules_name() {
        let node = ["192.0.2.2", "2001:db8::2"].map(|text| text.parse().expect("an address"));
        let everything = [
            "10.88.0.1",
            "192.0.2.2",
            "192.0.2.9",
            "2001:db8::2",
            "fd88::1",
        ];
        for (rules, of_node, expected) in [
            ("primary", &node[..], &["192.0.2.2", "2001:db8::2"][..]),
            ("primary", &[], &["192.0.2.2", "192.0.2.9", "2001:db8::2"]),
            ("all", &node, &everything),
            ("localhost", &node, &[]),
            ("192.0.2.8/29", &node, &["192.0.2.9"]),
            ("::/0", &node, &["2001:db8::2", "fd88::1"]),
            ("0.0.0.0/0,::/0", &node, &everything),
            (
                "primary,10.0.0.0/8,localhost",
                &node,
                &["10.88.0.1", "192.0.2.2", "2001:db8::2"],
            ),
            ("198.51.100.0/24", &node, &[]),
        ] {
            let parsed: Vec<NodePortAddress> = rules
                .split(',')
                .map(|rule| rule.parse().expect("a rule"))
                .collect();
            let served = host().serve_node_ports(&parsed, of_node);
            assert_eq!(served, ips(expected), "{rules} with Node {of_node:?}");
        }
    }
}
