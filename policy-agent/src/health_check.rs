//! The server of `healthCheckNodePort`: tells load balancers whether this node has an
//! endpoint of the Service, so that `externalTrafficPolicy: Local` loses nothing.
//!
//! The answer is that of kube-proxy (`pkg/proxy/healthcheck/service_health.go`) on every
//! path: 200 or 503, a JSON body, and the number of endpoints as the header
//! `X-Load-Balancing-Endpoint-Weight`.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use proxy::model::ObjectKey;
use serde_json::json;
use tokio::sync::watch;

use crate::complaint::Complaint;
use crate::health::Health;
use crate::listeners::Listeners;
use crate::owner::ServiceNews;
use crate::runtime::Mail;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Of the Event, as kube-proxy has it.
const REASON: &str = "FailedToStartServiceHealthcheck";

/// What a listener needs.
#[derive(Clone)]
struct Port {
    number: u16,
    news: watch::Receiver<ServiceNews>,
    health: Health,
}

/// Serves all health checks until the owner is gone.
pub async fn serve(news: watch::Receiver<ServiceNews>, health: Health, mail: Sender<Mail>) {
    let of_ports = news.clone();
    let listeners = Listeners::new(move |listener, address| {
        let port = Port {
            number: address.port(),
            news: of_ports.clone(),
            health: health.clone(),
        };
        let router = Router::new().fallback(answer).with_state(port);
        Box::pin(async move {
            // It ends by being dropped only.
            drop(axum::serve(listener, router).await);
        })
    });
    let failed = |address: SocketAddr, service: &ObjectKey, error: &io::Error| {
        let message = format!(
            "healthCheckNodePort {} cannot be served on {address}: {error}; end what listens \
             there, or load balancers leave this node out",
            address.port()
        );
        Complaint::of_service(service, REASON, message)
    };
    listeners.follow(news, mail, REASON, plan, failed).await;
}

/// Where to listen, for which Service; and Services that have lost their port to another.
fn plan(news: &ServiceNews) -> (BTreeMap<SocketAddr, ObjectKey>, Vec<Complaint>) {
    let mut owners = BTreeMap::new();
    let mut complaints = Vec::new();
    for check in &news.health_checks {
        let owner = owners.entry(check.port).or_insert(&check.service);
        if **owner != check.service {
            let message = format!(
                "healthCheckNodePort {} is that of {owner}: set another",
                check.port
            );
            complaints.push(Complaint::of_service(&check.service, REASON, message));
        }
    }
    let mut wanted = BTreeMap::new();
    for (port, service) in owners {
        for address in &news.health_check_addresses {
            wanted.insert(SocketAddr::new(*address, port), service.clone());
        }
    }
    (wanted, complaints)
}

async fn answer(State(port): State<Port>) -> Response {
    let found = {
        let news = port.news.borrow();
        let mut checks = news.health_checks.iter();
        checks.find(|check| check.port == port.number).cloned()
    };
    let Some(check) = found else {
        // It is about to be closed.
        return StatusCode::NOT_FOUND.into_response();
    };
    let is_healthy = port.health.not_healthy().is_none();
    let status = match is_healthy && check.local_endpoints > 0 {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = json!({
        "service": check.service,
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": is_healthy,
    });
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, check.local_endpoints.to_string()),
    ];
    (status, headers, format!("{body:#}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use proxy::HealthCheck;

    use super::*;

    fn check(name: &str, port: u16) -> HealthCheck {
        HealthCheck {
            service: ObjectKey::new("shop", name),
            port,
            local_endpoints: 1,
        }
    }

    /// services.md 23.
    #[test]
    fn each_check_is_served_on_each_address_and_a_port_belongs_to_one_service() {
        let ips = ["192.0.2.2", "2001:db8::2"].map(|text| text.parse().expect("an address"));
        let news = ServiceNews {
            health_checks: vec![check("a", 30001), check("b", 30002), check("c", 30001)],
            health_check_addresses: ips.into(),
            ..ServiceNews::default()
        };
        let found: Vec<_> = plan(&news).0.keys().map(ToString::to_string).collect();
        let expected = [
            "192.0.2.2:30001",
            "192.0.2.2:30002",
            "[2001:db8::2]:30001",
            "[2001:db8::2]:30002",
        ];
        assert_eq!(found, expected);
        let complaints = plan(&news).1;
        assert_eq!(complaints.len(), 1);
        assert_eq!(
            complaints[0].about.as_ref().map(|(_, key)| key.to_string()),
            Some("shop/c".to_owned())
        );
        assert!(complaints[0].message.contains("shop/a"), "{complaints:?}");
    }
}
