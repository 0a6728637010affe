//! What probes ask: `/platform/monitor`.

use axum::{extract::State, response::Response};
use doorman_crds::role::Permission;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Platform, answer::bare};

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(liveness)).routes(routes!(readiness))
}

/// The process is alive.
#[derive(Debug, Serialize, ToSchema)]
struct Liveness {
    status: String,
}

/// For liveness probes: the process answers.
#[utoipa::path(get, path = "/platform/monitor/liveness", tag = "Monitor",
    responses((status = 200, description = "It does.", body = Liveness)))]
async fn liveness() -> Response {
    bare(StatusCode::OK, &json!({ "status": "alive" }))
}

/// What the process and its stores are up to.
#[derive(Debug, Serialize, ToSchema)]
struct Readiness {
    status: &'static str,
    mongodb: &'static str,
    redis: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_backend: Option<&'static str>,
}

/// For readiness probes: takes traffic, and its stores answer.
///
/// Ready means: this process takes traffic, and its stores answered when they were last asked. Memory counts as
/// connected. Holders of `manage_gateway` see which stores there are; a bad token is as good as none.
#[utoipa::path(get, path = "/platform/monitor/readiness", tag = "Monitor",
    responses((status = 200, description = "Ready.", body = Readiness),
        (status = 503, description = "Not ready.", body = Readiness)))]
async fn readiness(State(platform): State<Platform>, headers: HeaderMap) -> Response {
    let store = platform.identity.store();
    let health = store.health();
    let is_ready = *platform.ready.borrow() && health.mongodb && health.redis;
    let connected = |is_there| if is_there { "connected" } else { "disconnected" };
    let is_shown_more = match platform.identity.identify(&headers).await {
        Ok(principal) => platform.identity.may(&principal, Permission::ManageGateway).await.unwrap_or(false),
        Err(_) => false,
    };
    let body = Readiness {
        status: if is_ready { "ready" } else { "degraded" },
        mongodb: connected(health.mongodb),
        redis: connected(health.redis),
        mode: is_shown_more.then(|| store.mode()),
        cache_backend: is_shown_more.then(|| store.cache_backend()),
    };
    bare(if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}
