//! What probes and monitors ask: `/platform/monitor` (reference: platform API 24).

use axum::{extract::State, response::Response};
use doorman_crds::role::Permission;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal, bare, failed},
    logging::file,
    request::{Asked, Caller},
};
use crate::{
    problem::Problem,
    telemetry::traffic::{Grouping, Monitor, Range, Sorting},
};

const NOT_METRICS: (&str, &str) = ("MON001", "You do not have permission to view monitor metrics");
const NOT_REPORT: (&str, &str) = ("MON002", "You do not have permission to generate reports");
/// A report of a time that is none.
const INVALID_TIME: &str = "MON003";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(liveness))
        .routes(routes!(readiness))
        .routes(routes!(metrics))
        .routes(routes!(report))
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

/// What numbers to show.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct MonitorQuery {
    /// `1h`, `24h`, `7d` or `30d`; anything else is `24h`. Beyond a day it begins at full five minutes, beyond a week
    /// at a full hour.
    range: Option<String>,
    /// Points of the series: `minute` or `day`.
    group: Option<String>,
    /// `asc` or `desc`.
    sort: Option<String>,
}

/// Tells of the traffic under `/api`: how much, how fast, whose.
#[utoipa::path(get, path = "/platform/monitor/metrics", tag = "Monitor", params(MonitorQuery),
    responses((status = 200, description = "The numbers of all gateways on one Redis.", body = Monitor)),
    security(("token" = ["manage_gateway"])), extensions(("x-error-codes" = json!(["403 MON001"]))))]
async fn metrics(
    State(platform): State<Platform>,
    Asked(query): Asked<MonitorQuery>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageGateway, NOT_METRICS).await?;
    let range = Range::parse(query.range.as_deref().unwrap_or_default());
    let grouping = if query.group.as_deref() == Some("day") { Grouping::Day } else { Grouping::Minute };
    let sorting = if query.sort.as_deref() == Some("desc") { Sorting::Descending } else { Sorting::Ascending };
    let traffic = platform.telemetry.traffic.clone();
    let monitor = tokio::task::spawn_blocking(move || serde_json::to_value(traffic.monitor(range, grouping, sorting)));
    Ok(Answer::data(monitor.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?))
}

/// From when to when: `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM`.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ReportQuery {
    /// The first day or minute (UTC).
    start: String,
    /// The last day or minute (UTC).
    end: String,
}

/// Gives a report on the traffic as a CSV file.
#[utoipa::path(get, path = "/platform/monitor/report", tag = "Monitor", params(ReportQuery),
    responses((status = 200, description = "The report.", body = String, content_type = "text/csv")),
    security(("token" = ["manage_gateway"])), extensions(("x-error-codes" = json!(["400 MON003", "403 MON002"]))))]
async fn report(
    State(platform): State<Platform>,
    Asked(ReportQuery { start, end }): Asked<ReportQuery>,
    caller: Caller,
) -> Result<Response, Refusal> {
    caller.must(&platform, Permission::ManageGateway, NOT_REPORT).await?;
    let traffic = platform.telemetry.traffic.clone();
    let name = format!("doorman_report_{start}_to_{end}.csv");
    let report = tokio::task::spawn_blocking(move || traffic.report(&start, &end)).await;
    let report = report.map_err(|error| failed(&error))?;
    let report = report.map_err(|message| Problem::new(StatusCode::BAD_REQUEST, INVALID_TIME, message))?;
    Ok(file("text/csv", &name, report))
}
