//! The log viewer: `/platform/logging` (reference: platform API 23).

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use doorman_crds::role::Permission;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Platform,
    answer::{Answer, Refusal},
    request::{Asked, Caller, invalid},
    wire::Int,
};
use crate::telemetry::viewer::{self, Format, Page, Query, Statistics};

const NOT_LOGS: (&str, &str) = ("LOG001", "You do not have permission to view logs");
const NOT_STATISTICS: (&str, &str) = ("LOG002", "You do not have permission to view log statistics");
const NOT_EXPORT: (&str, &str) = ("LOG003", "You do not have permission to export logs");
const NOT_DOWNLOAD: (&str, &str) = ("LOG004", "You do not have permission to download logs");
const NOT_FILES: (&str, &str) = ("LOG005", "You do not have permission to view log files");

/// Records of one page unless the client says otherwise, and at the most.
const USUAL: usize = 100;
const MOST: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(files))
        .routes(routes!(statistics))
        .routes(routes!(export))
        .routes(routes!(download))
}

/// Which of the records that match.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Part {
    /// Records of the answer.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<Int<1>>,
    /// Records to pass over, from the newest.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000_000_000_000_u64, default = 0)]
    offset: Option<Int<0>>,
}

/// The form of the file.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Form {
    /// `json` unless given.
    format: Option<Format>,
}

/// The log files.
#[derive(Debug, Serialize, ToSchema)]
struct Files {
    /// Newest first.
    log_files: Vec<String>,
    count: usize,
}

/// Records as a text.
#[derive(Debug, Serialize, ToSchema)]
struct Exported {
    format: Format,
    data: String,
    filename: String,
}

fn unread(what: &'static str) -> Refusal {
    Refusal::Detail(StatusCode::INTERNAL_SERVER_ERROR, what.into())
}

/// Without an error that could happen: what is shown here has a JSON form.
fn data(value: &impl Serialize) -> Answer {
    Answer::data(serde_json::to_value(value).unwrap_or_default())
}

/// Lists records, newest first.
#[utoipa::path(get, path = "/platform/logging/logs", tag = "Logging", params(Query, Part),
    responses((status = 200, description = "The records.", body = Page)), security(("token" = ["view_logs"])),
    extensions(("x-error-codes" = json!(["403 LOG001"]))))]
async fn list(
    State(platform): State<Platform>,
    Asked(query): Asked<Query>,
    Asked(part): Asked<Part>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    let number = |int: i64| usize::try_from(int).map_err(|_| invalid());
    let limit = part.limit.map_or(Ok(USUAL), |limit| number(limit.0))?;
    let offset = part.offset.map_or(Ok(0), |offset| number(offset.0))?;
    if limit > MOST {
        return Err(invalid().into());
    }
    caller.must(&platform, Permission::ViewLogs, NOT_LOGS).await?;
    let page = viewer::page(&platform.telemetry.logs, query, limit, offset).await;
    Ok(data(&page.ok_or_else(|| unread("Failed to retrieve logs"))?))
}

/// Lists the log files, newest first.
#[utoipa::path(get, path = "/platform/logging/logs/files", tag = "Logging",
    responses((status = 200, description = "Their paths.", body = Files)), security(("token" = ["view_logs"])),
    extensions(("x-error-codes" = json!(["403 LOG005"]))))]
async fn files(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ViewLogs, NOT_FILES).await?;
    let log_files = viewer::log_files(&platform.telemetry.logs).await;
    let log_files = log_files.ok_or_else(|| unread("Failed to retrieve log files"))?;
    Ok(data(&Files { count: log_files.len(), log_files }))
}

/// Counts records by level, API, user and path.
#[utoipa::path(get, path = "/platform/logging/logs/statistics", tag = "Logging",
    responses((status = 200, description = "The numbers.", body = Statistics)), security(("token" = ["view_logs"])),
    extensions(("x-error-codes" = json!(["403 LOG002"]))))]
async fn statistics(State(platform): State<Platform>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ViewLogs, NOT_STATISTICS).await?;
    let statistics = viewer::statistics(&platform.telemetry.logs).await;
    Ok(data(&statistics.ok_or_else(|| unread("Failed to retrieve log statistics"))?))
}

/// Gives records as a text, at most ten thousand, the newest.
#[utoipa::path(get, path = "/platform/logging/logs/export", tag = "Logging", params(Query, Form),
    responses((status = 200, description = "The text and a name for it.", body = Exported)),
    security(("token" = ["export_logs"])), extensions(("x-error-codes" = json!(["403 LOG003"]))))]
async fn export(
    State(platform): State<Platform>,
    Asked(query): Asked<Query>,
    Asked(form): Asked<Form>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ExportLogs, NOT_EXPORT).await?;
    let export = viewer::export(&platform.telemetry.logs, query, form.format.unwrap_or_default()).await;
    let export = export.ok_or_else(|| unread("Failed to retrieve logs"))?;
    Ok(data(&Exported { format: export.format, data: export.data, filename: export.filename }))
}

/// Gives records as a file, at most ten thousand, the newest.
#[utoipa::path(get, path = "/platform/logging/logs/download", tag = "Logging", params(Query, Form),
    responses((status = 200, description = "The file.", content(
        (Vec<viewer::Entry> = "application/json"), (String = "text/csv")))),
    security(("token" = ["export_logs"])), extensions(("x-error-codes" = json!(["403 LOG004"]))))]
async fn download(
    State(platform): State<Platform>,
    Asked(query): Asked<Query>,
    Asked(form): Asked<Form>,
    caller: Caller,
) -> Result<Response, Refusal> {
    caller.must(&platform, Permission::ExportLogs, NOT_DOWNLOAD).await?;
    let export = viewer::export(&platform.telemetry.logs, query, form.format.unwrap_or_default()).await;
    let export = export.ok_or_else(|| unread("Failed to retrieve logs"))?;
    let kind = if export.format == Format::Csv { "text/csv" } else { "application/json" };
    Ok(file(kind, &export.filename, export.data))
}

/// A text that browsers save under this name, which must be plain.
pub(super) fn file(kind: &'static str, name: &str, text: String) -> Response {
    let mut response = Body::from(text).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(disposition) = HeaderValue::try_from(format!("attachment; filename={name}")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}
