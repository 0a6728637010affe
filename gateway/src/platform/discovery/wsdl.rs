//! WSDLs: read, read again, imported, or given to be read.

use std::sync::Arc;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Age, Asked, Described, NO_DISCOVERY, NoDocument, Skipped, broken, import, in_one_line, must_be_ours};
use crate::{
    discovery::{
        DiscoveryError, Place,
        wsdl::{self, Description, Parsed},
    },
    identity::Denied,
    platform::{
        Platform,
        answer::{Answer, Refusal, bad, bad_because, refused},
        request::{ApiPath, At, Caller, Whole},
    },
};

const NO_URL: &str = "WSDL001";
const NO_SERVERS: (&str, &str) = ("WSDL002", "No upstream servers configured");
/// There is no document.
const NO_DOCUMENT: &str = "WSDL003";
/// What was sent, or fetched, is no WSDL.
const NOT_WSDL: &str = "WSDL004";
const BROKEN: &str = "WSDL999";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default()
        .routes(routes!(read))
        .routes(routes!(refresh))
        .routes(routes!(import_endpoints))
        .routes(routes!(parse))
}

async fn document(platform: &Platform, asked: &Asked, age: Age) -> Result<(Arc<Description>, bool), NoDocument> {
    let place = asked.text("api_wsdl_url").map(Place::path_or_url);
    asked.document(platform, &platform.discovery.wsdl, place, age).await
}

fn invalid(why: &str) -> Refusal {
    bad_because(NOT_WSDL, format!("Invalid WSDL: {why}"))
}

fn none(why: NoDocument, no_url: &'static str, failed: &'static str) -> Refusal {
    why.refusal(BROKEN, |why| match why {
        NoDocument::NoPlace => refused(StatusCode::NOT_FOUND, NO_URL, no_url),
        NoDocument::NoServers => refused(StatusCode::NOT_FOUND, NO_SERVERS.0, NO_SERVERS.1),
        NoDocument::Failed(DiscoveryError::Unreadable(why)) => invalid(&why),
        _ => refused(StatusCode::BAD_GATEWAY, NO_DOCUMENT, failed),
    })
}

/// A WSDL.
#[derive(Debug, Serialize, ToSchema)]
struct Wsdl {
    /// The document.
    wsdl: String,
    /// Was it known?
    cached: bool,
}

/// Reads the WSDL of an API's upstream; it is asked for once an hour.
#[utoipa::path(get, path = "/platform/api/{api_name}/{api_version}/wsdl", tag = "WSDL", params(ApiPath),
    responses((status = 200, description = "The WSDL.", body = Wsdl)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 WSDL004", "403 AUTHZ001", "404 API001", "404 WSDL001", "404 WSDL002",
        "500 WSDL999", "502 WSDL003", "503 GTW503"]))))]
async fn read(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    let told = ["No WSDL URL configured for this API", "Failed to fetch WSDL from upstream"];
    let found = document(&platform, &asked, Age::Known).await;
    let (found, cached) = found.map_err(|why| none(why, told[0], told[1]))?;
    let wsdl = Wsdl { wsdl: found.text.clone(), cached };
    Ok(Answer::data(serde_json::to_value(wsdl).unwrap_or_default()))
}

/// What a new look at a WSDL found.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WsdlRefreshed)]
struct Refreshed<'a> {
    message: &'static str,
    service_name: &'a str,
    /// How many operations it has.
    operations_found: usize,
}

/// Asks the upstream for its WSDL now.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/wsdl/refresh", tag = "WSDL", params(ApiPath),
    responses((status = 200, description = "It was read.", body = Refreshed)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 WSDL004", "403 AUTHZ001", "404 API001", "404 WSDL001", "500 WSDL999",
        "502 WSDL003", "503 GTW503"]))))]
async fn refresh(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    let told = ["No WSDL URL configured", "Failed to fetch WSDL"];
    let found = document(&platform, &asked, Age::New).await;
    let (found, _) = found.map_err(|why| match why {
        NoDocument::NoServers => refused(StatusCode::BAD_GATEWAY, NO_DOCUMENT, told[1]),
        why => none(why, told[0], told[1]),
    })?;
    let refreshed = Refreshed {
        message: "WSDL refreshed successfully",
        service_name: &found.parsed.service_name,
        operations_found: found.parsed.operations.len(),
    };
    Ok(Answer::data(serde_json::to_value(refreshed).unwrap_or_default()))
}

/// What came of an import.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WsdlImported)]
struct Report<'a> {
    message: &'static str,
    service_name: &'a str,
    /// Operations of the WSDL.
    operations_found: usize,
    /// Endpoints that were added, one for each path that the service is called at.
    endpoints_imported: usize,
    /// Paths that the API has endpoints for, or that can't be endpoints.
    endpoints_skipped: usize,
    /// These paths, a hundred at the most.
    skipped: Vec<Skipped>,
}

/// Adds an endpoint for each path that the service of the upstream's WSDL is called at and the API has none for.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/wsdl/import", tag = "WSDL", params(ApiPath),
    responses((status = 200, description = "They were added.", body = Report)),
    security(("token" = ["manage_endpoints"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 WSDL003", "409 DEF409", "500 WSDL999",
        "503 DEF503", "503 GTW503", "504 DEF504"]))))]
async fn import_endpoints(
    State(platform): State<Platform>,
    At(key): At<ApiPath>,
    caller: Caller,
) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageEndpoints, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    must_be_ours(&platform, &asked.key)?;
    let (found, _) = document(&platform, &asked, Age::Known)
        .await
        .map_err(|why| why.refusal(BROKEN, |_| refused(StatusCode::NOT_FOUND, NO_DOCUMENT, "No WSDL available")))?;
    let Parsed { service_name, operations, addresses, .. } = &found.parsed;
    let names: Vec<_> = operations.iter().map(|operation| &*operation.name).collect();
    let description = in_one_line(&format!("{service_name}: {}", names.join(", ")));
    let api = asked.served(&platform).await?;
    let bases: Vec<_> = api.servers.all().iter().map(|server| &*server.base_path).collect();
    let described: Vec<_> = addresses
        .iter()
        .map(|address| Described { method: "POST", uri: below(address, &bases), description: &description })
        .collect();
    let imported = import(&platform, &asked.key, &described).await?;
    let report = Report {
        message: "WSDL import completed",
        service_name,
        operations_found: operations.len(),
        endpoints_imported: imported.added,
        endpoints_skipped: imported.passed_over,
        skipped: imported.skipped,
    };
    Ok(Answer::data(serde_json::to_value(report).unwrap_or_default()))
}

/// What of a path comes behind the base path of a server.
fn below<'a>(path: &'a str, bases: &[&str]) -> &'a str {
    let rest = |base: &&str| path.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    // The longest base says most.
    let rest = bases.iter().filter_map(rest).min_by_key(|rest| rest.len()).unwrap_or(path);
    if rest.is_empty() { "/" } else { rest }
}

/// Tells what a WSDL 1.1 describes.
#[utoipa::path(post, path = "/platform/wsdl/parse", tag = "WSDL",
    request_body(content = String, content_type = "text/xml", description = "The WSDL, whatever its type is said to be."),
    responses((status = 200, description = "What it describes.", body = Parsed)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["400 WSDL004", "403 AUTHZ001", "500 WSDL999"]))))]
async fn parse(
    State(platform): State<Platform>,
    caller: Result<Caller, Denied>,
    Whole(sent): Whole,
) -> Result<Answer, Refusal> {
    caller?.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    if sent.trim_ascii().is_empty() {
        return Err(bad(NOT_WSDL, "Empty WSDL content"));
    }
    let parsed = platform.discovery.reading(move || wsdl::parse(&sent)).await;
    let parsed = parsed.map_err(|error| match error {
        DiscoveryError::Unreadable(why) => invalid(&why),
        DiscoveryError::Unfetched(_) | DiscoveryError::Broken(_) => broken(BROKEN),
    })?;
    Ok(Answer::data(serde_json::to_value(parsed).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_of_a_server_is_no_part_of_an_endpoint() {
        for (path, bases, expected) in [
            ("/a/b", &["/a"][..], "/b"),
            ("/a/b", &["/a/b"], "/"),
            ("/a/b", &["", "/a"], "/b"),
            ("/ab", &["/a"], "/ab"),
            ("/a", &[], "/a"),
            ("/", &[""], "/"),
        ] {
            assert_eq!(below(path, bases), expected, "{path} {bases:?}");
        }
    }
}
