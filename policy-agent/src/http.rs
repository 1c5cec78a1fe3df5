//! The HTTP endpoints of `--listen`: `/healthz`, `/livez`, `/readyz`, `/metrics`,
//! `/proxyMode`.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::health::Health;

/// The endpoints.
pub fn router(health: Health) -> Router {
    Router::new()
        .route(
            "/healthz",
            get(|State(health): State<Health>| async move { check(health.not_healthy()) }),
        )
        .route(
            "/livez",
            get(|State(health): State<Health>| async move { check(health.not_alive()) }),
        )
        .route(
            "/readyz",
            get(|State(health): State<Health>| async move { check(health.not_ready()) }),
        )
        .route("/metrics", get(metrics))
        // kube-proxy answers so; tools ask for it.
        .route("/proxyMode", get(async || "nftables"))
        .with_state(health)
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPENMETRICS)], health.metrics())
}

fn check(wrong: Option<String>) -> (StatusCode, String) {
    match wrong {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests;
