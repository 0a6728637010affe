//! The admin port: metrics and the revision report, cluster-internal, no management.
//!
//! It runs on a thread of its own, so that a scrape never delays traffic.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use doorman_crds::revision::RevisionReport;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::pipeline::Gateway;

/// How often a watcher hears from us even when nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What the admin port needs.
#[derive(Clone)]
struct Admin {
    gateway: Arc<Gateway>,
    reports: watch::Receiver<Arc<RevisionReport>>,
}

/// Serves the admin port for as long as the process lives.
///
/// # Errors
/// When the socket can't be served.
pub async fn serve(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    reports: watch::Receiver<Arc<RevisionReport>>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/revision", get(revision))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(Admin { gateway, reports });
    axum::serve(listener, router).await
}

/// For the pods' readiness probe. The port opens when the first snapshot is served; stores don't count, because calls
/// that need none flow without them.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.gateway.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response();
    }
    "ok".into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], admin.gateway.metrics.render()).into_response()
}

#[derive(Deserialize)]
struct RevisionQuery {
    #[serde(default)]
    watch: bool,
}

/// One report, or with `?watch=true` one line now, one per change, and one every ten seconds.
async fn revision(State(mut admin): State<Admin>, Query(query): Query<RevisionQuery>) -> Response {
    if !query.watch {
        let report = admin.reports.borrow_and_update().clone();
        return Json(&*report).into_response();
    }
    let lines = futures::stream::unfold((admin.reports, true), |(mut reports, is_first)| async move {
        if !is_first && let Ok(Err(_)) = tokio::time::timeout(HEARTBEAT, reports.changed()).await {
            return None;
        }
        let report = reports.borrow_and_update().clone();
        let mut line = serde_json::to_vec(&*report).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), (reports, false)))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
