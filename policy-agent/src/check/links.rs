//! The links of this network namespace and the default routes. By netlink: `/sys` may be
//! another namespace's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteProtocol;

use crate::addresses::links_of_default;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Links {
    /// MTU by name.
    pub(crate) mtus: BTreeMap<String, u32>,
    /// Names of the links that a default route leads through.
    pub(crate) uplinks: BTreeSet<String>,
    /// Those whose IPv6 default route was learnt from a router advertisement.
    pub(crate) advertised: BTreeSet<String>,
    /// Links with an address that other machines can reach.
    pub(crate) addressed: BTreeSet<String>,
}

impl Links {
    /// Those of the names that exist, with their MTU.
    pub(crate) fn with_mtu<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
    ) -> impl Iterator<Item = (&'a str, u32)> {
        let of = |name: &'a String| Some((name.as_str(), *self.mtus.get(name)?));
        names.into_iter().filter_map(of)
    }
}

/// Lists them.
///
/// # Errors
/// Where the kernel gives no route socket or no answer.
pub(crate) async fn look() -> anyhow::Result<Links> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut links = Links::default();
    let mut names = BTreeMap::new();
    for message in handle
        .link()
        .get()
        .execute()
        .try_collect::<Vec<_>>()
        .await?
    {
        let mut name = None;
        let mut mtu = None;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value),
                LinkAttribute::Mtu(value) => mtu = Some(value),
                _ => {}
            }
        }
        let (Some(name), Some(mtu)) = (name, mtu) else {
            continue;
        };
        names.insert(message.header.index, name.clone());
        links.mtus.insert(name, mtu);
    }
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for filter in [v4, v6] {
        let mut routes = handle.route().get(filter).execute();
        while let Some(route) = routes.try_next().await? {
            let is_advertised = route.header.protocol == RouteProtocol::Ra;
            let through = links_of_default(&route);
            for name in through.iter().filter_map(|index| names.get(index)) {
                links.uplinks.insert(name.clone());
                if is_advertised {
                    links.advertised.insert(name.clone());
                }
            }
        }
    }
    for message in handle
        .address()
        .get()
        .execute()
        .try_collect::<Vec<_>>()
        .await?
    {
        if crate::addresses::address_of(&message).is_some()
            && let Some(name) = names.get(&message.header.index)
        {
            links.addressed.insert(name.clone());
        }
    }
    connection.abort();
    Ok(links)
}
