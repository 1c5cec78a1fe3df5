//! The Services of a cluster. One of them leads to a server that answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use policy_agent::event::{Event, Kind, Object};
use proxy::model::{
    EndpointSlice, ObjectKey, Protocol, Service, ServicePort, ServiceType, SliceEndpoint,
    SlicePort, TargetPort, TrafficDistribution, TrafficPolicy,
};

/// The port of Services and endpoints.
pub(crate) const PORT: u16 = 8080;
/// The endpoints of the Service that is served begin here; a server has all of them.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

const CLUSTER_IPS: u32 = 0x0a60_0000;
const ENDPOINTS: u32 = 0x0b00_0000;
/// Further than the endpoints of any size reach.
const MOVE: u32 = 1 << 19;

/// So many Services with so many endpoints each.
#[derive(Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) services: u32,
    pub(crate) endpoints: u32,
}

impl Cluster {
    /// The frontend of the Service in the middle, whose endpoints answer.
    pub(crate) fn served_address(self) -> SocketAddr {
        SocketAddr::new(cluster_ip(self.served()), PORT)
    }

    /// The objects as the first lists give them.
    pub(crate) fn events(self) -> Vec<Event> {
        let lists = Kind::ALL.into_iter().map(|kind| match kind {
            Kind::Service => {
                let services = (0..self.services).map(|number| Object::Service(service(number)));
                Event::Reset(kind, services.collect())
            }
            Kind::EndpointSlice => {
                let slices = (0..self.services).map(|number| self.slice(number, 0));
                Event::Reset(kind, slices.map(Object::EndpointSlice).collect())
            }
            _ => Event::Reset(kind, Vec::new()),
        });
        lists.collect()
    }

    /// One endpoint of the first Service has another address at each turn; it begins with
    /// turn 0.
    pub(crate) fn change(self, turn: u32) -> Event {
        Event::Apply(Object::EndpointSlice(self.slice(0, turn)))
    }

    fn served(self) -> u32 {
        self.services / 2
    }

    fn slice(self, number: u32, turn: u32) -> EndpointSlice {
        let first = if number == self.served() {
            u32::from(SERVER)
        } else {
            ENDPOINTS + number * self.endpoints
        };
        let endpoint = |i: u32| {
            let moved = if i == 0 { turn * MOVE } else { 0 };
            SliceEndpoint {
                address: address(first + i + moved),
                ready: true,
                serving: true,
                terminating: false,
                node: Some(format!("node-{}", number % 100)),
                zone: Some(format!("zone-{}", number % 3)),
                hint_zones: Vec::new(),
                hint_nodes: Vec::new(),
                pod: None,
            }
        };
        EndpointSlice {
            key: key(number),
            service: format!("service-{number}"),
            ports: vec![SlicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: PORT,
            }],
            endpoints: (0..self.endpoints).map(endpoint).collect(),
            triggered: None,
            weight: None,
        }
    }
}

fn service(number: u32) -> Service {
    Service {
        key: key(number),
        uid: format!("uid-{number}"),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![cluster_ip(number)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: PORT,
            node_port: None,
            target_port: TargetPort::Number(PORT),
        }],
        selector: [("app".to_owned(), format!("app-{number}"))].into(),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        publish_not_ready: false,
        traffic_distribution: TrafficDistribution::None,
        health_check_node_port: None,
        annotations: [].into(),
    }
}

fn key(number: u32) -> ObjectKey {
    ObjectKey::new(
        format!("namespace-{}", number % 100),
        format!("service-{number}"),
    )
}

fn cluster_ip(number: u32) -> IpAddr {
    address(CLUSTER_IPS + number)
}

fn address(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}
