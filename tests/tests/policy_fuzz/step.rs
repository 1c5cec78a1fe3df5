//! One step of a history.

use std::fmt;

use serde_json::{Value, json};
use tests::objects;
use tests::random::Random;

use crate::lab::Lab;
use crate::world::{Description, NAMESPACES, World};

/// Pods at a time, at most.
const PODS: usize = 5;
/// Policies at a time, at most.
const POLICIES: usize = 5;
const APPS: [&str; 3] = ["web", "front", "probe"];
const TEAMS: [&str; 2] = ["x", "y"];

/// What happens.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Step {
    pub(crate) change: Change,
    /// The agent is killed as soon as it can know of the change, and the next one started.
    pub(crate) agent_dies: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Change {
    /// The pod is described and attached.
    Create { pod: String, app: String },
    /// The pod is attached; nobody has described it yet.
    Attach { pod: String },
    /// An attached pod is described, or described anew.
    Describe { pod: String, app: String },
    /// The description goes, the pod is still attached.
    Forget { pod: String },
    /// The pod is detached; its description goes before or after that.
    Remove {
        pod: String,
        description_first: bool,
    },
    /// The pod is detached, and its description stays with the addresses.
    Finish { pod: String },
    /// The description of a pod that is done goes.
    CleanUp { pod: String },
    /// The namespace's label changes.
    Relabel { namespace: String, team: String },
    /// A policy of either kind is new or different.
    Policy { key: String, object: Value },
    /// A policy goes.
    NoPolicy { key: String },
    /// Nothing.
    Nothing,
}

impl Step {
    /// Something that is possible in this state.
    pub(crate) fn choose(random: &mut Random, lab: &Lab<'_>) -> Self {
        loop {
            if let Some(change) = Change::choose(random, lab) {
                let is_attaching = matches!(change, Change::Create { .. } | Change::Attach { .. });
                let agent_dies = change == Change::Nothing || (!is_attaching && random.one_in(5));
                return Self { change, agent_dies };
            }
        }
    }
}

impl Change {
    fn choose(random: &mut Random, lab: &Lab<'_>) -> Option<Self> {
        let world = &lab.world;
        let attached: Vec<_> = lab.addresses().into_keys().collect();
        let name = format!("{}/{}", random.pick(&NAMESPACES), random.below(4));
        let is_new = !attached.contains(&name) && !world.pods.contains_key(&name);
        let has_room = attached.len() < PODS;
        let app = (*random.pick(&APPS)).to_owned();
        let pod = (!attached.is_empty()).then(|| random.pick(&attached).clone());
        let described = |pod: &String| world.pods.contains_key(pod);
        // A history begins with some pods: without them there is nothing to see.
        let kind = if attached.len() < 3 {
            random.below(4)
        } else {
            random.below(20)
        };
        match kind {
            0..=2 => (is_new && has_room).then_some(Self::Create { pod: name, app }),
            3 => (is_new && has_room).then_some(Self::Attach { pod: name }),
            4 | 5 => Some(Self::Describe { pod: pod?, app }),
            6 => Some(Self::Forget {
                pod: pod.filter(described)?,
            }),
            7 | 8 => Some(Self::Remove {
                pod: pod?,
                description_first: random.one_in(2),
            }),
            9 => Some(Self::Finish {
                pod: pod.filter(described)?,
            }),
            10 => {
                let done = world.pods.iter().filter(|(_, pod)| pod.done_with.is_some());
                let done: Vec<_> = done.map(|(key, _)| key.clone()).collect();
                (!done.is_empty()).then(|| Self::CleanUp {
                    pod: random.pick(&done).clone(),
                })
            }
            11 => Some(Self::Relabel {
                namespace: (*random.pick(&NAMESPACES)).to_owned(),
                team: (*random.pick(&TEAMS)).to_owned(),
            }),
            12..=15 => {
                let (key, object) = match random.one_in(4) {
                    true => cluster_policy(random),
                    false => policy(random),
                };
                let is_possible =
                    world.policies.len() < POLICIES || world.policies.contains_key(&key);
                is_possible.then_some(Self::Policy { key, object })
            }
            16..=18 => {
                let keys: Vec<_> = world.policies.keys().cloned().collect();
                (!keys.is_empty()).then(|| Self::NoPolicy {
                    key: random.pick(&keys).clone(),
                })
            }
            _ => Some(Self::Nothing),
        }
    }

    /// What is described after it. Whoever is done keeps the addresses `of` that name.
    pub(crate) fn apply(&self, world: &mut World, of: impl Fn(&str) -> Vec<std::net::IpAddr>) {
        match self {
            Self::Create { pod, app } | Self::Describe { pod, app } => {
                let description = Description {
                    app: app.clone(),
                    done_with: None,
                };
                world.pods.insert(pod.clone(), description);
            }
            Self::Forget { pod } | Self::Remove { pod, .. } | Self::CleanUp { pod } => {
                world.pods.remove(pod);
            }
            Self::Finish { pod } => {
                if let Some(description) = world.pods.get_mut(pod) {
                    description.done_with = Some(of(pod));
                }
            }
            Self::Relabel { namespace, team } => {
                world.teams.insert(namespace.clone(), team.clone());
            }
            Self::Policy { key, object } => {
                world.policies.insert(key.clone(), object.clone());
            }
            Self::NoPolicy { key } => {
                world.policies.remove(key);
            }
            Self::Attach { .. } | Self::Nothing => {}
        }
    }
}

fn pod_selector(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!({}),
        1 => json!({"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": [random.pick(&APPS)]}]}),
        _ => json!({"matchLabels": {"app": random.pick(&APPS)}}),
    }
}

fn namespace_selector(random: &mut Random) -> Value {
    match random.below(3) {
        0 => json!({}),
        _ => json!({"matchLabels": {"team": random.pick(&TEAMS)}}),
    }
}

fn block(random: &mut Random) -> Value {
    let blocks = [
        json!({"cidr": "192.0.2.0/24"}),
        json!({"cidr": "2001:db8::/32"}),
        json!({"cidr": "10.88.0.0/24", "except": ["10.88.0.4/31"]}),
        json!({"cidr": "fd88::/64", "except": ["fd88::2/127"]}),
        json!({"cidr": "0.0.0.0/0", "except": ["10.88.0.0/29"]}),
    ];
    random.pick(&blocks).clone()
}

fn some(random: &mut Random, limit: usize, one: impl Fn(&mut Random) -> Value) -> Vec<Value> {
    (0..random.below(limit)).map(|_| one(random)).collect()
}

fn policy(random: &mut Random) -> (String, Value) {
    let key = format!("{}/{}", random.pick(&NAMESPACES), random.below(3));
    let peer = |random: &mut Random| match random.below(4) {
        0 => json!({"podSelector": pod_selector(random)}),
        1 => json!({"namespaceSelector": namespace_selector(random)}),
        2 => json!({"namespaceSelector": namespace_selector(random),
            "podSelector": pod_selector(random)}),
        _ => json!({"ipBlock": block(random)}),
    };
    let port = |random: &mut Random| match random.below(4) {
        0 => json!({"port": random.pick(&[80, 81])}),
        1 => json!({"port": random.pick(&["tcp-80", "tcp-81"])}),
        2 => json!({"protocol": "UDP"}),
        _ => json!({"port": 80, "endPort": 81, "protocol": random.pick(&["TCP", "UDP"])}),
    };
    let rules = |random: &mut Random, list: &str| {
        some(
            random,
            3,
            |random| json!({list: some(random, 3, peer), "ports": some(random, 3, port)}),
        )
    };
    let types = [vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]];
    let spec = json!({
        "podSelector": pod_selector(random),
        "policyTypes": random.pick(&types),
        "ingress": rules(random, "from"),
        "egress": rules(random, "to"),
    });
    (format!("policy {key}"), objects::policy(&key, &spec))
}

fn cluster_policy(random: &mut Random) -> (String, Value) {
    let name = format!("c{}", random.below(2));
    let pods = |random: &mut Random| {
        json!({"pods": {"namespaceSelector": namespace_selector(random),
            "podSelector": pod_selector(random)}})
    };
    let protocol = |random: &mut Random| json!({*random.pick(&["tcp", "udp"]): {"destinationPort": {"number": random.pick(&[80, 81])}}});
    let rules = |random: &mut Random, list: &str| {
        some(random, 3, |random| {
            let peer = match list == "to" && random.one_in(3) {
                true => json!({"networks": [random.pick(&["192.0.2.0/24", "10.88.0.4/31"])]}),
                false => pods(random),
            };
            let mut rule =
                json!({"action": random.pick(&["Accept", "Deny", "Pass"]), list: [peer]});
            if random.one_in(2) {
                rule["protocols"] = json!([protocol(random)]);
            }
            rule
        })
    };
    let spec = json!({
        "tier": random.pick(&["Admin", "Baseline"]),
        "priority": random.below(3),
        "subject": pods(random),
        "ingress": rules(random, "from"),
        "egress": rules(random, "to"),
    });
    (
        format!("cluster policy {name}"),
        objects::cluster_policy(&name, &spec),
    )
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Change::Policy { object, .. } => {
                let metadata = &object["metadata"];
                write!(f, "{} {metadata} {}", object["kind"], object["spec"])?;
            }
            other => write!(f, "{other:?}")?,
        }
        match self.agent_dies {
            true => f.write_str("; the agent dies"),
            false => Ok(()),
        }
    }
}
