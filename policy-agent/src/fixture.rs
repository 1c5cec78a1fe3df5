//! A node on a kernel in memory, made from manifests, for tests.

use std::path::Path;

use dataplane::attachment::{Attachment, MacAddr};
use dataplane::fake::Fake;
use dataplane::layout::denials::Denials;

use crate::event::{Event, Kind, Object};
use crate::explain::query::{Query, QueryError};
use crate::explain::{Explanation, about, explain};
use crate::owner::{Owner, Settings};
use crate::snapshot::{About, Snapshot};
use crate::source::manifests;

/// This node.
pub(crate) const NODE: &str = "n1";
/// Its address.
pub(crate) const NODE_ADDRESS: &str = "192.0.2.2";

/// A node with the objects of these manifests; its pods are attached to `cbr0`.
pub(crate) fn node(yaml: &str) -> Owner<Fake> {
    let mut owner = Owner::new(settings(), Fake::new());
    owner.set_denials(Denials {
        log: true,
        reject: false,
    });
    let parsed = manifests::parse(Path::new("test.yaml"), yaml.as_bytes());
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    for object in &parsed.objects {
        if let Object::Pod(pod) = object
            && pod.node.as_deref() == Some(NODE)
            && !pod.host_network
        {
            owner.attach(attachment(&pod.key.namespace, &pod.key.name, &pod.ips));
        }
    }
    for kind in Kind::ALL {
        let objects = parsed.objects.iter().filter(|object| object.kind() == kind);
        owner.handle(Event::Reset(kind, objects.cloned().collect()));
    }
    while owner.is_dirty() {
        owner.sync().expect("the fake takes it");
    }
    owner
}

fn settings() -> Settings {
    Settings {
        node: NODE.into(),
        compute_endpoints: true,
        bridges: vec!["cbr0".into()],
    }
}

/// The attachment of a pod.
pub(crate) fn attachment(namespace: &str, name: &str, ips: &[std::net::IpAddr]) -> Attachment {
    let mac = MacAddr::of_pod(ips).expect("an address");
    let host_ifname: String = format!("trm{namespace}{name}").chars().take(15).collect();
    serde_json::from_value(serde_json::json!({
        "network": "net", "containerID": format!("{namespace}-{name}"), "ifname": "eth0",
        "netns": "/run/netns/x", "hostIfname": host_ifname, "bridge": "cbr0",
        "mac": mac, "ips": ips, "pod": {"namespace": namespace, "name": name},
    }))
    .expect("an attachment")
}

/// Its state.
pub(crate) fn snapshot(owner: &Owner<Fake>, about: &About) -> Snapshot {
    let mut snapshot = owner.snapshot(about);
    snapshot.node_addresses = [NODE_ADDRESS.parse().expect("an address")].into();
    snapshot
}

/// What `explain` says.
pub(crate) fn ask(
    owner: &mut Owner<Fake>,
    from: &str,
    to: &str,
) -> Result<Explanation, QueryError> {
    let query = Query {
        from: from.into(),
        to: to.into(),
    };
    let snapshot = snapshot(owner, &about(&query)?);
    explain(&snapshot, &query, Ok(owner.kernel_mut().ruleset()))
}
