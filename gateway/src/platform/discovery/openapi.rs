//! OpenAPI documents: read, read again, imported, or given to be read.

use std::sync::Arc;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Age, Asked, Described, NO_DISCOVERY, NoDocument, Skipped, broken, import, must_be_ours};
use crate::{
    discovery::{
        DiscoveryError, Place,
        openapi::{self, Description, Parsed},
    },
    identity::Denied,
    platform::{
        Platform,
        answer::{Answer, Refusal, bad, refused},
        request::{ApiPath, At, Caller, Whole},
    },
};

const NO_URL: &str = "OPENAPI001";
const NO_SERVERS: (&str, &str) = ("OPENAPI002", "No upstream servers configured");
/// There is no document.
const NO_DOCUMENT: &str = "OPENAPI003";
/// What was sent is no document.
const NOT_OPENAPI: (&str, &str) = ("OPENAPI004", "Invalid OpenAPI spec");
const BROKEN: &str = "OPENAPI999";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(read))
        .routes(routes!(refresh))
        .routes(routes!(import_endpoints))
        .routes(routes!(parse))
}

async fn document(platform: &Platform, asked: &Asked, age: Age) -> Result<Arc<Description>, NoDocument> {
    let place = asked.text("api_openapi_url").map(Place::path);
    asked.document(platform, &platform.discovery.openapi, place, age).await.map(|(document, _)| document)
}

fn none(why: NoDocument, no_url: &'static str, failed: &'static str) -> Refusal {
    why.refusal(BROKEN, |why| match why {
        NoDocument::NoPlace => refused(StatusCode::NOT_FOUND, NO_URL, no_url),
        NoDocument::NoServers => refused(StatusCode::NOT_FOUND, NO_SERVERS.0, NO_SERVERS.1),
        _ => refused(StatusCode::BAD_GATEWAY, NO_DOCUMENT, failed),
    })
}

/// Reads the OpenAPI document of an API's upstream; it is asked for once an hour.
#[utoipa::path(get, path = "/platform/api/{api_name}/{api_version}/openapi", tag = "OpenAPI", params(ApiPath),
    responses((status = 200, description = "The document; what was YAML, as JSON.", body = Map<String, Value>)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 OPENAPI001", "404 OPENAPI002",
        "500 OPENAPI999", "502 OPENAPI003", "503 GTW503"]))))]
async fn read(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    let told = ["No OpenAPI URL configured for this API", "Failed to fetch OpenAPI spec from upstream"];
    let found = document(&platform, &asked, Age::Known).await.map_err(|why| none(why, told[0], told[1]))?;
    Ok(Answer::raw(found.document.clone()))
}

/// What a new look at a document found.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenApiRefreshed)]
struct Refreshed {
    message: &'static str,
    /// How many paths it has.
    endpoints_found: usize,
}

/// Asks the upstream for its OpenAPI document now.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/openapi/refresh", tag = "OpenAPI", params(ApiPath),
    responses((status = 200, description = "It was read.", body = Refreshed)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 OPENAPI001", "404 OPENAPI002",
        "500 OPENAPI999", "502 OPENAPI003", "503 GTW503"]))))]
async fn refresh(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    let told = ["No OpenAPI URL configured", "Failed to fetch OpenAPI spec"];
    let found = document(&platform, &asked, Age::New).await.map_err(|why| none(why, told[0], told[1]))?;
    let refreshed = Refreshed { message: "OpenAPI spec refreshed successfully", endpoints_found: found.paths };
    Ok(Answer::data(serde_json::to_value(refreshed).unwrap_or_default()))
}

/// What came of an import.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenApiImported)]
struct Report {
    message: &'static str,
    /// Operations of the document.
    endpoints_found: usize,
    /// Endpoints that were added.
    endpoints_imported: usize,
    /// Operations that the API has endpoints for, or that can't be endpoints.
    endpoints_skipped: usize,
    /// The first hundred of these.
    skipped: Vec<Skipped>,
}

/// Adds an endpoint for each operation of the upstream's OpenAPI document that the API has none for.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/openapi/import", tag = "OpenAPI", params(ApiPath),
    responses((status = 200, description = "They were added.", body = Report)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 OPENAPI003", "409 DEF409", "500 OPENAPI999",
        "503 DEF503", "503 GTW503", "504 DEF504"]))))]
async fn import_endpoints(
    State(platform): State<Platform>,
    At(key): At<ApiPath>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageEndpoints, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    must_be_ours(&platform, &asked.key)?;
    let found = document(&platform, &asked, Age::Known).await.map_err(|why| {
        why.refusal(BROKEN, |_| refused(StatusCode::NOT_FOUND, NO_DOCUMENT, "No OpenAPI spec available"))
    })?;
    let described: Vec<_> = described(&found).collect();
    let imported = import(&platform, &asked.key, &described).await?;
    let report = Report {
        message: "OpenAPI import completed",
        endpoints_found: described.len(),
        endpoints_imported: imported.added,
        endpoints_skipped: imported.passed_over,
        skipped: imported.skipped,
    };
    Ok(Answer::data(serde_json::to_value(report).unwrap_or_default()))
}

fn described(found: &Description) -> impl Iterator<Item = Described<'_>> {
    found.operations.iter().map(|one| Described { method: &one.method, uri: &one.uri, description: &one.description })
}

/// Tells what an OpenAPI document describes: OpenAPI 3.0, 3.1 or Swagger 2.0, as JSON or YAML.
#[utoipa::path(post, path = "/platform/openapi/parse", tag = "OpenAPI", request_body = Map<String, Value>,
    responses((status = 200, description = "What it describes.", body = Parsed)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 OPENAPI004", "403 AUTHZ001", "500 OPENAPI999"]))))]
async fn parse(
    State(platform): State<Platform>,
    caller: Result<Caller, Denied>,
    Whole(sent): Whole,
) -> Result<Answer, Refusal> {
    caller?.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let parsed = platform.discovery.reading(move || openapi::parse(&sent)).await;
    let parsed = parsed.map_err(|error| match error {
        DiscoveryError::Unreadable(why) => {
            tracing::debug!(%why, "what was sent is no OpenAPI document");
            bad(NOT_OPENAPI.0, NOT_OPENAPI.1)
        }
        DiscoveryError::Unfetched(_) | DiscoveryError::Broken(_) => broken(BROKEN),
    })?;
    Ok(Answer::data(serde_json::to_value(parsed).unwrap_or_default()))
}
