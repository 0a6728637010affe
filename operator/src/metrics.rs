//! What the operator counts, and the port that tells it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// Labels of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: String,
    outcome: &'static str,
}

/// The operator's metrics; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    writes: Family<Write, Counter>,
    /// 1 while this process leads.
    pub leads: Gauge,
    /// Pods whose revision is followed.
    pub pods: Gauge,
    /// Events taken in.
    pub events: Counter,
}

impl Metrics {
    /// Counts a write to the API server.
    pub fn wrote(&self, kind: &str, is_ok: bool) {
        let outcome = if is_ok { "ok" } else { "error" };
        self.writes.get_or_create(&Write { kind: kind.to_owned(), outcome }).inc();
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("doorman_operator");
        registry.register("writes", "Writes to the API server by kind and outcome", self.writes.clone());
        registry.register("leads", "1 while this process leads", self.leads.clone());
        registry.register("pods", "Gateway pods whose revision is followed", self.pods.clone());
        registry.register("events", "Watch events and pod reports taken in", self.events.clone());
        registry
    }

    /// The text Prometheus scrapes (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry()) {
            tracing::error!(%error, "metrics can't be written");
        }
        text
    }
}

#[derive(Clone)]
struct Shared {
    metrics: Metrics,
    is_ready: Arc<AtomicBool>,
}

/// Serves `/livez`, `/readyz` and `/metrics` for as long as the process lives.
///
/// # Errors
/// When the socket can't be served.
pub async fn serve(listener: TcpListener, metrics: Metrics, is_ready: Arc<AtomicBool>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Shared { metrics, is_ready });
    axum::serve(listener, router).await
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    if shared.is_ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    }
}

async fn scrape(State(shared): State<Shared>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], shared.metrics.render())
}
