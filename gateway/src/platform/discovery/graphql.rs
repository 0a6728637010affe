//! GraphQL schemas: read, read again, in short.

use std::sync::Arc;

use axum::extract::State;
use doorman_crds::role::Permission;
use http::StatusCode;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Age, Asked, NO_DISCOVERY, NoDocument, broken};
use crate::{
    discovery::{
        Place,
        graphql::{OperationTypes, Schema, Type},
    },
    platform::{
        Platform,
        answer::{Answer, Refusal, refused},
        request::{ApiPath, At, Caller},
    },
};

const NO_SERVERS: (&str, &str) = ("GQL001", "No upstream servers configured");
/// No upstream told a schema.
const NO_SCHEMA: &str = "GQL002";
const NOT_KNOWN: (&str, &str) = ("GQL003", "Schema not cached. Call GET schema first.");
const BROKEN: &str = "GQL999";
/// Where upstreams are asked unless the API says otherwise.
const USUAL_PLACE: &str = "/graphql";

pub(super) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::default().routes(routes!(read)).routes(routes!(refresh)).routes(routes!(types))
}

fn place(asked: &Asked) -> Result<Place, String> {
    Place::path(asked.text("api_graphql_schema_url").unwrap_or(USUAL_PLACE))
}

async fn schema(
    platform: &Platform,
    asked: &Asked,
    age: Age,
    failed: &'static str,
) -> Result<(Arc<Schema>, bool), Refusal> {
    let found = asked.document(platform, &platform.discovery.graphql, Some(place(asked)), age).await;
    found.map_err(|why| {
        why.refusal(BROKEN, |why| match why {
            NoDocument::NoServers => refused(StatusCode::NOT_FOUND, NO_SERVERS.0, NO_SERVERS.1),
            _ => refused(StatusCode::BAD_GATEWAY, NO_SCHEMA, failed),
        })
    })
}

/// A schema.
#[derive(Serialize, ToSchema)]
#[schema(as = GraphQlSchema)]
struct Told<'a> {
    /// What introspection tells as `__schema`.
    #[schema(value_type = Object)]
    schema: &'a RawValue,
    /// Was it known?
    cached: bool,
    operation_types: &'a OperationTypes,
    has_subscriptions: bool,
}

/// Reads the schema of an API's upstream by introspection; it is asked for once an hour.
#[utoipa::path(get, path = "/platform/api/{api_name}/{api_version}/graphql/schema", tag = "GraphQL", params(ApiPath),
    responses((status = 200, description = "The schema.", body = Told)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 GQL001", "500 GQL999", "502 GQL002",
        "503 GTW503"]))))]
async fn read(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    let failed = "Failed to fetch schema from upstream";
    let (found, cached) = schema(&platform, &asked, Age::Known, failed).await?;
    let operation_types = &found.operation_types;
    let has_subscriptions = operation_types.subscription.is_some();
    let told = to_raw_value(&Told { schema: &found.schema, cached, operation_types, has_subscriptions });
    Ok(Answer::raw(told.map_err(|_| broken(BROKEN))?.into()))
}

/// What a new look at a schema found.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GraphQlRefreshed)]
struct Refreshed {
    message: &'static str,
    /// How many types it has, but for those of introspection.
    types_count: usize,
    has_subscriptions: bool,
}

/// Asks the upstream for its schema now.
#[utoipa::path(post, path = "/platform/api/{api_name}/{api_version}/graphql/schema/refresh", tag = "GraphQL",
    params(ApiPath), responses((status = 200, description = "It was read.", body = Refreshed)),
    security(("token" = ["manage_apis"])),
    extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 API001", "404 GQL001", "500 GQL999", "502 GQL002",
        "503 GTW503"]))))]
async fn refresh(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let asked = Asked::find(&platform, key).await?;
    let (found, _) = schema(&platform, &asked, Age::New, "Failed to fetch schema").await?;
    let refreshed = Refreshed {
        message: "Schema refreshed successfully",
        types_count: found.types.len(),
        has_subscriptions: found.operation_types.subscription.is_some(),
    };
    Ok(Answer::data(serde_json::to_value(refreshed).unwrap_or_default()))
}

/// The types of a schema.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GraphQlTypes)]
struct Types<'a> {
    types: &'a [Type],
    /// How many there are.
    types_count: usize,
}

/// Tells the types of a schema that is known; the upstream is not asked.
#[utoipa::path(get, path = "/platform/api/{api_name}/{api_version}/graphql/types", tag = "GraphQL", params(ApiPath),
    responses((status = 200, description = "The types.", body = Types)),
    security(("token" = ["manage_apis"])), extensions(("x-error-codes" = json!(["403 AUTHZ001", "404 GQL003"]))))]
async fn types(State(platform): State<Platform>, At(key): At<ApiPath>, caller: Caller) -> Result<Answer, Refusal> {
    caller.must(&platform, Permission::ManageApis, NO_DISCOVERY).await?;
    let not_known = || refused(StatusCode::NOT_FOUND, NOT_KNOWN.0, NOT_KNOWN.1);
    let asked = Asked::find_any(&platform, key).await?.ok_or_else(not_known)?;
    let place = place(&asked).map_err(|_| not_known())?;
    let api = asked.served(&platform).await.map_err(|_| not_known())?;
    let known = platform.discovery.graphql.known(&api, &place).ok_or_else(not_known)?;
    let types = Types { types: &known.types, types_count: known.types.len() };
    Ok(Answer::data(serde_json::to_value(types).unwrap_or_default()))
}
