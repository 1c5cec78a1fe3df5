//! What has been written, and what the oracle makes of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use policy_agent::event::Object;
use policy_agent::model::{ClusterNetworkPolicy, Namespace, NetworkPolicy, Pod};
use policy_agent::source::manifests;
use policy_agent::verdict::{Cluster, Flow, Transport};
use serde_json::{Value, json};
use tests::node::{GATEWAYS, NODE_IPS, OUTSIDE_IPS};
use tests::objects;
use tests::pod::Family;
use tests::scene::{NODE, OUTSIDE, PORTS};
use tests::traffic::Protocol;

/// The namespaces that there always are.
pub(crate) const NAMESPACES: [&str; 2] = ["red", "blue"];

/// Every object that the agent is told of.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Value of the label `team` of each namespace.
    pub(crate) teams: BTreeMap<String, String>,
    /// By `namespace/name`.
    pub(crate) pods: BTreeMap<String, Description>,
    /// Policies of both kinds by kind and key.
    pub(crate) policies: BTreeMap<String, Value>,
}

/// What a pod's object says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Description {
    /// Value of the label `app`.
    pub(crate) app: String,
    /// The addresses in the status of a pod that is done.
    pub(crate) done_with: Option<Vec<IpAddr>>,
}

/// A connection that can be tried.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Connection {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) protocol: Protocol,
    pub(crate) source: IpAddr,
    pub(crate) target: SocketAddr,
}

/// Which of them are allowed.
pub(crate) type Verdicts = BTreeMap<Connection, bool>;

/// The attached pods and their addresses.
pub(crate) type Addresses = BTreeMap<String, Vec<IpAddr>>;

impl World {
    pub(crate) fn new() -> Self {
        let teams = NAMESPACES.map(|name| (name.to_owned(), "x".to_owned()));
        Self {
            teams: teams.into(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
        }
    }

    pub(crate) fn manifests(&self) -> Vec<Value> {
        let namespaces = self
            .teams
            .iter()
            .map(|(name, team)| objects::namespace(name, &json!({"team": team})));
        let pods = self.pods.iter().map(|(key, description)| {
            let mut pod = objects::pod(key, &json!({"app": description.app}), &PORTS);
            if let Some(ips) = &description.done_with {
                pod["status"]["phase"] = "Succeeded".into();
                pod["status"]["podIPs"] = ips.iter().map(|ip| json!({"ip": ip})).collect();
            }
            pod
        });
        let policies = self.policies.values().cloned();
        namespaces.chain(pods).chain(policies).collect()
    }

    /// What the oracle says of every connection that can be tried. A pod that is attached and
    /// not described is closed to all but its node, of which nothing is said.
    pub(crate) fn verdicts(&self, attached: &Addresses) -> Verdicts {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": self.manifests()});
        let parsed = manifests::parse(Path::new("world.json"), list.to_string().as_bytes());
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let model = Model::of(parsed.objects);
        let addresses_of = |pod: &Pod| attached.get(&pod.key.to_string()).cloned();
        let node = [NODE_IPS, GATEWAYS].concat();
        let cluster = Cluster::new(
            &model.namespaces,
            model
                .pods
                .iter()
                .map(|pod| (pod, addresses_of(pod).unwrap_or_default())),
            &model.policies,
            node.iter().map(|ip| ip.parse().expect("an address")),
        )
        .with_cluster_policies(&model.cluster_policies, []);
        let is_closed = |name: &str| {
            let description = self.pods.get(name);
            let is_live = description.is_some_and(|pod| pod.done_with.is_none());
            attached.contains_key(name) && !is_live
        };
        let judge = |connection: &Connection| {
            let closed = is_closed(&connection.from) || is_closed(&connection.to);
            let flow = Flow {
                source: connection.source,
                destination: connection.target.ip(),
                transport: Transport::Port(of(connection.protocol), connection.target.port()),
            };
            !closed && cluster.judge(&flow).is_allowed()
        };
        connections(attached)
            .filter(|connection| connection.from != NODE || !is_closed(&connection.to))
            .map(|connection| {
                let allowed = judge(&connection);
                (connection, allowed)
            })
            .collect()
    }
}

#[derive(Default)]
struct Model {
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
    cluster_policies: Vec<ClusterNetworkPolicy>,
}

impl Model {
    fn of(objects: Vec<Object>) -> Self {
        let mut model = Self::default();
        for object in objects {
            match object {
                Object::Namespace(namespace) => model.namespaces.push(namespace),
                Object::Pod(pod) => model.pods.push(pod),
                Object::NetworkPolicy(policy) => model.policies.push(policy),
                Object::ClusterNetworkPolicy(policy) => model.cluster_policies.push(policy),
                other => panic!("nobody has written {other:?}"),
            }
        }
        model
    }
}

/// Between pods, from the node and from outside to pods, and from pods to the outside.
fn connections(attached: &Addresses) -> impl Iterator<Item = Connection> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let of_pod = |ips: &Vec<IpAddr>| ips.iter().copied().find(|ip| Family::of(*ip) == family);
        let pods = attached
            .iter()
            .filter_map(|(key, ips)| Some((key.clone(), of_pod(ips)?)));
        let pods: Vec<_> = pods.collect();
        let outside = (OUTSIDE.to_owned(), family.pick(OUTSIDE_IPS));
        let node = (NODE.to_owned(), family.pick(GATEWAYS));
        let sources = pods.iter().chain([&outside, &node]);
        for (from, source) in sources {
            let targets = pods.iter().chain([&outside]);
            for (to, target) in targets.filter(|(to, _)| to != from) {
                if from == NODE && to == OUTSIDE {
                    continue;
                }
                for (port, protocol) in PORTS
                    .into_iter()
                    .flat_map(|port| Protocol::ALL.map(|protocol| (port, protocol)))
                {
                    all.push(Connection {
                        from: from.clone(),
                        to: to.clone(),
                        protocol,
                        source: *source,
                        target: SocketAddr::new(*target, port),
                    });
                }
            }
        }
    }
    all.into_iter()
}

fn of(protocol: Protocol) -> proxy::model::Protocol {
    match protocol {
        Protocol::Tcp => proxy::model::Protocol::Tcp,
        Protocol::Udp => proxy::model::Protocol::Udp,
    }
}
