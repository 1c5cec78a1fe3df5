//! The HTTP endpoints: `/healthz`, `/livez`, `/readyz`, `/metrics`, `/proxyMode`.
//!
//! `--listen` has them all. For those who know kube-proxy's ports, `--healthz-bind-address`
//! has what load balancers ask for, which may be open to them, and `--metrics-bind-address`
//! the rest.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::health::Health;

/// How often a port that another program has is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// All endpoints.
pub fn router(health: Health) -> Router {
    let readyz = get(async |State(health): State<Health>| check(health.not_ready()));
    Router::new()
        .route("/readyz", readyz)
        .merge(of_health())
        .merge(of_metrics())
        .with_state(health)
}

/// `/healthz` and `/livez`.
pub fn healthz_router(health: Health) -> Router {
    of_health().with_state(health)
}

/// `/metrics`, `/proxyMode` and `/healthz`.
pub fn metrics_router(health: Health) -> Router {
    of_metrics()
        .route("/healthz", get(healthz))
        .with_state(health)
}

/// Serves on an address that another program may still have, such as the kube-proxy that
/// this agent replaces: tries again until it is free.
pub async fn serve_when_free(address: SocketAddr, router: Router) -> std::io::Result<()> {
    let mut is_first = true;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if std::mem::take(&mut is_first) {
                    tracing::error!(%address, %error, "cannot listen, trying again until it is free");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    if !is_first {
        tracing::info!(%address, "listening");
    }
    axum::serve(listener, router).await
}

fn of_health() -> Router<Health> {
    let livez = get(async |State(health): State<Health>| answer(health.livez()));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", livez)
}

fn of_metrics() -> Router<Health> {
    Router::new()
        .route("/metrics", get(metrics))
        // kube-proxy answers so; tools ask for it.
        .route("/proxyMode", get(async || "nftables"))
}

async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    answer(health.healthz())
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPENMETRICS)], health.metrics())
}

fn answer((is_fine, body): (bool, serde_json::Value)) -> impl IntoResponse {
    let status = match is_fine {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut text = body.to_string();
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], text)
}

fn check(wrong: Option<String>) -> (StatusCode, String) {
    match wrong {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests;
