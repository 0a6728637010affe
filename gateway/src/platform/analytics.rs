//! Whose traffic, of what, how fast: `/platform/analytics` (reference: platform API 27).

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal, failed},
    request::{Asked, At, Caller, invalid},
    wire::Int,
};
use crate::{
    problem::Problem,
    telemetry::traffic::{
        Analysis, Granularity, OneApi, OneUser, Overview, Range, SortBy, Timeseries, TopApis, TopEndpoints, TopUsers,
        Traffic, When,
    },
};

const REFUSED: (&str, &str) = ("ANALYTICS001", "You do not have permission to view analytics");
/// A time that ends before it starts.
const INVALID_TIME: &str = "ANALYTICS400";
/// Nobody called that, or that user called nothing.
const NO_DATA: &str = "ANALYTICS404";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(overview))
        .routes(routes!(timeseries))
        .routes(routes!(top_apis))
        .routes(routes!(top_users))
        .routes(routes!(top_endpoints))
        .routes(routes!(api))
        .routes(routes!(user))
}

/// The time that is asked about: the last day unless given. Both ends or neither: one alone counts for nothing.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Time {
    /// `1h`, `24h`, `7d` or `30d`; anything else is `24h`. Beyond a day it begins at full five minutes, beyond a week at a
    /// full hour, beyond thirty days at a full day.
    range: Option<String>,
    /// The first second, since 1970.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000_000_000_000_u64)]
    start_ts: Option<Int<0>>,
    /// The last second, since 1970.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000_000_000_000_u64)]
    end_ts: Option<Int<0>>,
}

impl Time {
    fn when(&self) -> Result<When, Problem> {
        let (Some(Int(start)), Some(Int(end))) = (self.start_ts, self.end_ts) else {
            return Ok(When::Last(Range::parse(self.range.as_deref().unwrap_or_default())));
        };
        if end < start {
            let message = "end_ts must not be before start_ts";
            return Err(Problem::new(StatusCode::BAD_REQUEST, INVALID_TIME, message));
        }
        Ok(When::Between(start.unsigned_abs(), end.unsigned_abs()))
    }
}

/// How long the list may get.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Length {
    /// Entries of the list.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 100, default = 10)]
    limit: Option<Int<1>>,
}

impl Length {
    fn entries(&self) -> Result<usize, Problem> {
        const MOST: usize = 100;
        const USUAL: usize = 10;
        let limit = self.limit.map_or(Some(USUAL), |Int(limit)| usize::try_from(limit).ok());
        limit.filter(|limit| *limit <= MOST).ok_or_else(invalid)
    }
}

/// What is shown of the course.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Course {
    /// `auto`, `minute`, `5minute`, `hour` or `day`. The past is kept in longer times the longer it is ago.
    granularity: Option<Granularity>,
    /// `request_count`, `error_rate`, `latency` or `bandwidth` reduces points to that; anything else to their times.
    metric_type: Option<String>,
}

/// What the list is sorted by.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Order {
    /// `count` unless given.
    sort_by: Option<SortBy>,
}

/// Makes the answer of a caller who may have it, on a thread that serves no requests.
async fn answered<T: Serialize>(
    platform: &Platform,
    caller: &Caller,
    show: impl FnOnce(&Traffic) -> Option<T> + Send + 'static,
    missing: impl FnOnce() -> String,
) -> Result<Answer, Refusal> {
    caller.must(platform, Permission::ViewAnalytics, REFUSED).await?;
    let traffic = platform.telemetry.traffic.clone();
    let shown = tokio::task::spawn_blocking(move || show(&traffic).map(serde_json::to_value).transpose());
    let shown = shown.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    Ok(Answer::data(shown.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, NO_DATA, missing()))?))
}

/// The same for what there is always an answer to.
async fn analysed<T: Serialize>(
    platform: &Platform,
    caller: &Caller,
    when: When,
    show: impl FnOnce(&Analysis) -> T + Send + 'static,
) -> Result<Answer, Refusal> {
    answered(platform, caller, move |traffic| Some(show(&traffic.analysis(when))), String::new).await
}

/// Tells of all traffic in short.
#[utoipa::path(get, path = "/platform/analytics/overview", tag = "Analytics", params(Time),
    responses((status = 200, description = "Sums, times, and who and what was busiest.", body = Overview)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001"]))))]
async fn overview(
    State(platform): State<Platform>,
    Asked(time): Asked<Time>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    analysed(&platform, &caller, time.when()?, Analysis::overview).await
}

/// Tells of the course of the traffic.
#[utoipa::path(get, path = "/platform/analytics/timeseries", tag = "Analytics", params(Time, Course),
    responses((status = 200, description = "Points in the order of time.", body = Timeseries)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001"]))))]
async fn timeseries(
    State(platform): State<Platform>,
    Asked(time): Asked<Time>,
    Asked(Course { granularity, metric_type }): Asked<Course>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let (when, granularity) = (time.when()?, granularity.unwrap_or_default());
    let show = move |traffic: &Traffic| Some(traffic.timeseries(when, granularity, metric_type.as_deref()));
    answered(&platform, &caller, show, String::new).await
}

/// Lists the busiest APIs.
#[utoipa::path(get, path = "/platform/analytics/top-apis", tag = "Analytics", params(Time, Length),
    responses((status = 200, description = "The busiest first.", body = TopApis)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001"]))))]
async fn top_apis(
    State(platform): State<Platform>,
    Asked(time): Asked<Time>,
    Asked(length): Asked<Length>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let limit = length.entries()?;
    analysed(&platform, &caller, time.when()?, move |analysis| analysis.top_apis(limit)).await
}

/// Lists the busiest users.
#[utoipa::path(get, path = "/platform/analytics/top-users", tag = "Analytics", params(Time, Length),
    responses((status = 200, description = "The busiest first.", body = TopUsers)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001"]))))]
async fn top_users(
    State(platform): State<Platform>,
    Asked(time): Asked<Time>,
    Asked(length): Asked<Length>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let limit = length.entries()?;
    analysed(&platform, &caller, time.when()?, move |analysis| analysis.top_users(limit)).await
}

/// Lists endpoints: the busiest, the slowest, or those that failed most.
#[utoipa::path(get, path = "/platform/analytics/top-endpoints", tag = "Analytics", params(Time, Order, Length),
    responses((status = 200, description = "In the order that was asked for.", body = TopEndpoints)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001"]))))]
async fn top_endpoints(
    State(platform): State<Platform>,
    Asked(time): Asked<Time>,
    Asked(order): Asked<Order>,
    Asked(length): Asked<Length>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let (limit, sort_by) = (length.entries()?, order.sort_by.unwrap_or_default());
    analysed(&platform, &caller, time.when()?, move |analysis| analysis.top_endpoints(sort_by, limit)).await
}

/// Tells how one version of an API and its endpoints were used.
#[utoipa::path(get, path = "/platform/analytics/api/{api_name}/{version}", tag = "Analytics",
    params(("api_name" = String, Path, description = "Name of the API."),
        ("version" = String, Path, description = "Its version."), Time),
    responses((status = 200, description = "Its calls, whatever protocol they came by.", body = OneApi)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001", "404 ANALYTICS404"]))))]
async fn api(
    State(platform): State<Platform>,
    At((name, version)): At<(String, String)>,
    Asked(time): Asked<Time>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let (when, missing) = (time.when()?, format!("No data found for API: {name}/{version}"));
    answered(&platform, &caller, move |traffic| traffic.analysis(when).api(&name, &version), || missing).await
}

/// Tells how much one user called.
#[utoipa::path(get, path = "/platform/analytics/user/{username}", tag = "Analytics",
    params(("username" = String, Path, description = "Name of the user."), Time),
    responses((status = 200, description = "The user's calls.", body = OneUser)),
    security(("token" = ["view_analytics"])),
    extensions(("x-error-codes" = json!(["400 ANALYTICS400", "403 ANALYTICS001", "404 ANALYTICS404"]))))]
async fn user(
    State(platform): State<Platform>,
    At(username): At<String>,
    Asked(time): Asked<Time>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let (when, missing) = (time.when()?, format!("No data found for user: {username}"));
    answered(&platform, &caller, move |traffic| traffic.analysis(when).user(&username), || missing).await
}
